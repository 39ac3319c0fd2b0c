//! Breakers: faults that come together are a cause's; faults that come one by one are nodes'.

use std::collections::BTreeMap;

use fleet::{Cause, Cell};
use health::breaker::{Breakers, Canary, Episode, Rules, Seen, Size, State, step};

const MIN_MS: i64 = 60_000;

fn episode(at_min: i64, node: u64, causes: &[&str]) -> Episode {
    Episode {
        at_ms: at_min * MIN_MS,
        node,
        cell: "lab/r/h8".into(),
        causes: causes.iter().map(|c| (*c).into()).collect(),
        repair: false,
    }
}

/// What a look says of a cell with so many nodes, at the hazard of the literature: 3e-4 a GPU-day, eight GPUs.
fn look(before: &Breakers, episodes: &[Episode], nodes: u32, canary: Option<(u64, Canary)>, at_min: i64) -> Breakers {
    let cell = Size { nodes, faults_per_node_h: 8.0 * 3e-4 / 24.0 };
    let cells = BTreeMap::from([(Cell::from("lab/r/h8"), cell)]);
    let out: Vec<_> = episodes.iter().map(|e| (e.node, e.cell.clone(), e.causes.clone())).collect();
    let canaries = canary.into_iter().collect();
    let seen = Seen { episodes, cells: &cells, out: &out, canaries: &canaries };
    step(before, &seen, &Rules::default(), at_min * MIN_MS)
}

fn key(cause: &str) -> (Cell, Cause) {
    ("lab/r/h8".into(), cause.into())
}

#[test]
fn three_of_forty_within_a_quarter_of_an_hour_are_a_common_cause() {
    let three = [1, 2, 3].map(|n| episode(n, n as u64, &["xid:119", "driver:580"]));
    let open = look(&Breakers::new(), &three, 40, None, 5);
    assert_eq!(open.len(), 2, "the Xid, and the driver that they have in common: {open:?}");
    assert!(look(&Breakers::new(), &three[..1], 40, None, 5).is_empty(), "one is a node's");
    let spread = [0, 40, 80].map(|at| episode(at, at as u64, &["xid:119"]));
    assert!(look(&Breakers::new(), &spread, 40, None, 81).is_empty(), "one after the other");
    let same = [1, 2, 3].map(|at| episode(at, 7, &["xid:119"]));
    assert!(look(&Breakers::new(), &same, 40, None, 5).is_empty(), "one node three times is one node");
    let different = [1, 2, 3].map(|n| episode(n, n as u64, &[["xid:48", "xid:79", "xid:63"][n as usize - 1]]));
    assert!(look(&Breakers::new(), &different, 40, None, 5).is_empty());
}

#[test]
fn what_chance_would_bring_in_a_large_cell_opens_nothing() {
    // 2,000 nodes have 0.05 faults in a quarter of an hour.
    let two = [1, 2].map(|n| episode(n, n as u64, &["xid:79"]));
    assert!(look(&Breakers::new(), &two, 2000, None, 5).is_empty(), "1.2e-3");
    let three = [1, 2, 3].map(|n| episode(n, n as u64, &["xid:79"]));
    assert_eq!(look(&Breakers::new(), &three, 2000, None, 5).len(), 1, "2e-5, though they are 0.15 % of the cell");
}

#[test]
fn a_canary_closes_it_and_another_fault_opens_it_again() {
    let mut episodes = [1, 2, 3].map(|n| episode(n, n as u64, &["xid:119"])).to_vec();
    let open = look(&Breakers::new(), &episodes, 40, None, 5);
    assert_eq!(look(&open, &episodes, 40, None, 34), open, "half an hour is waited");
    let half = look(&open, &episodes, 40, None, 35);
    let tries = |canary: u64, at_min: i64| State::HalfOpen { since_ms: at_min * MIN_MS, canary, ended_ms: None };
    assert_eq!(half[&key("xid:119")], tries(1, 35));
    assert!(look(&half, &episodes, 40, Some((1, Canary::Well)), 40).is_empty(), "it helped");
    assert_eq!(look(&half, &episodes, 40, Some((1, Canary::Out)), 40), half, "not yet known");
    let again = look(&half, &episodes, 40, Some((1, Canary::Out)), 66);
    assert_eq!(again[&key("xid:119")], State::Open { since_ms: 66 * MIN_MS, tried: Some(1) }, "it did not help");
    assert_eq!(look(&again, &episodes, 40, None, 96)[&key("xid:119")], tries(2, 96), "another is next");
    let ended = look(&half, &episodes, 40, None, 50);
    assert_eq!(look(&ended, &episodes, 40, None, 64), ended, "replaced: whether the new one is well shows with time");
    assert!(look(&ended, &episodes, 40, None, 65).is_empty());
    episodes.push(Episode { repair: true, ..episode(36, 1, &["xid:119"]) });
    assert_eq!(look(&half, &episodes, 40, Some((1, Canary::Out)), 37), half, "that it is repaired is no fault");
    episodes.push(episode(38, 1, &["xid:119"]));
    let failed = look(&half, &episodes, 40, Some((1, Canary::Out)), 39);
    assert_eq!(
        failed[&key("xid:119")],
        State::Open { since_ms: 39 * MIN_MS, tried: Some(1) },
        "that it fails again is"
    );
    episodes.truncate(3);
    episodes.push(episode(41, 9, &["xid:119"]));
    let worse = look(&half, &episodes, 40, Some((1, Canary::Well)), 42);
    assert_eq!(worse[&key("xid:119")], State::Open { since_ms: 42 * MIN_MS, tried: Some(1) }, "it goes on elsewhere");
}

#[test]
fn without_anybody_out_there_is_nothing_to_hold_back() {
    let open = Breakers::from([(key("xid:119"), State::Open { since_ms: 0, tried: None })]);
    assert!(look(&open, &[], 40, None, 31).is_empty());
}

/// A year of faults that come by chance, at ten times the usual rate: a breaker that opens holds repairs for nothing.
#[test]
fn chance_rarely_opens_one() {
    let mut state = 7_u64;
    let mut unit = || {
        // SplitMix64 (Steele, Lea & Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    };
    let (nodes, per_node_h) = (200_u32, 8.0 * 3e-3 / 24.0);
    let cells = BTreeMap::from([(Cell::from("lab/r/h8"), Size { nodes, faults_per_node_h: per_node_h })]);
    let (mut episodes, mut opened): (Vec<Episode>, u32) = (Vec::new(), 0);
    for minute in 0..365 * 24 * 60 {
        if unit() < per_node_h * f64::from(nodes) / 60.0 {
            episodes.push(episode(minute, (unit() * f64::from(nodes)) as u64, &["driver:580"]));
            let from = episodes.partition_point(|e| e.at_ms < (minute - 15) * MIN_MS);
            let (out, canaries) = (Vec::new(), BTreeMap::new());
            let seen = Seen { episodes: &episodes[from..], cells: &cells, out: &out, canaries: &canaries };
            opened += u32::from(!step(&Breakers::new(), &seen, &Rules::default(), minute * MIN_MS).is_empty());
        }
    }
    assert!(opened <= 5, "{opened} times in a year, {} faults", episodes.len());
}
