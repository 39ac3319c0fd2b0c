//! Tests that need several of the rooms, as processes: the control plane, its agents, databases, clouds. The room has no code
//! of its own; nothing depends on it.
