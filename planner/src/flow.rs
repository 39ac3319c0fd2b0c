//! Who can be served from which pools: a flow from pools to groups of classes, and the groups that a shortage is about.

/// Which pools serve which groups, and how much of a pool a group can use.
#[derive(Debug, Default)]
pub struct Network {
    /// Group: `(pool, share of its GPUs)`, pools with the fewest other uses first.
    pub pools_of: Vec<Vec<(usize, f64)>>,
    /// Pool: `(group, place in its pools)`.
    groups_of: Vec<Vec<(usize, usize)>>,
}

/// GPUs smaller than this are rounding.
pub const TINY: f64 = 1e-9;

impl Network {
    /// `pools_of` = for each group `(pool, share)`, over `pools` pools.
    #[must_use]
    pub fn new(mut pools_of: Vec<Vec<(usize, f64)>>, pools: usize) -> Self {
        let mut uses = vec![0_usize; pools];
        pools_of.iter().flatten().for_each(|(p, _)| uses[*p] += 1);
        for edges in &mut pools_of {
            edges.sort_by_key(|(p, _)| (uses[*p], *p));
        }
        let mut groups_of = vec![Vec::new(); pools];
        for (g, edges) in pools_of.iter().enumerate() {
            edges.iter().enumerate().for_each(|(place, (p, _))| groups_of[*p].push((g, place)));
        }
        Self { pools_of, groups_of }
    }

    /// What a GPU of a pool is worth at most to the groups that it serves, `worth` for each `[groups]`: the dearest uses
    /// first, each up to its share.
    #[must_use]
    pub fn worth_of(&self, pool: usize, worth: &[f64]) -> f64 {
        let shares = || self.groups_of[pool].iter().map(|&(g, place)| (worth[g], self.pools_of[g][place].1));
        let best = shares().fold((0.0, 1.0), |best: (f64, f64), of| if of.0 > best.0 { of } else { best });
        if best.1 >= 1.0 {
            return best.0;
        }
        let mut uses: Vec<(f64, f64)> = shares().filter(|of| of.0 > 0.0).collect();
        uses.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (mut sum, mut left) = (0.0, 1.0_f64);
        for (worth, share) in uses {
            sum += worth * share.min(left);
            left -= share.min(left);
        }
        sum
    }
}

/// A flow in a network, served one claim after the other and never taken back. Reused for many demands.
///
/// A group that cannot get more is *stuck*, with all pools that it could take from and all groups that have them: whatever
/// is served later, none of these gets more (no path leaves them), so that each is looked through once.
#[derive(Debug)]
pub struct Flow<'a> {
    net: &'a Network,
    capacity: Vec<f64>,
    /// `[groups][place]`.
    sent: Vec<Vec<f64>>,
    /// `[pools]`.
    spare: Vec<f64>,
    stuck_groups: Vec<bool>,
    stuck_pools: Vec<bool>,
    /// Groups that the last failure found to be stuck.
    newly_stuck: Vec<usize>,
    group_from: Vec<Option<(usize, usize)>>,
    pool_from: Vec<Option<(usize, usize)>>,
    queue: Vec<usize>,
    seen_pools: Vec<usize>,
}

impl<'a> Flow<'a> {
    /// Nothing is sent, and there is nothing to send.
    #[must_use]
    pub fn new(net: &'a Network) -> Self {
        let (groups, pools) = (net.pools_of.len(), net.groups_of.len());
        Self {
            net,
            capacity: vec![0.0; pools],
            sent: net.pools_of.iter().map(|edges| vec![0.0; edges.len()]).collect(),
            spare: vec![0.0; pools],
            stuck_groups: vec![false; groups],
            stuck_pools: vec![false; pools],
            newly_stuck: Vec::new(),
            group_from: vec![None; groups],
            pool_from: vec![None; pools],
            queue: Vec::new(),
            seen_pools: Vec::new(),
        }
    }

    /// Begins again with `capacity` GPUs in each pool.
    pub fn reset(&mut self, capacity: &[f64]) {
        self.capacity.copy_from_slice(capacity);
        self.spare.copy_from_slice(capacity);
        self.sent.iter_mut().for_each(|row| row.fill(0.0));
        self.stuck_groups.fill(false);
        self.stuck_pools.fill(false);
    }

    /// Serves `gpus` more of a group, moving others where needed but taking nothing from them. Returns what is lacking.
    pub fn serve(&mut self, group: usize, gpus: f64) -> f64 {
        self.newly_stuck.clear();
        if self.stuck_groups[group] {
            return gpus;
        }
        let mut lack = gpus;
        for (place, &(pool, share)) in self.net.pools_of[group].iter().enumerate() {
            let room = share * self.capacity[pool] - self.sent[group][place];
            let more = self.spare[pool].min(room).min(lack).max(0.0);
            self.sent[group][place] += more;
            self.spare[pool] -= more;
            lack -= more;
            if lack <= TINY {
                return 0.0;
            }
        }
        while lack > TINY {
            match self.augment(group, lack) {
                Some(more) => lack -= more,
                None => return lack,
            }
        }
        0.0
    }

    /// Groups that were found to be stuck when the last claim could not be served.
    #[must_use]
    pub fn newly_stuck(&self) -> &[usize] {
        &self.newly_stuck
    }

    /// One way to get more for a group; where there is none, all that was reached is stuck.
    fn augment(&mut self, want: usize, lack: f64) -> Option<f64> {
        let net = self.net;
        self.queue.clear();
        self.seen_pools.clear();
        self.queue.push(want);
        let mut found = None;
        let mut next = 0;
        'search: while next < self.queue.len() {
            let group = self.queue[next];
            next += 1;
            for (place, &(pool, share)) in net.pools_of[group].iter().enumerate() {
                let room = share * self.capacity[pool] - self.sent[group][place];
                if room <= TINY || self.stuck_pools[pool] || self.pool_from[pool].is_some() {
                    continue;
                }
                self.pool_from[pool] = Some((group, place));
                self.seen_pools.push(pool);
                if self.spare[pool] > TINY {
                    found = Some(pool);
                    break 'search;
                }
                for &(other, other_place) in &net.groups_of[pool] {
                    let new = other != want && self.group_from[other].is_none() && !self.stuck_groups[other];
                    if new && self.sent[other][other_place] > TINY {
                        self.group_from[other] = Some((pool, other_place));
                        self.queue.push(other);
                    }
                }
            }
        }
        let more = found.map(|pool| self.push(pool, want, lack));
        if more.is_none() {
            self.seen_pools.iter().for_each(|p| self.stuck_pools[*p] = true);
            self.queue.iter().for_each(|g| self.stuck_groups[*g] = true);
            self.newly_stuck.clone_from(&self.queue);
        }
        self.seen_pools.iter().for_each(|p| self.pool_from[*p] = None);
        self.queue.iter().for_each(|g| self.group_from[*g] = None);
        more
    }

    /// Sends what the way from `first`'s spare GPUs to `want` can carry.
    fn push(&mut self, first: usize, want: usize, lack: f64) -> f64 {
        let mut amount = self.spare[first].min(lack);
        let mut steps = Vec::new();
        let mut pool = first;
        while let Some((group, place)) = self.pool_from[pool] {
            let share = self.net.pools_of[group][place].1;
            amount = amount.min(share * self.capacity[pool] - self.sent[group][place]);
            steps.push((group, place, 1.0));
            let Some((donor, donor_place)) = self.group_from[group].filter(|_| group != want) else { break };
            amount = amount.min(self.sent[group][donor_place]);
            steps.push((group, donor_place, -1.0));
            pool = donor;
        }
        self.spare[first] -= amount;
        for (group, place, sign) in steps {
            self.sent[group][place] += sign * amount;
        }
        amount
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(lack, stuck groups)` when groups are served in order.
    fn short(pools: &[(f64, &[(usize, f64)])], demand: &[f64]) -> (Vec<f64>, Vec<bool>) {
        let mut pools_of = vec![Vec::new(); demand.len()];
        for (p, (_, serves)) in pools.iter().enumerate() {
            serves.iter().for_each(|&(g, share)| pools_of[g].push((p, share)));
        }
        let network = Network::new(pools_of, pools.len());
        let mut flow = Flow::new(&network);
        flow.reset(&pools.iter().map(|p| p.0).collect::<Vec<_>>());
        let lack: Vec<f64> = demand.iter().enumerate().map(|(g, gpus)| flow.serve(g, *gpus)).collect();
        (lack, flow.stuck_groups.clone())
    }

    #[test]
    fn moves_groups_before_it_gives_up() {
        // Group 0 can use both pools, group 1 only the first: 0 has to move over.
        let pools: &[(f64, &[(usize, f64)])] = &[(4.0, &[(0, 1.0), (1, 1.0)]), (4.0, &[(0, 1.0)])];
        assert_eq!(short(pools, &[4.0, 4.0]).0, [0.0, 0.0]);
        assert_eq!(short(pools, &[4.0, 5.0]), (vec![0.0, 1.0], vec![false, true]));
        assert_eq!(short(pools, &[9.0, 0.0]), (vec![1.0, 0.0], vec![true, false]));
        assert_eq!(short(pools, &[6.0, 3.0]), (vec![0.0, 1.0], vec![true, true]));
    }

    #[test]
    fn shares_cap_what_one_group_takes() {
        let pools: &[(f64, &[(usize, f64)])] = &[(8.0, &[(0, 0.75), (1, 1.0)])];
        assert_eq!(short(pools, &[6.0, 2.0]).0, [0.0, 0.0]);
        assert_eq!(short(pools, &[7.0, 1.0]), (vec![1.0, 0.0], vec![true, false]));
        assert_eq!(short(pools, &[6.0, 3.0]), (vec![0.0, 1.0], vec![true, true]));
    }
}
