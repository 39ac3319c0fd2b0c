//! Resets and reboots.

use std::process::Command;

use health::kernel_log::PciAddress;

/// How the host is mended.
#[derive(Debug, Clone)]
pub struct Tools {
    /// Resets one GPU, its address last: `nvidia-smi --gpu-reset -i`.
    pub reset: Vec<String>,
    /// Reboots the host.
    pub reboot: Vec<String>,
}

impl Default for Tools {
    fn default() -> Self {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect();
        Self { reset: words("nvidia-smi --gpu-reset -i"), reboot: words("systemctl reboot") }
    }
}

/// A mend that did not work.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct RepairError {
    what: String,
    why: String,
}

fn run(words: &[String], last: Option<&str>) -> Result<(), RepairError> {
    let error = |why: String| RepairError { what: words.join(" "), why };
    let (program, args) = words.split_first().ok_or_else(|| error("no command".into()))?;
    let made = Command::new(program).args(args).args(last).output().map_err(|e| error(e.to_string()))?;
    if made.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&made.stdout).into_owned() + &String::from_utf8_lossy(&made.stderr);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(error(format!("{}: {}", made.status, said.chars().take(200).collect::<String>())))
}

impl Tools {
    /// Resets GPUs, one after the other.
    ///
    /// # Errors
    /// One could not be reset: something holds it, or it is too broken.
    pub fn reset(&self, gpus: &[PciAddress]) -> Result<(), RepairError> {
        gpus.iter().try_for_each(|gpu| run(&self.reset, Some(&format!("{gpu}.0"))))
    }

    /// Reboots the host.
    ///
    /// # Errors
    /// The system refuses.
    pub fn reboot(&self) -> Result<(), RepairError> {
        run(&self.reboot, None)
    }
}
