//! A year of weekly diagnostics over a fleet: claims come and go, nodes fail as recorded servers did, and the schedule that
//! ships ([`health::weekly`]) lends idle nodes. What is asked of it: claims are not made to wait, and every GPU is tested.

mod faults;
mod measured;
mod pool;

use fleet::rng::Rng;
use health::weekly::Rules;

pub use faults::{Outage, read_trace, synthetic};
pub use measured::Measured;
use pool::PoolRun;

/// Seconds of a day.
const DAY_S: f64 = 86_400.0;

/// What is simulated.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// Nodes of each pool.
    pub pools: Vec<usize>,
    /// Days.
    pub days: f64,
    /// Share of a pool's nodes that claims hold, on average over a week.
    pub occupancy: f64,
    /// Median time that a claim holds a node, hours; a lognormal with `claim_sigma`.
    pub claim_median_h: f64,
    /// Sigma of that lognormal.
    pub claim_sigma: f64,
    /// Bursts of claims a day, of 3 % of the pool on average.
    pub bursts_per_day: f64,
    /// Time from the wish to stop a diagnostic to its end: uniform between these, seconds.
    pub abort_s: (f64, f64),
    /// The short gate after that, seconds.
    pub recheck_s: f64,
    /// The schedule.
    pub rules: Rules,
    /// Without it nothing is ever tested: what claims would find.
    pub tests: bool,
    /// Seed.
    pub seed: u64,
}

impl Default for Scenario {
    /// 2,000 nodes in pools of all sizes.
    fn default() -> Self {
        Self {
            pools: vec![800, 500, 300, 200, 100, 50, 24, 12, 8, 6],
            days: 365.0,
            occupancy: 0.55,
            claim_median_h: 1.5,
            claim_sigma: 1.3,
            bursts_per_day: 2.0,
            abort_s: (1.0, 25.0),
            recheck_s: 5.0,
            rules: Rules::default(),
            tests: true,
            seed: 1,
        }
    }
}

/// Runs it. `servers` are the recorded outages of each server; nodes draw from them.
#[must_use]
pub fn run(scenario: &Scenario, servers: &[Vec<Outage>]) -> Vec<Measured> {
    let mut rng = Rng::new(scenario.seed);
    let one = |(n, nodes): (usize, &usize)| {
        let mut own = Rng::new(rng.bits() ^ n as u64);
        PoolRun::new(scenario, *nodes, servers, &mut own).run(&mut own)
    };
    scenario.pools.iter().enumerate().map(one).collect()
}

/// All pools together.
#[must_use]
pub fn total(pools: &[Measured]) -> Measured {
    let mut all = Measured::default();
    for pool in pools {
        all.add(pool);
    }
    all
}
