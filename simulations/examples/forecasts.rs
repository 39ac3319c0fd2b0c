//! How good forecasts are at the lead time: pinball loss of the weighed methods against one method chosen each hour at half the
//! horizon of a plan, for each class of each scenario on its tuning and test days. Arguments: scenario files.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::path::{Path, PathBuf};

use planner::forecast::{Past, pinball, weigh};
use simulations::scenario::{self, Part, ScenarioError};

const QUANTILES: [f64; 3] = [0.9, 0.99, 0.995];
/// Half of a plan's horizon, seconds: where methods were chosen.
const MIDDLE_S: u32 = 2250;
/// Steps between two forecasts, about a thousand each.
const FORECASTS: usize = 1000;

/// A class of a scenario.
struct Series {
    name: String,
    claims: Vec<f64>,
    season: usize,
    lead: usize,
    middle: usize,
    hour: usize,
    days: std::ops::Range<usize>,
}

fn series(path: &Path, data: Option<&Path>) -> Result<Vec<Series>, ScenarioError> {
    let (spec, _) = scenario::read(path)?;
    let ready = scenario::prepare(&spec, path.parent().unwrap_or(Path::new(".")), data)?;
    let (demand, step_s) = ready.demand();
    let setup = ready.setup(Part::Test, spec.seeds[0])?;
    let median = |lead: &planner::input::LeadTime| lead.by_s(0.5);
    let lead_s = setup.priors.iter().map(median).fold(f64::INFINITY, f64::min);
    let day = |days: f64| (days * 86_400.0 / f64::from(step_s)) as usize;
    let window = spec.window;
    let from = window.from_day + window.history_days;
    let of = |(k, claims): (usize, &Vec<f64>)| Series {
        name: format!("{} {}", spec.name, spec.class[k].name),
        claims: claims.clone(),
        season: (spec.demand.season_s / step_s).max(1) as usize,
        lead: (lead_s / f64::from(step_s)).ceil().max(1.0) as usize,
        middle: (MIDDLE_S / step_s).max(1) as usize,
        hour: (3600 / step_s).max(1) as usize,
        days: day(from)..day(from + window.tune_days + window.test_days).min(claims.len()),
    };
    Ok(demand.iter().enumerate().map(of).collect())
}

/// Mean pinball loss at each quantile.
fn losses(of: &Series, mut forecast: impl FnMut(&[f64]) -> Option<[f64; 3]>) -> [f64; 3] {
    let (mut sum, mut count) = ([0.0; 3], 0.0);
    let stride = (of.days.len() / FORECASTS).max(1);
    for origin in of.days.clone().step_by(stride) {
        let Some(actual) = of.claims.get(origin + of.lead) else { continue };
        let Some(said) = forecast(&of.claims[..=origin]) else { continue };
        count += 1.0;
        sum.iter_mut().zip(said).zip(QUANTILES).for_each(|((sum, said), q)| *sum += pinball(q, said, *actual));
    }
    sum.map(|s| s / f64::max(count, 1.0))
}

fn weighed(of: &Series) -> [f64; 3] {
    let mut mix = None;
    losses(of, |history| {
        let past = Past::of(history, of.season);
        if mix.is_none() || history.len() % of.hour == 0 {
            mix = Some(weigh(&past, of.lead, &[0.9, 0.99]));
        }
        let fitted = past.fit_or_last(mix.as_ref()?, of.lead)?;
        Some(QUANTILES.map(|q| fitted.quantile(q)))
    })
}

/// The rival: the last value, the season's, both, or a regression on them, whichever was best at half the horizon on the last
/// season, with its plain residuals of three seasons.
mod rival {
    use super::{QUANTILES, Series, losses, pinball};

    const METHODS: usize = 4;

    fn roots(history: &[f64]) -> Vec<f64> {
        history.iter().map(|v| v.max(0.0).sqrt()).collect()
    }

    fn features(root: &[f64], i: usize, horizon: usize, lag: usize) -> [f64; 4] {
        [1.0, root[i], root[i + horizon - lag], root[i - lag]]
    }

    /// Normal equations of four features, by Gauss-Jordan.
    fn regression(rows: impl Iterator<Item = ([f64; 4], f64)>) -> [f64; 4] {
        let mut a = [[0.0; 5]; 4];
        for (x, y) in rows {
            for i in 0..4 {
                (0..4).for_each(|j| a[i][j] += x[i] * x[j]);
                a[i][4] += x[i] * y;
            }
        }
        (0..4).for_each(|i| a[i][i] += 1e-6 * (1.0 + a[i][i]));
        for i in 0..4 {
            for j in (0..4).filter(|j| *j != i) {
                let (factor, row) = (a[j][i] / a[i][i], a[i]);
                a[j].iter_mut().zip(row).for_each(|(v, u)| *v -= factor * u);
            }
        }
        [0, 1, 2, 3].map(|i| a[i][4] / a[i][i])
    }

    fn quantiles(history: &[f64], season: usize, method: usize, horizon: usize, asked: [f64; 3]) -> Option<[f64; 3]> {
        let (root, lag) = (roots(history), season * horizon.div_ceil(season));
        let n = root.len();
        let first = lag.max((n - horizon.min(n)).saturating_sub((3 * season).max(1200)));
        if n <= first + horizon + 8 {
            return None;
        }
        let stride = (n - horizon - first).div_ceil(1200);
        let origins = || (first..n - horizon).step_by(stride);
        let weights = match method {
            0 => [0.0, 0.0, 1.0, 0.0],
            1 => [0.0, 1.0, 0.0, 0.0],
            2 => [0.0, 1.0, 1.0, -1.0],
            _ => regression(origins().map(|i| (features(&root, i, horizon, lag), root[i + horizon]))),
        };
        let point =
            |i: usize| features(&root, i, horizon, lag).iter().zip(weights).map(|(x, w)| x * w).sum::<f64>().max(0.0);
        let mut residuals: Vec<f64> = origins().map(|i| root[i + horizon] - point(i)).collect();
        residuals.sort_by(f64::total_cmp);
        let count = residuals.len();
        let place = |q: f64| ((q * (count as f64 + 1.0)).ceil() as usize).clamp(1, count) - 1;
        Some(asked.map(|q| (point(n - 1) + residuals[place(q)]).max(0.0).powi(2)))
    }

    fn choose(history: &[f64], of: &Series) -> usize {
        const ASKED: [f64; 3] = [0.5, 0.9, 0.99];
        let from = history.len().saturating_sub(of.season + of.middle);
        let loss = |method: usize| {
            let mut sum = 0.0;
            for origin in (from..history.len() - of.middle).step_by((of.season / 24).max(1)) {
                match quantiles(&history[..=origin], of.season, method, of.middle, ASKED) {
                    Some(said) => {
                        let actual = history[origin + of.middle];
                        sum += said.iter().zip(ASKED).map(|(said, q)| pinball(q, *said, actual)).sum::<f64>();
                    }
                    None => return f64::INFINITY,
                }
            }
            sum
        };
        (0..METHODS).min_by(|a, b| loss(*a).total_cmp(&loss(*b))).unwrap_or(1)
    }

    pub(super) fn chosen(of: &Series) -> [f64; 3] {
        let mut method = None;
        losses(of, |history| {
            if method.is_none() || history.len() % of.hour == 0 {
                method = Some(choose(history, of));
            }
            quantiles(history, of.season, method?, of.lead, QUANTILES)
        })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let data = std::env::var_os("PILOTLIGHT_DATA").map(PathBuf::from);
    println!("{:<32} {:>6} {:>8} {:>26}", "class", "lead", "pinball", "weighed / chosen at 90, 99, 99.5 %");
    let (mut better, mut worse, mut all) = (0, 0, 0);
    for arg in std::env::args().skip(1) {
        let found = match series(Path::new(&arg), data.as_deref()) {
            Err(error @ ScenarioError::NoData(_)) => {
                println!("{error}");
                continue;
            }
            found => found?,
        };
        for of in &found {
            let (now, before) = (weighed(of), rival::chosen(of));
            let ratios: Vec<f64> = now.iter().zip(before).map(|(now, before)| now / before.max(1e-9)).collect();
            all += ratios.len();
            better += ratios.iter().filter(|r| **r < 1.0).count();
            worse += ratios.iter().filter(|r| **r > 1.05).count();
            let ratios: Vec<String> = ratios.iter().map(|r| format!("{r:.3}")).collect();
            println!("{:<32} {:>6} {:>8.3} {:>26}", of.name, of.lead, now.iter().sum::<f64>(), ratios.join(" "));
        }
    }
    println!("{better} of {all} better, {worse} more than 5 % worse");
    Ok(())
}
