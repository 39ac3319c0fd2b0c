//! When nodes are out of service: recorded outages of servers, or made up ones.

use std::collections::BTreeMap;

use fleet::rng::Rng;
use serde::Deserialize;

/// A server is out of service between these, seconds since the start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outage {
    /// From.
    pub from_s: f64,
    /// Until.
    pub until_s: f64,
}

/// A trace that does not read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It is not the JSON of InfiniteHBD's trace.
    #[error("the fault trace does not read: a list of {{node_id, event_time, event_type}} is wanted")]
    Json(#[from] serde_json::Error),
    /// It has nothing in it.
    #[error("the fault trace has no outages")]
    Empty,
}

#[derive(Debug, Deserialize)]
struct Event {
    node_id: String,
    /// Days.
    event_time: f64,
    event_type: String,
}

/// Reads the fault trace of InfiniteHBD (StepFun, SIGCOMM'25): starts and ends of faults of 400 servers over 348 days.
/// `servers` is how many there were, those without a fault among them.
///
/// # Errors
/// [`TraceError`].
pub fn read_trace(text: &str, servers: usize) -> Result<Vec<Vec<Outage>>, TraceError> {
    let events: Vec<Event> = serde_json::from_str(text)?;
    let end_s = events.iter().map(|e| e.event_time).fold(0.0, f64::max) * super::DAY_S;
    // Faults of one server may overlap: it is back when all have ended.
    let mut open: BTreeMap<String, (u32, f64)> = BTreeMap::new();
    let mut by_server: BTreeMap<String, Vec<Outage>> = BTreeMap::new();
    for event in events {
        let at_s = event.event_time * super::DAY_S;
        let slot = open.entry(event.node_id.clone()).or_insert((0, at_s));
        if event.event_type == "fault_start" {
            if slot.0 == 0 {
                slot.1 = at_s;
            }
            slot.0 += 1;
        } else if slot.0 > 0 {
            slot.0 -= 1;
            if slot.0 == 0 {
                let outage = Outage { from_s: slot.1, until_s: at_s.max(slot.1) };
                by_server.entry(event.node_id).or_default().push(outage);
            }
        }
    }
    for (server, (count, from_s)) in open {
        if count > 0 {
            by_server.entry(server).or_default().push(Outage { from_s, until_s: end_s });
        }
    }
    if by_server.is_empty() {
        return Err(TraceError::Empty);
    }
    let mut all: Vec<Vec<Outage>> = by_server.into_values().collect();
    all.resize(servers.max(all.len()), Vec::new());
    Ok(all)
}

/// Made-up outages of so many servers: 3e-4 a GPU-day and eight GPUs (Llama 3, arXiv 2407.21783), repaired after a lognormal
/// time with a median of 20 h, as InfiniteHBD's were.
#[must_use]
pub fn synthetic(servers: usize, days: f64, seed: u64) -> Vec<Vec<Outage>> {
    let mut rng = Rng::new(seed);
    let mut one = || {
        let (mut at_s, mut outages) = (0.0, Vec::new());
        loop {
            at_s += -rng.unit().max(1e-300).ln() / (8.0 * 3e-4) * super::DAY_S;
            if at_s >= days * super::DAY_S {
                return outages;
            }
            let lasts_s = 20.0 * 3600.0 * (1.8 * rng.normal()).exp();
            outages.push(Outage { from_s: at_s, until_s: at_s + lasts_s });
            at_s += lasts_s;
        }
    };
    (0..servers).map(|_| one()).collect()
}
