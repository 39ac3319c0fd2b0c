//! Who stands where: service of each class against its own target, cost above perfect foresight, and verdicts at equal
//! service only.

use serde::{Deserialize, Serialize};

use super::{Entry, League, Player};
use crate::clairvoyant::Bound;
use crate::engine::Outcome;
use crate::policies::Family;

/// Mean of several seeds with half the 95 % confidence interval (Student's t); no interval of one seed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Mean.
    pub mean: f64,
    /// Half the interval.
    pub half: Option<f64>,
}

impl Estimate {
    /// Of values, one for each seed.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n.max(1.0);
        // Student's t at 97.5 % for 1, 2, … degrees of freedom; 1.96 beyond 30.
        let t = [
            12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11,
            2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05, 2.04,
        ];
        let half = (values.len() > 1).then(|| {
            let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
            t.get(values.len() - 2).copied().unwrap_or(1.96) * (var / n).sqrt()
        });
        Self { mean, half }
    }

    /// Whether the interval leaves the sign open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.half.is_none_or(|half| self.mean.abs() <= half)
    }
}

/// A class over all seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Name.
    pub class: String,
    /// Hit rate that is promised.
    pub hit_rate_target: f64,
    /// Hits over hits and misses, all seeds together.
    pub hit_rate: f64,
}

impl Service {
    /// How far it is under its target; 0 where it is met.
    #[must_use]
    pub fn shortfall(&self) -> f64 {
        (self.hit_rate_target - self.hit_rate).max(0.0)
    }
}

/// With whom the planner is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rivals {
    /// Simple rules, tuned on the days before.
    TunedBefore,
    /// Simple rules, tuned in the test itself.
    InHindsight,
}

impl Rivals {
    fn has(self, player: Player) -> bool {
        match self {
            Self::TunedBefore => matches!(player, Player::Before(..)),
            Self::InHindsight => matches!(player, Player::Hindsight(_) | Player::Swept(_)),
        }
    }
}

/// What the seeds say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The planner costs less.
    Cheaper,
    /// The planner costs more.
    Dearer,
    /// The seeds differ more than the two.
    CannotTell,
}

/// The planner against the cheapest rival that serves at least as well.
#[derive(Debug, Clone, Copy)]
pub struct Against<'a> {
    /// The rival.
    pub rival: &'a Entry,
    /// The planner's cost above foresight over the rival's; `None` where the rival's is not above foresight.
    pub ratio: Option<f64>,
    /// The planner's cost less the rival's, dollars a run, by pairs of the same seed.
    pub difference_usd: Estimate,
    /// What that comes to.
    pub verdict: Verdict,
}

/// Rates that differ by less are equal.
const SAME_RATE: f64 = 1e-9;

fn usd(outcome: &Outcome) -> f64 {
    outcome.money.total_usd()
}

impl Entry {
    /// Mean of something over the seeds.
    #[must_use]
    pub fn over(&self, of: impl Fn(&Outcome) -> f64) -> Estimate {
        Estimate::of(&self.outcomes.iter().map(of).collect::<Vec<_>>())
    }

    /// Dollars a run.
    #[must_use]
    pub fn cost_usd(&self) -> Estimate {
        self.over(usd)
    }

    /// Each class over all seeds, `[K]`.
    #[must_use]
    pub fn services(&self) -> Vec<Service> {
        let Some(first) = self.outcomes.first() else { return Vec::new() };
        let of_class = |k: usize| {
            let all =
                |of: fn(&crate::engine::OfClass) -> u64| self.outcomes.iter().map(|o| of(&o.classes[k])).sum::<u64>();
            let (hits, misses) = (all(|c| c.hits), all(|c| c.misses));
            let hit_rate = if hits + misses == 0 { 1.0 } else { hits as f64 / (hits + misses) as f64 };
            let class = &first.classes[k];
            Service { class: class.name.clone(), hit_rate_target: class.hit_rate_target, hit_rate }
        };
        // Who borrows is promised nothing, and neither hits nor misses.
        let promised = |k: &usize| first.classes[*k].hit_rate_target > 0.0 || first.classes[*k].claims > 0;
        (0..first.classes.len()).filter(promised).map(of_class).collect()
    }

    /// The class that is furthest under its target, or the least above it.
    #[must_use]
    pub fn worst(&self) -> Option<Service> {
        let margin = |s: &Service| s.hit_rate - s.hit_rate_target;
        self.services().into_iter().min_by(|a, b| margin(a).total_cmp(&margin(b)))
    }

    /// The worst class's shortfall; 0 where every class is at its target.
    #[must_use]
    pub fn shortfall(&self) -> f64 {
        self.worst().map_or(0.0, |s| s.shortfall())
    }
}

impl League {
    /// The entry of a player.
    #[must_use]
    pub fn entry(&self, player: Player) -> Option<&Entry> {
        self.entries.iter().find(|e| e.player == player)
    }

    /// Cost above the clairvoyant bound of the same run, as a share of it.
    #[must_use]
    pub fn overhead(&self, entry: &Entry) -> Estimate {
        let one = |(o, b): (&Outcome, &Bound)| usd(o) / b.total_usd.max(1e-9) - 1.0;
        Estimate::of(&entry.outcomes.iter().zip(&self.bounds).map(one).collect::<Vec<_>>())
    }

    /// Dollars a run above perfect foresight in the same run.
    #[must_use]
    pub fn excess_usd(&self, entry: &Entry) -> Estimate {
        self.entry(Player::Foresight).map_or(Estimate { mean: 0.0, half: None }, |floor| difference(entry, floor))
    }

    /// The cheapest of these rivals that is no further under any target than `shortfall`.
    #[must_use]
    pub fn cheapest(&self, rivals: Rivals, shortfall: f64) -> Option<&Entry> {
        let of = self.entries.iter().filter(|e| rivals.has(e.player));
        let able = of.filter(|e| e.shortfall() <= shortfall + SAME_RATE);
        able.min_by(|a, b| a.cost_usd().mean.total_cmp(&b.cost_usd().mean))
    }

    /// The planner against the cheapest of these rivals that serves at least as well; `None` where nobody does.
    #[must_use]
    pub fn against(&self, rivals: Rivals) -> Option<Against<'_>> {
        let live = self.entry(Player::Live)?;
        let rival = self.cheapest(rivals, live.shortfall())?;
        let difference_usd = difference(live, rival);
        let verdict = match difference_usd {
            open if open.is_open() => Verdict::CannotTell,
            Estimate { mean, .. } if mean < 0.0 => Verdict::Cheaper,
            _ => Verdict::Dearer,
        };
        let (ours, theirs) = (self.excess_usd(live).mean, self.excess_usd(rival).mean);
        Some(Against { rival, ratio: (theirs > 0.0).then_some(ours / theirs), difference_usd, verdict })
    }

    /// The family's point that is shown: its cheapest at the planner's service, or its least short.
    #[must_use]
    pub fn shown_of(&self, players: impl Fn(Player) -> bool) -> Option<&Entry> {
        let allowed = self.entry(Player::Live).map_or(0.0, Entry::shortfall);
        let rank = |e: &Entry| ((e.shortfall() - allowed - SAME_RATE).max(0.0), e.cost_usd().mean);
        let key = |a: &&Entry, b: &&Entry| {
            let (a, b) = (rank(a), rank(b));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
        };
        self.entries.iter().filter(|e| players(e.player)).min_by(key)
    }

    /// Entries that are shown: the planner, foresight, the mean planner, every family tuned before, the best in hindsight.
    #[must_use]
    pub fn shown(&self) -> Vec<&Entry> {
        let first = [Player::Foresight, Player::Live, Player::LpMean].into_iter().filter_map(|p| self.entry(p));
        let before = Family::ALL
            .into_iter()
            .filter_map(|family| self.shown_of(|p| matches!(p, Player::Before(of, _) if of == family)));
        let hindsight = self.shown_of(|p| matches!(p, Player::Hindsight(_)));
        first.chain(before).chain(hindsight).collect()
    }

    /// Players that nothing beats in both cost and the worst class's shortfall, the best service first.
    #[must_use]
    pub fn frontier(&self) -> Vec<&Entry> {
        let point = |e: &Entry| (e.shortfall(), e.cost_usd().mean);
        let fair = |e: &&Entry| e.player != Player::Foresight;
        let all: Vec<(&Entry, (f64, f64))> = self.entries.iter().filter(fair).map(|e| (e, point(e))).collect();
        let beats = |a: &(f64, f64), b: &(f64, f64)| a.0 <= b.0 && a.1 <= b.1 && a != b;
        let mut front: Vec<_> = all.iter().filter(|(_, p)| !all.iter().any(|(_, q)| beats(q, p))).collect();
        front.sort_by(|a, b| a.1.0.total_cmp(&b.1.0).then(a.1.1.total_cmp(&b.1.1)));
        front.dedup_by(|a, b| a.1 == b.1);
        front.into_iter().map(|(e, _)| *e).collect()
    }
}

/// Dollars a run that `a` costs more than `b`, by pairs of the same seed.
fn difference(a: &Entry, b: &Entry) -> Estimate {
    Estimate::of(&a.outcomes.iter().zip(&b.outcomes).map(|(a, b)| usd(a) - usd(b)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Money, OfClass};
    use crate::policies::Rule;

    /// An entry with `(dollars, hits of two classes of 1000 claims each)` for each seed.
    fn entry(player: Player, runs: &[(f64, u64, u64)]) -> Entry {
        let class = |name: &str, hit_rate_target: f64, hits: u64| OfClass {
            name: name.into(),
            hit_rate_target,
            claims: 1000,
            hits,
            misses: 1000 - hits,
            cost_usd: 0.0,
        };
        let outcome = |&(usd, a, b): &(f64, u64, u64)| Outcome {
            money: Money { idle_usd: usd, ..Money::default() },
            classes: vec![class("a", 0.99, a), class("b", 0.9, b)],
            ..Outcome::default()
        };
        Entry { player, outcomes: runs.iter().map(outcome).collect(), knobs: Vec::new() }
    }

    fn league(entries: Vec<Entry>) -> League {
        League {
            name: String::new(),
            title: String::new(),
            scenario: String::new(),
            seeds: vec![1, 2],
            entries,
            bounds: Vec::new(),
        }
    }

    #[test]
    fn each_class_is_judged_by_its_own_target_and_rivals_serve_as_well() {
        let cheap = Player::Before(Family::Fixed, 0);
        let good = Player::Before(Family::BaseStock, 0);
        let league = league(vec![
            entry(Player::Foresight, &[(100.0, 995, 950), (110.0, 995, 950)]),
            entry(Player::Live, &[(140.0, 992, 930), (151.0, 991, 940)]),
            // Pooled it serves better than the planner; its first class is under the target.
            entry(cheap, &[(120.0, 985, 1000), (125.0, 985, 1000)]),
            entry(good, &[(180.0, 999, 999), (190.0, 999, 999)]),
        ]);
        assert!((league.entry(cheap).expect("there").shortfall() - 0.005).abs() < 1e-9);
        let against = league.against(Rivals::TunedBefore).expect("one serves as well");
        assert_eq!((against.rival.player, against.verdict), (good, Verdict::Cheaper));
        // (40 + 41) over (80 + 80).
        assert!((against.ratio.expect("above foresight") - 81.0 / 160.0).abs() < 1e-9);
        assert!(league.against(Rivals::InHindsight).is_none());
        let front: Vec<Player> = league.frontier().iter().map(|e| e.player).collect();
        assert_eq!(front, [Player::Live, cheap]);
    }

    #[test]
    fn seeds_that_differ_more_than_the_policies_decide_nothing() {
        let rival = Player::Swept(Rule::new(Family::Fixed, 1.0));
        let runs = |a: f64, b: f64| [(a, 1000, 1000), (b, 1000, 1000)];
        let league = league(vec![
            entry(Player::Foresight, &runs(100.0, 100.0)),
            entry(Player::Live, &runs(140.0, 150.0)),
            entry(rival, &runs(150.0, 145.0)),
        ]);
        let against = league.against(Rivals::InHindsight).expect("it serves as well");
        assert_eq!(against.verdict, Verdict::CannotTell);
        assert!(Estimate::of(&[3.0]).is_open(), "one seed says nothing");
    }
}
