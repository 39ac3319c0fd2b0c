//! Questions to a GPU, and who answers them. They are asked in processes of their own, see [`crate::worker`].

use health::gate::{
    Bandwidth, Context, CopyRates, Driver, Identity, Look, MemoryPatterns, Peer, Products, Readings, Unseen,
};
use health::kernel_log::PciAddress;
use serde::{Deserialize, Serialize};

use crate::gpu::bulk::{self, Bulk};
use crate::gpu::{self, Checkpoints, Effort, Measured, Paused, ProcessState, Step};
use crate::nvml::{Library, Nvml, WATCHED, read_all};

/// A question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Which driver and GPUs are there.
    Survey,
    /// Who a GPU is, by the library's number.
    Identity(u32),
    /// All numbers of a GPU.
    Read(u32),
    /// The numbers that are watched, of all GPUs, and errors that the driver announced.
    Watch,
    /// Make a context on a GPU, which later questions are about.
    Context(PciAddress),
    /// Patterns in memory.
    Memory,
    /// Bandwidth of memory.
    Bandwidth,
    /// Copies to and from the host.
    Copies,
    /// Products.
    Products(Effort),
    /// Copies in a ring of GPUs.
    Peers(Vec<(u32, PciAddress)>),
    /// A step of the driver's checkpoint of processes, of all at the same time.
    Checkpoint(Vec<i32>, Step),
    /// Have processes stand still, but for the driver's threads and the library's.
    Pause(Vec<i32>),
    /// Let all of them go on.
    GoOn,
    /// Bulk memory of workloads.
    Bulk(bulk::Ask),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Ask::Survey`].
    Survey(Driver, Vec<(u32, PciAddress)>),
    /// To [`Ask::Identity`].
    Identity(Identity),
    /// To [`Ask::Read`].
    Readings(#[serde(with = "pairs")] Readings),
    /// To [`Ask::Watch`].
    Watch(Watched),
    /// To [`Ask::Context`].
    Context(Context),
    /// To [`Ask::Memory`].
    Memory(MemoryPatterns),
    /// To [`Ask::Bandwidth`].
    Bandwidth(Bandwidth),
    /// To [`Ask::Copies`].
    Copies(CopyRates),
    /// To [`Ask::Products`].
    Products(Products),
    /// To [`Ask::Peers`].
    Peers(Vec<Peer>),
    /// To [`Ask::Checkpoint`], for each process.
    Checkpoint(Vec<Look<ProcessState>>),
    /// To [`Ask::Pause`] and [`Ask::GoOn`].
    Done,
    /// To [`Ask::Bulk`].
    Bulk(bulk::Answer),
}

/// What watching sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Watched {
    /// Numbers of each GPU.
    pub gpus: Vec<(PciAddress, Readings)>,
    /// Errors that the driver announced: `(GPU, Xid)`.
    pub xids: Look<Vec<(PciAddress, u32)>>,
}

/// Maps as lists of pairs.
mod pairs {
    use health::gate::Readings;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(map: &Readings, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Readings, D::Error> {
        Ok(Vec::deserialize(from)?.into_iter().collect())
    }
}

/// Who answers. A question may take for ever.
pub trait Probe {
    /// Answers.
    ///
    /// # Errors
    /// What was asked for cannot be seen.
    fn answer(&mut self, ask: &Ask) -> Look<Answer>;
}

/// The management library and one GPU.
#[derive(Debug, Default)]
pub struct Hardware {
    library: Option<Library>,
    gpu: Option<Measured>,
    checkpoints: Option<Checkpoints>,
    paused: Vec<Paused>,
    bulk: Bulk,
}

impl Probe for Hardware {
    fn answer(&mut self, ask: &Ask) -> Look<Answer> {
        match ask {
            Ask::Survey | Ask::Identity(_) | Ask::Read(_) | Ask::Watch => {
                if self.library.is_none() {
                    self.library = Some(Library::load()?);
                }
                let library = self.library.as_ref().ok_or_else(|| Unseen::NoDriver("not loaded".into()))?;
                asked(library, ask)
            }
            Ask::Context(address) => {
                let (gpu, context) = Measured::open(*address)?;
                self.gpu = Some(gpu);
                Ok(Answer::Context(context))
            }
            Ask::Memory => Ok(Answer::Memory(self.gpu()?.memory()?)),
            Ask::Bandwidth => Ok(Answer::Bandwidth(self.gpu()?.bandwidth()?)),
            Ask::Copies => Ok(Answer::Copies(self.gpu()?.copies()?)),
            Ask::Products(effort) => Ok(Answer::Products(self.gpu()?.products(*effort)?)),
            Ask::Peers(gpus) => Ok(Answer::Peers(gpu::peers(gpus)?)),
            Ask::Checkpoint(pids, step) => {
                let checkpoints = self.checkpoints()?;
                let states = std::thread::scope(|scope| {
                    let start = |pid: &i32| {
                        let pid = *pid;
                        scope.spawn(move || checkpoints.step(pid, step))
                    };
                    let started: Vec<_> = pids.iter().map(start).collect();
                    let ended = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                        thread.join().unwrap_or_else(|_| Err(Unseen::Crashed("a call".into())))
                    };
                    started.into_iter().map(ended).collect()
                });
                Ok(Answer::Checkpoint(states))
            }
            Ask::Pause(pids) => {
                for pid in pids {
                    let driver = self.checkpoints()?.restore_thread(*pid);
                    self.paused.push(Paused::new(*pid, driver)?);
                }
                Ok(Answer::Done)
            }
            Ask::GoOn => {
                self.paused.clear();
                Ok(Answer::Done)
            }
            Ask::Bulk(ask) => Ok(Answer::Bulk(self.bulk.answer(ask)?)),
        }
    }
}

impl Hardware {
    fn checkpoints(&mut self) -> Look<&Checkpoints> {
        if self.checkpoints.is_none() {
            self.checkpoints = Some(Checkpoints::load()?);
        }
        self.checkpoints.as_ref().ok_or_else(|| Unseen::NoDriver("not loaded".into()))
    }

    fn gpu(&mut self) -> Look<&mut Measured> {
        self.gpu.as_mut().ok_or_else(|| Unseen::NotReached("there is no context".into()))
    }
}

/// What a management library says to the questions that are for it.
///
/// # Errors
/// It does not answer, or the question is not for it.
pub fn asked(nvml: &dyn Nvml, ask: &Ask) -> Look<Answer> {
    match ask {
        Ask::Survey => Ok(Answer::Survey(nvml.driver()?, nvml.gpus()?)),
        Ask::Identity(index) => Ok(Answer::Identity(nvml.identity(*index)?)),
        Ask::Watch => {
            let numbers = |index: u32| WATCHED.iter().map(|r| (*r, nvml.read(index, *r))).collect();
            let gpus = nvml.gpus()?.into_iter().map(|(index, address)| (address, numbers(index))).collect();
            Ok(Answer::Watch(Watched { gpus, xids: nvml.xids() }))
        }
        Ask::Read(index) => Ok(Answer::Readings(read_all(nvml, *index))),
        _ => Err(Unseen::Error("this is no question for the management library".into())),
    }
}
