//! `dcgmi diag -j`: reads what it prints, versions 3 and 4, and decides what it proves. Whatever is missing, unknown or
//! contradictory is unmeasured, never healthy.
//!
//! The document is no published contract (DCGM user guide: pin a release, test consumers), so everything is checked:
//! that each test that was to run has a result for each GPU that is there, and that the exit code says the same.

mod document;
mod errors;
mod judge;
mod strict;

pub use document::{Document, Problem, Status, TestResult, Warning};
pub use errors::{Severity, Version};
pub use judge::{Exit, Expected, Finding, Judgement, Plan, Reason, TEST_DEADLINE_S, Tested, judge, level_deadline_s};
