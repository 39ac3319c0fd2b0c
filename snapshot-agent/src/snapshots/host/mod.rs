//! Leaves on a host: kept on its disk, fetched from where they are, verified when they enter.

mod cache;
mod leaves;

pub use cache::{Cache, CacheError, Content, Counts as CacheCounts};
pub use leaves::{Counts, FetchError, Leaves, RUN_BYTES_MAX, Wanted};
