//! From the disk into memory that stays, every byte verified, beside what `fio` reads off the same disk without looking at it.
//!
//! `arena FOLDER GIB` writes leaves below FOLDER, and reads them by turns with both. Rates are medians of five.

use std::io::Write;
use std::path::Path;
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
        theirs.push(fio(&folder.path().join("all"))?);
        println!("{turn}: ours {:.2} GB/s, fio {:.2} GB/s", ours[turn], theirs[turn]);
    }
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    println!("medians: ours {ours:.2} GB/s, verified; fio {theirs:.2} GB/s: {:.0} %", 100.0 * ours / theirs);
    Ok(())
}

fn leaves(folder: &Path, bytes: u64) -> anyhow::Result<Vec<OnDisk>> {
    let mut leaves = Vec::new();
    let mut content = vec![0; LEAF_BYTES];
    let mut all = std::fs::File::create(folder.join("all"))?;
    for n in 0..bytes.div_ceil(LEAF_BYTES as u64) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&n.to_le_bytes());
        hasher.finalize_xof().fill(&mut content);
        let path = folder.join(n.to_string());
        std::fs::write(&path, &content)?;
        std::fs::File::open(&path)?.sync_all()?;
        all.write_all(&content)?;
        leaves.push(OnDisk { id: LeafId::of(&content), bytes: LEAF_BYTES as u32, path, at: 0 });
    }
    all.sync_all()?;
    Ok(leaves)
}

/// GB/s of as many bytes in one file, read past the page cache by as many jobs as keep the disk busy.
fn fio(file: &Path) -> anyhow::Result<f64> {
    let mut command = Command::new("fio");
    command.args(["--name=read", "--output-format=json", "--direct=1", "--rw=read", "--bs=2M", "--ioengine=libaio"]);
    command.args(["--iodepth=4", "--numjobs=4", "--size=25%", "--offset_increment=25%", "--group_reporting"]);
    let done =
        command.arg(format!("--filename={}", file.display())).output().context("cannot start fio: install it")?;
    let said = String::from_utf8_lossy(&done.stderr);
    anyhow::ensure!(done.status.success(), "fio: {}", said.lines().next().unwrap_or_default());
    let text = String::from_utf8_lossy(&done.stdout);
    let from = text.find('{').context("fio says nothing")?;
    let said: serde_json::Value = serde_json::from_str(&text[from..])?;
    let per_s = said["jobs"][0]["read"]["bw_bytes"].as_f64().context("no rate")?;
    Ok(per_s / 1e9)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
