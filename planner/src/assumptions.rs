//! What a plan had to assume where it was told or saw too little, one sentence each.

use fleet::Class;
use serde::{Deserialize, Serialize};

use crate::rolling::{Moment, Rules};

/// Something that a plan had to assume of a class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assumption {
    /// The class.
    pub class: String,
    /// What of it.
    pub what: Assumed,
}

/// What was assumed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Assumed {
    /// Nothing was ever seen of it.
    NoPast,
    /// There is no whole season to learn a rhythm from.
    ShortPast {
        /// Hours that are known.
        hours: f64,
    },
    /// Parts of its past were not written down: they are taken to be as what was before.
    Gaps {
        /// Hours of them.
        hours: f64,
    },
    /// Its past rose once and fell once: nobody knows how often that happens.
    OneBurst,
    /// It has more claims than ever before.
    NewScale {
        /// So many times the most of before.
        times: f64,
    },
    /// No hit rate is promised: only the price of a miss counts.
    NoTarget,
    /// Nobody can promise that much.
    TargetOf1 {
        /// What is planned for instead.
        planned_for: f64,
    },
    /// A miss costs nothing and nothing is promised: no room is held.
    WorthNothing,
    /// A launch of now arrives when the plan is over.
    LateLaunches {
        /// Seconds until half of the launches have arrived.
        lead_s: f64,
    },
}

/// A target beyond this is planned as this.
pub const TARGET_MAX: f64 = 0.999_99;
/// More than so many times the most of before is another scale.
const SCALE_TIMES: f64 = 3.0;

impl std::fmt::Display for Assumption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "assumed of {}: ", self.class)?;
        match self.what {
            Assumed::NoPast => f.write_str(
                "nothing is known of its demand; it is taken to stay as it is, so no room is held for a rise",
            ),
            Assumed::ShortPast { hours } => {
                write!(
                    f,
                    "only {hours:.1} h of its demand are known; it is forecast from its last value, without a daily rhythm"
                )
            }
            Assumed::Gaps { hours } => write!(
                f,
                "{hours:.1} h of its past were not written down; its demand is taken to have stayed as it was before"
            ),
            Assumed::OneBurst => f.write_str("its past has one burst only; it is taken to come as often as that"),
            Assumed::NewScale { times } => {
                write!(
                    f,
                    "it has {times:.1} times the claims that it ever had; errors of forecasts are scaled up from the past"
                )
            }
            Assumed::NoTarget => {
                f.write_str("it has no hit rate target; room is held as far as its price of a miss pays for it")
            }
            Assumed::TargetOf1 { planned_for } => {
                write!(f, "a target of 100 % cannot be promised; it is planned as {:.3} %", 100.0 * planned_for)
            }
            Assumed::WorthNothing => f.write_str(
                "it has no hit rate target and a miss costs $0; nothing is launched for it, set one of them",
            ),
            Assumed::LateLaunches { lead_s } => write!(
                f,
                "launches take {:.0} min, longer than the plan looks ahead; only nodes that exist can serve it, plan further ahead",
                lead_s / 60.0
            ),
        }
    }
}

/// All that is assumed at a moment; `lead_s` is the time to nodes of each class, seconds, `[K]`.
#[must_use]
pub fn of(rules: &Rules, seen: &Moment, lead_s: &[f64]) -> Vec<Assumption> {
    let horizon_s: f64 = rules.period_s.iter().map(|s| f64::from(*s)).sum();
    let mut all = Vec::new();
    for (k, class) in seen.classes.iter().enumerate() {
        let past = &seen.history.claims[k];
        let of_past = past_of(past, seen.history.step_s, rules.season_s);
        let late = lead_s.get(k).filter(|lead| **lead > horizon_s);
        let filled = seen.history.filled_steps.get(k).copied().filter(|steps| *steps > 0);
        let gaps = filled.map(|steps| Assumed::Gaps { hours: f64::from(steps * seen.history.step_s) / 3600.0 });
        let found = [of_past, gaps, target_of(class), late.map(|lead_s| Assumed::LateLaunches { lead_s: *lead_s })];
        all.extend(found.into_iter().flatten().map(|what| Assumption { class: class.name.clone(), what }));
    }
    all
}

fn target_of(class: &Class) -> Option<Assumed> {
    let free = class.miss_cost_usd_micros.usd() <= 0.0;
    match class.hit_rate_target {
        target if target <= 0.0 && free => Some(Assumed::WorthNothing),
        target if target <= 0.0 => Some(Assumed::NoTarget),
        target if target > TARGET_MAX => Some(Assumed::TargetOf1 { planned_for: TARGET_MAX }),
        _ => None,
    }
}

fn past_of(past: &[f64], step_s: u32, season_s: u32) -> Option<Assumed> {
    let Some((now, before)) = past.split_last() else { return Some(Assumed::NoPast) };
    if past.iter().all(|v| *v <= 0.0) || before.is_empty() {
        return Some(Assumed::NoPast);
    }
    let most = before.iter().copied().fold(0.0, f64::max);
    if most > 0.0 && *now > SCALE_TIMES * most {
        return Some(Assumed::NewScale { times: now / most });
    }
    // Changes between nothing and something.
    let turns = past.windows(2).filter(|w| (w[0] > 0.0) != (w[1] > 0.0)).count();
    let (first, last) = (past[0] > 0.0, *now > 0.0);
    if !first && !last && turns == 2 {
        return Some(Assumed::OneBurst);
    }
    // A class that is new has zeros before it began.
    let known = past.len() - past.iter().take_while(|v| **v <= 0.0).count();
    let seconds = known as f64 * f64::from(step_s);
    if seconds < f64::from(season_s) {
        return Some(Assumed::ShortPast { hours: seconds / 3600.0 });
    }
    None
}
