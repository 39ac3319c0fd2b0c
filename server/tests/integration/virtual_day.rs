//! The whole server through virtual time.
