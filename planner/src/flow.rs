//! Who can be served from which pools: a flow from pools to groups of classes, and the groups that a shortage is about.
//!
//! Sets of pools and of groups are bit sets: a plan serves some hundreds of groups on thousands of paths.

/// Which pools serve which groups, and how much of a pool a group can use.
#[derive(Debug, Default)]
pub struct Network {
    /// Group: `(pool, share of its GPUs)`, in the order in which they are used.
    pub pools_of: Vec<Vec<(usize, f64)>>,
    /// Pool: `(group, place in its pools)`.
    groups_of: Vec<Vec<(usize, usize)>>,
    /// First of a group's edges, `[groups + 1]`.
    first_edge: Vec<usize>,
    /// Edge of a group and a pool, `[groups · pools]`; no edge is `u32::MAX`.
    edge: Vec<u32>,
}

/// GPUs smaller than this are rounding.
pub const TINY: f64 = 1e-9;

impl Network {
    /// `pools_of` = for each group `(pool, share)`, over `pools` pools. Pools are used in the order of their numbers.
    #[must_use]
    pub fn new(mut pools_of: Vec<Vec<(usize, f64)>>, pools: usize) -> Self {
        let mut groups_of = vec![Vec::new(); pools];
        let mut first_edge = vec![0];
        let mut edge = vec![u32::MAX; pools_of.len() * pools];
        for (g, edges) in pools_of.iter_mut().enumerate() {
            edges.sort_by_key(|(p, _)| *p);
            let first = first_edge[g];
            for (place, (p, _)) in edges.iter().enumerate() {
                groups_of[*p].push((g, place));
                edge[g * pools + p] = (first + place) as u32;
            }
            first_edge.push(first + edges.len());
        }
        Self { pools_of, groups_of, first_edge, edge }
    }

    fn edge(&self, group: usize, pool: usize) -> usize {
        self.edge[group * self.groups_of.len() + pool] as usize
    }

    fn share(&self, group: usize, edge: usize) -> f64 {
        self.pools_of[group][edge - self.first_edge[group]].1
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

/// Sets of small numbers, one for each row.
#[derive(Debug, Clone, Default)]
struct Bits {
    words: usize,
    bits: Vec<u64>,
}

impl Bits {
    fn new(rows: usize, columns: usize) -> Self {
        let words = columns.div_ceil(64);
        Self { words, bits: vec![0; rows * words] }
    }

    fn row(&self, row: usize) -> &[u64] {
        &self.bits[row * self.words..(row + 1) * self.words]
    }

    fn set(&mut self, row: usize, column: usize, on: bool) {
        let (word, bit) = (&mut self.bits[row * self.words + column / 64], 1 << (column % 64));
        if on { *word |= bit } else { *word &= !bit }
    }
}

/// The numbers in a word.
fn each(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(bit)
    })
}

/// A flow in a network, served one claim after the other and never taken back. Reused for many demands.
///
/// A group that cannot get more is *stuck*, with all pools that it could take from and all groups that have them: whatever
/// is served later, none of these gets more (no path leaves them), so that each is looked through once.
#[derive(Debug)]
pub struct Flow<'a> {
    net: &'a Network,
    capacity: Vec<f64>,
    /// By edge.
    sent: Vec<f64>,
    /// `[pools]`.
    spare: Vec<f64>,
    /// Pools with something to spare.
    spares: Bits,
    /// Pools in which a group has room below its share, as they are at the start and now, `[groups]`.
    open_at_start: Bits,
    open: Bits,
    /// Groups that have some of a pool, `[pools]`.
    users: Bits,
    stuck_groups: Vec<bool>,
    /// Pools that nobody reaches any more.
    stuck_pools: Bits,
    /// Groups that the last failure found to be stuck.
    newly_stuck: Vec<usize>,
    /// The group from which a pool was reached, `[pools]`, and the pool from which a group was, `[groups]`.
    group_from: Vec<usize>,
    pool_from: Vec<usize>,
    seen_pools: Bits,
    seen_groups: Bits,
    queue: Vec<usize>,
}

impl<'a> Flow<'a> {
    /// With `capacity` GPUs in each pool, nothing is sent.
    #[must_use]
    pub fn new(net: &'a Network, capacity: &[f64]) -> Self {
        let (groups, pools) = (net.pools_of.len(), net.groups_of.len());
        let mut open_at_start = Bits::new(groups, pools);
        for (g, edges) in net.pools_of.iter().enumerate() {
            edges.iter().for_each(|&(p, share)| open_at_start.set(g, p, share * capacity[p] > TINY));
        }
        Self {
            net,
            capacity: capacity.to_vec(),
            sent: vec![0.0; net.first_edge[groups]],
            spare: capacity.to_vec(),
            spares: Bits::new(1, pools),
            open: open_at_start.clone(),
            open_at_start,
            users: Bits::new(pools, groups),
            stuck_groups: vec![false; groups],
            stuck_pools: Bits::new(1, pools),
            newly_stuck: Vec::new(),
            group_from: vec![0; pools],
            pool_from: vec![0; groups],
            seen_pools: Bits::new(1, pools),
            seen_groups: Bits::new(1, groups),
            queue: Vec::new(),
        }
    }

    /// Begins again.
    pub fn reset(&mut self) {
        self.sent.fill(0.0);
        self.spare.copy_from_slice(&self.capacity);
        (0..self.spare.len()).for_each(|p| self.spares.set(0, p, self.spare[p] > TINY));
        self.open.bits.copy_from_slice(&self.open_at_start.bits);
        self.users.bits.fill(0);
        self.stuck_groups.fill(false);
        self.stuck_pools.bits.fill(0);
    }

    /// Serves `gpus` more of a group, moving others where needed but taking nothing from them. Returns what is lacking.
    pub fn serve(&mut self, group: usize, gpus: f64) -> f64 {
        self.newly_stuck.clear();
        if self.stuck_groups[group] {
            return gpus;
        }
        let mut lack = gpus;
        for word in 0..self.spares.words {
            for bit in each(self.open.row(group)[word] & self.spares.bits[word]) {
                let pool = 64 * word + bit;
                let edge = self.net.edge(group, pool);
                let more = self.spare[pool].min(self.room(group, pool, edge)).min(lack);
                self.send(group, pool, edge, more);
                self.take(pool, more);
                lack -= more;
                if lack <= TINY {
                    return 0.0;
                }
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

    fn room(&self, group: usize, pool: usize, edge: usize) -> f64 {
        self.net.share(group, edge) * self.capacity[pool] - self.sent[edge]
    }

    fn send(&mut self, group: usize, pool: usize, edge: usize, more: f64) {
        self.sent[edge] += more;
        self.users.set(pool, group, self.sent[edge] > TINY);
        self.open.set(group, pool, self.room(group, pool, edge) > TINY);
    }

    fn take(&mut self, pool: usize, gpus: f64) {
        self.spare[pool] -= gpus;
        if self.spare[pool] <= TINY {
            self.spares.set(0, pool, false);
        }
    }

    /// One way to get more for a group; where there is none, all that was reached is stuck.
    fn augment(&mut self, want: usize, lack: f64) -> Option<f64> {
        self.queue.clear();
        self.queue.push(want);
        self.seen_pools.bits.copy_from_slice(&self.stuck_pools.bits);
        self.seen_groups.bits.fill(0);
        self.seen_groups.set(0, want, true);
        let mut next = 0;
        while next < self.queue.len() {
            let group = self.queue[next];
            next += 1;
            for word in 0..self.seen_pools.words {
                let new = self.open.row(group)[word] & !self.seen_pools.bits[word];
                if let Some(bit) = each(new & self.spares.bits[word]).next() {
                    self.group_from[64 * word + bit] = group;
                    return Some(self.push(64 * word + bit, want, lack));
                }
                self.seen_pools.bits[word] |= new;
                each(new).for_each(|bit| self.reach(64 * word + bit, group));
            }
        }
        self.stuck_pools.bits.copy_from_slice(&self.seen_pools.bits);
        self.queue.iter().for_each(|g| self.stuck_groups[*g] = true);
        self.newly_stuck.clone_from(&self.queue);
        None
    }

    /// Queues who has some of a pool that was reached from `group`.
    fn reach(&mut self, pool: usize, group: usize) {
        self.group_from[pool] = group;
        for word in 0..self.users.words {
            let new = self.users.row(pool)[word] & !self.seen_groups.bits[word];
            self.seen_groups.bits[word] |= new;
            for bit in each(new) {
                let user = 64 * word + bit;
                self.pool_from[user] = pool;
                self.queue.push(user);
            }
        }
    }

    /// Sends what the way from `first`'s spare GPUs to `want` can carry.
    fn push(&mut self, first: usize, want: usize, lack: f64) -> f64 {
        let mut amount = self.spare[first].min(lack);
        let mut pool = first;
        loop {
            let group = self.group_from[pool];
            amount = amount.min(self.room(group, pool, self.net.edge(group, pool)));
            if group == want {
                break;
            }
            pool = self.pool_from[group];
            amount = amount.min(self.sent[self.net.edge(group, pool)]);
        }
        self.take(first, amount);
        pool = first;
        loop {
            let group = self.group_from[pool];
            self.send(group, pool, self.net.edge(group, pool), amount);
            if group == want {
                return amount;
            }
            pool = self.pool_from[group];
            self.send(group, pool, self.net.edge(group, pool), -amount);
        }
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
        let mut flow = Flow::new(&network, &pools.iter().map(|p| p.0).collect::<Vec<_>>());
        flow.reset();
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
