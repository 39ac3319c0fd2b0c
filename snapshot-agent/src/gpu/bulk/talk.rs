//! Conversations with the libraries in workloads.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use health::gate::{Look, Unseen};
use interposer_protocol::{ChannelError, FORMAT, Listener, Order, Report, SIGNAL, Said, Segment, THREAD};

use super::areas::Area;
use super::{Bulk, Exported, Uuid};

/// How long a library may take to connect, or for an order.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take where it has only to answer.
const SOON: Duration = Duration::from_secs(1);
/// Numbers of listeners that are tried before it is given up.
const TRIES: i32 = 64;
/// Most segments of a process.
const SEGMENTS_MAX: usize = 1 << 20;

fn failed(error: impl std::fmt::Display) -> Unseen {
    Unseen::Error(error.to_string())
}

/// The library's thread in a process, if there is one.
pub fn library_thread(pid: i32) -> Option<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let of = |task: std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        if name.trim_end() == THREAD { task.file_name().to_str()?.parse().ok() } else { None }
    };
    tasks.flatten().find_map(of)
}

/// Sends the library's thread the number under which it finds us.
fn call(pid: i32, thread: i32, number: i32) -> Look<()> {
    // siginfo_t as the kernel reads it for SI_QUEUE: number, errno, code, padding, sender, its user, value.
    let mut info = [0_u32; 32];
    info[0] = SIGNAL.cast_unsigned();
    info[2] = libc::SI_QUEUE.cast_unsigned();
    info[6] = number.cast_unsigned();
    // SAFETY: the kernel reads 128 bytes.
    let sent = unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, thread, SIGNAL, info.as_ptr()) };
    if sent == 0 { Ok(()) } else { Err(failed(std::io::Error::last_os_error())) }
}

impl Bulk {
    fn say(&self, pid: i32, order: Order, beside: Option<&OwnedFd>) -> Look<()> {
        let (channel, _) = self.channels.get(&pid).ok_or_else(|| failed("no conversation with the process"))?;
        channel.say(&order, beside.map(AsFd::as_fd)).map_err(failed)
    }

    fn hear(&self, pid: i32) -> Look<(Said, Option<OwnedFd>)> {
        let (channel, _) = self.channels.get(&pid).ok_or_else(|| failed("no conversation with the process"))?;
        match channel.hear().map_err(failed)? {
            (Said::Failed { function, code }, _) => {
                Err(failed(format!("{function}: the driver answers {code} in the workload")))
            }
            said => Ok(said),
        }
    }

    fn done(&self, pid: i32, order: Order) -> Look<()> {
        self.say(pid, order, None)?;
        match self.hear(pid)?.0 {
            Said::Done => Ok(()),
            other => Err(failed(format!("the workload's library says {other:?}"))),
        }
    }

    /// Begins a conversation, if there is none.
    pub(super) fn report(&mut self, pid: i32) -> Look<Report> {
        let thread = library_thread(pid).ok_or_else(|| failed("the library is not in the process"))?;
        let listener = (0..TRIES).find_map(|_| {
            // Nobody is to guess it.
            let mut number = [0; 4];
            rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty()).ok()?;
            let number = i32::from_ne_bytes(number) & i32::MAX;
            Some((number, Listener::new(number).ok()?))
        });
        let (number, listener) = listener.ok_or_else(|| failed("no address to listen at"))?;
        call(pid, thread, number)?;
        let channel = (0..TRIES).find_map(|_| match listener.accept(PATIENCE) {
            // Whoever else connects is none of ours.
            Ok((_, peer)) if peer != pid => None,
            Ok((channel, _)) => Some(Ok(channel)),
            Err(error) => Some(Err(failed(error))),
        });
        let channel = channel.unwrap_or_else(|| Err(failed("others answer for it")))?;
        let report = match channel.hear().map_err(failed)? {
            (Said::Report(report), _) => report,
            (other, _) => return Err(failed(format!("the workload's library says {other:?}"))),
        };
        if report.format != FORMAT {
            return Err(failed(format!("its library speaks format {}, this agent {FORMAT}", report.format)));
        }
        self.channels.insert(pid, (channel, report.gpus.clone()));
        Ok(report)
    }

    pub(super) fn hold(&mut self, pid: i32) -> Look<()> {
        self.done(pid, Order::Hold)
    }

    /// Whether the library answers within a second though threads of its process stand still.
    pub(super) fn answers(&mut self, pid: i32) -> Look<bool> {
        if self.asked.insert(pid) {
            self.say(pid, Order::Hold, None)?;
        }
        let (channel, _) = self.channels.get(&pid).ok_or_else(|| failed("no conversation with the process"))?;
        channel.patience(SOON).map_err(failed)?;
        let heard = channel.hear::<Said>();
        channel.patience(PATIENCE).map_err(failed)?;
        match heard {
            Ok(_) => {
                self.asked.remove(&pid);
                Ok(true)
            }
            Err(ChannelError::Broken(rustix::io::Errno::AGAIN)) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    pub(super) fn export(&mut self, pid: i32) -> Look<Vec<Exported>> {
        self.say(pid, Order::Export, None)?;
        let mut by_gpu: BTreeMap<u32, Vec<(Segment, OwnedFd)>> = BTreeMap::new();
        for _ in 0..SEGMENTS_MAX {
            match self.hear(pid)? {
                (Said::Segment(segment), Some(fd)) => by_gpu.entry(segment.device).or_default().push((segment, fd)),
                (Said::Done, _) => return self.import(pid, by_gpu),
                (other, _) => return Err(failed(format!("the workload's library says {other:?}"))),
            }
        }
        Err(failed(format!("it has more than {SEGMENTS_MAX} segments")))
    }

    fn import(&mut self, pid: i32, by_gpu: BTreeMap<u32, Vec<(Segment, OwnedFd)>>) -> Look<Vec<Exported>> {
        let mut exported = Vec::new();
        for (device, over) in by_gpu {
            let uuid: Option<Uuid> = self.channels[&pid].1.get(device as usize).copied();
            let gpu = uuid.ok_or_else(|| failed("a GPU that it did not name")).and_then(|uuid| self.gpu(uuid))?;
            let segments: Vec<Segment> = over.iter().map(|(segment, _)| *segment).collect();
            let handles = over.into_iter().map(|(segment, fd)| (segment.bytes, fd)).collect();
            self.areas.push(Area::import(gpu, handles)?);
            exported.push(Exported { area: self.areas.len() as u32 - 1, gpu: gpu.uuid, segments });
        }
        Ok(exported)
    }

    pub(super) fn release(&mut self, pid: i32) -> Look<()> {
        self.done(pid, Order::Release)?;
        self.bye(pid);
        Ok(())
    }

    pub(super) fn bye(&mut self, pid: i32) {
        // One that is gone needs none.
        let _ = self.say(pid, Order::Bye, None);
        self.channels.remove(&pid);
    }

    pub(super) fn give(&mut self, pid: i32, areas: &[(u32, Vec<u64>)]) -> Look<()> {
        self.report(pid)?;
        for (number, addresses) in areas {
            let area = self.areas.get(*number as usize).ok_or_else(|| failed("no such area"))?;
            if area.segments() != addresses.len() {
                return Err(failed("an area of other segments"));
            }
            // One at a time: there may be more than a process may have open.
            for (n, address) in addresses.iter().enumerate() {
                self.say(pid, Order::Give(*address), Some(&area.handle(n)?))?;
            }
        }
        self.done(pid, Order::Resume)?;
        self.bye(pid);
        Ok(())
    }
}
