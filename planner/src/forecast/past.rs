//! What is known of a series at each of its steps: its level, its slope and how much it moves.

/// Steps over which the fast level, the slow level and the present volatility forget.
const FAST_STEPS: f64 = 4.0;
const SLOW_STEPS: f64 = 20.0;
const VOLATILITY_STEPS: f64 = 30.0;
/// A season's value is taken from so many steps around it.
const AROUND_STEPS: usize = 5;

/// A series and what each of its steps knew. Everything is of square roots: the spread of counts grows about with the root
/// of their level, so errors become comparable over the day.
#[derive(Debug, Clone, PartialEq)]
pub struct Past<'a> {
    /// The series in equal steps, `[N]`, the last is now.
    pub history: &'a [f64],
    /// Season in steps.
    pub season: usize,
    pub(super) root: Vec<f64>,
    /// Levels that forget fast and slowly, `[N]`.
    pub(super) fast: Vec<f64>,
    pub(super) slow: Vec<f64>,
    /// Root mean square of the steps' changes, of the last ones and of the whole past so far, `[N]`.
    pub(super) recent: Vec<f64>,
    pub(super) overall: Vec<f64>,
    /// Sum of all roots before each step, `[N + 1]`.
    sums: Vec<f64>,
}

impl<'a> Past<'a> {
    /// Looks at a series.
    #[must_use]
    pub fn of(history: &'a [f64], season: usize) -> Self {
        let root: Vec<f64> = history.iter().map(|v| v.max(0.0).sqrt()).collect();
        let n = root.len();
        let (mut recent, mut overall, mut sums) =
            (Vec::with_capacity(n), Vec::with_capacity(n), Vec::with_capacity(n + 1));
        let (mut square_sum, mut square, mut sum) = (0.0, 0.0, 0.0);
        for (i, y) in root.iter().enumerate() {
            let change = if i == 0 { 0.0 } else { (y - root[i - 1]).powi(2) };
            square_sum += change;
            square += (change - square) / VOLATILITY_STEPS;
            recent.push(f64::sqrt(square));
            overall.push(f64::sqrt(square_sum / i.max(1) as f64));
            sums.push(sum);
            sum += y;
        }
        sums.push(sum);
        let (fast, slow) = (smooth(&root, FAST_STEPS), smooth(&root, SLOW_STEPS));
        Self { history, season, root, fast, slow, recent, overall, sums }
    }

    /// Mean of the roots around step `i`, of which nothing after `known` is seen.
    pub(super) fn around(&self, i: usize, known: usize) -> f64 {
        let width = AROUND_STEPS.min(known.saturating_sub(i));
        let (from, to) = (i.saturating_sub(width), (i + width + 1).min(self.root.len()));
        (self.sums[to] - self.sums[from]) / (to - from).max(1) as f64
    }
}

/// Exponential smoothing.
fn smooth(root: &[f64], steps: f64) -> Vec<f64> {
    let mut level = root.first().copied().unwrap_or(0.0);
    let next = |y: &f64| {
        level += (y - level) / steps;
        level
    };
    root.iter().map(next).collect()
}
