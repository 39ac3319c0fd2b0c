//! A root filesystem from an OCI image layout (OCI Image Format Specification 1.1: `image-layout.md`, `manifest.md`,
//! `layer.md`): layers one above the other, whiteouts among them. Nothing is written by the names in a layer: they become a tree,
//! and contents go to one file without a name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use snapshots::image::{Content, DeviceKind, Inode, InodeId, Meta, Tree};
use tar::{Entry, EntryType};

use super::frames::{Extended, Records, Watched};
use super::{Place, Source};

/// Most bytes of a document of a layout.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Most inodes of an image: what a layer of many empty files could take of memory.
const INODES_MAX: usize = 8_000_000;
/// Documents that name each other, and links in a path.
const STEPS_MAX: usize = 40;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// An index or a manifest.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// Whether there is an image layout at a path.
pub fn is_layout(path: &Path) -> bool {
    path.join("oci-layout").is_file() && path.join("index.json").is_file()
}

/// The root filesystem of the only image in a layout that runs on this machine.
///
/// # Errors
/// There is none or several, a blob is not what its digest says, or a layer holds what an image cannot.
pub fn read(layout: &Path) -> anyhow::Result<Source> {
    let mut document = parse(&document(&layout.join("index.json"))?, "index.json")?;
    let mut steps = 0;
    while document.layers.is_empty() {
        steps += 1;
        ensure!(steps < STEPS_MAX, "the layout's documents name each other without end");
        let next = chosen(&document.manifests).with_context(|| format!("at {}", layout.display()))?;
        let path = blob_path(layout, &next.digest)?;
        let bytes = self::document(&path)?;
        ensure!(
            hex(&Sha256::digest(&bytes)) == name(&next.digest)?,
            "blob {} has another content than its name says",
            next.digest
        );
        document = parse(&bytes, &next.digest)?;
    }
    let spool = tempfile::tempfile().context("there is no room for temporary files")?;
    let mut layers = Layers {
        tree: Tree::new(Meta { permissions: 0o755, ..Meta::default() })?,
        content: BTreeMap::new(),
        spool: BufWriter::new(spool.try_clone().context("the temporary file fails")?),
        spooled: 0,
        file: Arc::new(spool),
        of_layer: BTreeSet::new(),
        inodes: 0,
    };
    for layer in &document.layers {
        layers.add(layout, layer).with_context(|| format!("layer {}", layer.digest))?;
    }
    layers.spool.flush().context("the temporary file cannot be written: set TMPDIR to where there is room")?;
    Ok(Source { tree: layers.tree, content: layers.content })
}

/// The one that runs here; of several without a platform, none can be told.
fn chosen(manifests: &[Descriptor]) -> anyhow::Result<&Descriptor> {
    let here = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let runs = |d: &&Descriptor| d.platform.as_ref().is_none_or(|p| p.os == "linux" && p.architecture == here);
    let all: Vec<&Descriptor> = manifests.iter().filter(runs).collect();
    match &all[..] {
        [one] => Ok(one),
        [] => bail!("the layout has no image for linux/{here}"),
        several => {
            bail!("the layout has {} images: copy the one that is meant into a layout of its own", several.len())
        }
    }
}

fn document(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    file.take(DOCUMENT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(bytes.len() as u64 <= DOCUMENT_BYTES_MAX, "{} is longer than any document of a layout", path.display());
    Ok(bytes)
}

fn parse(bytes: &[u8], what: &str) -> anyhow::Result<Document> {
    serde_json::from_slice(bytes).with_context(|| format!("{what} is no index and no manifest of an image"))
}

fn name(digest: &str) -> anyhow::Result<&str> {
    let plain =
        |name: &&str| name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    digest.strip_prefix("sha256:").filter(plain).with_context(|| format!("'{digest}' is no SHA-256 digest"))
}

fn blob_path(layout: &Path, digest: &str) -> anyhow::Result<PathBuf> {
    Ok(layout.join("blobs/sha256").join(name(digest)?))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hashes what is read through it.
struct Hashed<R> {
    inner: R,
    hash: Arc<std::sync::Mutex<Sha256>>,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(out)?;
        self.hash.lock().unwrap_or_else(std::sync::PoisonError::into_inner).update(&out[..read]);
        Ok(read)
    }
}

/// An entry of a layer's archive.
type Member<'a, 'b> = Entry<'a, Watched<&'b mut dyn Read>>;

/// What the last part of a path stands for, if it is a link.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LastLink {
    Itself,
    Followed,
}

struct Layers {
    tree: Tree,
    content: BTreeMap<InodeId, Place>,
    spool: BufWriter<File>,
    spooled: u64,
    file: Arc<File>,
    /// Inodes of the layer that is read: a whiteout is about those below.
    of_layer: BTreeSet<InodeId>,
    inodes: usize,
}

impl Layers {
    fn add(&mut self, layout: &Path, layer: &Descriptor) -> anyhow::Result<()> {
        let path = blob_path(layout, &layer.digest)?;
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let hash = Arc::new(std::sync::Mutex::new(Sha256::new()));
        let mut raw = Hashed { inner: BufReader::with_capacity(1 << 20, file), hash: hash.clone() };
        self.of_layer.clear();
        let kind = layer.media_type.rsplit(['.', '+']).next().unwrap_or_default();
        match kind {
            "tar" => self.entries(&mut raw)?,
            "gzip" => self.entries(&mut flate2::read::MultiGzDecoder::new(&mut raw))?,
            "zstd" => self.entries(&mut zstd::Decoder::new(&mut raw).context("the layer is no zstd")?)?,
            _ => bail!("layers of type '{}' are not known to this build", layer.media_type),
        }
        // What follows the archive belongs to the digest too.
        std::io::copy(&mut raw, &mut std::io::sink()).context("cannot read the layer")?;
        let found = hex(&hash.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone().finalize());
        ensure!(found == name(&layer.digest)?, "its content has the digest sha256:{found}: copy the image again");
        Ok(())
    }

    fn entries(&mut self, layer: &mut dyn Read) -> anyhow::Result<()> {
        let (watched, extended) = Watched::new(layer);
        let mut archive = tar::Archive::new(watched);
        for entry in archive.entries().context("the layer is no archive")? {
            let mut entry = entry.context("the layer's archive cannot be read")?;
            let path = entry.path_bytes().into_owned();
            self.entry(&mut entry, &path, &extended).with_context(|| format!("at '{}'", path.escape_ascii()))?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: &mut Member<'_, '_>, path: &[u8], extended: &Extended) -> anyhow::Result<()> {
        let parts = parts(path)?;
        let meta = meta(entry, extended.take())?;
        let Some((last, folders)) = parts.split_last() else {
            return Ok(self.tree.set_meta(Tree::ROOT, meta)?);
        };
        let parent = self.folder(folders)?;
        if last == b".wh..wh..opq" {
            return self.hide_all(parent);
        }
        if let Some(hidden) = last.strip_prefix(b".wh.") {
            return self.hide(parent, hidden);
        }
        let content = match entry.header().entry_type() {
            EntryType::Directory => {
                // One that is there keeps what is in it.
                if let Some(id) = self.tree.child(parent, last)
                    && matches!(self.tree.inode(id).content, Content::Directory(_))
                {
                    self.of_layer.insert(id);
                    return Ok(self.tree.set_meta(id, meta)?);
                }
                Content::Directory(BTreeMap::new())
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Content::File { bytes: 0 },
            EntryType::Symlink => Content::Symlink(entry.link_name_bytes().context("a link to nothing")?.into_owned()),
            EntryType::Link => {
                let target = entry.link_name_bytes().context("a link to nothing")?.into_owned();
                let target = self
                    .find(&parts_of_link(&target)?, LastLink::Itself)?
                    .context("a hard link to what is not there")?;
                self.of_layer.insert(target);
                return Ok(self.tree.link(parent, last, target)?);
            }
            EntryType::Block => device(entry, DeviceKind::Block)?,
            EntryType::Char => device(entry, DeviceKind::Character)?,
            EntryType::Fifo => Content::Fifo,
            EntryType::XGlobalHeader => return Ok(()),
            other => bail!("an entry of type {other:?}, which no image has"),
        };
        let at = self.spooled;
        let content = match content {
            Content::File { .. } => {
                let bytes = std::io::copy(entry, &mut self.spool);
                let bytes = bytes.context("a file cannot be unpacked: set TMPDIR to where there is room")?;
                self.spooled += bytes;
                Content::File { bytes }
            }
            other => other,
        };
        let is_file = matches!(content, Content::File { .. });
        let id = self.insert(parent, last, Inode { meta, content })?;
        if is_file {
            self.content.insert(id, Place::Spooled { file: self.file.clone(), at });
        }
        Ok(())
    }

    fn insert(&mut self, parent: InodeId, name: &[u8], inode: Inode) -> anyhow::Result<InodeId> {
        self.inodes += 1;
        ensure!(self.inodes <= INODES_MAX, "the image has more than {INODES_MAX} files");
        let id = self.tree.add(parent, name, inode)?;
        self.of_layer.insert(id);
        Ok(id)
    }

    /// Takes away what lower layers have in a folder, and in those folders in it that this layer has already named.
    fn hide_all(&mut self, folder: InodeId) -> anyhow::Result<()> {
        let mut left = vec![folder];
        while let Some(folder) = left.pop() {
            let Content::Directory(entries) = &self.tree.inode(folder).content else { continue };
            let (named, below): (Vec<_>, Vec<_>) = entries.iter().partition(|(_, id)| self.of_layer.contains(id));
            left.extend(named.into_iter().map(|(_, id)| *id));
            let below: Vec<Vec<u8>> = below.into_iter().map(|(name, _)| name.clone()).collect();
            for name in below {
                self.tree.remove(folder, &name)?;
            }
        }
        Ok(())
    }

    fn hide(&mut self, folder: InodeId, name: &[u8]) -> anyhow::Result<()> {
        match self.tree.child(folder, name) {
            Some(id) if self.of_layer.contains(&id) => self.hide_all(id),
            Some(_) => Ok(self.tree.remove(folder, name).map(drop)?),
            None => Ok(()),
        }
    }

    /// The folder of a path, made where it is not there.
    fn folder(&mut self, parts: &[Vec<u8>]) -> anyhow::Result<InodeId> {
        let mut at = Tree::ROOT;
        for (n, part) in parts.iter().enumerate() {
            at = match self.find(&parts[..=n], LastLink::Followed)? {
                Some(id) if matches!(self.tree.inode(id).content, Content::Directory(_)) => {
                    // Something of this layer lies in it.
                    self.of_layer.insert(id);
                    id
                }
                Some(_) => bail!("'{}' is no folder", part.escape_ascii()),
                None if self.tree.child(at, part).is_some() => bail!("'{}' leads nowhere", part.escape_ascii()),
                None => {
                    let content = Content::Directory(BTreeMap::new());
                    self.insert(at, part, Inode { meta: Meta { permissions: 0o755, ..Meta::default() }, content })?
                }
            };
        }
        Ok(at)
    }

    /// What is at a path, links followed as they would be in the image: never out of it.
    fn find(&self, parts: &[Vec<u8>], last: LastLink) -> anyhow::Result<Option<InodeId>> {
        let mut left: Vec<Vec<u8>> = parts.iter().rev().cloned().collect();
        let (mut at, mut links) = (vec![Tree::ROOT], 0);
        while let Some(part) = left.pop() {
            let here = at.last().copied().unwrap_or(Tree::ROOT);
            if part == b".." {
                if at.len() > 1 {
                    at.pop();
                }
                continue;
            }
            let Some(id) = self.tree.child(here, &part) else { return Ok(None) };
            match &self.tree.inode(id).content {
                Content::Symlink(target) if !left.is_empty() || last == LastLink::Followed => {
                    links += 1;
                    ensure!(links < STEPS_MAX, "links that lead to each other");
                    if target.starts_with(b"/") {
                        at.truncate(1);
                    }
                    let target = target.split(|byte| *byte == b'/').filter(|part| !matches!(part, [] | [b'.']));
                    left.extend(target.map(<[u8]>::to_vec).collect::<Vec<_>>().into_iter().rev());
                }
                _ => at.push(id),
            }
        }
        Ok(at.last().copied())
    }
}

/// The parts of an entry's path, which stays in the image.
fn parts(path: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
    ensure!(path.len() <= 4096, "a path of {} bytes", path.len());
    let parts: Vec<Vec<u8>> =
        path.split(|byte| *byte == b'/').filter(|part| !matches!(part, [] | [b'.'])).map(<[u8]>::to_vec).collect();
    ensure!(!parts.iter().any(|part| part == b".."), "a path that leads out of the image");
    Ok(parts)
}

fn parts_of_link(path: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
    let parts = parts(path)?;
    ensure!(!parts.is_empty(), "a hard link to the root");
    Ok(parts)
}

fn device(entry: &Member<'_, '_>, kind: DeviceKind) -> anyhow::Result<Content> {
    let header = entry.header();
    let number = |of: std::io::Result<Option<u32>>| anyhow::Ok(of?.unwrap_or(0));
    Ok(Content::Device { kind, major: number(header.device_major())?, minor: number(header.device_minor())? })
}

fn meta(entry: &Member<'_, '_>, extended: Records) -> anyhow::Result<Meta> {
    let header = entry.header();
    // Some tools leave a field empty where they mean 0.
    let is_empty = |field: &[u8]| field.iter().all(|byte| matches!(byte, 0 | b' '));
    let number = |field: &[u8], read: std::io::Result<u64>| if is_empty(field) { Ok(0) } else { read };
    let fields = header.as_old();
    let mut meta = Meta {
        permissions: (number(&fields.mode, header.mode().map(u64::from))? & 0o7777) as u16,
        uid: u32::try_from(number(&fields.uid, header.uid())?).context("an owner beyond 32 bits")?,
        gid: u32::try_from(number(&fields.gid, header.gid())?).context("a group beyond 32 bits")?,
        mtime_s: number(&fields.mtime, header.mtime())?.cast_signed(),
        ..Meta::default()
    };
    for (key, value) in extended {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            // Labels of the machine where the layer was made say nothing here.
            if name != b"security.selinux" {
                meta.xattrs.insert(name.to_vec(), value);
            }
            continue;
        }
        let text = std::str::from_utf8(&value).unwrap_or_default();
        ensure!(
            !key.starts_with(b"GNU.sparse."),
            "a sparse file in the form of extended headers, which this build does not read"
        );
        match &key[..] {
            b"mtime" => {
                let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
                meta.mtime_s = seconds.parse().context("a time that is no number")?;
                let digits = format!("{fraction:0<9}");
                meta.mtime_ns = digits.get(..9).and_then(|digits| digits.parse().ok()).unwrap_or(0);
            }
            b"uid" => meta.uid = text.parse().context("an owner that is no number")?,
            b"gid" => meta.gid = text.parse().context("a group that is no number")?,
            _ => {}
        }
    }
    Ok(meta)
}
