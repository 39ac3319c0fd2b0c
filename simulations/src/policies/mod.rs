//! Who decides what to launch and release: the shipped planner, and the simple rules it is compared with.

mod fixed;
mod foresight;
mod live;
mod simple;

use control::inputs::Inputs;
use control::staging::Outlook;

pub use fixed::FixedNodes;
pub use foresight::TrueFuture;
pub use live::Live;
pub use simple::{Family, Rule, Simple};

/// A node as policies see it.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenNode {
    /// Identity.
    pub id: u64,
    /// Index of its offer.
    pub offer: usize,
    /// Proven healthy; otherwise on its way.
    pub healthy: bool,
    /// Takes no more claims.
    pub draining: bool,
    /// GPUs without a claim.
    pub free_gpus: u32,
    /// Seconds since its last claim ended; 0 while it has one.
    pub idle_s: f64,
    /// Live claims, `(class, claims)`, by class.
    pub claims: Vec<(usize, u32)>,
    /// Class that a simple policy launched it for.
    pub label: Option<usize>,
}

/// What a policy sees: the present and the past, nothing else but for who foresees. Shapes: `P` offers, `K` classes.
#[derive(Debug)]
pub struct Seen<'a> {
    /// What the server would make a plan from.
    pub inputs: &'a Inputs,
    /// Offers whose nodes serve each class within its price caps, the cheapest GPU first, `[K]`.
    pub serves: &'a [&'a [usize]],
    /// Nodes that exist or are on their way.
    pub nodes: &'a [SeenNode],
    /// Claims with GPUs, `[K]`.
    pub active: &'a [u32],
    /// Claims that wait, `[K]`.
    pub queued: &'a [u32],
    /// Seconds until each of the inputs' nodes is lost, infinite for never: only for who foresees, else empty.
    pub lost_in_s: &'a [f64],
}

/// Nodes to launch at one offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchOrder {
    /// Index of the offer.
    pub offer: usize,
    /// Nodes.
    pub nodes: u32,
    /// Class that they are for, where a policy keeps classes apart.
    pub label: Option<usize>,
}

/// What a policy wants done now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Launches.
    pub launches: Vec<LaunchOrder>,
    /// Nodes to give back; those that are not idle any more stay.
    pub releases: Vec<u64>,
    /// The policy could not do what it is made for, and did something simpler.
    pub fell_back: bool,
}

/// A policy with its state.
pub trait Policy {
    /// Decides at one moment.
    ///
    /// # Errors
    /// It cannot decide: a bug, told in words.
    fn decide(&mut self, seen: &Seen) -> Result<Decision, String>;

    /// What its last decision expected, for who stages copies by it.
    fn outlook(&self) -> Option<Outlook> {
        None
    }

    /// Whether it knows the future: a yardstick, no policy that anybody could have.
    fn foresees(&self) -> bool {
        false
    }
}
