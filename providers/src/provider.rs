//! What Pilotlight asks of a cloud, and how clouds say no.

use std::error::Error;
use std::fmt;

use async_trait::async_trait;
use fleet::OfferKey;
use fleet::cloud::{ErrorKind, Hint, Instance, Notice};

use crate::catalogue::RawOffer;
use crate::pace::CallRate;

/// A call that failed.
#[derive(Debug)]
pub struct ProviderError {
    /// What it means.
    pub kind: ErrorKind,
    /// What was tried, and the cloud's own code where it gave one.
    pub what: String,
    /// The cause.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl ProviderError {
    /// An error.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), source: None }
    }
}

impl fmt::Display for ProviderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what, self.kind.name())
    }
}

impl Error for ProviderError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as &(dyn Error + 'static))
    }
}

/// Instances to launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchRequest {
    /// Where and as what.
    pub offer: OfferKey,
    /// How many.
    pub count: u32,
    /// Idempotency token: calls with the same token launch once. Clouds that know tokens get it; it is also a tag.
    pub token: String,
    /// What the host's agent needs to join, given to the instance as user data.
    pub join: String,
}

/// One cloud account.
///
/// Calls are made by one caller at a time for each provider. Every call may take long and may fail with
/// [`ErrorKind::Transient`] after it took effect; callers find out by [`Provider::list`].
#[async_trait]
pub trait Provider: Send + Sync + fmt::Debug {
    /// The word that its offers carry as `provider`.
    fn name(&self) -> &str;

    /// Tells a provider that has no memory of its own which instances run, before it is asked anything else.
    fn recall(&self, _known: &[Instance]) {}

    /// Whether it wants to be told by [`Self::recall`].
    fn recalls(&self) -> bool {
        false
    }

    /// How often it may be asked to launch, end, stop or start; callers keep to it.
    fn call_rate(&self) -> CallRate {
        CallRate::FREE
    }

    /// What it sells, at present prices, as it says them: they go through the gate before any plan sees them. An empty
    /// list is an answer: it sells nothing now.
    async fn offers(&self) -> Result<Vec<RawOffer>, ProviderError>;

    /// What it tells of its offers beside their prices; nothing, for most.
    async fn hints(&self) -> Result<Vec<Hint>, ProviderError> {
        Ok(Vec::new())
    }

    /// Launches up to `count` instances with the fleet's tag and the token's. Fewer than asked is a success and means
    /// that there are no more now; none at all is an error. A second call with the same token launches nothing and returns
    /// the instances of the first, as far as they are visible.
    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<Instance>, ProviderError>;

    /// Ends an instance. [`ErrorKind::Gone`] where it does not exist; asking twice is no error.
    async fn terminate(&self, instance: &str) -> Result<(), ProviderError>;

    /// All instances that carry the fleet's tag, also those that ended a short while ago. What was launched a moment ago
    /// may be missing.
    async fn list(&self) -> Result<Vec<Instance>, ProviderError>;

    /// Instances that the cloud will take back.
    async fn notices(&self) -> Result<Vec<Notice>, ProviderError>;

    /// Tells the cloud that an instance is broken, and how, where its API takes that. Returns whether it does.
    async fn report_fault(&self, _instance: &str, _what: &str) -> Result<bool, ProviderError> {
        Ok(false)
    }

    /// Stops an instance, to start it again later, where the cloud can.
    async fn stop(&self, instance: &str) -> Result<(), ProviderError> {
        Err(ProviderError::new(ErrorKind::Configuration, format!("{} cannot stop {instance}", self.name())))
    }

    /// Starts a stopped instance; may fail for lack of capacity.
    async fn start(&self, instance: &str) -> Result<(), ProviderError> {
        Err(ProviderError::new(ErrorKind::Configuration, format!("{} cannot start {instance}", self.name())))
    }
}
