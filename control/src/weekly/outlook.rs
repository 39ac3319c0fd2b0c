//! What the newest plan expects, as far as the weekly schedule asks.

use std::collections::BTreeMap;

use fleet::OfferKey;

use crate::plan::PlanRecord;

/// What a plan expects soon; empty where there is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outlook {
    /// Healthy nodes meant for the second period, by offer.
    pub nodes: BTreeMap<OfferKey, f64>,
    /// Claims expected in the first period and in the second, by class.
    pub claims: BTreeMap<String, (f64, f64)>,
}

impl Outlook {
    /// Of a plan.
    #[must_use]
    pub fn of(record: &PlanRecord) -> Self {
        let meant =
            record.plan.targets.iter().filter_map(|t| Some((t.offer.clone(), *t.nodes.get(1).or(t.nodes.first())?)));
        let input = &record.input;
        let of = |t: usize, k: usize| -> f64 {
            let path =
                |s: &planner::input::Scenario| s.weight * s.claims.get(t).and_then(|row| row.get(k)).unwrap_or(&0.0);
            input.scenarios.iter().map(path).sum()
        };
        let claims = input.classes.iter().enumerate().map(|(k, class)| (class.name.clone(), (of(0, k), of(1, k))));
        Self { nodes: meant.collect(), claims: claims.collect() }
    }

    /// Whether a fifth more claims of these classes are expected in the second period than in the first.
    pub(super) fn rises(&self, classes: &[&str]) -> bool {
        let expected = classes.iter().filter_map(|k| self.claims.get(*k));
        let (now, next) = expected.fold((0.0, 0.0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
        next > 1.2 * now && next > now + 1.0
    }
}
