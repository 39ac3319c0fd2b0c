//! Where nodes come from: what an offer sells, or nodes that are there, and how launches of it turn into nodes.

use std::rc::Rc;

use crate::input::OfferState;

/// Nodes of one offer: those that exist, and what it sells.
#[derive(Debug, Clone)]
pub struct Source {
    /// Index of the offer.
    pub offer: usize,
    /// Index of the pool that its idle nodes are in.
    pub pool: usize,
    /// GPUs of one node.
    pub gpus: f64,
    /// Dollars for a node-hour.
    pub price_usd_per_h: f64,
    /// Dollars for a node-hour of full work, and for the claims that faults cut in it: what is weighed, not what is paid.
    pub cost_usd_per_h: f64,
    /// Nodes that appear at the start of each period from what exists already, `[T]`.
    pub appear: Vec<f64>,
    /// Nodes that must be kept in each period, `[T]`.
    pub kept: Vec<f64>,
    /// Of which claims have a part: they are in no pool, what is left of them is in another, `[T]`.
    pub claimed: Vec<f64>,
    /// How launches arrive and nodes are lost.
    pub profile: Rc<Profile>,
    /// Most launches in each period, `[T]`.
    pub launch_limit: Vec<f64>,
    /// Dollars for one launch, before the churn penalty: its boot, and what claims lose until copies have come.
    pub launch_cost_usd: f64,
    /// Of these what is billed.
    pub boot_usd: f64,
    /// Launches of the parent plan, `[T]`.
    pub planned: Vec<f64>,
    /// Nodes that the parent plan expected, `[T]`.
    pub expected: Vec<f64>,
    /// First period in which it can have nodes.
    pub first: usize,
    /// First period in which a launch can no longer appear, or 0 when nothing can be launched.
    pub launch_end: usize,
}

/// How one launch turns into nodes over the periods. Sources with equal estimates share one.
#[derive(Debug, PartialEq)]
pub struct Profile {
    /// Share of nodes that live from the start of `t-1` to the start of `t`, `[T]`; 1 at 0.
    pub survive: Vec<f64>,
    /// Nodes that become healthy in `t` of one launch in `u`, `[u][t]`.
    pub arrivals: Vec<Vec<f64>>,
    /// Nodes of one launch in `u` that are healthy in `t` and inside their minimum billing time, `[u][t]`.
    pub held: Vec<Vec<f64>>,
    /// Share of one launch in `u` whose outcome is still open in `t`: it counts against quotas and is billed, `[u][t]`.
    pub in_flight: Vec<Vec<f64>>,
}

impl Profile {
    pub(crate) fn of(state: &OfferState, start_s: &[f64], hours: &[f64]) -> Self {
        let periods = hours.len();
        let arrived = |u: usize, t: usize| {
            if t <= u { 0.0 } else { state.fill * state.lead_time.share_by(start_s[t] - start_s[u]) }
        };
        let mut profile = Self {
            survive: vec![1.0; periods],
            arrivals: vec![vec![0.0; periods]; periods],
            held: vec![vec![0.0; periods]; periods],
            in_flight: vec![vec![0.0; periods]; periods],
        };
        for t in 1..periods {
            profile.survive[t] = (-state.hazard_per_h * hours[t - 1]).exp();
        }
        for u in 0..periods {
            let mut alive = 0.0;
            for t in u..periods {
                let answered = if t == u { 0.0 } else { state.lead_time.share_by(start_s[t] - start_s[u]) };
                profile.in_flight[u][t] = (1.0 - answered).max(0.0);
                if t > u {
                    profile.arrivals[u][t] = arrived(u, t) - arrived(u, t - 1);
                    alive = alive * profile.survive[t] + profile.arrivals[u][t];
                    let young = start_s[t] - start_s[u] < f64::from(state.min_hold_s);
                    profile.held[u][t] = if young { alive } else { 0.0 };
                }
            }
        }
        profile
    }
}

/// Launches that may as well come a period later come now: demand between two period starts is not in the program.
/// Share of the launch cost for each period of delay.
const DELAY_SHARE: f64 = 1e-3;

impl Source {
    /// Dollars for one launch in period `u`, before the churn penalty.
    #[must_use]
    pub fn launch_usd(&self, u: usize) -> f64 {
        self.launch_cost_usd * (1.0 + DELAY_SHARE * u as f64)
    }

    /// Whether its nodes exist, or the parent plan launched some.
    #[must_use]
    pub fn must_be_modelled(&self) -> bool {
        self.appear.iter().chain(&self.planned).any(|v| *v > 0.0)
    }

    /// Lowers the floor to what can still be alive, so that a hazard never makes the plan infeasible.
    pub(crate) fn clip_kept(&mut self) {
        let mut alive = 0.0;
        for t in 0..self.appear.len() {
            alive = alive * self.profile.survive[t] + self.appear[t];
            self.kept[t] = self.kept[t].min(alive);
            // What is kept now was kept before: released nodes do not come back.
            for u in (0..t).rev() {
                let needed = (self.kept[u + 1] - self.appear[u + 1]) / self.profile.survive[u + 1].max(1e-12);
                if self.kept[u] >= needed {
                    break;
                }
                self.kept[u] = needed;
            }
        }
        self.claimed.iter_mut().zip(&self.kept).for_each(|(claimed, kept)| *claimed = claimed.min(*kept));
    }
}
