//! What a host moves in a second, as it was measured.

use std::time::Duration;

/// Less than this says nothing of how fast the host is, bytes.
const MEASURED_MIN: u64 = 32 << 20;
/// Weight of the newest measurement.
const NEWEST: f64 = 0.3;

/// Bytes a second, where that was enough to say.
pub fn rate(bytes: u64, took: Duration) -> Option<f64> {
    (bytes >= MEASURED_MIN).then(|| bytes as f64 / took.as_secs_f64().max(1e-3))
}

/// What is known, moved to the newest measurement.
pub fn smooth(known: Option<f64>, newest: f64) -> f64 {
    let known = known.unwrap_or(newest);
    known + NEWEST * (newest - known)
}
