//! Writes above an image: an overlay that keeps them in a folder.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::FlockOperation;
use rustix::mount::{MountFlags, UnmountFlags};
use snapshots::ObjectId;

/// An overlay, until it is dropped.
#[derive(Debug)]
pub struct Overlay {
    folder: PathBuf,
    /// Two overlays that keep writes in one folder damage each other. Held as long as this process serves; what is still
    /// mounted after that is seen among the mounts.
    _lock: File,
}

impl Overlay {
    /// Mounts an overlay at `folder`, of what is mounted there already and of what `writable` keeps.
    ///
    /// # Errors
    /// The folder cannot keep writes, or the kernel has no overlays.
    pub fn mount(folder: &Path, writable: &Path, image: ObjectId, suid: bool) -> anyhow::Result<Self> {
        std::fs::create_dir_all(writable).with_context(|| format!("{} cannot keep writes", writable.display()))?;
        let lock = File::open(writable).with_context(|| format!("cannot read {}", writable.display()))?;
        let taken =
            || format!("{} keeps the writes of another mount: give each a folder of its own", writable.display());
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => anyhow::bail!(taken()),
            Err(error) => return Err(error).with_context(|| format!("{} cannot be locked", writable.display())),
        }
        // Deletions of one image would be another's.
        let of = writable.join("image");
        match std::fs::read_to_string(&of) {
            Ok(known) => anyhow::ensure!(
                known.trim() == image.to_string(),
                "{} keeps the writes of image {}: give this one a folder of its own",
                writable.display(),
                known.trim()
            ),
            Err(_) => std::fs::write(&of, format!("{image}\n"))
                .with_context(|| format!("{} cannot keep writes", writable.display()))?,
        }
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
        let upper_path = path(&upper)?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let holds = |line: &str| line.split([' ', ',']).any(|word| word.strip_prefix("upperdir=") == Some(&upper_path));
        anyhow::ensure!(!mounts.lines().any(holds), taken());
        let options = format!("lowerdir={},upperdir={upper_path},workdir={}", path(folder)?, path(&work)?);
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
