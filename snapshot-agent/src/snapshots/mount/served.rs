//! The image as one file, served lazily. The kernel reads the filesystem in it by itself: only content that it has not seen
//! comes this way.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request,
};
use tokio::runtime::Handle;

use super::lazy::LazyImage;

/// The file's name.
pub const IMAGE_FILE: &str = "image";
/// Nothing changes here.
const TTL: Duration = Duration::from_secs(3600);
const IMAGE: INodeNo = INodeNo(2);

/// A folder with one file.
#[derive(Debug)]
pub struct Served {
    image: Arc<LazyImage>,
    runtime: Handle,
}

impl Served {
    /// Serves an image; what has to be fetched is fetched on `runtime`.
    #[must_use]
    pub fn new(image: Arc<LazyImage>, runtime: Handle) -> Self {
        Self { image, runtime }
    }

    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match ino {
            INodeNo::ROOT => (FileType::Directory, 0o500, 0),
            IMAGE => (FileType::RegularFile, 0o400, self.image.bytes),
            _ => return None,
        };
        Some(attr(ino, kind, perm, size, UNIX_EPOCH))
    }
}

/// Attributes of something of the process's own user.
pub(super) fn attr(ino: INodeNo, kind: FileType, perm: u16, size: u64, mtime: SystemTime) -> FileAttr {
    FileAttr {
        ino,
        size,
        blocks: size.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind,
        perm,
        nlink: 1,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        rdev: 0,
        flags: 0,
        blksize: 4096,
    }
}

impl Filesystem for Served {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attr(IMAGE).filter(|_| parent == INodeNo::ROOT && name == IMAGE_FILE) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => not_there(&self.runtime, reply),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if ino == IMAGE {
            // Its pages would be held a second time: the filesystem above has them.
            reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
        } else {
            reply.error(Errno::EISDIR);
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer(&self.image, &self.runtime, offset, size as usize, reply);
    }
}

/// Says that a name is not there, by way of what fetches content: the watchdog asks for such names, and means that.
pub(super) fn not_there(runtime: &Handle, reply: ReplyEntry) {
    runtime.spawn_blocking(move || reply.error(Errno::ENOENT));
}

/// Answers at once what is on the host, and the rest when it is there: readers of warm content never wait for those of cold.
pub(super) fn answer(image: &Arc<LazyImage>, runtime: &Handle, at: u64, bytes: usize, reply: ReplyData) {
    match image.ready(at, bytes) {
        Ok(Some(data)) => reply.data(&data),
        Err(error) => reply.error(error.into()),
        Ok(None) => {
            let image = image.clone();
            runtime.spawn(async move {
                match image.read(at, bytes).await {
                    Ok(data) => reply.data(&data),
                    Err(error) => {
                        tracing::warn!("image {}: bytes from {at} on cannot be read: {error}", image.id);
                        reply.error(Errno::EIO);
                    }
                }
            });
        }
    }
}
