//! Solves the whole problem without ever writing it out: rows are cut in where a path's demand cannot be covered
//! (Gale-Hoffman conditions, found by a flow), columns are priced in where an offer pays at the current prices, and a
//! bound that needs no solver says how far the result can be from the optimum of the extensive form.

mod master;
mod price;
mod resolve;
mod scout;
mod solve;
mod start;

pub use master::{Decision, Master};
pub use price::{Duals, Profit};
pub use resolve::{Effort, Optimum, gap, resolve};
pub use solve::solve;
