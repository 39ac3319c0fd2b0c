//! What an offer can deliver, learnt from the outcomes of its own launches.
//!
//! A refused or pending launch is a censored observation, so that silence is not taken for supply. The budget grows on
//! success, falls to one on a refusal, and a dead offer is probed again at growing intervals (additive-increase style
//! control as in congestion avoidance; Jacobson 1988). Time is an argument, in seconds.

use serde::{Deserialize, Serialize};
use statrs::distribution::{Beta, ContinuousCDF};

use crate::input::LeadTime;

/// How one launch request ended.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Healthy after so many seconds.
    Healthy {
        /// Launch to healthy.
        lead_s: f64,
    },
    /// The cloud has no capacity.
    NoCapacity,
    /// Started, and failed its health gate: there was supply. The health rates of the place count it.
    Unhealthy,
    /// Our own quota or rate limit: says nothing about supply.
    Limited,
    /// Refused until a person acts: a quota that plans do not know, a wrong image, a missing permission. Says nothing about
    /// supply either, and the same question again has the same answer.
    Blocked,
}

/// Fixed numbers of the estimator.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// Half-life of observations, seconds.
    pub half_life_s: f64,
    /// Largest budget, nodes.
    pub budget_max: f64,
    /// First wait before a dead offer is probed, seconds; doubles with each refusal.
    pub probe_after_s: f64,
    /// Longest wait, seconds.
    pub probe_after_max_s: f64,
    /// Quantile of the fill posterior that plans use: below the mean, since optimism causes misses.
    pub fill_quantile: f64,
    /// Weight of the prior, in launches.
    pub prior_launches: f64,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            half_life_s: 6.0 * 3600.0,
            budget_max: 64.0,
            probe_after_s: 120.0,
            probe_after_max_s: 3600.0,
            fill_quantile: 0.3,
            prior_launches: 4.0,
        }
    }
}

/// The estimate of one offer. Kept under the whole offer key, market included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Supply {
    rules: Rules,
    /// Nodes that may be asked for at once.
    budget: f64,
    /// Refusals in a row.
    refusals: u32,
    /// When a dead offer may be probed.
    probe_at_s: f64,
    /// Discounted launches that became healthy, and that did not.
    filled: f64,
    failed: f64,
    /// Prior mean of the fill, from a cloud's hint or the parent in the hierarchy.
    prior_fill: f64,
    /// When the counts were last discounted.
    at_s: f64,
    /// Lead times of the past, newest last: `(seconds, seen)`; not seen is still waiting (censored).
    leads: Vec<(f64, bool)>,
    /// Node-hours lived and nodes lost, discounted.
    node_hours: f64,
    lost: f64,
    /// Prior rate of loss per hour.
    prior_hazard_per_h: f64,
    /// Requests in a row that were blocked, and until when nothing is asked.
    #[serde(default)]
    blocks: u32,
    #[serde(default)]
    blocked_until_s: f64,
}

/// Lead times that are kept.
const LEADS_MAX: usize = 200;

impl Supply {
    /// Without observations. `prior_fill` from a placement score or obtainability hint; `prior_hazard_per_h` from the
    /// published interruption rate.
    #[must_use]
    pub fn new(rules: Rules, now_s: f64, prior_fill: f64, prior_hazard_per_h: f64) -> Self {
        Self {
            rules,
            budget: 4.0_f64.min(rules.budget_max),
            refusals: 0,
            probe_at_s: now_s,
            filled: 0.0,
            failed: 0.0,
            prior_fill: prior_fill.clamp(0.01, 0.99),
            at_s: now_s,
            leads: Vec::new(),
            node_hours: 0.0,
            lost: 0.0,
            prior_hazard_per_h: prior_hazard_per_h.max(0.0),
            blocks: 0,
            blocked_until_s: 0.0,
        }
    }

    /// Takes the published interruption rate as the prior of the hazard.
    pub fn published_hazard(&mut self, per_h: f64) {
        self.prior_hazard_per_h = per_h.max(0.0);
    }

    /// Takes a cloud's new hint for the prior mean of the fill.
    pub fn hint(&mut self, prior_fill: f64) {
        self.prior_fill = prior_fill.clamp(0.01, 0.99);
    }

    fn age(&mut self, now_s: f64) {
        let factor = 0.5_f64.powf((now_s - self.at_s).max(0.0) / self.rules.half_life_s);
        for count in [&mut self.filled, &mut self.failed, &mut self.node_hours, &mut self.lost] {
            *count *= factor;
        }
        self.at_s = self.at_s.max(now_s);
    }

    /// Learns from a request of `asked` nodes of which `outcomes` tells the end, one for each node.
    pub fn observe(&mut self, now_s: f64, asked: u32, outcomes: &[Outcome]) {
        self.age(now_s);
        let mut healthy = 0;
        let mut refused = false;
        if outcomes.contains(&Outcome::Blocked) {
            self.blocks += 1;
            self.blocked_until_s = now_s + self.wait_s(self.blocks);
        } else if outcomes.iter().any(|o| *o != Outcome::Limited) {
            self.blocks = 0;
        }
        for outcome in outcomes {
            match outcome {
                Outcome::Healthy { lead_s } => {
                    healthy += 1;
                    self.filled += 1.0;
                    self.leads.push((*lead_s, true));
                }
                Outcome::NoCapacity => {
                    refused = true;
                    self.failed += 1.0;
                }
                Outcome::Unhealthy | Outcome::Limited | Outcome::Blocked => {}
            }
        }
        let excess = self.leads.len().saturating_sub(LEADS_MAX);
        self.leads.drain(..excess);
        if refused {
            self.refusals += 1;
            self.budget = 1.0;
            self.probe_at_s = now_s + self.wait_s(self.refusals);
        } else if healthy > 0 {
            self.refusals = 0;
            self.probe_at_s = now_s;
            // Only a request that used the budget shows that there is more.
            if healthy == asked && f64::from(asked) >= self.budget - 0.5 {
                self.budget = (2.0 * self.budget).min(self.rules.budget_max);
            }
        }
    }

    /// Notes that so many nodes were asked for: a probe of a dead offer is not repeated before its wait is over,
    /// whatever becomes of it.
    pub fn asked(&mut self, now_s: f64, nodes: u32) {
        if nodes > 0 && self.refusals > 0 {
            self.probe_at_s = now_s + self.wait_s(self.refusals);
        }
    }

    /// Wait before the next probe after so many failures in a row.
    fn wait_s(&self, failures: u32) -> f64 {
        let wait = self.rules.probe_after_s * 2.0_f64.powi(failures.clamp(1, 20) as i32 - 1);
        wait.min(self.rules.probe_after_max_s)
    }

    /// Learns that a launch is still waiting after `waited_s`.
    pub fn observe_waiting(&mut self, waited_s: f64) {
        self.leads.push((waited_s, false));
        let excess = self.leads.len().saturating_sub(LEADS_MAX);
        self.leads.drain(..excess);
    }

    /// Learns from `node_hours` of life with `lost` nodes reclaimed or failed.
    pub fn observe_life(&mut self, now_s: f64, node_hours: f64, lost: u32) {
        self.age(now_s);
        self.node_hours += node_hours.max(0.0);
        self.lost += f64::from(lost);
    }

    /// Nodes that may be launched now: the budget, one node as a probe when its wait is over, or none.
    #[must_use]
    pub fn launch_limit_nodes(&self, now_s: f64) -> f64 {
        if now_s < self.blocked_until_s {
            return 0.0;
        }
        match self.refusals {
            0 if self.blocks > 0 => 1.0,
            0 => self.budget,
            _ if now_s >= self.probe_at_s => 1.0,
            _ => 0.0,
        }
    }

    /// Share of launches to plan with: a low quantile of `Beta(α₀ + ok, β₀ + failed)`.
    #[must_use]
    pub fn fill(&self) -> f64 {
        let prior = self.rules.prior_launches;
        let (a, b) = (self.prior_fill * prior + self.filled, (1.0 - self.prior_fill) * prior + self.failed);
        Beta::new(a, b).map_or(self.prior_fill, |beta| beta.inverse_cdf(self.rules.fill_quantile))
    }

    /// Rate of loss per hour: posterior mean of a Gamma-Poisson model whose prior weighs 100 node-hours.
    #[must_use]
    pub fn hazard_per_h(&self) -> f64 {
        const PRIOR_NODE_HOURS: f64 = 100.0;
        (self.prior_hazard_per_h * PRIOR_NODE_HOURS + self.lost) / (PRIOR_NODE_HOURS + self.node_hours)
    }

    /// Launch to healthy, by Kaplan and Meier (1958): launches that still wait count as "longer than that". `fallback`
    /// is used until five launches have arrived.
    #[must_use]
    pub fn lead_time(&self, fallback: &LeadTime) -> LeadTime {
        if self.leads.iter().filter(|(_, seen)| *seen).count() < 5 {
            return fallback.clone();
        }
        let mut times = self.leads.clone();
        times.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut at_risk = times.len() as f64;
        let mut waiting = 1.0;
        let mut cdf: Vec<(f64, f64)> = vec![(0.0, 0.0)];
        for (time, seen) in times {
            if seen {
                waiting *= 1.0 - 1.0 / at_risk;
                let share = 1.0 - waiting;
                match cdf.last_mut() {
                    Some(last) if last.0 >= time => last.1 = share,
                    _ => cdf.push((time, share)),
                }
            }
            at_risk -= 1.0;
        }
        // What the censored ones leave open arrives at twice the longest time seen.
        let last = cdf[cdf.len() - 1];
        if last.1 < 1.0 {
            cdf.push((2.0 * last.0.max(1.0), 1.0));
        }
        // The first point says that nothing arrives before it.
        let first = cdf.get(1).map_or(0.0, |p| p.0);
        cdf[0].0 = (first * 0.999).min(first);
        if cdf.len() > 1 && cdf[1].0 <= cdf[0].0 {
            cdf.remove(0);
        }
        LeadTime { cdf }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new() -> Supply {
        Supply::new(Rules::default(), 0.0, 0.8, 0.01)
    }

    #[test]
    fn budget_doubles_and_falls_to_one() {
        let mut supply = new();
        assert_eq!(supply.launch_limit_nodes(0.0), 4.0);
        supply.observe(10.0, 4, &[Outcome::Healthy { lead_s: 100.0 }; 4]);
        assert_eq!(supply.launch_limit_nodes(10.0), 8.0);
        // A small request that succeeds shows nothing about more.
        supply.observe(20.0, 1, &[Outcome::Healthy { lead_s: 100.0 }]);
        assert_eq!(supply.launch_limit_nodes(20.0), 8.0);
        supply.observe(30.0, 8, &[Outcome::NoCapacity]);
        assert_eq!(supply.launch_limit_nodes(31.0), 0.0);
        assert_eq!(supply.launch_limit_nodes(150.0), 1.0, "one probe after two minutes");
        supply.observe(150.0, 1, &[Outcome::NoCapacity]);
        assert_eq!(supply.launch_limit_nodes(280.0), 0.0, "the wait doubles");
        assert_eq!(supply.launch_limit_nodes(390.0), 1.0);
        supply.observe(390.0, 1, &[Outcome::Healthy { lead_s: 100.0 }]);
        assert_eq!(supply.launch_limit_nodes(390.0), 2.0);
    }

    #[test]
    fn a_probe_without_an_answer_is_not_repeated() {
        let mut supply = new();
        supply.observe(0.0, 1, &[Outcome::NoCapacity]);
        assert_eq!(supply.launch_limit_nodes(120.0), 1.0);
        supply.asked(120.0, 1);
        assert_eq!(supply.launch_limit_nodes(180.0), 0.0);
        assert_eq!(supply.launch_limit_nodes(240.0), 1.0);
    }

    #[test]
    fn probes_are_bounded() {
        let mut supply = new();
        let mut probes = 0;
        for minute in 0..24 * 60 {
            let now = f64::from(minute) * 60.0;
            if supply.launch_limit_nodes(now) >= 1.0 {
                probes += 1;
                supply.observe(now, 1, &[Outcome::NoCapacity]);
            }
        }
        assert!((10..=40).contains(&probes), "{probes} probes of a dead offer in a day");
    }

    #[test]
    fn our_own_limits_say_nothing_about_supply() {
        let mut supply = new();
        let before = supply.clone();
        supply.observe(0.0, 4, &[Outcome::Limited; 4]);
        assert_eq!(supply, before);
    }

    /// What a person must mend is asked again seldom, one node at a time, and forgotten when it works.
    #[test]
    fn blocked_requests_wait() {
        let mut supply = new();
        let (fill, budget) = (supply.fill(), supply.launch_limit_nodes(0.0));
        supply.observe(0.0, 4, &[Outcome::Blocked]);
        assert_eq!(supply.launch_limit_nodes(60.0), 0.0);
        assert_eq!(supply.launch_limit_nodes(120.0), 1.0);
        supply.observe(120.0, 1, &[Outcome::Blocked]);
        assert_eq!(supply.launch_limit_nodes(300.0), 0.0, "it waits longer each time");
        assert!((supply.fill() - fill).abs() < 1e-9, "it says nothing about supply");
        supply.observe(400.0, 1, &[Outcome::Healthy { lead_s: 60.0 }]);
        assert_eq!(supply.launch_limit_nodes(400.0), budget);
    }

    #[test]
    fn fill_moves_with_evidence_and_forgets() {
        let mut supply = new();
        let prior = supply.fill();
        assert!(prior < 0.8, "a low quantile: {prior}");
        supply.observe(0.0, 20, &[Outcome::NoCapacity; 20]);
        let bad = supply.fill();
        assert!(bad < 0.3, "{bad}");
        supply.observe(1e7, 0, &[]);
        assert!((supply.fill() - prior).abs() < 0.02);
    }

    #[test]
    fn waiting_launches_lengthen_the_lead_time() {
        let mut seen = new();
        let outcomes: Vec<Outcome> = (1..=10).map(|i| Outcome::Healthy { lead_s: f64::from(i) * 60.0 }).collect();
        seen.observe(0.0, 10, &outcomes);
        let fallback = LeadTime::fixed(1.0);
        let plain = seen.lead_time(&fallback).mean_s();
        (0..5).for_each(|_| seen.observe_waiting(500.0));
        let censored = seen.lead_time(&fallback);
        assert!(censored.mean_s() > plain, "{} > {plain}", censored.mean_s());
        assert!((censored.cdf.last().expect("points").1 - 1.0).abs() < 1e-9);
        assert_eq!(new().lead_time(&fallback), fallback);
    }

    #[test]
    fn hazard_starts_at_the_prior() {
        let mut supply = new();
        assert!((supply.hazard_per_h() - 0.01).abs() < 1e-12);
        supply.observe_life(0.0, 100.0, 9);
        assert!((supply.hazard_per_h() - 0.05).abs() < 1e-9);
    }
}
