//! The calls to Amazon EC2 that are used, and no others: what an account must allow, and what a stand-in must answer.

use std::error::Error;
use std::fmt;

use async_trait::async_trait;

use fleet::cloud::InstanceState;

/// A call that failed.
#[derive(Debug)]
pub struct Ec2Error {
    /// The call, as EC2 names it.
    pub call: &'static str,
    /// EC2's code, where an answer came that has one.
    pub code: Option<String>,
    /// What EC2, or the way to it, said.
    pub message: String,
    /// Whether the call reached EC2's decision: an error answer of the 400 series says that nothing was done.
    pub refused: bool,
    /// The cause.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl fmt::Display for Ec2Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code.as_deref().unwrap_or("no answer");
        write!(f, "{}: {code}: {}", self.call, self.message)
    }
}

impl Error for Ec2Error {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as &(dyn Error + 'static))
    }
}

/// How instances are paid for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purchase {
    /// On demand; never into a reservation, which would be used up behind the planner's back.
    OnDemand,
    /// Spot, at the market's price, ended when taken back.
    Spot,
    /// Inside a capacity reservation, by its identifier.
    Reservation(String),
}

/// What every instance of a region is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    /// Image (`ami-…`); the launch template's where it is empty.
    pub image: Option<String>,
    /// Launch template (`lt-…`), for everything that is not said here.
    pub launch_template: Option<String>,
    /// Security groups.
    pub security_groups: Vec<String>,
    /// Name of the instance profile.
    pub instance_profile: Option<String>,
    /// SSH key.
    pub key_name: Option<String>,
}

/// Instances to launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Type.
    pub instance_type: String,
    /// Availability zone, by name.
    pub zone: String,
    /// Subnet; the default one of the zone without.
    pub subnet: Option<String>,
    /// How many at most; at least one.
    pub count: u32,
    /// How they are paid for.
    pub purchase: Purchase,
    /// EC2 launches once for a client token: 64 ASCII characters at most (EC2 API reference, ensuring idempotency).
    pub client_token: String,
    /// Tags of the instances.
    pub tags: Vec<(String, String)>,
    /// What the host reads at its first start, in clear.
    pub user_data: String,
    /// The rest.
    pub template: Template,
}

/// An instance as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// `i-…`.
    pub id: String,
    /// Type.
    pub instance_type: String,
    /// Availability zone, by name.
    pub zone: String,
    /// Whether it is a spot instance.
    pub spot: bool,
    /// Reservation that it runs in.
    pub reservation: Option<String>,
    /// Where it is in its life.
    pub state: InstanceState,
    /// When it was launched, milliseconds since 1970.
    pub launched_at_ms: i64,
    /// Tags.
    pub tags: Vec<(String, String)>,
}

/// What a type has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceType {
    /// Name.
    pub name: String,
    /// GPU as EC2 names it.
    pub gpu: String,
    /// GPUs; 0 where it has a part of one.
    pub gpus: u32,
}

/// The price of a spot pool at a time.
#[derive(Debug, Clone, PartialEq)]
pub struct SpotPrice {
    /// Type.
    pub instance_type: String,
    /// Availability zone, by name.
    pub zone: String,
    /// Dollars an hour.
    pub usd_per_h: f64,
    /// Since when, milliseconds since 1970.
    pub at_ms: i64,
}

/// How likely a spot request succeeds, as EC2 says: 1 to 10.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementScore {
    /// Identifier of the availability zone (`use1-az1`), not its name.
    pub zone_id: String,
    /// 1 to 10.
    pub score: i32,
}

/// A capacity reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// `cr-…`.
    pub id: String,
    /// Type.
    pub instance_type: String,
    /// Availability zone, by name.
    pub zone: String,
    /// Instances that it has room for, used or not: all are paid.
    pub total: u32,
    /// Instances that can be launched into it now.
    pub available: u32,
}

/// A warning that EC2 takes an instance back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// `i-…`.
    pub instance: String,
    /// EC2's word for it.
    pub code: String,
    /// When, milliseconds since 1970, where EC2 says.
    pub at_ms: Option<i64>,
}

/// EC2 in one region. No call is retried below this.
#[async_trait]
pub trait Ec2: Send + Sync + fmt::Debug {
    /// RunInstances with a client token: from one to `count` instances.
    async fn run_instances(&self, launch: &Launch) -> Result<Vec<Described>, Ec2Error>;
    /// TerminateInstances.
    async fn terminate_instance(&self, id: &str) -> Result<(), Ec2Error>;
    /// StopInstances.
    async fn stop_instance(&self, id: &str) -> Result<(), Ec2Error>;
    /// StartInstances.
    async fn start_instance(&self, id: &str) -> Result<(), Ec2Error>;
    /// ReportInstanceStatus, impaired for another reason than those that EC2 lists, with a description.
    async fn report_instance(&self, id: &str, what: &str) -> Result<(), Ec2Error>;
    /// DescribeInstances with a filter on one tag, all pages.
    async fn describe_instances(&self, tag: (&str, &str)) -> Result<Vec<Described>, Ec2Error>;
    /// DescribeInstanceStatus with scheduled events that end or stop an instance, and DescribeSpotInstanceRequests that
    /// are marked for an end.
    async fn warnings(&self) -> Result<Vec<Warning>, Ec2Error>;
    /// DescribeInstanceTypes; types that the region does not have are left out.
    async fn instance_types(&self, names: &[String]) -> Result<Vec<InstanceType>, Ec2Error>;
    /// DescribeInstanceTypeOfferings by zone: type and zone.
    async fn offerings(&self, types: &[String]) -> Result<Vec<(String, String)>, Ec2Error>;
    /// DescribeSpotPriceHistory of Linux, the present price of each pool.
    async fn spot_prices(&self, types: &[String], now_ms: i64) -> Result<Vec<SpotPrice>, Ec2Error>;
    /// GetSpotPlacementScores of the region's zones for `count` instances of any of the types.
    async fn placement_scores(&self, types: &[String], count: u32) -> Result<Vec<PlacementScore>, Ec2Error>;
    /// DescribeAvailabilityZones: identifier and name.
    async fn zones(&self) -> Result<Vec<(String, String)>, Ec2Error>;
    /// DescribeCapacityReservations that are active, on demand, of Linux and of default tenancy: Capacity Blocks are bought
    /// and launched in another way.
    async fn capacity_reservations(&self) -> Result<Vec<Reservation>, Ec2Error>;
}
