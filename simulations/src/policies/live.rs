//! The shipped planner as a policy: the same forecast, the same input, the same plan, the same choice of nodes.

use control::staging::Outlook;
use planner::gather;
use planner::miss_price::MissPrices;
use planner::rolling::{self, Moment, RollingMemory, Rules};

use super::{Decision, LaunchOrder, Policy, Seen, TrueFuture};

/// The planner with what it remembers.
#[derive(Debug)]
pub struct Live {
    rules: Rules,
    memory: RollingMemory,
    /// Known instead of forecast.
    future: Option<TrueFuture>,
    outlook: Outlook,
}

impl Live {
    /// With the prices of misses that earlier days came to; the default without a past.
    #[must_use]
    pub fn new(rules: Rules, prices: MissPrices) -> Self {
        Self { rules, memory: RollingMemory::with_prices(prices), future: None, outlook: Outlook::default() }
    }

    /// The same, with the one true future in place of the forecast.
    #[must_use]
    pub fn foreseeing(self, future: TrueFuture) -> Self {
        Self { future: Some(future), ..self }
    }

    /// The prices of misses, for the days that come.
    #[must_use]
    pub fn prices(&self) -> MissPrices {
        self.memory.prices()
    }
}

impl Policy for Live {
    fn decide(&mut self, seen: &Seen) -> Result<Decision, String> {
        let (inputs, now_s) = (seen.inputs, seen.inputs.now_s);
        let known = self.future.as_ref().map(|future| future.path(seen, &self.rules.period_s));
        let epoch = self.memory.parent().map_or(1, |(p, _)| p.epoch + 1);
        let moment = Moment { known: known.as_ref(), ..inputs.moment(epoch) };
        let input = rolling::input(&self.rules, &mut self.memory, &moment);
        self.outlook = Outlook::of(&input);
        let made = rolling::decide(&mut self.memory, &input, now_s).map_err(|e| e.to_string())?;
        let released = gather::nodes_to_release(&made, &inputs.offers, &inputs.nodes);
        let releases = released.into_iter().map(|i| inputs.ids[i]).collect();
        let place = |key: &fleet::OfferKey| inputs.offers.iter().position(|o| o.key == *key);
        let launches = made
            .launches
            .iter()
            .filter_map(|l| place(&l.offer).map(|offer| LaunchOrder { offer, nodes: l.nodes, label: None }));
        Ok(Decision { launches: launches.collect(), releases, fell_back: made.report.method.fell_back() })
    }

    fn outlook(&self) -> Option<Outlook> {
        Some(self.outlook.clone())
    }

    fn foresees(&self) -> bool {
        self.future.is_some()
    }
}
