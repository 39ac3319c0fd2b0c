//! One copy's leaves, from hosts of the zone where they have them, and from the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::leaves::{FetchError, Leaves, Wanted};
use super::peers::Peers;

/// What others fetch for all is asked for again after this time, doubled each time, until it is more than that.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The hosts that have a copy or are to.
#[derive(Debug)]
pub struct Near {
    peers: Arc<Peers>,
    members: Vec<String>,
    /// They were waited for in vain: nothing more is.
    in_vain: AtomicBool,
}

impl Near {
    /// These hosts.
    #[must_use]
    pub fn new(peers: Arc<Peers>, members: Vec<String>) -> Self {
        Self { peers, members, in_vain: AtomicBool::new(false) }
    }

    /// Runs in the order in which they are fetched, each with whether others are waited for: what this host fetches for all comes
    /// first; the rest begins elsewhere on each host, so that not all ask the same one.
    #[must_use]
    pub fn in_order(&self, runs: Vec<Vec<Wanted>>) -> Vec<(Vec<Wanted>, bool)> {
        let is_home = |run: &Vec<Wanted>| run[0].pack.is_none_or(|pack| self.peers.is_home(pack, &self.members));
        let (own, mut theirs): (Vec<_>, Vec<_>) = runs.into_iter().partition(is_home);
        let begins = self.peers.place_among(theirs.len());
        theirs.rotate_left(begins);
        own.into_iter().map(|run| (run, false)).chain(theirs.into_iter().map(|run| (run, true))).collect()
    }

    /// Has a run on the disk, verified: from hosts of the zone, and what they have not from the store. What others fetch for all
    /// is waited for as long as it comes.
    ///
    /// # Errors
    /// No tier has a leaf whole.
    pub async fn brought(&self, leaves: &Arc<Leaves>, run: Vec<Wanted>, waits: bool) -> Result<(), FetchError> {
        let mut missing = run.clone();
        let mut pause = PAUSE;
        while self.peers.any(&self.members) {
            let before = missing.len();
            missing = leaves.near(missing, &self.peers, &self.members).await;
            let came = missing.len() < before;
            if missing.is_empty() || !waits || self.in_vain.load(Ordering::Relaxed) {
                break;
            }
            if !came && pause > PAUSE_MAX {
                self.in_vain.store(true, Ordering::Relaxed);
                break;
            }
            pause = if came { PAUSE } else { pause * 2 };
            tokio::time::sleep(pause).await;
        }
        leaves.ahead(run).await
    }
}
