//! Decisions on whole books.

mod staging;
