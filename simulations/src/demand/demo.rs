//! Demand of the demo: made here from a seed, in the shape of real services (a day's rhythm, weekends, bursts).

use fleet::rng::Rng;

use super::{Series, Unit};

/// Two weeks of three services in steps of five minutes, in replicas.
#[must_use]
pub fn series(seed: u64) -> Series {
    const STEP_S: u32 = 300;
    const STEPS: usize = 14 * 288;
    let mut rng = Rng::new(seed);
    // (name, level, rhythm, burst chance a step, burst size)
    let services = [
        ("chat-70b", 22.0, 0.55, 0.002, 1.2),
        ("code-8b", 30.0, 0.7, 0.004, 0.6),
        ("batch-embed", 8.0, 0.2, 0.006, 2.0),
    ];
    let mut values = Vec::new();
    for (_, level, rhythm, chance, size) in services {
        let (mut noise, mut burst) = (0.0, 0.0);
        let mut row = Vec::with_capacity(STEPS);
        for step in 0..STEPS {
            let hour = (step % 288) as f64 / 12.0;
            let day = 1.0 + rhythm * ((hour - 9.0) / 24.0 * std::f64::consts::TAU).sin();
            let weekend = if step / 288 % 7 >= 5 { 0.7 } else { 1.0 };
            noise = 0.9 * noise + 0.05 * rng.normal();
            burst *= 0.85;
            if rng.unit() < chance {
                burst += size * rng.between(0.5, 1.0);
            }
            row.push((level * day * weekend * (noise + burst).exp()).round().max(0.0));
        }
        values.push(row);
    }
    let classes = services.iter().map(|s| s.0.to_owned()).collect();
    Series { step_s: STEP_S, classes, values, unit: Unit::Replicas, notes: Vec::new() }
}
