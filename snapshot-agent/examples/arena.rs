//! From the disk into memory that stays, every byte verified, beside what `fio` reads off the same disk without looking at it.
//!
//! `arena FOLDER GIB` writes leaves below FOLDER, and reads them by turns with both. Rates are medians of five.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Context;
use snapshot_agent::snapshots::host::arena::{Arena, OnDisk};
use snapshots::LeafId;
use snapshots::leaf::LEAF_BYTES;

const TURNS: usize = 5;

#[allow(clippy::print_stdout, reason = "a benchmark prints")]
fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, gib] = &args[..] else { anyhow::bail!("arena FOLDER GIB") };
    let bytes = (gib.parse::<f64>().context("GIB")? * f64::from(1 << 30)) as u64;
    let folder = tempfile::Builder::new().prefix("bench-arena-").tempdir_in(folder)?;
    let leaves = leaves(folder.path(), bytes)?;
    let arena = Arc::new(Arena::allocate(bytes + LEAF_BYTES as u64)?);
    println!("{} leaves of 2 MiB; memory of {}", leaves.len(), arena.about);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        let (_, loaded) = arena.load(&leaves)?;
        ours.push(loaded.bytes as f64 / loaded.took.as_secs_f64() / 1e9);
        theirs.push(fio(folder.path(), bytes)?);
        println!("{turn}: ours {:.2} GB/s, fio {:.2} GB/s", ours[turn], theirs[turn]);
    }
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    println!("medians: ours {ours:.2} GB/s, verified; fio {theirs:.2} GB/s: {:.0} %", 100.0 * ours / theirs);
    Ok(())
}

fn leaves(folder: &Path, bytes: u64) -> anyhow::Result<Vec<OnDisk>> {
    let mut leaves = Vec::new();
    let mut content = vec![0; LEAF_BYTES];
    for n in 0..bytes.div_ceil(LEAF_BYTES as u64) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&n.to_le_bytes());
        hasher.finalize_xof().fill(&mut content);
        let path = folder.join(n.to_string());
        std::fs::write(&path, &content)?;
        std::fs::File::open(&path)?.sync_all()?;
        leaves.push(OnDisk { id: LeafId::of(&content), bytes: LEAF_BYTES as u32, path });
    }
    Ok(leaves)
}

/// GB/s of the same files, read past the page cache by as many jobs as keep the disk busy.
fn fio(folder: &Path, bytes: u64) -> anyhow::Result<f64> {
    let files: Vec<PathBuf> = (0..bytes.div_ceil(LEAF_BYTES as u64)).map(|n| folder.join(n.to_string())).collect();
    let jobs = 4;
    let mut command = Command::new("fio");
    command.args(["--output-format=json", "--direct=1", "--rw=read", "--bs=2M", "--ioengine=libaio", "--iodepth=4"]);
    command.args(["--file_service_type=sequential", "--group_reporting", "--openfiles=64"]);
    for job in 0..jobs {
        let mine: Vec<String> = files.iter().skip(job).step_by(jobs).map(|path| path.display().to_string()).collect();
        command.arg(format!("--name=job{job}")).arg(format!("--filename={}", mine.join(":")));
    }
    let done = command.output().context("cannot start fio: install it")?;
    anyhow::ensure!(done.status.success(), "fio: {}", String::from_utf8_lossy(&done.stderr));
    let text = String::from_utf8_lossy(&done.stdout);
    let from = text.find('{').context("fio says nothing")?;
    let said: serde_json::Value = serde_json::from_str(&text[from..])?;
    let read = &said["jobs"][0]["read"];
    let per_s = read["bw_bytes"].as_f64().context("no rate")?;
    Ok(per_s / 1e9)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
