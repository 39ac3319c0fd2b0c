//! Everything that a plan is made from, as the book and what was learnt have it: the one assembly, for the server and for
//! the simulator.

use std::collections::{BTreeMap, BTreeSet};

use fleet::book::{Book, ClassRule, Tally};
use fleet::{Class, Offer, OfferKey};
use planner::gather::{Borrower, Estimate, ObservedNode, Prior};
use planner::input::{Commitment, Quota};
use planner::rolling::Moment;
use planner::scenarios::{Declared, History};
use protocol::{ForecastSpec, QuotaSpec};

use crate::learning::Learnt;
use crate::offers::{Market, commitment};
use crate::outcomes::place_of;
use crate::sampler::{STEP_S, demand};
use crate::staging::{Outlook, Worth, worth};

/// What is looked at.
#[derive(Debug)]
pub struct Knowledge<'a> {
    /// Nodes, claims, offers and classes.
    pub book: &'a Book,
    /// What launches and nodes have taught.
    pub learnt: &'a Learnt,
    /// What is sold, and what providers hint at.
    pub market: &'a Market,
    /// Nodes that plans do not count, though they are there.
    pub uncounted: &'a BTreeSet<u64>,
    /// What is assumed of an offer until launches tell more.
    pub prior: &'a Prior,
    /// The same for single offers, where something else is assumed of them.
    pub prior_of: &'a BTreeMap<OfferKey, Prior>,
    /// Quotas of the accounts.
    pub quotas: &'a [QuotaSpec],
    /// Demand that was declared.
    pub forecasts: &'a [ForecastSpec],
    /// What the plan before expects; copies on hosts are weighed by it.
    pub outlook: Option<&'a Outlook>,
    /// Periods of a plan.
    pub periods: usize,
    /// Now, milliseconds since 1970.
    pub now_ms: i64,
}

/// What was gathered; `planner::rolling::Moment` borrows from it. Shapes: `P` offers, `K` classes, `N` nodes.
#[derive(Debug)]
pub struct Inputs {
    /// Now, seconds since 1970.
    pub now_s: f64,
    /// Offers that are sold or have nodes, `[P]`.
    pub offers: Vec<Offer>,
    /// Their supply, `[P]`.
    pub estimates: Vec<Estimate>,
    /// Classes, `[K]`.
    pub classes: Vec<Class>,
    /// Mean life of a claim, seconds, `[K]`.
    pub claim_mean_s: Vec<f64>,
    /// Nodes that take or will take claims, `[N]`.
    pub nodes: Vec<ObservedNode>,
    /// Their numbers, `[N]`.
    pub ids: Vec<u64>,
    /// Hits and misses, `[K]`.
    pub judged: Vec<Tally>,
    /// Demand, `[K]` rows.
    pub history: History,
    /// Quotas.
    pub quotas: Vec<Quota>,
    /// What is paid for whether used or not.
    pub commitments: Vec<Commitment>,
    /// Demand that was declared.
    pub declared: Vec<Declared>,
    /// Who would borrow what is idle.
    pub borrowers: Vec<Borrower>,
}

/// Classes that nodes are bought for, by name: all but those that borrow.
pub fn planned(book: &Book) -> impl Iterator<Item = (&String, &ClassRule)> {
    book.classes().iter().filter(|(_, rule)| !rule.class.borrows())
}

impl Inputs {
    /// Gathers them.
    #[must_use]
    pub fn of(known: &Knowledge<'_>, history: History) -> Self {
        let (book, now_s) = (known.book, known.now_ms as f64 / 1000.0);
        let staged = known.outlook.filter(|_| !book.snapshots().is_empty());
        let copies = staged.map_or_else(Worth::default, |outlook| worth(book, outlook));
        let (ids, nodes) = observed(known, &copies);
        let (estimates, commitments) = estimates(known, &copies, now_s);
        let judged = |name: &String| book.tallies().get(name).copied().unwrap_or_default();
        let names: Vec<&String> = planned(book).map(|(name, _)| name).collect();
        Self {
            now_s,
            offers: book.offers().to_vec(),
            estimates,
            classes: planned(book).map(|(_, r)| r.class.clone()).collect(),
            claim_mean_s: planned(book).map(|(_, r)| r.claim_mean_s).collect(),
            nodes,
            ids,
            judged: names.iter().map(|name| judged(name)).collect(),
            history,
            quotas: quotas(known.quotas, book.offers()),
            commitments,
            declared: declared(known.forecasts, &names, known.now_ms),
            borrowers: borrowers(book),
        }
    }

    /// As the planner takes it, for the plan with this number.
    #[must_use]
    pub fn moment(&self, epoch: u64) -> Moment<'_> {
        Moment {
            now_s: self.now_s,
            epoch,
            offers: &self.offers,
            estimates: &self.estimates,
            classes: &self.classes,
            claim_mean_s: &self.claim_mean_s,
            nodes: &self.nodes,
            quotas: &self.quotas,
            commitments: &self.commitments,
            declared: &self.declared,
            borrowers: &self.borrowers,
            judged: &self.judged,
            history: &self.history,
            known: None,
        }
    }
}

/// Classes that borrow, with their claims that have GPUs or wait.
fn borrowers(book: &Book) -> Vec<Borrower> {
    let borrow =
        book.classes().values().filter(|rule| rule.class.borrows() && !book.offers_of(&rule.class.name).is_empty());
    let one = |rule: &ClassRule| {
        let open = book.claims().values().filter(|claim| claim.class == rule.class.name);
        Borrower { class: rule.class.clone(), claims: open.map(|claim| f64::from(claim.count)).sum() }
    };
    borrow.map(one).filter(|borrower| borrower.claims > 0.0).collect()
}

/// Nodes that plans count, with their numbers.
fn observed(known: &Knowledge<'_>, copies: &Worth) -> (Vec<u64>, Vec<ObservedNode>) {
    let book = known.book;
    let classes: BTreeMap<&str, usize> = planned(book).enumerate().map(|(k, (name, _))| (name.as_str(), k)).collect();
    let mut claims: BTreeMap<u64, BTreeMap<usize, u32>> = BTreeMap::new();
    for claim in book.claims().values().filter(|c| c.state.is_live()) {
        let Some(&k) = classes.get(claim.class.as_str()) else { continue };
        let each = book.classes()[&claim.class].class.gpus_per_claim.max(1);
        for part in &claim.parts {
            *claims.entry(part.node).or_default().entry(k).or_default() += (part.gpus.count() / each).max(1);
        }
    }
    let (mut ids, mut nodes) = (Vec::new(), Vec::new());
    for node in book.nodes().values() {
        // One that is lent to diagnostics comes back within the time that claims wait.
        let lent = node.diagnosis.is_some() && node.care.is_none();
        let serves = node.takes_claims() || node.state.is_arriving() || lent;
        let counted = serves && !known.uncounted.contains(&node.id);
        let Some(offer) = book.offer_of(node).filter(|_| counted) else { continue };
        ids.push(node.id);
        nodes.push(ObservedNode {
            offer,
            age_s: (known.now_ms - node.asked_at_ms).max(0) as f64 / 1000.0,
            healthy: node.takes_claims() || lent,
            claims: claims.get(&node.id).map(|c| c.iter().map(|(k, n)| (*k, *n)).collect()).unwrap_or_default(),
            copies_usd_micros: copies.of_node.get(&node.id).copied().unwrap_or_default(),
        });
    }
    (ids, nodes)
}

/// What is expected of each offer, and what is paid for in any case.
fn estimates(known: &Knowledge<'_>, copies: &Worth, now_s: f64) -> (Vec<Estimate>, Vec<Commitment>) {
    let book = known.book;
    let place = |offer: &Offer| place_of(&offer.key, &offer.gpu.to_string());
    let health = known.learnt.health.briefs(book.offers().iter().map(place));
    let mut commitments = Vec::new();
    let one = |(p, offer): (usize, &Offer)| {
        let hint = known.market.hint(&offer.key);
        let (learnt, fill) = (known.learnt.supply.get(&offer.key), hint.and_then(|(h, _)| h.fill));
        let prior = known.prior_of.get(&offer.key).unwrap_or(known.prior);
        let mut estimate = Estimate::of(offer, learnt, fill, &health[&place(offer)], prior, now_s);
        if let Some((hint, at_ms)) = hint {
            commitments.extend(commitment(p, hint, known.periods));
            if let Some(room) = hint.launch_limit_nodes {
                // What was asked for since takes of the room that was told.
                let since = book.nodes().values().filter(|n| n.offer == offer.key && n.asked_at_ms >= *at_ms).count();
                let left = (f64::from(room) - since as f64).max(0.0);
                estimate.launch_limit_nodes = estimate.launch_limit_nodes.min(left);
            }
        }
        // Its nodes are still of use; more of them cannot be had.
        if !known.market.is_sold(&offer.key) {
            estimate.launch_limit_nodes = 0.0;
        }
        estimate.restage_usd_micros = copies.of_launch.get(&p).copied().unwrap_or_default();
        estimate
    };
    let estimates = book.offers().iter().enumerate().map(one).collect();
    (estimates, commitments)
}

/// The quotas over `offers`. One over offers that are not sold now limits nothing.
#[must_use]
pub fn quotas(specs: &[QuotaSpec], offers: &[Offer]) -> Vec<Quota> {
    let quota = |spec: &QuotaSpec| {
        let hits = spec.matching.members(offers);
        let members = hits.iter().map(|p| (*p, f64::from(offers[*p].gpus_per_node))).collect();
        (!hits.is_empty()).then(|| Quota { name: spec.name.clone(), members, limit: spec.limit_gpus })
    };
    specs.iter().filter_map(quota).collect()
}

/// What was declared, in seconds from now; of classes that are there, and not over.
fn declared(forecasts: &[ForecastSpec], classes: &[&String], now_ms: i64) -> Vec<Declared> {
    let from_now_s = |at_ms: i64| at_ms.saturating_sub(now_ms) as f64 / 1000.0;
    let one = |f: &ForecastSpec| {
        let class = classes.iter().position(|name| **name == f.class)?;
        let (from_s, until_s) = (from_now_s(f.from_ms), from_now_s(f.until_ms));
        (until_s > 0.0).then_some(Declared { class, from_s, until_s, claims: f.claims })
    };
    forecasts.iter().filter_map(one).collect()
}

/// Demand in equal steps up to now, of `(class, milliseconds since 1970, claims)` by time. A step that nobody wrote down
/// (the server was off) repeats the one before.
#[must_use]
pub fn history(book: &Book, past: &[(String, i64, f64)], now_ms: i64) -> History {
    let step_ms = i64::from(STEP_S) * 1000;
    let first_ms = past.first().map_or(now_ms, |row| row.1) / step_ms;
    let steps = usize::try_from(now_ms / step_ms - first_ms).unwrap_or(0);
    let index: BTreeMap<&str, usize> = planned(book).enumerate().map(|(k, (n, _))| (n.as_str(), k)).collect();
    let mut claims = vec![vec![f64::NAN; steps]; index.len()];
    for (class, at_ms, value) in past {
        let at = usize::try_from(at_ms / step_ms - first_ms).unwrap_or(0);
        if let Some(k) = index.get(class.as_str()).filter(|_| at < steps) {
            claims[*k][at] = *value;
        }
    }
    let now = demand(book);
    let mut filled_steps = vec![0; claims.len()];
    for ((row, (name, _)), filled) in claims.iter_mut().zip(planned(book)).zip(&mut filled_steps) {
        let mut last = 0.0;
        let mut begun = false;
        for value in row.iter_mut() {
            if value.is_nan() {
                *value = last;
                *filled += u32::from(begun);
            } else {
                begun = true;
            }
            last = *value;
        }
        row.push(now.get(name).copied().unwrap_or(0) as f64);
    }
    History { step_s: STEP_S, claims, filled_steps }
}

#[cfg(test)]
mod tests {
    use fleet::book::Limits;
    use protocol::ClassSpec;

    use super::*;

    fn class(name: &str, borrows: Option<f64>) -> ClassRule {
        let mut spec = serde_json::json!({ "name": name, "gpus": [{ "model": "H100-SXM" }], "hit_rate": 0.0 });
        if let Some(usd) = borrows {
            spec["borrows_usd_per_gpu_h"] = usd.into();
        }
        serde_json::from_value::<ClassSpec>(spec).expect("a class").rule().expect("sensible")
    }

    /// Steps that were not written down are as those before, and are counted; who borrows is no demand.
    #[test]
    fn gaps_are_counted_and_borrowers_are_left_out() {
        let mut book = Book::new(Limits::default());
        book.set_classes([class("a-batch", Some(0.5)), class("chat", None), class("code", None)]);
        let step_ms = i64::from(STEP_S) * 1000;
        let past: Vec<(String, i64, f64)> =
            [("chat", 0, 4.0), ("chat", 1, 5.0), ("chat", 4, 6.0), ("code", 3, 2.0), ("a-batch", 2, 9.0)]
                .map(|(class, step, claims)| (class.to_owned(), step * step_ms, claims))
                .to_vec();
        let history = history(&book, &past, 5 * step_ms);
        assert_eq!(history.claims, [vec![4.0, 5.0, 5.0, 5.0, 6.0, 0.0], vec![0.0, 0.0, 0.0, 2.0, 2.0, 0.0]]);
        assert_eq!(history.filled_steps, [2, 1], "a class that came later has no gap before that");
        let names: Vec<&String> = planned(&book).map(|(name, _)| name).collect();
        assert_eq!(names, ["chat", "code"]);
    }
}
