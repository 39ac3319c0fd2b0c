//! From requests to replicas: `replicas = ⌈rate · (tokens_in / P + tokens_out / D) / ρ⌉`, held for a scale-down window.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Gamma};

use super::rates::Rates;
use super::requests::Request;
use super::{Series, Unit};

/// What one replica can do, and how it is scaled: parameters of the scenario, never constants.
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    /// Prompt tokens that one replica reads in a second (P).
    pub prefill_tokens_per_s: f64,
    /// Tokens that one replica generates in a second (D).
    pub decode_tokens_per_s: f64,
    /// Share of a replica's throughput that is used before another one is started (ρ), in (0, 1].
    pub target_utilisation: f64,
    /// A replica stays so long after it was last needed, seconds.
    pub scale_down_s: u32,
    /// Step of the result, seconds; at most the trace's own step.
    pub step_s: u32,
    /// Prompt tokens of a request where the trace has none.
    pub input_tokens: f64,
    /// Answer tokens of a request where the trace has none.
    pub output_tokens: f64,
    /// Seed of the arrivals below the trace's step.
    pub seed: u64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            prefill_tokens_per_s: 8000.0,
            decode_tokens_per_s: 1500.0,
            target_utilisation: 0.7,
            scale_down_s: 300,
            step_s: 60,
            input_tokens: 1000.0,
            output_tokens: 200.0,
            seed: 1,
        }
    }
}

impl Params {
    /// Refuses values that make no sense.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        for (field, value, most) in [
            ("prefill_tokens_per_s", self.prefill_tokens_per_s, 1e9),
            ("decode_tokens_per_s", self.decode_tokens_per_s, 1e9),
            ("target_utilisation", self.target_utilisation, 1.0),
            ("step_s", f64::from(self.step_s), 86_400.0),
            ("input_tokens", self.input_tokens, 1e9),
            ("output_tokens", self.output_tokens, 1e9),
        ] {
            if !(value > 0.0 && value <= most) {
                return Err(format!("{field}: {value} is not in 0..{most}, 0 excluded"));
            }
        }
        Ok(())
    }

    /// Replica-seconds of work in one request.
    fn work_s(&self, input_tokens: f64, output_tokens: f64) -> f64 {
        input_tokens / self.prefill_tokens_per_s + output_tokens / self.decode_tokens_per_s
    }

    /// Replicas that work which comes in one step keeps busy at the target utilisation, `[N]` to `[N]`.
    fn load(&self, work_s: &[f64], step_s: u32) -> Vec<f64> {
        work_s.iter().map(|w| w / f64::from(step_s) / self.target_utilisation).collect()
    }

    fn unit(&self, step_s: u32) -> Unit {
        Unit::Load { stay_steps: (self.scale_down_s / step_s.max(1)) as usize }
    }
}

/// One class from a trace of requests.
#[must_use]
pub fn from_requests(requests: &[Request], name: &str, params: &Params) -> Series {
    let step = params.step_s.max(1);
    let end = requests.last().map_or(0.0, |r| r.t_s);
    let mut work = vec![0.0; (end / f64::from(step)) as usize + 1];
    for r in requests {
        work[(r.t_s / f64::from(step)) as usize] += params.work_s(r.input_tokens, r.output_tokens);
    }
    Series {
        step_s: step,
        classes: vec![name.to_owned()],
        values: vec![params.load(&work, step)],
        unit: params.unit(step),
        notes: Vec::new(),
    }
}

/// One class for each client. Where the step is below the window, arrivals inside a window are a Gamma renewal process
/// with the window's rate and coefficient of variation, drawn from the seed and the client's place.
#[must_use]
pub fn from_rates(rates: &Rates, params: &Params) -> Series {
    let step = step_within(rates.window_s, params.step_s);
    let per_window = (rates.window_s / step) as usize;
    let mut values = Vec::new();
    for (place, client) in rates.clients.iter().enumerate() {
        let request = params.work_s(params.input_tokens, params.output_tokens);
        let each = if rates.are_tokens { request / (params.input_tokens + params.output_tokens) } else { request };
        // Tokens come in requests: their rate is no renewal process, and is spread evenly.
        let counts = if per_window == 1 || rates.are_tokens {
            let spread = |r: &f64| std::iter::repeat_n(r * f64::from(step), per_window);
            client.rate_per_s.iter().flat_map(spread).collect()
        } else {
            // One generator for each client: another client does not change this one's arrivals.
            let mut rng = ChaCha8Rng::seed_from_u64(params.seed ^ (place as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            arrivals(client, rates.window_s, step, &mut rng)
        };
        let work: Vec<f64> = counts.iter().map(|c| c * each).collect();
        values.push(params.load(&work, step));
    }
    let classes = rates.clients.iter().map(|c| c.name.clone()).collect();
    Series { step_s: step, classes, values, unit: params.unit(step), notes: rates.notes.clone() }
}

/// The length of a step of about `wanted_s` of which a window has a whole number: the longest from half of that on, else the
/// next longer one.
fn step_within(window_s: u32, wanted_s: u32) -> u32 {
    let wanted_s = wanted_s.clamp(1, window_s);
    let whole = |step: &u32| window_s.is_multiple_of(*step);
    (wanted_s.div_ceil(2)..=wanted_s)
        .rev()
        .find(whole)
        .or_else(|| (wanted_s..=window_s).find(whole))
        .unwrap_or(window_s)
}

/// Most arrivals of a window that are drawn one by one; above that the count is its mean and the spread of a sum.
const DRAWN_MAX: f64 = 20_000.0;

/// Requests in each step of a client's windows.
fn arrivals(client: &super::rates::Client, window_s: u32, step_s: u32, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let per_window = (window_s / step_s) as usize;
    let mut counts = vec![0.0; client.rate_per_s.len() * per_window];
    for (w, (rate, cv)) in client.rate_per_s.iter().zip(&client.cv).enumerate() {
        let expected = rate * f64::from(window_s);
        let steps = &mut counts[w * per_window..(w + 1) * per_window];
        let cv = cv.clamp(0.05, 20.0);
        if expected <= 0.0 {
            continue;
        }
        if expected > DRAWN_MAX {
            steps.fill(expected / per_window as f64);
            continue;
        }
        // Times between requests: shape 1/cv², mean 1/rate.
        let Ok(gap) = Gamma::new(1.0 / (cv * cv), cv * cv / rate) else {
            continue;
        };
        // The process has run for long: the gap that covers the start is drawn by its length (shape + 1), and the start
        // is anywhere in it (inspection paradox; Feller 1971, vol. 2, XI.4).
        let Ok(covering) = Gamma::new(1.0 / (cv * cv) + 1.0, cv * cv / rate) else {
            continue;
        };
        let mut at = covering.sample(rng) * rand::RngExt::random::<f64>(rng);
        while at < f64::from(window_s) {
            let step = ((at / f64::from(step_s)) as usize).min(per_window - 1);
            steps[step] += 1.0;
            at += gap.sample(rng).max(1e-6);
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::super::rates::Client;
    use super::*;

    fn rates(cv: f64) -> Rates {
        let client = Client { name: "m/0".into(), rate_per_s: vec![0.5; 2000], cv: vec![cv; 2000] };
        Rates { window_s: 600, clients: vec![client], are_tokens: false, notes: vec![] }
    }

    #[test]
    fn renewal_keeps_rate_and_burstiness() {
        for cv in [0.5, 1.0, 3.0] {
            let mut rng = ChaCha8Rng::seed_from_u64(7);
            let counts = arrivals(&rates(cv).clients[0], 600, 60, &mut rng);
            let mean = counts.iter().sum::<f64>() / counts.len() as f64;
            assert!((mean - 30.0).abs() < 30.0 * 0.06 * cv.max(1.0), "cv {cv}: mean {mean}");
            // Index of dispersion of a renewal process tends to cv².
            let var = counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / counts.len() as f64;
            let ratio = var / mean / (cv * cv);
            assert!((0.6..1.4).contains(&ratio), "cv {cv}: dispersion over cv² is {ratio}");
        }
    }

    /// However long windows and steps are, an hour stays an hour.
    #[test]
    fn time_is_kept() {
        for (window_s, step_s, used_s) in
            [(600, 60, 60), (90, 60, 45), (100, 60, 50), (150, 60, 50), (300, 70, 60), (601, 60, 601)]
        {
            let rates = Rates { window_s, ..rates(1.0) };
            let series = from_rates(&rates, &Params { step_s, ..Params::default() });
            assert_eq!(series.step_s, used_s, "windows of {window_s} s");
            let seconds = series.values[0].len() * series.step_s as usize;
            assert_eq!(seconds, 2000 * window_s as usize, "windows of {window_s} s");
        }
    }

    #[test]
    fn replicas_follow_the_formula_and_stay_for_the_window() {
        let params = Params {
            prefill_tokens_per_s: 1000.0,
            decode_tokens_per_s: 100.0,
            target_utilisation: 0.5,
            scale_down_s: 120,
            step_s: 60,
            ..Params::default()
        };
        // 30 requests of 1000 + 100 tokens in the first minute: 60 replica-seconds, 1 busy, 2 at half use.
        let one = Request { t_s: 1.0, input_tokens: 1000.0, output_tokens: 100.0 };
        let mut requests = vec![one; 30];
        requests.push(Request { t_s: 299.0, input_tokens: 1.0, output_tokens: 1.0 });
        let series = from_requests(&requests, "k", &params);
        assert_eq!(series.claims(&[0], 1), vec![2.0, 2.0, 2.0, 0.0, 1.0]);
        // Two services at 60 % of a replica each share two, not one for each rounded up and then some.
        let shared = Series {
            step_s: 60,
            classes: vec!["a".into(), "b".into(), "c".into()],
            values: vec![vec![0.6]; 3],
            unit: Unit::Load { stay_steps: 0 },
            notes: vec![],
        };
        assert_eq!(shared.claims(&[0, 1, 2], 1), vec![2.0]);
        assert_eq!(Series { unit: Unit::Gpus, values: vec![vec![40.0]; 3], ..shared }.claims(&[0], 2), vec![20.0]);
    }

    /// Windows with few requests keep the rate, too: each starts in the middle of a gap.
    #[test]
    fn low_rates_are_kept() {
        for (rate, cv) in [(0.1 / 600.0, 1.0), (5.0 / 600.0, 6.0), (10.0 / 600.0, 3.0)] {
            let client = Client { name: "m/0".into(), rate_per_s: vec![rate; 40_000], cv: vec![cv; 40_000] };
            let mut rng = ChaCha8Rng::seed_from_u64(3);
            let mean = arrivals(&client, 600, 60, &mut rng).iter().sum::<f64>() / 40_000.0;
            assert!((mean / (rate * 600.0) - 1.0).abs() < 0.1, "rate {rate}, cv {cv}: {mean} requests a window");
        }
    }

    #[test]
    fn the_seed_decides() {
        let params = Params { input_tokens: 20_000.0, output_tokens: 2_000.0, ..Params::default() };
        let first = from_rates(&rates(2.0), &params);
        assert!(from_rates(&rates(2.0), &params) == first, "the same seed");
        assert!(from_rates(&rates(2.0), &Params { seed: 2, ..params }) != first, "another seed");
    }
}
