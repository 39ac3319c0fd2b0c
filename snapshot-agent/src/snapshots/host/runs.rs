//! Leaves that lie beside each other in a pack are fetched together.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use snapshots::PackId;

use super::leaves::{RUN_BYTES_MAX, Wanted};

/// Stretches of packs with all of these leaves, each once; in the order of the first of each. Zeros lie nowhere.
#[must_use]
pub fn runs(wanted: impl IntoIterator<Item = Wanted>) -> Vec<Vec<Wanted>> {
    let mut by_place: BTreeMap<(PackId, u32), (usize, Wanted)> = BTreeMap::new();
    for (place, wanted) in wanted.into_iter().enumerate() {
        if let Some(pack) = wanted.pack
            && let Entry::Vacant(free) = by_place.entry((pack, wanted.record.place.offset))
        {
            free.insert((place, wanted));
        }
    }
    let mut runs: Vec<(usize, Vec<Wanted>)> = Vec::new();
    for (place, wanted) in by_place.into_values() {
        let joins = runs.last_mut().filter(|(_, run)| {
            let (first, last) = (&run[0], &run[run.len() - 1]);
            let end = |w: &Wanted| w.record.place.offset + w.record.place.stored_bytes;
            last.pack == wanted.pack
                && end(last) == wanted.record.place.offset
                && end(&wanted) - first.record.place.offset <= RUN_BYTES_MAX
        });
        match joins {
            Some((first, run)) => {
                *first = place.min(*first);
                run.push(wanted);
            }
            None => runs.push((place, vec![wanted])),
        }
    }
    runs.sort_by_key(|(place, _)| *place);
    runs.into_iter().map(|(_, run)| run).collect()
}
