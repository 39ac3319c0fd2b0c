//! Processes that ask GPUs. A call into a sick driver may never come back, and nothing can end it; so it is made in a child
//! with a deadline, and a child that does not answer is left behind: that it is stuck is what was found.
//!
//! Questions and answers are lines of JSON on the child's standard input and output.

use std::io::{BufRead, BufReader, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use health::gate::{Look, Unseen};

use crate::limits;
use crate::probe::{Answer, Ask, Probe};

/// Longest answer, bytes. All numbers of a GPU are about 3 kB, a stretch of device memory 60 bytes.
const LINE_MAX: u64 = 64 << 20;
/// Last words of a child that are kept, bytes.
const LAST_WORDS_MAX: usize = 400;

/// The child's side: answers until its input ends. A panic of a binding is an answer too.
pub fn serve(probe: &mut dyn Probe) {
    limits::open_many_files();
    let (input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    for line in input.lines().map_while(Result::ok) {
        let answer = match serde_json::from_str::<Ask>(&line) {
            Ok(ask) => catch_unwind(AssertUnwindSafe(|| probe.answer(&ask))).unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()));
                Err(symbol_or_crash(&text.unwrap_or_else(|| "a panic".into())))
            }),
            Err(error) => Err(Unseen::Error(format!("a question does not read: {error}"))),
        };
        let Ok(text) = serde_json::to_string(&answer) else { return };
        if writeln!(output, "{text}").and_then(|()| output.flush()).is_err() {
            return;
        }
    }
}

/// The bindings panic where a library lacks a function.
fn symbol_or_crash(text: &str) -> Unseen {
    let first = text.lines().next().unwrap_or_default().chars().take(LAST_WORDS_MAX).collect::<String>();
    if text.contains("symbol") { Unseen::MissingSymbol(first) } else { Unseen::Crashed(first) }
}

/// How to start a child.
#[derive(Debug, Clone)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// What it is told.
    pub args: Vec<String>,
}

/// A child that answers, as long as it does.
#[derive(Debug)]
pub struct Worker {
    program: Program,
    state: State,
}

#[derive(Debug)]
enum State {
    NotStarted,
    Running(Running),
    /// It was left behind, for this.
    Gone(Unseen),
}

#[derive(Debug)]
struct Running {
    child: Child,
    input: ChildStdin,
    answers: Receiver<Result<String, ()>>,
    last_words: Arc<Mutex<String>>,
}

/// What is waited for.
#[derive(Debug)]
#[must_use]
pub struct Pending {
    asked: Look<()>,
    until: Instant,
    deadline: Duration,
}

impl Worker {
    /// A worker that starts with its first question.
    #[must_use]
    pub fn new(program: Program) -> Self {
        Self { program, state: State::NotStarted }
    }

    /// Asks, and waits no longer than `deadline`.
    ///
    /// # Errors
    /// It cannot be seen; where the child does not answer, or ended, no later question is answered either.
    pub fn ask(&mut self, ask: &Ask, deadline: Duration) -> Look<Answer> {
        let pending = self.start(ask, deadline);
        self.finish(pending)
    }

    /// Asks; the answer is to be fetched with [`finish`](Self::finish).
    #[allow(clippy::disallowed_methods, reason = "deadlines are of real time")]
    pub fn start(&mut self, ask: &Ask, deadline: Duration) -> Pending {
        Pending { asked: self.send(ask), until: Instant::now() + deadline, deadline }
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    #[allow(clippy::disallowed_methods, reason = "deadlines are of real time")]
    pub fn finish(&mut self, pending: Pending) -> Look<Answer> {
        pending.asked?;
        let State::Running(running) = &self.state else { return Err(Unseen::NotReached("no child".into())) };
        let left = pending.until.saturating_duration_since(Instant::now());
        let why = match running.answers.recv_timeout(left) {
            Ok(Ok(line)) => match serde_json::from_str::<Look<Answer>>(&line) {
                Ok(answer) => return answer,
                Err(error) => Unseen::Crashed(format!("it answered nonsense: {error}")),
            },
            Err(RecvTimeoutError::Timeout) => {
                let deadline_ms = u64::try_from(pending.deadline.as_millis()).unwrap_or(u64::MAX);
                Unseen::Stuck { deadline_ms }
            }
            Ok(Err(())) | Err(RecvTimeoutError::Disconnected) => self.how_it_ended(),
        };
        Err(self.leave(why))
    }

    fn send(&mut self, ask: &Ask) -> Look<()> {
        if let State::NotStarted = self.state {
            self.state = match spawn(&self.program) {
                Ok(running) => State::Running(running),
                Err(error) => State::Gone(Unseen::Error(format!("cannot start a probe: {error}"))),
            };
        }
        let running = match &mut self.state {
            State::Running(running) => running,
            State::Gone(why) => return Err(Unseen::NotReached(why.to_string())),
            State::NotStarted => return Err(Unseen::NotReached("no child".into())),
        };
        let line = serde_json::to_string(ask).map_err(|e| Unseen::Error(e.to_string()))?;
        if writeln!(running.input, "{line}").and_then(|()| running.input.flush()).is_err() {
            let why = self.how_it_ended();
            return Err(self.leave(why));
        }
        Ok(())
    }

    fn how_it_ended(&mut self) -> Unseen {
        let State::Running(running) = &mut self.state else { return Unseen::Crashed("it was not running".into()) };
        // Its output has ended; it is about to.
        std::thread::sleep(Duration::from_millis(50));
        let status =
            running.child.try_wait().ok().flatten().map_or_else(|| "it closed its output".into(), |s| s.to_string());
        let words = running.last_words.lock().unwrap_or_else(PoisonError::into_inner).trim().to_owned();
        Unseen::Crashed(if words.is_empty() { status } else { format!("{status}: {words}") })
    }

    fn leave(&mut self, why: Unseen) -> Unseen {
        if let State::Running(running) = std::mem::replace(&mut self.state, State::Gone(why.clone())) {
            end(running);
        }
        why
    }

    /// Starts over with a new child, at the next question.
    pub fn renew(&mut self) {
        if let State::Running(running) = std::mem::replace(&mut self.state, State::NotStarted) {
            end(running);
        }
    }

    /// Asks; where the child is left behind, the next question goes to a new one.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), of this question alone.
    pub fn ask_renewed(&mut self, ask: &Ask, deadline: Duration) -> Look<Answer> {
        let answer = self.ask(ask, deadline);
        if matches!(self.state, State::Gone(_)) {
            self.renew();
        }
        answer
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.renew();
    }
}

/// Children that were left and have not died.
static LEFT: AtomicU32 = AtomicU32::new(0);
/// So many that hang in the driver are enough to know that it hangs; no more are started then.
const LEFT_MAX: u32 = 24;

/// A child in the driver may not die of being killed; somebody must wait for it, and that must not be us.
fn end(mut running: Running) {
    drop(running.input);
    let _ = running.child.kill();
    LEFT.fetch_add(1, Ordering::Relaxed);
    let wait = move || {
        let _ = running.child.wait();
        LEFT.fetch_sub(1, Ordering::Relaxed);
    };
    // Without a thread the child stays as it is, and is counted.
    let _ = std::thread::Builder::new().name("reaper".into()).stack_size(STACK).spawn(wait);
}

/// Threads here only wait and copy lines.
const STACK: usize = 128 << 10;

fn spawn(program: &Program) -> std::io::Result<Running> {
    let left = LEFT.load(Ordering::Relaxed);
    if left >= LEFT_MAX {
        return Err(std::io::Error::other(format!("{left} earlier ones are stuck in the driver: reboot the host")));
    }
    let mut child = Command::new(&program.path)
        .args(&program.args)
        // They hide or renumber GPUs.
        .env_remove("CUDA_VISIBLE_DEVICES")
        .env_remove("NVIDIA_VISIBLE_DEVICES")
        .env("CUDA_CACHE_DISABLE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let piped = |what| std::io::Error::other(format!("a child has no {what}"));
    let input = child.stdin.take().ok_or_else(|| piped("input"))?;
    let output = child.stdout.take().ok_or_else(|| piped("output"))?;
    let errors = child.stderr.take().ok_or_else(|| piped("error output"))?;
    let (send, answers) = sync_channel(4);
    std::thread::Builder::new().stack_size(STACK).spawn(move || {
        let mut output = BufReader::new(output);
        loop {
            let mut line = String::new();
            let read = output.by_ref().take(LINE_MAX).read_line(&mut line);
            let said = if matches!(read, Ok(n) if n > 0) { Ok(line) } else { Err(()) };
            let over = said.is_err();
            if send.send(said).is_err() || over {
                return;
            }
        }
    })?;
    let last_words = Arc::new(Mutex::new(String::new()));
    let words = Arc::clone(&last_words);
    std::thread::Builder::new().stack_size(STACK).spawn(move || {
        for line in BufReader::new(errors).lines().map_while(Result::ok) {
            // The first line of a panic says where, the second what; what follows are hints.
            let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
            if words.len() < LAST_WORDS_MAX {
                words.extend(line.chars().take(LAST_WORDS_MAX).chain([' ']));
            }
        }
    })?;
    Ok(Running { child, input, answers, last_words })
}
