//! Carries out intents: the call is made only after the intent is durable, and its answer closes it.

use fleet::book::{Book, Intent, IntentAction, IntentState};
use providers::{ErrorKind, Instance, InstanceState, LaunchRequest, ProviderError};

use super::{Cloud, Context, LoopError};
use crate::api::join_secret;
use crate::clock;
use crate::store::WriteError;

/// First wait before a call is made again, milliseconds; doubles up to [`AGAIN_MAX_MS`].
const AGAIN_MS: i64 = 2_000;
const AGAIN_MAX_MS: i64 = 300_000;
/// After a launch whose answer was lost, the provider's list is asked for so long before another call is made,
/// milliseconds: what it launched may show late.
const AMBIGUOUS_MS: i64 = 60_000;
/// Time between looks for it, milliseconds.
const LOOK_MS: i64 = 5_000;

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    if context.planning.dry_run {
        return Ok("dry run".into());
    }
    if context.paused().await? {
        return Ok("paused".into());
    }
    let now_ms = clock::now_ms();
    let due: Vec<Intent> =
        context.app.ledger.book().intents().values().filter(|i| i.not_before_ms <= now_ms).cloned().collect();
    let mut tasks = tokio::task::JoinSet::new();
    for cloud in context.clouds.iter().cloned() {
        let offer_of = |intent: &Intent| match &intent.action {
            IntentAction::Launch { offer, .. } => Some(offer.provider.clone()),
            IntentAction::Terminate { node } => {
                context.app.ledger.book().nodes().get(node).map(|n| n.offer.provider.clone())
            }
        };
        let mine: Vec<Intent> =
            due.iter().filter(|i| offer_of(i).as_deref() == Some(cloud.provider.name())).cloned().collect();
        if !mine.is_empty() {
            tasks.spawn(one_cloud(context.clone(), term, cloud, mine));
        }
    }
    // An end whose node is gone has nothing left to do.
    for intent in &due {
        let IntentAction::Terminate { node } = intent.action else { continue };
        if !context.app.ledger.book().nodes().contains_key(&node) {
            let id = intent.id;
            context.app.ledger.write_as_leader(term, move |b, now_ms| b.termination_taken(id, true, now_ms)).await??;
        }
    }
    // Launches of a provider that is no longer configured lead nowhere.
    for intent in due.iter().filter(|i| i.state == IntentState::Pending && i.expires_at_ms <= now_ms) {
        let IntentAction::Launch { offer, .. } = &intent.action else { continue };
        if context.clouds.iter().all(|c| c.provider.name() != offer.provider) {
            bind(&context, term, intent.id, &[], "expired: its provider is not configured any more").await?;
        }
    }
    let (mut done, mut errors) = (0, Vec::new());
    while let Some(result) = tasks.join_next().await {
        let (count, failed) = result??;
        done += count;
        errors.extend(failed);
    }
    let text = format!("{done} of {} calls answered", due.len());
    if errors.is_empty() { Ok(text) } else { Err(format!("{text}; {}", errors.join("; ")).into()) }
}

/// All due calls to one account, one after the other, as fast as it allows; the rest is for the next run.
async fn one_cloud(
    context: Context,
    term: i64,
    cloud: Cloud,
    intents: Vec<Intent>,
) -> Result<(usize, Vec<String>), WriteError> {
    let provider = &cloud.provider;
    context.recall(&**provider);
    let (mut done, mut errors) = (0, Vec::new());
    for intent in intents {
        if context.app.loops.is_paused() || cloud.pace().take(clock::now_ms()).is_err() {
            break;
        }
        let answer = match &intent.action {
            IntentAction::Launch { offer, nodes } => {
                let request = LaunchRequest {
                    offer: offer.clone(),
                    count: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
                    token: intent.token.clone(),
                    join: join_secret(&context.app.join_key, &intent.token),
                };
                launch(&context, term, &cloud, &intent, &request).await?
            }
            IntentAction::Terminate { node } => terminate(&context, term, &cloud, &intent, *node).await?,
        };
        match answer {
            None => done += 1,
            Some(error) => errors.push(error),
        }
    }
    Ok((done, errors))
}

async fn launch(
    context: &Context,
    term: i64,
    cloud: &Cloud,
    intent: &Intent,
    request: &LaunchRequest,
) -> Result<Option<String>, WriteError> {
    let (id, ledger, provider) = (intent.id, &context.app.ledger, &cloud.provider);
    let now_ms = clock::now_ms();
    if intent.state == IntentState::Sent {
        // The answer of an earlier call was lost: what it launched carries the token, and may show late.
        match provider.list().await {
            Ok(listed) => {
                let alive = |i: &Instance| i.token == request.token && i.state != InstanceState::Ended;
                let mine: Vec<Instance> = listed.into_iter().filter(alive).collect();
                let late = intent.sent_at_ms.is_none_or(|at| now_ms - at >= AMBIGUOUS_MS);
                // Some may show before others.
                if mine.len() >= request.count as usize || (late && !mine.is_empty()) {
                    return bind(context, term, id, &mine, "found by its token").await.map(|()| None);
                }
            }
            Err(error) => return again(context, term, intent, &error).await.map(Some),
        }
        if intent.sent_at_ms.is_some_and(|at| now_ms - at < AMBIGUOUS_MS) {
            let look = move |book: &mut Book, now_ms: i64| {
                book.intent_again(id, now_ms + LOOK_MS, false, "its answer was lost; looking for what it launched").ok()
            };
            ledger.write_as_leader(term, look).await?;
            return Ok(None);
        }
    }
    if now_ms >= intent.expires_at_ms {
        bind(context, term, id, &[], "expired: it was not launched in time").await?;
        return Ok(Some(format!("i-{id}: not launched in time")));
    }
    if ledger.write_as_leader(term, move |book, now_ms| book.intent_sent(id, now_ms)).await?.is_err() {
        // Closed meanwhile.
        return Ok(None);
    }
    match cloud.heard(provider.launch(request).await) {
        Ok(instances) => {
            context.app.metrics.launched(provider.name(), "ok");
            let all = instances.len() >= request.count as usize;
            let reason = if all { "launched" } else { "the provider has no more of them now" };
            bind(context, term, id, &instances, reason).await?;
            Ok(None)
        }
        Err(error) => {
            context.app.metrics.launched(provider.name(), error.kind.name());
            if error.kind.may_pass() {
                return again(context, term, intent, &error).await.map(Some);
            }
            // Refused for good: the next plan knows better. The kind is the first word, for those who learn from it.
            let reason = format!("{}: {}", error.kind.name(), error.what);
            bind(context, term, id, &[], &reason).await?;
            let expected = matches!(error.kind, ErrorKind::Capacity | ErrorKind::Quota | ErrorKind::Price);
            Ok(if expected { None } else { Some(format!("i-{id}: {error}")) })
        }
    }
}

async fn bind(context: &Context, term: i64, id: u64, instances: &[Instance], reason: &str) -> Result<(), WriteError> {
    let names: Vec<String> = instances.iter().map(|i| i.id.clone()).collect();
    let reason = reason.to_owned();
    let ledger = &context.app.ledger;
    // A closed intent has been answered by another way: nothing is left to do.
    ledger.write_as_leader(term, move |book, now_ms| book.launched(id, &names, &reason, now_ms).ok()).await?;
    Ok(())
}

/// Tells the cloud what is wrong with an instance that is ended for a fault, where its API takes that. What becomes of it does
/// not keep the end back.
async fn tell_of_fault(cloud: &Cloud, instance: &str, what: &str) {
    match cloud.provider.report_fault(instance, what).await {
        Ok(true) => tracing::info!(instance, what, "the cloud was told that it is broken"),
        Ok(false) => {}
        Err(error) => tracing::warn!(instance, %error, "the cloud was not told that it is broken"),
    }
}

async fn terminate(
    context: &Context,
    term: i64,
    cloud: &Cloud,
    intent: &Intent,
    node: u64,
) -> Result<Option<String>, WriteError> {
    let (id, ledger) = (intent.id, &context.app.ledger);
    // Why it is out, and the cause that is held where one is.
    let fault = {
        let book = ledger.book();
        let out = |n: &&fleet::book::Node| n.state == fleet::NodeState::Quarantined;
        let out = book.nodes().get(&node).filter(out);
        out.map(|n| (n.reason.clone(), book.held_for(n).map(str::to_owned)))
    };
    if let Some((_, Some(cause))) = &fault {
        // A breaker has opened since it was asked for.
        return Ok(Some(format!("i-{id}: waits, since many nodes are out for {cause}")));
    }
    let instance = ledger.book().nodes().get(&node).and_then(|n| n.instance.clone());
    let Some(instance) = instance else {
        // Never launched, as far as is known: its launch is still being answered.
        return Ok(None);
    };
    if let (0, Some((what, _))) = (intent.tries, &fault) {
        tell_of_fault(cloud, &instance, what).await;
    }
    ledger.write_as_leader(term, move |book, now_ms| book.intent_sent(id, now_ms)).await?.ok();
    let gone = match cloud.heard(cloud.provider.terminate(&instance).await) {
        Ok(()) => false,
        Err(error) if error.kind == ErrorKind::Gone => true,
        Err(error) => return again(context, term, intent, &error).await.map(Some),
    };
    ledger.write_as_leader(term, move |book, now_ms| book.termination_taken(id, gone, now_ms).ok()).await?;
    Ok(None)
}

/// Tries again later; longer each time, and not at once for what a person must mend.
async fn again(context: &Context, term: i64, intent: &Intent, error: &ProviderError) -> Result<String, WriteError> {
    let doubled = AGAIN_MS.saturating_mul(1_i64 << intent.tries.min(10));
    let wait_ms = if error.kind.may_pass() { doubled.min(AGAIN_MAX_MS) } else { AGAIN_MAX_MS };
    // Once an answer was lost, no later error says what that call did.
    let no_effect = intent.state == IntentState::Pending && !error.kind.is_ambiguous();
    let reason = error.to_string();
    let (id, said) = (intent.id, format!("i-{}: {error}", intent.id));
    let ledger = &context.app.ledger;
    ledger
        .write_as_leader(term, move |book, now_ms| {
            book.intent_again(id, now_ms.saturating_add(wait_ms), no_effect, &reason).ok()
        })
        .await?;
    Ok(said)
}
