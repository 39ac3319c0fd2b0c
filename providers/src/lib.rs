//! What clouds sell and how they behave: importers of price data into one offer table, the gate that keeps bad prices
//! out of plans, and a simulated cloud.

pub mod catalogue;
pub mod sim;
pub mod table;

pub use catalogue::{Catalogue, GateRules, RawOffer, SetAside, gate};
pub use table::{DataError, Table};
