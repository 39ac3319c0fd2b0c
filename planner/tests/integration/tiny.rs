//! Random small problems with every kind of constraint.

use fleet::rng::Rng;
use fleet::{AcceptedGpu, Class, GpuModel, Interconnect, Market, Offer, OfferKey, PriceCap, UsdMicros};
use planner::input::{
    Commitment, DomainLevel, LeadTime, NodeGroup, OfferState, PlanInput, Policy, Quota, Scenario, Spread, SpreadBy,
    Survive,
};

const MODELS: [&str; 2] = ["H100", "L40S"];

pub fn usd(value: f64) -> UsdMicros {
    UsdMicros::from_usd(value).expect("finite")
}

pub fn offer(index: usize, zone: usize, model: &str, gpus: u32, price: f64, spot: bool) -> OfferState {
    let gpu: GpuModel = model.parse().expect("known");
    OfferState {
        offer: Offer {
            key: OfferKey {
                provider: "sim".into(),
                region: format!("r{}", zone / 2),
                zone: format!("z{zone}"),
                instance_type: format!("t{index}"),
                market: if spot { Market::Spot } else { Market::OnDemand },
            },
            gpu,
            gpus_per_node: gpus,
            interconnect: gpu.interconnect(),
            price_usd_micros_per_h: usd(price),
            price_day: None,
            interruption_per_h: 0.0,
        },
        launch_limit_nodes: 3.0,
        fill: 1.0,
        lead_time: LeadTime::fixed(60.0),
        hazard_per_h: 0.0,
        launch_cost_usd_micros: usd(price * 0.02),
        restage_usd_micros: usd(0.0),
        min_hold_s: 0,
        nodes: vec![],
        arriving_nodes: vec![],
        planned_nodes: vec![],
        expected_nodes: vec![],
        usable_share: 1.0,
        fault_cost_usd_micros_per_h: UsdMicros::ZERO,
        spare_s: vec![],
    }
}

pub fn class(index: usize, models: &[&str], gpus_per_claim: u32) -> Class {
    Class {
        name: format!("k{index}"),
        gpus: models.iter().map(|m| AcceptedGpu { model: m.parse().expect("known"), cap: None }).collect(),
        gpus_per_claim,
        multi_node: false,
        max_node_gpus: None,
        min_memory_gib: 0,
        min_interconnect: Interconnect::Pcie,
        regions: vec![],
        markets: vec![],
        hit_rate_target: 0.9,
        miss_cost_usd_micros: usd(2.0),
        borrows_usd_micros_per_gpu_h: None,
    }
}

/// At most 3 offers, 2 classes, 3 periods, 3 paths; every kind of limit appears with some chance.
pub fn problem(seed: u64) -> PlanInput {
    let mut rng = Rng::new(seed);
    let chance = |rng: &mut Rng, p: f64| rng.unit() < p;
    let periods = 1 + rng.below(3);
    let mut offers = Vec::new();
    for i in 0..1 + rng.below(3) {
        let model = MODELS[rng.below(2)];
        let gpus = [1, 2, 4, 8][rng.below(4)];
        let price = rng.between(0.5, 4.0) * f64::from(gpus);
        let spot = chance(&mut rng, 0.3);
        let mut state = offer(i, rng.below(3), model, gpus, price, spot);
        state.launch_limit_nodes = rng.below(4) as f64;
        state.fill = if chance(&mut rng, 0.5) { 1.0 } else { rng.between(0.3, 1.0) };
        state.hazard_per_h = if spot { rng.between(0.0, 2.0) } else { 0.0 };
        state.min_hold_s = [0, 0, 100, 700][rng.below(4)];
        if chance(&mut rng, 0.5) {
            state.lead_time = LeadTime { cdf: vec![(0.0, 0.0), (rng.between(50.0, 900.0), 1.0)] };
        }
        if chance(&mut rng, 0.5) {
            let nodes = 1 + rng.below(3) as u32;
            let kept_nodes = if chance(&mut rng, 0.3) { vec![1.0; periods] } else { vec![] };
            state.nodes.push(NodeGroup { nodes, claims: vec![], kept_nodes });
        }
        if chance(&mut rng, 0.2) {
            state.arriving_nodes = vec![0.0, 1.0][..periods.min(2)].to_vec();
        }
        if chance(&mut rng, 0.3) {
            state.planned_nodes = vec![1.0];
        }
        offers.push(state);
    }
    // Of its own, so that the other numbers stay what they were.
    let mut health = Rng::new(seed ^ 0xdead);
    for state in &mut offers {
        if health.unit() < 0.4 {
            state.usable_share = health.between(0.3, 1.0);
            state.fault_cost_usd_micros_per_h = usd(health.between(0.0, 2.0));
        }
    }
    let classes: Vec<Class> = (0..1 + rng.below(2))
        .map(|k| {
            let models = if chance(&mut rng, 0.5) { &MODELS[..] } else { &MODELS[k..=k] };
            let mut class = class(k, models, [1, 1, 2, 3][rng.below(4)]);
            class.hit_rate_target = [0.0, 0.8, 0.95][rng.below(3)];
            class.miss_cost_usd_micros = usd(rng.between(0.1, 5.0));
            if chance(&mut rng, 0.3) {
                class.gpus.last_mut().expect("one").cap = Some(PriceCap::Premium(1.0));
            }
            if health.unit() < 0.2 {
                class.borrows_usd_micros_per_gpu_h = Some(usd(health.between(0.1, 3.0)));
            }
            class
        })
        .collect();
    let partly = chance(&mut rng, 0.3) && offers[0].offer.gpus_per_node >= classes[0].gpus_per_claim;
    if partly && classes[0].gpus.iter().any(|g| g.model == offers[0].offer.gpu) {
        offers[0].nodes.push(NodeGroup { nodes: 1, claims: vec![(0, 1)], kept_nodes: vec![1.0] });
    }
    let paths = 1 + rng.below(3);
    let table = |rng: &mut Rng, most: usize| -> Vec<Vec<f64>> {
        (0..periods).map(|_| (0..classes.len()).map(|_| rng.below(most) as f64).collect()).collect()
    };
    let scenarios: Vec<Scenario> = (0..paths)
        .map(|_| Scenario { weight: 1.0 / paths as f64, claims: table(&mut rng, 9), new_claims: table(&mut rng, 5) })
        .collect();
    let members = |rng: &mut Rng| (0..offers.len()).filter(|_| rng.unit() < 0.7).map(|p| (p, 1.0)).collect();
    let mut quotas = Vec::new();
    if chance(&mut rng, 0.5) {
        quotas.push(Quota { name: "q".into(), members: members(&mut rng), limit: rng.below(6) as f64 });
    }
    let mut commitments = Vec::new();
    if chance(&mut rng, 0.3) {
        commitments.push(Commitment { name: "c".into(), offers: vec![0], nodes: vec![rng.below(3) as f64; periods] });
    }
    let spread = Spread { class: 0, by: [SpreadBy::Zone, SpreadBy::Spot][rng.below(2)], max_share: 0.6 };
    let policy = Policy {
        churn: [0.0, 0.2][rng.below(2)],
        hold: [0.0, 1.0][rng.below(2)],
        budget_usd_micros_per_h: chance(&mut rng, 0.3).then(|| usd(rng.between(1.0, 30.0))),
        launch_rate_nodes_per_min: chance(&mut rng, 0.2).then_some(0.4),
        spread: if chance(&mut rng, 0.3) { vec![spread] } else { vec![] },
        survive: chance(&mut rng, 0.3).then_some(Survive { level: DomainLevel::Zone, share: 0.5 }),
    };
    let period_s = (0..periods).map(|_| [60, 300, 600][rng.below(3)]).collect();
    let miss_prices = vec![];
    PlanInput { epoch: seed + 1, period_s, offers, classes, miss_prices, scenarios, quotas, commitments, policy }
}
