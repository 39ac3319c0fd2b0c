//! The decisions of the control plane's loops, pure: what learnt supply is, what a plan becomes as intents, how a provider's
//! list is reconciled, how a call is answered, what a report of an agent means, which nodes are lent to diagnostics, which
//! causes are held. Time and events are arguments. The server is the shell around it that does the I/O; the simulator is one
//! with virtual time.

mod as_list;
pub mod breakers;
pub mod calls;
pub mod gpus;
pub mod inputs;
pub mod learning;
pub mod observation;
pub mod offers;
pub mod outcomes;
pub mod plan;
pub mod reports;
pub mod sampler;
pub mod staging;
pub mod starts;
pub mod weekly;
