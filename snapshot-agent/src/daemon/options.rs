//! How the daemon is started, and what it stands on.

use std::path::PathBuf;

use crate::host::HostFolders;
use crate::worker::Program;

/// Options of the daemon.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How to join: url and secret, from the instance's user data.
    #[arg(long, value_name = "FILE", default_value = "/etc/pilotlight/join.toml")]
    pub config: PathBuf,
    /// What outlives the process.
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/pilotlight-agent")]
    pub state: PathBuf,
    /// The kernel's log.
    #[arg(long, value_name = "FILE", default_value = "/dev/kmsg")]
    pub kernel_log: PathBuf,
}

/// What tests put in place of the host's own.
#[derive(Debug, Clone)]
pub struct Ground {
    /// How to start a probe.
    pub program: Program,
    /// The host's folders.
    pub host: HostFolders,
    /// What deadlines and pauses are multiplied by.
    pub patience: f64,
    /// How the host is mended; none: by the system's own tools.
    pub tools: Option<Vec<String>>,
    /// The boot's name; none: the kernel's.
    pub boot: Option<String>,
}
