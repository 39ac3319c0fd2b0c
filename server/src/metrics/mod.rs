//! What Prometheus reads at `/metrics`. Counts are kept as things happen, levels are read from the book when asked.

mod plans;
mod staging;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use fleet::book::{Book, ClaimError, Taken};
use fleet::invariants::{Breach, Invariant};
use fleet::{NodeState, Prediction};
use parking_lot::Mutex;
use planner::input::PlanInput;
use planner::plan::Plan;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use protocol::staging::Traffic;

use plans::{Forecast, PlanMetrics};
use staging::StagingMetrics;

/// How a claim was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Answer {
    Hit,
    Substitute,
    Queued,
    Empty,
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfClaim {
    class: String,
    result: Answer,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfClass {
    class: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfNode {
    provider: String,
    region: String,
    gpu: String,
    market: String,
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLaunch {
    provider: String,
    result: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPlan {
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDiagnosis {
    tests: String,
    verdict: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProvider {
    provider: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfInvariant {
    invariant: &'static str,
}

/// The counts and times of one server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    claims: Family<OfClaim, Counter>,
    claim_seconds: Histogram,
    hits: Family<OfClass, Gauge>,
    misses: Family<OfClass, Gauge>,
    hit_target: Family<OfClass, Gauge<f64, std::sync::atomic::AtomicU64>>,
    waiting: Family<OfClass, Gauge>,
    nodes: Family<OfNode, Gauge>,
    gpus_free: Gauge,
    gpus_lent: Gauge,
    launches: Family<OfLaunch, Counter>,
    lead_seconds: Histogram,
    plans: Family<OfPlan, Counter>,
    plan_seconds: Histogram,
    plan_epoch: Gauge,
    leads: Gauge,
    clock_off: Gauge<f64, AtomicU64>,
    idle_gpu_seconds: Counter<f64, AtomicU64>,
    idle_cost_usd: Counter<f64, AtomicU64>,
    miss_cost_usd: Family<OfClass, Gauge<f64, AtomicU64>>,
    interruptions: Family<OfProvider, Counter>,
    diagnoses: Family<OfDiagnosis, Counter>,
    yield_seconds: Histogram,
    tests_due: Gauge,
    tests_stale: Gauge,
    breakers: Gauge,
    breaches: Family<OfInvariant, Counter>,
    plan: PlanMetrics,
    staging: StagingMetrics,
    /// Forecasts for moments that are to come.
    ahead: Mutex<VecDeque<Forecast>>,
    start: Instant,
}

/// Forecasts that wait for their moment at most.
const AHEAD_MAX: usize = 10_000;

/// Seconds from 1 ms to 10 s.
const CLAIM_BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0];
/// Seconds from a launch to a healthy node.
const LEAD_BUCKETS: [f64; 10] = [10.0, 30.0, 60.0, 120.0, 180.0, 300.0, 600.0, 900.0, 1800.0, 3600.0];
/// Seconds from a call back out of diagnostics to an idle node.
const YIELD_BUCKETS: [f64; 8] = [2.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0];
/// Seconds of a plan.
const PLAN_BUCKETS: [f64; 8] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0];

impl Default for Metrics {
    fn default() -> Self {
        let mut made = Self {
            registry: Registry::default(),
            claims: Family::default(),
            claim_seconds: Histogram::new(CLAIM_BUCKETS),
            hits: Family::default(),
            misses: Family::default(),
            hit_target: Family::default(),
            waiting: Family::default(),
            nodes: Family::default(),
            gpus_free: Gauge::default(),
            gpus_lent: Gauge::default(),
            launches: Family::default(),
            lead_seconds: Histogram::new(LEAD_BUCKETS),
            plans: Family::default(),
            plan_seconds: Histogram::new(PLAN_BUCKETS),
            plan_epoch: Gauge::default(),
            leads: Gauge::default(),
            clock_off: Gauge::default(),
            idle_gpu_seconds: Counter::default(),
            idle_cost_usd: Counter::default(),
            miss_cost_usd: Family::default(),
            interruptions: Family::default(),
            diagnoses: Family::default(),
            yield_seconds: Histogram::new(YIELD_BUCKETS),
            tests_due: Gauge::default(),
            tests_stale: Gauge::default(),
            breakers: Gauge::default(),
            breaches: Family::default(),
            plan: PlanMetrics::default(),
            staging: StagingMetrics::default(),
            ahead: Mutex::default(),
            start: now(),
        };
        let r = made.registry.sub_registry_with_prefix("pilotlight");
        r.register("claims", "Claims by class and answer", made.claims.clone());
        r.register_with_unit("claim_duration", "Time to answer a claim", Unit::Seconds, made.claim_seconds.clone());
        r.register("claim_hits", "Claims granted within the class's wait, since the beginning", made.hits.clone());
        r.register("claim_misses", "Claims not granted within it, since the beginning", made.misses.clone());
        r.register_with_unit("hit_target", "Hit-rate target of a class", Unit::Ratios, made.hit_target.clone());
        r.register("claims_waiting", "Claims that wait", made.waiting.clone());
        r.register("nodes", "Nodes by place, GPU, market and state", made.nodes.clone());
        r.register("gpus_free", "GPUs that can be claimed at once", made.gpus_free.clone());
        r.register("gpus_lent", "GPUs that are lent until other claims need them", made.gpus_lent.clone());
        r.register("launches", "Launch calls by provider and answer", made.launches.clone());
        r.register_with_unit("lead_time", "Launch to healthy", Unit::Seconds, made.lead_seconds.clone());
        r.register("plans", "Plans by outcome", made.plans.clone());
        r.register_with_unit("solve_duration", "Time to make a plan", Unit::Seconds, made.plan_seconds.clone());
        r.register("plan_epoch", "Number of the last plan", made.plan_epoch.clone());
        let help = "Seconds by which this machine's clock is ahead of the fleet's time";
        r.register_with_unit("clock_off", help, Unit::Seconds, made.clock_off.clone());
        r.register("leads", "1 where this replica leads", made.leads.clone());
        r.register("idle_gpu_seconds", "GPU-seconds that were healthy and free", made.idle_gpu_seconds.clone());
        r.register("idle_cost_usd", "Dollars that they cost", made.idle_cost_usd.clone());
        r.register("miss_cost_usd", "Dollars that misses cost, since the beginning", made.miss_cost_usd.clone());
        r.register("interruptions", "Nodes that a provider took back or lost", made.interruptions.clone());
        r.register("diagnoses", "Diagnostics of nodes by what was run and what it said", made.diagnoses.clone());
        r.register_with_unit(
            "diagnosis_yield",
            "Time from a node's being called back out of diagnostics to its being idle",
            Unit::Seconds,
            made.yield_seconds.clone(),
        );
        r.register(
            "invariant_breaches",
            "Times that a numbered property of docs/invariants.md did not hold: any is a bug",
            made.breaches.clone(),
        );
        // Each is there from the start, so that an alarm can tell none from unknown.
        for invariant in Invariant::ALL {
            let _ = made.breaches.get_or_create(&OfInvariant { invariant: invariant.number() });
        }
        r.register("breakers_open", "Causes for which nothing is reset or ended", made.breakers.clone());
        r.register("nodes_test_due", "Nodes whose diagnostics are due", made.tests_due.clone());
        r.register("nodes_test_stale", "Nodes whose last full pass is too old", made.tests_stale.clone());
        made.plan.register(r);
        made.staging.register(r);
        made
    }
}

#[allow(clippy::disallowed_methods, reason = "durations of requests are measured here")]
fn now() -> Instant {
    Instant::now()
}

impl Metrics {
    /// Starts timing a claim.
    #[must_use]
    pub fn claim_timer(&self) -> Instant {
        now()
    }

    /// A claim was answered.
    pub fn claimed(&self, class: &str, answer: &Result<Taken, &ClaimError>, since: Instant) {
        let result = match answer {
            Ok(Taken::Granted | Taken::Before) => Answer::Hit,
            Ok(Taken::Substituted) => Answer::Substitute,
            Ok(Taken::Queued) => Answer::Queued,
            Err(ClaimError::Empty { .. }) => Answer::Empty,
            Err(_) => Answer::Refused,
        };
        // A class that is not known must not become a label: anybody could make any number of them.
        let class = if matches!(answer, Err(ClaimError::UnknownClass(_))) { "" } else { class };
        self.claims.get_or_create(&OfClaim { class: class.into(), result }).inc();
        self.claim_seconds.observe(since.elapsed().as_secs_f64());
    }

    /// A launch call was answered.
    pub fn launched(&self, provider: &str, result: &str) {
        self.launches.get_or_create(&OfLaunch { provider: provider.into(), result: result.into() }).inc();
    }

    /// A node became healthy so long after its launch.
    pub fn node_ready(&self, lead_s: f64) {
        self.lead_seconds.observe(lead_s);
    }

    /// A plan was made, or not.
    pub fn planned(&self, status: &str, seconds: f64, epoch: u64) {
        self.plans.get_or_create(&OfPlan { status: status.into() }).inc();
        self.plan_seconds.observe(seconds);
        self.plan_epoch.set(i64::try_from(epoch).unwrap_or(i64::MAX));
    }

    /// A plan says this, and was made from that.
    pub fn plan(&self, plan: &Plan, input: &PlanInput, now_ms: i64) {
        self.plan.planned(plan, input);
        let mut ahead = self.ahead.lock();
        ahead.extend(plans::forecasts(input, now_ms));
        let excess = ahead.len().saturating_sub(AHEAD_MAX);
        ahead.drain(..excess);
    }

    /// So long has passed, at the end of which the fleet and the demand are these.
    pub fn passed(&self, book: &Book, demand: &BTreeMap<String, usize>, seconds: f64, now_ms: i64) {
        for node in book.nodes().values().filter(|n| n.takes_claims()) {
            let (Some(p), free) = (book.offer_of(node), f64::from(node.free.count())) else { continue };
            let offer = &book.offers()[p];
            let share = free / f64::from(node.gpus.max(1));
            self.idle_gpu_seconds.inc_by(free * seconds);
            self.idle_cost_usd.inc_by(offer.price_usd_micros_per_h.usd() * share * seconds / 3600.0);
        }
        let mut ahead = self.ahead.lock();
        // In the order in which they were made, which is that of their moments.
        while ahead.front().is_some_and(|f| f.at_ms <= now_ms) {
            let Some(forecast) = ahead.pop_front() else { break };
            if let Some(came) = demand.get(&forecast.class) {
                self.plan.judged(&forecast, *came as f64);
            }
        }
    }

    /// A provider took nodes back, or lost them.
    pub fn interrupted(&self, provider: &str, nodes: u32) {
        self.interruptions.get_or_create(&OfProvider { provider: provider.into() }).inc_by(u64::from(nodes));
    }

    /// Diagnostics of a node have ended.
    pub fn diagnosed(&self, verdict: &str, tests: &str) {
        // Only what is known becomes a label: what else an agent says could be anything.
        let known = matches!(tests, "1" | "2" | "3" | "4") || health::weekly::SLICES.contains(&tests);
        let tests = if known { tests } else { "other" };
        self.diagnoses.get_or_create(&OfDiagnosis { tests: tests.into(), verdict: verdict.into() }).inc();
    }

    /// A node that was called back out of diagnostics is idle.
    pub fn yielded(&self, seconds: f64) {
        self.yield_seconds.observe(seconds);
    }

    /// A numbered property does not hold: it is counted, and the log says who breaks it.
    pub fn breached(&self, breach: &Breach) {
        tracing::error!(invariant = %breach.invariant, what = breach.what, "an invariant does not hold: a bug");
        self.breaches.get_or_create(&OfInvariant { invariant: breach.invariant.number() }).inc();
    }

    /// So many breakers are not closed.
    pub fn broken(&self, open: usize) {
        self.breakers.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// So many nodes are due for a test, and have been for too long.
    pub fn tested(&self, due: usize, stale: usize) {
        self.tests_due.set(i64::try_from(due).unwrap_or(i64::MAX));
        self.tests_stale.set(i64::try_from(stale).unwrap_or(i64::MAX));
    }

    /// A host has brought up what a claim of a class starts from: what the phases of the rung that worked took.
    pub fn came_up(&self, class: &str, attempt: Option<&fleet::Attempt>) {
        self.staging.came_up(class, attempt);
    }

    /// A claim was ready so many seconds after its grant, for which this had been predicted.
    pub fn ready(&self, predicted: &Prediction, ready_s: f64) {
        self.staging.ready(predicted, ready_s);
    }

    /// A host has moved so many bytes since its agent started.
    pub fn moved(&self, node: u64, traffic: Traffic) {
        self.staging.moved(node, traffic);
    }

    /// Snapshots are to lie as this plan says.
    pub fn staged(&self, saved_s: f64, fetch_bytes: u64) {
        self.staging.planned(saved_s, fetch_bytes);
    }

    /// How far this machine's clock is ahead of the fleet's time, milliseconds; negative: behind.
    pub fn set_clock_off(&self, off_ms: i64) {
        self.clock_off.set(off_ms as f64 / 1000.0);
    }

    /// Whether this replica leads.
    pub fn set_leads(&self, leads: bool) {
        self.leads.set(i64::from(leads));
    }

    /// Seconds since the server started.
    #[must_use]
    pub fn uptime_s(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// The text that Prometheus reads.
    #[must_use]
    pub fn text(&self, book: &Book) -> String {
        self.nodes.clear();
        let mut counts: BTreeMap<(usize, NodeState), i64> = BTreeMap::new();
        for node in book.nodes().values() {
            if let Some(p) = book.offer(&node.offer) {
                *counts.entry((p, node.state)).or_default() += 1;
            }
        }
        for ((p, state), count) in counts {
            let offer = &book.offers()[p];
            let labels = OfNode {
                provider: offer.key.provider.clone(),
                region: offer.key.region.clone(),
                gpu: offer.gpu.to_string(),
                market: offer.key.market.name().into(),
                state: state.name().into(),
            };
            self.nodes.get_or_create(&labels).inc_by(count);
        }
        self.staging.read(book);
        let free: u64 = (0..book.offers().len()).map(|p| book.free_gpus(p)).sum();
        self.gpus_free.set(free.cast_signed());
        self.gpus_lent.set(book.lent_gpus().cast_signed());
        for (name, rule) in book.classes() {
            let of = OfClass { class: name.clone() };
            let tally = book.tallies().get(name).copied().unwrap_or_default();
            self.hits.get_or_create(&of).set(tally.hits.cast_signed());
            self.misses.get_or_create(&of).set(tally.misses.cast_signed());
            self.waiting.get_or_create(&of).set(i64::try_from(book.queue(name)).unwrap_or(i64::MAX));
            self.hit_target.get_or_create(&of).set(rule.class.hit_rate_target);
            let missed_usd = tally.misses as f64 * rule.class.miss_cost_usd_micros.usd();
            self.miss_cost_usd.get_or_create(&of).set(missed_usd);
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
