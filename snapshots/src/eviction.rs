//! What a full cache gives up: GreedyDual-Size with Frequency (Cherkasova, "Improving WWW Proxies Performance with
//! Greedy-Dual-Size-Frequency Caching Policy", HP Laboratories, 1998). An entry's priority is `clock + frequency · seconds /
//! bytes`; the least goes first, and its priority becomes the clock, so that what was dear long ago goes too. What is pinned stays.

use std::collections::{BTreeMap, BTreeSet};

/// Shares of the budget between which a cache is kept: above the first it is emptied, down to the second.
const HIGH_SHARE: f64 = 0.90;
const LOW_SHARE: f64 = 0.80;

/// What a cache holds, and in which order it would let go.
#[derive(Debug, Clone)]
pub struct Eviction<K> {
    budget_bytes: u64,
    bytes: u64,
    clock: f64,
    held: BTreeMap<K, Held>,
    /// By priority; what is pinned is not here.
    order: BTreeSet<(Priority, K)>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    bytes: u64,
    /// What it costs to have it back.
    seconds: f64,
    frequency: f64,
    priority: Priority,
    pins: u32,
}

/// A priority: finite, so that it has an order.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Priority(f64);

impl Eq for Priority {}

impl PartialOrd for Priority {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Priority {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl<K: Copy + Ord> Eviction<K> {
    /// An empty cache that may hold `budget_bytes`.
    #[must_use]
    pub fn new(budget_bytes: u64) -> Self {
        Self { budget_bytes, bytes: 0, clock: 0.0, held: BTreeMap::new(), order: BTreeSet::new() }
    }

    /// Bytes that are held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Entries that are held.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.held.len()
    }

    /// Whether it is held.
    #[must_use]
    pub fn holds(&self, key: K) -> bool {
        self.held.contains_key(&key)
    }

    /// Takes an entry of `bytes`, which takes `seconds` to have again; again, it is used once more.
    pub fn admit(&mut self, key: K, bytes: u64, seconds: f64) {
        if self.held.contains_key(&key) {
            return self.used(key);
        }
        let held = Held { bytes, seconds: seconds.max(0.0), frequency: 1.0, priority: Priority(0.0), pins: 0 };
        let priority = self.priority(&held);
        self.bytes += bytes;
        self.held.insert(key, Held { priority, ..held });
        self.order.insert((priority, key));
    }

    /// Counts a use.
    pub fn used(&mut self, key: K) {
        let Some(mut held) = self.held.get(&key).copied() else { return };
        self.order.remove(&(held.priority, key));
        held.frequency += 1.0;
        held.priority = self.priority(&held);
        if held.pins == 0 {
            self.order.insert((held.priority, key));
        }
        self.held.insert(key, held);
    }

    fn priority(&self, held: &Held) -> Priority {
        Priority(self.clock + held.frequency * held.seconds / held.bytes.max(1) as f64)
    }

    /// Keeps an entry until it is let go as often as it was pinned; whether it is held.
    pub fn pin(&mut self, key: K) -> bool {
        let Some(held) = self.held.get_mut(&key) else { return false };
        held.pins += 1;
        self.order.remove(&(held.priority, key));
        true
    }

    /// Whether it is held and pinned.
    #[must_use]
    pub fn is_pinned(&self, key: K) -> bool {
        self.held.get(&key).is_some_and(|held| held.pins > 0)
    }

    /// Whether it is above its high mark.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes > (self.budget_bytes as f64 * HIGH_SHARE) as u64
    }

    /// Lets go of a pinned entry.
    pub fn unpin(&mut self, key: K) {
        let Some(held) = self.held.get_mut(&key) else { return };
        held.pins = held.pins.saturating_sub(1);
        if held.pins == 0 {
            self.order.insert((held.priority, key));
        }
    }

    /// Forgets an entry that is gone.
    pub fn remove(&mut self, key: K) {
        if let Some(held) = self.held.remove(&key) {
            self.order.remove(&(held.priority, key));
            self.bytes -= held.bytes;
        }
    }

    /// What has to go, if the cache is above its high mark, to come down to the low one. It counts as gone from here on.
    pub fn evict(&mut self) -> Vec<K> {
        let share = |share: f64| (self.budget_bytes as f64 * share) as u64;
        if !self.is_full() {
            return Vec::new();
        }
        let low = share(LOW_SHARE);
        let mut gone = Vec::new();
        while self.bytes > low
            && let Some((priority, key)) = self.order.pop_first()
        {
            self.clock = self.clock.max(priority.0);
            if let Some(held) = self.held.remove(&key) {
                self.bytes -= held.bytes;
            }
            gone.push(key);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cheap_and_seldom_goes_first() {
        let mut cache = Eviction::new(100);
        cache.admit("dear", 30, 30.0);
        cache.admit("often", 30, 3.0);
        cache.admit("cheap", 30, 3.0);
        cache.used("often");
        assert_eq!(cache.evict(), Vec::<&str>::new(), "90 of 100 bytes is not above the mark");
        cache.admit("new", 5, 5.0);
        assert_eq!(cache.evict(), ["cheap"]);
        assert_eq!((cache.bytes(), cache.entries()), (65, 3));
    }

    #[test]
    fn pins_hold_until_the_last_is_gone() {
        let mut cache = Eviction::new(10);
        cache.admit(1, 10, 0.0);
        assert!(cache.pin(1) && cache.pin(1));
        cache.used(1);
        cache.unpin(1);
        assert_eq!(cache.evict(), Vec::<i32>::new());
        cache.unpin(1);
        assert_eq!(cache.evict(), [1]);
        assert!(!cache.pin(1));
    }

    /// What was used a hundred times long ago does not stay for ever.
    #[test]
    fn old_favourites_age() {
        let mut cache = Eviction::new(100);
        cache.admit(0, 10, 10.0);
        (0..100).for_each(|_| cache.used(0));
        let gone: Vec<i32> = (1..2000)
            .flat_map(|key| {
                cache.admit(key, 10, 10.0);
                cache.evict()
            })
            .collect();
        assert!(gone.contains(&0) && !gone[..100].contains(&0));
    }
}
