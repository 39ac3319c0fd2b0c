//! The restricted problem, and the rows that are cut into it.

mod cuts;
mod nodes;
mod problem;

pub use nodes::Decision;
pub use problem::Master;
