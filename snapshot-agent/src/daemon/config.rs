//! What the host was given: how to join, and as what.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use health::gate::{Expected, Limits};
use health::policy::Policy;
use serde::Deserialize;

use crate::rules;

/// Where cloud-init writes the cloud's name for the host, on every cloud.
const INSTANCE_FILE: &str = "/var/lib/cloud/data/instance-id";

/// `/etc/pilotlight/join.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The control plane, `https://…`.
    pub url: String,
    /// The join secret of the launch, good for one registration.
    pub secret: String,
    /// The cloud's name for this host; without it, what cloud-init knows.
    pub instance: Option<String>,
    /// Certificates (PEM) that the control plane's is signed by; without it, those of the web.
    pub ca: Option<PathBuf>,
    /// GPUs that were bought.
    pub gpus: Option<u32>,
    /// PCI device id of their model, 2335.
    pub pci_device: Option<String>,
    /// Version of the driver in the image.
    pub driver: Option<String>,
    /// Image that the host was started from: faults that an image brings are told from faults of GPUs.
    pub image: Option<String>,
    /// What it hangs together with others by (a rack, a placement group): hosts of one are not tested at the same time.
    /// Without it, the NVLink domain over several hosts where the GPUs are in one.
    pub domain: Option<String>,
    /// NVIDIA's diagnostics; `dcgmi` without it.
    pub dcgmi: Option<PathBuf>,
    /// Tests of them that this GPU model does not have.
    #[serde(default)]
    pub not_applicable: Vec<String>,
    /// Rules (TOML) over the shipped policy.
    pub policy: Option<PathBuf>,
    /// Limits (TOML) over the shipped ones.
    pub limits: Option<PathBuf>,
    /// Snapshots that lie here before they are asked for; without it none do.
    pub staging: Option<Staging>,
    /// What claims start from is brought up here by the agent; without it that is their clients' affair alone.
    pub restore: Option<Restore>,
}

/// Where and with what captured processes come up.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// Where files of snapshots are, and how starts went is remembered.
    #[serde(default = "restore_folder")]
    pub folder: PathBuf,
    /// How much of the disk those files may take, GiB; those go first that were started longest ago.
    #[serde(default = "keep_gib")]
    pub keep_gib: f64,
    /// Memory for device memory that is read off the disk while it is copied, GiB.
    #[serde(default = "memory_gib")]
    pub memory_gib: f64,
    /// CRIU, 4.2 or later; without it the one in PATH.
    pub criu: Option<PathBuf>,
    /// Where the library lies that workloads have preloaded: the same on all hosts.
    #[serde(default = "interposers")]
    pub interposers: PathBuf,
    /// Addresses of stores, or of what they lie below, that workloads are taken from; without any, whichever the control plane
    /// names. They run as root.
    #[serde(default)]
    pub stores: Vec<String>,
}

fn restore_folder() -> PathBuf {
    "/var/lib/pilotlight-agent/restore".into()
}

fn keep_gib() -> f64 {
    500.0
}

fn memory_gib() -> f64 {
    4.0
}

fn interposers() -> PathBuf {
    "/var/lib/pilotlight-agent/interposers".into()
}

/// Where snapshots lie before they are asked for.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Staging {
    /// The cache of this host's mounts and restores, on its fastest disk.
    #[serde(default = "staging_folder")]
    pub folder: PathBuf,
    /// How much of the disk it may take, GiB.
    pub disk_gib: f64,
    /// Memory for copies, GiB, allocated when the agent starts; none without it.
    #[serde(default)]
    pub memory_gib: f64,
    /// Where it serves what it has to other hosts of its zone, `10.0.0.7:7071`; without it, it neither serves nor is named to
    /// others. What is sent is not encrypted: only in a network of your own.
    pub listen: Option<SocketAddr>,
    /// Where they reach that, if it is elsewhere.
    pub advertise: Option<SocketAddr>,
    /// Keys of sealed stores.
    #[serde(default)]
    pub key: Vec<KeyOf>,
}

/// The key of a tenant's stores.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyOf {
    /// Address of the store, or of what it lies below.
    pub store: String,
    /// File with the key, as 'pilotlight-agent store keygen' writes it.
    pub file: PathBuf,
}

fn staging_folder() -> PathBuf {
    "/var/lib/pilotlight-agent/cache".into()
}

/// Largest cache, GiB: 1 PiB.
const GIB_MAX: f64 = 1_048_576.0;

/// All that the agent is set up with.
#[derive(Debug)]
pub struct Config {
    /// How to join.
    pub join: Join,
    /// The cloud's name for this host.
    pub instance: String,
    /// What was bought.
    pub expected: Expected,
    /// The policy.
    pub policy: Policy,
    /// The limits.
    pub limits: Limits,
}

impl Config {
    /// Reads it.
    ///
    /// # Errors
    /// A file does not read, or says something that makes no sense; the message says what to do.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let join: Join = toml::from_str(&rules::read(path)?).with_context(|| path.display().to_string())?;
        if !join.url.starts_with("https://") && !is_loopback(&join.url) {
            bail!("{}: url = \"{}\": secrets go over https:// alone", path.display(), join.url);
        }
        let instance = match &join.instance {
            Some(instance) => instance.clone(),
            None => std::fs::read_to_string(INSTANCE_FILE)
                .with_context(|| format!("cannot read {INSTANCE_FILE}: write 'instance' into {}", path.display()))?
                .trim()
                .to_owned(),
        };
        if instance.is_empty() || !instance.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            bail!("'{instance}' is no name of an instance");
        }
        if let Some(staging) = &join.staging {
            for (key, gib, least) in
                [("disk_gib", staging.disk_gib, f64::MIN_POSITIVE), ("memory_gib", staging.memory_gib, 0.0)]
            {
                if !(least..=GIB_MAX).contains(&gib) {
                    bail!("{}: staging.{key} = {gib}: give GiB, at most {GIB_MAX}", path.display());
                }
            }
        }
        if let Some(restore) = &join.restore {
            for (key, gib) in [("keep_gib", restore.keep_gib), ("memory_gib", restore.memory_gib)] {
                if !(0.0..=GIB_MAX).contains(&gib) {
                    bail!("{}: restore.{key} = {gib}: give GiB, at most {GIB_MAX}", path.display());
                }
            }
        }
        let some = |text: Option<String>| text.filter(|t| !t.is_empty());
        let join = Join { image: some(join.image), domain: some(join.domain), ..join };
        let policy = rules::policy(join.policy.as_deref())?;
        let limits = rules::limits(join.limits.as_deref())?;
        let expected = Expected { gpus: join.gpus, pci_device: join.pci_device.clone(), driver: join.driver.clone() };
        Ok(Self { join, instance, expected, policy, limits })
    }
}

fn is_loopback(url: &str) -> bool {
    ["http://127.0.0.1", "http://localhost", "http://[::1]"].iter().any(|l| url.starts_with(l))
}
