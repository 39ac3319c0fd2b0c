//! Perfect foresight: the true demand of a run, for the shipped planner in place of its forecast.

use planner::input::{Scenario, starts};

use super::Seen;
use crate::engine::Setup;

/// The demand of a run as it will be.
#[derive(Debug)]
pub struct TrueFuture {
    classes: Vec<OfClass>,
}

#[derive(Debug)]
struct OfClass {
    name: String,
    /// `(ms, concurrent claims from then on)`.
    levels: Vec<(u64, i64)>,
    /// When claims come, ms.
    comes: Vec<u64>,
}

impl TrueFuture {
    /// Of a run.
    #[must_use]
    pub fn of(setup: &Setup) -> Self {
        let of_class = |k: usize| {
            let claims = || setup.claims.iter().filter(move |c| c.class as usize == k);
            let mut moves: Vec<(u64, i64)> = claims().flat_map(|c| [(c.at_ms, 1), (c.end_ms, -1)]).collect();
            moves.sort_unstable();
            let mut now = 0;
            moves.iter_mut().for_each(|(_, step)| {
                now += *step;
                *step = now;
            });
            let name = setup.classes[k].class.name.clone();
            OfClass { name, levels: moves, comes: claims().map(|c| c.at_ms).collect() }
        };
        Self { classes: (0..setup.classes.len()).map(of_class).collect() }
    }

    /// The one path from now on. Claims on a node that will be lost come again: they want room beside it from then on.
    #[must_use]
    pub fn path(&self, seen: &Seen, period_s: &[u32]) -> Scenario {
        let now_s = seen.inputs.now_s;
        let bounds: Vec<(f64, f64)> = starts(period_s)
            .into_iter()
            .zip(period_s)
            .map(|(from, length)| (from, from + f64::from(*length)))
            .collect();
        let names: Vec<&String> = seen.inputs.classes.iter().map(|k| &k.name).collect();
        let of_class = |name: &&String| self.classes.iter().find(|of| of.name == **name);
        let mut claims = vec![vec![0.0; names.len()]; bounds.len()];
        let mut new_claims = claims.clone();
        for (k, OfClass { levels, comes, .. }) in
            names.iter().enumerate().filter_map(|(k, name)| Some((k, of_class(name)?)))
        {
            for (t, (from, to)) in bounds.iter().enumerate() {
                let ms = |s: f64| ((now_s + s) * 1000.0) as u64;
                let first = levels.partition_point(|m| m.0 <= ms(*from));
                let last = levels.partition_point(|m| m.0 < ms(*to));
                // Who is there at the start, then whoever comes.
                let most = levels[first.saturating_sub(1)..last.max(first)].iter().map(|m| m.1).max().unwrap_or(0);
                claims[t][k] = most as f64;
                let came = |until: u64| comes.partition_point(|at| *at < until);
                new_claims[t][k] = (came(ms(*to)) - came(ms(*from))) as f64;
            }
        }
        for (node, lost_in_s) in seen.inputs.nodes.iter().zip(seen.lost_in_s) {
            for &(k, count) in &node.claims {
                for (t, (from, to)) in bounds.iter().enumerate().filter(|(_, (_, to))| *to > *lost_in_s) {
                    claims[t][k] += f64::from(count);
                    new_claims[t][k] += if *from <= *lost_in_s && *lost_in_s < *to { f64::from(count) } else { 0.0 };
                }
            }
        }
        Scenario { weight: 1.0, claims, new_claims }
    }
}
