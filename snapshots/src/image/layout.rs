//! Where everything of a tree lies in its image.
//!
//! ```text
//! block 0     superblock, then inodes with their attributes; short folders and links follow their inode
//! …           blocks of long folders
//! meta/4096   content of files, each from the beginning of a block, in the order of a walk
//! ```

use super::format as f;
use super::tree::{Visited, xattr_prefix};
use super::{BLOCK_BYTES, Content, DeviceKind, InodeId, Tree};

/// A file's place in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacedFile {
    /// The file.
    pub inode: InodeId,
    /// Its length; zeros follow up to the end of the block.
    pub bytes: u64,
}

/// A tree's image, but for the content of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Laid {
    /// The metadata, whole blocks.
    pub meta: Vec<u8>,
    /// The files whose content follows, in this order, each from the beginning of a block. None is empty.
    pub files: Vec<PlacedFile>,
    /// Bytes of the image.
    pub bytes: u64,
}

/// More than the format can address: 2³² blocks, or a name's place in 2⁶⁴ bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tree takes more than 16 TiB, which is the most that an image addresses")]
pub struct TooLarge;

const BLOCK: usize = BLOCK_BYTES as usize;

/// One inode's place.
struct Place {
    at: usize,
    layout: u16,
    /// First of the blocks of a long folder or link, counted from the end of the inodes.
    block: usize,
    data_bytes: usize,
}

/// The image of a tree.
///
/// # Errors
/// It is too large.
pub fn lay_out(tree: &Tree) -> Result<Laid, TooLarge> {
    let visited = tree.walk();
    let mut places: Vec<Option<Place>> = Vec::new();
    let (mut end, mut blocks) = (f::SUPER_OFFSET + f::SUPER_BYTES, 0);
    for inode in &visited {
        let data_bytes = data_bytes(tree, inode.id);
        let tail = data_bytes % BLOCK;
        let head = f::INODE_BYTES + xattrs(tree, inode.id).len();
        // In one block with its inode: kernels before 2024 look for a link's end there.
        let fits = |at: usize| at % BLOCK + head + tail <= BLOCK;
        let next = end.next_multiple_of(f::SLOT_BYTES as usize);
        let whole = |at: usize| if at % BLOCK + f::INODE_BYTES <= BLOCK { at } else { at.next_multiple_of(BLOCK) };
        let inline = [next, next.next_multiple_of(BLOCK)].into_iter().find(|at| fits(*at)).filter(|_| tail > 0);
        let (at, layout) = inline.map_or((whole(next), f::PLAIN), |at| (at, f::INLINE));
        let in_blocks = if layout == f::INLINE { data_bytes / BLOCK } else { data_bytes.div_ceil(BLOCK) };
        end = at + head + if layout == f::INLINE { tail } else { 0 };
        places.resize_with(places.len().max(inode.id.index() + 1), || None);
        places[inode.id.index()] = Some(Place { at, layout, block: blocks, data_bytes });
        blocks += in_blocks;
    }
    let inodes_end = end.next_multiple_of(BLOCK);
    let mut writer = Writer {
        tree,
        places,
        inodes_end,
        out: vec![0; inodes_end + blocks * BLOCK],
        files: Vec::new(),
        next_block: (inodes_end + blocks * BLOCK) as u64 / BLOCK_BYTES,
    };
    for (number, inode) in visited.iter().enumerate() {
        writer.inode(number, inode)?;
    }
    writer.superblock(visited.len() as u64)?;
    Ok(Laid { meta: writer.out, files: writer.files, bytes: writer.next_block * BLOCK_BYTES })
}

struct Writer<'a> {
    tree: &'a Tree,
    places: Vec<Option<Place>>,
    inodes_end: usize,
    out: Vec<u8>,
    files: Vec<PlacedFile>,
    next_block: u64,
}

impl Writer<'_> {
    fn place(&self, id: InodeId) -> &Place {
        self.places[id.index()].as_ref().expect("what a folder names was visited")
    }

    fn nid(&self, id: InodeId) -> u64 {
        self.place(id).at as u64 / f::SLOT_BYTES
    }

    fn inode(&mut self, number: usize, visited: &Visited) -> Result<(), TooLarge> {
        let inode = self.tree.inode(visited.id);
        let &Place { at, layout, block, data_bytes } = self.place(visited.id);
        let xattrs = xattrs(self.tree, visited.id);
        let first_block = (self.inodes_end / BLOCK + block) as u64;
        let (size, address) = match &inode.content {
            Content::File { bytes: 0 } => (0, 0),
            Content::File { bytes } => {
                let first = self.next_block;
                self.next_block = bytes.div_ceil(BLOCK_BYTES).checked_add(first).ok_or(TooLarge)?;
                self.files.push(PlacedFile { inode: visited.id, bytes: *bytes });
                (*bytes, first)
            }
            Content::Device { major, minor, .. } => (0, u64::from(device_number(*major, *minor))),
            _ => (data_bytes as u64, if data_bytes >= BLOCK || layout == f::PLAIN { first_block } else { 0 }),
        };
        let address = u32::try_from(address).map_err(|_| TooLarge)?;
        let meta = &inode.meta;
        let icount = if xattrs.is_empty() { 0 } else { (xattrs.len() - f::XATTR_HEADER_BYTES) / 4 + 1 };
        let head = &mut self.out[at..at + f::INODE_BYTES];
        head[0..2].copy_from_slice(&(f::EXTENDED | layout << 1).to_le_bytes());
        head[2..4].copy_from_slice(&(icount as u16).to_le_bytes());
        head[4..6].copy_from_slice(&(kind_bits(&inode.content) | meta.permissions & 0o7777).to_le_bytes());
        head[8..16].copy_from_slice(&size.to_le_bytes());
        head[16..20].copy_from_slice(&address.to_le_bytes());
        head[20..24].copy_from_slice(&(number as u32 + 1).to_le_bytes());
        head[24..28].copy_from_slice(&meta.uid.to_le_bytes());
        head[28..32].copy_from_slice(&meta.gid.to_le_bytes());
        head[32..40].copy_from_slice(&meta.mtime_s.to_le_bytes());
        head[40..44].copy_from_slice(&meta.mtime_ns.to_le_bytes());
        head[44..48].copy_from_slice(&visited.links.to_le_bytes());
        let after = at + f::INODE_BYTES;
        self.out[after..after + xattrs.len()].copy_from_slice(&xattrs);
        let data = match &inode.content {
            Content::Directory(_) => self.directory(visited),
            Content::Symlink(target) => target.clone(),
            _ => return Ok(()),
        };
        let tail_at = if layout == f::INLINE { data.len() / BLOCK * BLOCK } else { data.len() };
        if tail_at > 0 {
            let blocks_at = first_block as usize * BLOCK;
            self.out[blocks_at..blocks_at + tail_at].copy_from_slice(&data[..tail_at]);
        }
        let inline_at = after + xattrs.len();
        self.out[inline_at..inline_at + data.len() - tail_at].copy_from_slice(&data[tail_at..]);
        Ok(())
    }

    fn directory(&self, visited: &Visited) -> Vec<u8> {
        let mut out = Vec::new();
        for block in dir_blocks(self.tree, visited) {
            out.resize(out.len().next_multiple_of(BLOCK), 0);
            let mut name_at = block.len() * f::DIRENT_BYTES;
            for (name, id) in &block {
                out.extend_from_slice(&self.nid(*id).to_le_bytes());
                out.extend_from_slice(&(name_at as u16).to_le_bytes());
                out.extend_from_slice(&[file_type(&self.tree.inode(*id).content), 0]);
                name_at += name.len();
            }
            block.iter().for_each(|(name, _)| out.extend_from_slice(name));
        }
        out
    }

    fn superblock(&mut self, inodes: u64) -> Result<(), TooLarge> {
        let root = u16::try_from(self.nid(Tree::ROOT)).map_err(|_| TooLarge)?;
        let blocks = u32::try_from(self.next_block).map_err(|_| TooLarge)?;
        let block = &mut self.out[f::SUPER_OFFSET..f::SUPER_OFFSET + f::SUPER_BYTES];
        block[0..4].copy_from_slice(&f::MAGIC.to_le_bytes());
        block[8..12].copy_from_slice(&f::COMPAT_MTIME.to_le_bytes());
        block[12] = f::BLOCK_BITS;
        block[14..16].copy_from_slice(&root.to_le_bytes());
        block[16..24].copy_from_slice(&inodes.to_le_bytes());
        block[36..40].copy_from_slice(&blocks.to_le_bytes());
        Ok(())
    }
}

/// A folder's names, `.` and `..` among them, in the order of their bytes, as many to a block as fit.
fn dir_blocks<'a>(tree: &'a Tree, visited: &Visited) -> Vec<Vec<(&'a [u8], InodeId)>> {
    let Content::Directory(entries) = &tree.inode(visited.id).content else { return Vec::new() };
    let mut names: Vec<(&[u8], InodeId)> = entries.iter().map(|(name, id)| (&name[..], *id)).collect();
    names.extend([(&b"."[..], visited.id), (&b".."[..], visited.parent)]);
    names.sort_unstable_by_key(|(name, _)| *name);
    let (mut blocks, mut used) = (vec![Vec::new()], 0);
    for entry in names {
        let bytes = f::DIRENT_BYTES + entry.0.len();
        if used + bytes > BLOCK {
            blocks.push(Vec::new());
            used = 0;
        }
        used += bytes;
        blocks.last_mut().expect("one at least").push(entry);
    }
    blocks
}

/// Bytes of what lies in the metadata beside the inode.
fn data_bytes(tree: &Tree, id: InodeId) -> usize {
    match &tree.inode(id).content {
        Content::Symlink(target) => target.len(),
        Content::Directory(_) => {
            // Whose parent it is does not change its length.
            let blocks = dir_blocks(tree, &Visited { id, parent: id, links: 0 });
            let of = |block: &Vec<(&[u8], _)>| -> usize { block.iter().map(|(n, _)| f::DIRENT_BYTES + n.len()).sum() };
            (blocks.len() - 1) * BLOCK + blocks.last().map_or(0, of)
        }
        _ => 0,
    }
}

/// An inode's attributes as they lie behind it; nothing without any.
fn xattrs(tree: &Tree, id: InodeId) -> Vec<u8> {
    let xattrs = &tree.inode(id).meta.xattrs;
    if xattrs.is_empty() {
        return Vec::new();
    }
    let mut out = vec![0; f::XATTR_HEADER_BYTES];
    for (name, value) in xattrs {
        let (prefix, rest) = xattr_prefix(name).expect("the tree has checked names");
        out.extend_from_slice(&[rest.len() as u8, prefix]);
        out.extend_from_slice(&(value.len() as u16).to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// As `stat` has it.
fn kind_bits(content: &Content) -> u16 {
    match content {
        Content::Fifo => 0o010_000,
        Content::Device { kind: DeviceKind::Character, .. } => 0o020_000,
        Content::Directory(_) => 0o040_000,
        Content::Device { kind: DeviceKind::Block, .. } => 0o060_000,
        Content::File { .. } => 0o100_000,
        Content::Symlink(_) => 0o120_000,
        Content::Socket => 0o140_000,
    }
}

/// As folders have it.
fn file_type(content: &Content) -> u8 {
    match content {
        Content::File { .. } => 1,
        Content::Directory(_) => 2,
        Content::Device { kind: DeviceKind::Character, .. } => 3,
        Content::Device { kind: DeviceKind::Block, .. } => 4,
        Content::Fifo => 5,
        Content::Socket => 6,
        Content::Symlink(_) => 7,
    }
}

/// As the kernel packs both numbers into 32 bits (`new_encode_dev`).
fn device_number(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}
