//! Staged copies, and how good predictions of readiness are.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use fleet::book::Book;
use fleet::{Attempt, CopyState, Prediction, Tier};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use protocol::staging::Traffic;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCopies {
    snapshot: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTier {
    tier: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStart {
    from: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPhase {
    class: String,
    rung: &'static str,
    phase: &'static str,
}

/// Seconds of a phase of a start.
const PHASE_BUCKETS: [f64; 14] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// Seconds from grant to readiness.
const READY_BUCKETS: [f64; 11] = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 900.0, 3600.0];

#[derive(Debug)]
pub(super) struct StagingMetrics {
    copies: Family<OfCopies, Gauge>,
    starts: Family<OfStart, Histogram, fn() -> Histogram>,
    phases: Family<OfPhase, Histogram, fn() -> Histogram>,
    predicted: Family<OfStart, Counter<f64, AtomicU64>>,
    error: Family<OfStart, Counter<f64, AtomicU64>>,
    late: Family<OfStart, Counter>,
    saved_s: Gauge<f64, AtomicU64>,
    fetch_bytes: Gauge,
    moved: Family<OfTier, Counter>,
    /// What each host had moved when it was last heard.
    heard: Mutex<BTreeMap<u64, Traffic>>,
}

impl Default for StagingMetrics {
    fn default() -> Self {
        Self {
            copies: Family::default(),
            starts: Family::new_with_constructor(|| Histogram::new(READY_BUCKETS)),
            phases: Family::new_with_constructor(|| Histogram::new(PHASE_BUCKETS)),
            predicted: Family::default(),
            error: Family::default(),
            late: Family::default(),
            saved_s: Gauge::default(),
            fetch_bytes: Gauge::default(),
            moved: Family::default(),
            heard: Mutex::default(),
        }
    }
}

impl StagingMetrics {
    pub fn register(&self, r: &mut Registry) {
        r.register("snapshot_copies", "Copies of snapshots on hosts, by state", self.copies.clone());
        r.register_with_unit(
            "readiness",
            "Grant to readiness, as clients told, by where the copy lay",
            Unit::Seconds,
            self.starts.clone(),
        );
        r.register_with_unit(
            "start_phase",
            "Phases of starts that hosts made by themselves, of the rung that worked",
            Unit::Seconds,
            self.phases.clone(),
        );
        r.register_with_unit(
            "readiness_predicted",
            "Seconds that had been predicted for those starts, in all",
            Unit::Seconds,
            self.predicted.clone(),
        );
        r.register_with_unit(
            "readiness_error",
            "Seconds between prediction (median) and readiness, either way, in all",
            Unit::Seconds,
            self.error.clone(),
        );
        r.register("readiness_late", "Starts that took longer than was predicted for nine of ten", self.late.clone());
        r.register_with_unit(
            "staging_saves",
            "Seconds to readiness that staged copies are expected to save within the horizon",
            Unit::Seconds,
            self.saved_s.clone(),
        );
        r.register_with_unit(
            "staging_moved",
            "Bytes of copies by where they came from: store, peer, disk; and sent to peers",
            Unit::Bytes,
            self.moved.clone(),
        );
        r.register_with_unit("staging_fetches", "Bytes that hosts are to fetch", Unit::Bytes, self.fetch_bytes.clone());
    }

    pub fn came_up(&self, class: &str, attempt: Option<&Attempt>) {
        for (phase, seconds) in attempt.map_or(&[][..], |attempt| &attempt.phases) {
            let rung = attempt.map_or("", |attempt| attempt.rung.name());
            let of = OfPhase { class: class.to_owned(), rung, phase: phase.name() };
            self.phases.get_or_create(&of).observe(*seconds);
        }
    }

    pub fn ready(&self, predicted: &Prediction, ready_s: f64) {
        let of = OfStart { from: predicted.tier.map_or("cold", Tier::name) };
        self.starts.get_or_create(&of).observe(ready_s);
        self.predicted.get_or_create(&of).inc_by(predicted.p50_s);
        self.error.get_or_create(&of).inc_by((ready_s - predicted.p50_s).abs());
        self.late.get_or_create(&of).inc_by(u64::from(ready_s > predicted.p90_s));
    }

    pub fn planned(&self, saved_s: f64, fetch_bytes: u64) {
        self.saved_s.set(saved_s);
        self.fetch_bytes.set(fetch_bytes.cast_signed());
    }

    pub fn moved(&self, node: u64, traffic: Traffic) {
        // What it had moved before this server knew of it was counted by another.
        let Some(before) = self.heard.lock().insert(node, traffic) else { return };
        let tiers = [
            ("store", traffic.store_bytes, before.store_bytes),
            ("peer", traffic.peer_bytes, before.peer_bytes),
            ("sent", traffic.sent_bytes, before.sent_bytes),
            ("disk", traffic.disk_bytes, before.disk_bytes),
        ];
        for (tier, now, before) in tiers {
            // An agent that started again counts from nothing.
            let more = if now >= before { now - before } else { now };
            self.moved.get_or_create(&OfTier { tier }).inc_by(more);
        }
    }

    pub fn read(&self, book: &Book) {
        self.heard.lock().retain(|node, _| book.nodes().contains_key(node));
        let names: BTreeMap<&str, &str> =
            book.snapshots().values().map(|s| (s.object.as_str(), s.name.as_str())).collect();
        let mut counts: BTreeMap<(&str, CopyState), i64> = BTreeMap::new();
        for (object, copy) in book.nodes().values().flat_map(|node| &node.copies) {
            if let (Some(name), Some(state)) = (names.get(object.as_str()), copy.state()) {
                *counts.entry((name, state)).or_default() += 1;
            }
        }
        self.copies.clear();
        for ((name, state), count) in counts {
            self.copies.get_or_create(&OfCopies { snapshot: name.to_owned(), state: state.name() }).set(count);
        }
    }
}
