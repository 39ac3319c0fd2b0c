//! What keeps destructive acts back: causes that are held, and how many at the same time.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::cause::{Cause, Cell};
use crate::node::NodeState;

use super::{Book, IntentAction, Node, NodeError};

/// Causes that are held: nothing is reset or ended for them, but for one canary each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// All of them.
    pub causes: Vec<HeldCause>,
}

/// A cause that is held in a cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(Cell, Cause, Option<u64>)", into = "(Cell, Cause, Option<u64>)")]
pub struct HeldCause {
    /// Where.
    pub cell: Cell,
    /// What the faults have in common.
    pub cause: Cause,
    /// The node that is tried, where one is.
    pub canary: Option<u64>,
}

impl From<(Cell, Cause, Option<u64>)> for HeldCause {
    fn from((cell, cause, canary): (Cell, Cause, Option<u64>)) -> Self {
        Self { cell, cause, canary }
    }
}

impl From<HeldCause> for (Cell, Cause, Option<u64>) {
    fn from(held: HeldCause) -> Self {
        (held.cell, held.cause, held.canary)
    }
}

impl Held {
    /// The cause of these that is held in a cell, for all but the canary `node`.
    #[must_use]
    pub fn of<'a>(&'a self, cell: &Cell, causes: &[Cause], node: Option<u64>) -> Option<&'a Cause> {
        let mut all = self.causes.iter();
        let holds =
            |h: &&HeldCause| h.cell == *cell && causes.contains(&h.cause) && (node.is_none() || h.canary != node);
        all.find(holds).map(|h| &h.cause)
    }
}

/// What a host says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Serial numbers of its GPUs, in their order; empty where they tell none.
    pub serials: Vec<String>,
    /// Version of its driver.
    pub driver: Option<String>,
    /// Image that it was started from.
    pub image: Option<String>,
    /// What it hangs together with others by.
    pub domain: Option<String>,
}

/// Share of a cell's nodes that are repaired at the same time; one at least.
const REPAIRS_SHARE: f64 = 0.05;
/// Share of a cell's nodes that are ended for faults within an hour; [`ENDS_MIN`] at least.
const ENDS_SHARE_PER_H: f64 = 0.10;
const ENDS_MIN: usize = 2;

impl Node {
    /// What its fault may have in common with others: its cause, its driver, its image.
    #[must_use]
    pub fn causes(&self) -> Vec<Cause> {
        let driver = self.driver.as_ref().map(|d| Cause::Driver(d.clone()));
        let image = self.image.as_ref().map(|i| Cause::Image(i.clone()));
        // What it waits for now outweighs what it had before; a gate says which check it was.
        let waits = self.care.as_ref().map(|c| c.cause.clone()).filter(|c| *c != Cause::Gate(None));
        waits.or_else(|| self.cause.clone()).into_iter().chain(driver).chain(image).collect()
    }
}

/// Nodes of a cell of so many that are repaired at the same time.
pub(super) fn repairs_max(nodes: usize) -> usize {
    ((REPAIRS_SHARE * nodes as f64).ceil() as usize).max(1)
}

impl Book {
    /// Whether a host can have the GPUs that it names: no more than were bought.
    ///
    /// # Errors
    /// It cannot, or the node is unknown.
    pub fn can_have(&self, id: u64, serials: &[String]) -> Result<(), NodeError> {
        let node = self.nodes.get(&id).ok_or(NodeError::Unknown(id))?;
        if serials.len() > node.gpus as usize {
            return Err(NodeError::OtherSerials { node: id, gpus: node.gpus, named: serials.len() });
        }
        Ok(())
    }

    /// The node whose GPUs a host names as its own, and the first of them. They are of the node that proved them first, while
    /// it lives: whoever names them after it has others, or none. One that was silent for a while and comes back has its own,
    /// whoever named them meanwhile.
    #[must_use]
    pub fn owner_of<'a>(&self, id: u64, serials: &'a [String]) -> Option<(u64, &'a str)> {
        let proved = |node: &Node| node.serials_proved && serials.iter().all(|s| node.serials.contains(s));
        if self.nodes.get(&id).is_some_and(proved) {
            return None;
        }
        let lives = |node: &&Node| {
            node.id != id
                && (node.serials_proved || node.state.takes_claims())
                && !matches!(node.state, NodeState::Lost | NodeState::Terminating | NodeState::Terminated)
        };
        let named = |node: &Node| serials.iter().find(|s| node.serials.contains(s)).map(|s| (node.id, s.as_str()));
        self.nodes.values().filter(lives).find_map(named)
    }

    /// What a host says of itself.
    pub fn identify(&mut self, id: u64, identity: &Identity) {
        let Some(node) = self.nodes.get(&id) else { return };
        let Identity { serials, driver, image, domain } = identity.clone();
        // A host on which a GPU is lost does not tell who the others are: it is as it was.
        let serials = if serials.is_empty() { node.serials.clone() } else { serials };
        let (driver, image) = (driver.or_else(|| node.driver.clone()), image.or_else(|| node.image.clone()));
        let domain = domain.or_else(|| node.domain.clone());
        if (&serials, &driver, &image, &domain) != (&node.serials, &node.driver, &node.image, &node.domain) {
            let known = self.edit_node(id, |node| {
                node.serials_proved &= node.serials == serials;
                (node.serials, node.driver, node.image, node.domain) = (serials, driver, image, domain);
            });
            debug_assert!(known.is_ok(), "{known:?}");
        }
    }

    /// The GPUs that a host named are another's: it is known by none.
    pub fn disown(&mut self, id: u64) {
        // One that is gone names none.
        self.edit_node(id, |node| {
            node.serials.clear();
            node.serials_proved = false;
        })
        .ok();
    }

    /// Says what a node's fault was, so that it can be seen which have one in common.
    pub fn blame(&mut self, id: u64, cause: Cause) {
        // One that is gone needs no cause.
        self.edit_node(id, |node| node.cause = Some(cause)).ok();
    }

    /// The causes that are held, whole.
    pub fn set_held(&mut self, held: Held) {
        self.held = held;
    }

    /// The causes that are held.
    #[must_use]
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// The cause for which nothing is done to a node; none where it may be.
    #[must_use]
    pub fn held_for(&self, node: &Node) -> Option<&Cause> {
        // What is well has nothing to be held for, whatever it had before; a person's word is above it.
        if self.held.causes.is_empty() || node.takes_claims() || node.sent_back {
            return None;
        }
        self.held.of(&Cell::of(&node.offer), &node.causes(), Some(node.id))
    }

    /// Whether a node may be repaired now: its cause is not held, and few enough of its cell are being repaired.
    #[must_use]
    pub fn may_repair(&self, id: u64, now_ms: i64) -> bool {
        let Some(node) = self.nodes.get(&id) else { return false };
        if self.held_for(node).is_some() {
            return false;
        }
        let cell = Cell::of(&node.offer);
        let (mut all, mut repairing) = (0_u32, 0_u32);
        for other in self.nodes.values().filter(|n| cell.has(&n.offer)) {
            all += 1;
            // One that does not come back is no longer being repaired.
            let late = now_ms - other.since_ms > self.limits.boot_max_ms;
            repairing += u32::from(other.state == NodeState::Repairing && !late);
        }
        (repairing as usize) < repairs_max(all as usize)
    }

    /// How many nodes of each cell may yet be ended for faults within this hour, where `ended` were.
    pub(super) fn ends_left(&self, ended: &BTreeMap<Cell, usize>) -> BTreeMap<Cell, usize> {
        let mut all: BTreeMap<Cell, usize> = BTreeMap::new();
        for node in self.nodes.values() {
            *all.entry(Cell::of(&node.offer)).or_default() += 1;
        }
        // Asked for already, and not carried out.
        let mut asked: BTreeMap<Cell, usize> = BTreeMap::new();
        for intent in self.intents.values().filter(|i| i.state.is_open()) {
            let IntentAction::Terminate { node } = intent.action else { continue };
            let planned = [NodeState::Draining, NodeState::Terminating, NodeState::Booting];
            if let Some(node) = self.nodes.get(&node).filter(|n| !planned.contains(&n.state)) {
                *asked.entry(Cell::of(&node.offer)).or_default() += 1;
            }
        }
        let left = |(cell, nodes): (Cell, usize)| {
            // Those that have ended were of the cell too.
            let ended = ended.get(&cell).copied().unwrap_or(0);
            let most = ((ENDS_SHARE_PER_H * (nodes + ended) as f64) as usize).max(ENDS_MIN);
            let asked = asked.get(&cell).copied().unwrap_or(0);
            (cell, most.saturating_sub(ended + asked))
        };
        all.into_iter().map(left).collect()
    }

    /// Nodes that are out of service for a fault and could be mended or ended now, the longest first.
    #[must_use]
    pub fn out_for_faults(&self) -> Vec<&Node> {
        let waits = |n: &&Node| n.is_quarantined() || (n.care.is_some() && n.state.in_service() && !n.has_claims());
        let mut out: Vec<&Node> = self.nodes.values().filter(waits).collect();
        out.sort_by_key(|n| (n.since_ms, n.id));
        out
    }

    /// Cells for which something is held: nothing of them is lent to diagnostics.
    #[must_use]
    pub fn held_cells(&self) -> BTreeSet<&Cell> {
        self.held.causes.iter().map(|h| &h.cell).collect()
    }
}
