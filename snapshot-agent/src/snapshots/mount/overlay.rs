//! Writes above an image: an overlay that keeps them in a folder.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::FlockOperation;
use rustix::mount::{MountFlags, UnmountFlags};

/// An overlay, until it is dropped.
#[derive(Debug)]
pub struct Overlay {
    folder: PathBuf,
    /// Held as long as it is mounted: two overlays that keep writes in one folder damage each other.
    _lock: File,
}

impl Overlay {
    /// Mounts an overlay at `folder`, of what is mounted there already and of what `writable` keeps.
    ///
    /// # Errors
    /// The folder cannot keep writes, or the kernel has no overlays.
    pub fn mount(folder: &Path, writable: &Path, suid: bool) -> anyhow::Result<Self> {
        std::fs::create_dir_all(writable).with_context(|| format!("{} cannot keep writes", writable.display()))?;
        let lock = File::open(writable).with_context(|| format!("cannot read {}", writable.display()))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).with_context(|| {
            format!("{} keeps the writes of another mount: give each a folder of its own", writable.display())
        })?;
        let (upper, work) = (writable.join("upper"), writable.join("work"));
        for made in [&upper, &work] {
            std::fs::create_dir_all(made).with_context(|| format!("{} cannot keep writes", writable.display()))?;
        }
        let path = |path: &Path| -> anyhow::Result<String> {
            let path = std::fs::canonicalize(path).with_context(|| format!("cannot read {}", path.display()))?;
            let text = path.to_str().context("an overlay needs paths that are text")?;
            anyhow::ensure!(
                !text.contains([',', ':', '\\']),
                "an overlay takes no path with a comma, colon or backslash: {text}"
            );
            Ok(text.to_owned())
        };
        let options = format!("lowerdir={},upperdir={},workdir={}", path(folder)?, path(&upper)?, path(&work)?);
        let options = std::ffi::CString::new(options).context("a path with a zero in it")?;
        // The image's own flags do not count above it.
        let flags = MountFlags::NODEV | if suid { MountFlags::empty() } else { MountFlags::NOSUID };
        rustix::mount::mount("overlay", folder, "overlay", flags, Some(options.as_c_str()))
            .context("the kernel does not mount an overlay: the folder for writes must lie on a plain filesystem, not on an overlay")?;
        Ok(Self { folder: folder.to_owned(), _lock: lock })
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.folder, UnmountFlags::DETACH);
    }
}
