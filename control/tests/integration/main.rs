//! Decisions on whole books.

mod staging;
mod starts;
