//! What plans say, and how good the forecasts were that they were made from.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use fleet::{Offer, OfferKey};
use planner::input::{PlanInput, Scenario};
use planner::plan::Plan;
use planner::report::LimitKind;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type Level = Gauge<f64, AtomicU64>;
type Sum = Counter<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPool {
    provider: String,
    region: String,
    gpu: String,
    market: String,
}

impl OfPool {
    fn of(offer: &Offer) -> Self {
        Self {
            provider: offer.key.provider.clone(),
            region: offer.key.region.clone(),
            gpu: offer.gpu.to_string(),
            market: offer.key.market.name().into(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLimit {
    constraint: String,
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfForecast {
    class: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfQuantile {
    class: String,
    quantile: String,
}

/// What plans and forecasts say.
#[derive(Debug, Default)]
pub struct PlanMetrics {
    supply: Family<OfPool, Level>,
    targets: Family<OfPool, Level>,
    prices: Family<OfLimit, Level>,
    churn: Sum,
    judged: Family<OfForecast, Counter>,
    covered: Family<OfQuantile, Counter>,
    loss: Family<OfQuantile, Sum>,
}

impl PlanMetrics {
    /// Names them.
    pub fn register(&self, r: &mut Registry) {
        r.register("supply_estimate_nodes", "Healthy nodes that could be launched now", self.supply.clone());
        r.register("plan_target_nodes", "Healthy nodes that the plan means for now", self.targets.clone());
        let help = "Dollars an hour that one more unit of a binding limit, or 0.1 points more of hit rate, is worth";
        r.register("plan_shadow_price_usd_per_hour", help, self.prices.clone());
        r.register(
            "plan_churn_nodes",
            "Launches in which plans differ from what their parents meant",
            self.churn.clone(),
        );
        r.register("forecast_judged", "Forecasts that were compared with what came", self.judged.clone());
        r.register("forecast_covered", "Of them, those at or above what came", self.covered.clone());
        r.register("forecast_pinball_loss_claims", "Sum of their pinball losses, claims", self.loss.clone());
    }

    /// A plan was made.
    pub fn planned(&self, plan: &Plan, input: &PlanInput) {
        let pools: BTreeMap<&OfferKey, OfPool> =
            input.offers.iter().map(|o| (&o.offer.key, OfPool::of(&o.offer))).collect();
        self.supply.clear();
        for offer in &input.offers {
            self.supply.get_or_create(&pools[&offer.offer.key]).inc_by(offer.launch_limit_nodes * offer.fill);
        }
        self.targets.clear();
        for target in &plan.targets {
            if let (Some(pool), Some(nodes)) = (pools.get(&target.offer), target.nodes.first()) {
                self.targets.get_or_create(pool).inc_by(*nodes);
            }
        }
        self.prices.clear();
        let limit = |kind: &str, name: &str| OfLimit { constraint: kind.into(), name: name.into() };
        // Supply binds for many offers, and each has a name: the dearest says enough.
        for binding in plan.report.binding.iter().rev() {
            let name = if binding.kind == LimitKind::Supply { "" } else { &binding.name };
            let labels = limit(&binding.kind.words().0.replace(' ', "-"), name);
            self.prices.get_or_create(&labels).set(binding.value_usd_micros_per_h.usd());
        }
        for class in &plan.report.classes {
            // A tenth of a percentage point more; not a number until the past tells.
            let usd = class.next_point_usd_micros_per_h.map_or(f64::NAN, |usd| usd.usd());
            self.prices.get_or_create(&limit("hit-rate", &class.class)).set(usd);
        }
        self.churn.inc_by(plan.report.changes.iter().map(|c| (c.now - c.before).abs()).sum());
    }

    /// Compares a forecast with what came.
    pub fn judged(&self, forecast: &Forecast, came: f64) {
        self.judged.get_or_create(&OfForecast { class: forecast.class.clone() }).inc();
        for (quantile, said) in QUANTILES.iter().zip(forecast.said) {
            let labels = OfQuantile { class: forecast.class.clone(), quantile: quantile.to_string() };
            self.covered.get_or_create(&labels).inc_by(u64::from(came <= said));
            self.loss.get_or_create(&labels).inc_by(pinball(*quantile, said, came));
        }
    }
}

/// Pinball loss: what a quantile forecast is scored by (Koenker and Bassett 1978).
fn pinball(quantile: f64, said: f64, came: f64) -> f64 {
    if came >= said { quantile * (came - said) } else { (1.0 - quantile) * (said - came) }
}

/// Quantiles that are judged.
const QUANTILES: [f64; 2] = [0.5, 0.9];
/// So far ahead, milliseconds: about the time that a launch takes.
const AHEAD_MS: i64 = 300_000;

/// What was said of a class for a moment that is to come.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// Class.
    pub class: String,
    /// For when, milliseconds since 1970.
    pub at_ms: i64,
    said: [f64; QUANTILES.len()],
}

/// What a plan's paths say of each class for five minutes ahead, or for the end of its horizon where that comes first.
#[must_use]
pub fn forecasts(input: &PlanInput, now_ms: i64) -> Vec<Forecast> {
    let (mut end_ms, mut period) = (0, 0);
    for (t, seconds) in input.period_s.iter().enumerate() {
        period = t;
        end_ms += i64::from(*seconds) * 1000;
        if end_ms > AHEAD_MS {
            break;
        }
    }
    let at_ms = now_ms + AHEAD_MS.min(end_ms);
    let said = |k: usize| QUANTILES.map(|q| quantile(&input.scenarios, period, k, q));
    let one = |(k, class): (usize, &fleet::Class)| Forecast { class: class.name.clone(), at_ms, said: said(k) };
    input.classes.iter().enumerate().map(one).collect()
}

/// The smallest value with at least a share `q` of the paths' weight at or below it.
fn quantile(paths: &[Scenario], period: usize, class: usize, q: f64) -> f64 {
    let mut values: Vec<(f64, f64)> = paths.iter().map(|s| (s.claims[period][class], s.weight)).collect();
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut below = 0.0;
    for (value, weight) in &values {
        below += weight;
        if below >= q - 1e-9 {
            return *value;
        }
    }
    values.last().map_or(0.0, |(value, _)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_losses() {
        let path =
            |claims: f64, weight: f64| Scenario { weight, claims: vec![vec![claims]], new_claims: vec![vec![0.0]] };
        let paths = [path(9.0, 0.2), path(1.0, 0.5), path(4.0, 0.3)];
        assert_eq!(quantile(&paths, 0, 0, 0.5), 1.0);
        assert_eq!(quantile(&paths, 0, 0, 0.8), 4.0);
        assert_eq!(quantile(&paths, 0, 0, 0.9), 9.0);
        assert!((pinball(0.9, 10.0, 20.0) - 9.0).abs() < 1e-9, "too low is dear");
        assert!((pinball(0.9, 20.0, 10.0) - 1.0).abs() < 1e-9, "too high is cheap");
    }
}
