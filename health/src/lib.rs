//! GPU health: what evidence means. Pure: no clock, no I/O; evidence in, verdicts and conditions out.
//!
//! Three faults are common among tools for this, and the types here leave no room for them: a condition that never clears
//! (each has a [`policy::ClearRule`]), "not measured" counted as healthy ([`verdict::Verdict::Unmeasured`]), and DCGM's
//! severities read wrongly ([`dcgm::Severity`]).

pub mod breaker;
pub mod condition;
pub mod dcgm;
pub mod gate;
pub mod kernel_log;
pub mod nvlink;
pub mod policy;
pub mod rates;
pub mod verdict;
pub mod weekly;

pub use verdict::Verdict;
