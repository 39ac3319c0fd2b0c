//! The boot gate: what was measured on a host, held against limits, gives a verdict for every check and GPU.
//!
//! Pure: an agent gathers [`Evidence`], [`judge`] says what it proves. What could not be looked at is
//! [`Unseen`], and leaves its check [`Unmeasured`](crate::Verdict::Unmeasured).

mod devices;
mod evidence;
mod judge;
mod judged;
mod learned;
mod limits;
mod measured;
mod reading;
mod report;
mod state;

pub use evidence::{
    Bandwidth, Context, Copies, CopyRates, Driver, Evidence, Expected, Gpu, Identity, Look, MemoryPatterns, Peer,
    Products, Readings, Scope, Unseen,
};
pub use judge::judge;
pub use learned::{HOSTS_MIN, Learned, learn, medians, slowest};
pub use limits::{Limits, LimitsError, Model};
pub use reading::Reading;
pub use report::{Bound, Check, Number, Outcome, Report};
pub use state::HARDWARE_SLOWDOWN;
