//! What clouds sell and how they behave: importers of price data into one offer table, the gate that keeps bad prices
//! out of plans, and a simulated cloud.

pub mod aws;
pub mod catalogue;
pub mod clock;
pub mod pace;
pub mod provider;
pub mod sim;
pub mod sim_provider;
pub mod static_provider;
pub mod table;

pub use catalogue::{Catalogue, GateRules, RawOffer, SetAside, gate};
pub use clock::Clock;
pub use fleet::cloud::{ErrorKind, Hint, Instance, InstanceState, Notice};
pub use pace::{CallRate, Pace};
pub use provider::{LaunchRequest, Provider, ProviderError};
pub use sim_provider::SimProvider;
pub use static_provider::StaticProvider;
pub use table::{DataError, Table};
