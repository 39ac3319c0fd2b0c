//! EC2 in memory, for days on which the real API server is not there.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use providers::InstanceState;
use providers::aws::ec2::{
    Described, Ec2, Ec2Error, InstanceType, Launch, PlacementScore, Purchase, Reservation, SpotPrice, Warning,
};

/// One region with room for so many instances. Like the API server of the tests it knows no client tokens: what is proved
/// with it does not rest on them.
#[derive(Debug, Default)]
pub struct FakeEc2 {
    pub room: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub struct State {
    pub instances: Vec<Described>,
    /// User data of the launches.
    pub user_data: Vec<String>,
    /// What the next calls answer; `after` they took effect.
    pub fail: Vec<(Option<&'static str>, bool, bool)>,
    /// Instances that do not show yet.
    pub hidden: bool,
    pub reservations: Vec<Reservation>,
    pub warnings: Vec<Warning>,
    pub launches: u32,
    /// Instances that were said to be broken, and how.
    pub reported: Vec<(String, String)>,
    pub scores_asked: u32,
    /// Reads fail.
    pub down: bool,
}

impl FakeEc2 {
    pub fn with_room(room: usize) -> Self {
        Self { room, state: Mutex::default() }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next call answers with this code; without one it gives no answer.
    pub fn fail_next(&self, code: Option<&'static str>, refused: bool, after: bool) {
        self.lock().fail.push((code, refused, after));
    }
}

fn error(call: &'static str, code: Option<&str>, refused: bool) -> Ec2Error {
    Ec2Error { call, code: code.map(str::to_owned), message: "a test asked for it".into(), refused, source: None }
}

impl State {
    fn due(&mut self, call: &'static str, after: bool) -> Result<(), Ec2Error> {
        match self.fail.first().copied() {
            Some((code, refused, when)) if when == after => {
                self.fail.remove(0);
                Err(error(call, code, refused))
            }
            _ => Ok(()),
        }
    }

    fn set(&mut self, call: &'static str, id: &str, state: InstanceState) -> Result<(), Ec2Error> {
        self.due(call, false)?;
        let found = self.instances.iter_mut().find(|i| i.id == id);
        found.ok_or_else(|| error(call, Some("InvalidInstanceID.NotFound"), true))?.state = state;
        self.due(call, true)
    }

    fn up(&self, call: &'static str) -> Result<(), Ec2Error> {
        if self.down { Err(error(call, Some("InternalError"), false)) } else { Ok(()) }
    }

    fn running(&self) -> usize {
        self.instances.iter().filter(|i| matches!(i.state, InstanceState::Pending | InstanceState::Running)).count()
    }
}

#[async_trait]
impl Ec2 for FakeEc2 {
    async fn run_instances(&self, launch: &Launch) -> Result<Vec<Described>, Ec2Error> {
        let mut state = self.lock();
        state.due("RunInstances", false)?;
        let free = self.room - state.running();
        if free == 0 {
            return Err(error("RunInstances", Some("InsufficientInstanceCapacity"), true));
        }
        state.launches += 1;
        state.user_data.push(launch.user_data.clone());
        let reservation = match &launch.purchase {
            Purchase::Reservation(id) => Some(id.clone()),
            _ => None,
        };
        let mut made = Vec::new();
        for _ in 0..free.min(launch.count as usize) {
            let instance = Described {
                id: format!("i-{:08}", state.instances.len()),
                instance_type: launch.instance_type.clone(),
                zone: launch.zone.clone(),
                spot: launch.purchase == Purchase::Spot,
                reservation: reservation.clone(),
                state: InstanceState::Running,
                launched_at_ms: 0,
                tags: launch.tags.clone(),
            };
            state.instances.push(instance.clone());
            made.push(instance);
        }
        state.due("RunInstances", true)?;
        Ok(made)
    }

    async fn terminate_instance(&self, id: &str) -> Result<(), Ec2Error> {
        self.lock().set("TerminateInstances", id, InstanceState::Ended)
    }

    async fn report_instance(&self, id: &str, what: &str) -> Result<(), Ec2Error> {
        let mut state = self.lock();
        state.up("ReportInstanceStatus")?;
        state.reported.push((id.to_owned(), what.to_owned()));
        Ok(())
    }

    async fn stop_instance(&self, id: &str) -> Result<(), Ec2Error> {
        self.lock().set("StopInstances", id, InstanceState::Stopped)
    }

    async fn start_instance(&self, id: &str) -> Result<(), Ec2Error> {
        let mut state = self.lock();
        if state.running() >= self.room {
            return Err(error("StartInstances", Some("InsufficientInstanceCapacity"), true));
        }
        state.set("StartInstances", id, InstanceState::Running)
    }

    async fn describe_instances(&self, (key, value): (&str, &str)) -> Result<Vec<Described>, Ec2Error> {
        let mut state = self.lock();
        state.up("DescribeInstances")?;
        state.due("DescribeInstances", false)?;
        let shown = |i: &&Described| i.tags.iter().any(|(k, v)| k == key && v == value);
        Ok(if state.hidden { Vec::new() } else { state.instances.iter().filter(shown).cloned().collect() })
    }

    async fn warnings(&self) -> Result<Vec<Warning>, Ec2Error> {
        let state = self.lock();
        state.up("DescribeInstanceStatus")?;
        Ok(state.warnings.clone())
    }

    async fn instance_types(&self, names: &[String]) -> Result<Vec<InstanceType>, Ec2Error> {
        Ok(names.iter().map(|n| InstanceType { name: n.clone(), gpu: "H100".into(), gpus: 8 }).collect())
    }

    async fn offerings(&self, types: &[String]) -> Result<Vec<(String, String)>, Ec2Error> {
        self.lock().up("DescribeInstanceTypeOfferings")?;
        Ok(types.iter().map(|t| (t.clone(), "us-east-1a".to_owned())).collect())
    }

    async fn spot_prices(&self, types: &[String], now_ms: i64) -> Result<Vec<SpotPrice>, Ec2Error> {
        let pool = |t: &String, usd_per_h, at_ms| SpotPrice {
            instance_type: t.clone(),
            zone: "us-east-1a".into(),
            usd_per_h,
            at_ms,
        };
        // The older price comes last: order means nothing.
        Ok(types.iter().flat_map(|t| [pool(t, 20.0, now_ms), pool(t, 99.0, now_ms - 1)]).collect())
    }

    async fn placement_scores(&self, _types: &[String], _count: u32) -> Result<Vec<PlacementScore>, Ec2Error> {
        self.lock().scores_asked += 1;
        Ok(vec![PlacementScore { zone_id: "use1-az1".into(), score: 3 }])
    }

    async fn zones(&self) -> Result<Vec<(String, String)>, Ec2Error> {
        Ok(vec![("use1-az1".into(), "us-east-1a".into())])
    }

    async fn capacity_reservations(&self) -> Result<Vec<Reservation>, Ec2Error> {
        Ok(self.lock().reservations.clone())
    }
}
