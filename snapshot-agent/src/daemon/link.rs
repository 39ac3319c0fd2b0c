//! The link to the control plane: one call at a time, the newest state only, and pauses that grow while nobody answers.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use health::Verdict;
use health::condition::Condition;
use protocol::agent::{self, Checks, Desired, HealthReport, Registered};

use super::client::{Client, ClientError};
use super::clock::now;
use super::health::HealthSubject;
use super::state::State;

/// Heartbeats until the control plane says how many.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Pauses after calls that failed: 1, 2, 4, … seconds, this at most.
/// Well under the silence after which a node is lost.
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// Conditions of one report; the control plane takes as many.
const CONDITIONS_MAX: usize = 1000;
/// Longest wait of a poll.
const POLL: Duration = Duration::from_secs(30);

/// What is said.
#[derive(Debug, Clone)]
pub enum Subject {
    /// The agent is there.
    Register,
    /// What the health subsystem has to say.
    Health(HealthSubject),
}

/// What is heard.
#[derive(Debug)]
pub enum Word {
    /// What to do, of all subsystems.
    Desired(Desired),
    /// What became of a call.
    Sent(Sent),
}

/// The host's token, once this boot is known to the control plane.
pub type Token = Arc<Mutex<Option<String>>>;

/// Hears it; false when nobody listens any more.
pub type Tell = Arc<dyn Fn(Word) -> bool + Send + Sync>;

/// A call, whole.
#[derive(Debug, Clone)]
struct Call {
    secret: String,
    boot: String,
    seq: u64,
    gpus: u32,
    subject: Subject,
}

/// What became of a call.
#[derive(Debug)]
pub struct Sent {
    subject: Subject,
    answer: Result<Registered, ClientError>,
}

/// The link.
#[derive(Debug)]
pub struct Link {
    calls: SyncSender<Call>,
    secret: String,
    /// GPUs of the host.
    pub gpus: u32,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// The state is to be stored.
    pub changed: bool,
    in_flight: bool,
    /// This boot is known to the control plane.
    pub registered: bool,
    /// The next registration is made with the join secret.
    tries_secret: bool,
    next: Option<HealthSubject>,
    failures: u32,
    not_before: Option<Instant>,
    last_error: Option<String>,
    token: Token,
    patience: f64,
}

impl Link {
    /// Starts the threads that call.
    pub fn start(client: Client, secret: String, token: Token, tell: Tell, patience: f64) -> Self {
        let (calls, waiting) = sync_channel::<Call>(1);
        let caller = client.clone();
        let answered = Arc::clone(&tell);
        std::thread::spawn(move || {
            while let Ok(call) = waiting.recv() {
                let answer = make(&caller, &call);
                if !answered(Word::Sent(Sent { subject: call.subject, answer })) {
                    return;
                }
            }
        });
        // Nothing is asked for before this boot is known to the control plane: what it wants is of another until then.
        let known = Arc::clone(&token);
        std::thread::spawn(move || poll(&client, &known, &tell, patience));
        Self {
            calls,
            secret,
            gpus: 0,
            heartbeat: HEARTBEAT,
            changed: false,
            in_flight: false,
            registered: false,
            tries_secret: false,
            next: None,
            failures: 0,
            not_before: None,
            last_error: None,
            token,
            patience,
        }
    }

    /// Says something as soon as it can be said; what waited before is out of date.
    pub fn say(&mut self, subject: HealthSubject) {
        self.next = Some(subject);
    }

    /// Whether a call can be made now.
    pub fn is_free(&self) -> bool {
        !self.in_flight && self.not_before.is_none_or(|at| now() >= at)
    }

    /// Makes the next call, if there is one and the line is free.
    pub fn tick(&mut self, state: &mut State) {
        if !self.is_free() {
            return;
        }
        let subject = if !self.registered {
            Subject::Register
        } else if let Some(gate) =
            state.unreported_gate.as_ref().filter(|g| g.seq.is_some() || state.unreported_diagnosis.is_none())
        {
            // One that has its number already goes first: numbers rise.
            Subject::Health(HealthSubject::Gate(Box::new(gate.clone())))
        } else if let Some(diagnosis) = &state.unreported_diagnosis {
            Subject::Health(HealthSubject::Diagnosis(Box::new(diagnosis.clone())))
        } else if let Some(next) = self.next.take() {
            Subject::Health(next)
        } else {
            return;
        };
        // What is sent again keeps its number.
        let kept = match &subject {
            Subject::Health(HealthSubject::Gate(gate)) => gate.seq,
            Subject::Health(HealthSubject::Diagnosis(diagnosis)) => diagnosis.seq,
            Subject::Register | Subject::Health(HealthSubject::Passive { .. }) => None,
        };
        let seq = kept.unwrap_or_else(|| {
            state.report_seq += 1;
            state.report_seq
        });
        match &subject {
            Subject::Health(HealthSubject::Gate(_)) => state.unreported_gate.iter_mut().for_each(|g| g.seq = Some(seq)),
            Subject::Health(HealthSubject::Diagnosis(_)) => {
                state.unreported_diagnosis.iter_mut().for_each(|d| d.seq = Some(seq))
            }
            Subject::Register | Subject::Health(HealthSubject::Passive { .. }) => {}
        }
        let has_no_number_to_keep =
            matches!(subject, Subject::Register | Subject::Health(HealthSubject::Passive { .. }));
        self.changed |= kept != Some(seq) && !has_no_number_to_keep;
        let joins = self.tries_secret && matches!(subject, Subject::Register);
        let token = state.token.clone().filter(|_| !joins);
        let secret = token.unwrap_or_else(|| self.secret.clone());
        let call = Call { secret, boot: state.boot.clone(), seq, gpus: self.gpus, subject };
        self.in_flight = self.calls.try_send(call).is_ok();
    }

    /// Notes what became of a call.
    pub fn sent(&mut self, sent: Sent, state: &mut State) {
        self.in_flight = false;
        match sent.answer {
            Ok(told) => {
                if self.last_error.take().is_some() || !self.registered {
                    tracing::info!(state = told.state.name(), "the control plane answers");
                }
                self.failures = 0;
                self.not_before = None;
                self.registered = true;
                self.tries_secret = false;
                self.heartbeat = Duration::from_secs(u64::from(told.heartbeat_s.clamp(1, 300)));
                state.report_seq = state.report_seq.max(told.report_seq);
                let token = told.token.or_else(|| state.token.clone());
                if let Some(token) = token {
                    *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
                    state.token = Some(token);
                    self.changed = true;
                }
                self.told(&sent.subject, state);
            }
            Err(error) => self.failed(&error, &sent.subject, state),
        }
    }

    /// It is known, or not wanted: it is not sent again.
    fn told(&mut self, subject: &Subject, state: &mut State) {
        match subject {
            Subject::Health(HealthSubject::Gate(_)) => state.unreported_gate = None,
            Subject::Health(HealthSubject::Diagnosis(_)) => state.unreported_diagnosis = None,
            Subject::Register | Subject::Health(HealthSubject::Passive { .. }) => return,
        }
        self.changed = true;
    }

    fn failed(&mut self, error: &ClientError, subject: &Subject, state: &mut State) {
        let text = match error {
            ClientError::Unreachable(source) => format!("{error}: {source}"),
            other => other.to_string(),
        };
        if self.last_error.as_ref() != Some(&text) {
            tracing::warn!("{text}");
            self.last_error = Some(text);
        }
        if let ClientError::Refused { status, .. } = error {
            // The token has run out, or the boot is another to it: the host says again who it is. Whatever it is told, it
            // keeps its token: who refuses it may be wrong, and nothing else opens the door again. The join secret is tried
            // in turn with it, for a launch that does not know the token of the one before.
            self.registered = false;
            if error.is_stranger() && matches!(subject, Subject::Register) {
                self.tries_secret = !self.tries_secret;
            }
            if *status == 409 {
                // The node is not being checked any more, or is another: what was said is not wanted.
                self.told(subject, state);
            }
        }
        self.failures = self.failures.saturating_add(1);
        let pause = Duration::from_secs(1 << self.failures.min(6)).min(PAUSE_MAX).mul_f64(self.patience);
        self.not_before = Some(now() + pause);
    }
}

fn make(client: &Client, call: &Call) -> Result<Registered, ClientError> {
    let report = |checks: Checks, verdict: Verdict, reason: &str| HealthReport {
        boot: call.boot.clone(),
        checks,
        verdict,
        reason: reason.to_owned(),
        seq: Some(call.seq),
    };
    let report = match &call.subject {
        Subject::Register => return client.register(&call.secret, &call.boot, call.gpus),
        Subject::Health(HealthSubject::Passive { verdict, reason, conditions }) => {
            report(Checks::Passive { conditions: worst_of(conditions) }, *verdict, reason)
        }
        Subject::Health(HealthSubject::Gate(gate)) => {
            report(Checks::Gate(gate.said.clone()), gate.verdict, &gate.reason)
        }
        Subject::Health(HealthSubject::Diagnosis(d)) => report(Checks::Diagnosis(d.said.clone()), d.verdict, &d.reason),
    };
    client.report(&call.secret, &report)
}

/// Conditions as they are told: the worst first, as many as the control plane takes.
fn worst_of(conditions: &[Condition]) -> Vec<agent::Condition> {
    let mut worst: Vec<&Condition> = conditions.iter().collect();
    worst.sort_by_key(|c| (c.shadow, std::cmp::Reverse(c.effect)));
    let told = |c: &&Condition| agent::Condition {
        cause: c.cause.to_string(),
        gpu: c.gpu.map(|gpu| gpu.to_string()),
        effect: c.effect,
        shadow: c.shadow,
        raised_at_ms: c.raised_at_ms,
        text: c.text.clone(),
    };
    worst.iter().take(CONDITIONS_MAX).map(told).collect()
}

/// Polls for the desired state for ever.
fn poll(client: &Client, token: &Mutex<Option<String>>, tell: &Tell, patience: f64) {
    let (mut known, mut last) = (None, None);
    let (mut pause, mut wrong) = (Duration::from_secs(1), String::new());
    loop {
        let secret = token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(secret) = secret else {
            std::thread::sleep(Duration::from_secs(1).mul_f64(patience));
            continue;
        };
        match client.desired(&secret, known, POLL) {
            Ok(desired) => {
                pause = Duration::from_secs(1);
                wrong.clear();
                known = Some(desired.version);
                // Where a snapshot lies, or who has it too, may be another under the same number.
                if last.as_ref() != Some(&desired) {
                    last = Some(desired.clone());
                    if !tell(Word::Desired(desired)) {
                        return;
                    }
                }
            }
            Err(error) => {
                // The link says what is wrong with the way there; what is said on it is heard here alone.
                let said = error.to_string();
                if said != wrong {
                    tracing::warn!(error = said, "no orders are heard from the control plane");
                    wrong = said;
                }
                std::thread::sleep(pause.mul_f64(patience));
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}
