//! Which snapshots are to lie on which hosts: the book, and what the newest plan expects, as a situation of
//! [`snapshots::staging`], and its plan as orders.

use std::collections::{BTreeMap, BTreeSet};

use fleet::book::{Book, Node};
use fleet::{Readiness, Snapshot, StagedCopy, StagingRoom, Tier};
use protocol::staging::{CopyOrder, StagingOrder};
use snapshots::staging::{self, Host, HostId, Situation, SnapshotId};

use crate::plan::PlanRecord;

/// Copies serve what is asked for within this time, seconds: about what a host takes to fetch a large one.
pub const HORIZON_S: f64 = 600.0;
/// What a host fetches before it has been measured, bytes a second.
const FETCH_BYTES_PER_S: f64 = 5e8;
/// The least probability that anybody asks for a snapshot that is declared.
const FIRST_CHANCE: f64 = 0.01;
/// Hosts that are named to a host for one copy.
const PEERS_MAX: usize = 64;
/// More replicas of one snapshot than this are not told apart.
const REPLICAS_MAX: usize = 512;

/// How many claims begin within the horizon: paths with their probabilities, by class.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outlook {
    /// `(probability, claims)`.
    pub new_claims: BTreeMap<String, Vec<(f64, f64)>>,
}

impl Outlook {
    /// What a plan expects.
    #[must_use]
    pub fn of(record: &PlanRecord) -> Self {
        let input = &record.input;
        let starts = planner::input::starts(&input.period_s);
        let soon = starts.iter().take_while(|start| **start < HORIZON_S).count();
        let of_path = |k: usize, path: &planner::input::Scenario| {
            let begun = path.new_claims.iter().take(soon).filter_map(|row| row.get(k)).sum::<f64>();
            (path.weight, begun)
        };
        let of_class = |k: usize| input.scenarios.iter().map(|path| of_path(k, path)).collect();
        let new_claims = input.classes.iter().enumerate().map(|(k, class)| (class.name.clone(), of_class(k)));
        Self { new_claims: new_claims.collect() }
    }
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Orders {
    /// Copies of each node whose copies are planned now, by object.
    pub copies: BTreeMap<u64, BTreeMap<String, Tier>>,
    /// Expected seconds to readiness that all copies save within the horizon.
    pub saved_s: f64,
    /// Bytes that are to be fetched.
    pub fetch_bytes: u64,
}

/// Which copies each node should have. Nodes that are in use whole, or out of service for a while, keep what they have.
#[must_use]
pub fn decide(book: &Book, outlook: &Outlook) -> Orders {
    let named: Vec<&Snapshot> = book.snapshots().values().collect();
    let objects: BTreeMap<&str, SnapshotId> =
        named.iter().enumerate().map(|(n, snapshot)| (snapshot.object.as_str(), SnapshotId(n))).collect();
    let mut zones = BTreeMap::new();
    let (mut nodes, mut hosts) = (Vec::new(), Vec::new());
    for node in book.nodes().values().filter(|node| takes_copies(node)) {
        let (Some(room), Some(offer)) = (&node.staging, book.offer_of(node)) else { continue };
        let key = &node.offer;
        let next = zones.len();
        let zone = *zones.entry((&key.provider, &key.region, &key.zone)).or_insert(next);
        nodes.push(node.id);
        hosts.push(host(node, room, (zone, offer), &objects));
    }
    let snapshots = named.iter().map(|snapshot| planned(book, snapshot, outlook, &hosts)).collect();
    let situation = Situation { snapshots, hosts };
    let plan = staging::plan(&situation);
    let object = |(id, tier): (&SnapshotId, &Tier)| (named[id.0].object.clone(), *tier);
    let of_host = |n: usize| plan.staged[HostId(n).0].iter().map(object).collect();
    let copies = nodes.iter().enumerate().map(|(n, node)| (*node, of_host(n))).collect();
    Orders { copies, saved_s: plan.saved_s, fetch_bytes: plan.fetch_bytes }
}

impl Orders {
    /// Whether any node is told something new.
    #[must_use]
    pub fn changes(&self, book: &Book) -> usize {
        let is_new = |(id, wanted): &(&u64, &BTreeMap<String, Tier>)| {
            book.nodes().get(*id).is_some_and(|node| {
                let has = node.copies.iter().filter_map(|(object, copy)| Some((object, copy.wanted?)));
                !has.eq(wanted.iter().map(|(object, tier)| (object, *tier)))
            })
        };
        self.copies.iter().filter(is_new).count()
    }

    /// Tells the nodes; those that are gone meanwhile are left out. Returns how many were told something new.
    pub fn carry_out(&self, book: &mut Book, now_ms: i64) -> usize {
        let told = self.copies.iter().filter(|(id, wanted)| book.stage(**id, wanted, now_ms).unwrap_or(false));
        told.count()
    }
}

fn takes_copies(node: &Node) -> bool {
    node.takes_claims() && node.free.count() > 0
}

fn host(node: &Node, room: &StagingRoom, (zone, class): (usize, usize), objects: &BTreeMap<&str, SnapshotId>) -> Host {
    let rate = room.fetch_bytes_per_s.filter(|rate| rate.is_finite() && *rate > 0.0).unwrap_or(FETCH_BYTES_PER_S);
    // What it was told to fetch and has not yet takes of what it can.
    let on_its_way = |copy: &&StagedCopy| copy.wanted.is_some() && copy.presence.tier().is_none();
    let coming = |object: &String| objects.get(object.as_str()).copied();
    let there = node.copies.iter().filter_map(|(object, copy)| {
        let tier = copy.presence.tier().or(copy.wanted)?;
        Some((coming(object)?, tier))
    });
    let busy = node.copies.values().filter(on_its_way).count() as f64;
    Host {
        zone,
        class,
        gpus: node.free.count(),
        memory_bytes: room.memory_bytes,
        disk_bytes: room.disk_bytes,
        fetch_bytes: (rate * HORIZON_S / (1.0 + busy)) as u64,
        staged: there.collect(),
    }
}

/// A snapshot as the plan takes it.
fn planned(book: &Book, snapshot: &Snapshot, outlook: &Outlook, hosts: &[Host]) -> staging::Snapshot {
    let fits = |p: &&usize| snapshot.gpu.is_none_or(|gpu| book.offers()[**p].gpu == gpu);
    let host_classes: BTreeSet<usize> = book.offers_of(&snapshot.class).iter().filter(fits).copied().collect();
    let gpus = book.classes().get(&snapshot.class).map_or(1, |rule| rule.class.gpus_per_claim).max(1);
    let [cold_s, disk_s, memory_s] = [None, Some(Tier::Disk), Some(Tier::Memory)].map(|tier| {
        let prediction = book.readiness().predict(&snapshot.name, tier, snapshot.ready_s(tier, None));
        prediction.p50_s
    });
    let mut room: BTreeMap<usize, f64> = BTreeMap::new();
    for host in hosts.iter().filter(|host| host_classes.contains(&host.class) && host.gpus >= gpus) {
        *room.entry(host.zone).or_default() += f64::from(host.gpus);
    }
    let total: f64 = room.values().sum();
    let paths = outlook.new_claims.get(&snapshot.class).map_or(&[][..], Vec::as_slice);
    let of_zone = |gpus: f64| {
        let mut chances = chances(paths, snapshot.share * gpus / total);
        // Room that nothing else needs is used: who is new to the fleet has no past to go by.
        chances.resize(chances.len().max(1), 0.0);
        chances[0] = chances[0].max(FIRST_CHANCE);
        chances
    };
    let at_least = room.iter().map(|(zone, gpus)| (*zone, of_zone(*gpus)));
    staging::Snapshot {
        bytes: snapshot.bytes,
        host_classes,
        gpus,
        memory_s: memory_s.min(disk_s).min(cold_s),
        disk_s: disk_s.min(cold_s),
        cold_s,
        at_least: at_least.collect(),
    }
}

/// For k = 1, 2, …: the probability that k or more of the claims on `paths` are of a kind that each is with probability
/// `share`, until that does not matter.
fn chances(paths: &[(f64, f64)], share: f64) -> Vec<f64> {
    let mut chances = vec![0.0; REPLICAS_MAX];
    let total: f64 = paths.iter().map(|(weight, _)| weight).sum();
    for (weight, claims) in paths {
        let n = claims.round().max(0.0);
        let share = share.clamp(0.0, 1.0);
        let mut left = 1.0;
        // Logarithms: the first terms of many claims are too small for a number.
        let mut term = n * (1.0 - share).ln();
        for (k, chance) in chances.iter_mut().enumerate() {
            if k as f64 >= n {
                break;
            }
            if share < 1.0 {
                left -= term.exp();
                term += ((n - k as f64) / (k as f64 + 1.0)).ln() + (share / (1.0 - share)).ln();
            }
            if left <= 0.0 {
                break;
            }
            *chance += weight / total.max(f64::MIN_POSITIVE) * left;
        }
    }
    let matters = chances.iter().position(|chance| *chance < 1e-4).unwrap_or(chances.len());
    chances.truncate(matters);
    chances
}

/// Other hosts of a node's zone that have an object or are to, those that have all of it first.
fn peers(book: &Book, node: &Node, object: &str) -> Vec<String> {
    let zone = |node: &Node| (node.offer.provider.clone(), node.offer.region.clone(), node.offer.zone.clone());
    let of_zone = zone(node);
    let others = book.copies_of(object).filter(|(_, id)| *id != node.id).filter_map(|(_, id)| book.nodes().get(&id));
    let reached =
        others.filter(|other| zone(other) == of_zone).filter_map(|other| other.staging.as_ref()?.peer.clone());
    reached.take(PEERS_MAX).collect()
}

/// The order of a node.
#[must_use]
pub fn order(book: &Book, node: &Node) -> StagingOrder {
    let copy = |(object, copy): (&String, &StagedCopy)| {
        let snapshot = book.snapshots().values().find(|snapshot| snapshot.object == *object)?;
        Some(CopyOrder {
            peers: peers(book, node, object),
            object: object.clone(),
            store: snapshot.store.clone(),
            bytes: snapshot.bytes,
            tier: copy.wanted?,
        })
    };
    let mut copies: Vec<CopyOrder> = node.copies.iter().filter_map(copy).collect();
    // What is to lie in memory saves most.
    copies.sort_by_key(|copy| std::cmp::Reverse(copy.tier));
    // Who may ask whom is for the shell to say.
    StagingOrder { copies, peer_key: None, version: node.desired.staging }
}

/// Learns from the starts that clients told since the last look; none where nobody did.
#[must_use]
pub fn learn(book: &Book) -> Option<Readiness> {
    let mut learnt = book.readiness().clone();
    learnt.heard.retain(|id| book.claims().contains_key(id));
    learnt.keep(|name| book.snapshots().contains_key(name));
    for claim in book.claims().values().filter(|claim| claim.ready_s.is_some()) {
        if learnt.heard.insert(claim.id)
            && let Some((snapshot, tier, multiple)) = book.learnt(claim)
        {
            learnt.learn(&snapshot, tier, multiple);
        }
    }
    (learnt != *book.readiness()).then_some(learnt)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The binomial tail, by its definition.
    fn tail(n: u32, share: f64, k: u32) -> f64 {
        let choose = |k: u32| (0..k).map(|i| f64::from(n - i) / f64::from(i + 1)).product::<f64>();
        (k..=n).map(|i| choose(i) * share.powi(i as i32) * (1.0 - share).powi((n - i) as i32)).sum()
    }

    #[test]
    fn chances_are_tails_of_the_paths() {
        let paths = [(0.5, 12.0), (0.25, 3.0), (0.25, 0.0)];
        for share in [0.1, 0.5, 0.9] {
            let got = chances(&paths, share);
            assert!(got.windows(2).all(|w| w[0] >= w[1]), "{got:?}");
            for (k, chance) in got.iter().enumerate() {
                let k = k as u32 + 1;
                let of = |n: u32| if k <= n { tail(n, share, k) } else { 0.0 };
                let wanted = 0.5 * of(12) + 0.25 * of(3);
                assert!((chance - wanted).abs() < 1e-9, "k = {k}: {chance} {wanted}");
            }
        }
        assert_eq!(chances(&paths, 1.0), [vec![0.75; 3], vec![0.5; 9]].concat());
        assert!(chances(&[], 0.5).is_empty() && chances(&paths, 0.0).is_empty());
        let many = chances(&[(1.0, 20_000.0)], 0.01);
        assert!((many[199] - 0.5).abs() < 0.05, "a mean of 200: {}", many[199]);
    }
}
