//! Time as a value that is handed down: a server reads the machine's clock, a test or a simulation its own.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A clock.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> i64 + Send + Sync>);

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now_ms()).finish()
    }
}

impl Clock {
    /// The machine's clock, which never goes back within a process, whatever is done to it.
    #[must_use]
    pub fn system() -> Self {
        let last = AtomicI64::new(0);
        Self::new(move || {
            #[allow(clippy::disallowed_methods, reason = "the one reading; everything else takes time as an argument")]
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let now_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
            last.fetch_max(now_ms, Ordering::Relaxed).max(now_ms)
        })
    }

    /// A clock that is read by `read`, milliseconds since 1970.
    pub fn new(read: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        (self.0)()
    }
}
