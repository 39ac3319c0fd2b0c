//! Carries out intents: the call is made only after the intent is durable, and its answer closes it.

use control::calls::{self, EndStep, LaunchStep, Looked};
use fleet::LaunchAnswer;
use fleet::book::{Intent, IntentAction};
use fleet::cloud::{ErrorKind, Instance};
use providers::{LaunchRequest, ProviderError};

use super::{Cloud, Context, LoopError};
use crate::secrets::join_secret;
use crate::store::WriteError;

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    if context.planning.dry_run {
        return Ok("dry run".into());
    }
    if context.paused().await? {
        return Ok("paused".into());
    }
    let (due, by_provider) = {
        let book = context.app.book()?;
        let due = calls::due(&book, context.app.now_ms());
        let of: Vec<Option<String>> = due.iter().map(|i| calls::provider_of(&book, i)).collect();
        (due, of)
    };
    let mut tasks = tokio::task::JoinSet::new();
    for cloud in context.clouds.iter().cloned() {
        let name = cloud.provider.name();
        let mine = due.iter().zip(&by_provider).filter(|(_, of)| of.as_deref() == Some(name));
        let mine: Vec<Intent> = mine.map(|(intent, _)| intent.clone()).collect();
        if !mine.is_empty() {
            tasks.spawn(one_cloud(context.clone(), term, cloud, mine));
        }
    }
    for (intent, of) in due.iter().zip(&by_provider) {
        lead_nowhere(&context, term, intent, of.as_deref()).await?;
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

/// Closes what nobody can carry out: an end whose node is gone, a launch at a provider that is no longer configured.
async fn lead_nowhere(context: &Context, term: i64, intent: &Intent, provider: Option<&str>) -> Result<(), LoopError> {
    let id = intent.id;
    match (&intent.action, provider) {
        (IntentAction::Terminate { .. }, None) => {
            // Closed by another way meanwhile: nothing is left to do.
            context
                .app
                .ledger
                .write_as_leader(term, move |b, now_ms| b.termination_taken(id, true, now_ms).ok())
                .await?;
        }
        (IntentAction::Launch { .. }, Some(name))
            if calls::launch_step(intent, context.app.now_ms()) == LaunchStep::GiveUp
                && context.clouds.iter().all(|c| c.provider.name() != name) =>
        {
            let why = "its provider is not configured any more";
            close(context, term, id, &[], LaunchAnswer::NoProvider, why).await?;
        }
        _ => {}
    }
    Ok(())
}

/// All due calls to one account, one after the other, as fast as it allows; the rest is for the next run.
async fn one_cloud(
    context: Context,
    term: i64,
    cloud: Cloud,
    intents: Vec<Intent>,
) -> Result<(usize, Vec<String>), WriteError> {
    context.recall(&*cloud.provider)?;
    let (mut done, mut errors) = (0, Vec::new());
    for intent in intents {
        if context.app.board.is_paused() || cloud.pace().take(context.app.now_ms()).is_err() {
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
    let (id, ledger) = (intent.id, &context.app.ledger);
    let mut step = calls::launch_step(intent, context.app.now_ms());
    if step == LaunchStep::Look {
        let listed = match cloud.provider.list().await {
            Ok(listed) => listed,
            Err(error) => return again(context, term, intent, &error).await.map(Some),
        };
        match calls::looked(intent, listed, context.app.now_ms()) {
            Looked::Found(mine) => {
                let (answer, _) = calls::answer_of(intent, mine.len());
                return close(context, term, id, &mine, answer, "found by its token").await.map(|()| None);
            }
            Looked::Again(at_ms) => {
                let why = "its answer was lost; looking for what it launched";
                ledger.write_as_leader(term, move |book, _| book.intent_again(id, at_ms, false, why).ok()).await?;
                return Ok(None);
            }
            Looked::Nothing(next) => step = next,
        }
    }
    if step == LaunchStep::GiveUp {
        close(context, term, id, &[], LaunchAnswer::TimedOut, "it was not launched in time").await?;
        return Ok(Some(format!("i-{id}: not launched in time")));
    }
    if ledger.write_as_leader(term, move |book, now_ms| book.intent_sent(id, now_ms)).await?.is_err() {
        // Closed meanwhile.
        return Ok(None);
    }
    let (metrics, name) = (&context.app.metrics, cloud.provider.name());
    match cloud.heard(cloud.provider.launch(request).await) {
        Ok(instances) => {
            metrics.launched(name, "ok");
            let (answer, reason) = calls::answer_of(intent, instances.len());
            close(context, term, id, &instances, answer, reason).await?;
            Ok(None)
        }
        Err(error) => {
            metrics.launched(name, error.kind.name());
            if error.kind.may_pass() {
                return again(context, term, intent, &error).await.map(Some);
            }
            // Refused for good: the next plan knows better.
            let reason = format!("{}: {}", error.kind.name(), error.what);
            close(context, term, id, &[], error.kind.answer(), &reason).await?;
            let expected = matches!(error.kind, ErrorKind::Capacity | ErrorKind::Quota | ErrorKind::Price);
            Ok(if expected { None } else { Some(format!("i-{id}: {error}")) })
        }
    }
}

async fn close(
    context: &Context,
    term: i64,
    id: u64,
    instances: &[Instance],
    answer: LaunchAnswer,
    reason: &str,
) -> Result<(), WriteError> {
    let names: Vec<String> = instances.iter().map(|i| i.id.clone()).collect();
    let (reason, ledger) = (reason.to_owned(), &context.app.ledger);
    // A closed intent has been answered by another way: nothing is left to do.
    ledger.write_as_leader(term, move |book, now_ms| book.launched(id, &names, answer, &reason, now_ms).ok()).await?;
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
    let step = calls::end_step(&*context.app.book()?, intent, node);
    let (instance, fault) = match step {
        EndStep::Held(cause) => return Ok(Some(format!("i-{id}: waits, since many nodes are out for {cause}"))),
        EndStep::NotLaunched => return Ok(None),
        EndStep::Call { instance, fault } => (instance, fault),
    };
    if let Some(what) = &fault {
        tell_of_fault(cloud, &instance, what).await;
    }
    if ledger.write_as_leader(term, move |book, now_ms| book.intent_sent(id, now_ms)).await?.is_err() {
        // Closed meanwhile.
        return Ok(None);
    }
    let gone = match cloud.heard(cloud.provider.terminate(&instance).await) {
        Ok(()) => false,
        Err(error) if error.kind == ErrorKind::Gone => true,
        Err(error) => return again(context, term, intent, &error).await.map(Some),
    };
    ledger.write_as_leader(term, move |book, now_ms| book.termination_taken(id, gone, now_ms).ok()).await?;
    Ok(None)
}

async fn again(context: &Context, term: i64, intent: &Intent, error: &ProviderError) -> Result<String, WriteError> {
    let (id, again) = (intent.id, calls::again(intent, error.kind));
    let (reason, said) = (error.to_string(), format!("i-{id}: {error}"));
    let note = move |book: &mut fleet::book::Book, now_ms: i64| {
        book.intent_again(id, now_ms.saturating_add(again.wait_ms), again.no_effect, &reason).ok()
    };
    context.app.ledger.write_as_leader(term, note).await?;
    Ok(said)
}
