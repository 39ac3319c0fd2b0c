//! A tree of files, as it is to be stored: inodes, and folders that name them.

use std::collections::BTreeMap;

use super::NAME_BYTES_MAX;

/// Number of an inode in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(usize);

/// What every inode has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits, with set-user-id, set-group-id and sticky: `0o7777` at most.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modified, seconds since 1970.
    pub mtime_s: i64,
    /// And nanoseconds.
    pub mtime_ns: u32,
    /// Extended attributes by their full names.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A block or a character device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Blocks.
    Block,
    /// Characters.
    Character,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A folder, by names.
    Directory(BTreeMap<Vec<u8>, InodeId>),
    /// A file of so many bytes, whose content is elsewhere.
    File {
        /// Its length.
        bytes: u64,
    },
    /// A symbolic link to a path, which need not be there.
    Symlink(Vec<u8>),
    /// A device.
    Device {
        /// Which sort.
        kind: DeviceKind,
        /// Major number, 12 bits.
        major: u32,
        /// Minor number, 20 bits.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Owner, times and the like.
    pub meta: Meta,
    /// What it is.
    pub content: Content,
}

/// What a tree does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// No name of a file.
    #[error("'{0}' is no name of a file")]
    Name(String),
    /// The parent is no folder.
    #[error("'{0}' would lie in something that is no folder")]
    Parent(String),
    /// A second name for a folder.
    #[error("'{0}' would be a second name of a folder")]
    SecondName(String),
    /// A link to nothing, or longer than a path may be.
    #[error("a symbolic link has 1 to 4095 bytes, not {0}")]
    Symlink(usize),
    /// An attribute of a name or size that the format does not have.
    #[error("extended attribute '{0}' cannot be stored")]
    Xattr(String),
    /// A device with a number that does not fit.
    #[error("device {major}:{minor} has a number that does not fit")]
    Device {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
}

/// A tree. Every inode but the root has at least one name, and a folder exactly one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    inodes: Vec<Inode>,
}

/// Most bytes of an attribute's value, of all of an inode's attributes, and of a symbolic link, as in Linux.
const XATTRS_BYTES_MAX: usize = 64 << 10;
const SYMLINK_BYTES_MAX: usize = 4095;

impl Tree {
    /// The root of every tree.
    pub const ROOT: InodeId = InodeId(0);

    /// A tree with an empty root.
    ///
    /// # Errors
    /// An attribute cannot be stored.
    pub fn new(root: Meta) -> Result<Self, TreeError> {
        let root = Inode { meta: root, content: Content::Directory(BTreeMap::new()) };
        check(&root)?;
        Ok(Self { inodes: vec![root] })
    }

    /// Adds an inode under a name, which it replaces where it is there.
    ///
    /// # Errors
    /// The name is none, the parent is no folder, a folder is not empty, or something of the inode does not fit.
    pub fn add(&mut self, parent: InodeId, name: &[u8], inode: Inode) -> Result<InodeId, TreeError> {
        check(&inode)?;
        if matches!(&inode.content, Content::Directory(entries) if !entries.is_empty()) {
            return Err(TreeError::SecondName(shown(name)));
        }
        let id = InodeId(self.inodes.len());
        self.entries(parent, name)?.insert(name.to_vec(), id);
        self.inodes.push(inode);
        Ok(id)
    }

    /// Another name for what is no folder.
    ///
    /// # Errors
    /// It is a folder, the name is none, or the parent is no folder.
    pub fn link(&mut self, parent: InodeId, name: &[u8], id: InodeId) -> Result<(), TreeError> {
        if matches!(self.inodes[id.0].content, Content::Directory(_)) {
            return Err(TreeError::SecondName(shown(name)));
        }
        self.entries(parent, name)?.insert(name.to_vec(), id);
        Ok(())
    }

    /// Takes a name away; whether it was there.
    ///
    /// # Errors
    /// The name is none, or the parent is no folder.
    pub fn remove(&mut self, parent: InodeId, name: &[u8]) -> Result<bool, TreeError> {
        Ok(self.entries(parent, name)?.remove(name).is_some())
    }

    /// Another owner, times and attributes for an inode.
    ///
    /// # Errors
    /// An attribute cannot be stored.
    pub fn set_meta(&mut self, id: InodeId, meta: Meta) -> Result<(), TreeError> {
        let content = std::mem::replace(&mut self.inodes[id.0].content, Content::Fifo);
        let inode = Inode { meta, content };
        let fits = check(&inode);
        let old = std::mem::replace(&mut self.inodes[id.0], inode);
        if fits.is_err() {
            self.inodes[id.0].meta = old.meta;
        }
        fits
    }

    fn entries(&mut self, parent: InodeId, name: &[u8]) -> Result<&mut BTreeMap<Vec<u8>, InodeId>, TreeError> {
        if !is_name(name) {
            return Err(TreeError::Name(shown(name)));
        }
        match &mut self.inodes[parent.0].content {
            Content::Directory(entries) => Ok(entries),
            _ => Err(TreeError::Parent(shown(name))),
        }
    }

    /// An inode.
    #[must_use]
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0]
    }

    /// What a folder has under a name.
    #[must_use]
    pub fn child(&self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        match &self.inodes[parent.0].content {
            Content::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    /// The inodes that have a name, folders before what is in them, in the order of names; with each one's parent and how many
    /// names it has, or how many folders name a folder as theirs.
    pub(super) fn walk(&self) -> Vec<Visited> {
        let mut seen: Vec<Option<usize>> = vec![None; self.inodes.len()];
        let mut visited: Vec<Visited> = Vec::new();
        let mut left = vec![(Self::ROOT, Self::ROOT)];
        while let Some((id, parent)) = left.pop() {
            if let Some(at) = seen[id.0] {
                visited[at].links += 1;
                continue;
            }
            seen[id.0] = Some(visited.len());
            let mut links = 1;
            if let Content::Directory(entries) = &self.inodes[id.0].content {
                let folders = entries.values().filter(|id| matches!(self.inode(**id).content, Content::Directory(_)));
                links = 2 + folders.count() as u32;
                // The last is taken first.
                left.extend(entries.values().rev().map(|child| (*child, id)));
            }
            visited.push(Visited { id, parent, links });
        }
        visited
    }
}

/// An inode that has a name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Visited {
    pub id: InodeId,
    pub parent: InodeId,
    pub links: u32,
}

impl InodeId {
    pub(super) fn index(self) -> usize {
        self.0
    }
}

fn check(inode: &Inode) -> Result<(), TreeError> {
    let mut bytes = super::format::XATTR_HEADER_BYTES;
    for (name, value) in &inode.meta.xattrs {
        let wrong = || TreeError::Xattr(shown(name));
        let (_, rest) = xattr_prefix(name).ok_or_else(wrong)?;
        if rest.len() > NAME_BYTES_MAX || value.len() > XATTRS_BYTES_MAX - 1 {
            return Err(wrong());
        }
        bytes += (super::format::XATTR_ENTRY_BYTES + rest.len() + value.len()).next_multiple_of(4);
        if bytes > XATTRS_BYTES_MAX {
            return Err(wrong());
        }
    }
    match &inode.content {
        Content::Symlink(target) if !(1..=SYMLINK_BYTES_MAX).contains(&target.len()) => {
            Err(TreeError::Symlink(target.len()))
        }
        Content::Device { major, minor, .. } if *major >= 1 << 12 || *minor >= 1 << 20 => {
            Err(TreeError::Device { major: *major, minor: *minor })
        }
        _ => Ok(()),
    }
}

/// The number of an attribute's prefix, and the rest of its name.
pub(super) fn xattr_prefix(name: &[u8]) -> Option<(u8, &[u8])> {
    super::format::XATTR_PREFIXES.iter().find_map(|(number, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        // A prefix that ends in a point is followed by something, one that does not is a name by itself.
        (prefix.ends_with(b".") != rest.is_empty()).then_some((*number, rest))
    })
}

/// Whether a file may have this name.
pub(super) fn is_name(name: &[u8]) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

fn shown(name: &[u8]) -> String {
    name[..name.len().min(NAME_BYTES_MAX)].escape_ascii().to_string()
}
