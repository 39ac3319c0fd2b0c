//! Joint paths of several series.

use super::{Fitted, Mix, Past};

/// Fewest origins that paths are drawn from.
const ALIKE_MIN: usize = 60;
/// Paths stay within so many times what was ever seen: a burst on top of a burst has no example.
const SEEN_TIMES: f64 = 1.2;

/// A path `[horizons][K]` with its probability.
pub type WeightedPath = (f64, Vec<Vec<f64>>);

/// Joint paths of several series: in each path, all series and horizons repeat the residuals of one past origin, which
/// keeps their correlation. `histories` are `[K][N]` with equal steps; the result has at most `count` paths whose
/// weights add up to 1.
///
/// All past origins are ranked by how high their path goes, summed over the series; the ranks are cut into strata that
/// are finer towards the top, and each stratum is told by its middle path. No chance is involved, so that plans of
/// neighbouring minutes see neighbouring paths, and the tail that a hit rate of 99 % asks for is always there.
///
/// Beyond `reach` steps, `[K]`, paths spread no further: what will be decided later will know more. Whoever can have a node
/// in ten minutes needs room in an hour for what cannot be foreseen ten minutes before, no more.
#[must_use]
pub fn paths(
    histories: &[Vec<f64>],
    mixes: &[Mix],
    season: usize,
    horizons: &[usize],
    reach: &[usize],
    count: usize,
) -> Vec<WeightedPath> {
    let pasts: Vec<Past> = histories.iter().map(|history| Past::of(history, season)).collect();
    let of = |k: usize, steps: usize| pasts[k].fit_or_last(&mixes[k], steps.max(1));
    let each = 0..histories.len();
    let fitted: Vec<Vec<Option<Fitted>>> = each.clone().map(|k| horizons.iter().map(|h| of(k, *h)).collect()).collect();
    let errs: Vec<Option<Fitted>> = each.map(|k| of(k, reach[k])).collect();
    let fits = || fitted.iter().flatten().flatten();
    let first = fits().map(|f| f.origins().0).max().unwrap_or(0);
    let last = fits().map(|f| f.origins().1).min().unwrap_or(0).max(first);
    let stride = fits().map(|f| f.origins.stride).max().unwrap_or(1);
    let most: Vec<f64> = histories.iter().map(|h| SEEN_TIMES * h.iter().copied().fold(0.0, f64::max)).collect();
    let value = |k: usize, h: usize, origin: usize| {
        let now = histories[k].last().copied().unwrap_or(0.0);
        let far = errs[k].as_ref().filter(|_| horizons[h] > reach[k]);
        fitted[k][h].as_ref().map_or(now, |f| f.replay_error(far.unwrap_or(f), origin).min(most[k]))
    };
    let peak = |origin: usize| -> f64 {
        let of = |k: usize| (0..horizons.len()).map(|h| value(k, h, origin)).fold(0.0, f64::max);
        (0..histories.len()).map(of).sum()
    };
    let origins = alike(&pasts, (first..=last).step_by(stride).collect());
    let mut ranked: Vec<(f64, usize)> = origins.into_iter().map(|o| (peak(o), o)).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    strata(ranked.len(), count)
        .into_iter()
        .map(|(from, to)| {
            let origin = ranked[(from + to) / 2].1;
            let row = |h: usize| (0..histories.len()).map(|k| value(k, h, origin)).collect();
            ((to - from) as f64 / ranked.len() as f64, (0..horizons.len()).map(row).collect())
        })
        .collect()
}

/// The origins at which demand stood most like now: a service that idles and one at its peak do not move alike
/// (nearest neighbours in the roots of the levels, each by its own spread).
fn alike(pasts: &[Past], origins: Vec<usize>) -> Vec<usize> {
    let keep = (origins.len() / 3).max(ALIKE_MIN);
    if origins.len() <= keep {
        return origins;
    }
    let spread = |past: &Past| {
        let roots: Vec<f64> = origins.iter().map(|o| past.root[*o]).collect();
        let mean = roots.iter().sum::<f64>() / roots.len() as f64;
        (roots.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / roots.len() as f64).sqrt().max(1e-6)
    };
    let scale: Vec<f64> = pasts.iter().map(spread).collect();
    let far = |o: usize| -> f64 {
        let of = |(past, scale): (&Past, &f64)| {
            let now = past.root.last().copied().unwrap_or(0.0);
            (past.root[o] - now).abs() / scale
        };
        pasts.iter().zip(&scale).map(of).sum()
    };
    let mut ranked: Vec<(f64, usize)> = origins.into_iter().map(|o| (far(o), o)).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    ranked.into_iter().take(keep).map(|r| r.1).collect()
}

/// Cuts `0..len` into at most `count` ranges that get narrower towards the top, by the same factor each: the last is about
/// a hundredth of the first, whatever their number, and at least one wide.
fn strata(len: usize, count: usize) -> Vec<(usize, usize)> {
    const LAST_OF_FIRST: f64 = 0.0125;
    let shrink = LAST_OF_FIRST.powf(1.0 / (count.max(2) - 1) as f64);
    let share = |i: usize| shrink.powi(i as i32);
    let total: f64 = (0..count).map(share).sum();
    let mut cuts = vec![0];
    let mut upto = 0.0;
    for i in 0..count {
        upto += share(i) / total;
        let cut = ((upto * len as f64).round() as usize).min(len);
        if cut > cuts[cuts.len() - 1] {
            cuts.push(cut);
        }
    }
    cuts.windows(2).map(|w| (w[0], w[1])).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Method;
    use super::super::tests::daily;
    use super::*;

    #[test]
    fn without_a_past_all_paths_are_now() {
        let paths = paths(&[vec![3.0]], &[Method::SEASONAL_NAIVE.into()], 48, &[1, 2], &[1], 4);
        assert_eq!(paths, vec![(1.0, vec![vec![3.0]; 2])]);
    }

    #[test]
    fn paths_spread_no_further_than_a_decision_reaches() {
        let series = daily(48 * 20, 6.0);
        let spread = |reach: usize| {
            let paths =
                paths(std::slice::from_ref(&series), &[Method::LAST_VALUE.into()], 48, &[1, 2, 24], &[reach], 400);
            let at = |h: usize| {
                let values = || paths.iter().map(|(_, path)| path[h][0]);
                values().fold(0.0, f64::max) - values().fold(f64::INFINITY, f64::min)
            };
            [at(0), at(1), at(2)]
        };
        let (far, near) = (spread(24), spread(2));
        assert!(far[2] > 1.5 * far[0], "a day's rhythm is in the errors of half a day: {far:?}");
        assert_eq!(far[..1], near[..1], "what can be decided in time is as it was");
        assert!(near[2] < 0.8 * far[2], "{near:?} {far:?}");
    }

    #[test]
    fn strata_cover_everything_and_are_finest_at_the_top() {
        for (len, count) in [(600, 12), (5, 12), (1, 3), (600, 1)] {
            let cut = strata(len, count);
            assert_eq!((cut[0].0, cut[cut.len() - 1].1), (0, len));
            assert!(cut.windows(2).all(|w| w[0].1 == w[1].0) && cut.len() <= count);
        }
        let top = strata(600, 12)[11];
        assert!(top.1 - top.0 <= 6, "the top stratum is a hundredth: {top:?}");
        assert!(strata(600, 100).len() > 60, "more paths are more paths");
    }
}
