//! Files of an operator over the shipped policy and limits.

use std::path::Path;

use anyhow::Context;
use health::gate::Limits;
use health::policy::Policy;

/// The text of a file.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The policy, with a file over it.
///
/// # Errors
/// The file cannot be read, or makes no sense.
pub fn policy(path: Option<&Path>) -> anyhow::Result<Policy> {
    let Some(path) = path else { return Ok(Policy::default()) };
    Policy::default().overridden(&read(path)?).with_context(|| path.display().to_string())
}

/// The limits, with a file over them.
///
/// # Errors
/// The file cannot be read, or makes no sense.
pub fn limits(path: Option<&Path>) -> anyhow::Result<Limits> {
    let Some(path) = path else { return Ok(Limits::default()) };
    Limits::default().overridden(&read(path)?).with_context(|| path.display().to_string())
}
