//! What is measured of pools.

/// What was measured, after the first two weeks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// Nodes.
    pub nodes: usize,
    /// Claims.
    pub claims: u64,
    /// Claims that found an idle node.
    pub at_once: u64,
    /// Claims that waited for a diagnostic to yield.
    pub waited_for_yield: u64,
    /// Claims that waited since nothing was idle or in a diagnostic.
    pub waited_for_node: u64,
    /// Diagnostics begun, quick and slices among them.
    pub begun: u64,
    /// Those that ran to their end.
    pub ended: u64,
    /// Diagnostics that were begun although fewer than the hot reserve stayed idle.
    pub begun_under_reserve: u64,
    /// Seconds in which fewer than the hot reserve were idle, or on their way back from a diagnostic, while another one ran
    /// that was not told to yield.
    pub under_reserve_s: f64,
    /// Seconds in which fewer were idle while diagnostics were on their way back.
    pub coming_back_s: f64,
    /// Node-seconds in service, and those in diagnostics.
    pub service_s: f64,
    /// Node-seconds in diagnostics.
    pub diagnostic_s: f64,
    /// Node-seconds in service in which the last full test was no older than ten days.
    pub tested_s: f64,
    /// Times that diagnostics took to yield, seconds.
    pub yields_s: Vec<f64>,
}

impl Measured {
    /// Adds another pool's.
    pub fn add(&mut self, o: &Self) {
        self.nodes += o.nodes;
        self.claims += o.claims;
        self.at_once += o.at_once;
        self.waited_for_yield += o.waited_for_yield;
        self.waited_for_node += o.waited_for_node;
        self.begun += o.begun;
        self.ended += o.ended;
        self.begun_under_reserve += o.begun_under_reserve;
        self.under_reserve_s += o.under_reserve_s;
        self.coming_back_s += o.coming_back_s;
        self.service_s += o.service_s;
        self.diagnostic_s += o.diagnostic_s;
        self.tested_s += o.tested_s;
        self.yields_s.extend(&o.yields_s);
    }

    /// The 99 % quantile of the times to yield, seconds; none where none yielded.
    #[must_use]
    pub fn yield_p99_s(&self) -> Option<f64> {
        let mut sorted = self.yields_s.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get((sorted.len() as f64 * 0.99).ceil() as usize - usize::from(!sorted.is_empty())).copied()
    }
}
