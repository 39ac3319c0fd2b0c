//! What is measured by doing it on a GPU.

pub mod bulk;
mod checkpoint;
mod cuda;
mod measure;
mod pause;
mod peers;

pub use checkpoint::{Checkpoints, State as ProcessState, Step};
pub use measure::{Effort, Measured};
pub use pause::Paused;
pub use peers::peers;
