//! The tree of an image served by this process, for hosts whose kernel cannot read the image itself. Each name and each inode
//! is asked for once; content stays in the kernel's page cache.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, ReplyXattr, Request,
};
use snapshots::image::{DeviceKind, Image, InodeView, Nid, NodeKind};
use tokio::runtime::Handle;

use super::lazy::LazyImage;
use super::served::{answer, not_there};
use super::table::ALIVE;

/// Nothing changes here.
const TTL: Duration = Duration::from_secs(3600);
const READAHEAD_BYTES: u32 = 1 << 20;

/// A read-only tree.
#[derive(Debug)]
pub struct Tree {
    image: Arc<LazyImage>,
    runtime: Handle,
    /// Whether the kernel may open files and folders without asking.
    opens_unasked: bool,
}

impl Tree {
    /// Serves an image's tree; what has to be fetched is fetched on `runtime`.
    #[must_use]
    pub fn new(image: Arc<LazyImage>, runtime: Handle) -> Self {
        Self { image, runtime, opens_unasked: false }
    }

    fn view(&self) -> Result<Image<'_>, Errno> {
        Image::open(&self.image.meta, self.image.bytes).map_err(|_| Errno::EIO)
    }

    fn nid(&self, ino: INodeNo) -> Result<Nid, Errno> {
        Ok(if ino == INodeNo::ROOT { self.view()?.root() } else { Nid(ino.0) })
    }

    fn ino(&self, nid: Nid) -> Result<INodeNo, Errno> {
        Ok(if nid == self.view()?.root() { INodeNo::ROOT } else { INodeNo(nid.0) })
    }

    fn inode(&self, ino: INodeNo) -> Result<InodeView, Errno> {
        self.view()?.inode(self.nid(ino)?).map_err(|_| Errno::EIO)
    }

    fn attr(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        let inode = self.inode(ino)?;
        let mtime = time(inode.mtime_s, inode.mtime_ns);
        let rdev = match inode.kind {
            NodeKind::Device { number, .. } => number,
            _ => 0,
        };
        Ok(FileAttr {
            uid: inode.uid,
            gid: inode.gid,
            nlink: inode.links,
            rdev,
            ..super::served::attr(ino, file_type(inode.kind), inode.permissions, inode.bytes, mtime)
        })
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let entries = self.view()?.entries(self.nid(parent)?).map_err(|_| Errno::ENOTDIR)?;
        let at = entries.binary_search_by_key(&name.as_bytes(), |entry| entry.name).map_err(|_| Errno::ENOENT)?;
        self.attr(self.ino(entries[at].nid)?)
    }
}

fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let whole = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    whole.and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds.into()))).unwrap_or(UNIX_EPOCH)
}

fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::Directory => FileType::Directory,
        NodeKind::File { .. } => FileType::RegularFile,
        NodeKind::Symlink => FileType::Symlink,
        NodeKind::Device { kind: DeviceKind::Block, .. } => FileType::BlockDevice,
        NodeKind::Device { kind: DeviceKind::Character, .. } => FileType::CharDevice,
        NodeKind::Fifo => FileType::NamedPipe,
        NodeKind::Socket => FileType::Socket,
    }
}

impl Filesystem for Tree {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // As much as the kernel gives: it says in the error what it would take.
        if let Err(most) = config.set_max_readahead(READAHEAD_BYTES) {
            let _ = config.set_max_readahead(most);
        }
        // Links are read once.
        let _ = config.add_capabilities(InitFlags::FUSE_CACHE_SYMLINKS);
        let unasked = InitFlags::FUSE_NO_OPEN_SUPPORT | InitFlags::FUSE_NO_OPENDIR_SUPPORT;
        self.opens_unasked = config.add_capabilities(unasked).is_ok();
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.child(parent, name) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(_) if name.as_bytes().starts_with(ALIVE.as_bytes()) => not_there(&self.runtime, reply),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let nid = self.nid(ino);
        match nid.and_then(|nid| self.view()?.link(nid).map_err(|_| Errno::EINVAL)) {
            Ok(target) => reply.data(target),
            Err(error) => reply.error(error),
        }
    }

    // Opening does nothing here. Where the kernel understands this answer it does not ask again, and keeps all pages.
    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.opens_unasked {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.opens_unasked {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.inode(ino) {
            Ok(InodeView { kind: NodeKind::File { at }, bytes, .. }) => {
                let left = bytes.saturating_sub(offset).min(size.into());
                answer(&self.image, &self.runtime, at.saturating_add(offset), left as usize, reply);
            }
            Ok(_) => reply.error(Errno::EISDIR),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut list = || -> Result<(), Errno> {
            let view = self.view()?;
            let entries = view.entries(self.nid(ino)?).map_err(|_| Errno::ENOTDIR)?;
            for (next, entry) in entries.iter().enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
                let kind = view.inode(entry.nid).map_err(|_| Errno::EIO)?.kind;
                if reply.add(self.ino(entry.nid)?, next as u64 + 1, file_type(kind), OsStr::from_bytes(entry.name)) {
                    break;
                }
            }
            Ok(())
        };
        match list() {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let xattrs = self.nid(ino).and_then(|nid| self.view()?.xattrs(nid).map_err(|_| Errno::EIO));
        let value = xattrs.and_then(|all| {
            all.iter().find(|(of, _)| of == name.as_bytes()).map(|(_, value)| *value).ok_or(Errno::NO_XATTR)
        });
        sized(value, size, reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let xattrs = self.nid(ino).and_then(|nid| self.view()?.xattrs(nid).map_err(|_| Errno::EIO));
        let names = xattrs.map(|all| all.iter().flat_map(|(name, _)| [&name[..], b"\0"].concat()).collect::<Vec<u8>>());
        sized(names.as_deref().map_err(|error| *error), size, reply);
    }
}

/// Answers with a value, or with its length where the caller asks for that.
fn sized(value: Result<&[u8], Errno>, size: u32, reply: ReplyXattr) {
    match value {
        Err(error) => reply.error(error),
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(value),
    }
}
