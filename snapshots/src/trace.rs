//! In which order an object's leaves are first touched, merged over runs, so that the next run finds them fetched.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ObjectId;

/// Runs that are remembered: what the image did long ago says little.
const RUNS_MAX: usize = 8;

/// What the last runs touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// The object.
    pub object: ObjectId,
    /// For each run, the newest last, the leaves in the order of their first touch.
    pub runs: Vec<Vec<u32>>,
}

impl Trace {
    /// No run yet.
    #[must_use]
    pub fn new(object: ObjectId) -> Self {
        Self { object, runs: Vec::new() }
    }

    /// Adds a run; the oldest goes where there are too many, and a run that touched nothing says nothing.
    pub fn add(&mut self, touched: Vec<u32>) {
        if touched.is_empty() {
            return;
        }
        self.runs.push(touched);
        let over = self.runs.len().saturating_sub(RUNS_MAX);
        self.runs.drain(..over);
    }

    /// The leaves to fetch ahead: those that two thirds of the runs touched, by the middle of their places there. Leaves beyond
    /// `leaves` are passed over.
    #[must_use]
    pub fn order(&self, leaves: usize) -> Vec<u32> {
        let mut places: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for run in &self.runs {
            for (place, leaf) in run.iter().enumerate().filter(|(_, leaf)| (**leaf as usize) < leaves) {
                places.entry(*leaf).or_default().push(place);
            }
        }
        let often = |places: &Vec<usize>| places.len() * 3 >= self.runs.len() * 2;
        let mut order: Vec<(usize, u32)> = places
            .into_iter()
            .filter(|(_, places)| often(places))
            .map(|(leaf, mut places)| {
                places.sort_unstable();
                (places[places.len() / 2], leaf)
            })
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(_, leaf)| leaf).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_most_runs_touched_in_the_order_of_most() {
        let mut trace = Trace::new(ObjectId::of(b"image"));
        assert!(trace.order(10).is_empty());
        trace.add(vec![7, 3, 1]);
        assert_eq!(trace.order(10), [7, 3, 1]);
        trace.add(vec![7, 3, 2]);
        trace.add(vec![3, 7, 1]);
        trace.add(Vec::new());
        assert_eq!(trace.order(10), [7, 3, 1], "2 was touched once in three runs");
        assert_eq!(trace.order(3), [1], "what an image does not have is passed over");
        (0..20).for_each(|_| trace.add(vec![5]));
        assert_eq!(trace.order(10), [5]);
    }
}
