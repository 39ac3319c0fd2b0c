//! Generated planning problems for tests and benchmarks: the same seed gives the same problem.

use fleet::rng::Rng;
use fleet::{AcceptedGpu, Class, GpuModel, Interconnect, Market, Offer, OfferKey, PriceCap, UsdMicros};

use crate::gather;
use crate::input::{LeadTime, NodeGroup, OfferState, PlanInput, Policy, Quota, Scenario};
use crate::plan::Plan;

/// Size of a generated catalogue problem.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Offers.
    pub offers: usize,
    /// Classes.
    pub classes: usize,
    /// Demand paths.
    pub scenarios: usize,
    /// Periods.
    pub periods: usize,
}

const MODELS: &[(&str, f64)] = &[
    ("H100-SXM", 3.0),
    ("H200", 3.7),
    ("A100-80GB-SXM", 1.8),
    ("A100-40GB-SXM", 1.5),
    ("L40S", 1.1),
    ("L4", 0.6),
    ("A10G", 0.9),
    ("B200", 5.5),
    ("H100-PCIe", 2.4),
    ("T4", 0.4),
    ("MI300X", 2.6),
    ("RTX-PRO-6000", 1.6),
];
const PROVIDERS: &[(&str, usize)] =
    &[("alpha", 14), ("beta", 12), ("gamma", 14), ("delta", 3), ("epsilon", 4), ("zeta", 3)];
const AREAS: &[&str] = &["us-east", "us-west", "us-central", "eu-west", "eu-north", "ap-south", "ap-east"];

/// A catalogue of offers over six clouds and classes that accept them by GPU model, region and market, in the
/// proportions of real catalogues: most offers are single-GPU or 8-GPU nodes, a third are spot.
#[must_use]
pub fn catalogue(size: Size, seed: u64) -> PlanInput {
    let mut rng = Rng::new(seed);
    let offers = offers(&mut rng, size, MODELS);
    let classes = (0..size.classes).map(|k| class(&mut rng, k)).collect();
    problem(rng, size, offers, classes)
}

/// GPU models of a fleet.
const FLEET_MODELS: usize = 6;

/// Many services on a few GPU models: classes take one model, or a second at a premium, in claims of a few sizes; what sets
/// them apart is their demand and what a miss costs them.
#[must_use]
pub fn fleet(size: Size, seed: u64) -> PlanInput {
    let mut rng = Rng::new(seed);
    let offers = offers(&mut rng, size, &MODELS[..FLEET_MODELS]);
    let service = |rng: &mut Rng, k: usize| {
        let first = rng.below(FLEET_MODELS);
        let model = |i: usize| MODELS[i % FLEET_MODELS].0.parse().expect("a name of the table");
        let mut gpus = vec![AcceptedGpu { model: model(first), cap: None }];
        if rng.unit() < 0.4 {
            gpus.push(AcceptedGpu { model: model(first + 1), cap: Some(PriceCap::Premium(0.3)) });
        }
        let regions =
            if rng.unit() < 0.3 { PROVIDERS.iter().map(|(p, _)| format!("{p}/us-*")).collect() } else { vec![] };
        Class {
            gpus,
            gpus_per_claim: [1, 1, 1, 2, 4, 8][rng.below(6)],
            regions,
            markets: if rng.unit() < 0.7 { vec![Market::OnDemand] } else { vec![] },
            ..class(rng, k)
        }
    };
    let classes = (0..size.classes).map(|k| service(&mut rng, k)).collect();
    problem(rng, size, offers, classes)
}

/// The input a minute after `plan` was made for `input` and done: nodes are under way or gone, demand has moved a little.
#[must_use]
pub fn next_minute(input: &PlanInput, plan: &Plan, seed: u64) -> PlanInput {
    const MINUTE_S: f64 = 60.0;
    let mut rng = Rng::new(seed);
    let mut next = PlanInput { epoch: input.epoch + 1, ..input.clone() };
    let starts = crate::input::starts(&input.period_s);
    for state in &mut next.offers {
        let key = &state.offer.key;
        let target = plan.targets.iter().find(|t| t.offer == *key);
        state.planned_nodes = target.map_or(vec![], |t| gather::shifted(&t.launches, MINUTE_S, &input.period_s));
        state.expected_nodes = target.map_or(vec![], |t| gather::later(&t.nodes, MINUTE_S, &input.period_s));
        let gone = plan.releases.iter().find(|r| r.offer == *key).map_or(0, |r| r.nodes);
        state.nodes.iter_mut().for_each(|group| group.nodes = group.nodes.saturating_sub(gone));
        let launched = plan.launches.iter().find(|l| l.offer == *key).map_or(0, |l| l.nodes);
        let shares = gather::arrivals(&state.lead_time, MINUTE_S, &starts);
        state.arriving_nodes = shares.iter().map(|share| f64::from(launched) * state.fill * share).collect();
    }
    let moved: Vec<f64> = input.classes.iter().map(|_| (0.03 * rng.normal()).exp()).collect();
    for scenario in &mut next.scenarios {
        for row in scenario.claims.iter_mut().chain(&mut scenario.new_claims) {
            row.iter_mut().zip(&moved).for_each(|(claims, by)| *claims *= by);
        }
    }
    next
}

fn offers(rng: &mut Rng, size: Size, models: &[(&str, f64)]) -> Vec<OfferState> {
    let mut offers = Vec::with_capacity(size.offers);
    let mut seen = std::collections::BTreeSet::new();
    while offers.len() < size.offers {
        let state = offer(rng, models);
        if seen.insert(state.offer.key.clone()) {
            offers.push(state);
        }
    }
    offers
}

fn problem(mut rng: Rng, size: Size, mut offers: Vec<OfferState>, classes: Vec<Class>) -> PlanInput {
    let ladder = [60, 60, 60, 60, 60, 60, 300, 300, 300, 300, 300, 300, 900, 900, 900, 900];
    let period_s: Vec<u32> = (0..size.periods).map(|t| if size.periods == 1 { 600 } else { ladder[t % 16] }).collect();
    let scenarios = paths(&mut rng, size, &classes);
    place_nodes(&mut rng, &mut offers, &classes, &scenarios[0]);
    let mut quotas = Vec::new();
    for (provider, _) in PROVIDERS {
        for (model, _) in MODELS.iter().take(4) {
            let member = |o: &OfferState| o.offer.key.provider == *provider && o.offer.gpu.name() == *model;
            let members: Vec<(usize, f64)> = (0..offers.len())
                .filter(|p| member(&offers[*p]))
                .map(|p| (p, f64::from(offers[p].offer.gpus_per_node)))
                .collect();
            let limit = rng.between(60.0, 400.0).round();
            quotas.push(Quota { name: format!("{provider} {model}"), members, limit });
        }
    }
    PlanInput {
        epoch: 1,
        period_s,
        offers,
        classes,
        miss_prices: Vec::new(),
        scenarios,
        quotas,
        commitments: Vec::new(),
        policy: Policy::default(),
    }
}

fn offer(rng: &mut Rng, models: &[(&str, f64)]) -> OfferState {
    let (model, base) = models[rng.below(models.len())];
    let (provider, regions) = PROVIDERS[rng.below(PROVIDERS.len())];
    let gpu: GpuModel = model.parse().expect("a name of the table");
    let region = format!("{}-{}", AREAS[rng.below(regions) % AREAS.len()], 1 + rng.below(regions) / AREAS.len());
    let zone = format!("{region}{}", ["a", "b", "c"][rng.below(3)]);
    let gpus_per_node = [1, 1, 2, 4, 8, 8, 8][rng.below(7)];
    let spot = rng.unit() < 0.35;
    let market = if spot { Market::Spot } else { Market::OnDemand };
    let gpu_price = base * rng.between(0.7, 1.9) * if spot { rng.between(0.3, 0.7) } else { 1.0 };
    let price = gpu_price * f64::from(gpus_per_node);
    let lead_s = rng.between(90.0, 700.0).round();
    let key = OfferKey {
        provider: provider.into(),
        region,
        zone,
        instance_type: format!("{}-{gpus_per_node}x-{}", model.to_lowercase(), rng.below(4)),
        market,
    };
    let interruption_per_h = if spot { rng.between(0.001, 0.05) } else { 0.0 };
    OfferState {
        offer: Offer {
            key,
            gpu,
            gpus_per_node,
            interconnect: gpu.interconnect(),
            price_usd_micros_per_h: UsdMicros::from_usd(price).expect("finite"),
            price_day: None,
            interruption_per_h,
        },
        launch_limit_nodes: [0.0, 1.0, 2.0, 4.0, 8.0, 16.0][rng.below(6)],
        fill: rng.between(0.5, 1.0),
        lead_time: LeadTime { cdf: vec![(0.6 * lead_s, 0.0), (lead_s, 0.7), (2.0 * lead_s, 1.0)] },
        hazard_per_h: interruption_per_h + 0.0005,
        launch_cost_usd_micros: UsdMicros::from_usd(price * lead_s / 3600.0).expect("finite"),
        restage_usd_micros: UsdMicros::ZERO,
        min_hold_s: if provider == "epsilon" { 3600 } else { 60 },
        nodes: vec![],
        arriving_nodes: vec![],
        planned_nodes: vec![],
        expected_nodes: vec![],
        usable_share: 1.0,
        fault_cost_usd_micros_per_h: UsdMicros::ZERO,
        spare_s: vec![],
    }
}

fn class(rng: &mut Rng, k: usize) -> Class {
    let first = rng.below(MODELS.len());
    let more = rng.below(3);
    let mut gpus: Vec<AcceptedGpu> = Vec::new();
    for i in 0..=more {
        let model: GpuModel = MODELS[(first + i) % MODELS.len()].0.parse().expect("a name of the table");
        let cap = (i > 0).then(|| PriceCap::Premium(rng.between(0.2, 3.0)));
        gpus.push(AcceptedGpu { model, cap });
    }
    let area = AREAS[rng.below(AREAS.len())];
    let regions = match rng.below(4) {
        0 => vec![],
        1 => PROVIDERS.iter().map(|(p, _)| format!("{p}/{}*", &area[..3])).collect(),
        2 => PROVIDERS.iter().take(3).map(|(p, _)| format!("{p}/*")).collect(),
        _ => PROVIDERS.iter().map(|(p, _)| format!("{p}/us-*")).collect(),
    };
    Class {
        name: format!("class-{k:02}"),
        gpus,
        gpus_per_claim: [1, 1, 1, 2, 4, 8][rng.below(6)],
        multi_node: false,
        max_node_gpus: None,
        min_memory_gib: 0,
        min_interconnect: Interconnect::Pcie,
        regions,
        markets: if rng.unit() < 0.5 { vec![Market::OnDemand] } else { vec![] },
        hit_rate_target: [0.9, 0.95, 0.99, 0.99][rng.below(4)],
        miss_cost_usd_micros: UsdMicros::from_usd(rng.between(0.5, 8.0)).expect("finite"),
        borrows_usd_micros_per_gpu_h: None,
    }
}

/// A fleet that runs already: for each class, nodes for 60 to 110 % of its present demand, on offers that serve it.
fn place_nodes(rng: &mut Rng, offers: &mut [OfferState], classes: &[Class], now: &Scenario) {
    for (k, class) in classes.iter().enumerate() {
        let mut missing = now.claims[0][k] * f64::from(class.gpus_per_claim) * rng.between(0.6, 1.1);
        let serves = |o: &OfferState| fleet::offer_share(&o.offer, class, None).is_ok();
        let mut able: Vec<usize> = (0..offers.len()).filter(|p| serves(&offers[*p])).collect();
        able.sort_by_key(|p| offers[*p].offer.gpu_price_usd_micros_per_h());
        able.truncate(12);
        while missing > 0.0 && !able.is_empty() {
            let state = &mut offers[able[rng.below(able.len())]];
            missing -= f64::from(state.offer.gpus_per_node);
            match state.nodes.first_mut() {
                Some(group) => group.nodes += 1,
                None => state.nodes.push(NodeGroup { nodes: 1, claims: vec![], kept_nodes: vec![] }),
            }
        }
    }
}

/// Paths with a common and an own random walk for each class.
fn paths(rng: &mut Rng, size: Size, classes: &[Class]) -> Vec<Scenario> {
    let level: Vec<f64> = classes.iter().map(|k| rng.between(5.0, 60.0) / f64::from(k.gpus_per_claim)).collect();
    let mut all: Vec<Scenario> = Vec::with_capacity(size.scenarios);
    for _ in 0..size.scenarios {
        let mut walk: Vec<f64> = vec![0.0; classes.len()];
        let mut common = 0.0;
        let mut scenario = Scenario { weight: 1.0 / size.scenarios as f64, claims: Vec::new(), new_claims: Vec::new() };
        for _ in 0..size.periods {
            common += 0.03 * rng.normal();
            let mut row = Vec::with_capacity(classes.len());
            for (k, w) in walk.iter_mut().enumerate() {
                *w += 0.08 * rng.normal();
                row.push((level[k] * (common + *w).exp()).round());
            }
            scenario.new_claims.push(row.iter().map(|d| d * 0.3).collect());
            scenario.claims.push(row);
        }
        all.push(scenario);
    }
    all
}
