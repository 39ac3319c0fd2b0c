//! An image's metadata, read where it lies. Whoever made it may want harm: before the kernel is given an image, all that a walk
//! can reach is checked.

use std::collections::BTreeSet;

use super::format as f;
use super::tree::is_name;
use super::{BLOCK_BYTES, DeviceKind};
use crate::numbers::{u16_at, u32_at, u64_at};

const BLOCK: usize = BLOCK_BYTES as usize;

/// Number of an inode in its image: where it lies, in units of 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nid(pub u64);

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A folder.
    Directory,
    /// A file, with the byte of the image where its content begins.
    File {
        /// First byte.
        at: u64,
    },
    /// A symbolic link.
    Symlink,
    /// A device.
    Device {
        /// Which sort.
        kind: DeviceKind,
        /// Both numbers, as the kernel packs them.
        number: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// An inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InodeView {
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits.
    pub permissions: u16,
    /// Length, bytes.
    pub bytes: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modified, seconds since 1970.
    pub mtime_s: i64,
    /// And nanoseconds.
    pub mtime_ns: u32,
    /// Names.
    pub links: u32,
    layout: u16,
    /// First block of its content.
    block: u32,
    /// Where what follows the inode begins: attributes, then content that fills no block.
    after: usize,
    xattrs_bytes: usize,
}

/// Extended attributes: full names and values.
pub type Xattrs<'a> = Vec<(Vec<u8>, &'a [u8])>;

/// A name in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The name.
    pub name: &'a [u8],
    /// What it names.
    pub nid: Nid,
}

/// Why bytes are no image that this build mounts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// No image at all.
    #[error("this is no image: it has no superblock")]
    Magic,
    /// Features that this build does not know.
    #[error("the image asks for features that this build does not know; update it")]
    Features,
    /// An inode makes no sense.
    #[error("inode {nid} of the image: {fault}")]
    Inode {
        /// Its number.
        nid: u64,
        /// What is wrong.
        fault: Fault,
    },
}

/// What is wrong with an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It, or what belongs to it, lies beyond the end.
    #[error("it lies outside the image")]
    Outside,
    /// It has a form, a kind or a layout that this build does not write.
    #[error("it has a form that this build does not know")]
    Form,
    /// A folder with names that make no sense, or out of order.
    #[error("its names make no sense")]
    Names,
    /// A folder that two folders name, or one that it lies in.
    #[error("it is a folder with two names")]
    TwoNames,
    /// Extended attributes that do not fit their length.
    #[error("its extended attributes make no sense")]
    Xattrs,
    /// A link to nothing or with a zero in it.
    #[error("it links to no path")]
    Link,
}

/// An image by its metadata.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    meta: &'a [u8],
    bytes: u64,
    root: Nid,
}

impl<'a> Image<'a> {
    /// The image of `bytes` bytes that begins with `meta`. Only the superblock is looked at: [`Image::check`] looks at the rest.
    ///
    /// # Errors
    /// There is no superblock, or one that asks for what this build does not know.
    pub fn open(meta: &'a [u8], bytes: u64) -> Result<Self, ViewError> {
        let block = meta.get(f::SUPER_OFFSET..f::SUPER_OFFSET + f::SUPER_BYTES).ok_or(ViewError::Magic)?;
        if u32_at(block, 0) != f::MAGIC || bytes < meta.len() as u64 || !meta.len().is_multiple_of(BLOCK) {
            return Err(ViewError::Magic);
        }
        let said = (u32::from(block[12]), u32_at(block, 80), u32_at(block, 40), u32_at(block, 8));
        // Block size, features that readers must know, where inodes begin, features that they may pass over; then what
        // only images with compression, devices, prefixes or larger folders have.
        if said != (u32::from(f::BLOCK_BITS), 0, 0, f::COMPAT_MTIME)
            || block[13] != 0
            || block[84..].iter().any(|b| *b != 0)
        {
            return Err(ViewError::Features);
        }
        if u64::from(u32_at(block, 36)) * BLOCK_BYTES != bytes {
            return Err(ViewError::Magic);
        }
        Ok(Self { meta, bytes, root: Nid(u64::from(u16_at(block, 14))) })
    }

    /// The root folder.
    #[must_use]
    pub fn root(&self) -> Nid {
        self.root
    }

    /// An inode.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn inode(&self, nid: Nid) -> Result<InodeView, ViewError> {
        self.read(nid).map_err(|fault| ViewError::Inode { nid: nid.0, fault })
    }

    fn read(&self, nid: Nid) -> Result<InodeView, Fault> {
        let at = nid.0.checked_mul(f::SLOT_BYTES).and_then(|at| usize::try_from(at).ok()).ok_or(Fault::Outside)?;
        if at < f::SUPER_OFFSET + f::SUPER_BYTES {
            return Err(Fault::Outside);
        }
        let head = at.checked_add(f::INODE_BYTES).and_then(|end| self.meta.get(at..end)).ok_or(Fault::Outside)?;
        let layout = match (u16_at(head, 0) & 1, u16_at(head, 0) >> 1) {
            (f::EXTENDED, layout @ (f::PLAIN | f::INLINE)) => layout,
            _ => return Err(Fault::Form),
        };
        let icount = usize::from(u16_at(head, 2));
        let xattrs_bytes = if icount == 0 { 0 } else { f::XATTR_HEADER_BYTES + (icount - 1) * 4 };
        let (mode, bytes, block) = (u16_at(head, 4), u64_at(head, 8), u32_at(head, 16));
        let kind = match mode >> 12 {
            0o01 => NodeKind::Fifo,
            0o02 => NodeKind::Device { kind: DeviceKind::Character, number: block },
            0o04 => NodeKind::Directory,
            0o06 => NodeKind::Device { kind: DeviceKind::Block, number: block },
            0o10 => NodeKind::File { at: u64::from(block) * BLOCK_BYTES },
            0o12 => NodeKind::Symlink,
            0o14 => NodeKind::Socket,
            _ => return Err(Fault::Form),
        };
        if u32_at(head, 40) >= 1_000_000_000 {
            return Err(Fault::Form);
        }
        let inode = InodeView {
            kind,
            permissions: mode & 0o7777,
            bytes,
            uid: u32_at(head, 24),
            gid: u32_at(head, 28),
            mtime_s: u64_at(head, 32).cast_signed(),
            mtime_ns: u32_at(head, 40),
            links: u32_at(head, 44),
            layout,
            block,
            after: at + f::INODE_BYTES,
            xattrs_bytes,
        };
        self.check_place(&inode)?;
        Ok(inode)
    }

    /// That what belongs to an inode lies in the image; names and links in its metadata.
    fn check_place(&self, inode: &InodeView) -> Result<(), Fault> {
        let tail_at = inode.after + inode.xattrs_bytes;
        if tail_at > self.meta.len() {
            return Err(Fault::Outside);
        }
        let blocks_end = |bytes: u64| (u64::from(inode.block) * BLOCK_BYTES).checked_add(bytes).ok_or(Fault::Outside);
        match inode.kind {
            NodeKind::File { .. } if inode.layout != f::PLAIN => Err(Fault::Form),
            NodeKind::File { at } if inode.bytes > 0 => {
                let inside = at >= self.meta.len() as u64 && blocks_end(inode.bytes)? <= self.bytes;
                if inside { Ok(()) } else { Err(Fault::Outside) }
            }
            NodeKind::Directory | NodeKind::Symlink => {
                let tail = if inode.layout == f::INLINE { inode.bytes % BLOCK_BYTES } else { 0 };
                let in_blocks = inode.bytes - tail;
                let crosses = tail_at % BLOCK + tail as usize > BLOCK;
                let outside = in_blocks > 0 && blocks_end(in_blocks)? > self.meta.len() as u64;
                if outside || crosses || tail_at + tail as usize > self.meta.len() {
                    Err(Fault::Outside)
                } else {
                    Ok(())
                }
            }
            _ if inode.bytes > 0 => Err(Fault::Form),
            _ => Ok(()),
        }
    }

    /// The bytes of a folder or a link: blocks, then what follows the inode.
    fn data(&self, inode: &InodeView) -> (&'a [u8], &'a [u8]) {
        let tail = if inode.layout == f::INLINE { inode.bytes as usize % BLOCK } else { 0 };
        let at = inode.block as usize * BLOCK;
        let in_blocks = inode.bytes as usize - tail;
        let blocks = if in_blocks == 0 { &[] } else { &self.meta[at..at + in_blocks] };
        let tail_at = inode.after + inode.xattrs_bytes;
        (blocks, &self.meta[tail_at..tail_at + tail])
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// It is no link, or leads nowhere.
    pub fn link(&self, nid: Nid) -> Result<&'a [u8], ViewError> {
        let wrong = |fault| ViewError::Inode { nid: nid.0, fault };
        let inode = self.inode(nid)?;
        let (blocks, tail) = self.data(&inode);
        // A link is shorter than a block, so it lies in one piece.
        let target = if blocks.is_empty() { tail } else { blocks };
        let plain = inode.kind == NodeKind::Symlink && (1..BLOCK).contains(&target.len()) && !target.contains(&0);
        if plain { Ok(target) } else { Err(wrong(Fault::Link)) }
    }

    /// The names of a folder, `.` and `..` among them, in order.
    ///
    /// # Errors
    /// It is no folder, or its names make no sense.
    pub fn entries(&self, nid: Nid) -> Result<Vec<Entry<'a>>, ViewError> {
        let wrong = |fault| ViewError::Inode { nid: nid.0, fault };
        let inode = self.inode(nid)?;
        if inode.kind != NodeKind::Directory {
            return Err(wrong(Fault::Form));
        }
        let (blocks, tail) = self.data(&inode);
        let mut found: Vec<Entry> = Vec::new();
        for block in blocks.chunks(BLOCK).chain((!tail.is_empty()).then_some(tail)) {
            dir_block(block, &mut found).ok_or_else(|| wrong(Fault::Names))?;
        }
        let sorted = found.is_sorted_by(|a, b| a.name < b.name);
        let own = |name: &[u8]| found.binary_search_by_key(&name, |entry| entry.name).ok().map(|at| found[at].nid);
        if !sorted || own(b".") != Some(nid) || own(b"..").is_none() {
            return Err(wrong(Fault::Names));
        }
        Ok(found)
    }

    /// Extended attributes by their full names.
    ///
    /// # Errors
    /// They make no sense.
    pub fn xattrs(&self, nid: Nid) -> Result<Xattrs<'a>, ViewError> {
        let inode = self.inode(nid)?;
        let all = &self.meta[inode.after..inode.after + inode.xattrs_bytes];
        xattrs(all).ok_or(ViewError::Inode { nid: nid.0, fault: Fault::Xattrs })
    }

    /// Walks the whole tree; how many inodes it has.
    ///
    /// # Errors
    /// The first thing that makes no sense.
    pub fn check(&self) -> Result<usize, ViewError> {
        let wrong = |nid: Nid, fault| ViewError::Inode { nid: nid.0, fault };
        let (mut folders, mut others) = (BTreeSet::from([self.root]), BTreeSet::new());
        let mut left = vec![(self.root, self.root)];
        // Folders that share their names would be walked for ever.
        let mut names_bytes = 0_u64;
        while let Some((folder, parent)) = left.pop() {
            names_bytes = names_bytes.saturating_add(self.inode(folder)?.bytes);
            if names_bytes > self.meta.len() as u64 {
                return Err(wrong(folder, Fault::Names));
            }
            self.xattrs(folder)?;
            for entry in self.entries(folder)? {
                match entry.name {
                    b"." => {}
                    b".." if entry.nid == parent => {}
                    b".." => return Err(wrong(folder, Fault::Names)),
                    _ if self.inode(entry.nid)?.kind == NodeKind::Directory => {
                        if !folders.insert(entry.nid) {
                            return Err(wrong(entry.nid, Fault::TwoNames));
                        }
                        left.push((entry.nid, folder));
                    }
                    _ => {
                        if others.insert(entry.nid) {
                            self.xattrs(entry.nid)?;
                            if self.inode(entry.nid)?.kind == NodeKind::Symlink {
                                self.link(entry.nid)?;
                            }
                        }
                    }
                }
            }
        }
        Ok(folders.len() + others.len())
    }
}

/// The names of one block of a folder.
fn dir_block<'a>(block: &'a [u8], found: &mut Vec<Entry<'a>>) -> Option<()> {
    let first = usize::from(u16_at(block.get(..f::DIRENT_BYTES)?, 8));
    if first == 0 || !first.is_multiple_of(f::DIRENT_BYTES) || first > block.len() {
        return None;
    }
    let dirents = &block[..first];
    let at = |i: usize| dirents.get(i * f::DIRENT_BYTES..).filter(|rest| !rest.is_empty());
    let name_at = |i: usize| at(i).map(|dirent| usize::from(u16_at(dirent, 8)));
    for i in 0..first / f::DIRENT_BYTES {
        let from = name_at(i)?;
        let name = match name_at(i + 1) {
            Some(until) => block.get(from..until)?,
            // The last ends with the block, or where zeros begin.
            None => block.get(from..)?.split(|byte| *byte == 0).next()?,
        };
        if from < first || !(is_name(name) || name == b"." || name == b"..") {
            return None;
        }
        found.push(Entry { name, nid: Nid(u64_at(at(i)?, 0)) });
    }
    Some(())
}

fn xattrs(all: &[u8]) -> Option<Xattrs<'_>> {
    let Some((header, mut rest)) = all.split_at_checked(f::XATTR_HEADER_BYTES) else {
        return all.is_empty().then(Vec::new);
    };
    // None are shared between inodes.
    if header[4] != 0 {
        return None;
    }
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (entry, behind) = rest.split_at_checked(f::XATTR_ENTRY_BYTES)?;
        let (name_bytes, value_bytes) = (usize::from(entry[0]), usize::from(u16_at(entry, 2)));
        let prefix = f::XATTR_PREFIXES.iter().find(|(number, _)| *number == entry[1])?.1;
        let name = behind.get(..name_bytes)?;
        let value = behind.get(name_bytes..name_bytes + value_bytes)?;
        found.push(([prefix, name].concat(), value));
        let padded = (f::XATTR_ENTRY_BYTES + name_bytes + value_bytes).next_multiple_of(4);
        rest = rest.get(padded..)?;
    }
    Some(found)
}
