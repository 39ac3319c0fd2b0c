//! Leaves on a host: kept on its disk, fetched from where they are, verified when they enter; and whole objects that are staged.

pub mod arena;
pub mod cache;
pub mod kept;
mod leaves;
mod near;
pub mod peers;
pub mod rates;
mod runs;
pub mod stage;

pub use cache::{Cache, CacheError, Content, Counts as CacheCounts};
pub use kept::Kept;
pub use leaves::{Counts, FetchError, Leaves, RUN_BYTES_MAX, Wanted};
pub use runs::runs;
