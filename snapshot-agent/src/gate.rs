//! The boot gate on this host: gathers evidence, the cheap things first, on all GPUs at once where they do not disturb each
//! other. What it means is said by [`health::gate::judge`].

use std::time::{Duration, Instant};

use health::gate::{
    Bandwidth, Context, Copies, Driver, Evidence, Expected, Gpu, Identity, Look, MemoryPatterns, Peer, Products,
    Reading, Readings, Scope, Unseen,
};
use health::kernel_log::{PciAddress, Record};

use crate::gpu::Effort;
use crate::host::HostFolders;
use crate::kmsg::KernelLog;
use crate::probe::{Answer, Ask};
use crate::worker::{Pending, Program, Worker};

/// Nothing is begun after this time, and what runs is left: what is missing then is unmeasured.
pub const HARD_STOP: Duration = Duration::from_secs(60);
/// Times that a context is tried: `cuInit` of an L4 fails once in a thousand times.
const TRIES: u32 = 3;

/// How the gate is run.
#[derive(Debug, Clone)]
pub struct Setup {
    /// How much of it.
    pub scope: Scope,
    /// What the host was bought as.
    pub expected: Expected,
    /// How to start a probe.
    pub program: Program,
    /// The host's folders.
    pub host: HostFolders,
    /// How long products are made.
    pub effort: Effort,
    /// Deadlines are multiplied by this.
    pub patience: f64,
    /// Nothing is begun after this time.
    pub hard_stop: Duration,
}

/// A step, for whoever watches.
pub type Progress<'a> = &'a mut dyn FnMut(&str);

struct Run<'a> {
    setup: &'a Setup,
    began: Instant,
    library: Worker,
    workers: Vec<Worker>,
    progress: Progress<'a>,
}

/// An answer to the question that was asked, or nonsense.
macro_rules! expect {
    ($answer:expr, $kind:path) => {
        match $answer {
            Ok($kind(value)) => Ok(value),
            Ok(other) => Err(Unseen::Crashed(format!("it answered another question: {other:?}"))),
            Err(why) => Err(why),
        }
    };
}

/// Gathers all evidence. `log` is read on from where it stands: from the boot, or from the last reset.
#[allow(clippy::disallowed_methods, reason = "the gate's time is measured")]
pub fn run(setup: &Setup, log: &mut KernelLog, progress: Progress<'_>) -> Evidence {
    let began = Instant::now();
    let library = Worker::new(setup.program.clone());
    let mut run = Run { setup, began, library, workers: Vec::new(), progress };
    (run.progress)("device files, PCI bus, kernel log");
    let on_bus = setup.host.on_bus();
    let missing_files = setup.host.missing_files(on_bus.as_ref().map_or(0, Vec::len));
    let log_before = read(log);
    (run.progress)("driver and GPUs");
    let (driver, mut gpus) = run.survey();
    run.contexts(&mut gpus);
    let peers = match setup.scope {
        Scope::Whole => run.work(&mut gpus),
        Scope::Short => Err(Unseen::NotReached("it is not in the short gate".into())),
    };
    (run.progress)("errors and log again");
    run.workers.clear();
    for gpu in &mut gpus {
        gpu.after = run.readings(gpu.index);
    }
    let log_during = read(log);
    Evidence {
        scope: setup.scope,
        expected: setup.expected.clone(),
        missing_files,
        on_bus,
        driver,
        log_before,
        log_during,
        gpus,
        peers,
        seconds: began.elapsed().as_secs_f64(),
    }
}

/// What the log says; lines that were lost are as good as unread.
fn read(log: &mut KernelLog) -> Look<Vec<Record>> {
    let said = log.read_on()?;
    if said.gap {
        return Err(Unseen::Error("lines were lost before they were read: boot with log_buf_len=8M".into()));
    }
    Ok(said.records)
}

impl Run<'_> {
    /// A deadline that ends no later than the hard stop.
    fn deadline(&self, seconds: f64) -> Look<Duration> {
        let left = self.setup.hard_stop.saturating_sub(self.began.elapsed());
        if left.is_zero() {
            return Err(Unseen::NotReached(format!("the {} s of the gate were over", self.setup.hard_stop.as_secs())));
        }
        Ok(Duration::from_secs_f64(seconds * self.setup.patience).min(left))
    }

    fn ask_library(&mut self, ask: &Ask) -> Look<Answer> {
        let deadline = self.deadline(8.0)?;
        // One GPU on which calls hang must not hide the others: they get a child of their own.
        self.library.ask_renewed(ask, deadline)
    }

    fn survey(&mut self) -> (Look<Driver>, Vec<Gpu>) {
        let (driver, found) = match self.ask_library(&Ask::Survey) {
            Ok(Answer::Survey(driver, found)) => (driver, found),
            Ok(other) => return (Err(Unseen::Crashed(format!("it answered another question: {other:?}"))), Vec::new()),
            Err(why) => return (Err(why), Vec::new()),
        };
        let gpus = found.into_iter().map(|(index, address)| {
            let identity = expect!(self.ask_library(&Ask::Identity(index)), Answer::Identity);
            let before = self.readings(index);
            unmeasured(index, address, identity, before)
        });
        (Ok(driver), gpus.collect())
    }

    fn readings(&mut self, index: u32) -> Readings {
        match self.ask_library(&Ask::Read(index)) {
            Ok(Answer::Readings(readings)) => readings,
            Ok(other) => nothing_read(&Unseen::Crashed(format!("it answered another question: {other:?}"))),
            Err(why) => nothing_read(&why),
        }
    }

    fn contexts(&mut self, gpus: &mut [Gpu]) {
        (self.progress)("contexts");
        self.workers = gpus.iter().map(|_| Worker::new(self.setup.program.clone())).collect();
        for tries in 1..=TRIES {
            let deadline = self.deadline(12.0);
            let open: Vec<usize> = (0..gpus.len()).filter(|i| gpus[*i].context.is_err()).collect();
            let mut waiting = Vec::new();
            for i in open {
                if let Some(Ok(mig)) = gpus[i].before.get(&Reading::Mig)
                    && *mig != 0
                {
                    gpus[i].context = Err(Unseen::NotReached("MIG is on".into()));
                    continue;
                }
                match &deadline {
                    Ok(deadline) => {
                        // What failed in a process stays failed in it.
                        self.workers[i].renew();
                        waiting.push((i, self.workers[i].start(&Ask::Context(gpus[i].address), *deadline)));
                    }
                    Err(why) => gpus[i].context = Err(why.clone()),
                }
            }
            for (i, pending) in waiting {
                let context: Look<Context> = expect!(self.workers[i].finish(pending), Answer::Context);
                gpus[i].context = context.map(|c| Context { tries, ..c });
            }
            // A child that is stuck holds the GPU; another would be stuck behind it.
            let again = |g: &Gpu| matches!(&g.context, Err(Unseen::Error(_) | Unseen::Crashed(_) | Unseen::GpuLost));
            if !gpus.iter().any(again) {
                break;
            }
        }
    }

    /// What works the GPUs: patterns, copies, products.
    fn work(&mut self, gpus: &mut [Gpu]) -> Look<Vec<Peer>> {
        // Before the patterns: what they free is wiped by the driver for a while, at the cost of bandwidth.
        self.each("memory bandwidth", 8.0, gpus, &Ask::Bandwidth, |gpu, a| {
            gpu.bandwidth = expect!(a, Answer::Bandwidth);
        });
        self.each("memory patterns", 20.0, gpus, &Ask::Memory, |gpu, a| gpu.memory = expect!(a, Answer::Memory));
        self.copies(gpus);
        self.products(gpus);
        self.peers(gpus)
    }

    /// Asks all GPUs at once.
    fn each(&mut self, step: &str, seconds: f64, gpus: &mut [Gpu], ask: &Ask, note: impl Fn(&mut Gpu, Look<Answer>)) {
        (self.progress)(step);
        let waiting = self.ask_all(seconds, gpus, ask);
        self.hear_all(gpus, waiting, note);
    }

    /// Asks all GPUs that have a context; [`hear_all`](Self::hear_all) has their answers.
    fn ask_all(&mut self, seconds: f64, gpus: &[Gpu], ask: &Ask) -> Vec<Look<Pending>> {
        let deadline = self.deadline(seconds);
        let start = |(gpu, worker): (&Gpu, &mut Worker)| {
            has_context(gpu)?;
            Ok(worker.start(ask, deadline.clone()?))
        };
        gpus.iter().zip(&mut self.workers).map(start).collect()
    }

    fn hear_all(&mut self, gpus: &mut [Gpu], waiting: Vec<Look<Pending>>, note: impl Fn(&mut Gpu, Look<Answer>)) {
        for ((gpu, worker), pending) in gpus.iter_mut().zip(&mut self.workers).zip(waiting) {
            note(gpu, pending.and_then(|p| worker.finish(p)));
        }
    }

    fn copies(&mut self, gpus: &mut [Gpu]) {
        (self.progress)("host copies, one GPU at a time");
        for (i, gpu) in gpus.iter_mut().enumerate() {
            let rates = has_context(gpu).and_then(|()| {
                let deadline = self.deadline(10.0)?;
                expect!(self.workers[i].ask(&Ask::Copies, deadline), Answer::Copies)
            });
            gpu.copies_alone = rates.map(|rates| Copies { rates, link: self.readings(gpu.index) });
        }
        let note = |gpu: &mut Gpu, a| {
            let link = gpu.copies_alone.as_ref().map(|c| c.link.clone()).unwrap_or_default();
            gpu.copies_together = expect!(a, Answer::Copies).map(|rates| Copies { rates, link });
        };
        self.each("host copies, all GPUs", 15.0, gpus, &Ask::Copies, note);
    }

    fn products(&mut self, gpus: &mut [Gpu]) {
        let effort = self.setup.effort;
        (self.progress)("products");
        // A slow card takes 30 ms for a product.
        let seconds = effort.tensor_s + effort.fp32_s + 12.0 + f64::from(effort.repeats_min) * 0.03;
        let waiting = self.ask_all(seconds, gpus, &Ask::Products(effort));
        if waiting.iter().any(Result::is_ok) {
            // Most of the way through, so that temperature and clocks are those of load.
            std::thread::sleep(Duration::from_secs_f64(effort.tensor_s * 0.8));
            for gpu in gpus.iter_mut() {
                gpu.loaded = self.readings(gpu.index);
            }
        }
        self.hear_all(gpus, waiting, |gpu, a| gpu.products = expect!(a, Answer::Products));
    }

    fn peers(&mut self, gpus: &[Gpu]) -> Look<Vec<Peer>> {
        if gpus.len() < 2 {
            return Ok(Vec::new());
        }
        (self.progress)("copies between GPUs");
        let deadline = self.deadline(20.0)?;
        if let Some(gpu) = gpus.iter().find(|g| g.context.is_err()) {
            return Err(Unseen::NotReached(format!("GPU {} has no context", gpu.index)));
        }
        let ring: Vec<_> = gpus.iter().map(|g| (g.index, g.address)).collect();
        let mut worker = Worker::new(self.setup.program.clone());
        expect!(worker.ask(&Ask::Peers(ring), deadline), Answer::Peers)
    }
}

/// Whether it can be asked.
fn has_context(gpu: &Gpu) -> Look<()> {
    gpu.context.as_ref().map(|_| ()).map_err(|why| Unseen::NotReached(format!("there is no context: {why}")))
}

fn nothing_read(why: &Unseen) -> Readings {
    Reading::ALL.iter().map(|r| (*r, Err(why.clone()))).collect()
}

fn unmeasured(index: u32, address: PciAddress, identity: Look<Identity>, before: Readings) -> Gpu {
    fn not_yet<T>() -> Look<T> {
        Err(Unseen::NotReached("the gate did not come so far".into()))
    }
    Gpu {
        index,
        address,
        identity,
        before,
        loaded: Readings::new(),
        after: Readings::new(),
        context: not_yet::<Context>(),
        memory: not_yet::<MemoryPatterns>(),
        bandwidth: not_yet::<Bandwidth>(),
        copies_alone: not_yet::<Copies>(),
        copies_together: not_yet::<Copies>(),
        products: not_yet::<Products>(),
    }
}
