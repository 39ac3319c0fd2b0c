//! Images from OCI layouts: layers, whiteouts, and layouts made to harm.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use snapshot_agent::snapshots::image::Source;
use snapshots::image::{Content, InodeId, Tree};
use tar::{Builder, EntryType, Header};

/// A layer's archive.
struct Layer {
    archive: Builder<Vec<u8>>,
}

impl Layer {
    fn new() -> Self {
        Self { archive: Builder::new(Vec::new()) }
    }

    fn add(self, kind: EntryType, path: &str, link: &str, content: &[u8]) -> Self {
        self.append(content.len() as u64, kind, path, link, content)
    }

    /// With another length in its header.
    fn add_with(self, length: u64, kind: EntryType, path: &str, content: &[u8]) -> Self {
        self.append(length, kind, path, "", content)
    }

    fn append(mut self, length: u64, kind: EntryType, path: &str, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_700_000_000);
        header.set_size(length);
        // As a hostile tool writes them, unchecked.
        let name = header.as_old_mut();
        name.name[..path.len()].copy_from_slice(path.as_bytes());
        name.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.archive.append(&header, content).expect("appended");
        self
    }

    /// An extended header of the entry that follows.
    fn extended(self, key: &str, value: &[u8]) -> Self {
        self.extended_by(&[(key, value)])
    }

    fn extended_by(self, records: &[(&str, &[u8])]) -> Self {
        let record = |(key, value): &(&str, &[u8])| {
            let rest = key.len() + value.len() + 3;
            let length = (rest..).find(|n| n.to_string().len() + rest == *n).expect("one");
            [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
        };
        let records: Vec<u8> = records.iter().flat_map(record).collect();
        self.add(EntryType::XHeader, "PaxHeader", "", &records)
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.add(EntryType::Regular, path, "", content.as_bytes())
    }

    fn folder(self, path: &str) -> Self {
        self.add(EntryType::Directory, path, "", b"")
    }

    fn bytes(self) -> Vec<u8> {
        self.archive.into_inner().expect("an archive")
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A layout in a folder.
struct Layout {
    folder: tempfile::TempDir,
    layers: Vec<serde_json::Value>,
}

impl Layout {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(folder.path().join("blobs/sha256")).expect("a folder");
        fs::write(folder.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
        Self { folder, layers: Vec::new() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn blob(&self, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        fs::write(self.path().join("blobs/sha256").join(&digest), bytes).expect("written");
        format!("sha256:{digest}")
    }

    fn layer(mut self, kind: &str, layer: Layer) -> Self {
        let bytes = layer.bytes();
        let bytes = match kind {
            "tar+gzip" => {
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(&bytes).expect("compressed");
                out.finish().expect("compressed")
            }
            "tar+zstd" => zstd::encode_all(&bytes[..], 1).expect("compressed"),
            _ => bytes,
        };
        let digest = self.blob(&bytes);
        let media_type = format!("application/vnd.oci.image.layer.v1.{kind}");
        self.layers.push(serde_json::json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}));
        self
    }

    /// Writes manifest and index, one below another as tools do for several platforms.
    fn done(self) -> Self {
        let manifest = self.blob(&serde_json::to_vec(&serde_json::json!({"layers": self.layers})).expect("text"));
        let here = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let of = |architecture, digest: &str| serde_json::json!({"digest": digest, "platform": {"architecture": architecture, "os": "linux"}});
        let other = format!("sha256:{}", "0".repeat(64));
        let nested = serde_json::json!({"manifests": [of("s390x", &other), of(here, &manifest)]});
        let nested = self.blob(&serde_json::to_vec(&nested).expect("text"));
        let index = serde_json::json!({"manifests": [{"digest": nested}]});
        fs::write(self.path().join("index.json"), serde_json::to_vec(&index).expect("text")).expect("written");
        self
    }

    fn refused(&self) -> String {
        format!("{:#}", Source::open(self.path()).expect_err("refused"))
    }
}

/// All paths of a tree; links and lengths behind them.
fn paths(tree: &Tree) -> Vec<String> {
    fn walk(tree: &Tree, id: InodeId, path: &str, out: &mut Vec<String>) {
        match &tree.inode(id).content {
            Content::Directory(entries) => {
                out.push(format!("{path}/"));
                for (name, child) in entries {
                    walk(tree, *child, &format!("{path}/{}", String::from_utf8_lossy(name)), out);
                }
            }
            Content::File { bytes } => out.push(format!("{path} {bytes}")),
            Content::Symlink(target) => out.push(format!("{path} -> {}", String::from_utf8_lossy(target))),
            other => out.push(format!("{path} {other:?}")),
        }
    }
    let mut out = Vec::new();
    walk(tree, Tree::ROOT, "", &mut out);
    out
}

#[test]
fn layers_lie_one_above_the_other() {
    let lower = Layer::new()
        .folder("usr/")
        .folder("./usr/lib")
        .add(EntryType::Symlink, "lib", "usr/lib", b"")
        .file("usr/lib/a", "aaa")
        .file("usr/lib/b", "bb")
        .add(EntryType::Link, "usr/lib/b2", "usr/lib/b", b"")
        .file("var/cache/old", "old")
        .file("var/cache/sub/older", "older")
        .file("gone", "x");
    let middle = Layer::new()
        .file("usr/lib/.wh.a", "")
        .file("var/cache/new", "new")
        .file("var/cache/.wh..wh..opq", "")
        .file(".wh.gone", "")
        .file("lib/through-the-link", "12345")
        .file(".wh.never-there", "");
    let upper = Layer::new().file("/usr/lib/b", "changed").add(EntryType::Fifo, "pipe", "", b"");
    let layout = Layout::new().layer("tar", lower).layer("tar+gzip", middle).layer("tar+zstd", upper).done();
    let source = Source::open(layout.path()).expect("an image");
    let want = [
        "/",
        "/lib -> usr/lib",
        "/pipe Fifo",
        "/usr/",
        "/usr/lib/",
        "/usr/lib/b 7",
        "/usr/lib/b2 2",
        "/usr/lib/through-the-link 5",
        "/var/",
        "/var/cache/",
        "/var/cache/new 3",
    ];
    assert_eq!(paths(&source.tree), want);
    let b = source.tree.child(source.tree.child(source.tree.child(Tree::ROOT, b"usr").unwrap(), b"lib").unwrap(), b"b");
    let meta = &source.tree.inode(b.unwrap()).meta;
    assert_eq!((meta.uid, meta.gid, meta.mtime_s, meta.permissions), (7, 8, 1_700_000_000, 0o644));
    assert_eq!(source.bytes(), 7 + 2 + 5 + 3, "what no name leads to is not counted");
}

#[test]
fn an_opaque_folder_hides_what_is_below_wherever_it_stands() {
    let lower = || Layer::new().file("a/old", "1").file("a/b/older", "1").file("a/c/oldest", "1");
    let marks = |layer: Layer| layer.file("a/.wh..wh..opq", "");
    let first = |layer: Layer| layer.folder("a").file("a/b/new", "22").folder("a/c");
    for upper in [first(marks(Layer::new())), marks(first(Layer::new()))] {
        let layout = Layout::new().layer("tar", lower()).layer("tar", upper).done();
        let source = Source::open(layout.path()).expect("an image");
        assert_eq!(paths(&source.tree), ["/", "/a/", "/a/b/", "/a/b/new 2", "/a/c/"]);
    }
}

/// The same of one name, before and after what the layer has below it.
#[test]
fn a_whiteout_hides_what_is_below_wherever_it_stands() {
    let lower = || Layer::new().file("a/secret", "1").file("b", "1");
    for upper in
        [Layer::new().file(".wh.a", "").file("a/new", "22"), Layer::new().file("a/new", "22").file(".wh.a", "")]
    {
        let layout = Layout::new().layer("tar", lower()).layer("tar", upper).done();
        let source = Source::open(layout.path()).expect("an image");
        assert_eq!(paths(&source.tree), ["/", "/a/", "/a/new 2", "/b 1"]);
    }
}

#[test]
fn extended_headers_are_read_by_their_lengths() {
    // Revision 3 of the kernel's `vfs_ns_cap_data`, with a byte that is a line's end.
    let capability = [1, 0, 0, 3, 0x0a, 0, 0, 0, 0, 0, 0, 0, b'\n', b'7', b' ', b'a', b'=', 0, 0, 0];
    let layer = Layer::new()
        .extended("SCHILY.xattr.security.capability", &capability)
        .file("bin", "x")
        .file("plain", "y")
        .extended("mtime", b"1700000001.25")
        .file("later", "z");
    let source = Source::open(Layout::new().layer("tar", layer).done().path()).expect("an image");
    let meta = |name: &[u8]| &source.tree.inode(source.tree.child(Tree::ROOT, name).expect("there")).meta;
    assert_eq!(meta(b"bin").xattrs[&b"security.capability"[..]], capability);
    assert!(meta(b"plain").xattrs.is_empty());
    // What follows a value with a line's end is read as what it is: a name, and a length that the header does not have.
    let value = b"\n12 path=zzz\nx".as_slice();
    let layer = Layer::new()
        .extended_by(&[("SCHILY.xattr.user.a", value), ("path", b"a-name"), ("size", b"3")])
        .add_with(0, EntryType::Regular, "another", b"abc")
        .file("last", "z");
    let other = Source::open(Layout::new().layer("tar", layer).done().path()).expect("an image");
    assert_eq!(paths(&other.tree), ["/", "/a-name 3", "/last 1"]);
    let named = other.tree.inode(other.tree.child(Tree::ROOT, b"a-name").expect("there"));
    assert_eq!(named.meta.xattrs[&b"user.a"[..]], value);
    assert_eq!((meta(b"later").mtime_s, meta(b"later").mtime_ns), (1_700_000_001, 250_000_000));
}

/// As some tools write archives: no owner, no group, no time.
#[test]
fn an_empty_field_is_zero() {
    let mut header = Header::new_ustar();
    header.set_size(1);
    header.set_entry_type(EntryType::Regular);
    header.set_path("a").expect("a name");
    header.set_mode(0o600);
    let old = header.as_old_mut();
    (old.uid, old.gid, old.mtime) = ([0; 8], [b' '; 8], [0; 12]);
    header.set_cksum();
    let mut layer = Layer::new();
    layer.archive.append(&header, &b"x"[..]).expect("appended");
    let source = Source::open(Layout::new().layer("tar", layer).done().path()).expect("an image");
    let meta = &source.tree.inode(source.tree.child(Tree::ROOT, b"a").expect("there")).meta;
    assert_eq!((meta.uid, meta.gid, meta.mtime_s, meta.permissions), (0, 0, 0, 0o600));
}

#[test]
fn what_harms_is_named() {
    let one = |layer: Layer| Layout::new().layer("tar", layer).done().refused();
    let long = vec![b'x'; 2 << 20];
    assert!(one(Layer::new().extended("comment", &long).file("a", "x")).contains("at most 1048576 are read"));
    let name = Layer::new().add(EntryType::GNULongName, "././@LongLink", "", &long).file("a", "x");
    assert!(one(name).contains("at most 1048576 are read"));
    let twice = Layer::new().extended_by(&[("size", b"0"), ("size", b"1073741824")]).file("a", "x");
    assert!(one(twice).contains("says size twice"));
    assert!(one(Layer::new().extended("path", b"a\nb").file("a", "x")).contains("holds a line's end"));
    let broken = Layer::new().add(EntryType::XHeader, "PaxHeader", "", b"99 a=b\n").file("a", "x");
    assert!(one(broken).contains("extended headers that make no sense"));
    assert!(one(Layer::new().file("../../etc/passwd", "x")).contains("leads out of the image"));
    assert!(one(Layer::new().file("a/../../b", "x")).contains("leads out of the image"));
    assert!(one(Layer::new().add(EntryType::Link, "a", "nothing", b"")).contains("what is not there"));
    assert!(one(Layer::new().add(EntryType::Link, "a", "../../etc/shadow", b"")).contains("leads out of the image"));
    assert!(one(Layer::new().file("a", "x").file("a/b", "x")).contains("is no folder"));
    let circle = Layer::new().add(EntryType::Symlink, "a", "b", b"").add(EntryType::Symlink, "b", "a", b"");
    assert!(one(circle.file("a/x", "x")).contains("links that lead to each other"));
    // A link out of the image leads to its own root.
    let out = Layer::new().add(EntryType::Symlink, "a", "../../../b", b"").folder("b").file("a/x", "x");
    let layout = Layout::new().layer("tar", out).done();
    assert_eq!(paths(&Source::open(layout.path()).expect("an image").tree), ["/", "/a -> ../../../b", "/b/", "/b/x 1"]);
    let layout = Layout::new().layer("tar+brotli", Layer::new()).done();
    assert!(layout.refused().contains("are not known to this build"));
    let layout = Layout::new().layer("tar", Layer::new().file("a", "x")).done();
    let blobs: Vec<PathBuf> =
        fs::read_dir(layout.path().join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path()).collect();
    for blob in blobs {
        let bytes = fs::read(&blob).unwrap();
        let mut changed = bytes.clone();
        let last = changed.len() - 1;
        changed[last] ^= 1;
        fs::write(&blob, changed).unwrap();
        let said = layout.refused();
        assert!(said.contains("another content") || said.contains("has the digest"), "{said}");
        fs::write(&blob, bytes).unwrap();
    }
    fs::write(layout.path().join("index.json"), r#"{"manifests": [{"digest": "sha256:../../../etc/passwd"}]}"#)
        .unwrap();
    assert!(layout.refused().contains("no SHA-256 digest"));
    fs::write(layout.path().join("index.json"), "7").unwrap();
    assert!(layout.refused().contains("no index and no manifest"));
}
