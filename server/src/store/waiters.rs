//! Who waits for a claim or a node to change: a commit wakes only those whose claim or node it changed.

use std::collections::HashMap;
use std::sync::Arc;

use fleet::book::Changes;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A claim.
    Claim(u64),
    /// A node.
    Node(u64),
}

/// How many wait for each subject, and what wakes them.
type BySubject = HashMap<Subject, (usize, Arc<Notify>)>;

/// Everybody who waits. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Waiters(Arc<Mutex<BySubject>>);

/// Somebody who waits for one subject.
#[derive(Debug)]
pub struct Waiter {
    subject: Subject,
    notify: Arc<Notify>,
    all: Waiters,
}

impl Waiters {
    /// Waits for a subject from now on.
    #[must_use]
    pub fn on(&self, subject: Subject) -> Waiter {
        let mut waiting = self.0.lock();
        let (count, notify) = waiting.entry(subject).or_default();
        *count += 1;
        let notify = Arc::clone(notify);
        drop(waiting);
        Waiter { subject, notify, all: self.clone() }
    }

    /// These changed.
    pub(super) fn changed(&self, changes: &Changes) {
        let waiting = self.0.lock();
        if waiting.is_empty() {
            return;
        }
        let nodes = changes.nodes.iter().map(|id| Subject::Node(*id));
        let claims = changes.claims.iter().map(|id| Subject::Claim(*id));
        for subject in nodes.chain(claims) {
            if let Some((_, notify)) = waiting.get(&subject) {
                notify.notify_waiters();
            }
        }
    }

    /// Anything may have changed.
    pub(super) fn all_changed(&self) {
        self.0.lock().values().for_each(|(_, notify)| notify.notify_waiters());
    }
}

impl Waiter {
    /// Waits until `over` says that it is over: it is asked at once, and after each change.
    pub async fn until(&self, mut over: impl FnMut() -> bool) {
        loop {
            let changed = self.notify.notified();
            tokio::pin!(changed);
            // What changes between the look and the wait counts.
            changed.as_mut().enable();
            if over() {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.all.0.lock();
        if let Some((count, _)) = waiting.get_mut(&self.subject) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.subject);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_those_whose_subject_changed_are_woken() {
        let waiters = Waiters::default();
        let (claim, node) = (waiters.on(Subject::Claim(1)), waiters.on(Subject::Node(1)));
        let (mut claim_looks, mut node_looks) = (0, 0);
        let changes = Changes { claims: [1].into(), ..Changes::default() };
        let commits = async {
            loop {
                tokio::task::yield_now().await;
                waiters.changed(&changes);
            }
        };
        let looks_at_node = async {
            node.until(|| {
                node_looks += 1;
                false
            })
            .await;
        };
        let looks_at_claim = claim.until(|| {
            claim_looks += 1;
            claim_looks == 4
        });
        tokio::select! {
            biased;
            () = looks_at_node => {}
            () = looks_at_claim => {}
            () = commits => {}
        }
        assert_eq!((claim_looks, node_looks), (4, 1));
        drop((claim, node));
        assert!(waiters.0.lock().is_empty(), "nobody waits, nothing is kept");
    }
}
