//! Which GPUs workloads have: what was granted again while the one before it still ends waits for that.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How often it is looked whether what waits is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// GPUs in use, each with what tells its user to hurry.
#[derive(Debug, Default)]
pub struct Busy {
    taken: Mutex<BTreeMap<u32, Arc<AtomicBool>>>,
    changed: Condvar,
}

/// GPUs of one workload, until this is dropped.
#[derive(Debug)]
pub struct Taken<'a> {
    busy: &'a Busy,
    gpus: Vec<u32>,
    hurry: Arc<AtomicBool>,
}

impl Busy {
    /// Takes GPUs once all of them are free, and has whoever uses them hurry; none where nobody wants that any more.
    pub fn take<'a>(&'a self, gpus: &[u32], unwanted: &AtomicBool) -> Option<Taken<'a>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if unwanted.load(Ordering::Relaxed) {
                return None;
            }
            let users: Vec<&Arc<AtomicBool>> = gpus.iter().filter_map(|gpu| taken.get(gpu)).collect();
            if users.is_empty() {
                break;
            }
            users.iter().for_each(|hurry| hurry.store(true, Ordering::Relaxed));
            taken = self.changed.wait_timeout(taken, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        let hurry = Arc::new(AtomicBool::new(false));
        taken.extend(gpus.iter().map(|gpu| (*gpu, hurry.clone())));
        Some(Taken { busy: self, gpus: gpus.to_vec(), hurry })
    }
}

impl Taken<'_> {
    /// Set when somebody waits for them.
    pub fn hurry(&self) -> &AtomicBool {
        &self.hurry
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut taken = self.busy.taken.lock().unwrap_or_else(PoisonError::into_inner);
        self.gpus.iter().for_each(|gpu| drop(taken.remove(gpu)));
        self.busy.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_have_one_user_at_a_time_and_who_waits_has_it_hurry() {
        let (busy, wanted) = (Busy::default(), AtomicBool::new(false));
        let first = busy.take(&[0, 1], &wanted).expect("free");
        let other = busy.take(&[2], &wanted).expect("free");
        std::thread::scope(|scope| {
            let second = scope.spawn(|| busy.take(&[1, 3], &wanted).map(|taken| taken.gpus.clone()));
            while !first.hurry().load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            assert!(!second.is_finished() && !other.hurry().load(Ordering::Relaxed));
            drop(first);
            assert_eq!(second.join().expect("ended"), Some(vec![1, 3]));
        });
        assert!(busy.take(&[2], &AtomicBool::new(true)).is_none(), "nobody wants it");
        drop(other);
        assert!(busy.taken.lock().expect("sound").is_empty());
    }
}
