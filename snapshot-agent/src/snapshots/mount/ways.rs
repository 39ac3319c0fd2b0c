//! The ways to bring an image's tree under a folder, the best first. Which one a host can go is found by going it: what the
//! kernel answers is the reason that people read.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Context;
use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use tokio::runtime::Handle;

use super::lazy::LazyImage;
use super::served::{IMAGE_FILE, Served};
use super::tree::Tree;

/// Threads that take requests from the kernel. None of them waits for a fetch.
const THREADS: usize = 4;

/// Where an image is mounted, and how.
#[derive(Debug, Clone)]
pub struct Place {
    /// The folder that gets the tree.
    pub folder: PathBuf,
    /// An empty folder of this process alone.
    pub scratch: PathBuf,
    /// Whether set-user-id bits count.
    pub suid: bool,
}

/// A way to mount.
pub trait Way: std::fmt::Debug + Sync {
    /// Its name, in commands and messages.
    fn name(&self) -> &'static str;

    /// Mounts an image.
    ///
    /// # Errors
    /// This host cannot go this way, with the reason; nothing is left mounted.
    fn mount(&self, image: &Arc<LazyImage>, place: &Place, runtime: &Handle) -> anyhow::Result<Mounted>;
}

/// All ways, the best first.
pub const WAYS: [&dyn Way; 2] = [&Erofs, &Fuse];

/// What is mounted, until it is dropped or unmounted.
#[derive(Debug)]
pub struct Mounted {
    /// The kernel's own mount, if there is one, which goes first.
    kernel: Option<PathBuf>,
    session: Option<BackgroundSession>,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(folder) = &self.kernel {
            // What is still open there goes on until it is closed, and then gets errors.
            let _ = rustix::mount::unmount(folder, UnmountFlags::DETACH);
        }
        if let Some(session) = self.session.take() {
            drop(session.umount_and_join());
        }
    }
}

/// The kernel reads the filesystem, this process serves the one file that it lies in.
#[derive(Debug)]
struct Erofs;

impl Way for Erofs {
    fn name(&self) -> &'static str {
        "erofs"
    }

    fn mount(&self, image: &Arc<LazyImage>, place: &Place, runtime: &Handle) -> anyhow::Result<Mounted> {
        if !has_filesystem("erofs") {
            // Where it is a module.
            drop(Command::new("modprobe").arg("erofs").output());
        }
        anyhow::ensure!(
            has_filesystem("erofs"),
            "the kernel has no EROFS: load its module, or build it with CONFIG_EROFS_FS"
        );
        let served = Served::new(image.clone(), runtime.clone());
        let session = session(served, &place.scratch, SessionACL::Owner, place)?;
        let mut mounted = Mounted { kernel: None, session: Some(session) };
        let file = place.scratch.join(IMAGE_FILE);
        let flags =
            MountFlags::RDONLY | MountFlags::NODEV | if place.suid { MountFlags::empty() } else { MountFlags::NOSUID };
        match rustix::mount::mount(&file, &place.folder, "erofs", flags, None) {
            Ok(()) => {}
            // Before Linux 6.12 it takes block devices only.
            Err(Errno::NOTBLK) => loop_device(&file, place)?,
            Err(error) => return Err(error).context("the kernel does not mount the image as EROFS"),
        }
        mounted.kernel = Some(place.folder.clone());
        Ok(mounted)
    }
}

fn loop_device(file: &Path, place: &Place) -> anyhow::Result<()> {
    let options = if place.suid { "ro,loop,nodev" } else { "ro,loop,nodev,nosuid" };
    let mut command = Command::new("mount");
    let done = command.args(["-t", "erofs", "-o", options]).arg(file).arg(&place.folder).output();
    let done = done.context("the kernel wants a loop device, and 'mount' cannot be run")?;
    let said = String::from_utf8_lossy(&done.stderr);
    anyhow::ensure!(done.status.success(), "the kernel wants a loop device, and has none: {}", said.trim());
    Ok(())
}

/// This process serves the whole tree.
#[derive(Debug)]
struct Fuse;

impl Way for Fuse {
    fn name(&self) -> &'static str {
        "fuse"
    }

    fn mount(&self, image: &Arc<LazyImage>, place: &Place, runtime: &Handle) -> anyhow::Result<Mounted> {
        let tree = Tree::new(image.clone(), runtime.clone());
        // Others than root cannot let others in, unless /etc/fuse.conf says so.
        let acl = if rustix::process::geteuid().is_root() { SessionACL::All } else { SessionACL::Owner };
        Ok(Mounted { kernel: None, session: Some(session(tree, &place.folder, acl, place)?) })
    }
}

fn session(
    filesystem: impl fuser::Filesystem + 'static,
    folder: &Path,
    acl: SessionACL,
    place: &Place,
) -> anyhow::Result<BackgroundSession> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoDev,
        if place.suid { MountOption::Suid } else { MountOption::NoSuid },
        MountOption::DefaultPermissions,
        MountOption::FSName("pilotlight".into()),
    ];
    config.acl = acl;
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    std::fs::File::open("/dev/fuse")
        .context("there is no FUSE here: /dev/fuse cannot be opened; load the module, or allow the device")?;
    fuser::spawn_mount(filesystem, folder, &config)
        .with_context(|| format!("FUSE does not mount at {}", folder.display()))
}

fn has_filesystem(name: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.split_whitespace().next_back() == Some(name))
}
