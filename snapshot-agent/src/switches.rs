//! What tests turn on, from the command line down to the checks.

use crate::host::HostFolders;

/// What tests turn on. The shipped agent has no way to.
#[derive(Debug, Clone)]
pub struct Switches {
    /// A product that is spoiled.
    pub spoil: Option<u32>,
    /// Folders of the host.
    pub host: HostFolders,
    /// Deadlines are multiplied by this.
    pub patience: f64,
    /// What resets and reboots, in place of the system's tools.
    pub tools: Option<Vec<String>>,
    /// The boot's name.
    pub boot: Option<String>,
}

impl Default for Switches {
    fn default() -> Self {
        Self { spoil: None, host: HostFolders::default(), patience: 1.0, tools: None, boot: None }
    }
}
