//! The queue of what is to come, in time order; equal times in the order they were pushed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What is to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// The boot gate has an answer for a machine.
    Gate(u32),
    /// The cloud says that it takes a machine back.
    Notice(u32),
    /// It takes it back, or it breaks.
    Gone(u32),
    /// A client keeps its claim.
    Heartbeat(u32),
    /// A client is done.
    ClaimEnd(u32),
    /// The disturbance with this index.
    Disturbance(u32),
    /// A step of the demand history is full.
    Step,
    /// A decision is due.
    Decide,
    /// A late decision is carried out.
    Carry(u32),
    /// Nodes are looked at: who needs care, who is to end.
    Look,
    /// A call is made again.
    Act,
    /// A machine's copy is whole.
    Copies(u32),
    /// The plots take a sample.
    Sample,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    heap: BinaryHeap<Reverse<(u64, u64, Event)>>,
    pushed: u64,
}

impl Queue {
    /// Adds an event at a time in ms.
    pub fn push(&mut self, at_ms: u64, event: Event) {
        self.heap.push(Reverse((at_ms, self.pushed, event)));
        self.pushed += 1;
    }

    /// Time of the next event.
    pub fn next_ms(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at, _, _))| *at)
    }

    /// Takes the next event.
    pub fn pop(&mut self) -> Option<(u64, Event)> {
        self.heap.pop().map(|Reverse((at, _, event))| (at, event))
    }
}
