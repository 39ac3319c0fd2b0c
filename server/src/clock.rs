//! The one place where the server reads the time of day.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970. Never goes back within a process, whatever is done to the machine's clock.
#[must_use]
pub fn now_ms() -> i64 {
    static LAST: AtomicI64 = AtomicI64::new(0);
    #[allow(clippy::disallowed_methods, reason = "the one reading; everything else takes time as an argument")]
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    LAST.fetch_max(now_ms, Ordering::Relaxed).max(now_ms)
}
