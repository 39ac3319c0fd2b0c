//! Events as versions before typed events wrote them: states, and words. What those who learn need is read from the
//! records of that time, and of the words only those that were written then.

use fleet::book::{Asked, ClaimChange, IntentAction, IntentChange, NodeChange, NodeFacts, What};
use fleet::{ClaimState, IntentState, LaunchAnswer, NodeEvent, NodeState};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::super::StoreError;
use super::Sql;

/// What a row says; none where what it is about is forgotten.
///
/// # Errors
/// The database cannot be used.
pub(super) async fn what(sql: &Sql, row: &AnyRow) -> Result<Option<What>, StoreError> {
    let failed = StoreError::database("read events");
    let read = || {
        Ok::<_, sqlx::Error>((
            row.try_get::<String, _>("subject")?,
            row.try_get::<i64, _>("subject_id")?.unsigned_abs(),
            row.try_get::<String, _>("from_state")?,
            row.try_get::<String, _>("to_state")?,
            row.try_get::<String, _>("reason")?,
        ))
    };
    let (subject, id, from, to, reason) = read().map_err(failed)?;
    Ok(match subject.as_str() {
        "node" => {
            let (from, Some(to)) = (NodeState::named(&from), NodeState::named(&to)) else { return Ok(None) };
            let event = (reason == "the provider takes it back").then_some(NodeEvent::ReclaimNoticed);
            let node = sql.node(id).await?;
            node.map(|n| What::Node(NodeChange { id, from, to, event, node: NodeFacts::of(&n) }))
        }
        "claim" => {
            let (from, Some(to)) = (ClaimState::named(&from), ClaimState::named(&to)) else { return Ok(None) };
            let class = sql.claim(id).await?.map(|c| c.class).unwrap_or_default();
            Some(What::Claim(ClaimChange { id, from, to, class }))
        }
        "intent" => {
            let (from, Some(to)) = (IntentState::named(&from), IntentState::named(&to)) else { return Ok(None) };
            let action = sql.intent(id).await?.map(|intent| match intent.action {
                IntentAction::Terminate { node } => Asked::Terminate { node },
                IntentAction::Launch { offer, nodes } => {
                    let nodes = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
                    Asked::Launch { offer, nodes, answer: (!to.is_open()).then(|| answer(&reason)) }
                }
            });
            action.map(|action| What::Intent(IntentChange { id, from, to, action }))
        }
        _ => None,
    })
}

/// The first word of the reason was the kind of the answer.
fn answer(reason: &str) -> LaunchAnswer {
    match reason.split(':').next() {
        Some("quota") => LaunchAnswer::Quota,
        Some("price") => LaunchAnswer::Price,
        Some("configuration") => LaunchAnswer::Configuration,
        Some("authorisation") => LaunchAnswer::Authorisation,
        Some("expired") => LaunchAnswer::TimedOut,
        Some("launched") => LaunchAnswer::Launched,
        _ => LaunchAnswer::NoCapacity,
    }
}
