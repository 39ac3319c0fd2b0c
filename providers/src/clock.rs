//! Time as a value that is handed down: a server reads the machine's clock, a test or a simulation its own.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A clock. Clones are the same clock.
#[derive(Clone)]
pub struct Clock(Arc<Source>);

enum Source {
    /// Somebody else's time, as it is.
    Given(Box<dyn Fn() -> i64 + Send + Sync>),
    /// A clock that people set, made steady.
    Steady {
        wall: Box<dyn Fn() -> i64 + Send + Sync>,
        passed_us: Box<dyn Fn() -> u64 + Send + Sync>,
        pace: Mutex<Steady>,
    },
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now_ms()).finish()
    }
}

impl Clock {
    /// The machine's clock, which never goes back within a process nor stands still, whatever is done to it: where it is set
    /// back, time goes on a tenth slower until it has caught up.
    #[must_use]
    pub fn system() -> Self {
        #[allow(clippy::disallowed_methods, reason = "the one counter; everything else takes time as an argument")]
        let began = Instant::now();
        let wall = || {
            #[allow(clippy::disallowed_methods, reason = "the one reading; everything else takes time as an argument")]
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        };
        Self::steady(wall, move || u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// A clock that people set, read by `wall` in milliseconds since 1970, made steady by `passed_us`: microseconds that have
    /// passed, from a counter that nobody sets.
    pub fn steady(
        wall: impl Fn() -> i64 + Send + Sync + 'static,
        passed_us: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        let pace = Mutex::new(Steady::at(wall(), passed_us()));
        Self(Arc::new(Source::Steady { wall: Box::new(wall), passed_us: Box::new(passed_us), pace }))
    }

    /// A clock that is read by `read`, milliseconds since 1970, and says what that says.
    pub fn new(read: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(Source::Given(Box::new(read))))
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        match &*self.0 {
            Source::Given(read) => read(),
            Source::Steady { wall, passed_us, pace } => {
                let mut pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
                pace.read(wall(), passed_us())
            }
        }
    }

    /// Milliseconds that have passed since some moment: for rates and waits, which no setting of a clock may change.
    #[must_use]
    pub fn passed_ms(&self) -> i64 {
        match &*self.0 {
            Source::Given(read) => read(),
            Source::Steady { passed_us, .. } => i64::try_from(passed_us() / 1000).unwrap_or(i64::MAX),
        }
    }

    /// Time is at least so far: something was written at that moment, by this machine's clock. One that follows another knows
    /// better what time it is.
    pub fn not_before(&self, ms: i64) {
        if let Source::Steady { wall, passed_us, pace } = &*self.0 {
            let mut pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.read(wall(), passed_us());
            if pace.followed.is_none() {
                pace.now_us = pace.now_us.max(ms.saturating_mul(1000));
            }
        }
    }

    /// Follows another clock from now on, which said `ms` after it was asked. The first time that it says is taken as it is,
    /// also where this machine's clock was ahead of it: nothing was said by that yet.
    pub fn follow(&self, ms: i64, asked: Asked) {
        if let Source::Steady { passed_us, pace, .. } = &*self.0 {
            let now_us = passed_us();
            pace.lock().unwrap_or_else(PoisonError::into_inner).heard(ms, now_us, now_us.saturating_sub(asked.0));
        }
    }

    /// Begins to ask another clock.
    #[must_use]
    pub fn asks(&self) -> Asked {
        match &*self.0 {
            Source::Given(_) => Asked(0),
            Source::Steady { passed_us, .. } => Asked(passed_us()),
        }
    }

    /// How far this machine's clock is ahead of the one that is followed, or else of what was said by it already; negative:
    /// behind. Milliseconds.
    #[must_use]
    pub fn off_ms(&self) -> i64 {
        let now_ms = self.now_ms();
        match &*self.0 {
            Source::Given(_) => 0,
            Source::Steady { wall, passed_us, pace } => {
                let pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
                let true_ms = pace.source_us(passed_us()).map_or(now_ms, |us| us / 1000);
                wall().saturating_sub(true_ms)
            }
        }
    }
}

/// When another clock was asked, by a counter that nobody sets.
#[derive(Debug, Clone, Copy)]
pub struct Asked(u64);

/// A clock behind what was said already by less is only unsteady, microseconds.
const UNSTEADY_US: i64 = 500_000;
/// An answer that took longer says little of when it was given, microseconds.
const PROMPT_US: u64 = 50_000;

/// The pace of a steady clock.
#[derive(Debug)]
struct Steady {
    /// What was said last, microseconds since 1970.
    now_us: i64,
    /// The counter then.
    passed_us: u64,
    /// What another clock said, microseconds since 1970, and the counter then.
    followed: Option<(i64, u64)>,
}

impl Steady {
    fn at(wall_ms: i64, passed_us: u64) -> Self {
        Self { now_us: wall_ms.saturating_mul(1000), passed_us, followed: None }
    }

    fn since(from: u64, passed_us: u64) -> i64 {
        i64::try_from(passed_us.saturating_sub(from)).unwrap_or(i64::MAX)
    }

    /// What the clock that is followed says now, microseconds since 1970.
    fn source_us(&self, passed_us: u64) -> Option<i64> {
        self.followed.map(|(said_us, then)| said_us.saturating_add(Self::since(then, passed_us)))
    }

    fn read(&mut self, wall_ms: i64, passed_us: u64) -> i64 {
        let source_us = self.source_us(passed_us).unwrap_or(wall_ms.saturating_mul(1000));
        let passed = Self::since(self.passed_us, passed_us);
        let behind = source_us < self.now_us.saturating_add(passed) - UNSTEADY_US;
        let least = if behind { self.now_us.saturating_add(passed - passed / 10) } else { self.now_us };
        self.now_us = least.max(source_us);
        self.passed_us = passed_us;
        self.now_us / 1000
    }

    /// Another clock said `ms` within the `took_us` before the counter was at `now_us`. Who waited long for the answer knows
    /// only that it is later by now: what says most counts.
    fn heard(&mut self, ms: i64, now_us: u64, took_us: u64) {
        let said_us = ms.saturating_mul(1000);
        let known = self.source_us(now_us);
        if known.is_none() {
            (self.now_us, self.passed_us) = (said_us, now_us);
        }
        if took_us <= PROMPT_US || known.is_none_or(|known| said_us > known) {
            self.followed = Some((said_us, now_us));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    /// A machine: its clock is what was set, and as much more as has passed.
    #[derive(Clone, Default)]
    struct Machine(Arc<(AtomicI64, AtomicI64)>);

    impl Machine {
        fn clock(&self) -> Clock {
            let (a, b) = (self.clone(), self.clone());
            Clock::steady(
                move || a.0.0.load(Ordering::SeqCst) + a.0.1.load(Ordering::SeqCst),
                move || u64::try_from(b.0.1.load(Ordering::SeqCst) * 1000).expect("positive"),
            )
        }

        fn set_by(&self, ms: i64) {
            self.0.0.fetch_add(ms, Ordering::SeqCst);
        }

        fn pass(&self, ms: i64) {
            self.0.1.fetch_add(ms, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_clock_that_is_set_back_goes_on_a_little_slower_until_it_has_caught_up() {
        let machine = Machine::default();
        machine.set_by(10 * HOUR_MS);
        let clock = machine.clock();
        machine.pass(1000);
        assert_eq!(clock.now_ms(), 10 * HOUR_MS + 1000);
        machine.set_by(-HOUR_MS);
        for second in 1..=10 {
            for _ in 0..1000 {
                machine.pass(1);
                let _ = clock.now_ms();
            }
            assert_eq!(clock.now_ms(), 10 * HOUR_MS + 1000 + 900 * second, "read often or not");
            assert_eq!(clock.passed_ms(), 1000 + 1000 * second, "what passes is what passes");
        }
        assert!((-HOUR_MS - 1000..-HOUR_MS + 2000).contains(&clock.off_ms()), "{}", clock.off_ms());
        machine.pass(11 * HOUR_MS);
        let caught_up = clock.now_ms();
        machine.pass(1000);
        assert_eq!(clock.now_ms() - caught_up, 1000);
        assert!(clock.off_ms().abs() <= 1000, "{}", clock.off_ms());
        machine.set_by(HOUR_MS);
        assert_eq!(clock.off_ms(), 0, "ahead it is followed");
    }

    #[test]
    fn what_was_written_is_not_in_the_future() {
        let machine = Machine::default();
        let clock = machine.clock();
        clock.not_before(HOUR_MS);
        assert_eq!(clock.now_ms(), HOUR_MS);
        machine.pass(10_000);
        assert_eq!(clock.now_ms(), HOUR_MS + 9_000);
    }

    #[test]
    fn another_clock_is_followed_whatever_this_one_is_set_to() {
        let machine = Machine::default();
        machine.set_by(HOUR_MS);
        let clock = machine.clock();
        let asked = clock.asks();
        machine.pass(2);
        // This machine is an hour ahead of the database.
        clock.follow(1000, asked);
        assert_eq!((clock.now_ms(), clock.off_ms()), (1000, HOUR_MS + 2 - 1000));
        clock.not_before(2 * HOUR_MS);
        assert_eq!(clock.now_ms(), 1000, "what another wrote by a clock of its own says nothing of the time");
        // The database's clock is set back: nothing goes back.
        clock.follow(0, clock.asks());
        machine.pass(100);
        assert_eq!((clock.now_ms(), clock.off_ms()), (1090, HOUR_MS + 2));
        let late = machine.clock();
        let asked = late.asks();
        late.follow(7 * HOUR_MS, asked);
        assert_eq!(late.now_ms(), 7 * HOUR_MS, "ahead at once");
        machine.set_by(-HOUR_MS);
        machine.pass(1000);
        assert_eq!(late.now_ms(), 7 * HOUR_MS + 1000);
        assert!(late.off_ms() < -6 * HOUR_MS + 10_000);
        // Who waited for the lock hears of a moment that is gone.
        let asked = late.asks();
        machine.pass(3000);
        late.follow(7 * HOUR_MS + 1000, asked);
        assert_eq!(late.now_ms(), 7 * HOUR_MS + 4000);
    }
}
