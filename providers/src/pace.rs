//! How fast calls are made to one cloud account: a token bucket as clouds use it themselves, which slows down when the
//! cloud says that it is too fast and speeds up again when it does not (additive increase, multiplicative decrease).

/// Calls an account may make.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CallRate {
    /// Calls that may be made at once.
    pub burst: f64,
    /// Calls a second in the long run.
    pub per_s: f64,
}

impl CallRate {
    /// No limit that matters.
    pub const FREE: Self = Self { burst: 1e6, per_s: 1e6 };
}

/// The bucket of one account. Time is an argument.
#[derive(Debug, Clone)]
pub struct Pace {
    limit: CallRate,
    per_s: f64,
    tokens: f64,
    at_ms: i64,
}

/// The slowest it becomes, calls a second.
const SLOWEST_PER_S: f64 = 1.0 / 30.0;

impl Pace {
    /// Full.
    #[must_use]
    pub fn new(limit: CallRate, now_ms: i64) -> Self {
        Self { limit, per_s: limit.per_s, tokens: limit.burst, at_ms: now_ms }
    }

    /// Takes a call, or says how many milliseconds to wait for one.
    ///
    /// # Errors
    /// The wait.
    pub fn take(&mut self, now_ms: i64) -> Result<(), i64> {
        // A clock that goes back gives nothing.
        let passed_s = (now_ms - self.at_ms).max(0) as f64 / 1000.0;
        self.at_ms = now_ms;
        self.tokens = (self.tokens + passed_s * self.per_s).min(self.limit.burst);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(((1.0 - self.tokens) / self.per_s * 1000.0).ceil() as i64)
    }

    /// Whether nothing was taken for a while.
    #[must_use]
    pub fn is_full(&self, now_ms: i64) -> bool {
        self.tokens + (now_ms - self.at_ms).max(0) as f64 / 1000.0 * self.per_s >= self.limit.burst
    }

    /// The cloud said that it is too fast: nothing for now, and half as fast from here on.
    pub fn throttled(&mut self) {
        self.tokens = 0.0;
        self.per_s = (self.per_s / 2.0).max(SLOWEST_PER_S);
    }

    /// The cloud answered: a twentieth of the whole rate faster.
    pub fn answered(&mut self) {
        self.per_s = (self.per_s + self.limit.per_s / 20.0).min(self.limit.per_s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_the_rate() {
        let mut pace = Pace::new(CallRate { burst: 5.0, per_s: 2.0 }, 0);
        let made =
            |pace: &mut Pace, from_ms: i64, to_ms: i64| (from_ms..to_ms).filter(|t| pace.take(*t).is_ok()).count();
        assert_eq!(made(&mut pace, 0, 10), 5, "the burst");
        assert!(pace.take(10).is_err_and(|wait_ms| (490..=491).contains(&wait_ms)));
        assert_eq!(made(&mut pace, 10, 10_010), 20);
        assert!(pace.take(5).is_err(), "a clock that goes back gives nothing");
    }

    #[test]
    fn it_slows_down_and_recovers() {
        let mut pace = Pace::new(CallRate { burst: 5.0, per_s: 2.0 }, 0);
        pace.throttled();
        assert_eq!(pace.take(0), Err(1000), "half the rate, and nothing left");
        for _ in 0..100 {
            pace.throttled();
        }
        assert_eq!(pace.take(0), Err(30_000), "it never stops");
        for _ in 0..20 {
            pace.answered();
        }
        assert_eq!(pace.take(10_000), Ok(()));
        assert_eq!(pace.take(10_000), Ok(()));
    }
}
