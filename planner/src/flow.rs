//! Can the pools cover the demand of one path in one period? A bipartite flow that answers with the sets of classes
//! that they cannot.

/// Most classes: sets are 128-bit masks.
pub type ClassSet = u128;

/// Pools with capacity and the classes that they serve. Reused for many demands.
#[derive(Debug, Default)]
pub struct Network {
    /// Pool: `(class, most GPUs that the class can take from it)`.
    edges: Vec<Vec<(usize, f64)>>,
    /// Pool: GPUs.
    capacity: Vec<f64>,
    /// Class: `(pool, place in its edges)`.
    into: Vec<Vec<(usize, usize)>>,
}

/// GPUs smaller than this are rounding.
const TINY: f64 = 1e-9;

impl Network {
    /// A network of `pools` = `(GPUs, [(class, share)])` over `classes` classes; empty pools are left out.
    pub fn new<'a>(classes: usize, pools: impl Iterator<Item = (f64, &'a [(usize, f64)])>) -> Self {
        let mut net = Self { into: vec![Vec::new(); classes], ..Self::default() };
        for (gpus, serves) in pools.filter(|(gpus, _)| *gpus > TINY) {
            let pool = net.edges.len();
            for (place, &(k, _)) in serves.iter().enumerate() {
                net.into[k].push((pool, place));
            }
            net.edges.push(serves.iter().map(|&(k, share)| (k, share * gpus)).collect());
            net.capacity.push(gpus);
        }
        for pools in &mut net.into {
            pools.sort_by_key(|(pool, _)| net.edges[*pool].len());
        }
        net
    }

    /// Sets of classes whose demand (GPUs, `[K]`) passes what the pools can give them: for each, a set that no
    /// re-arrangement helps (its Gale-Hoffman condition fails). Empty when everything is covered. Classes are served
    /// in `order`: with the dearest first, the sets are those that bind when misses are given to the cheapest. The GPUs
    /// that each class lacks then come second, `[K]`.
    #[must_use]
    pub fn short_sets(&self, demand: &[f64], order: &[usize]) -> (Vec<ClassSet>, Vec<f64>) {
        let mut state = Flow {
            net: self,
            sent: self.edges.iter().map(|e| vec![0.0; e.len()]).collect(),
            spare: self.capacity.clone(),
            lack: demand.to_vec(),
        };
        let mut sets: Vec<ClassSet> = Vec::new();
        for &k in order {
            state.greedy(k);
            while state.lack[k] > TINY {
                if let Some(stuck) = state.augment(k) {
                    if !sets.contains(&stuck) {
                        sets.push(stuck);
                    }
                    break;
                }
            }
        }
        (sets, state.lack)
    }
}

/// The fewest GPUs of `demand` `[K]` that pools of `(GPUs, [(class, share)])` cannot serve.
#[must_use]
pub fn fewest_missed_gpus(pools: &[(f64, Vec<(usize, f64)>)], demand: &[f64]) -> f64 {
    let order: Vec<usize> = (0..demand.len()).collect();
    let network = Network::new(demand.len(), pools.iter().map(|(gpus, serves)| (*gpus, serves.as_slice())));
    network.short_sets(demand, &order).1.iter().sum()
}

struct Flow<'a> {
    net: &'a Network,
    sent: Vec<Vec<f64>>,
    spare: Vec<f64>,
    lack: Vec<f64>,
}

impl Flow<'_> {
    /// Takes what is free: narrow pools first, they have the fewest other uses.
    fn greedy(&mut self, k: usize) {
        for &(pool, place) in &self.net.into[k] {
            let gpus = self.spare[pool].min(self.net.edges[pool][place].1).min(self.lack[k]).max(0.0);
            self.sent[pool][place] = gpus;
            self.spare[pool] -= gpus;
            self.lack[k] -= gpus;
        }
    }

    /// Finds more GPUs for class `want`, moving other classes where needed. `Some(set)` when there is no way: `set`
    /// is every class that was reached.
    fn augment(&mut self, want: usize) -> Option<ClassSet> {
        let mut reached: ClassSet = 1 << want;
        let mut pool_from: Vec<Option<(usize, usize)>> = vec![None; self.spare.len()];
        let mut class_from: Vec<Option<(usize, usize)>> = vec![None; self.lack.len()];
        let mut queue = std::collections::VecDeque::from([want]);
        while let Some(k) = queue.pop_front() {
            for &(pool, place) in &self.net.into[k] {
                let room = self.net.edges[pool][place].1 - self.sent[pool][place];
                if room <= TINY || pool_from[pool].is_some() {
                    continue;
                }
                pool_from[pool] = Some((k, place));
                if self.spare[pool] > TINY {
                    self.push(pool, want, &pool_from, &class_from);
                    return None;
                }
                for (other_place, &(other, _)) in self.net.edges[pool].iter().enumerate() {
                    if reached & (1 << other) == 0 && self.sent[pool][other_place] > TINY {
                        reached |= 1 << other;
                        class_from[other] = Some((pool, other_place));
                        queue.push_back(other);
                    }
                }
            }
        }
        Some(reached)
    }

    /// Sends what the path from `pool`'s spare GPUs to class `want` can carry.
    fn push(
        &mut self,
        first: usize,
        want: usize,
        pool_from: &[Option<(usize, usize)>],
        class_from: &[Option<(usize, usize)>],
    ) {
        let mut steps = Vec::new();
        let mut amount = self.spare[first].min(self.lack[want]);
        let mut pool = first;
        while let Some((k, place)) = pool_from[pool] {
            amount = amount.min(self.net.edges[pool][place].1 - self.sent[pool][place]);
            steps.push((pool, place, 1.0));
            let Some((donor, donor_place)) = class_from[k].filter(|_| k != want) else {
                break;
            };
            amount = amount.min(self.sent[donor][donor_place]);
            steps.push((donor, donor_place, -1.0));
            pool = donor;
        }
        self.spare[first] -= amount;
        self.lack[want] -= amount;
        for (pool, place, sign) in steps {
            self.sent[pool][place] += sign * amount;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(pools: &[(f64, &[(usize, f64)])], demand: &[f64]) -> Vec<ClassSet> {
        Network::new(demand.len(), pools.iter().copied()).short_sets(demand, &(0..demand.len()).collect::<Vec<_>>()).0
    }

    #[test]
    fn moves_classes_before_it_gives_up() {
        // Class 0 can use both pools, class 1 only the first: 0 has to move over.
        let pools: &[(f64, &[(usize, f64)])] = &[(4.0, &[(0, 1.0), (1, 1.0)]), (4.0, &[(0, 1.0)])];
        assert!(short(pools, &[4.0, 4.0]).is_empty());
        assert_eq!(short(pools, &[4.0, 5.0]), vec![0b10]);
        assert_eq!(short(pools, &[9.0, 0.0]), vec![0b01]);
        assert_eq!(short(pools, &[6.0, 3.0]), vec![0b11]);
    }

    #[test]
    fn shares_cap_what_one_class_takes() {
        let pools: &[(f64, &[(usize, f64)])] = &[(8.0, &[(0, 0.75), (1, 1.0)])];
        assert!(short(pools, &[6.0, 2.0]).is_empty());
        assert_eq!(short(pools, &[7.0, 1.0]), vec![0b01]);
        assert_eq!(short(pools, &[6.0, 3.0]), vec![0b11]);
    }
}
