//! What there is: nodes, offers, pools.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use fleet::NodeState;
use fleet::book::{Book, Node};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::{Caller, Role};
use super::problem::{ApiError, Code, Problem};
use super::{Body, Listed, PageQuery, number};
use crate::app::App;

/// A node.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeView {
    /// Identity, `n-17`.
    pub id: String,
    /// `requested`, `booting`, `checking`, `idle`, `claimed`, …
    pub state: String,
    /// Where it was bought, `provider/zone/type/market`.
    pub offer: String,
    /// GPU model.
    pub gpu: String,
    /// GPUs that it has.
    pub gpus: u32,
    /// Those without a claim.
    pub free_gpus: u32,
    /// Price of the whole node, dollars an hour, now.
    pub price_usd_per_h: f64,
    /// The cloud's name for it.
    pub instance: Option<String>,
    /// When it was asked for, milliseconds since 1970.
    pub asked_at_ms: i64,
    /// When its state last changed, milliseconds since 1970.
    pub since_ms: i64,
    /// When every required check last passed, milliseconds since 1970.
    pub proof_at_ms: Option<i64>,
    /// When its agent was last heard, milliseconds since 1970.
    pub heard_at_ms: Option<i64>,
    /// What its health asks for before it takes claims again: `recheck`, `reset`, `reboot`.
    pub care: Option<String>,
    /// For what, `xid:63`.
    pub care_cause: Option<String>,
    /// Diagnostics that it is lent to: a level, `3`, or a test.
    pub diagnosis: Option<String>,
    /// Time from being called back out of diagnostics to being idle, the last time, milliseconds.
    pub yield_ms: Option<i64>,
    /// Why it is in its state.
    pub reason: String,
}

impl NodeView {
    fn of(node: &Node, book: &Book) -> Self {
        let offer = book.offer(&node.offer).map(|p| &book.offers()[p]);
        Self {
            id: format!("n-{}", node.id),
            state: node.state.name().into(),
            offer: node.offer.to_string(),
            gpu: offer.map(|o| o.gpu.to_string()).unwrap_or_default(),
            gpus: node.gpus,
            free_gpus: node.free.count(),
            price_usd_per_h: offer.map_or(0.0, |o| o.price_usd_micros_per_h.usd()),
            instance: node.instance.clone(),
            asked_at_ms: node.asked_at_ms,
            since_ms: node.since_ms,
            proof_at_ms: node.proof_at_ms,
            heard_at_ms: node.heard_at_ms,
            care: node.care.as_ref().map(|c| c.remedy.name().to_owned()),
            care_cause: node.care.as_ref().map(|c| c.cause.to_string()),
            diagnosis: node.diagnosis.as_ref().map(|d| d.tests.clone()),
            yield_ms: node.yield_ms,
            reason: node.reason.clone(),
        }
    }
}

/// Nodes by number, a page at a time.
#[utoipa::path(
    get, path = "/v1/nodes", tag = "fleet", params(PageQuery),
    responses((status = 200, description = "Nodes, also those that are gone", body = Listed<NodeView>))
)]
pub async fn nodes(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Result<Json<Listed<NodeView>>, ApiError> {
    caller.may(Role::Viewer)?;
    let state = page.state(&NodeState::ALL.map(NodeState::name))?;
    let nodes = app.store.nodes(state, page.page()?).await?;
    let book = app.book()?;
    let items = nodes.iter().map(|n| NodeView::of(book.nodes().get(&n.id).unwrap_or(n), &book)).collect();
    Ok(Json(page.listed(items, nodes.last().map(|n| n.id))))
}

/// One node.
#[utoipa::path(
    get, path = "/v1/nodes/{id}", tag = "fleet", params(("id" = String, Path, description = "`n-17`")),
    responses((status = 200, description = "The node", body = NodeView), (status = 404, description = "There is none", body = Problem))
)]
pub async fn node(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<NodeView>, ApiError> {
    caller.may(Role::Viewer)?;
    read(&app, number(&id, 'n')?).await.map(Json)
}

async fn read(app: &App, id: u64) -> Result<NodeView, ApiError> {
    {
        let book = app.book()?;
        if let Some(node) = book.nodes().get(&id) {
            return Ok(NodeView::of(node, &book));
        }
    }
    let found = app.store.node(id).await?;
    let node = found.ok_or_else(|| ApiError::new(Code::NotFound, format!("there is no node n-{id}")))?;
    Ok(NodeView::of(&node, &*app.book()?))
}

/// Why a node is taken out.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// For people.
    #[serde(default)]
    pub reason: String,
}

/// Takes a node out: no new claims; it is ended when its last claim has. One that is quarantined or lost too, whatever holds it.
#[utoipa::path(
    post, path = "/v1/nodes/{id}/drain", tag = "fleet", request_body = Drain,
    params(("id" = String, Path, description = "`n-17`")),
    responses((status = 200, description = "It takes no more claims", body = NodeView), (status = 409, description = "Its state does not allow it", body = Problem))
)]
pub async fn drain(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(why): Body<Drain>,
) -> Result<Json<NodeView>, ApiError> {
    caller.may(Role::Operator)?;
    let id = number(&id, 'n')?;
    let reason: String = format!("{}: {}", caller.name, why.reason).chars().take(200).collect();
    app.ledger.write(move |book, now_ms| book.send_back(id, &reason, now_ms)).await??;
    app.audit(&caller.name, "drain node", &format!("n-{id}")).await?;
    app.wake_planner();
    read(&app, id).await.map(Json)
}

/// An offer.
#[derive(Debug, Serialize, ToSchema)]
pub struct OfferView {
    /// `provider/zone/type/market`.
    pub name: String,
    /// Cloud.
    pub provider: String,
    /// The cloud's region.
    pub region: String,
    /// Zone; empty where the cloud sells by region.
    pub zone: String,
    /// The cloud's instance type.
    pub instance_type: String,
    /// How it is bought.
    pub market: String,
    /// GPU model.
    pub gpu: String,
    /// GPUs of a node.
    pub gpus_per_node: u32,
    /// Dollars for a node-hour.
    pub price_usd_per_h: f64,
    /// Nodes that run or are on their way.
    pub nodes: usize,
    /// GPUs that can be claimed at once.
    pub free_gpus: u64,
}

/// Offers at present prices.
#[utoipa::path(
    get, path = "/v1/offers", tag = "fleet",
    responses((status = 200, description = "All of them", body = Listed<OfferView>))
)]
pub async fn offers(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Listed<OfferView>>, ApiError> {
    caller.may(Role::Viewer)?;
    let book = app.book()?;
    let mut nodes = vec![0; book.offers().len()];
    for node in book.nodes().values() {
        if let Some(p) = book.offer(&node.offer) {
            nodes[p] += 1;
        }
    }
    let one = |(p, offer): (usize, &fleet::Offer)| OfferView {
        name: offer.key.to_string(),
        provider: offer.key.provider.clone(),
        region: offer.key.region.clone(),
        zone: offer.key.zone.clone(),
        instance_type: offer.key.instance_type.clone(),
        market: offer.key.market.name().into(),
        gpu: offer.gpu.to_string(),
        gpus_per_node: offer.gpus_per_node,
        price_usd_per_h: offer.price_usd_micros_per_h.usd(),
        nodes: nodes[p],
        free_gpus: book.free_gpus(p),
    };
    Ok(Json(Listed { items: book.offers().iter().enumerate().map(one).collect(), next: None }))
}

/// GPUs of one model, all places together.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct PoolView {
    /// GPU model.
    pub gpu: String,
    /// GPUs with a claim.
    pub used: u64,
    /// Of those, lent until other claims need them.
    pub lent: u64,
    /// Healthy GPUs without one.
    pub idle: u64,
    /// GPUs on their way.
    pub pending: u64,
    /// GPUs that are out of service: quarantined, lost, draining, being ended.
    pub out_of_service: u64,
    /// Dollars an hour for all of them.
    pub spend_usd_per_h: f64,
}

/// Used, idle and pending GPUs by model.
#[utoipa::path(
    get, path = "/v1/pools", tag = "fleet",
    responses((status = 200, description = "By GPU model", body = Listed<PoolView>))
)]
pub async fn pools(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Listed<PoolView>>, ApiError> {
    caller.may(Role::Viewer)?;
    let book = app.book()?;
    let mut pools: BTreeMap<String, PoolView> = BTreeMap::new();
    let mut lent: BTreeMap<u64, u64> = BTreeMap::new();
    for part in book.borrowed_parts() {
        *lent.entry(part.node).or_default() += u64::from(part.gpus.count());
    }
    for (id, node) in book.nodes() {
        let Some(offer) = book.offer(&node.offer).map(|p| &book.offers()[p]) else { continue };
        let name = offer.gpu.to_string();
        let pool = pools.entry(name.clone()).or_insert_with(|| PoolView { gpu: name, ..PoolView::default() });
        let (all, free) = (u64::from(node.gpus), u64::from(node.free.count()));
        pool.used += all - free;
        pool.lent += lent.get(id).copied().unwrap_or_default();
        *(if node.state.is_arriving() {
            &mut pool.pending
        } else if node.takes_claims() || node.state == NodeState::Diagnosing {
            &mut pool.idle
        } else {
            &mut pool.out_of_service
        }) += free;
        if node.state.is_billed() {
            pool.spend_usd_per_h += offer.price_usd_micros_per_h.usd();
        }
    }
    Ok(Json(Listed { items: pools.into_values().collect(), next: None }))
}
