//! The staging plan keeps to its room, stays put, and serves those who will ask.

use std::collections::BTreeMap;

use fleet::rng::Rng;
use proptest::prelude::*;
use snapshots::staging::{Host, HostId, Plan, Situation, Snapshot, SnapshotId, Tier, plan};

fn host(memory_bytes: u64, disk_bytes: u64) -> Host {
    Host { zone: 0, class: 0, gpus: 8, memory_bytes, disk_bytes, fetch_bytes: 1 << 40, staged: BTreeMap::new() }
}

fn snapshot(bytes: u64, gpus: u32, at_least: &[f64]) -> Snapshot {
    let at_least = [(0, at_least.to_vec())].into();
    Snapshot {
        bytes,
        host_classes: [0].into(),
        gpus,
        memory_s: 1.0,
        disk_s: 5.0,
        cold_s: 60.0,
        least_gain_s: 0.0,
        at_least,
    }
}

fn any_situation(seed: u64) -> Situation {
    let mut rng = Rng::new(seed);
    let snapshots = (0..1 + rng.below(12)).map(|_| {
        let of_zone = |rng: &mut Rng| {
            let mut all: Vec<f64> = (0..rng.below(20)).map(|_| rng.unit()).collect();
            all.sort_by(|a, b| b.total_cmp(a));
            all
        };
        let memory_s = rng.between(0.5, 3.0);
        Snapshot {
            bytes: 1 + rng.below(100) as u64,
            host_classes: [rng.below(2)].into(),
            gpus: 1 << rng.below(4),
            memory_s,
            disk_s: memory_s + rng.between(0.0, 10.0),
            cold_s: memory_s + rng.between(10.0, 100.0),
            least_gain_s: 0.0,
            at_least: (0..rng.below(3)).map(|zone| (zone, of_zone(&mut rng))).collect(),
        }
    });
    let snapshots: Vec<Snapshot> = snapshots.collect();
    let hosts = (0..rng.below(20)).map(|_| Host {
        zone: rng.below(2),
        class: rng.below(2),
        gpus: 1 << rng.below(4),
        memory_bytes: rng.below(200) as u64,
        disk_bytes: rng.below(400) as u64,
        fetch_bytes: rng.below(400) as u64,
        staged: BTreeMap::new(),
    });
    Situation { hosts: hosts.collect(), snapshots }
}

/// What a plan saves, counted anew: the best copies serve the replicas that are likeliest.
fn saved_s(situation: &Situation, plan: &Plan) -> f64 {
    let mut total = 0.0;
    for (number, snapshot) in situation.snapshots.iter().enumerate() {
        for (zone, at_least) in &snapshot.at_least {
            let slots = |wanted| {
                let of = |(host, staged): (&Host, &BTreeMap<SnapshotId, Tier>)| {
                    let serves = host.zone == *zone && staged.get(&SnapshotId(number)) == Some(&wanted);
                    if serves { host.gpus / snapshot.gpus } else { 0 }
                };
                situation.hosts.iter().zip(&plan.staged).map(of).sum::<u32>() as usize
            };
            let memory = slots(Tier::Memory);
            for (k, probability) in at_least.iter().enumerate().take(memory + slots(Tier::Disk)) {
                let left = if k < memory { snapshot.memory_s } else { snapshot.disk_s };
                total += probability * (snapshot.cold_s - left);
            }
        }
    }
    total
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_plan_keeps_to_its_room_and_stays(seed: u64) {
        let mut situation = any_situation(seed);
        let first = plan(&situation);
        prop_assert!((first.saved_s - saved_s(&situation, &first)).abs() < 1e-6 * first.saved_s.max(1.0));
        let mut fetched = 0;
        for (number, (host, staged)) in situation.hosts.iter().zip(&first.staged).enumerate() {
            let bytes = |least| staged.iter().filter(|(_, t)| **t >= least).map(|(s, _)| situation.snapshots[s.0].bytes).sum::<u64>();
            prop_assert!(bytes(Tier::Disk) <= host.disk_bytes.min(host.fetch_bytes) && bytes(Tier::Memory) <= host.memory_bytes);
            for snapshot in staged.keys().map(|id| &situation.snapshots[id.0]) {
                prop_assert!(snapshot.host_classes.contains(&host.class) && snapshot.gpus <= host.gpus);
            }
            let steps = first.steps(&situation, HostId(number));
            prop_assert_eq!(steps.fetch.len(), staged.len());
            prop_assert!(steps.release.is_empty());
            fetched += bytes(Tier::Disk);
        }
        prop_assert_eq!(fetched, first.fetch_bytes);
        // Where fetching bound it, it goes on. Where only room does, all that is there stays.
        situation.hosts.iter_mut().for_each(|host| host.fetch_bytes = 1 << 40);
        let first = plan(&situation);
        situation.hosts.iter_mut().zip(&first.staged).for_each(|(host, staged)| host.staged = staged.clone());
        let again = plan(&situation);
        for number in 0..situation.hosts.len() {
            let dropped = again.staged[number].len() < first.staged[number].len();
            prop_assert!(!dropped, "host {}: {:?}", number, again.steps(&situation, HostId(number)));
        }
        prop_assert!(again.saved_s >= first.saved_s * 0.98, "{} after {}", again.saved_s, first.saved_s);
    }
}

#[test]
fn who_is_asked_for_most_is_served_best() {
    let mut situation = Situation {
        snapshots: vec![snapshot(10, 8, &[0.9]), snapshot(10, 8, &[0.5]), snapshot(10, 8, &[])],
        hosts: vec![host(10, 10), host(10, 10), host(10, 10)],
    };
    let made = plan(&situation);
    let copies =
        |id| made.staged.iter().filter_map(move |staged| staged.get(&SnapshotId(id)).copied()).collect::<Vec<_>>();
    assert_eq!((copies(0), copies(1), copies(2)), (vec![Tier::Memory], vec![Tier::Memory], vec![]));
    // The second becomes a little likelier than the first: nothing moves. Much likelier, and with room for one: it does.
    situation.hosts = vec![Host { staged: [(SnapshotId(0), Tier::Disk)].into(), ..host(0, 10) }];
    situation.snapshots[1].at_least = [(0, vec![0.99])].into();
    assert!(plan(&situation).staged[0].contains_key(&SnapshotId(0)));
    situation.snapshots[0].at_least = [(0, vec![0.6])].into();
    let made = plan(&situation);
    assert!(made.staged[0].contains_key(&SnapshotId(1)));
    let steps = made.steps(&situation, HostId(0));
    assert_eq!((steps.fetch.len(), steps.release.len(), made.fetch_bytes), (1, 1, 10));
}

/// A host with eight GPUs serves eight replicas of one from a single copy.
#[test]
fn one_copy_serves_a_whole_host() {
    let situation = Situation { snapshots: vec![snapshot(10, 1, &[0.9; 8])], hosts: vec![host(0, 100), host(0, 100)] };
    assert_eq!(plan(&situation).staged.iter().filter(|staged| !staged.is_empty()).count(), 1);
    let situation = Situation { snapshots: vec![snapshot(10, 1, &[0.9; 9])], ..situation };
    assert_eq!(plan(&situation).staged.iter().filter(|staged| !staged.is_empty()).count(), 2);
}

/// What saves too little is not fetched, and stays where it is there.
#[test]
fn the_network_is_not_for_nothing() {
    let dear = |least_gain_s| Snapshot { least_gain_s, ..snapshot(10, 8, &[0.5, 0.1]) };
    for (least_gain_s, copies) in [(0.0, 2), (5.4, 2), (5.6, 1), (27.4, 1), (27.6, 0)] {
        let mut situation = Situation { snapshots: vec![dear(least_gain_s)], hosts: vec![host(0, 100); 3] };
        let made = plan(&situation).staged.iter().filter(|host| !host.is_empty()).count();
        assert_eq!(made, copies, "{least_gain_s}: 55 s are saved with probabilities of 0.5 and 0.1");
        situation.hosts[2].staged.insert(SnapshotId(0), Tier::Disk);
        assert!(plan(&situation).staged[2].contains_key(&SnapshotId(0)));
    }
}
