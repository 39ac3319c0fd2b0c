//! A database that an older version wrote.
