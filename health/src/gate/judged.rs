//! What the checks look at: one GPU with what is known of its model.

use fleet::Remedy;

use super::evidence::Gpu;
use super::limits::{Limits, Model};
use crate::policy::Effect;

/// One GPU with the row of its model.
pub(super) struct Judged<'a> {
    pub gpu: &'a Gpu,
    pub model: Option<&'a Model>,
    pub limits: &'a Limits,
    /// GPUs of the host.
    pub count: usize,
}

/// What an effect of the policy means before a node has been admitted.
pub(super) fn of_effect(effect: Effect) -> Option<Remedy> {
    // The gate itself is the second look.
    Some(effect.remedy()).filter(|remedy| *remedy > Remedy::Recheck)
}
