//! What came within the time to yield, by the hour of the day: what must be there while nodes are lent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Windows of the past, each as long as the time to yield.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Arrivals {
    /// By the hour of the day (UTC): how often so many came.
    hours: Vec<BTreeMap<u32, u32>>,
}

/// When an hour of the day holds so many windows, what is old counts half: those of 45 s in two weeks.
const WINDOWS_MAX: u32 = 14 * 80;
/// Share of the windows in which no more came than is held back.
const QUANTILE: f64 = 0.995;

impl Default for Arrivals {
    fn default() -> Self {
        Self { hours: vec![BTreeMap::new(); 24] }
    }
}

fn hour_of(at_ms: i64) -> usize {
    usize::try_from(at_ms.div_euclid(3_600_000).rem_euclid(24)).unwrap_or(0)
}

impl Arrivals {
    /// In the window that ends at `at_ms` so many came.
    pub fn saw(&mut self, at_ms: i64, came: u32) {
        self.hours.resize(24, BTreeMap::new());
        let hour = &mut self.hours[hour_of(at_ms)];
        *hour.entry(came).or_default() += 1;
        if hour.values().sum::<u32>() > WINDOWS_MAX {
            hour.values_mut().for_each(|n| *n /= 2);
            hour.retain(|_, n| *n > 0);
        }
    }

    /// As many as came in all but 1 of 200 windows at about this time of day; one at least.
    #[must_use]
    pub fn hot_reserve(&self, now_ms: i64) -> u32 {
        let hour = hour_of(now_ms);
        let mut near: BTreeMap<u32, u32> = BTreeMap::new();
        for (came, windows) in [23, 0, 1].iter().filter_map(|d| self.hours.get((hour + d) % 24)).flatten() {
            *near.entry(*came).or_default() += windows;
        }
        let rank = (f64::from(near.values().sum::<u32>()) * QUANTILE).ceil() as u32;
        let mut seen = 0;
        let quantile = near.iter().find(|(_, windows)| {
            seen += **windows;
            seen >= rank
        });
        quantile.map_or(1, |(came, _)| (*came).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_what_came_at_this_time_of_day() {
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.hot_reserve(0), 1, "one in any case");
        let hour_ms = 3_600_000;
        for i in 0..1000 {
            arrivals.saw(10 * hour_ms, i);
        }
        assert_eq!(arrivals.hot_reserve(10 * hour_ms), 994);
        assert_eq!(arrivals.hot_reserve(11 * hour_ms + 5), 994, "an hour later too");
        assert_eq!(arrivals.hot_reserve(12 * hour_ms), 1);
        assert_eq!(arrivals.hot_reserve(34 * hour_ms), 994, "the next day");
    }

    #[test]
    fn what_is_old_fades_and_what_was_the_most_is_not_lost_at_once() {
        let mut arrivals = Arrivals::default();
        (0..200).for_each(|_| arrivals.saw(0, 50));
        (0..900).for_each(|_| arrivals.saw(0, 2));
        assert_eq!(arrivals.hot_reserve(0), 50);
        // Many values of a busy month, each seen once or twice.
        (100..250).for_each(|came| arrivals.saw(0, came));
        (0..20_000).for_each(|_| arrivals.saw(0, 2));
        assert_eq!(arrivals.hot_reserve(0), 2, "weeks later");
    }
}
