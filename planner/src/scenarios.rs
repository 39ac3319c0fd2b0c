//! Demand paths for the linear program, from the demand seen so far.

use crate::forecast::{self, Mix};
use crate::input::Scenario;

/// Demand seen so far, in equal steps up to now.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    /// Length of a step in seconds.
    pub step_s: u32,
    /// Concurrent claims, `[K][N]`, the last is now.
    pub claims: Vec<Vec<f64>>,
    /// Steps of each class that nobody wrote down: they repeat the one before, `[K]`; empty where there are none.
    pub filled_steps: Vec<u32>,
}

/// How paths are made.
#[derive(Debug, Clone, PartialEq)]
pub struct PathRules {
    /// Length of the season in seconds (a day, mostly).
    pub season_s: u32,
    /// Most paths.
    pub paths: usize,
    /// From a decision to its nodes, seconds, `[K]`: paths spread no further than in that time.
    pub lead_s: Vec<f64>,
    /// Mean life of a claim in seconds, `[K]`: claims that end are replaced by new ones.
    pub claim_mean_s: Vec<f64>,
    /// Demand that was declared.
    pub declared: Vec<Declared>,
}

/// Steps of a period at which a path is drawn: its peak is the highest of them.
const DRAWN_STEPS: usize = 5;

/// Demand that somebody says will be there: a launch, a load test. At least so much, in every path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Declared {
    /// Index of the class.
    pub class: usize,
    /// From when, seconds from now; may be in the past.
    pub from_s: f64,
    /// Until when, seconds from now.
    pub until_s: f64,
    /// Concurrent claims.
    pub claims: f64,
}

impl Declared {
    /// The most that is declared of a class for a time, in seconds from now.
    fn most(all: &[Self], class: usize, from_s: f64, until_s: f64) -> f64 {
        let meets = |d: &&Self| d.class == class && d.from_s < until_s && d.until_s > from_s;
        all.iter().filter(meets).map(|d| d.claims).fold(0.0, f64::max)
    }
}

/// Paths over periods of `period_s`; each class is forecast by its mix of methods, `[K]`.
/// A period's demand is the highest of a few of the steps that it touches, the last among them.
#[must_use]
pub fn build(history: &History, mixes: &[Mix], period_s: &[u32], rules: &PathRules) -> Vec<Scenario> {
    let step = history.step_s.max(1);
    let season = (rules.season_s / step).max(1) as usize;
    let mut horizons: Vec<usize> = Vec::new();
    let mut spans = Vec::new();
    let mut at: u32 = 0;
    for length in period_s {
        let first = (at / step).max(1) as usize;
        at += length;
        let last = (at.div_ceil(step) as usize).max(first);
        let stride = (last - first + 1).div_ceil(DRAWN_STEPS);
        let mut steps: Vec<usize> = (first..=last).rev().step_by(stride).collect();
        steps.reverse();
        horizons.extend(&steps);
        spans.push(steps);
    }
    horizons.sort_unstable();
    horizons.dedup();
    let reach: Vec<usize> = rules.lead_s.iter().map(|s| (s / f64::from(step)).ceil().max(1.0) as usize).collect();
    let paths = forecast::paths(&history.claims, mixes, season, &horizons, &reach, rules.paths);
    let starts = crate::input::starts(period_s);
    let place = |h: &usize| horizons.binary_search(h).unwrap_or(0);
    let classes = history.claims.len();
    let now = |k: usize| history.claims[k].last().copied().unwrap_or(0.0);
    let scenario = |(weight, path): forecast::WeightedPath| {
        let peak = |steps: &Vec<usize>, k: usize| steps.iter().map(|h| path[place(h)][k]).fold(0.0, f64::max);
        let declared = |t: usize, k: usize| {
            let until_s = starts[t] + f64::from(period_s[t]);
            Declared::most(&rules.declared, k, starts[t], until_s)
        };
        let at = |t: usize| (0..classes).map(|k| peak(&spans[t], k).max(declared(t, k))).collect();
        let claims: Vec<Vec<f64>> = (0..spans.len()).map(at).collect();
        let new_claims = (0..spans.len()).map(|t| {
            let one = |k: usize| {
                let before = if t == 0 { now(k) } else { claims[t - 1][k] };
                let renewed = before * (f64::from(period_s[t]) / rules.claim_mean_s[k].max(1.0)).min(1.0);
                (claims[t][k] - before).max(0.0) + renewed
            };
            (0..classes).map(one).collect()
        });
        let new_claims = new_claims.collect();
        Scenario { weight, claims, new_claims }
    };
    paths.into_iter().map(scenario).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_weights_and_replacement() {
        let history = History { step_s: 300, claims: vec![vec![10.0; 700], vec![0.0; 700]], filled_steps: vec![] };
        let rules = PathRules {
            season_s: 86_400,
            paths: 4,
            lead_s: vec![600.0; 2],
            claim_mean_s: vec![600.0; 2],
            declared: vec![],
        };
        let mixes = vec![forecast::Method::ALL[4].into(); 2];
        let scenarios = build(&history, &mixes, &[60, 300, 900], &rules);
        assert!((scenarios.iter().map(|s| s.weight).sum::<f64>() - 1.0).abs() < 1e-9);
        for scenario in &scenarios {
            assert!(scenario.claims.iter().all(|row| (row[0] - 10.0).abs() < 1e-9 && row[1] == 0.0));
            // A tenth of the claims ends in a minute, half in five, and each is replaced.
            assert!((scenario.new_claims[0][0] - 1.0).abs() < 1e-9 && (scenario.new_claims[1][0] - 5.0).abs() < 1e-9);
        }
    }

    /// What is declared is in every path, for its time and its class only, and its claims begin in its first period.
    #[test]
    fn declared_demand_is_planned_for() {
        let history = History { step_s: 300, claims: vec![vec![10.0; 700], vec![0.0; 700]], filled_steps: vec![] };
        let periods = [300, 300, 300, 300];
        let declared = vec![Declared { class: 1, from_s: 600.0, until_s: 900.0, claims: 50.0 }];
        let rules =
            PathRules { season_s: 86_400, paths: 4, lead_s: vec![600.0; 2], claim_mean_s: vec![600.0; 2], declared };
        for path in build(&history, &vec![forecast::Method::LAST_VALUE.into(); 2], &periods, &rules) {
            let of = |k: usize| path.claims.iter().map(|p| p[k]).collect::<Vec<_>>();
            assert_eq!(of(1), [0.0, 0.0, 50.0, 0.0]);
            assert!((path.new_claims[2][1] - 50.0).abs() < 1e-9);
            assert!(of(0).iter().all(|c| *c >= 10.0));
        }
    }
}
