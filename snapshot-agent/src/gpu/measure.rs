//! The gate's work on one GPU: a context, patterns, bandwidth, copies, products.

use std::time::Instant;

use health::gate::{Bandwidth, Context, CopyRates, Look, MemoryPatterns, Products, Unseen};
use health::kernel_log::PciAddress;
use serde::{Deserialize, Serialize};

use super::cuda::{Arg, Buffer, Gpu, Grid, Kernel, Pinned, start};

/// Share of free memory that patterns are written to.
const FREE_SHARE: f64 = 0.95;
/// Memory is taken in pieces, so that holes in it do not matter, bytes.
const PIECE_BYTES: usize = 8 << 30;
/// `(kind, seed)` of the patterns; the kinds are those of `pattern` in `kernels/gate.cu`.
const PATTERNS: [(u32, u32); 8] =
    [(0, 0), (0, u32::MAX), (0, 0xaaaa_aaaa), (0, 0x5555_5555), (1, 0), (2, 0), (3, 0x1234_5678), (3, 0x9abc_def0)];
/// Memory between which bandwidth is measured, bytes.
const BANDWIDTH_BYTES: usize = 2 << 30;
const BANDWIDTH_ROUNDS: u32 = 5;
/// A copy to or from the host, bytes.
const COPY_BYTES: usize = 1 << 30;
const COPY_ROUNDS: usize = 3;
/// The product: 8192 x 4096 by 4096 x 8192.
const ROWS: u32 = 8192;
const DEPTH: u32 = 4096;
/// The part of a product that one block makes, and its shared memory (`TILE_M`, `TILE_N`, `STAGES` of `kernels/gate.cu`).
const TILE: (u32, u32) = (128, 256);
const STAGE_BYTES: u32 = 24 << 10;
/// Rounds of multiply-adds in one run.
const BURN_ROUNDS: u32 = 1 << 16;
/// Runs whose digests are read together, and repeats that are kept at most.
const BATCH: u32 = 64;
const ODD_MAX: usize = 16;

/// How long products are made.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Effort {
    /// Products on the tensor cores, seconds.
    pub tensor_s: f64,
    /// Single-precision multiply-adds, seconds.
    pub fp32_s: f64,
    /// Products at least, however long they take.
    pub repeats_min: u32,
    /// A product that is spoiled on purpose: a test of the test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spoil: Option<u32>,
}

/// A GPU that the gate works on.
#[derive(Debug)]
pub struct Measured {
    gpu: Gpu,
    /// Pinned memory and its place on the GPU, kept from copies alone to copies together.
    copies: Option<(Pinned, Buffer)>,
}

/// A clock for what is not on the GPU.
#[allow(clippy::disallowed_methods, reason = "a duration that is measured is what this is for")]
fn now() -> Instant {
    Instant::now()
}

fn gbps(bytes: usize, seconds: f64) -> f64 {
    bytes as f64 / seconds / 1e9
}

impl Measured {
    /// Starts CUDA, makes a context, loads the kernels and runs one.
    ///
    /// # Errors
    /// Any of that does not work.
    pub fn open(address: PciAddress) -> Look<(Self, Context)> {
        let mut at = now();
        let mut lap = || {
            let seconds = at.elapsed().as_secs_f64();
            at = now();
            seconds
        };
        start()?;
        let init_s = lap();
        let mut gpu = Gpu::open(address)?;
        let create_s = lap();
        gpu.load()?;
        let load_s = lap();
        let word = gpu.take(16)?;
        gpu.write(&word, &[0, 0])?;
        let one = Grid { blocks: 1, threads: 1, shared_bytes: 0 };
        gpu.launch(gpu.kernel("answer", 0)?, one, &[Arg::Long(word.at), Arg::Int(42)])?;
        let answer = gpu.read(&word, 1)?;
        if answer != [42] {
            return Err(Unseen::Error(format!("a kernel was to write 42 and wrote {}", answer[0])));
        }
        let answer_s = lap();
        Ok((Self { gpu, copies: None }, Context { init_s, create_s, load_s, answer_s, tries: 1 }))
    }

    /// The GPU.
    pub(super) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn grid(&self) -> Grid {
        Grid { blocks: self.gpu.processors * 8, threads: 256, shared_bytes: 0 }
    }

    /// Writes patterns to the free memory, and reads them back.
    ///
    /// # Errors
    /// The GPU fails.
    pub fn memory(&self) -> Look<MemoryPatterns> {
        let began = now();
        let pieces = self.pieces()?;
        let tested: usize = pieces.iter().map(|p| p.bytes).sum();
        let found = self.gpu.take(24)?;
        self.gpu.write(&found, &[0, u64::MAX, 0])?;
        let (fill, verify) = (self.gpu.kernel("fill", 0)?, self.gpu.kernel("verify", 0)?);
        let (mut write_s, mut verify_s) = (f64::INFINITY, f64::INFINITY);
        for (kind, seed) in PATTERNS {
            let each = |kernel: Kernel, found: Option<&Buffer>| {
                self.gpu.time(|| {
                    let mut first = 0;
                    for piece in &pieces {
                        let length = (piece.bytes / 16) as u64;
                        let mut args = vec![
                            Arg::Long(piece.at),
                            Arg::Long(length),
                            Arg::Long(first),
                            Arg::Int(kind),
                            Arg::Int(seed),
                        ];
                        args.extend(found.map(|f| Arg::Long(f.at)));
                        self.gpu.launch(kernel, self.grid(), &args)?;
                        first += length;
                    }
                    Ok(())
                })
            };
            write_s = write_s.min(each(fill, None)?);
            verify_s = verify_s.min(each(verify, Some(&found))?);
        }
        let said = self.gpu.read(&found, 3)?;
        Ok(MemoryPatterns {
            tested_bytes: tested as u64,
            patterns: PATTERNS.len() as u32,
            bad_words: said[0],
            first_bad_byte: (said[0] > 0).then(|| said[1].saturating_mul(16)),
            bad_bits: said[2] as u32,
            write_gbps: gbps(tested, write_s),
            verify_gbps: gbps(tested, verify_s),
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// Nearly all free memory.
    fn pieces(&self) -> Look<Vec<Buffer>> {
        let mut left = (self.gpu.free_bytes()? as f64 * FREE_SHARE) as usize & !0xffff;
        let mut pieces = Vec::new();
        let mut size = PIECE_BYTES;
        while left >= 1 << 20 && size >= 1 << 20 {
            match self.gpu.take(size.min(left)) {
                Ok(piece) => {
                    left -= piece.bytes;
                    pieces.push(piece);
                }
                // No hole is so large.
                Err(_) => size /= 2,
            }
        }
        Ok(pieces)
    }

    /// Bandwidth of its memory.
    ///
    /// # Errors
    /// The GPU fails, or has no 4 GiB that are free.
    pub fn bandwidth(&self) -> Look<Bandwidth> {
        let (from, to) = (self.gpu.take(BANDWIDTH_BYTES)?, self.gpu.take(BANDWIDTH_BYTES)?);
        let sink = self.gpu.take(16)?;
        let length = (BANDWIDTH_BYTES / 16) as u64;
        let (fill, read, copy) =
            (self.gpu.kernel("fill", 0)?, self.gpu.kernel("read", 0)?, self.gpu.kernel("copy", 0)?);
        let pattern = [Arg::Long(from.at), Arg::Long(length), Arg::Long(0), Arg::Int(3), Arg::Int(1)];
        self.gpu.launch(fill, self.grid(), &pattern)?;
        let best = |bytes: usize, work: &dyn Fn() -> Look<()>| {
            let mut best_s = f64::INFINITY;
            // The first one is not counted: clocks are still rising.
            for round in 0..=BANDWIDTH_ROUNDS {
                let seconds = self.gpu.time(work)?;
                if round > 0 {
                    best_s = best_s.min(seconds);
                }
            }
            Ok(gbps(bytes, best_s))
        };
        let reads = [Arg::Long(from.at), Arg::Long(length), Arg::Long(sink.at)];
        let copies = [Arg::Long(from.at), Arg::Long(to.at), Arg::Long(length)];
        Ok(Bandwidth {
            read_gbps: best(BANDWIDTH_BYTES, &|| self.gpu.launch(read, self.grid(), &reads))?,
            copy_gbps: best(2 * BANDWIDTH_BYTES, &|| self.gpu.launch(copy, self.grid(), &copies))?,
            driver_copy_gbps: best(2 * BANDWIDTH_BYTES, &|| self.gpu.copy_within(&from, &to, BANDWIDTH_BYTES))?,
        })
    }

    /// Copies to and from pinned memory of the host, and whether all words came back.
    ///
    /// # Errors
    /// The GPU fails, or the host has not so much memory.
    pub fn copies(&mut self) -> Look<CopyRates> {
        if self.copies.is_none() {
            self.copies = Some((Pinned::new(COPY_BYTES)?, self.gpu.take(COPY_BYTES)?));
        }
        let grid = self.grid();
        let Some((pinned, buffer)) = &mut self.copies else {
            return Err(Unseen::Error("no memory for copies".into()));
        };
        let (mut there_s, mut back_s) = (Vec::new(), Vec::new());
        for _ in 0..COPY_ROUNDS {
            there_s.push(self.gpu.time(|| self.gpu.copy_in(pinned, buffer))?);
            back_s.push(self.gpu.time(|| self.gpu.copy_out(buffer, pinned))?);
        }
        // There and back once more, each time over something else: a word that does not travel shows.
        let word = |n: u32| n.wrapping_mul(0x9e37_79b1) ^ 0x5bd1_e995;
        let length = (COPY_BYTES / 16) as u64;
        let clear = [Arg::Long(buffer.at), Arg::Long(length), Arg::Long(0), Arg::Int(0), Arg::Int(0)];
        self.gpu.launch(self.gpu.kernel("fill", 0)?, grid, &clear)?;
        pinned.words().iter_mut().zip(0..).for_each(|(w, n)| *w = word(n));
        self.gpu.copy_in(pinned, buffer)?;
        self.gpu.wait()?;
        pinned.words().iter_mut().zip(0..).for_each(|(w, n)| *w = !word(n));
        self.gpu.copy_out(buffer, pinned)?;
        self.gpu.wait()?;
        let bad_words = pinned.words().iter().zip(0..).filter(|(w, n)| **w != word(*n)).count() as u64;
        let median = |mut seconds: Vec<f64>| {
            seconds.sort_by(f64::total_cmp);
            gbps(COPY_BYTES, seconds[COPY_ROUNDS / 2])
        };
        Ok(CopyRates { h2d_gbps: median(there_s), d2h_gbps: median(back_s), bad_words })
    }

    /// Makes products again and again, and compares their digests.
    ///
    /// # Errors
    /// The GPU fails.
    pub fn products(&mut self, effort: Effort) -> Look<Products> {
        self.copies = None;
        let began = now();
        let length = (ROWS as usize) * (DEPTH as usize) * 2;
        let (a, b) = (self.gpu.take(length)?, self.gpu.take(length)?);
        let operands = self.gpu.kernel("operands", 0)?;
        for (buffer, seed) in [(&a, 1), (&b, 2)] {
            let args = [Arg::Long(buffer.at), Arg::Long((length / 4) as u64), Arg::Int(seed)];
            self.gpu.launch(operands, self.grid(), &args)?;
        }
        let shared_bytes = STAGE_BYTES * if self.gpu.is_ampere()? { 4 } else { 1 };
        let product = self.gpu.kernel("product", shared_bytes)?;
        let grid = Grid { blocks: (ROWS / TILE.0) * (ROWS / TILE.1), threads: 256, shared_bytes };
        let tensor = self.repeat(effort.tensor_s, effort.repeats_min, |repeat, digest| {
            // One past the last element is no element.
            let flip = if effort.spoil == Some(repeat) { 4711 } else { u64::from(ROWS) * u64::from(ROWS) };
            let sizes = [Arg::Int(ROWS), Arg::Int(ROWS), Arg::Int(DEPTH)];
            let args = [Arg::Long(a.at), Arg::Long(b.at), sizes[0], sizes[1], sizes[2], digest, Arg::Long(flip)];
            self.gpu.launch(product, grid, &args)
        })?;
        let burn = self.gpu.kernel("burn", 0)?;
        let grid = self.grid();
        let fp32 =
            self.repeat(effort.fp32_s, 2, |_, digest| self.gpu.launch(burn, grid, &[Arg::Int(BURN_ROUNDS), digest]))?;
        let flops = 2.0 * f64::from(ROWS) * f64::from(ROWS) * f64::from(DEPTH);
        let burnt = f64::from(grid.blocks * grid.threads) * f64::from(BURN_ROUNDS) * 16.0;
        Ok(Products {
            repeats: tensor.times,
            digest: tensor.digest,
            odd: tensor.odd,
            odd_count: tensor.odd_count,
            tensor_tflops: flops * f64::from(tensor.times) / tensor.seconds / 1e12,
            fp32_gflops: burnt * f64::from(fp32.times) / fp32.seconds / 1e9,
            fp32_digest: fp32.digest,
            fp32_odd_count: fp32.odd_count,
            fp32_repeats: fp32.times,
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// Runs something for `seconds`, and at least so many times, each with a digest of its own, in batches.
    fn repeat(&self, seconds: f64, times_min: u32, run: impl Fn(u32, Arg) -> Look<()>) -> Look<Repeated> {
        let digests = self.gpu.take(BATCH as usize * 16)?;
        let began = now();
        let mut done = Repeated::default();
        let mut first: Option<[u64; 2]> = None;
        // A slow GPU is not kept busy for minutes by one batch.
        let mut batch = 1;
        while began.elapsed().as_secs_f64() < seconds || done.times < times_min {
            self.gpu.write(&digests, &vec![0; batch as usize * 2])?;
            let took_s = self
                .gpu
                .time(|| (0..batch).try_for_each(|i| run(done.times + i, Arg::Long(digests.at + u64::from(i) * 16))))?;
            let made = self.gpu.read(&digests, batch as usize * 2)?;
            for (i, pair) in (0..).zip(made.chunks_exact(2)) {
                let digest = [pair[0], pair[1]];
                if *first.get_or_insert(digest) != digest {
                    done.odd_count += 1;
                    if done.odd.len() < ODD_MAX {
                        done.odd.push(done.times + i);
                    }
                }
            }
            done.seconds += took_s;
            done.times += batch;
            batch = if took_s / f64::from(batch) < 0.05 { BATCH } else { 1 };
        }
        let [high, low] = first.unwrap_or_default();
        done.digest = format!("{high:016x}{low:016x}");
        Ok(done)
    }
}

/// What repeating gave.
#[derive(Debug, Default)]
struct Repeated {
    times: u32,
    seconds: f64,
    digest: String,
    odd: Vec<u32>,
    odd_count: u32,
}
