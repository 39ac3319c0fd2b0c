//! Bulk device memory of workloads, moved by this process: it holds contexts of all GPUs and pinned memory, takes handles of
//! memory from a workload's library or gives it some, and copies at the speed of the bus. It runs in a child, see
//! [`crate::worker`]; questions are answered in turn, but for copies, which go on meanwhile.

mod areas;
mod copies;
mod pinned;
mod talk;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::thread::JoinHandle;

use cudarc::driver::sys;
use health::gate::{Look, Unseen};
use interposer_protocol::{Channel, Report, Segment};
use serde::{Deserialize, Serialize};

use areas::Area;
use pinned::Pinned;

pub use talk::library_thread;

use super::cuda;

/// Identity of a GPU, as its driver gives it.
pub type Uuid = [u8; 16];

/// A question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Start CUDA on all GPUs.
    Open,
    /// Pin memory: a file of memory by its path, and its bytes.
    Pin(String, u64),
    /// What the library in a process says of it.
    Report(i32),
    /// Have it allocate nothing from now on.
    Hold(i32),
    /// Whether it answers though its threads stand still: none of them has what it needs then.
    Answers(i32),
    /// Take its bulk memory over.
    Export(i32),
    /// Have it let go of its bulk memory.
    Release(i32),
    /// Make memory on GPUs: for each area its GPU and the bytes of its segments.
    Create(Vec<(Uuid, Vec<u64>)>),
    /// Copy from GPUs, and wait for that.
    CopyOut(Vec<Run>),
    /// Begin to copy to GPUs.
    CopyIn(Vec<Run>),
    /// Wait for what was begun first.
    Copied,
    /// Give areas to a process, each at the addresses of its segments, and let it go on.
    Give(i32, Vec<(u32, Vec<u64>)>),
    /// Let go of all areas here.
    Drop,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// GPUs with their free bytes.
    Gpus(Vec<(Uuid, u64)>),
    /// The number of pinned memory.
    Pinned(u32),
    /// What a library says.
    Report(Report),
    /// Whether it answered.
    Answers(bool),
    /// Areas, by their numbers.
    Areas(Vec<Exported>),
    /// It is done.
    Done,
}

/// An area that a process handed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exported {
    /// Its number here.
    pub area: u32,
    /// Where it lies.
    pub gpu: Uuid,
    /// Its segments in their order, without gaps.
    pub segments: Vec<Segment>,
}

/// A stretch to be copied between an area and pinned memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The area, and the first byte in it.
    pub area: u32,
    /// First byte in it.
    pub at: u64,
    /// Number of the pinned memory, and the first byte in it; without one these are zeros.
    pub from: Option<(u32, u64)>,
    /// Bytes.
    pub bytes: u64,
}

/// A GPU.
#[derive(Debug, Clone, Copy)]
struct Gpu {
    uuid: Uuid,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
}

// SAFETY: the driver's handles may be used by every thread.
#[allow(unsafe_code)]
unsafe impl Send for Gpu {}

/// Copies that were begun: one thread for each GPU.
type Begun = Vec<JoinHandle<Look<()>>>;

/// All of it.
#[derive(Debug, Default)]
pub struct Bulk {
    gpus: Vec<Gpu>,
    pinned: Vec<Pinned>,
    areas: Vec<Area>,
    channels: BTreeMap<i32, (Channel, Vec<Uuid>)>,
    /// Processes that have not answered yet.
    asked: BTreeSet<i32>,
    begun: VecDeque<Begun>,
}

impl Bulk {
    /// Answers.
    ///
    /// # Errors
    /// The driver, the process, or what was asked makes no sense.
    pub fn answer(&mut self, ask: &Ask) -> Look<Answer> {
        match ask {
            Ask::Open => return self.open().map(Answer::Gpus),
            Ask::Pin(path, bytes) => {
                self.first_context()?;
                self.pinned.push(Pinned::new(path, *bytes)?);
                return Ok(Answer::Pinned(self.pinned.len() as u32 - 1));
            }
            Ask::Report(pid) => return self.report(*pid).map(Answer::Report),
            Ask::Hold(pid) => self.hold(*pid)?,
            Ask::Answers(pid) => return self.answers(*pid).map(Answer::Answers),
            Ask::Export(pid) => return self.export(*pid).map(Answer::Areas),
            Ask::Release(pid) => self.release(*pid)?,
            Ask::Create(areas) => {
                for (uuid, segments) in areas {
                    let gpu = self.gpu(*uuid)?;
                    self.areas.push(Area::create(gpu, segments)?);
                }
            }
            Ask::CopyOut(runs) => {
                let begun = self.begin(runs, copies::Way::Out)?;
                copies::wait(begun)?;
            }
            Ask::CopyIn(runs) => {
                let begun = self.begin(runs, copies::Way::In)?;
                self.begun.push_back(begun);
            }
            Ask::Copied => copies::wait(self.begun.pop_front().unwrap_or_default())?,
            Ask::Give(pid, areas) => self.give(*pid, areas)?,
            Ask::Drop => {
                // What is still being copied is waited for: it reads and writes what goes.
                while let Some(begun) = self.begun.pop_front() {
                    let _ = copies::wait(begun);
                }
                self.areas.clear();
                self.channels.clear();
            }
        }
        Ok(Answer::Done)
    }

    #[allow(unsafe_code)]
    fn open(&mut self) -> Look<Vec<(Uuid, u64)>> {
        cuda::start()?;
        if self.gpus.is_empty() {
            self.gpus = areas::gpus()?;
        }
        let mut found = Vec::new();
        for gpu in &self.gpus {
            gpu.use_here()?;
            let (mut free, mut total) = (0, 0);
            // SAFETY: the driver writes two numbers.
            let code = unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
            code.result().map_err(cuda::unseen("ask for free memory"))?;
            found.push((gpu.uuid, free as u64));
        }
        Ok(found)
    }

    /// Pinned memory is all GPUs', but some context must be in use.
    fn first_context(&self) -> Look<()> {
        self.gpus.first().ok_or_else(not_open)?.use_here()
    }

    fn gpu(&self, uuid: Uuid) -> Look<Gpu> {
        let found = self.gpus.iter().find(|gpu| gpu.uuid == uuid);
        found.copied().ok_or_else(|| Unseen::Error("a GPU that the process uses is not there".into()))
    }
}

fn not_open() -> Unseen {
    Unseen::NotReached("CUDA was not started".into())
}
