//! The thread that talks to the agent. Between conversations it waits for a signal, and has nothing open.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use interposer_protocol::{Channel, ChannelError, FORMAT, Hazards, Order, Report, SIGNAL, Said, THREAD};

use crate::driver::{self, Driver};
use crate::memory::{self, Tried, tried};
use crate::{hazards, peers};

/// What it needs beside a few calls of the driver.
const STACK_BYTES: usize = 1 << 20;
/// An agent that says nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(600);

/// The process that has a thread: what a fork makes has none.
static HAS: AtomicU32 = AtomicU32::new(0);

/// Starts the thread, if this process has none.
pub fn start() {
    let process = std::process::id();
    if HAS.swap(process, Ordering::AcqRel) == process {
        return;
    }
    // It blocks all signals: none of the workload's own may interrupt it, or be taken by it.
    let mut before = std::mem::MaybeUninit::uninit();
    unsafe {
        let mut all = std::mem::MaybeUninit::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    // Without the thread, the workload is one that has no library.
    drop(std::thread::Builder::new().name(THREAD.into()).stack_size(STACK_BYTES).spawn(wait));
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
}

fn wait() {
    loop {
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        let got = unsafe {
            let mut mine = std::mem::MaybeUninit::uninit();
            libc::sigemptyset(mine.as_mut_ptr());
            libc::sigaddset(mine.as_mut_ptr(), SIGNAL);
            libc::sigwaitinfo(mine.as_ptr(), info.as_mut_ptr())
        };
        // A capture and a restore interrupt it.
        if got != SIGNAL {
            continue;
        }
        let number = unsafe { info.assume_init().si_value() }.sival_ptr as usize as i32;
        // Whoever called and went away calls again.
        let _ = converse(number);
    }
}

/// What the agent has done with this process's memory so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Whole,
    Held,
    Released,
}

fn converse(number: i32) -> Result<(), ChannelError> {
    let channel = Channel::connect(number, PATIENCE)?;
    let Some(driver) = driver::get() else { return Ok(()) };
    // Memory goes to nobody but the host's own agent, or one of the same user.
    let uid = channel.peer()?.user;
    if uid != 0 && uid != unsafe { libc::geteuid() } {
        return Ok(());
    }
    channel.say(&Said::Report(report(driver)), None)?;
    let mut state = if memory::is_whole() { State::Whole } else { State::Released };
    let done = obey(&channel, driver, &mut state);
    // An agent that went away before anything was lost: the workload goes on.
    if state == State::Held {
        memory::go_on();
    }
    done
}

fn obey(channel: &Channel, driver: &Driver, state: &mut State) -> Result<(), ChannelError> {
    let mut given = Ok(());
    loop {
        let (order, beside) = channel.hear::<Order>()?;
        let done: Tried = match order {
            Order::Bye => return Ok(()),
            Order::Hold => {
                memory::hold();
                *state = State::Held;
                Ok(())
            }
            // What came up since it was asked.
            Order::Export if hazards::count() != Hazards::default() => {
                Err(("something that cannot be captured came up", 0))
            }
            Order::Export => {
                let mut sent = Ok(());
                let done = memory::export(driver, |segment, fd| {
                    sent = channel.say(&Said::Segment(segment), Some(fd.as_fd()));
                    if sent.is_ok() { Ok(()) } else { Err(("the agent", 0)) }
                });
                sent?;
                done
            }
            Order::Release => {
                *state = State::Released;
                peers::take_down(driver).and_then(|()| memory::release(driver))
            }
            Order::Give(address) => {
                let taken = beside.map_or(Err(("no handle", 0)), |fd| memory::give(driver, address, &fd));
                given = given.and(taken);
                continue;
            }
            Order::Resume => {
                let whole = if memory::is_whole() { Ok(()) } else { Err(("memory is missing", 0)) };
                let done = given.and(whole).and_then(|()| peers::make_again(driver));
                if done.is_ok() {
                    *state = State::Whole;
                    memory::go_on();
                }
                done
            }
        };
        let said = match done {
            Ok(()) => Said::Done,
            Err((function, code)) => Said::Failed { function: function.into(), code },
        };
        channel.say(&said, None)?;
    }
}

fn report(driver: &Driver) -> Report {
    let mut count = 0;
    let mut gpus = Vec::new();
    if tried("cuDeviceGetCount", unsafe { (driver.device_count)(&raw mut count) }).is_ok() {
        for n in 0..count {
            let (mut device, mut uuid) = (0, [0; 16]);
            unsafe {
                (driver.device_get)(&raw mut device, n);
                (driver.device_uuid)(&raw mut uuid, device);
            }
            gpus.push(uuid);
        }
    }
    let bulk = memory::extent();
    Report { format: FORMAT, gpus, bulk, peers: peers::pairs(), hazards: hazards::count() }
}
