//! A tree that uses GPUs, made ready to be written to files: nothing of it is on a GPU afterwards.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use interposer_protocol::{Hazards, Report};
use snapshots::compatibility::Devices;

use super::driver::{Driver, Gpus};
use super::mover::Mover;
use super::{Part, own_number};
use crate::gpu::bulk::{Exported, Run, Uuid, library_thread};
use crate::restore::capture::{Phase, timed};
use crate::restore::held::Held;
use crate::restore::records::DEVICE;
use crate::snapshots::host::arena::Arena;

/// How often threads are stopped anew, and how long they run meanwhile.
const STOPS_MAX: u32 = 20;
const BETWEEN_STOPS: Duration = Duration::from_millis(5);

/// Characters of a command that are shown.
const WORDS_SHOWN: usize = 120;

/// What was on GPUs.
#[derive(Debug)]
pub struct Frozen {
    /// GPUs and driver of this host.
    pub devices: Devices,
    /// Identities of the GPUs, as CUDA counts them.
    pub gpus: Vec<Uuid>,
    /// Numbers of processes that have the library, in their own namespace.
    pub served: Vec<i32>,
    /// Bulk memory: of each process on each GPU, and its content.
    pub parts: Vec<(Part, Arena)>,
}

/// A process that uses GPUs.
struct Using {
    pid: i32,
    /// What its library says, if it has one.
    report: Option<Report>,
}

/// Takes a tree off its GPUs, which are those that were chosen, or all; nothing, where it uses none.
///
/// # Errors
/// It has what would be lost, which is seen before anything of it is stopped; or the driver refuses, and it is to be ended.
pub fn freeze(
    held: &Held,
    split: bool,
    chosen: Option<&Gpus>,
    phases: &mut Vec<Phase>,
) -> anyhow::Result<Option<Frozen>> {
    let mut driver = Driver::new()?;
    let frozen = off_the_gpus(held, &mut driver, (split, chosen), phases);
    if frozen.is_err() {
        // The end of the driver's child lets its threads go on, and what they use may be gone.
        held.kill();
    }
    frozen
}

fn off_the_gpus(
    held: &Held,
    driver: &mut Driver,
    (split, chosen): (bool, Option<&Gpus>),
    phases: &mut Vec<Phase>,
) -> anyhow::Result<Option<Frozen>> {
    let all = held.pids();
    let open = all.iter().find(|pid| gpus_of(**pid) > 0);
    let Some(devices) = chosen.cloned().or_else(|| driver.gpus()).map(|gpus| gpus.devices()) else {
        ensure!(open.is_none(), "process {} has a GPU open, and no driver answers", open.copied().unwrap_or(0));
        return Ok(None);
    };
    let pids = match driver.using(&all) {
        // An old driver, and a workload that has nothing to do with it.
        Err(_) if open.is_none() => return Ok(None),
        using => using?,
    };
    let other = all.iter().find(|pid| gpus_of(**pid) > 0 && !pids.contains(pid));
    if let Some(pid) = other {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: String = String::from_utf8_lossy(&words).replace('\0', " ").chars().take(WORDS_SHOWN).collect();
        bail!(
            "process {pid} has a GPU open and does nothing with it ({}): have the workload end it once it is warm, or never start \
             it; for the compile workers of PyTorch that is torch._inductor.async_compile.shutdown_compile_workers(), or \
             TORCHINDUCTOR_COMPILE_THREADS=1",
            words.trim()
        );
    }
    if pids.is_empty() {
        return Ok(None);
    }
    Driver::check(&devices.driver)?;
    let mut mover = Mover::new()?;
    let (gpus, using, memory) = timed(phases, "prepare", || {
        let all: Vec<Uuid> = mover.open()?.into_iter().map(|(gpu, _)| gpu).collect();
        let gpus = chosen.map_or(Ok(all), Gpus::uuids)?;
        let using = look(&mut mover, &pids, split)?;
        let memory = prepare(&mut mover, &using)?;
        Ok((gpus, using, memory))
    })?;
    let served: Vec<i32> = using.iter().filter(|using| using.report.is_some()).map(|using| using.pid).collect();
    let parts = timed(phases, "device memory", || {
        // Locked first, so that no call is on its way when threads are stopped: the library makes calls after that.
        driver.lock(&pids)?;
        stand_still(driver, &mut mover, &served)?;
        driver.unlock(&served)?;
        let parts = take(&mut mover, &served, memory)?;
        driver.lock(&served)?;
        Ok(parts)
    })?;
    timed(phases, "driver", || {
        // What is locked does not touch what is gone.
        driver.go_on()?;
        driver.checkpoint(&pids).context("the driver cannot take it off the GPUs")
    })?;
    let own = |pid: &i32| own_number(*pid).with_context(|| format!("process {pid} is gone"));
    let served = served.iter().map(own).collect::<anyhow::Result<_>>()?;
    Ok(Some(Frozen { devices, gpus, served, parts }))
}

/// What each process has, and whether it can be captured at all.
fn look(mover: &mut Mover, pids: &[i32], split: bool) -> anyhow::Result<Vec<Using>> {
    let mut found = Vec::new();
    for pid in pids {
        let report = library_thread(*pid).map(|_| mover.report(*pid)).transpose()?;
        match &report {
            Some(report) => refuse(*pid, &report.hazards)?,
            None => {
                ensure!(
                    !split,
                    "process {pid} uses CUDA without the agent's library, so that what the driver cannot bring back would not be \
                     seen: see 'pilotlight-agent doctor' for the library, have the program pass LD_PRELOAD on, or give \
                     device_memory = \"driver\" in the recipe"
                );
                let used = gpus_of(*pid);
                ensure!(
                    used <= 1,
                    "process {pid} uses {used} GPUs without the agent's library: access between them, which the driver cannot \
                     bring back, would not be seen; leave device_memory = \"split\" in the recipe"
                );
            }
        }
        found.push(Using { pid: *pid, report });
    }
    Ok(found)
}

/// Stops threads, of which none may have what the library needs to answer.
fn stand_still(driver: &mut Driver, mover: &mut Mover, served: &[i32]) -> anyhow::Result<()> {
    for _ in 0..STOPS_MAX {
        driver.pause(served)?;
        let mut answer = true;
        for pid in served {
            answer &= mover.answers(*pid)?;
        }
        if answer {
            return Ok(());
        }
        driver.go_on()?;
        std::thread::sleep(BETWEEN_STOPS);
    }
    bail!("its threads cannot be stopped: have before_capture end what it works on")
}

/// What the driver's Checkpoint takes and its Restore refuses: the process would be lost.
fn refuse(pid: i32, hazards: &Hazards) -> anyhow::Result<()> {
    let Hazards { ipc, imported, managed, multicast, communicators } = *hazards;
    let known = [
        (communicators, "communicators of NCCL up", "have before_capture end them (destroy_process_group)"),
        (ipc, "memory of other processes open", "have before_capture close it"),
        (imported, "memory handles of other processes", "have before_capture release them"),
        (multicast, "multicast objects", "have before_capture release them"),
        (managed, "managed memory", "the driver cannot capture cudaMallocManaged: use cudaMalloc"),
    ];
    for (count, what, mend) in known {
        ensure!(count == 0, "process {pid} has {what} ({count}), which the driver cannot bring back: {mend}");
    }
    Ok(())
}

/// GPUs that a process has open, by the driver's files.
fn gpus_of(pid: i32) -> usize {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let of = |entry: std::fs::DirEntry| {
        let path = std::fs::read_link(entry.path()).ok()?;
        let number: u32 = path.to_str()?.strip_prefix("/dev/nvidia")?.parse().ok()?;
        Some(number)
    };
    open.filter_map(of).collect::<BTreeSet<_>>().len()
}

/// Memory for what a process has on a GPU.
struct Memory {
    pid: i32,
    gpu: Uuid,
    arena: Arena,
    /// Its number where it is pinned.
    pinned: u32,
}

/// Pins memory for all that there is, while the workload still serves; then has it allocate nothing.
fn prepare(mover: &mut Mover, using: &[Using]) -> anyhow::Result<Vec<Memory>> {
    let mut prepared = Vec::new();
    for Using { pid, report } in using {
        let Some(report) = report else { continue };
        for (device, bytes) in &report.bulk {
            let gpu = *report.gpus.get(*device as usize).context("its library names a GPU that is not there")?;
            let arena = Arena::allocate(*bytes).context("there is no room on the host for its device memory")?;
            let pinned = mover.pin(&arena.path(), arena.bytes())?;
            prepared.push(Memory { pid: *pid, gpu, arena, pinned });
        }
    }
    for using in using.iter().filter(|using| using.report.is_some()) {
        mover.hold(using.pid)?;
    }
    Ok(prepared)
}

/// Copies everything that stopped processes have in bulk, and has them let go of it.
fn take(mover: &mut Mover, served: &[i32], mut memory: Vec<Memory>) -> anyhow::Result<Vec<(Part, Arena)>> {
    let (mut parts, mut runs) = (Vec::new(), Vec::new());
    for pid in served {
        for Exported { area, gpu, segments } in mover.export(*pid)? {
            let prepared = memory.iter().position(|memory| memory.pid == *pid && memory.gpu == gpu);
            let process = own_number(*pid).with_context(|| format!("process {pid} is gone"))?;
            let segments: Vec<(u64, u64)> = segments.iter().map(|segment| (segment.address, segment.bytes)).collect();
            let stream = format!("{DEVICE}/{process}-{}", parts.len());
            let part = Part { process, gpu, stream, segments };
            let Some(Memory { arena, pinned, .. }) = prepared.map(|at| memory.swap_remove(at)) else {
                bail!("process {pid} allocated while it was captured: have before_capture stop it");
            };
            let bytes = part.bytes();
            ensure!(
                bytes == arena.bytes(),
                "process {pid} allocated or freed while it was captured: have before_capture stop it"
            );
            runs.push(Run { area, at: 0, from: Some((pinned, 0)), bytes });
            parts.push((part, arena));
        }
    }
    mover.copy_out(runs)?;
    for pid in served {
        mover.release(*pid)?;
    }
    mover.drop_all()?;
    Ok(parts)
}
