//! Errors as one line, and not more lines than somebody reads.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What is said so often is said again after this time.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Lets one of many equal lines into the log: the first, then one each ten seconds. A database that is away fails every
/// call, and the line before the outage is the one that is looked for.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Option<Said>>);

#[derive(Debug)]
struct Said {
    text: String,
    at: Instant,
    held_back: u64,
}

impl Seldom {
    /// Nothing was said yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether to say a line now: the number of times that the last one was not said since. `None`: not now.
    pub fn now(&self, text: &str) -> Option<u64> {
        let mut said = self.0.lock();
        let at = Instant::now();
        match &mut *said {
            Some(last) if last.text == text && at.duration_since(last.at) < AGAIN_AFTER => {
                last.held_back += 1;
                None
            }
            last => {
                let held_back = last.as_ref().map_or(0, |l| l.held_back);
                *last = Some(Said { text: text.to_owned(), at, held_back: 0 });
                Some(held_back)
            }
        }
    }
}

/// An error and its causes; a cause that its parent already quotes is not said twice.
#[must_use]
pub fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let part = cause.to_string();
        if !text.contains(part.trim()) {
            text.push_str(": ");
            text.push_str(part.trim());
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_is_said_and_then_one_each_ten_seconds() {
        let seldom = Seldom::new();
        assert_eq!([seldom.now("away"), seldom.now("away"), seldom.now("away")], [Some(0), None, None]);
        tokio::time::advance(AGAIN_AFTER).await;
        assert_eq!([seldom.now("away"), seldom.now("away")], [Some(2), None]);
        assert_eq!(seldom.now("another"), Some(1), "something else is said at once");
    }
}
