//! Where a claim goes: the cheapest offer that fits, the fullest node of it, unless another has a copy that is worth more;
//! several units all in one zone.

use std::collections::BTreeMap;

use crate::claim::OnEmpty;
use crate::gpu_set::GpuSet;
use crate::placement::first_fit;

use super::lines::Zone;
use super::{Book, Claim, Part};

impl Book {
    /// GPUs for a claim, if there are enough: within the class's price caps, or above them for a substitute; not in a zone that
    /// another holds.
    pub(super) fn find(&self, claim: &Claim, held: Option<Zone<'_>>) -> Option<Vec<Part>> {
        let within = self.within.get(&claim.class)?;
        if claim.borrowed {
            return self.find_to_borrow(claim);
        }
        let find_in = |offers: &[usize]| match held {
            None => self.find_in(offers, claim),
            Some(held) => {
                let others = |p: &usize| self.zone_of(*p) != held;
                self.find_in(&offers.iter().copied().filter(others).collect::<Vec<_>>(), claim)
            }
        };
        match find_in(within) {
            None if claim.on_empty == OnEmpty::Substitute => find_in(self.above.get(&claim.class)?),
            found => found,
        }
    }

    fn find_in(&self, offers: &[usize], claim: &Claim) -> Option<Vec<Part>> {
        let class = &self.classes.get(&claim.class)?.class;
        let gpus = class.gpus_per_claim;
        let spans = class.multi_node;
        if claim.count == 1 {
            let shelves = offers.iter().map(|p| (*p, &self.shelves[*p]));
            if let Some((_, _, plain)) = first_fit(shelves, gpus) {
                return Some(vec![self.part(self.cheapest_start(plain, offers, claim, gpus), gpus)?]);
            }
            if !spans {
                return None;
            }
        }
        let mut zones: BTreeMap<(&str, &str, &str), Vec<usize>> = BTreeMap::new();
        let mut order = Vec::new();
        for &p in offers {
            let key = &self.offers[p].key;
            let zone = (key.provider.as_str(), key.region.as_str(), key.zone.as_str());
            let members = zones.entry(zone).or_default();
            if members.is_empty() {
                order.push(zone);
            }
            members.push(p);
        }
        order.iter().find_map(|zone| self.gang(&zones[zone], gpus, claim.count, spans))
    }

    /// `count` units of `gpus` GPUs on nodes of these offers, all or none.
    fn gang(&self, offers: &[usize], gpus: u32, count: u32, spans: bool) -> Option<Vec<Part>> {
        let room: u64 = offers.iter().map(|p| self.shelves[*p].free_gpus()).sum();
        if room < u64::from(gpus) * u64::from(count) {
            return None;
        }
        let mut parts: Vec<Part> = Vec::new();
        let mut missing = count;
        for &p in offers {
            let size = self.offers[p].gpus_per_node;
            if gpus > size {
                // Units of several whole nodes.
                if !spans || !gpus.is_multiple_of(size) {
                    continue;
                }
                let each = (gpus / size) as usize;
                let whole: Vec<u64> =
                    self.shelves[p].with_free(size).map(|(_, id)| id).take(each * missing as usize).collect();
                for unit in whole.chunks_exact(each) {
                    parts.extend(unit.iter().map(|id| Part { node: *id, gpus: GpuSet::first(size) }));
                    missing -= 1;
                }
            } else {
                for (free, id) in self.shelves[p].with_free(gpus) {
                    let fit = (free / gpus).min(missing);
                    if fit > 0 {
                        parts.push(self.part(id, fit * gpus)?);
                        missing -= fit;
                    }
                    if missing == 0 {
                        break;
                    }
                }
            }
            if missing == 0 {
                return Some(parts);
            }
        }
        None
    }

    pub(super) fn part(&self, node: u64, gpus: u32) -> Option<Part> {
        let gpus = self.nodes.get(&node)?.free.lowest(gpus)?;
        Some(Part { node, gpus })
    }
}
