//! Sizes GPU buffers: forecast, supply estimate, linear program, whole-number plan and a report that says why.
//!
//! Nothing here does I/O, reads a clock or draws a random number: [`planning::plan`] is a function of one input.

mod appraise;
pub mod assumptions;
pub mod base_stock;
pub mod check;
pub mod columns;
pub mod decompose;
pub mod explain;
pub mod extensive;
pub mod flow;
pub mod forecast;
pub mod gather;
pub mod input;
pub mod keys;
pub mod miss_price;
pub mod model;
pub mod plan;
pub mod planning;
pub mod recourse;
pub mod report;
pub mod rolling;
pub mod round;
pub mod scenarios;
pub mod serves;
pub mod source;
pub mod supply;
pub mod synthetic;
pub mod validate;
pub mod what_if;

pub use input::PlanInput;
pub use plan::Plan;
pub use planning::{Options, PlanError, plan};
