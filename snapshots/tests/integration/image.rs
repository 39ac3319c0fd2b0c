//! Trees become images, and what reads images trusts none.

use std::collections::BTreeMap;

use fleet::rng::Rng;
use proptest::prelude::*;
use snapshots::image::{Content, DeviceKind, Image, Inode, InodeId, Meta, Nid, NodeKind, Tree, lay_out};

/// What a tree has under a path, said in one line: comparable, whoever says it.
type Listing = BTreeMap<String, String>;

fn listing_of_tree(tree: &Tree, id: InodeId, path: &str, out: &mut Listing) {
    let inode = tree.inode(id);
    let meta = &inode.meta;
    let common = format!("{:o} {}:{} {}.{:09}", meta.permissions, meta.uid, meta.gid, meta.mtime_s, meta.mtime_ns);
    let what = match &inode.content {
        Content::Directory(entries) => {
            for (name, child) in entries {
                listing_of_tree(tree, *child, &format!("{path}/{}", name.escape_ascii()), out);
            }
            "folder".to_owned()
        }
        Content::File { bytes } => format!("file {bytes}"),
        Content::Symlink(target) => format!("link {}", target.escape_ascii()),
        Content::Device { kind, major, minor } => format!("{kind:?} {major}:{minor}"),
        Content::Fifo => "fifo".into(),
        Content::Socket => "socket".into(),
    };
    let xattrs: Vec<_> =
        meta.xattrs.iter().map(|(n, v)| format!("{}={}", n.escape_ascii(), v.escape_ascii())).collect();
    out.insert(path.into(), format!("{common} {what} {xattrs:?}"));
}

fn listing_of_image(image: &Image, nid: Nid, path: &str, out: &mut Listing) {
    let inode = image.inode(nid).expect("an inode");
    let common = format!("{:o} {}:{} {}.{:09}", inode.permissions, inode.uid, inode.gid, inode.mtime_s, inode.mtime_ns);
    let what = match inode.kind {
        NodeKind::Directory => {
            for entry in image.entries(nid).expect("names") {
                if entry.name != b"." && entry.name != b".." {
                    listing_of_image(image, entry.nid, &format!("{path}/{}", entry.name.escape_ascii()), out);
                }
            }
            "folder".to_owned()
        }
        NodeKind::File { .. } => format!("file {}", inode.bytes),
        NodeKind::Symlink => format!("link {}", image.link(nid).expect("a link").escape_ascii()),
        NodeKind::Device { kind, number } => {
            format!("{kind:?} {}:{}", number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xf_ff00)
        }
        NodeKind::Fifo => "fifo".into(),
        NodeKind::Socket => "socket".into(),
    };
    let xattrs = image.xattrs(nid).expect("attributes");
    let mut xattrs: Vec<_> = xattrs.iter().map(|(n, v)| (n.escape_ascii(), v.escape_ascii())).collect();
    xattrs.sort_by_key(|(name, _)| name.to_string());
    let xattrs: Vec<_> = xattrs.iter().map(|(n, v)| format!("{n}={v}")).collect();
    out.insert(path.into(), format!("{common} {what} {xattrs:?}"));
}

/// A tree with a bit of everything: long names, many names, long links, attributes that fill blocks.
fn any_tree(seed: u64, inodes: usize) -> Tree {
    let mut rng = Rng::new(seed);
    let meta = |rng: &mut Rng| {
        let mut xattrs = BTreeMap::new();
        if rng.below(8) == 0 {
            let value = vec![rng.bits() as u8; rng.below(6_000)];
            xattrs.insert(format!("user.{}", "n".repeat(1 + rng.below(40))).into_bytes(), value);
            xattrs.insert(b"security.capability".to_vec(), vec![1; 20]);
        }
        Meta {
            permissions: rng.below(0o10_000) as u16,
            uid: rng.bits() as u32,
            gid: rng.bits() as u32,
            mtime_s: rng.below(1 << 40) as i64 - (1 << 20),
            mtime_ns: rng.below(1_000_000_000) as u32,
            xattrs,
        }
    };
    let mut tree = Tree::new(meta(&mut rng)).expect("a root");
    let (mut folders, mut others) = (vec![Tree::ROOT], Vec::new());
    for n in 0..inodes {
        let parent = folders[rng.below(folders.len())];
        // Below and above the points of '.' and '..', and long.
        let name = format!("{}{n}{}", ["", "+", "."][rng.below(3)], "x".repeat(rng.below(200))).into_bytes();
        let content = match rng.below(10) {
            0 | 1 => Content::Directory(BTreeMap::new()),
            2 => Content::Symlink(vec![b'/'; 1 + rng.below(4095)]),
            3 => Content::Device {
                kind: DeviceKind::Character,
                major: rng.below(4096) as u32,
                minor: rng.below(1 << 20) as u32,
            },
            4 => Content::Fifo,
            5 if !others.is_empty() => {
                tree.link(parent, &name, others[rng.below(others.len())]).expect("linked");
                continue;
            }
            _ => Content::File { bytes: [0, 1, 4095, 4096, 4097, 1 << 33][rng.below(6)] },
        };
        let is_folder = matches!(content, Content::Directory(_));
        let id = tree.add(parent, &name, Inode { meta: meta(&mut rng), content }).expect("added");
        if is_folder { folders.push(id) } else { others.push(id) }
    }
    tree
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_tree_comes_out_as_it_went_in(seed: u64, inodes in 0_usize..600) {
        let tree = any_tree(seed, inodes);
        let laid = lay_out(&tree).expect("it fits");
        let image = Image::open(&laid.meta, laid.bytes).expect("an image");
        image.check().expect("all of it");
        let (mut put, mut read) = (Listing::new(), Listing::new());
        listing_of_tree(&tree, Tree::ROOT, "", &mut put);
        listing_of_image(&image, image.root(), "", &mut read);
        prop_assert_eq!(put, read);
        // Files follow each other, each from the beginning of a block.
        let blocks: u64 = laid.files.iter().map(|file| file.bytes.div_ceil(4096)).sum();
        prop_assert_eq!(laid.meta.len() as u64 + blocks * 4096, laid.bytes);
    }

    /// Whatever was changed, a check ends, and what passes it can be walked without a fault.
    #[test]
    fn no_change_gets_past_the_check(seed: u64, changes in 1_usize..20) {
        let mut rng = Rng::new(seed);
        let mut laid = lay_out(&any_tree(seed, 60)).expect("it fits");
        for _ in 0..changes {
            let at = 1024 + rng.below(laid.meta.len() - 1024);
            laid.meta[at] = rng.bits() as u8;
        }
        if let Ok(image) = Image::open(&laid.meta, laid.bytes)
            && image.check().is_ok()
        {
            listing_of_image(&image, image.root(), "", &mut Listing::new());
        }
    }
}

#[test]
fn what_is_no_image_is_named() {
    let laid = lay_out(&any_tree(1, 20)).expect("it fits");
    let said = |meta: &[u8], bytes| Image::open(meta, bytes).expect_err("refused").to_string();
    assert!(said(&[], 0).contains("no superblock"));
    assert!(said(&laid.meta[..2048], 2048).contains("no superblock"));
    assert!(said(&laid.meta, laid.bytes + 1).contains("no superblock"));
    let mut newer = laid.meta.clone();
    newer[1024 + 80] = 1;
    assert!(said(&newer, laid.bytes).contains("update it"));
}

/// A folder that lies in itself, and a file that begins in the metadata.
#[test]
fn what_would_harm_a_kernel_is_refused() {
    let mut tree = Tree::new(Meta::default()).expect("a root");
    let folder = || Inode { meta: Meta::default(), content: Content::Directory(BTreeMap::new()) };
    let a = tree.add(Tree::ROOT, b"a", folder()).expect("added");
    tree.add(a, b"b", folder()).expect("added");
    tree.add(Tree::ROOT, b"f", Inode { meta: Meta::default(), content: Content::File { bytes: 5000 } }).expect("added");
    let laid = lay_out(&tree).expect("it fits");
    let image = Image::open(&laid.meta, laid.bytes).expect("an image");
    let nid = |folder, name: &[u8]| {
        image.entries(folder).expect("names").iter().find(|entry| entry.name == name).expect("there").nid
    };
    let (a, f) = (nid(image.root(), b"a"), nid(image.root(), b"f"));
    let b = nid(a, b"b");
    // 'b' in 'a' becomes 'a' itself.
    let mut harmful = laid.meta.clone();
    // Behind its inode and the entries of '.' and '..'.
    let at = a.0 as usize * 32 + 64 + 24;
    assert_eq!(harmful[at..at + 8], b.0.to_le_bytes());
    harmful[at..at + 8].copy_from_slice(&a.0.to_le_bytes());
    let said = Image::open(&harmful, laid.bytes).expect("an image").check().expect_err("refused").to_string();
    assert!(said.contains("two names"), "{said}");
    let mut harmful = laid.meta.clone();
    let block = f.0 as usize * 32 + 16;
    harmful[block..block + 4].fill(0);
    let said = Image::open(&harmful, laid.bytes).expect("an image").check().expect_err("refused").to_string();
    assert!(said.contains("outside the image"), "{said}");
}
