//! What agents, schedulers, operators and the control plane say to each other, as types: declared once, for whoever writes
//! them and whoever reads them. Nothing here decides anything.
//!
//! Words that are not known are refused where they would steer something, and kept as they are where they are shown.

pub mod agent;
pub mod budget;
pub mod class;
pub mod forecast;
pub mod offers;
pub mod staging;
pub mod starts;

pub use budget::{BudgetSpec, QuotaSpec};
pub use class::{ClassError, ClassSpec, GpuSpec};
pub use forecast::ForecastSpec;
pub use offers::Matching;
pub use staging::SnapshotSpec;
