//! What every provider must do.

mod conformance;
