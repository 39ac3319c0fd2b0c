//! Benchmark: the staging plan of 2,000 hosts and 500 snapshots, from nothing and again when demand has moved, beside an upper
//! bound: the linear program over all hosts that are alike together, with parts of copies.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a benchmark prints and reads the clock")]

use std::collections::BTreeMap;
use std::time::Instant;

use fleet::rng::Rng;
use good_lp::{Expression, ProblemVariables, Solution, SolverModel, variable};
use snapshots::staging::{Host, HostId, Plan, Situation, Snapshot, Tier, plan};

const HOSTS: usize = 2_000;
const SNAPSHOTS: usize = 500;
const ZONES: usize = 4;
const CLASSES: usize = 3;
const GIB: f64 = (1_u64 << 30) as f64;

/// Few snapshots are asked for often, most seldom; sizes from 8 to 288 GiB.
fn situation(rng: &mut Rng, memory_gib: f64, disk_gib: f64) -> Situation {
    let hosts = (0..HOSTS).map(|n| Host {
        zone: n % ZONES,
        class: n / ZONES % CLASSES,
        gpus: 8,
        memory_bytes: (memory_gib * GIB) as u64,
        disk_bytes: (disk_gib * GIB) as u64,
        fetch_bytes: u64::MAX >> 1,
        staged: BTreeMap::new(),
    });
    let snapshots = (0..SNAPSHOTS).map(|n| {
        let gib = 8.0 * (1.0 + 35.0 * rng.unit().powi(3));
        let gpus = if gib > 200.0 {
            8
        } else if gib > 100.0 {
            4
        } else if gib > 60.0 {
            2
        } else {
            1
        };
        let mean = 60.0 / (1.0 + n as f64).powf(0.8);
        Snapshot {
            bytes: (gib * GIB) as u64,
            host_classes: [rng.below(CLASSES)].into(),
            gpus,
            memory_s: 1.0 + gib / 45.0,
            disk_s: 1.0 + gib / 6.0,
            cold_s: 30.0 + gib / 1.5,
            least_gain_s: 0.0,
            at_least: (0..ZONES).map(|zone| (zone, at_least(mean * 2.0 * rng.unit()))).collect(),
        }
    });
    Situation { snapshots: snapshots.collect(), hosts: hosts.collect() }
}

/// P(D ≥ k) of a negative binomial with a variance of three times its mean, until it does not matter.
fn at_least(mean: f64) -> Vec<f64> {
    let (p, r) = (1.0 / 3.0_f64, mean / 2.0);
    let (mut mass, mut left, mut k, mut out) = (p.powf(r), 1.0, 0.0, Vec::new());
    while left > 1e-4 && out.len() < 500 {
        left -= mass;
        mass *= (k + r) / (k + 1.0) * (1.0 - p);
        k += 1.0;
        out.push(left.max(0.0));
    }
    out
}

fn bound(situation: &Situation) -> f64 {
    let mut vars = ProblemVariables::new();
    let (mut gain, mut rows) = (Expression::from(0.0), Vec::new());
    let mut room: BTreeMap<(usize, usize), [Expression; 2]> = BTreeMap::new();
    let alike = |zone, class| situation.hosts.iter().filter(move |host| (host.zone, host.class) == (zone, class));
    for snapshot in &situation.snapshots {
        let class = *snapshot.host_classes.first().expect("one");
        for (zone, at_least) in &snapshot.at_least {
            let hosts = alike(*zone, class).count() as f64;
            let gib = snapshot.bytes as f64 / GIB;
            // What is larger than a host's room lies nowhere.
            let fits = |room: u64| if snapshot.bytes <= room { hosts } else { 0.0 };
            let rooms = [fits(situation.hosts[0].disk_bytes), fits(situation.hosts[0].memory_bytes)];
            let copies: Vec<_> = rooms.iter().map(|most| vars.add(variable().min(0.0).max(*most))).collect();
            let slots = f64::from(8 / snapshot.gpus);
            let saved = [snapshot.cold_s - snapshot.disk_s, snapshot.cold_s - snapshot.memory_s];
            let mut served = [Expression::from(0.0), Expression::from(0.0)];
            for probability in at_least {
                let by: Vec<_> = (0..2).map(|_| vars.add(variable().min(0.0).max(1.0))).collect();
                (0..2).for_each(|tier| {
                    gain += probability * saved[tier] * by[tier];
                    served[tier] += by[tier];
                });
                rows.push((by[0] + by[1]).leq(1.0));
            }
            // A copy in memory has one on the disk, and serves from memory alone.
            let [disk, memory] = served;
            rows.push((disk - slots * (copies[0] - copies[1])).leq(0.0));
            rows.push((memory - slots * copies[1]).leq(0.0));
            rows.push((copies[1] - copies[0]).leq(0.0));
            let rooms = room.entry((*zone, class)).or_default();
            (0..2).for_each(|tier| rooms[tier] += gib * copies[tier]);
        }
    }
    let mut model = vars.maximise(gain.clone()).using(good_lp::highs);
    for ((zone, class), [disk, memory]) in room {
        let total = |of: fn(&Host) -> u64| alike(zone, class).map(|host| of(host) as f64 / GIB).sum::<f64>();
        rows.push(disk.leq(total(|host| host.disk_bytes)));
        rows.push(memory.leq(total(|host| host.memory_bytes)));
    }
    for row in rows {
        model.add_constraint(row);
    }
    model.solve().expect("solved").eval(gain)
}

fn show(what: &str, situation: &Situation) -> Plan {
    let mut times: Vec<f64> = Vec::new();
    let mut made = Plan::default();
    for _ in 0..9 {
        let start = Instant::now();
        made = plan(situation);
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let bound = bound(situation);
    let copies = |tier| made.staged.iter().flat_map(BTreeMap::values).filter(|t| **t == tier).count();
    println!(
        "{what:44} {:6.1} ms (worst of nine {:6.1}); {:.1} % below the bound; {} copies on disks, {} in memory; {:.0} TiB to fetch",
        times[4],
        times[8],
        100.0 * (1.0 - made.saved_s / bound),
        copies(Tier::Disk) + copies(Tier::Memory),
        copies(Tier::Memory),
        made.fetch_bytes as f64 / GIB / 1024.0
    );
    made
}

fn main() {
    for (memory_gib, disk_gib) in [(256.0, 512.0), (512.0, 1024.0), (512.0, 2048.0), (1024.0, 4096.0)] {
        let mut rng = Rng::new(5);
        let mut now = situation(&mut rng, memory_gib, disk_gib);
        let rooms = format!("{memory_gib:.0} GiB of memory, {disk_gib:.0} of disk");
        let made = show(&format!("{rooms}, from nothing"), &now);
        now.hosts.iter_mut().zip(made.staged).for_each(|(host, staged)| host.staged = staged);
        let again = show(&format!("{rooms}, again"), &now);
        let kept = (0..HOSTS).all(|host| again.steps(&now, HostId(host)).fetch.is_empty());
        assert!(kept, "what was best stays");
        for snapshot in &mut now.snapshots {
            snapshot.at_least.values_mut().for_each(|all| *all = at_least(all.iter().sum::<f64>() * 2.0 * rng.unit()));
        }
        show(&format!("{rooms}, demand has moved"), &now);
    }
}
