//! Where the solver begins.

use super::master::Decision;
use crate::keys::{Period, SourceId};
use crate::model::{EPS, Model};
use crate::source::Source;

/// About where the optimum is.
#[derive(Debug)]
pub struct Start {
    /// Sources that hold nodes.
    pub sources: Vec<usize>,
    /// GPUs of each pool, `[T][pools]`.
    pub pool_gpus: Vec<Vec<f64>>,
    /// What these cost, but for misses, dollars.
    pub linear_usd: f64,
    /// What is decided about nodes.
    pub decisions: Vec<Decision>,
}

/// The parent plan: what it meant for the moments that come. None without one.
pub fn from_parent(model: &Model) -> Option<Start> {
    let held = |source: &Source| source.expected.iter().any(|nodes| *nodes > EPS);
    if !model.sources.iter().any(held) {
        return None;
    }
    let sources = (0..model.sources.len()).filter(|i| held(&model.sources[*i]) || model.sources[*i].must_be_modelled());
    let mut pool_gpus: Vec<Vec<f64>> =
        (0..model.periods()).map(|t| model.pools.iter().map(|pool| pool.fixed_gpus[t]).collect()).collect();
    let (mut linear_usd, mut decisions) = (0.0, Vec::new());
    for (i, source) in model.sources.iter().enumerate() {
        let mut alive = 0.0;
        for (t, row) in pool_gpus.iter_mut().enumerate() {
            let launched = |u: usize| source.planned[u] * source.profile.arrivals[u][t];
            alive = alive * source.profile.survive[t] + source.appear[t] + (0..t).map(launched).sum::<f64>();
            let nodes = source.expected[t].max(source.kept[t]);
            if nodes < alive - EPS {
                decisions.push(Decision::Release(SourceId(i), Period(t)));
            }
            alive = nodes;
            row[source.pool] += source.gpus * (nodes - source.claimed[t]).max(0.0);
            linear_usd += nodes * source.cost_usd_per_h * model.hours[t] + source.planned[t] * source.launch_usd(t);
        }
    }
    Some(Start { sources: sources.collect(), pool_gpus, linear_usd, decisions })
}

#[cfg(test)]
mod tests {
    use crate::planning::{Options, plan};
    use crate::synthetic::{Size, fleet, next_minute};

    /// A plan that begins where its parent was ends where one from nothing does.
    #[test]
    fn where_it_begins_decides_nothing() {
        for seed in 0..4 {
            let input = fleet(Size { offers: 150, classes: 10, scenarios: 8, periods: 8 }, seed);
            let mut options = Options::default();
            options.effort.gap = 1e-6;
            let parent = plan(&input, options).expect("a plan");
            let next = next_minute(&input, &parent, seed);
            assert!(next.offers.iter().any(|offer| !offer.expected_nodes.is_empty()));
            let mut from_nothing = next.clone();
            from_nothing.offers.iter_mut().for_each(|offer| offer.expected_nodes.clear());
            let (warm, cold) = (plan(&next, options).expect("a plan"), plan(&from_nothing, options).expect("a plan"));
            let (warm, cold) = (warm.report.bound_usd_micros.usd(), cold.report.bound_usd_micros.usd());
            assert!((warm - cold).abs() <= 1e-5 * cold, "seed {seed}: {warm} and {cold}");
            // However wrong the parent was.
            let mut wrong = next;
            let turned = |nodes: &mut Vec<f64>| nodes.iter_mut().for_each(|n| *n = (40.0 - *n).max(0.0));
            wrong.offers.iter_mut().for_each(|offer| turned(&mut offer.expected_nodes));
            let wrong = plan(&wrong, options).expect("a plan").report.bound_usd_micros.usd();
            assert!((wrong - cold).abs() <= 1e-5 * cold, "seed {seed}: {wrong} and {cold}");
        }
    }
}
