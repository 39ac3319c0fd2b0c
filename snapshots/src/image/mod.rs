//! Root filesystems as images that the kernel mounts itself: the tree's metadata in front, in the format of EROFS, then the
//! content of its files, so that a mount needs the metadata alone and content can come when it is touched.

mod cut;
mod layout;
mod tree;
mod view;

pub use cut::first_leaf_bytes;
pub use layout::{Laid, PlacedFile, lay_out};
pub use tree::{Content, DeviceKind, Inode, InodeId, Meta, Tree, TreeError};
pub use view::{Entry, Fault, Image, InodeView, Nid, NodeKind, ViewError, Xattrs};

/// Bytes of a block of the image.
pub const BLOCK_BYTES: u64 = 4096;
/// Most bytes of a file's name, as in Linux.
pub const NAME_BYTES_MAX: usize = 255;

/// The parts of the format that both writer and reader use. Source: Linux, `Documentation/filesystems/erofs.rst` and
/// `fs/erofs/erofs_fs.h`.
mod format {
    pub const SUPER_OFFSET: usize = 1024;
    pub const SUPER_BYTES: usize = 128;
    pub const MAGIC: u32 = 0xE0F5_E1E2;
    pub const BLOCK_BITS: u8 = 12;
    /// Times in inodes are those of modification.
    pub const COMPAT_MTIME: u32 = 2;
    /// Inodes are numbered by where they lie, in units of 32 bytes.
    pub const SLOT_BYTES: u64 = 32;
    /// The long form of an inode, which has a time of its own and 64-bit sizes.
    pub const INODE_BYTES: usize = 64;
    pub const DIRENT_BYTES: usize = 12;
    pub const XATTR_HEADER_BYTES: usize = 12;
    pub const XATTR_ENTRY_BYTES: usize = 4;
    pub const EXTENDED: u16 = 1;
    /// Content in blocks one after the other.
    pub const PLAIN: u16 = 0;
    /// The same, but what does not fill a block follows the inode.
    pub const INLINE: u16 = 2;
    /// Prefixes of names of extended attributes, by their numbers.
    pub const XATTR_PREFIXES: [(u8, &[u8]); 5] = [
        (1, b"user."),
        (2, b"system.posix_acl_access"),
        (3, b"system.posix_acl_default"),
        (4, b"trusted."),
        (6, b"security."),
    ];
}
