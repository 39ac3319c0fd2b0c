//! A root filesystem from a folder.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use snapshots::image::{Content, DeviceKind, Inode, InodeId, Meta, Tree};

use super::{Place, Source};

/// Everything below `root`, with owners, times, links, devices and extended attributes as they are.
///
/// # Errors
/// Something cannot be read.
pub fn read(root: &Path) -> anyhow::Result<Source> {
    let meta = fs::symlink_metadata(root).with_context(|| format!("cannot read {}", root.display()))?;
    anyhow::ensure!(meta.is_dir(), "{} is no folder: an image is made from a folder", root.display());
    let tree = Tree::new(meta_of(root, &meta)?)?;
    let mut walk = Walk { source: Source { tree, content: BTreeMap::new() }, linked: BTreeMap::new() };
    let mut left = vec![(root.to_owned(), Tree::ROOT)];
    while let Some((folder, id)) = left.pop() {
        let shown = || format!("cannot read {}", folder.display());
        let mut names: Vec<_> = fs::read_dir(&folder)
            .with_context(shown)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<_, _>>()
            .with_context(shown)?;
        // The same folder gives the same image, in whatever order its filesystem lists it.
        names.sort_unstable();
        for name in names {
            let path = folder.join(&name);
            if let Some(child) = walk.add(id, &name, &path).with_context(|| format!("at {}", path.display()))? {
                left.push((path, child));
            }
        }
    }
    Ok(walk.source)
}

struct Walk {
    source: Source,
    /// Inodes with several names, by device and number.
    linked: BTreeMap<(u64, u64), InodeId>,
}

impl Walk {
    /// Adds what is at `path`; its number where it is a folder.
    fn add(&mut self, parent: InodeId, name: &OsStr, path: &PathBuf) -> anyhow::Result<Option<InodeId>> {
        let name = name.as_bytes();
        let meta = fs::symlink_metadata(path).context("cannot be read")?;
        let tree = &mut self.source.tree;
        let several = (!meta.is_dir() && meta.nlink() > 1).then_some((meta.dev(), meta.ino()));
        if let Some(id) = several.and_then(|key| self.linked.get(&key)) {
            tree.link(parent, name, *id)?;
            return Ok(None);
        }
        let id = tree.add(parent, name, Inode { meta: meta_of(path, &meta)?, content: content_of(path, &meta)? })?;
        if let Some(key) = several {
            self.linked.insert(key, id);
        }
        if meta.is_file() {
            self.source.content.insert(id, Place::File(path.clone()));
        }
        Ok(meta.is_dir().then_some(id))
    }
}

fn content_of(path: &Path, meta: &Metadata) -> anyhow::Result<Content> {
    let kind = meta.file_type();
    let device =
        |kind| Content::Device { kind, major: rustix::fs::major(meta.rdev()), minor: rustix::fs::minor(meta.rdev()) };
    Ok(if kind.is_dir() {
        Content::Directory(BTreeMap::new())
    } else if kind.is_file() {
        Content::File { bytes: meta.len() }
    } else if kind.is_symlink() {
        Content::Symlink(fs::read_link(path).context("the link cannot be read")?.into_os_string().into_vec())
    } else if kind.is_block_device() {
        device(DeviceKind::Block)
    } else if kind.is_char_device() {
        device(DeviceKind::Character)
    } else if kind.is_fifo() {
        Content::Fifo
    } else {
        Content::Socket
    })
}

fn meta_of(path: &Path, meta: &Metadata) -> anyhow::Result<Meta> {
    Ok(Meta {
        permissions: (meta.mode() & 0o7777) as u16,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime_s: meta.mtime(),
        mtime_ns: meta.mtime_nsec() as u32,
        xattrs: xattrs(path)?,
    })
}

/// Extended attributes, but for those that belong to the machine and not to the file (SELinux labels, encryption policies).
fn xattrs(path: &Path) -> anyhow::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut names = vec![0_u8; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => return Ok(found),
        Err(error) => return Err(error).context("its extended attributes cannot be listed"),
    };
    let mut value = vec![0_u8; 64 << 10];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let kept = [&b"user."[..], b"trusted.", b"system.posix_acl_"].iter().any(|prefix| name.starts_with(prefix));
        if kept || name == b"security.capability" {
            let bytes = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)
                .with_context(|| format!("attribute {} cannot be read", name.escape_ascii()))?;
            found.insert(name.to_vec(), value[..bytes].to_vec());
        }
    }
    Ok(found)
}
