//! What capacity is worth, and a lower bound on the optimum of the extensive form that needs no solver.
//!
//! Given any prices of the shared rows, the problem falls apart into one small problem for each source, which has a
//! closed form: the value of a node is what the shortfalls are less with it, a node is kept while it is worth its
//! price, and a launch pays when what it brings is worth its cost (Lagrangian relaxation; Geoffrion 1974). The sum is
//! a bound whatever the prices are, so it also guards against a wrong answer of the solver.

use crate::columns::Links;
use crate::input::PlanInput;
use crate::model::{BUDGET_PENALTY_USD, EPS, Model, QUOTA_PENALTY_USD};
use crate::source::Source;

/// Prices of the shared rows, all at least 0, in dollars for one unit in one period.
#[derive(Debug, Clone, Default)]
pub struct Duals {
    /// What misses cost at least without any GPUs, dollars: a mean of planes under the shortfalls.
    pub misses_usd: f64,
    /// A GPU of a pool in these planes, `[pools][T]`.
    pub pools: Vec<Vec<f64>>,
    /// `[Q][T]`.
    pub quota: Vec<Vec<f64>>,
    /// `[groups][T]`.
    pub rate: Vec<Vec<f64>>,
    /// `[C][T]`.
    pub commitment: Vec<Vec<f64>>,
    /// `[rows][T]`.
    pub spread: Vec<Vec<f64>>,
    /// `[T]`.
    pub budget: Vec<f64>,
}

/// What a source can earn at given prices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Profit {
    /// Of the nodes that exist or arrive anyway.
    pub inventory_usd: f64,
    /// Of the launches, at their best number.
    pub launches_usd: f64,
    /// Of a single launch in each period in which there can be one.
    pub launch_usd: Vec<f64>,
}

impl Profit {
    /// Best profit of a single launch over the periods.
    #[must_use]
    pub fn best_launch_usd(&self) -> f64 {
        self.launch_usd.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Of one launch now; negative infinity where it cannot be.
    #[must_use]
    pub fn launch_now_usd(&self) -> f64 {
        self.launch_usd.first().copied().unwrap_or(f64::NEG_INFINITY)
    }
}

impl Duals {
    /// Makes the prices feasible for every column that is not a source's.
    pub fn clip(&mut self, model: &Model) {
        let positive = |v: &mut f64, cap: f64| *v = v.clamp(0.0, cap);
        self.quota.iter_mut().flatten().for_each(|v| positive(v, QUOTA_PENALTY_USD));
        self.rate.iter_mut().flatten().for_each(|v| positive(v, f64::INFINITY));
        self.commitment.iter_mut().flatten().for_each(|v| positive(v, f64::INFINITY));
        self.budget.iter_mut().for_each(|v| positive(v, BUDGET_PENALTY_USD));
        for (r, row) in self.spread.iter_mut().enumerate() {
            row.iter_mut().enumerate().for_each(|(t, v)| positive(v, model.spreads[r].penalty_usd[t]));
        }
    }

    /// The lower bound in dollars: the prices times the limits, less what all sources can earn.
    #[must_use]
    pub fn bound_usd(&self, input: &PlanInput, model: &Model, links: &[Links]) -> f64 {
        let mut bound = self.misses_usd;
        for (value, pool) in self.pools.iter().zip(&model.pools) {
            bound -= dot(value, &pool.fixed_gpus);
        }
        for (q, row) in self.quota.iter().enumerate() {
            bound -= dot(row, &model.quota_left[q]);
        }
        for (c, row) in self.commitment.iter().enumerate() {
            bound -= dot(row, &input.commitments[c].nodes);
        }
        if let Some(rate) = input.policy.launch_rate_nodes_per_min {
            bound -= self.rate.iter().map(|row| dot(row, &model.hours) * 60.0 * rate).sum::<f64>();
        }
        bound -= dot(&self.budget, &model.budget_left_usd_per_h);
        for (i, source) in model.sources.iter().enumerate() {
            let value = &self.pools[source.pool];
            let profit = self.profit(input, model, &links[i], source, value);
            // Claimed nodes are kept and paid, and are in no pool.
            bound -= profit.inventory_usd + profit.launches_usd - source.gpus * dot(value, &source.claimed);
        }
        bound
    }

    /// What one source can earn, with `value` = dollars for one GPU of its pool, `[T]`.
    #[must_use]
    pub fn profit(&self, input: &PlanInput, model: &Model, links: &Links, source: &Source, value: &[f64]) -> Profit {
        let periods = model.periods();
        let node: Vec<f64> = (0..periods).map(|t| self.node_profit(model, links, source, value[t], t)).collect();
        let worth = worth_of_keeping(source, &node);
        let alpha: Vec<f64> = worth.iter().map(|usd| usd.max(0.0)).collect();
        let inventory =
            (0..periods).map(|t| alpha[t] * source.appear[t] - (alpha[t] - worth[t]) * source.kept[t]).sum();
        let mut profit = Profit { inventory_usd: inventory, ..Profit::default() };
        let churn = input.policy.churn * source.launch_cost_usd;
        for u in 0..source.launch_end {
            let gain = launch_value(source, u, &node, &alpha) - self.launch_cost(model, links, source, u);
            let (limit, planned) = (source.launch_limit[u], source.planned[u]);
            let earn = |x: f64| x * gain - churn * (x - planned).max(0.0);
            profit.launches_usd += 0.0_f64.max(earn(planned)).max(earn(limit));
            profit.launch_usd.push(gain - churn);
        }
        profit
    }

    /// Periods in which a source's free nodes would be given back at these prices, with the dollars that this saves a node.
    #[must_use]
    pub fn releases(&self, model: &Model, links: &Links, source: &Source) -> Vec<(usize, f64)> {
        let value = &self.pools[source.pool];
        let node: Vec<f64> =
            (0..model.periods()).map(|t| self.node_profit(model, links, source, value[t], t)).collect();
        let worth = worth_of_keeping(source, &node);
        (0..worth.len()).filter(|t| worth[*t] < -EPS).map(|t| (t, -worth[t])).collect()
    }

    /// Dollars that one node earns in `t`: its GPUs' value, less its price and its part of shared limits.
    fn node_profit(&self, model: &Model, links: &Links, source: &Source, value: f64, t: usize) -> f64 {
        let budget = self.budget.get(t).copied().unwrap_or(0.0);
        let bill = source.cost_usd_per_h * model.hours[t] + source.price_usd_per_h * budget;
        let pays = links.commitments.iter().map(|c| self.commitment[c.0][t]).fold(bill, f64::min);
        let quota: f64 = links.quotas.iter().map(|&(q, units)| units * self.quota[q.0][t]).sum();
        let spread: f64 = links.spreads.iter().map(|&(r, gpus)| gpus * self.spread[r.0][t]).sum();
        source.gpus * value - pays - quota - spread
    }

    /// Dollars that one launch in `u` costs, with its part of shared limits while it is on its way.
    fn launch_cost(&self, model: &Model, links: &Links, source: &Source, u: usize) -> f64 {
        let mut cost = source.launch_usd(u) + links.rate.map_or(0.0, |g| self.rate[g.0][u]);
        for t in u..model.periods() {
            let quota: f64 = links.quotas.iter().map(|&(q, units)| units * self.quota[q.0][t]).sum();
            let budget = self.budget.get(t).copied().unwrap_or(0.0) * source.price_usd_per_h;
            cost += source.profile.in_flight[u][t] * (quota + budget);
        }
        cost
    }
}

/// What it is worth to keep a free node in each period and as long after as that pays, `[T]`, from what it earns in each.
fn worth_of_keeping(source: &Source, node: &[f64]) -> Vec<f64> {
    let mut worth = node.to_vec();
    for t in (0..node.len().saturating_sub(1)).rev() {
        worth[t] += source.profile.survive[t + 1] * worth[t + 1].max(0.0);
    }
    worth
}

/// What one launch in `u` brings: its minimum billing time whatever the value, then free nodes.
fn launch_value(source: &Source, u: usize, node: &[f64], alpha: &[f64]) -> f64 {
    let profile = &source.profile;
    let mut value = 0.0;
    let mut held = 0.0;
    for t in u + 1..node.len() {
        let now = profile.held[u][t];
        if now > 0.0 {
            value += now * node[t];
        } else {
            value += (held * profile.survive[t] + profile.arrivals[u][t]) * alpha[t];
        }
        held = now;
    }
    value
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
