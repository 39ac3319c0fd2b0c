//! What is measured by doing it on a GPU.

mod checkpoint;
mod cuda;
mod measure;
mod peers;

pub use checkpoint::{Checkpoints, State as ProcessState, Step};
pub use measure::{Effort, Measured};
pub use peers::peers;
