//! What agents report, and what becomes of it; what it means is decided in [`control::reports`].

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use control::gpus::gpu_names;
use control::reports::{self, Heard};
use fleet::book::{Node, NodeError};
use protocol::agent::{Checks, HealthReport, Registered};

use super::super::Body;
use super::super::problem::{ApiError, Code, Problem};
use super::secrets::Secret;
use super::told;
use crate::app::App;
use crate::store::{EvidenceRow, Write};

/// Characters of a reason that are kept with the evidence.
const REASON_MAX: usize = 2000;
/// Conditions of one report.
const CONDITIONS_MAX: usize = 1000;
/// Numbers that a gate tells.
const RATES_MAX: usize = 64;
/// Characters of a serial number, and of the name of a number.
const SERIAL_MAX: usize = 64;
/// Characters of the name of a boot.
pub const BOOT_MAX: usize = 128;
/// Bytes of evidence that are kept of one report.
const EVIDENCE_BYTES_MAX: usize = 64 * 1024;

/// An agent reports. Every report is a heartbeat.
#[utoipa::path(
    post, path = "/v1/agents/{instance}/report", tag = "agents", request_body = HealthReport,
    params(("instance" = String, Path, description = "The cloud's name for the host")),
    responses(
        (status = 200, description = "Noted", body = Registered),
        (status = 409, description = "The report is of another boot, or cannot be now", body = Problem),
    )
)]
pub async fn report(
    State(app): State<Arc<App>>,
    secret: Secret,
    Path(instance): Path<String>,
    Body(report): Body<HealthReport>,
) -> Result<Json<Registered>, ApiError> {
    let host = secret.host(&app, &instance)?;
    bounded(&report)?;
    let serials = serials(&report);
    let known =
        if matches!(report.checks, Checks::Gate(_)) { app.store.gpus_named(serials).await? } else { Vec::new() };
    let blocked = reports::blocked(host.id, &known, app.now_ms());
    let report = Arc::new(report);
    let (noting, why) = (Arc::clone(&report), blocked.clone());
    let noted = app.ledger.write(move |book, now_ms| {
        let heard = Heard { report: &noting, blocked: why.as_deref() };
        let before = book.nodes().get(&host.id).cloned();
        let new = reports::note(book, host.id, &heard, now_ms)?;
        let after = book.nodes().get(&host.id).cloned();
        Ok::<_, NodeError>(before.zip(after).filter(|_| new))
    });
    if let Some((before, after)) = noted.await?? {
        let heard = Heard { report: &report, blocked: blocked.as_deref() };
        remember(&app, &heard, (&before, &after)).await?;
    }
    Ok(Json(told(&app, host)?))
}

fn serials(report: &HealthReport) -> &[String] {
    match &report.checks {
        Checks::Gate(gate) => &gate.identity.serials,
        Checks::Diagnosis(diagnosis) => &diagnosis.serials,
        Checks::Passive { .. } => &[],
    }
}

/// What a host may say at once.
fn bounded(report: &HealthReport) -> Result<(), ApiError> {
    let wrong = |detail: String| Err(ApiError::new(Code::OutOfRange, detail));
    match &report.checks {
        Checks::Passive { conditions } if conditions.len() > CONDITIONS_MAX => {
            return wrong(format!("{} conditions; {CONDITIONS_MAX} are the most", conditions.len()));
        }
        Checks::Gate(gate) if gate.rates.len() > RATES_MAX => {
            return wrong(format!("{} rates; {RATES_MAX} are the most", gate.rates.len()));
        }
        _ => {}
    }
    if report.boot.len() > BOOT_MAX {
        return wrong(format!("boot: at most {BOOT_MAX} bytes"));
    }
    if let Checks::Gate(gate) = &report.checks
        && gate.rates.keys().any(|name| name.len() > SERIAL_MAX)
    {
        return wrong(format!("rates: names of at most {SERIAL_MAX} bytes"));
    }
    let serials = serials(report);
    let most = fleet::GpuSet::MAX;
    if serials.len() > most as usize || serials.iter().any(|s| s.is_empty() || s.len() > SERIAL_MAX) {
        return wrong(format!("serials: at most {most} of at most {SERIAL_MAX} characters"));
    }
    Ok(())
}

/// Evidence as it is kept: a host that says too much is not kept whole.
fn kept(evidence: serde_json::Value) -> serde_json::Value {
    let bytes = evidence.to_string().len();
    if bytes <= EVIDENCE_BYTES_MAX {
        return evidence;
    }
    serde_json::json!({ "left_out_bytes": bytes, "most_bytes": EVIDENCE_BYTES_MAX })
}

/// Writes down what is known of the GPUs, and the evidence.
async fn remember(app: &App, heard: &Heard<'_>, (before, after): (&Node, &Node)) -> Result<(), ApiError> {
    let (now_ms, report) = (app.now_ms(), heard.report);
    let remembered = reports::remember(&*app.book()?, heard, (before, after), now_ms);
    if let Some(seconds) = remembered.yielded_s {
        app.metrics.yielded(seconds);
    }
    let Some(change) = remembered.gpus else { return Ok(()) };
    app.ledger.record(Write::Gpus { names: gpu_names(after).into_owned(), change }, None).await?;
    let evidence = match &report.checks {
        Checks::Gate(gate) => gate.evidence.clone(),
        Checks::Passive { .. } => serde_json::Value::Null,
        Checks::Diagnosis(diagnosis) => {
            app.metrics.diagnosed(report.verdict.name(), &diagnosis.tests);
            diagnosis.evidence.clone()
        }
    };
    let row = EvidenceRow {
        id: 0,
        at_ms: now_ms,
        node: after.id,
        checks: report.checks.name().into(),
        verdict: report.verdict.name().into(),
        reason: report.reason.chars().take(REASON_MAX).collect(),
        body: kept(evidence),
    };
    app.ledger.record(Write::Evidence(row), None).await?;
    Ok(())
}
