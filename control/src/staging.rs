//! Which snapshots are to lie on which hosts: the book, and what the newest plan expects, as a situation of
//! [`snapshots::staging`], and its plan as orders.

use std::collections::{BTreeMap, BTreeSet};

use fleet::book::{Book, Claim, Node};
use fleet::{Readiness, Snapshot, StagedCopy, StagingRoom, StartTook, Tier, UsdMicros};
use planner::input::PlanInput;
use protocol::staging::{CopyOrder, StagingOrder};
use snapshots::staging::{self, Host, HostId, Situation, SnapshotId};

/// Copies serve what is asked for within this time, seconds: about what a host takes to fetch a large one.
pub const HORIZON_S: f64 = 600.0;
/// What a host fetches before it has been measured, bytes a second.
const FETCH_BYTES_PER_S: f64 = 5e8;
/// The least probability that anybody asks for a snapshot that is declared.
const FIRST_CHANCE: f64 = 0.05;
/// A second of fetching is to save so many seconds to readiness: disks of hosts that come and go are not filled for nothing.
const FETCH_WORTH: f64 = 0.05;
/// Hosts of a zone that have an object from each other; the others have it from them.
const MEMBERS_MAX: usize = 64;
/// Copies that a host is told to have at most: more say little, and fill its order.
const COPIES_MAX: usize = 200;
/// More replicas of one snapshot than this are not told apart.
const REPLICAS_MAX: usize = 512;

/// How many claims begin within the horizon: paths with their probabilities, by class.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outlook {
    /// `(probability, claims)`.
    pub new_claims: BTreeMap<String, Vec<(f64, f64)>>,
}

impl Outlook {
    /// What a plan that is made from this expects.
    #[must_use]
    pub fn of(input: &PlanInput) -> Self {
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

/// What is known, apart from the book, which others need meanwhile.
#[derive(Debug)]
pub struct Situated {
    situation: Situation,
    /// Objects of the snapshots, in their order.
    objects: Vec<String>,
    /// Nodes of the hosts, in their order, each with the copies that it keeps in any case.
    nodes: Vec<(u64, BTreeMap<String, Tier>)>,
}

/// Looks at the fleet. Nodes that are in use whole, or out of service for a while, keep what they have.
#[must_use]
pub fn situate(book: &Book, outlook: &Outlook) -> Situated {
    let named: Vec<&Snapshot> = book.snapshots().values().collect();
    let numbers: BTreeMap<&str, SnapshotId> =
        named.iter().enumerate().map(|(n, snapshot)| (snapshot.object.as_str(), SnapshotId(n))).collect();
    let mut zones = BTreeMap::new();
    let (mut nodes, mut hosts) = (Vec::new(), Vec::new());
    for node in book.nodes().values().filter(|node| takes_copies(node)) {
        let (Some(room), Some(offer)) = (&node.staging, book.offer_of(node)) else { continue };
        let key = &node.offer;
        let next = zones.len();
        let zone = *zones.entry((&key.provider, &key.region, &key.zone)).or_insert(next);
        let kept = kept_in_any_case(book, node);
        hosts.push(host(book, (node, &kept), room, (zone, offer), &numbers));
        nodes.push((node.id, kept));
    }
    let snapshots = named.iter().map(|snapshot| planned(book, snapshot, outlook, &hosts)).collect();
    let objects = named.iter().map(|snapshot| snapshot.object.clone()).collect();
    Situated { situation: Situation { snapshots, hosts }, objects, nodes }
}

impl Situated {
    /// Which copies each node should have.
    #[must_use]
    pub fn plan(self) -> Orders {
        let plan = staging::plan(&self.situation);
        let mut copies = BTreeMap::new();
        for (n, (node, kept)) in self.nodes.into_iter().enumerate() {
            let planned = plan.staged[HostId(n).0].iter().map(|(id, tier)| (self.objects[id.0].clone(), *tier));
            copies.insert(node, planned.chain(kept).take(COPIES_MAX).collect());
        }
        Orders { copies, saved_s: plan.saved_s, fetch_bytes: plan.fetch_bytes }
    }
}

/// Both, for who has the book to himself.
#[must_use]
pub fn decide(book: &Book, outlook: &Outlook) -> Orders {
    situate(book, outlook).plan()
}

impl Orders {
    /// Whether any node is told something new.
    #[must_use]
    pub fn changes(&self, book: &Book) -> usize {
        let is_new = |(id, wanted): &(&u64, &BTreeMap<String, Tier>)| {
            book.nodes().get(*id).is_some_and(|node| !node.is_told(wanted))
        };
        self.copies.iter().filter(is_new).count()
    }

    /// Tells the nodes; those that are gone meanwhile are left out. Returns how many were told something new.
    pub fn carry_out(&self, book: &mut Book, now_ms: i64) -> usize {
        let told = self.copies.iter().filter(|(id, wanted)| book.stage(**id, wanted, now_ms).unwrap_or(false));
        told.count()
    }
}

/// What copies are worth where nodes are bought and given back, in expectation over the horizon.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Worth {
    /// What claims lose if a node goes with its copies. Of nodes of a zone with the same the oldest is the first that can be
    /// spared, and the youngest the last.
    pub of_node: BTreeMap<u64, UsdMicros>,
    /// By offer, what claims lose on a new node until it has copies as others have.
    pub of_launch: BTreeMap<usize, UsdMicros>,
}

/// Looks at the copies that lie on idle GPUs.
#[must_use]
pub fn worth(book: &Book, outlook: &Outlook) -> Worth {
    let situated = situate(book, outlook);
    let named: Vec<&Snapshot> = book.snapshots().values().collect();
    let hosts = &situated.situation.hosts;
    // By snapshot, the hosts where it is: only what is there serves a claim.
    let mut there: Vec<Vec<(usize, Tier)>> = vec![Vec::new(); named.len()];
    let node_of: Vec<Option<&Node>> = situated.nodes.iter().map(|(id, _)| book.nodes().get(id)).collect();
    for (h, host) in hosts.iter().enumerate() {
        for SnapshotId(n) in host.staged.keys() {
            let copy = node_of[h].and_then(|node| node.copies.get(&named[*n].object));
            there[*n].extend(copy.and_then(|copy| copy.presence.tier()).map(|tier| (h, tier)));
        }
    }
    let mut of_node: BTreeMap<u64, f64> = BTreeMap::new();
    // Dollars and seconds of fetching of each snapshot, spread over the hosts that it runs on.
    let mut of_launch: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for ((named, planned), mut there) in named.iter().zip(&situated.situation.snapshots).zip(there) {
        let slots = |h: usize| (hosts[h].gpus / planned.gpus) as usize;
        there.retain(|(h, _)| slots(*h) > 0);
        there.sort_by_key(|(h, _)| std::cmp::Reverse(node_of[*h].map(|node| (node.asked_at_ms, node.id))));
        let (mut usd, mut fetch_s) = (0.0, 0.0);
        let mut before: BTreeMap<usize, usize> = BTreeMap::new();
        for (h, tier) in there {
            let host = &hosts[h];
            let saved_s = planned.cold_s - if tier == Tier::Memory { planned.memory_s } else { planned.disk_s };
            let replicas = before.entry(host.zone).or_default();
            let chances = planned.at_least.get(&host.zone).map_or(&[][..], Vec::as_slice);
            let served: f64 = chances.iter().skip(*replicas).take(slots(h)).sum();
            *replicas += slots(h);
            let saved_usd = saved_s * named.second_usd(planned.gpus, &book.offers()[host.class]) * served;
            *of_node.entry(situated.nodes[h].0).or_default() += saved_usd;
            usd += saved_usd;
            fetch_s += planned.bytes as f64 / fetch_bytes_per_s(node_of[h].and_then(|node| node.staging.as_ref()));
        }
        let runs_on = hosts.iter().filter(|host| planned.host_classes.contains(&host.class)).count().max(1) as f64;
        for p in planned.host_classes.iter().filter(|_| usd > 0.0) {
            let (total_usd, total_s) = of_launch.entry(*p).or_default();
            (*total_usd, *total_s) = (*total_usd + usd / runs_on, *total_s + fetch_s / runs_on);
        }
    }
    let money = |usd: f64| UsdMicros::from_usd(usd).unwrap_or(UsdMicros::ZERO);
    // It goes without for as long as it fetches what the others have.
    let launch = |(p, (usd, fetch_s)): (usize, (f64, f64))| (p, money(usd * (fetch_s / HORIZON_S).min(1.0)));
    Worth {
        of_node: of_node.into_iter().map(|(id, usd)| (id, money(usd))).collect(),
        of_launch: of_launch.into_iter().map(launch).collect(),
    }
}

fn fetch_bytes_per_s(room: Option<&StagingRoom>) -> f64 {
    let measured = room.and_then(|room| room.fetch_bytes_per_s);
    measured.filter(|rate| rate.is_finite() && *rate > 0.0).unwrap_or(FETCH_BYTES_PER_S)
}

fn takes_copies(node: &Node) -> bool {
    node.takes_claims() && node.free.count() > 0
}

/// Copies for claims of more GPUs than are free just now: they are of use again when others end.
fn kept_in_any_case(book: &Book, node: &Node) -> BTreeMap<String, Tier> {
    let keeps = |(object, copy): (&String, &StagedCopy)| {
        let class = book.classes().get(&book.snapshot_of_object(object)?.class)?;
        let gpus = class.class.gpus_per_claim;
        Some((object.clone(), copy.wanted?)).filter(|_| gpus > node.free.count() && gpus <= node.gpus)
    };
    node.copies.iter().filter_map(keeps).collect()
}

fn host(
    book: &Book,
    (node, kept): (&Node, &BTreeMap<String, Tier>),
    room: &StagingRoom,
    (zone, class): (usize, usize),
    numbers: &BTreeMap<&str, SnapshotId>,
) -> Host {
    let taken = |least: Tier| -> u64 {
        let of_tier = kept.iter().filter(|(_, tier)| **tier >= least);
        of_tier.filter_map(|(object, _)| Some(book.snapshot_of_object(object)?.bytes)).sum()
    };
    // What is on its way counts as there, unless something stands in its way.
    let counts = |copy: &StagedCopy| copy.presence.tier().or(copy.wanted.filter(|_| copy.problem.is_empty()));
    let others = node.copies.iter().filter(|(object, _)| !kept.contains_key(*object));
    let there = others.filter_map(|(object, copy)| Some((*numbers.get(object.as_str())?, counts(copy)?)));
    let missing = |(object, copy): (&String, &StagedCopy)| {
        let bytes = book.snapshot_of_object(object)?.bytes;
        Some(bytes.saturating_sub(copy.bytes)).filter(|_| copy.wanted.is_some() && copy.presence.tier().is_none())
    };
    let coming: u64 = node.copies.iter().filter_map(missing).sum();
    Host {
        zone,
        class,
        gpus: node.free.count(),
        memory_bytes: room.memory_bytes.saturating_sub(taken(Tier::Memory)),
        disk_bytes: room.disk_bytes.saturating_sub(taken(Tier::Disk)),
        // Never more on its way than can be there within the horizon.
        fetch_bytes: ((fetch_bytes_per_s(Some(room)) * HORIZON_S) as u64).saturating_sub(coming),
        staged: there.take(COPIES_MAX).collect(),
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
        least_gain_s: FETCH_WORTH * snapshot.bytes as f64 / FETCH_BYTES_PER_S,
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

/// Hosts of a node's zone that have an object or are to, itself among them where it is: the same for each of them, whatever
/// has come already, so that all agree who fetches what.
fn members(book: &Book, node: &Node, object: &str) -> Vec<String> {
    let of_zone = |other: &Node| {
        let (a, b) = (&node.offer, &other.offer);
        (&a.provider, &a.region, &a.zone) == (&b.provider, &b.region, &b.zone)
    };
    let mut ids: Vec<u64> = book.copies_of(object).map(|(_, id)| id).collect();
    ids.sort_unstable();
    let nodes = ids.iter().filter_map(|id| book.nodes().get(id)).filter(|other| of_zone(other));
    nodes.filter_map(|other| other.staging.as_ref()?.peer.clone()).take(MEMBERS_MAX).collect()
}

/// The order of a node.
#[must_use]
pub fn order(book: &Book, node: &Node) -> StagingOrder {
    let copy = |(object, copy): (&String, &StagedCopy)| {
        let snapshot = book.snapshot_of_object(object)?;
        Some(CopyOrder {
            members: members(book, node, object),
            object: object.clone(),
            store: snapshot.store.clone(),
            bytes: snapshot.bytes,
            tier: copy.wanted?,
        })
    };
    let mut copies: Vec<CopyOrder> = node.copies.iter().filter_map(copy).take(COPIES_MAX).collect();
    // What is to lie in memory saves most.
    copies.sort_by_key(|copy| std::cmp::Reverse(copy.tier));
    // Who may ask whom is for the shell to say.
    StagingOrder { copies, peer_key: None, version: node.desired.staging }
}

/// What a start that its host made took; none where that was its client's affair.
fn took(claim: &Claim) -> Option<StartTook> {
    let attempt = claim.start.as_ref()?.attempts.last()?;
    // More digits say nothing, and all of it is written down again and again.
    let phases = attempt.phases.iter().map(|(phase, seconds)| (*phase, (seconds * 1000.0).round() / 1000.0)).collect();
    Some(StartTook { rung: attempt.rung, ready_s: claim.ready_s?, phases })
}

/// Learns from the starts that clients told since the last look; none where nobody did.
#[must_use]
pub fn learn(book: &Book) -> Option<Readiness> {
    let mut learnt = book.readiness().clone();
    learnt.heard.retain(|id| book.claims().contains_key(id));
    learnt.keep(|name| book.snapshots().contains_key(name));
    learnt.starts.retain(|class, _| book.classes().contains_key(class));
    for claim in book.claims().values().filter(|claim| claim.ready_s.is_some()) {
        if learnt.heard.insert(claim.id)
            && let Some((snapshot, tier, multiple)) = book.learnt(claim)
        {
            learnt.learn(&snapshot, tier, multiple);
            if let Some(took) = took(claim) {
                learnt.took(&claim.class, took);
            }
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
