//! The library that is preloaded into workloads, as a file that stays: a captured process has it mapped, so it lies under a name
//! that says its content, goes into the snapshot, and is put in place before a restore, whatever the agent's version.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// As it is built.
const BUILT: &str = "libpilotlight_interposer.so";
/// Folders beside the agent in which it is looked for.
const BESIDE: [&str; 3] = ["", "deps", "../lib/pilotlight"];
/// Stream of a snapshot.
pub const STREAM: &str = "interposer.so";
/// Longest library, bytes.
pub const BYTES_MAX: u64 = 64 << 20;

/// Name of a library of this content.
fn name(bytes: &[u8]) -> String {
    format!("{}.so", &blake3::hash(bytes).to_hex()[..32])
}

/// The library that came with this agent, if it did.
#[must_use]
pub fn built() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let places = BESIDE.iter().map(|folder| program.with_file_name(folder).join(BUILT));
    // Of several, as a build leaves them, the newest.
    let built = |path: PathBuf| Some((std::fs::metadata(&path).ok()?.modified().ok()?, path));
    places.filter_map(built).max().map(|(_, path)| path)
}

/// Puts the library that came with this agent into a folder; none, where there is none.
///
/// # Errors
/// The folder cannot be written to.
pub fn install(folder: &Path) -> anyhow::Result<Option<PathBuf>> {
    let Some(found) = built() else { return Ok(None) };
    let bytes = std::fs::read(&found).with_context(|| format!("cannot read {}", found.display()))?;
    put(folder, &bytes).map(Some)
}

/// Has the library of a snapshot where its processes had it.
///
/// # Errors
/// It is another, the folder is another, or it cannot be written to.
pub fn ensure_at(path: &Path, folder: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let there = put(folder, bytes)?;
    ensure!(
        path == there,
        "it was captured with the library {}, this host keeps it as {}: give the same --interposers folder",
        path.display(),
        there.display()
    );
    Ok(())
}

fn put(folder: &Path, bytes: &[u8]) -> anyhow::Result<PathBuf> {
    let shown = || format!("cannot write into {}: choose another --interposers folder", folder.display());
    std::fs::create_dir_all(folder).with_context(shown)?;
    let folder = folder.canonicalize().with_context(shown)?;
    let path = folder.join(name(bytes));
    // Whatever modes this process makes files with: workloads of other users read it, and CRIU compares its mode.
    let open = |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).with_context(shown);
    open(&folder)?;
    if !std::fs::read(&path).is_ok_and(|there| there == bytes) {
        let mut file = tempfile::NamedTempFile::new_in(&folder).with_context(shown)?;
        std::io::Write::write_all(&mut file, bytes).with_context(shown)?;
        file.persist(&path).with_context(shown)?;
    }
    open(&path)?;
    Ok(path)
}
