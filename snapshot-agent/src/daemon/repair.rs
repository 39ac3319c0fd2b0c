//! Resets and reboots.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use health::kernel_log::PciAddress;

/// How the host is mended.
#[derive(Debug, Clone)]
pub struct Tools {
    /// Resets one GPU, its address last: `nvidia-smi --gpu-reset -i`.
    pub reset: Vec<String>,
    /// Reboots the host.
    pub reboot: Vec<String>,
    /// Whether the persistence daemon is stopped for a reset.
    pub stops_persistence: bool,
}

impl Default for Tools {
    fn default() -> Self {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect();
        Self { reset: words("nvidia-smi --gpu-reset -i"), reboot: words("systemctl reboot"), stops_persistence: true }
    }
}

/// A mend that did not work.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct RepairError {
    what: String,
    why: String,
}

/// A reset that takes longer hangs in the driver.
const DEADLINE: Duration = Duration::from_secs(120);
/// How often it is looked whether it has ended.
const TICK: Duration = Duration::from_millis(50);

#[allow(clippy::disallowed_methods, reason = "deadlines are of real time")]
fn run(words: &[String], last: Option<&str>) -> Result<(), RepairError> {
    let error = |why: String| RepairError { what: words.join(" "), why };
    let (program, args) = words.split_first().ok_or_else(|| error("no command".into()))?;
    let mut child = Command::new(program)
        .args(args)
        .args(last)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| error(e.to_string()))?;
    let began = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|e| error(e.to_string()))? {
            Some(status) => break status,
            None if began.elapsed() > DEADLINE => {
                // It may not die of that; nobody waits for it.
                let _ = child.kill();
                return Err(error(format!("no end within {} s: it hangs in the driver", DEADLINE.as_secs())));
            }
            None => std::thread::sleep(TICK),
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    for output in
        [child.stdout.take().map(|o| Box::new(o) as Box<dyn Read>), child.stderr.take().map(|o| Box::new(o) as _)]
    {
        let _ = output.map(|o| o.take(4096).read_to_string(&mut said));
    }
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(error(format!("{status}: {}", said.chars().take(200).collect::<String>())))
}

impl Tools {
    /// Resets GPUs, one after the other.
    ///
    /// # Errors
    /// One could not be reset: something holds it, or it is too broken.
    pub fn reset(&self, gpus: &[PciAddress]) -> Result<(), RepairError> {
        // It holds every GPU open, and a GPU that is held is not reset.
        let persistence = |verb: &str| {
            let words = ["systemctl", verb, "nvidia-persistenced"].map(str::to_owned);
            self.stops_persistence.then(|| run(&words, None))
        };
        let stopped = matches!(persistence("stop"), Some(Ok(())));
        let done = gpus.iter().try_for_each(|gpu| run(&self.reset, Some(&format!("{gpu}.0"))));
        if stopped && let Some(Err(error)) = persistence("start") {
            tracing::warn!(%error, "nvidia-persistenced was stopped for a reset");
        }
        done
    }

    /// Reboots the host.
    ///
    /// # Errors
    /// The system refuses.
    pub fn reboot(&self) -> Result<(), RepairError> {
        run(&self.reboot, None)
    }
}
