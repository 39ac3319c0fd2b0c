//! The configuration of `pilotlight serve`: one TOML file. Unknown keys are errors, with their file and line.

mod provider;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use control::weekly::Diagnostics;
use fleet::UsdMicros;
use fleet::book::Limits;
use planner::input::{LeadTime, Policy};
use planner::rolling::Rules;
use protocol::{BudgetSpec, ClassSpec, SnapshotSpec};
use serde::Deserialize;

pub use provider::{AwsPart, AwsRegionPart, ProviderPart, sim_offer};

/// The configuration of a server, as its TOML file has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the API listens.
    pub listen: SocketAddr,
    /// `sqlite:FILE` or `postgres://…`; the variable `DATABASE_URL` comes first.
    pub database: String,
    /// Where hosts reach this API, `https://pilotlight.example:7070`: given to each host that is launched in a real cloud.
    pub advertise_url: Option<String>,
    /// A certificate and its key.
    pub tls: Option<TlsPart>,
    /// Requests a second that each token may send.
    pub requests_per_s_max: f64,
    /// Limits on claims and nodes.
    pub limits: Limits,
    /// How plans are made.
    pub planning: Planning,
    /// What may be spent and launched, until it is written over the API.
    pub budget: BudgetSpec,
    /// Weekly diagnostics of idle nodes.
    pub diagnostics: Diagnostics,
    /// Cloud accounts.
    pub provider: Vec<ProviderPart>,
    /// Classes that are written down when there is none of that name.
    pub class: Vec<ClassSpec>,
    /// Snapshots by name, that are written down when there is none of that name.
    pub snapshot: BTreeMap<String, SnapshotSpec>,
    /// Clients that claim and release, to see something move.
    pub demo: Option<DemoPart>,
    /// Folder that paths are relative to.
    #[serde(skip)]
    pub folder: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            database: "sqlite:pilotlight.db".into(),
            advertise_url: None,
            tls: None,
            requests_per_s_max: 50_000.0,
            limits: Limits::default(),
            planning: Planning::default(),
            budget: BudgetSpec::default(),
            diagnostics: Diagnostics::default(),
            provider: Vec::new(),
            class: Vec::new(),
            snapshot: BTreeMap::new(),
            demo: None,
            folder: PathBuf::new(),
        }
    }
}

/// Certificate and key, PEM.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsPart {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// How plans are made.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Planning {
    /// Seconds between plans; a claim that empties a class wakes the planner before.
    pub every_s: f64,
    /// Seconds between looks at what the providers run.
    pub observe_every_s: f64,
    /// Plans are made and shown, and nothing is launched or released.
    pub dry_run: bool,
    /// Lengths of the periods, seconds.
    pub periods_s: Vec<u32>,
    /// Season of the demand, seconds.
    pub season_s: u32,
    /// Demand paths.
    pub paths: usize,
    /// A launch that has no answer after this time is given up, seconds.
    pub launch_expires_s: f64,
    /// What is assumed of an offer until launches tell more.
    pub prior: Prior,
}

/// What is assumed of an offer until launches tell more.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prior {
    /// `[[seconds, share], …]` from launch to healthy.
    pub lead_time: Vec<(f64, f64)>,
    /// Shortest time that is billed, seconds.
    pub min_hold_s: u32,
}

impl Prior {
    /// As the planner takes it.
    #[must_use]
    pub fn prior(&self) -> planner::gather::Prior {
        let lead_time = LeadTime { cdf: self.lead_time.clone() };
        planner::gather::Prior { lead_time, min_hold_s: self.min_hold_s }
    }
}

impl Default for Prior {
    fn default() -> Self {
        Self { lead_time: vec![(120.0, 0.0), (300.0, 0.7), (600.0, 1.0)], min_hold_s: 60 }
    }
}

impl Default for Planning {
    fn default() -> Self {
        Self {
            every_s: 30.0,
            observe_every_s: 15.0,
            dry_run: false,
            periods_s: [vec![60; 6], vec![300; 6], vec![900; 4]].concat(),
            season_s: 86_400,
            paths: 100,
            launch_expires_s: 600.0,
            prior: Prior::default(),
        }
    }
}

impl Planning {
    /// The rolling planner's rules.
    ///
    /// # Errors
    /// A budget that is no money.
    pub fn rules(&self, budget: &BudgetSpec) -> anyhow::Result<Rules> {
        let budget = budget.budget_usd_per_h.map(UsdMicros::from_usd).transpose().context("budget.budget_usd_per_h")?;
        Ok(Rules {
            period_s: self.periods_s.clone(),
            season_s: self.season_s,
            paths: self.paths,
            weights: Policy { budget_usd_micros_per_h: budget, ..Policy::default() },
            mean_only: false,
        })
    }
}

/// Clients for a demo.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DemoPart {
    /// New claims a minute, all classes together.
    pub claims_per_min: f64,
    /// Mean life of a claim, seconds.
    pub claim_mean_s: f64,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// It does not read, or makes no sense; the message has file, line and key.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut config: Self = toml::from_str(&text).with_context(|| path.display().to_string())?;
        config.folder = path.parent().unwrap_or(Path::new("")).to_owned();
        config.check().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    /// What the types do not say.
    ///
    /// # Errors
    /// The first thing that makes no sense, by its key.
    pub fn check(&self) -> anyhow::Result<()> {
        for spec in &self.class {
            spec.rule_of_server()?;
        }
        for (i, part) in self.provider.iter().enumerate() {
            part.check(self)?;
            for other in &self.provider[..i] {
                part.beside(other)?;
            }
        }
        if !(self.requests_per_s_max.is_finite() && self.requests_per_s_max >= 1.0) {
            bail!("requests_per_s_max: {} is not at least 1", self.requests_per_s_max);
        }
        let p = &self.planning;
        let most = planner::validate::MAX_SCENARIOS;
        if !(1..=most).contains(&p.paths) {
            bail!("planning.paths: {} is not in 1..={most}", p.paths);
        }
        let times =
            [("every_s", p.every_s), ("observe_every_s", p.observe_every_s), ("launch_expires_s", p.launch_expires_s)];
        if let Some((key, value)) = times.into_iter().find(|(_, v)| !(v.is_finite() && *v >= 1.0 && *v <= 86_400.0)) {
            bail!("planning.{key}: {value} is not in 1..=86400 seconds");
        }
        let horizon_s: u64 = p.periods_s.iter().map(|s| u64::from(*s)).sum();
        if p.periods_s.is_empty() || p.periods_s.contains(&0) || horizon_s > 30 * 86_400 {
            bail!("planning.periods_s: give lengths of at least a second, 30 days in all at most");
        }
        if p.season_s == 0 {
            bail!("planning.season_s: 0 seconds are no season; 86400 is a day");
        }
        let l = &self.limits;
        let durations = [
            ("confirm_ms", l.confirm_ms),
            ("lease_max_ms", l.lease_max_ms),
            ("proof_max_age_ms", l.proof_max_age_ms),
            ("silent_ms", l.silent_ms),
            ("boot_max_ms", l.boot_max_ms),
        ];
        if let Some((key, value)) = durations.into_iter().find(|(_, v)| *v < 1000) {
            bail!("limits.{key}: {value} is under a second");
        }
        for spec in &self.class {
            let rule = spec.rule_of_server()?;
            self.limits.allow(&rule).with_context(|| format!("class '{}' is beyond [limits]", spec.name))?;
        }
        let mut objects = BTreeMap::new();
        for (name, spec) in &self.snapshot {
            spec.snapshot(name).map_err(|what| anyhow::anyhow!("snapshot.{name}: {what}"))?;
            if let Some(other) = objects.insert(&spec.object, name) {
                bail!("snapshot.{name}: object: it is snapshot '{other}' already; one object is one snapshot");
            }
        }
        self.budget.check().map_err(|what| anyhow::anyhow!("budget.{what}"))?;
        self.diagnostics.check().map_err(|what| anyhow::anyhow!(what))?;
        Ok(())
    }

    /// The host name under which it is reached, where the configuration says so.
    #[must_use]
    pub fn advertised_host(&self) -> Option<String> {
        let authority = self.advertise_url.as_deref()?.split_once("://")?.1.split('/').next()?;
        authority.parse::<axum::http::uri::Authority>().ok().map(|a| a.host().to_owned())
    }

    /// The database: the environment comes first.
    #[must_use]
    pub fn database_url(&self, from_environment: Option<String>) -> String {
        from_environment.filter(|u| !u.is_empty()).unwrap_or_else(|| self.database.clone())
    }
}
