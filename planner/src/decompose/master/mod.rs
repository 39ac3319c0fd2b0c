//! The restricted problem, and the rows that are cut into it.

mod cuts;
mod problem;

pub use problem::Master;
