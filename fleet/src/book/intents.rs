//! Intents: written before a provider is called, closed when its answer is known.

use crate::intent::{IllegalIntentEvent, IntentEvent, IntentState, LaunchAnswer};
use crate::node::{NodeEvent, NodeState};
use crate::offer::OfferKey;

use super::{Asked, Book, Change, Intent, IntentAction, IntentChange, NodeChange, NodeError, NodeFacts, What};

/// Why an intent cannot be made or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IntentError {
    /// There is no such intent, or it is closed.
    #[error("there is no open intent i-{0}")]
    Unknown(u64),
    /// The offer is not known.
    #[error("there is no offer {0}")]
    UnknownOffer(OfferKey),
    /// A node cannot do it.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Its state does not allow it.
    #[error(transparent)]
    Illegal(#[from] IllegalIntentEvent),
}

impl Book {
    fn intend(&mut self, epoch: u64, action: IntentAction, life_ms: i64, reason: &str, now_ms: i64) -> u64 {
        let id = self.new_id();
        let intent = Intent {
            id,
            epoch,
            action,
            token: self.launch_token(id),
            state: IntentState::Pending,
            tries: 0,
            sent_at_ms: None,
            not_before_ms: now_ms,
            made_at_ms: now_ms,
            expires_at_ms: now_ms.saturating_add(life_ms),
            reason: reason.to_owned(),
        };
        self.intents.insert(id, intent);
        self.changes.intents.insert(id);
        id
    }

    /// The one way from one state of an intent to another. Who calls it writes the event, where there is one.
    fn intent_event(&mut self, id: u64, event: IntentEvent, reason: &str) -> Result<IntentState, IntentError> {
        let intent = self.open_intent(id)?;
        let before = intent.state;
        intent.state = before.after(event)?;
        if event != IntentEvent::Sent {
            reason.clone_into(&mut intent.reason);
        }
        self.changes.intents.insert(id);
        Ok(before)
    }

    fn open_intent(&mut self, id: u64) -> Result<&mut Intent, IntentError> {
        self.intents.get_mut(&id).filter(|i| i.state.is_open()).ok_or(IntentError::Unknown(id))
    }

    /// The event of an intent that is in a new state.
    fn note_intent(
        &mut self,
        id: u64,
        from: Option<IntentState>,
        answer: Option<LaunchAnswer>,
        reason: &str,
        at_ms: i64,
    ) {
        let Some(intent) = self.intents.get(&id) else { return };
        let action = match &intent.action {
            IntentAction::Launch { offer, nodes } => {
                Asked::Launch { offer: offer.clone(), nodes: u32::try_from(nodes.len()).unwrap_or(u32::MAX), answer }
            }
            IntentAction::Terminate { node } => Asked::Terminate { node: *node },
        };
        let what = What::Intent(IntentChange { id, from, to: intent.state, action });
        self.changes.events.push(Change { at_ms, what, reason: reason.to_owned() });
    }

    /// Wants `count` nodes of an offer, which are `requested` from now on.
    ///
    /// # Errors
    /// The offer is unknown or its nodes are too large.
    pub fn intend_launch(
        &mut self,
        epoch: u64,
        offer: &OfferKey,
        count: u32,
        life_ms: i64,
        now_ms: i64,
    ) -> Result<u64, IntentError> {
        let p = self.offer(offer).ok_or_else(|| IntentError::UnknownOffer(offer.clone()))?;
        let gpus = self.offers[p].gpus_per_node;
        if gpus > crate::GpuSet::MAX {
            return Err(NodeError::TooLarge(gpus).into());
        }
        let action = IntentAction::Launch { offer: offer.clone(), nodes: Vec::new() };
        let why = if epoch > 0 { format!("plan {epoch}") } else { "asked for by hand".into() };
        let id = self.intend(epoch, action, life_ms, &why, now_ms);
        let asked: Vec<u64> = (0..count).map(|_| self.request_node(offer.clone(), gpus, Some(id), now_ms)).collect();
        if let Some(Intent { action: IntentAction::Launch { nodes, .. }, .. }) = self.intents.get_mut(&id) {
            nodes.clone_from(&asked);
        }
        self.note_intent(id, None, None, &why, now_ms);
        for id in asked {
            let Some(node) = self.nodes.get(&id).map(NodeFacts::of) else { continue };
            let requested = NodeChange { id, from: None, to: NodeState::Requested, event: None, node };
            self.note_node(requested, &why, now_ms);
        }
        Ok(id)
    }

    /// Gives an idle node back: it takes no more claims from now on.
    ///
    /// # Errors
    /// It is not idle any more, nor in diagnostics or borrowed.
    pub fn intend_release(&mut self, epoch: u64, node: u64, now_ms: i64) -> Result<u64, IntentError> {
        let found = self.nodes.get(&node).ok_or(NodeError::Unknown(node))?;
        let lent = self.is_all_borrowed(found);
        if !lent && !matches!(found.state, NodeState::Idle | NodeState::Diagnosing) {
            return Err(NodeError::NotIdle { node, state: found.state.name() }.into());
        }
        let why = if epoch > 0 { format!("plan {epoch} gives it back") } else { "given back by hand".into() };
        self.drain(node, &why, now_ms)?;
        let intent = self.intend_terminate(epoch, node, &why, now_ms);
        if lent {
            self.call_back_node(node, &why, now_ms);
            if let Some(intent) = self.intents.get_mut(&intent) {
                // Who borrowed it is gone by then.
                intent.not_before_ms = now_ms + self.limits.call_back_ms;
            }
        }
        Ok(intent)
    }

    /// Ends a node that must not run on, whatever its state. Asking again changes nothing.
    ///
    /// # Errors
    /// It is unknown.
    pub fn intend_end(&mut self, node: u64, reason: &str, now_ms: i64) -> Result<u64, IntentError> {
        self.nodes.get(&node).ok_or(NodeError::Unknown(node))?;
        let open = self.intents.values().find(|i| i.action == IntentAction::Terminate { node } && i.state.is_open());
        if let Some(open) = open {
            return Ok(open.id);
        }
        self.drain_once(node, reason, now_ms);
        self.edit_node(node, |n| n.out = true)?;
        Ok(self.intend_terminate(0, node, reason, now_ms))
    }

    fn intend_terminate(&mut self, epoch: u64, node: u64, why: &str, now_ms: i64) -> u64 {
        let id = self.intend(epoch, IntentAction::Terminate { node }, i64::MAX / 2, why, now_ms);
        self.note_intent(id, None, None, why, now_ms);
        id
    }

    /// A call is about to be made. From here on its effect is unknown until an answer is.
    ///
    /// # Errors
    /// It is closed.
    pub fn intent_sent(&mut self, id: u64, now_ms: i64) -> Result<(), IntentError> {
        let before = self.intent_event(id, IntentEvent::Sent, "")?;
        let intent = self.open_intent(id)?;
        intent.tries += 1;
        intent.sent_at_ms = Some(now_ms);
        let tries = intent.tries;
        if before == IntentState::Pending {
            self.note_intent(id, Some(before), None, &format!("try {tries}"), now_ms);
        }
        Ok(())
    }

    /// The call is to be made again, not before `not_before_ms`. `no_effect`: it is certain that the last call did
    /// nothing.
    ///
    /// # Errors
    /// It is closed.
    pub fn intent_again(
        &mut self,
        id: u64,
        not_before_ms: i64,
        no_effect: bool,
        reason: &str,
    ) -> Result<(), IntentError> {
        let intent = self.open_intent(id)?;
        intent.not_before_ms = not_before_ms;
        reason.clone_into(&mut intent.reason);
        self.changes.intents.insert(id);
        if no_effect {
            self.intent_event(id, IntentEvent::HadNoEffect, reason)?;
        }
        Ok(())
    }

    /// The cloud launched `instances` for a launch intent and will launch no more. Nodes without one are gone.
    ///
    /// # Errors
    /// It is closed.
    pub fn launched(
        &mut self,
        id: u64,
        instances: &[String],
        answer: LaunchAnswer,
        reason: &str,
        now_ms: i64,
    ) -> Result<(), IntentError> {
        let intent = self.intents.get(&id).filter(|i| i.state.is_open()).ok_or(IntentError::Unknown(id))?;
        let IntentAction::Launch { nodes, .. } = &intent.action else { return Err(IntentError::Unknown(id)) };
        let known: Vec<String> = nodes.iter().filter_map(|n| self.nodes.get(n)?.instance.clone()).collect();
        let mut new = instances.iter().filter(|i| !known.contains(i));
        let nodes = nodes.clone();
        let mut running = 0;
        for node in &nodes {
            if self.nodes.get(node).is_none_or(|n| n.state != NodeState::Requested) {
                running += usize::from(self.nodes.contains_key(node));
                continue;
            }
            if let Some(instance) = new.next() {
                self.accepted(*node, instance, now_ms)?;
                running += 1;
            } else {
                self.node_event(*node, NodeEvent::Refused, reason, now_ms)?;
            }
        }
        let event = match running {
            0 if answer == LaunchAnswer::TimedOut => IntentEvent::TimedOut,
            0 => IntentEvent::Refused,
            n if n < nodes.len() => IntentEvent::DoneInPart,
            _ => IntentEvent::Done,
        };
        let before = self.intent_event(id, event, reason)?;
        self.note_intent(id, Some(before), Some(answer), reason, now_ms);
        Ok(())
    }

    /// The cloud took the request to end a node, or says that it is gone already.
    ///
    /// # Errors
    /// It is closed.
    pub fn termination_taken(&mut self, id: u64, gone: bool, now_ms: i64) -> Result<(), IntentError> {
        let intent = self.intents.get(&id).filter(|i| i.state.is_open()).ok_or(IntentError::Unknown(id))?;
        let IntentAction::Terminate { node } = intent.action else { return Err(IntentError::Unknown(id)) };
        if let Some(found) = self.nodes.get(&node) {
            if found.has_claims() && found.state != NodeState::Terminating {
                self.fail_claims(node, "the node is ended", now_ms);
            }
            if gone {
                self.gone(node, "the provider says that it is gone", now_ms)?;
            } else if self.nodes.get(&node).is_some_and(|n| n.state != NodeState::Terminating) {
                self.node_event(node, NodeEvent::TerminationSent, "the provider ends it", now_ms)?;
            }
        }
        let reason = "the provider ends it";
        let before = self.intent_event(id, IntentEvent::Done, reason)?;
        self.note_intent(id, Some(before), None, reason, now_ms);
        Ok(())
    }

    /// An instance that carries our tag and that nobody knows becomes a node, to be watched and ended.
    ///
    /// # Errors
    /// Its offer is unknown.
    pub fn adopt(&mut self, offer: &OfferKey, instance: &str, now_ms: i64) -> Result<u64, IntentError> {
        let p = self.offer(offer).ok_or_else(|| IntentError::UnknownOffer(offer.clone()))?;
        let node = self.request_node(offer.clone(), self.offers[p].gpus_per_node, None, now_ms);
        self.accepted(node, instance, now_ms)?;
        Ok(node)
    }

    /// Puts a stored intent back, as it was.
    pub fn load_intent(&mut self, intent: Intent) {
        let id = intent.id;
        self.skip_ids(id + 1);
        self.intents.remove(&id);
        if intent.state.is_open() {
            self.intents.insert(id, intent);
        }
    }
}
