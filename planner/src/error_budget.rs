//! What is left of each class's hit-rate target: the closed loop around the plans.
//!
//! A plan counts the misses of its own horizon as if no later plan could help, so what comes true is better than what it
//! aimed at, and at times worse. The error budget (Beyer et al. 2016, "Site Reliability Engineering", chapter 3) adds up
//! the difference, and the hit rate that plans aim at follows it, as adaptive conformal inference moves its quantile
//! (Gibbs & Candès 2021). It never aims above the target.

use fleet::book::Tally;
use serde::{Deserialize, Serialize};

const DAY_S: f64 = 86_400.0;
/// A quiet class has not proven its target before it was allowed so many misses (the rule of three: none among `n` is
/// 95 % sure of a rate below `3 / n`; Hanley & Lippman-Hand 1983).
const FEWEST_MISSES: f64 = 3.0;
/// Share of the allowed misses that may be spent; the rest is for the days on which everything goes wrong.
const SPENT_SHARE: f64 = 0.8;
/// Unspent misses that are remembered, in those that the target allows on a mean day. Debts are not: plans never aim
/// above the target, so that they could only delay what comes after a bad hour.
const FULL_DAYS: f64 = 0.5;
/// Misses that a plan may have in mind when the budget is full, as a multiple of the target's.
const MOST_TIMES: f64 = 30.0;

/// The budgets of all classes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorBudget {
    classes: Vec<Left>,
    seen_s: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Left {
    /// Unspent misses, in those that the target allows on a mean day; in 0 to [`FULL_DAYS`].
    days: f64,
    claims_per_s: f64,
    judged: Tally,
}

impl ErrorBudget {
    /// Takes in all that was judged so far (running totals, `[K]`) `elapsed_s` seconds after the last time.
    /// `targets` are hit rates, `[K]`. Totals that fall are a restart: counting begins again there.
    pub fn observe(&mut self, targets: &[f64], totals: &[Tally], elapsed_s: f64) {
        self.classes.resize(totals.len(), Left::default());
        self.seen_s += elapsed_s.max(0.0);
        for ((left, total), target) in self.classes.iter_mut().zip(totals).zip(targets) {
            let since = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now) as f64;
            let misses = since(total.misses, left.judged.misses);
            let claims = since(total.hits, left.judged.hits) + misses;
            left.judged = *total;
            // What was there before the first look proves nothing.
            if elapsed_s <= 0.0 {
                continue;
            }
            let weight = (elapsed_s / self.seen_s.min(DAY_S)).min(1.0);
            left.claims_per_s += (claims / elapsed_s - left.claims_per_s) * weight;
            let allowed = (1.0 - target).max(0.0);
            let per_day = (allowed * left.claims_per_s * DAY_S).max(FEWEST_MISSES / FULL_DAYS);
            left.days = (left.days + (SPENT_SHARE * allowed * claims - misses) / per_day).clamp(0.0, FULL_DAYS);
        }
    }

    /// Hit rate that the next plan aims at for class `k` with `target`: at most the target, which is what it is until
    /// something was observed.
    #[must_use]
    pub fn aim(&self, k: usize, target: f64) -> f64 {
        let full = self.classes.get(k).map_or(0.0, |left| left.days / FULL_DAYS);
        (1.0 - (1.0 - target) * MOST_TIMES.powf(full)).clamp(0.0, target)
    }

    /// The budget for another counting of the same classes, whose totals begin at 0.
    #[must_use]
    pub fn carried_over(&self) -> Self {
        let mut next = self.clone();
        next.classes.iter_mut().for_each(|left| left.judged = Tally::default());
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Days of `hits` and `misses` an hour.
    fn after(hours: u64, hits: u64, misses: u64) -> ErrorBudget {
        let mut budget = ErrorBudget::default();
        for hour in 1..=hours {
            budget.observe(&[0.99], &[Tally { hits: hits * hour, misses: misses * hour }], 3600.0);
        }
        budget
    }

    #[test]
    fn without_a_past_the_target_is_aimed_at() {
        assert_eq!(ErrorBudget::default().aim(0, 0.99), 0.99);
        assert_eq!(ErrorBudget::default().aim(7, 0.0), 0.0);
    }

    #[test]
    fn a_budget_that_is_not_spent_lowers_the_aim_and_an_overspent_one_does_not_raise_it() {
        let aims: Vec<f64> = [1, 4, 8, 48].map(|h| after(h, 100, 0).aim(0, 0.99)).to_vec();
        assert!(aims.windows(2).all(|w| w[1] < w[0]) && aims[0] > 0.98, "{aims:?}");
        assert!((aims[3] - (1.0 - 0.01 * MOST_TIMES)).abs() < 1e-9, "a full budget may be spent: {aims:?}");
        assert_eq!(after(12, 90, 10).aim(0, 0.99), 0.99);
        // Nothing is left of the budget after a burst, and it fills again.
        let mut budget = after(24, 50, 50);
        let aims: Vec<f64> = (1..=10)
            .map(|hour| {
                budget.observe(&[0.99], &[Tally { hits: 1200 + 100 * hour, misses: 1200 }], 3600.0);
                budget.aim(0, 0.99)
            })
            .collect();
        assert!(aims[0] > 0.98 && aims[9] < 0.95, "{aims:?}");
    }

    #[test]
    fn claims_from_before_the_first_look_prove_nothing() {
        let mut budget = ErrorBudget::default();
        budget.observe(&[0.99], &[Tally { hits: 5000, misses: 0 }], 0.0);
        assert_eq!(budget.aim(0, 0.99), 0.99);
    }

    #[test]
    fn a_quiet_class_has_to_prove_its_target() {
        // None among a hundred claims says little of one in a hundred.
        assert!(after(24, 4, 0).aim(0, 0.99) > 0.95 && after(24, 400, 0).aim(0, 0.99) < 0.7);
    }

    #[test]
    fn spending_just_what_is_allowed_keeps_the_aim() {
        let mut budget = after(6, 1000, 0);
        let before = budget.aim(0, 0.99);
        let total = Tally { hits: 6000 + 992, misses: 8 };
        budget.observe(&[0.99], &[total], 3600.0);
        assert!((budget.aim(0, 0.99) - before).abs() < 1e-3, "{before} {budget:?}");
        let restarted = budget.carried_over();
        let mut other = restarted.clone();
        other.observe(&[0.99], &[Tally::default()], 60.0);
        assert!((other.aim(0, 0.99) - before).abs() < 1e-2, "{other:?}");
    }
}
