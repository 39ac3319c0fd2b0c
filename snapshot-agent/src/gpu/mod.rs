//! What is measured by doing it on a GPU.

mod cuda;
mod measure;
mod peers;

pub use measure::{Effort, Measured};
pub use peers::peers;
