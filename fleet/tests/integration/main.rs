//! Properties of the book.

mod book;
mod care;
mod claims;
mod diagnoses;
mod fleets;
mod holds;
