//! Which snapshot lies on which host, in which tier, before it is asked for: those copies whose expected saving of time to
//! readiness is largest, within the room and the network of hosts. Pure: demand, hosts and what is staged in, copies out.
//!
//! The k-th replica of a snapshot in a zone is asked for with a probability that falls in k, and is served by the best copy that
//! is left, so a further copy never gains more than the one before: greedy choice by gain for each byte, with gains looked at
//! again only when they come up (Minoux, "Accelerated Greedy Algorithms for Maximizing Submodular Set Functions", 1978).

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

pub use fleet::Tier;

/// Number of a snapshot in [`Situation::snapshots`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub usize);

/// Number of a host in [`Situation::hosts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub usize);

/// A snapshot, and who will ask for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Bytes of a copy.
    pub bytes: u64,
    /// The classes of hosts that it runs on: hardware, driver and the rest that it was taken with.
    pub host_classes: BTreeSet<usize>,
    /// GPUs of one replica, at least 1.
    pub gpus: u32,
    /// Seconds to readiness from memory, from the disk, and from farther away; each at least the one before.
    pub memory_s: f64,
    /// From the disk.
    pub disk_s: f64,
    /// From farther away.
    pub cold_s: f64,
    /// The least expected saving for which a copy is fetched, seconds: the network is not for nothing.
    pub least_gain_s: f64,
    /// By zone, for k = 1, 2, …: the probability that k or more replicas are asked for within the horizon, never rising in k.
    pub at_least: BTreeMap<usize, Vec<f64>>,
}

/// A host.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// Its zone.
    pub zone: usize,
    /// Its class.
    pub class: usize,
    /// Its GPUs that can be claimed.
    pub gpus: u32,
    /// Room for copies in memory.
    pub memory_bytes: u64,
    /// Room for copies on the disk.
    pub disk_bytes: u64,
    /// What it may fetch until the next plan.
    pub fetch_bytes: u64,
    /// What it has, by its best tier.
    pub staged: BTreeMap<SnapshotId, Tier>,
}

/// What is known.
#[derive(Debug, Clone, Default)]
pub struct Situation {
    /// Snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Hosts.
    pub hosts: Vec<Host>,
}

/// What each host should have.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// By host, its copies by their best tier.
    pub staged: Vec<BTreeMap<SnapshotId, Tier>>,
    /// Expected seconds to readiness that are saved within the horizon.
    pub saved_s: f64,
    /// Bytes to fetch.
    pub fetch_bytes: u64,
}

/// A copy that is there is worth so much more than one that would have to be fetched: nothing is moved for a little.
const STAY: f64 = 1.3;

impl Snapshot {
    fn saved_s(&self, tier: Tier) -> f64 {
        let left = match tier {
            Tier::Disk => self.disk_s,
            Tier::Memory => self.memory_s,
        };
        (self.cold_s - left).max(0.0)
    }
}

/// Hosts that are alike to every snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    zone: usize,
    class: usize,
    gpus: u32,
}

/// A copy that could be made.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    /// Gain for each share of the room that it takes, when it was last looked at.
    density: f64,
    snapshot: SnapshotId,
    group: usize,
    tier: Tier,
    /// On this host, or on any of the group.
    host: Option<HostId>,
    /// It is there already.
    stays: bool,
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let rest = |c: &Self| (c.snapshot, c.group, c.tier, c.host);
        self.density.total_cmp(&other.density).then_with(|| rest(other).cmp(&rest(self)))
    }
}

/// Replicas of one snapshot in one zone that copies can serve.
#[derive(Debug, Clone, Copy, Default)]
struct Covered {
    memory: usize,
    disk: usize,
}

/// What is chosen so far.
struct Choice<'a> {
    situation: &'a Situation,
    groups: Vec<(Group, Vec<HostId>)>,
    /// Groups' zones, numbered without gaps, and how many there are.
    zone_of: Vec<usize>,
    zones: usize,
    /// By snapshot and zone, sums of the probabilities of the first k replicas; empty where nobody asks.
    asked: Vec<Vec<f64>>,
    /// The same for what is covered.
    covered: Vec<Covered>,
    /// By group, the least density that was taken on its disks, and whether one was refused for want of room.
    least_taken: Vec<(f64, bool)>,
    memory_left: Vec<u64>,
    disk_left: Vec<u64>,
    /// By group, hosts by the room that is left on their disks.
    roomy: Vec<BTreeSet<(u64, Reverse<HostId>)>>,
    fetch_left: Vec<u64>,
    /// Bytes of room of all hosts, by tier: what a byte of each is worth.
    room: [f64; 2],
    plan: Plan,
}

/// The copies that are worth most. What is there stays unless the room that it takes is worth more to others.
#[must_use]
pub fn plan(situation: &Situation) -> Plan {
    // What room is worth, found by filling it as if nothing were there.
    let mut free = Choice::new(situation);
    let new = free.new_copies();
    free.fill(new);
    let worth = free.least_taken;
    let mut choice = Choice::new(situation);
    let there = choice.there();
    choice.fill_above(there, &worth);
    let new = choice.new_copies();
    choice.fill(new);
    choice.plan
}

impl<'a> Choice<'a> {
    fn new(situation: &'a Situation) -> Self {
        let mut groups: BTreeMap<Group, Vec<HostId>> = BTreeMap::new();
        for (number, host) in situation.hosts.iter().enumerate() {
            let group = Group { zone: host.zone, class: host.class, gpus: host.gpus };
            groups.entry(group).or_default().push(HostId(number));
        }
        let total = |of: fn(&Host) -> u64| situation.hosts.iter().map(|host| of(host) as f64).sum::<f64>().max(1.0);
        let groups: Vec<(Group, Vec<HostId>)> = groups.into_iter().collect();
        let numbers: BTreeMap<usize, usize> =
            groups.iter().map(|(group, _)| group.zone).collect::<BTreeSet<_>>().into_iter().zip(0..).collect();
        let disk_left: Vec<u64> = situation.hosts.iter().map(|host| host.disk_bytes).collect();
        let roomy = |hosts: &[HostId]| hosts.iter().map(|host| (disk_left[host.0], Reverse(*host))).collect();
        let sums = |snapshot: &Snapshot, zone| {
            let sum = |sum: &mut f64, probability: &f64| {
                *sum += probability;
                Some(*sum)
            };
            let at_least = snapshot.at_least.get(zone).map_or(&[][..], |all| all);
            at_least.iter().scan(0.0, sum).collect::<Vec<f64>>()
        };
        let asked = situation.snapshots.iter().flat_map(|s| numbers.keys().map(move |zone| sums(s, zone)));
        Self {
            situation,
            zone_of: groups.iter().map(|(group, _)| numbers[&group.zone]).collect(),
            zones: numbers.len(),
            asked: asked.collect(),
            covered: vec![Covered::default(); situation.snapshots.len() * numbers.len()],
            least_taken: vec![(f64::INFINITY, false); groups.len()],
            memory_left: situation.hosts.iter().map(|host| host.memory_bytes).collect(),
            roomy: groups.iter().map(|(_, hosts)| roomy(hosts)).collect(),
            groups,
            fetch_left: situation.hosts.iter().map(|host| host.fetch_bytes).collect(),
            room: [total(|host| host.disk_bytes), total(|host| host.memory_bytes)],
            plan: Plan { staged: vec![BTreeMap::new(); situation.hosts.len()], ..Plan::default() },
            disk_left,
        }
    }

    fn runs_on(&self, snapshot: &Snapshot, group: usize) -> bool {
        let (kind, _) = &self.groups[group];
        snapshot.host_classes.contains(&kind.class) && (1..=kind.gpus).contains(&snapshot.gpus)
    }

    fn on_disk(&self, snapshot: SnapshotId, group: usize, host: Option<HostId>) -> Option<Candidate> {
        let runs = self.situation.snapshots.get(snapshot.0).is_some_and(|s| self.runs_on(s, group));
        let stays = host.is_some();
        let candidate = Candidate { density: 0.0, snapshot, group, tier: Tier::Disk, host, stays };
        let density = if runs { self.density(&candidate) } else { 0.0 };
        (density > 0.0).then_some(Candidate { density, ..candidate })
    }

    /// The copies that hosts have on their disks.
    fn there(&self) -> BinaryHeap<Candidate> {
        let of_host = |group, host: HostId| {
            let staged = self.situation.hosts[host.0].staged.keys();
            staged.filter_map(move |snapshot| self.on_disk(*snapshot, group, Some(host)))
        };
        let groups = self.groups.iter().enumerate();
        groups.flat_map(|(group, (_, hosts))| hosts.iter().flat_map(move |host| of_host(group, *host))).collect()
    }

    /// The copies that could be made, one for all hosts that are alike.
    fn new_copies(&self) -> BinaryHeap<Candidate> {
        let snapshots = 0..self.situation.snapshots.len();
        let of_group = |group| snapshots.clone().filter_map(move |n| self.on_disk(SnapshotId(n), group, None));
        (0..self.groups.len()).flat_map(of_group).collect()
    }

    /// Takes copies, the best first, as long as there is room.
    fn fill(&mut self, heap: BinaryHeap<Candidate>) {
        let nothing = vec![(0.0, false); self.groups.len()];
        self.fill_above(heap, &nothing);
    }

    /// The same, but none on a disk whose room is worth more by far.
    fn fill_above(&mut self, mut heap: BinaryHeap<Candidate>, worth: &[(f64, bool)]) {
        while let Some(candidate) = heap.pop() {
            let density = self.density(&candidate);
            let (least, full) = worth[candidate.group];
            if density <= 0.0 || candidate.tier == Tier::Disk && full && density < least {
                continue;
            }
            let is_fetched = candidate.tier == Tier::Disk && !candidate.stays;
            if is_fetched && self.gain_s(&candidate) < self.situation.snapshots[candidate.snapshot.0].least_gain_s {
                continue;
            }
            // It has lost since it was last looked at, and may not be the best any more.
            if heap.peek().is_some_and(|next| density < next.density) {
                heap.push(Candidate { density, ..candidate });
                continue;
            }
            let taken = self.take(&candidate);
            if candidate.tier == Tier::Disk {
                let (least, full) = &mut self.least_taken[candidate.group];
                *full |= taken.is_none();
                *least = if taken.is_some() { least.min(density) } else { *least };
            }
            let Some(host) = taken else { continue };
            if candidate.host.is_none() {
                heap.push(candidate);
            }
            if candidate.tier == Tier::Disk {
                heap.extend(self.in_memory(&candidate, host));
            }
        }
    }

    /// A copy in the memory of a host whose disk has one.
    fn in_memory(&self, on_disk: &Candidate, host: HostId) -> Option<Candidate> {
        let stays = self.situation.hosts[host.0].staged.get(&on_disk.snapshot) == Some(&Tier::Memory);
        let candidate = Candidate { tier: Tier::Memory, host: Some(host), stays, ..*on_disk };
        let density = self.density(&candidate);
        (density > 0.0).then_some(Candidate { density, ..candidate })
    }

    /// What a copy gains, for each share of the room that it takes.
    fn density(&self, candidate: &Candidate) -> f64 {
        let snapshot = &self.situation.snapshots[candidate.snapshot.0];
        let gain = self.gain_s(candidate) * if candidate.stays { STAY } else { 1.0 };
        let room = match candidate.tier {
            Tier::Disk => self.room[0],
            Tier::Memory => self.room[1],
        };
        gain * room / snapshot.bytes.max(1) as f64
    }

    /// Where a snapshot's demand in a group's zone stands.
    fn at(&self, candidate: &Candidate) -> usize {
        candidate.snapshot.0 * self.zones + self.zone_of[candidate.group]
    }

    /// Seconds that are saved by one copy more: a disk's serves replicas that nothing served, a memory's those that a disk's did.
    fn gain_s(&self, candidate: &Candidate) -> f64 {
        let snapshot = &self.situation.snapshots[candidate.snapshot.0];
        let (asked, covered) = (&self.asked[self.at(candidate)], self.covered[self.at(candidate)]);
        let slots = (self.groups[candidate.group].0.gpus / snapshot.gpus) as usize;
        // Of the first k replicas.
        let first = |k: usize| if k == 0 { 0.0 } else { asked.get(k - 1).or(asked.last()).copied().unwrap_or(0.0) };
        let next = |from: usize| first(from + slots) - first(from);
        let (disk_s, memory_s) = (snapshot.saved_s(Tier::Disk), snapshot.saved_s(Tier::Memory));
        match candidate.tier {
            Tier::Disk => next(covered.memory + covered.disk) * disk_s,
            Tier::Memory => next(covered.memory) * (memory_s - disk_s),
        }
    }

    /// Makes or keeps a copy; the host, if one has room.
    fn take(&mut self, candidate: &Candidate) -> Option<HostId> {
        let snapshot = &self.situation.snapshots[candidate.snapshot.0];
        let host = self.host_for(candidate)?;
        self.plan.saved_s += self.gain_s(candidate);
        let (slots, at) = ((self.groups[candidate.group].0.gpus / snapshot.gpus) as usize, self.at(candidate));
        let covered = &mut self.covered[at];
        match candidate.tier {
            Tier::Disk => {
                covered.disk += slots;
                if !self.situation.hosts[host.0].staged.contains_key(&candidate.snapshot) {
                    self.fetch_left[host.0] -= snapshot.bytes;
                    self.plan.fetch_bytes += snapshot.bytes;
                }
                let roomy = &mut self.roomy[candidate.group];
                roomy.remove(&(self.disk_left[host.0], Reverse(host)));
                self.disk_left[host.0] -= snapshot.bytes;
                roomy.insert((self.disk_left[host.0], Reverse(host)));
            }
            Tier::Memory => {
                covered.memory += slots;
                covered.disk -= slots;
                self.memory_left[host.0] -= snapshot.bytes;
            }
        }
        self.plan.staged[host.0].insert(candidate.snapshot, candidate.tier);
        Some(host)
    }

    /// The host for a copy: the one that is meant, or the one with most room left.
    fn host_for(&self, candidate: &Candidate) -> Option<HostId> {
        let bytes = self.situation.snapshots[candidate.snapshot.0].bytes;
        let fits = |host: &HostId| {
            let has = self.plan.staged[host.0].get(&candidate.snapshot);
            let there = self.situation.hosts[host.0].staged.contains_key(&candidate.snapshot);
            match candidate.tier {
                Tier::Disk => {
                    has.is_none() && self.disk_left[host.0] >= bytes && (there || self.fetch_left[host.0] >= bytes)
                }
                Tier::Memory => has == Some(&Tier::Disk) && self.memory_left[host.0] >= bytes,
            }
        };
        if let Some(host) = candidate.host {
            return Some(host).filter(fits);
        }
        let with_room = self.roomy[candidate.group].iter().rev().take_while(|(left, _)| *left >= bytes);
        with_room.map(|(_, Reverse(host))| *host).find(fits)
    }
}

/// What a host has to do to have what a plan says: copies to fetch, to take into memory, and to let go of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Steps {
    /// To its disk.
    pub fetch: BTreeSet<SnapshotId>,
    /// From its disk into memory.
    pub load: BTreeSet<SnapshotId>,
    /// Out of memory, or off the host.
    pub release: BTreeSet<SnapshotId>,
}

impl Plan {
    /// The steps of one host.
    #[must_use]
    pub fn steps(&self, situation: &Situation, host: HostId) -> Steps {
        let (has, wants) = (&situation.hosts[host.0].staged, &self.staged[host.0]);
        let mut steps = Steps::default();
        for (snapshot, tier) in wants {
            if !has.contains_key(snapshot) {
                steps.fetch.insert(*snapshot);
            }
            if *tier == Tier::Memory && has.get(snapshot) != Some(&Tier::Memory) {
                steps.load.insert(*snapshot);
            }
        }
        let less = |(snapshot, tier): (&SnapshotId, &Tier)| wants.get(snapshot).is_none_or(|wanted| wanted < tier);
        steps.release = has.iter().filter(|(s, t)| less((s, t))).map(|(snapshot, _)| *snapshot).collect();
        steps
    }
}
