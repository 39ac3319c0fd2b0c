//! What the event log says: state changes, each with what those who learn from it need to know. Its words are for people.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Node;
use crate::cause::Cause;
use crate::claim::ClaimState;
use crate::intent::{IntentState, LaunchAnswer};
use crate::node::{NodeEvent, NodeState};
use crate::offer::OfferKey;
use crate::staged::CopyState;
use crate::start::StartState;

/// One state change with its reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// What.
    pub what: What,
    /// Why, for people: no decision reads it.
    pub reason: String,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "subject")]
pub enum What {
    /// A node.
    Node(NodeChange),
    /// A claim.
    Claim(ClaimChange),
    /// An intent.
    Intent(IntentChange),
    /// A copy of a snapshot on a node.
    Copy(CopyChange),
    /// What a host brings up for a claim.
    Start(StartChange),
}

/// A node went from one state to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeChange {
    /// Which.
    pub id: u64,
    /// State before; none for a new one.
    pub from: Option<NodeState>,
    /// State after.
    pub to: NodeState,
    /// What happened; none for a new one, and in what older versions wrote.
    #[serde(default)]
    pub event: Option<NodeEvent>,
    /// Who it is.
    pub node: NodeFacts,
}

/// What those who learn from a node's life need to know of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Where and as what it was bought.
    pub offer: OfferKey,
    /// GPUs that it has.
    pub gpus: u32,
    /// The intent that launched it.
    #[serde(default)]
    pub intent: Option<u64>,
    /// When it was asked for, milliseconds since 1970.
    pub asked_at_ms: i64,
    /// What its fault may have in common with others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// What its whole gate measured, the slowest GPU of each number; empty where none was run now.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rates: BTreeMap<String, f64>,
}

impl NodeFacts {
    /// Of a node as it is.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        Self {
            offer: node.offer.clone(),
            gpus: node.gpus,
            intent: node.intent,
            asked_at_ms: node.asked_at_ms,
            causes: node.causes(),
            rates: BTreeMap::new(),
        }
    }
}

/// A claim went from one state to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimChange {
    /// Which.
    pub id: u64,
    /// State before; none for a new one.
    pub from: Option<ClaimState>,
    /// State after.
    pub to: ClaimState,
    /// Its class.
    #[serde(default)]
    pub class: String,
}

/// An intent went from one state to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntentChange {
    /// Which.
    pub id: u64,
    /// State before; none for a new one.
    pub from: Option<IntentState>,
    /// State after.
    pub to: IntentState,
    /// What it is for.
    pub action: Asked,
}

/// A copy of a snapshot on a node went from one state to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyChange {
    /// The node.
    pub node: u64,
    /// Of which object.
    pub object: String,
    /// The snapshot that it is, in words; the first letters of the object where it is none any more.
    pub snapshot: String,
    /// State before; none where there was nothing.
    pub from: Option<CopyState>,
    /// State after; none where nothing is left.
    pub to: Option<CopyState>,
}

/// What a host brings up for a claim went from one state to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartChange {
    /// The claim.
    pub claim: u64,
    /// Its class.
    pub class: String,
    /// State before; none: it is new.
    pub from: Option<StartState>,
    /// State after.
    pub to: StartState,
}

/// What an intent asks for, and how a launch was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Asked {
    /// Nodes of an offer.
    Launch {
        /// Which.
        offer: OfferKey,
        /// How many.
        nodes: u32,
        /// The provider's answer, once it is closed.
        #[serde(default)]
        answer: Option<LaunchAnswer>,
    },
    /// The end of a node.
    Terminate {
        /// Which.
        node: u64,
    },
}

impl What {
    /// `node`, `claim`, `intent`, `copy` or `start`.
    #[must_use]
    pub fn subject(&self) -> &'static str {
        match self {
            Self::Node(_) => "node",
            Self::Claim(_) => "claim",
            Self::Intent(_) => "intent",
            Self::Copy(_) => "copy",
            Self::Start(_) => "start",
        }
    }

    /// As people write it: `n-17`, `c-42`, `i-3`.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Node(n) => format!("n-{}", n.id),
            Self::Claim(c) => format!("c-{}", c.id),
            Self::Intent(i) => format!("i-{}", i.id),
            Self::Copy(c) => format!("{} on n-{}", c.snapshot, c.node),
            Self::Start(s) => format!("start of c-{}", s.claim),
        }
    }

    /// Identity of what changed.
    #[must_use]
    pub fn id(&self) -> u64 {
        match self {
            Self::Node(n) => n.id,
            Self::Claim(c) => c.id,
            Self::Intent(i) => i.id,
            Self::Copy(c) => c.node,
            Self::Start(s) => s.claim,
        }
    }

    /// Words of the states before and after; the first is empty for what is new.
    #[must_use]
    pub fn states(&self) -> (&'static str, &'static str) {
        match self {
            Self::Node(n) => (n.from.map_or("", NodeState::name), n.to.name()),
            Self::Claim(c) => (c.from.map_or("", ClaimState::name), c.to.name()),
            Self::Intent(i) => (i.from.map_or("", IntentState::name), i.to.name()),
            Self::Copy(c) => (c.from.map_or("", CopyState::name), c.to.map_or("gone", CopyState::name)),
            Self::Start(s) => (s.from.map_or("", StartState::name), s.to.name()),
        }
    }
}
