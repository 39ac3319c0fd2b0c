//! Evidence held against limits.

use fleet::Remedy;

use super::evidence::Evidence;
use super::judged::Judged;
use super::limits::Limits;
use super::report::{Check, Outcome, Report};
use super::{devices, measured, state};
use crate::policy::Policy;
use crate::verdict::Verdict;

/// What evidence proves, every check on every GPU. A check that is not there is unmeasured.
#[must_use]
pub fn judge(evidence: &Evidence, limits: &Limits, policy: &Policy) -> Report {
    let mut outcomes = vec![
        devices::files(evidence),
        devices::census(evidence),
        state::log_before(evidence, policy),
        measured::peers(evidence, limits),
    ];
    for gpu in &evidence.gpus {
        let model = gpu.identity.as_ref().ok().and_then(|i| limits.model(&i.pci_device));
        let judged = Judged { gpu, model, limits, count: evidence.gpus.len() };
        outcomes.extend([
            devices::identity(&judged, evidence),
            state::errors(&judged, policy),
            state::thermal(&judged, evidence.scope),
            state::links(&judged),
            measured::context(&judged),
            measured::memory(&judged),
            measured::bandwidth(&judged),
            measured::host_copies(&judged),
            measured::products(&judged),
            measured::repeatability(&judged, evidence),
            state::afterwards(&judged, evidence, policy),
        ]);
    }
    outcomes.retain(|o| o.check.is_in(evidence.scope));
    outcomes.sort_by_key(|o| (o.check, o.gpu));
    complete(&mut outcomes, evidence);
    let verdict = Verdict::of_all(outcomes.iter().map(|o| o.verdict));
    let mend = outcomes.iter().map(|o| o.mend).max().unwrap_or(Remedy::Nothing);
    Report { verdict, mend, outcomes, seconds: evidence.seconds }
}

/// Whoever adds a check and forgets it here gets no pass from it.
fn complete(outcomes: &mut Vec<Outcome>, evidence: &Evidence) {
    for check in Check::ALL.into_iter().filter(|c| c.is_in(evidence.scope)) {
        let places: Vec<Option<u32>> =
            if check.is_per_gpu() { evidence.gpus.iter().map(|g| Some(g.index)).collect() } else { vec![None] };
        for gpu in places {
            if !outcomes.iter().any(|o| o.check == check && o.gpu == gpu) {
                let mut missing = Outcome::pass(check, gpu);
                missing.find(Verdict::Unmeasured, Remedy::TryAgain, "not checked");
                outcomes.push(missing);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A check that nobody made is there, and unmeasured.
    #[test]
    fn what_is_forgotten_is_unmeasured() {
        let evidence = Evidence {
            scope: super::super::Scope::Whole,
            expected: super::super::Expected::default(),
            missing_files: Ok(Vec::new()),
            on_bus: Ok(Vec::new()),
            driver: Ok(super::super::Driver::default()),
            log_before: Ok(Vec::new()),
            log_during: Ok(Vec::new()),
            gpus: Vec::new(),
            peers: Ok(Vec::new()),
            seconds: 0.0,
        };
        let mut outcomes = Vec::new();
        complete(&mut outcomes, &evidence);
        let of_host = Check::ALL.into_iter().filter(|c| !c.is_per_gpu()).count();
        assert_eq!(outcomes.len(), of_host);
        assert!(outcomes.iter().all(|o| o.verdict == Verdict::Unmeasured));
    }
}
