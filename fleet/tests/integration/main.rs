//! Properties of the book.

mod book;
mod borrowed;
mod care;
mod claims;
mod diagnoses;
mod fleets;
mod holds;
mod lines;
mod staging;
mod starts;
