//! A knob for each class: how simple rules are tuned, as a careful person would.
//!
//! Every knob is tried for all classes at once; each class then takes the knob that cost it least at its own target, and the
//! classes' knobs are moved by single steps, together, while that is better.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::{OfClass, Outcome, Setup, SimError, run};
use crate::policies::{Family, Rule, Simple};

/// Shares of the allowed misses that tuning leaves unspent: days to come are not the days before.
pub const MARGINS: [f64; 3] = [0.0, 0.5, 0.9];
/// Passes of single steps over all classes.
const PASSES: usize = 2;

/// What a family's rules come to on one seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// Each knob of the family for all classes, in the test. Without plots.
    pub swept: Vec<Outcome>,
    /// Knobs tuned on the days before, in the test; one for each of [`MARGINS`].
    pub before: Vec<Choice>,
    /// Knobs tuned in the test.
    pub hindsight: Choice,
}

/// Knobs and what they give.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Of each class, in the setup's order, `[K]`.
    pub knobs: Vec<f64>,
    /// In the test.
    pub outcome: Outcome,
}

/// Plays all rules of a family on a seed: tuned on `before`, and in hindsight of `test`.
///
/// # Errors
/// A run fails: a bug.
pub fn play(before: &Setup, test: &Setup, family: Family) -> Result<Tuned, SimError> {
    let (mut past, mut present) = (Trials::new(before, family), Trials::new(test, family));
    let chosen = MARGINS.map(|margin| past.tune(margin));
    let mut all = Vec::new();
    for knobs in chosen {
        let knobs = knobs?;
        let outcome = present.outcome(&knobs)?.clone();
        all.push(Choice { knobs: present.values(&knobs), outcome });
    }
    let knobs = present.tune(0.0)?;
    let hindsight = Choice { knobs: present.values(&knobs), outcome: present.outcome(&knobs)?.clone() };
    let swept = (0..family.knobs().len()).map(|i| {
        let outcome = present.outcome(&vec![i; test.classes.len()])?;
        Ok(Outcome { samples: Vec::new(), ..outcome.clone() })
    });
    Ok(Tuned { swept: swept.collect::<Result<_, SimError>>()?, before: all, hindsight })
}

/// Runs of one setup by the knobs of its classes, as places in the family's list.
struct Trials<'a> {
    setup: &'a Setup,
    family: Family,
    known: BTreeMap<Vec<usize>, Outcome>,
}

impl<'a> Trials<'a> {
    fn new(setup: &'a Setup, family: Family) -> Self {
        Self { setup, family, known: BTreeMap::new() }
    }

    fn values(&self, places: &[usize]) -> Vec<f64> {
        places.iter().map(|i| self.family.knobs()[*i]).collect()
    }

    fn outcome(&mut self, places: &[usize]) -> Result<&Outcome, SimError> {
        if !self.known.contains_key(places) {
            let names = self.setup.classes.iter().map(|k| k.class.name.as_str());
            let uniform = places.iter().all(|i| *i == places[0]);
            let mut policy = if uniform {
                Simple::new(Rule::new(self.family, self.family.knobs()[places[0]]))
            } else {
                Simple::by_class(self.family, names.zip(self.values(places)))
            };
            let outcome = run(self.setup, &mut policy)?;
            self.known.insert(places.to_vec(), outcome);
        }
        Ok(&self.known[places])
    }

    /// The worst class's shortfall of what is aimed at, and the cost.
    fn rank(&mut self, places: &[usize], margin: f64) -> Result<(f64, f64), SimError> {
        let outcome = self.outcome(places)?;
        let short = outcome.classes.iter().map(|k| aim(k, margin) - k.hit_rate()).fold(0.0, f64::max);
        Ok((short, outcome.money.total_usd()))
    }

    /// The knobs that cost least with every class at its target, less `margin` of the misses that it allows; the least short
    /// of that where it cannot be had.
    fn tune(&mut self, margin: f64) -> Result<Vec<usize>, SimError> {
        let (classes, knobs) = (self.setup.classes.len(), self.family.knobs().len());
        let mut candidates: Vec<Vec<usize>> = (0..knobs).map(|i| vec![i; classes]).collect();
        let mut alone = vec![0; classes];
        for (k, place) in alone.iter_mut().enumerate() {
            let mut ranked = Vec::new();
            for (i, uniform) in candidates.iter().enumerate() {
                let class = &self.outcome(uniform)?.classes[k];
                ranked.push(((aim(class, margin) - class.hit_rate()).max(0.0), class.cost_usd, i));
            }
            let best = ranked.into_iter().min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
            *place = best.map_or(0, |b| b.2);
        }
        candidates.push(alone);
        let mut best = (f64::INFINITY, f64::INFINITY, Vec::new());
        for places in candidates {
            let (short, cost) = self.rank(&places, margin)?;
            if (short, cost) < (best.0, best.1) {
                best = (short, cost, places);
            }
        }
        for _ in 0..PASSES {
            let before = best.2.clone();
            for k in 0..classes {
                for step in [-1_isize, 1] {
                    let mut places = best.2.clone();
                    let Some(moved) = places[k].checked_add_signed(step).filter(|i| *i < knobs) else { continue };
                    places[k] = moved;
                    let (short, cost) = self.rank(&places, margin)?;
                    if (short, cost) < (best.0, best.1) {
                        best = (short, cost, places);
                    }
                }
            }
            if best.2 == before {
                break;
            }
        }
        Ok(best.2)
    }
}

fn aim(class: &OfClass, margin: f64) -> f64 {
    1.0 - (1.0 - class.hit_rate_target) * (1.0 - margin)
}
