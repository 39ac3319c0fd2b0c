//! Properties of the book.

mod book;
mod claims;
mod fleets;
