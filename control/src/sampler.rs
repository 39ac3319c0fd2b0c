//! Demand as forecasts see it: the most claims at the same time in each minute, by class.

use std::collections::BTreeMap;

use fleet::book::Book;

/// Length of a step of the demand, seconds.
pub const STEP_S: u32 = 60;
const STEP_MS: i64 = STEP_S as i64 * 1000;

/// Claims that have GPUs or wait, by class.
#[must_use]
pub fn demand(book: &Book) -> BTreeMap<String, usize> {
    let mut counts: BTreeMap<String, usize> = book.classes().keys().map(|k| (k.clone(), 0)).collect();
    for claim in book.claims().values() {
        match counts.get_mut(&claim.class) {
            Some(count) => *count += claim.count as usize,
            None => _ = counts.insert(claim.class.clone(), claim.count as usize),
        }
    }
    counts
}

/// A step that is over: when it began, milliseconds since 1970, and the most claims of each class in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// When it began, milliseconds since 1970.
    pub at_ms: i64,
    /// The most claims at the same time, by class.
    pub claims: BTreeMap<String, usize>,
}

/// The step that is being sampled.
#[derive(Debug, Clone, Default)]
pub struct Sampler {
    open: Option<Step>,
    looked_at_ms: Option<i64>,
}

/// A look at the demand.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Time since the last look, seconds; none where nobody looked for a minute: what happened meanwhile is not known.
    pub passed_s: Option<f64>,
    /// The step that is over, to be written down.
    pub finished: Option<Step>,
}

impl Sampler {
    /// Looks at the demand of this moment.
    pub fn look(&mut self, now: &BTreeMap<String, usize>, now_ms: i64) -> Sampled {
        let passed_s = self.looked_at_ms.map(|at_ms| (now_ms - at_ms) as f64 / 1000.0);
        self.looked_at_ms = Some(now_ms);
        let start_ms = now_ms.div_euclid(STEP_MS) * STEP_MS;
        let finished = if self.open.as_ref().is_some_and(|s| s.at_ms != start_ms) { self.open.take() } else { None };
        let open = self.open.get_or_insert_with(|| Step { at_ms: start_ms, claims: BTreeMap::new() });
        for (class, count) in now {
            let most = open.claims.entry(class.clone()).or_default();
            *most = (*most).max(*count);
        }
        Sampled { passed_s: passed_s.filter(|s| (0.0..=60.0).contains(s)), finished }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_of_each_minute() {
        let mut sampler = Sampler::default();
        let at = |n: usize| BTreeMap::from([("k".to_owned(), n)]);
        assert_eq!(sampler.look(&at(1), 60_000), Sampled { passed_s: None, finished: None });
        assert_eq!(sampler.look(&at(7), 90_000).passed_s, Some(30.0));
        sampler.look(&at(2), 119_999);
        let step = sampler.look(&at(3), 120_000).finished.expect("a minute is over");
        assert_eq!((step.at_ms, step.claims), (60_000, at(7)));
        let late = sampler.look(&at(0), 600_000);
        assert_eq!((late.passed_s, late.finished.expect("it was open").claims), (None, at(3)));
    }
}
