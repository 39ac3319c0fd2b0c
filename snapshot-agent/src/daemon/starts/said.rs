//! What is said of starts to the control plane: at once, and again until it is heard.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use protocol::starts::{StartReport, StartsReport};

use super::super::client::{Client, ClientError};
use super::super::link::Token;

/// A report that did not arrive is sent again after this time, doubled each time, and at most that.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// All of it is said again after this time: the control plane may have lost some.
const SAID_AGAIN: Duration = Duration::from_secs(60);

/// The newest report of each claim.
#[derive(Debug, Default)]
pub struct Reports {
    /// With a number that rises with each change.
    known: Mutex<(u64, BTreeMap<String, StartReport>)>,
    changed: Condvar,
}

impl Reports {
    /// Says something of a claim.
    pub fn say(&self, report: StartReport) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.0 += 1;
        known.1.insert(report.claim.clone(), report);
        self.changed.notify_all();
    }

    /// Says nothing more of others.
    pub fn keep(&self, is_wanted: impl Fn(&str) -> bool) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.1.retain(|claim, _| is_wanted(claim));
    }

    /// Sends what changes, for ever.
    pub fn send(&self, client: &Client, token: &Token, boot: &str, patience: f64) {
        let (mut told, mut pause, mut last_error) = (0, PAUSE, String::new());
        loop {
            let (number, starts) = self.after(told, SAID_AGAIN.mul_f64(patience));
            let secret = token.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if starts.is_empty() {
                told = number;
                continue;
            }
            let report = StartsReport { boot: boot.to_owned(), starts };
            match secret.map(|secret| client.started(&secret, &report)) {
                Some(Ok(_)) => {
                    (told, pause) = (number, PAUSE);
                    last_error.clear();
                    continue;
                }
                Some(Err(error)) => {
                    let text = error.to_string();
                    if text != last_error && !matches!(error, ClientError::Unreachable(_)) {
                        tracing::warn!("the control plane does not hear what comes up here: {text}");
                    }
                    last_error = text;
                }
                // It is not registered yet.
                None => {}
            }
            std::thread::sleep(pause.mul_f64(patience));
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// All reports, as soon as there is another than what was told, or after a while; with their number.
    fn after(&self, told: u64, patience: Duration) -> (u64, Vec<StartReport>) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(known, patience, |known| known.0 <= told);
        let known = waited.unwrap_or_else(PoisonError::into_inner).0;
        (known.0, known.1.values().cloned().collect())
    }
}
