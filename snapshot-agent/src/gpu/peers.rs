//! Copies from GPU to GPU, in a ring.

use health::gate::{Look, Peer};
use health::kernel_log::PciAddress;

use super::cuda::{Arg, Grid};
use super::measure::Measured;

/// A copy, bytes.
const BYTES: usize = 1 << 30;
const ROUNDS: u32 = 3;
const SEED: u32 = 0x2545_f491;

/// Copies 1 GiB from each GPU to the next, and looks at what arrived. Needs two GPUs or more.
///
/// # Errors
/// A GPU fails.
pub fn peers(gpus: &[(u32, PciAddress)]) -> Look<Vec<Peer>> {
    let mut open = Vec::new();
    for (index, address) in gpus {
        let (measured, _) = Measured::open(*address)?;
        let (from, to) = (measured.gpu().take(BYTES)?, measured.gpu().take(BYTES)?);
        open.push((*index, measured, from, to));
    }
    let grid = |processors: u32| Grid { blocks: processors * 8, threads: 256, shared_bytes: 0 };
    let length = (BYTES / 16) as u64;
    let mut ring = Vec::new();
    for n in 0..open.len() {
        let (from_index, source, from, _) = &open[n];
        let (to_index, target, _, to) = &open[(n + 1) % open.len()];
        let direct = source.gpu().reach(target.gpu())?;
        source.gpu().use_here()?;
        let pattern = |at| [Arg::Long(at), Arg::Long(length), Arg::Long(0), Arg::Int(3), Arg::Int(SEED + n as u32)];
        source.gpu().launch(source.gpu().kernel("fill", 0)?, grid(source.gpu().processors), &pattern(from.at))?;
        source.gpu().wait()?;
        let mut best_s = f64::INFINITY;
        for _ in 0..ROUNDS {
            best_s = best_s.min(source.gpu().time(|| source.gpu().copy_to(from, target.gpu(), to))?);
        }
        target.gpu().use_here()?;
        let found = target.gpu().take(24)?;
        target.gpu().write(&found, &[0, u64::MAX, 0])?;
        let mut args = pattern(to.at).to_vec();
        args.push(Arg::Long(found.at));
        target.gpu().launch(target.gpu().kernel("verify", 0)?, grid(target.gpu().processors), &args)?;
        let bad_words = target.gpu().read(&found, 1)?[0];
        ring.push(Peer { from: *from_index, to: *to_index, direct, gbps: BYTES as f64 / best_s / 1e9, bad_words });
    }
    Ok(ring)
}
