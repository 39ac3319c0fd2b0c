//! Which node a claim gets: of the cheapest that fit, the fullest, so that whole nodes stay whole.

use std::collections::BTreeSet;

/// Nodes that take claims, ordered by free GPUs; of equals, those that are to be taken last come last. One shelf holds the nodes of one offer.
#[derive(Debug, Clone, Default)]
pub struct Shelf {
    /// `(free GPUs, to be taken last, node)`.
    free: BTreeSet<(u32, bool, u64)>,
    gpus: u64,
}

impl Shelf {
    /// Puts a node with `free` GPUs on the shelf; `last`: others with as many are taken first.
    pub fn put(&mut self, node: u64, free: u32, last: bool) {
        if self.free.insert((free, last, node)) {
            self.gpus += u64::from(free);
        }
    }

    /// Takes a node off. Returns whether it was there with so many free GPUs and this rank.
    pub fn take(&mut self, node: u64, free: u32, last: bool) -> bool {
        let was = self.free.remove(&(free, last, node));
        self.gpus -= if was { u64::from(free) } else { 0 };
        was
    }

    /// The node with the fewest free GPUs that has at least `gpus`: the first of its kind on ties.
    #[must_use]
    pub fn best_fit(&self, gpus: u32) -> Option<(u32, u64)> {
        self.with_free(gpus).next()
    }

    /// Nodes with at least `gpus` free, the fullest first, as `(free GPUs, node)`.
    pub fn with_free(&self, gpus: u32) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.free.range((gpus, false, 0)..).map(|(free, _, node)| (*free, *node))
    }

    /// Free GPUs on the shelf.
    #[must_use]
    pub fn free_gpus(&self) -> u64 {
        self.gpus
    }
}

/// The node for a claim: on the first shelf that has one, its best fit. Callers put shelves in the order of their
/// price for a GPU, so that dear nodes fall idle first and can go. Returns `(shelf, free GPUs, node)`.
pub fn first_fit<'a>(shelves: impl Iterator<Item = (usize, &'a Shelf)>, gpus: u32) -> Option<(usize, u32, u64)> {
    let mut fits = shelves.filter_map(|(i, shelf)| shelf.best_fit(gpus).map(|(free, node)| (i, free, node)));
    fits.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_node_is_taken() {
        let mut shelf = Shelf::default();
        for (node, free) in [(1, 8), (2, 3), (3, 5), (4, 3)] {
            shelf.put(node, free, node == 2);
        }
        assert_eq!(shelf.best_fit(1), Some((3, 4)), "its like is to be taken last");
        assert_eq!(shelf.best_fit(4), Some((5, 3)));
        assert_eq!(shelf.best_fit(9), None);
        assert_eq!(shelf.free_gpus(), 19);
        assert!(shelf.take(2, 3, true) && !shelf.take(2, 3, true));
        assert_eq!(shelf.free_gpus(), 16);
        let mut small = Shelf::default();
        small.put(9, 2, false);
        assert_eq!(first_fit([(1, &small), (0, &shelf)].into_iter(), 2), Some((1, 2, 9)));
        assert_eq!(first_fit([(1, &small), (0, &shelf)].into_iter(), 8), Some((0, 8, 1)));
    }
}
