//! Streams of claims: from a series of concurrent claims, or drawn as a Poisson process.

use fleet::rng::Rng;
use providers::sim::Dist;

use crate::engine::ClaimSpec;

/// Claims of one class whose number follows `series` (concurrent claims, whole numbers, in steps of `step_s`): where it
/// rises, claims come at random moments of the step; where it falls, claims chosen at random end. The first value is
/// there from the start. Claims that have not ended end with the series.
#[must_use]
pub fn of_series(series: &[f64], step_s: u32, class: u32, rng: &mut Rng) -> Vec<ClaimSpec> {
    let step_ms = u64::from(step_s) * 1000;
    let mut live: Vec<usize> = Vec::new();
    let mut claims: Vec<ClaimSpec> = Vec::new();
    let end_ms = series.len() as u64 * step_ms;
    let come = |at_ms: u64, claims: &mut Vec<ClaimSpec>, live: &mut Vec<usize>| {
        live.push(claims.len());
        claims.push(ClaimSpec { at_ms, end_ms, class });
    };
    for (i, value) in series.iter().enumerate() {
        let start_ms = i as u64 * step_ms;
        let wanted = value.round().max(0.0) as usize;
        for _ in live.len()..wanted {
            let at_ms = if i == 0 { 0 } else { start_ms - 1 - rng.below(step_ms as usize) as u64 };
            come(at_ms, &mut claims, &mut live);
        }
        while live.len() > wanted {
            let place = rng.below(live.len());
            let claim = &mut claims[live.swap_remove(place)];
            // Not before it came.
            claim.end_ms = (start_ms - rng.below(step_ms as usize) as u64).max(claim.at_ms + 1000);
        }
    }
    claims.sort_unstable();
    claims
}

/// A Poisson process of `rate_per_s` with lives drawn from `life`, until `end_s`.
#[must_use]
pub fn poisson(rate_per_s: f64, life: &Dist, end_s: f64, class: u32, rng: &mut Rng) -> Vec<ClaimSpec> {
    let mut claims = Vec::new();
    let mut at_s = 0.0;
    loop {
        at_s -= rng.unit().max(1e-300).ln() / rate_per_s;
        if at_s >= end_s {
            return claims;
        }
        let at_ms = (at_s * 1000.0) as u64;
        let end_ms = at_ms + ((life.sample(rng) * 1000.0) as u64).max(1);
        claims.push(ClaimSpec { at_ms, end_ms, class });
    }
}

/// Mean life of claims in seconds, of those that came after the start; `fallback_s` where there are none.
#[must_use]
pub fn mean_life_s(claims: &[ClaimSpec], fallback_s: f64) -> f64 {
    let lives: Vec<f64> = claims.iter().filter(|c| c.at_ms > 0).map(|c| (c.end_ms - c.at_ms) as f64 / 1000.0).collect();
    if lives.is_empty() { fallback_s } else { lives.iter().sum::<f64>() / lives.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_follow_the_series() {
        let series = [3.0, 3.0, 7.0, 2.0, 0.0, 4.0];
        let claims = of_series(&series, 60, 5, &mut Rng::new(1));
        let at = |ms: u64| claims.iter().filter(|c| c.at_ms <= ms && c.end_ms > ms).count();
        for (i, value) in series.iter().enumerate() {
            assert_eq!(at(i as u64 * 60_000 + 1), *value as usize, "step {i}");
        }
        assert!(claims.windows(2).all(|w| w[0].at_ms <= w[1].at_ms) && claims.iter().all(|c| c.class == 5));
        assert_eq!(of_series(&series, 60, 5, &mut Rng::new(1)), claims);
    }
}
