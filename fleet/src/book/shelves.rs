//! The one way to change a node: off its shelf, changed, and back on the shelf where it belongs now. So shelves and nodes
//! cannot fall apart.

use crate::node::NodeState;

use super::{Book, Node, NodeError};

impl Book {
    /// Changes a node, and notes that its record is to be written.
    ///
    /// # Errors
    /// It is unknown.
    pub(super) fn edit_node<R>(&mut self, id: u64, change: impl FnOnce(&mut Node) -> R) -> Result<R, NodeError> {
        let done = self.edit_unwritten(id, change)?;
        self.changes.nodes.insert(id);
        Ok(done)
    }

    /// The same for what need not be written down each time: heartbeats.
    pub(super) fn edit_unwritten<R>(&mut self, id: u64, change: impl FnOnce(&mut Node) -> R) -> Result<R, NodeError> {
        self.take_off(id);
        let node = self.nodes.get_mut(&id).ok_or(NodeError::Unknown(id))?;
        let before = node.health_part();
        let done = change(node);
        if node.health_part() != before {
            node.desired.health_changed(node.since_ms);
        }
        self.put_on(id);
        Ok(done)
    }

    /// A node that was not there.
    pub(super) fn insert_node(&mut self, node: Node) {
        let id = node.id;
        if let Some(instance) = &node.instance {
            self.by_instance.entry(instance.clone()).or_default().insert(id);
        }
        if let Some(p) = self.offer(&node.offer) {
            self.node_offers.insert(id, p);
        }
        self.nodes.insert(id, node);
        self.put_on(id);
    }

    /// A node that is forgotten.
    pub(super) fn remove_node(&mut self, id: u64) {
        self.take_off(id);
        self.lent.remove(&id);
        self.node_offers.remove(&id);
        let Some(instance) = self.nodes.remove(&id).and_then(|n| n.instance) else { return };
        if let Some(ids) = self.by_instance.get_mut(&instance) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_instance.remove(&instance);
            }
        }
    }

    /// Nodes of offers that were not known when they came.
    pub(super) fn put_on_new_shelves(&mut self) {
        let new: Vec<(u64, usize)> = self
            .nodes
            .values()
            .filter(|n| !self.node_offers.contains_key(&n.id))
            .filter_map(|n| Some((n.id, self.offer(&n.offer)?)))
            .collect();
        for (id, offer) in new {
            self.node_offers.insert(id, offer);
            self.put_on(id);
        }
    }

    fn put_on(&mut self, id: u64) {
        let Some(node) = self.nodes.get(&id) else { return };
        if node.diagnosis.is_some() {
            self.lent.insert(id);
        } else {
            self.lent.remove(&id);
        }
        if let Some(p) = self.offer_of(node)
            && node.can_be_claimed()
        {
            self.shelves[p].put(id, node.free.count(), node.claimed_last);
        }
        self.index_copies(id);
    }

    fn take_off(&mut self, id: u64) {
        self.unindex_copies(id);
        let Some(node) = self.nodes.get(&id) else { return };
        if let Some(p) = self.offer_of(node) {
            self.shelves[p].take(id, node.free.count(), node.claimed_last);
        }
    }
}

impl Node {
    /// Whether a claim can be placed on it now: by its state, with GPUs left, and with a proof of health of this boot.
    #[must_use]
    pub fn can_be_claimed(&self) -> bool {
        self.takes_claims() && self.free.count() > 0 && self.proof_at_ms.is_some()
    }

    /// Whether claims have GPUs of it.
    #[must_use]
    pub fn has_claims(&self) -> bool {
        self.free.count() < self.gpus
    }

    /// Whether it is out of service for a fault.
    #[must_use]
    pub fn is_quarantined(&self) -> bool {
        self.state == NodeState::Quarantined
    }
}
