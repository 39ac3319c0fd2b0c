//! Claims: take GPUs, keep them by heartbeats, give them back.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use fleet::book::{Book, Claim, ClaimError, ClaimRequest, Taken};
use fleet::{ClaimState, OnEmpty, StartState, Tier};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::{IntoParams, ToSchema};

use super::auth::{Caller, Role};
use super::problem::{ApiError, Code, Problem};
use super::{Body, Listed, PageQuery, number};
use crate::app::App;
use crate::store::Subject;

/// What a scheduler asks for.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewClaim {
    /// Name of the class.
    pub class: String,
    /// Units of the class's claim size: all or none, in one zone. 1 without it.
    #[serde(default = "one")]
    pub count: u32,
    /// A retry with the same key gets the same claim. The header `Idempotency-Key` says the same.
    #[serde(default, skip_serializing)]
    pub idempotency_key: Option<String>,
    /// Who holds it, in your words; shown to people.
    #[serde(default)]
    pub holder: String,
    /// What to do when nothing is free: `fail`, `queue`, `launch-cold` or `substitute`; the class's rule without it.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub on_empty: Option<OnEmpty>,
    /// How long it waits at most, seconds; the class's wait without it.
    #[serde(default)]
    pub wait_s: Option<f64>,
    /// Time between heartbeats that it may take, seconds; the class's lease without it.
    #[serde(default)]
    pub lease_s: Option<f64>,
    /// Name of the snapshot that it starts from; the one of its class without it. A node that has it is rather taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// An answer after so many milliseconds is of no use: nothing is taken then. A retry may give another time.
    #[serde(default, serialize_with = "left_out")]
    pub answer_within_ms: Option<i64>,
}

fn one() -> u32 {
    1
}

/// What makes no other request of one: the digest of a request has nothing of it.
fn left_out<S: serde::Serializer>(_: &Option<i64>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_none()
}

/// GPUs of one node.
#[derive(Debug, Serialize, ToSchema)]
pub struct GpusView {
    /// The node, `n-17`.
    pub node: String,
    /// The cloud's name for it.
    pub instance: Option<String>,
    /// Where it was bought, `provider/zone/type/market`.
    pub offer: String,
    /// GPU model.
    pub gpu: String,
    /// Indices of its GPUs.
    pub indices: Vec<u32>,
}

/// How soon after the grant a claim will be ready.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReadyView {
    /// Where the copy that is restored lies: `memory` or `disk`; `cold` where its nodes have none.
    pub from: String,
    /// In half of all cases after at most so many seconds.
    pub p50_s: f64,
    /// In nine of ten.
    pub p90_s: f64,
    /// Starts that this was learnt from; 0: it is what was declared.
    pub learnt_from: u32,
}

/// What a host brings up for a claim.
#[derive(Debug, Serialize, ToSchema)]
pub struct StartView {
    /// `coming`, `ready`, `failed` or `ended`.
    pub state: String,
    /// What was tried, the newest last.
    pub attempts: Vec<AttemptView>,
    /// Why it is so.
    pub problem: String,
}

/// A way to bring it up that was tried.
#[derive(Debug, Serialize, ToSchema)]
pub struct AttemptView {
    /// `restore` or `cold start`.
    pub rung: String,
    /// Its phases, in their order.
    pub phases: Vec<PhaseView>,
    /// Why it failed; empty where it did not.
    pub problem: String,
}

/// What a phase took.
#[derive(Debug, Serialize, ToSchema)]
pub struct PhaseView {
    /// Its name.
    pub phase: String,
    /// Seconds.
    pub seconds: f64,
}

impl StartView {
    fn of(start: &fleet::Start) -> Self {
        let phase =
            |(phase, seconds): &(fleet::Phase, f64)| PhaseView { phase: phase.name().into(), seconds: *seconds };
        let attempt = |attempt: &fleet::Attempt| AttemptView {
            rung: attempt.rung.name().into(),
            phases: attempt.phases.iter().map(phase).collect(),
            problem: attempt.problem.clone(),
        };
        let attempts = start.attempts.iter().map(attempt).collect();
        Self { state: start.state.name().into(), attempts, problem: start.problem.clone() }
    }
}

/// A claim.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClaimView {
    /// Identity, `c-42`.
    pub id: String,
    /// Its class.
    pub class: String,
    /// `queued`, `granted`, `active`, `released`, `expired` or `failed`.
    pub state: String,
    /// Units of the class's claim size.
    pub count: u32,
    /// Who holds it.
    pub holder: String,
    /// Its GPUs; empty while it waits.
    pub gpus: Vec<GpusView>,
    /// Whether the GPUs are not of the class's first model.
    pub substituted: bool,
    /// Whether its GPUs are borrowed: others that need them call it back.
    pub borrowed: bool,
    /// When it was called back, milliseconds since 1970: it is to let its GPUs go before `lease_until_ms`.
    pub called_back_at_ms: Option<i64>,
    /// Whether it was granted within the class's wait; absent until that is known.
    pub hit: Option<bool>,
    /// When it was asked for, milliseconds since 1970.
    pub asked_at_ms: i64,
    /// Until when it waits, milliseconds since 1970.
    pub deadline_at_ms: i64,
    /// When it got its GPUs, milliseconds since 1970.
    pub granted_at_ms: Option<i64>,
    /// Until when it keeps them without a heartbeat, milliseconds since 1970.
    pub lease_until_ms: Option<i64>,
    /// How soon after the grant it will be ready; absent where no snapshot is known that it starts from.
    pub ready: Option<ReadyView>,
    /// How soon it was, as its client said, or as its host did.
    pub ready_s: Option<f64>,
    /// What its host brings up for it; absent where that is its client's affair.
    pub start: Option<StartView>,
    /// When it ended, milliseconds since 1970.
    pub ended_at_ms: Option<i64>,
    /// Why it is in its state.
    pub reason: String,
}

impl ClaimView {
    /// As the book knows it.
    #[must_use]
    pub fn of(claim: &Claim, book: &Book) -> Self {
        let part = |part: &fleet::book::Part| {
            let node = book.nodes().get(&part.node);
            let offer = node.and_then(|n| book.offers().get(book.offer(&n.offer)?));
            GpusView {
                node: format!("n-{}", part.node),
                instance: node.and_then(|n| n.instance.clone()),
                offer: node.map(|n| n.offer.to_string()).unwrap_or_default(),
                gpu: offer.map(|o| o.gpu.to_string()).unwrap_or_default(),
                indices: part.gpus.indices().collect(),
            }
        };
        Self {
            id: format!("c-{}", claim.id),
            class: claim.class.clone(),
            state: claim.state.name().into(),
            count: claim.count,
            holder: claim.holder.clone(),
            gpus: claim.parts.iter().map(part).collect(),
            substituted: claim.substituted,
            borrowed: claim.borrowed,
            called_back_at_ms: claim.called_back_at_ms,
            hit: claim.hit,
            asked_at_ms: claim.asked_at_ms,
            deadline_at_ms: claim.deadline_at_ms,
            granted_at_ms: claim.granted_at_ms,
            lease_until_ms: claim.state.is_live().then_some(claim.lease_until_ms),
            ready: claim.prediction.map(|p| ReadyView {
                from: p.tier.map_or("cold", Tier::name).into(),
                p50_s: p.p50_s,
                p90_s: p.p90_s,
                learnt_from: p.learnt_from,
            }),
            ready_s: claim.ready_s,
            start: claim.start.as_ref().map(StartView::of),
            ended_at_ms: claim.ended_at_ms,
            reason: claim.reason.clone(),
        }
    }
}

fn milliseconds(name: &str, seconds: Option<f64>) -> Result<Option<i64>, ApiError> {
    match seconds {
        Some(s) if !(s.is_finite() && (0.0..=1e9).contains(&s)) => {
            Err(ApiError::new(Code::OutOfRange, format!("{name}: {s} is no number of seconds from 0 to 1e9")))
        }
        Some(s) => Ok(Some((s * 1000.0).round() as i64)),
        None => Ok(None),
    }
}

/// Longest key and longest holder, bytes.
const TEXT_MAX: usize = 200;

fn request(ask: NewClaim, headers: &HeaderMap, now_ms: i64) -> Result<ClaimRequest, ApiError> {
    let in_header = headers.get("idempotency-key").map(|v| v.to_str().map(str::to_owned));
    let in_header =
        in_header.transpose().map_err(|_| ApiError::new(Code::InvalidRequest, "Idempotency-Key is no text"))?;
    let digest = Sha256::digest(serde_json::to_vec(&ask).unwrap_or_default());
    let digest: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
    let key = match (in_header, ask.idempotency_key) {
        (Some(a), Some(b)) if a != b => {
            return Err(ApiError::new(Code::InvalidRequest, "the header and the body name different idempotency keys"));
        }
        (a, b) => a.or(b),
    };
    for (name, text) in [("idempotency_key", key.as_deref().unwrap_or("")), ("holder", &ask.holder)] {
        if text.len() > TEXT_MAX {
            return Err(ApiError::new(Code::OutOfRange, format!("{name}: {} bytes; at most {TEXT_MAX}", text.len())));
        }
    }
    Ok(ClaimRequest {
        class: ask.class,
        count: ask.count,
        key: key.filter(|k| !k.is_empty()),
        digest,
        holder: ask.holder,
        caller: String::new(),
        on_empty: ask.on_empty,
        wait_ms: milliseconds("wait_s", ask.wait_s)?,
        lease_ms: milliseconds("lease_s", ask.lease_s)?,
        snapshot: ask.snapshot,
        answer_by_ms: ask.answer_within_ms.map(|ms| now_ms.saturating_add(ms)),
    })
}

/// Takes GPUs.
#[utoipa::path(
    post, path = "/v1/claims", tag = "claims", request_body = NewClaim,
    responses(
        (status = 201, description = "Granted", body = ClaimView),
        (status = 200, description = "Granted with another model, or a retry of a request that was answered before", body = ClaimView),
        (status = 202, description = "Queued; read it again with `wait_s` to wait", body = ClaimView),
        (status = 404, description = "There is no such class", body = Problem),
        (status = 409, description = "The idempotency key belongs to another request", body = Problem),
        (status = 503, description = "No GPUs are free, and the claim does not wait", body = Problem),
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    Body(ask): Body<NewClaim>,
) -> Result<(StatusCode, Json<ClaimView>), ApiError> {
    caller.may(Role::Scheduler)?;
    let mut ask = request(ask, &headers, app.now_ms())?;
    // Keys are each caller's own.
    ask.key = ask.key.map(|key| format!("{}/{key}", caller.name));
    // Without tokens nobody is known: claims are anybody's, also once there are some.
    ask.caller = if app.tokens.is_open() { String::new() } else { caller.name.to_string() };
    let class = ask.class.clone();
    let timer = app.metrics.claim_timer();
    let done = app.ledger.write_keyed(ask.key.clone(), move |book, now_ms| {
        let (id, taken) = book.claim(ask.clone(), now_ms)?;
        Ok::<_, fleet::book::ClaimError>((id, taken, book.claims().get(&id).map(|c| ClaimView::of(c, book))))
    });
    let done = done.await?;
    app.metrics.claimed(&class, &done.as_ref().map(|(_, taken, _)| *taken), timer);
    match &done {
        // Somebody waits: the planner looks at it now.
        Ok((_, Taken::Queued | Taken::Substituted, _)) => app.wake_planner(),
        Err(ClaimError::Empty { .. }) => app.wake_planner_for_misses(),
        _ => {}
    }
    let (id, taken, view) = done?;
    let view = match view {
        Some(view) => view,
        None => read(&app, id).await?,
    };
    let status = match taken {
        Taken::Granted => StatusCode::CREATED,
        Taken::Queued => StatusCode::ACCEPTED,
        Taken::Substituted | Taken::Before => StatusCode::OK,
    };
    Ok((status, Json(view)))
}

/// An open claim from memory, an ended one from the database.
async fn read(app: &App, id: u64) -> Result<ClaimView, ApiError> {
    {
        let book = app.book()?;
        if let Some(claim) = book.claims().get(&id) {
            return Ok(ClaimView::of(claim, &book));
        }
    }
    let found = app.store.claim(id).await?;
    let claim = found.ok_or_else(|| ApiError::new(Code::NotFound, format!("there is no claim c-{id}")))?;
    Ok(ClaimView::of(&claim, &*app.book()?))
}

/// How long to wait for a change.
#[derive(Debug, Deserialize, IntoParams)]
pub struct WaitQuery {
    /// Answers when the claim no longer waits, when one that borrows is called back or ends, or after so many seconds; at
    /// most 60.
    #[serde(default)]
    pub wait_s: Option<f64>,
    /// Waits on until what its host brings up for it answers, or nothing worked.
    #[serde(default)]
    pub until_ready: bool,
}

/// One claim.
#[utoipa::path(
    get, path = "/v1/claims/{id}", tag = "claims", params(("id" = String, Path, description = "`c-42`"), WaitQuery),
    responses((status = 200, description = "The claim", body = ClaimView), (status = 404, description = "There is none", body = Problem))
)]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(wait): Query<WaitQuery>,
) -> Result<Json<ClaimView>, ApiError> {
    caller.may(Role::Viewer)?;
    let id = number(&id, 'c')?;
    let wait_ms = milliseconds("wait_s", wait.wait_s)?.unwrap_or(0).clamp(0, 60_000);
    let mut first = None;
    let mut waits = |book: &Book| {
        let Some(claim) = book.claims().get(&id) else { return false };
        let lent = claim.borrowed && claim.state.is_live() && claim.called_back_at_ms.is_none();
        let same = *first.get_or_insert(claim.state) == claim.state;
        let comes = claim.start.as_ref().is_some_and(|start| start.state == StartState::Coming);
        let waits = claim.state == ClaimState::Queued || wait.until_ready && claim.state.is_live() && comes;
        waits || same && lent
    };
    if wait_ms > 0 {
        let waiter = app.ledger.waiter(Subject::Claim(id));
        // A book that is not known says nothing of it: who waits goes on waiting.
        let waiting = waiter.until(|| app.book().is_ok_and(|book| !waits(&book)));
        // Over or not, the claim is shown as it is then.
        let _ = tokio::time::timeout(Duration::from_millis(wait_ms.unsigned_abs()), waiting).await;
    }
    read(&app, id).await.map(Json)
}

/// Claims by number, a page at a time.
#[utoipa::path(
    get, path = "/v1/claims", tag = "claims", params(PageQuery),
    responses((status = 200, description = "Claims, also those that have ended", body = Listed<ClaimView>))
)]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Result<Json<Listed<ClaimView>>, ApiError> {
    caller.may(Role::Viewer)?;
    let state = page.state(&ClaimState::ALL.map(ClaimState::name))?;
    let claims = app.store.claims(state, page.page()?).await?;
    let book = app.book()?;
    let items = claims.iter().map(|c| ClaimView::of(c, &book)).collect();
    Ok(Json(page.listed(items, claims.last().map(|c| c.id))))
}

/// What a heartbeat may change.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// A new time between heartbeats, seconds: this is how a claim is extended.
    #[serde(default)]
    pub lease_s: Option<f64>,
    /// Once what was started is ready: seconds from the grant until then. Predictions learn from it.
    #[serde(default)]
    pub ready_s: Option<f64>,
}

/// Keeps a claim for another lease; the first one confirms it.
#[utoipa::path(
    post, path = "/v1/claims/{id}/heartbeat", tag = "claims", request_body = Heartbeat,
    params(("id" = String, Path, description = "`c-42`")),
    responses((status = 200, description = "Kept", body = ClaimView), (status = 409, description = "It has ended", body = Problem))
)]
pub async fn heartbeat(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(beat): Body<Heartbeat>,
) -> Result<Json<ClaimView>, ApiError> {
    caller.may(Role::Scheduler)?;
    let id = number(&id, 'c')?;
    let lease_ms = milliseconds("lease_s", beat.lease_s)?;
    let whose = owner(caller);
    let kept = app.ledger.write(move |book, now_ms| {
        whose.is_of(book, id)?;
        book.heartbeat(id, lease_ms, now_ms)?;
        beat.ready_s.map_or(Ok(None), |ready_s| book.is_ready(id, ready_s))
    });
    let kept = kept.await?;
    if let (Ok(Some(predicted)), Some(ready_s)) = (&kept, beat.ready_s) {
        app.metrics.ready(predicted, ready_s);
    }
    told(&app, id, kept.map(drop)).await
}

/// Gives a claim back.
#[utoipa::path(
    post, path = "/v1/claims/{id}/release", tag = "claims", params(("id" = String, Path, description = "`c-42`")),
    responses((status = 200, description = "Given back, now or before", body = ClaimView), (status = 404, description = "There is none", body = Problem))
)]
pub async fn release(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<ClaimView>, ApiError> {
    caller.may(Role::Scheduler)?;
    let id = number(&id, 'c')?;
    let whose = owner(caller);
    let released = app.ledger.write(move |book, now_ms| {
        whose.is_of(book, id)?;
        book.release(id, "given back by its client", now_ms)?;
        Ok::<_, fleet::book::ClaimError>(book.claims().get(&id).map(|c| ClaimView::of(c, book)))
    });
    match released.await? {
        Ok(Some(view)) => Ok(Json(view)),
        Ok(None) => read(&app, id).await.map(Json),
        Err(error) => ended_is_fine(&app, id, error, &[ClaimState::Released]).await,
    }
}

/// What is wrong with a claim's GPUs.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Unhealthy {
    /// What was seen, for people and for the health service.
    pub reason: String,
}

/// Says that the GPUs of a claim do not work: the claim ends, and its nodes take no more claims until they are checked.
#[utoipa::path(
    post, path = "/v1/claims/{id}/report-unhealthy", tag = "claims", request_body = Unhealthy,
    params(("id" = String, Path, description = "`c-42`")),
    responses((status = 200, description = "Noted; claim again for other GPUs", body = ClaimView), (status = 409, description = "It has ended", body = Problem))
)]
pub async fn report_unhealthy(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(seen): Body<Unhealthy>,
) -> Result<Json<ClaimView>, ApiError> {
    caller.may(Role::Scheduler)?;
    let id = number(&id, 'c')?;
    let reason: String = seen.reason.chars().take(TEXT_MAX).collect();
    let whose = owner(caller);
    let noted = app.ledger.write(move |book, now_ms| {
        whose.is_of(book, id)?;
        book.report_unhealthy(id, &reason, now_ms)
    });
    let noted = noted.await?;
    app.wake_planner();
    told(&app, id, noted).await
}

/// Whose claims a caller may change: his own, and an operator all.
struct Owner(Option<Arc<str>>);

fn owner(caller: Caller) -> Owner {
    Owner(caller.may(Role::Operator).is_err().then_some(caller.name))
}

impl Owner {
    fn is_of(&self, book: &Book, id: u64) -> Result<(), ClaimError> {
        self.0.as_deref().map_or(Ok(()), |name| book.is_of(id, name))
    }
}

async fn told(app: &App, id: u64, done: Result<(), fleet::book::ClaimError>) -> Result<Json<ClaimView>, ApiError> {
    match done {
        Ok(()) => read(app, id).await.map(Json),
        Err(error) => ended_is_fine(app, id, error, &[]).await,
    }
}

/// A claim that ended a while ago is not in memory: its record says which error it is, or that all is well.
async fn ended_is_fine(
    app: &App,
    id: u64,
    error: fleet::book::ClaimError,
    fine: &[ClaimState],
) -> Result<Json<ClaimView>, ApiError> {
    if !matches!(error, ClaimError::UnknownClaim(_) | ClaimError::Ended { .. }) {
        return Err(error.into());
    }
    let Some(claim) = app.store.claim(id).await? else { return Err(error.into()) };
    if fine.contains(&claim.state) {
        return Ok(Json(ClaimView::of(&claim, &*app.book()?)));
    }
    Err(ClaimError::Ended { id, state: claim.state.name() }.into())
}
