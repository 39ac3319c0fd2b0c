//! What clouds sell: importers of price data into one offer table, and the gate that keeps bad prices out of plans.

pub mod catalogue;
pub mod table;

pub use catalogue::{Catalogue, GateRules, RawOffer, SetAside, gate};
pub use table::{DataError, Table};
