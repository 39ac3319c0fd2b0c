//! What is mounted, by the kernel's table: the folders themselves are not asked, for they may hang.

use std::path::{Path, PathBuf};

/// Names by which a serving process is asked whether it lives, with a number behind.
pub const ALIVE: &str = ".pilotlight-alive-";

/// Beginning of the source of what lies below a mount of ours; the number of its process follows.
pub const FLOOR: &str = "pilotlight-floor-";

/// A line of the table.
struct Line {
    folder: PathBuf,
    filesystem: String,
    source: PathBuf,
}

/// `None` if the kernel does not show it.
fn table() -> Option<Vec<Line>> {
    // Spaces, tabs, newlines and backslashes stand there as octal numbers.
    let plain =
        |text: &str| text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
    let line = |text: &str| {
        let (before, after) = text.split_once(" - ")?;
        let mut after = after.split(' ');
        Some(Line {
            folder: plain(before.split(' ').nth(4)?).into(),
            filesystem: after.next()?.to_owned(),
            source: plain(after.next()?).into(),
        })
    };
    // Other mounts may have names that are no text.
    let bytes = std::fs::read("/proc/self/mountinfo").ok()?;
    Some(String::from_utf8_lossy(&bytes).lines().filter_map(line).collect())
}

/// How many mounts lie one above the other at a folder; `None` if that cannot be told.
pub fn mounts_at(folder: &Path) -> Option<usize> {
    Some(table()?.iter().filter(|line| line.folder == folder).count())
}

/// Whether the lowest mount at a folder is a floor of ours.
pub fn has_floor(folder: &Path) -> bool {
    let table = table().unwrap_or_default();
    let lowest = table.iter().find(|line| line.folder == folder);
    lowest.is_some_and(|line| line.source.to_str().is_some_and(|source| source.starts_with(FLOOR)))
}

/// Whether something is mounted at a folder; `None` if that cannot be told.
pub fn is_mount_point(folder: &Path) -> Option<bool> {
    Some(mounts_at(folder)? > 0)
}

/// Whether what is mounted at a folder is what a dead process of ours left there.
pub fn is_left_behind(folder: &Path) -> bool {
    // A name that is not there: what is known of the folder itself stays known when who served it is dead.
    let dead = |path: &Path| {
        let answer = path.join(format!("{ALIVE}0")).symlink_metadata();
        answer.is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
    };
    // The last line is what is seen; an overlay stands above its image.
    table().unwrap_or_default().iter().rev().filter(|line| line.folder == folder).any(|line| {
        match line.filesystem.as_str() {
            // A folder that is gone was that of a process that is gone.
            "erofs" => line.source.parent().is_some_and(|scratch| dead(scratch) || !scratch.exists()),
            "tmpfs" => {
                let process = line.source.to_str().and_then(|source| source.strip_prefix(FLOOR));
                process.is_some_and(|process| !Path::new("/proc").join(process).exists())
            }
            filesystem => filesystem.starts_with("fuse") && dead(folder),
        }
    })
}
