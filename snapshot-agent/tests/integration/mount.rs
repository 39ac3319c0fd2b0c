//! `pilotlight-agent mount`, as people run it: by the kernel's EROFS and by FUSE, whole, damaged, killed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::store::{files, noise};

const PATIENCE: Duration = Duration::from_secs(30);

/// Whether this process may mount. Who may not is told, and nothing is tested.
fn may_mount() -> bool {
    let may = rustix::process::geteuid().is_root() && fs::File::open("/dev/fuse").is_ok();
    if !may {
        eprintln!("skipped: mounting needs root and /dev/fuse");
    }
    may
}

struct Bed {
    folder: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let bed = Self { folder: tempfile::tempdir().expect("a folder") };
        for name in ["store", "mirror", "mnt", "cache"] {
            fs::create_dir(bed.path(name)).expect("a folder");
        }
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn agent(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pilotlight-agent"));
        command.args(args).env("PILOTLIGHT_STORE", self.path("store")).env("PILOTLIGHT_CACHE", self.path("cache"));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.agent(args).output().expect("runs")
    }

    fn put(&self, name: &str, more: &[&str]) -> String {
        self.put_as("image", name, more)
    }

    fn put_as(&self, kind: &str, name: &str, more: &[&str]) -> String {
        let path = self.path(name);
        let args = [&["store", "put", "--kind", kind, path.to_str().expect("text")], more].concat();
        let done = self.run(&args);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    /// What a refused mount says.
    fn refused(&self, args: &[&str]) -> String {
        let done = self.run(&[&["mount"], args].concat());
        assert!(!done.status.success());
        String::from_utf8_lossy(&done.stderr).into_owned()
    }

    fn mount(&self, id: &str, more: &[&str]) -> Mount {
        let mnt = self.path("mnt");
        let log = fs::File::create(self.path("log")).expect("a log");
        let args = [&["mount", id, mnt.to_str().expect("text")], more].concat();
        let child = self.agent(&args).stderr(log).stdout(Stdio::null()).spawn().expect("started");
        let mut mount = Mount { child, folder: mnt.clone(), log: self.path("log") };
        let log = self.path("log");
        let mounted = || is_mounted(&mnt) && fs::read_to_string(&log).is_ok_and(|said| said.contains(" by "));
        mount.wait("it is mounted", mounted);
        mount
    }

    /// Every pack of a store.
    fn packs(&self, store: &str) -> Vec<PathBuf> {
        files(&self.path(store).join("packs"))
    }
}

fn is_mounted(folder: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read");
    table.lines().any(|line| line.split(' ').nth(4) == folder.to_str())
}

/// The process that a watchdog has started.
fn server_of(watchdog: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{watchdog}/task/{watchdog}/children")).expect("read");
    children.split_whitespace().next().map(|pid| pid.parse().expect("a number"))
}

fn is_gone(server: u32) -> bool {
    !Path::new(&format!("/proc/{server}")).exists()
}

struct Mount {
    child: Child,
    folder: PathBuf,
    log: PathBuf,
}

impl Mount {
    #[allow(clippy::disallowed_methods, reason = "patience is of real time")]
    fn wait(&mut self, what: &str, done: impl Fn() -> bool) {
        let began = Instant::now();
        while !done() {
            let ended = self.child.try_wait().expect("watched");
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "{what}: {ended:?}\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }

    fn server(&self) -> Option<u32> {
        server_of(self.child.id())
    }

    /// Waits until another process than `server` serves, and a file can be read.
    fn wait_for_another(&mut self, server: u32, file: &Path) {
        let watchdog = self.child.id();
        let another = move || server_of(watchdog).is_some_and(|now| now != server);
        // What the kernel still knows of a dead one can be read: each says when it has mounted.
        let (log, before) = (self.log.clone(), self.said().matches(" by ").count());
        let has_mounted = move || fs::read_to_string(&log).is_ok_and(|said| said.matches(" by ").count() > before);
        self.wait("another process serves", || another() && has_mounted() && fs::read(file).is_ok());
    }

    fn signal(pid: u32, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process");
        rustix::process::kill_process(pid, signal).expect("sent");
    }

    /// Ends it as a service manager does; what it said.
    fn end(mut self) -> String {
        Self::signal(self.child.id(), rustix::process::Signal::TERM);
        assert!(self.child.wait().expect("ended").success(), "{}", self.said());
        assert!(!is_mounted(&self.folder));
        self.said()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            drop(self.child.kill());
            drop(self.child.wait());
            let _ = rustix::mount::unmount(&self.folder, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// A root filesystem with a bit of everything.
fn some_root(root: &Path) {
    fs::create_dir_all(root.join("usr/lib/python3")).expect("a folder");
    fs::create_dir(root.join("empty")).expect("a folder");
    fs::write(root.join("usr/lib/libtorch.so"), noise(9 << 20, 1)).expect("written");
    fs::write(root.join("usr/lib/zeros"), vec![0; 5 << 20]).expect("written");
    for n in 0..700 {
        let name = format!("{}module_{n}.py", if n % 3 == 0 { "a long name to fill folders with_" } else { "" });
        fs::write(root.join("usr/lib/python3").join(name), format!("x = {n}\n").repeat(n)).expect("written");
    }
    fs::write(root.join("no content"), "").expect("written");
    symlink("usr/lib", root.join("lib")).expect("linked");
    symlink("x".repeat(4000), root.join("to nowhere")).expect("linked");
    fs::hard_link(root.join("usr/lib/libtorch.so"), root.join("usr/lib/libtorch.so.2")).expect("linked");
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o1777)).expect("set");
    rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("made");
    let xattr = rustix::fs::setxattr(root.join("no content"), "user.note", b"kept", rustix::fs::XattrFlags::empty());
    xattr.expect("the test's folder lies on a filesystem with attributes");
    std::os::unix::fs::chown(root.join("usr/lib/zeros"), Some(1234), Some(56_789)).expect("changed");
}

/// What is below a folder, by path: all that a program could see.
fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    let (mut found, mut left) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).expect("there");
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            left.extend(fs::read_dir(&path).expect("read").map(|entry| entry.expect("read").path()));
            "folder".to_owned()
        } else if kind.is_symlink() {
            format!("link to {}", fs::read_link(&path).expect("read").display())
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else {
            let mut note = [0; 16];
            let note = rustix::fs::getxattr(&path, "user.note", &mut note).map_or(0, |bytes| bytes);
            format!("{} bytes, {}, note of {note}", meta.len(), blake3::hash(&fs::read(&path).expect("read")))
        };
        let owner = format!("{:o} {}:{} {}.{}", meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec());
        let links = if kind.is_dir() { 0 } else { meta.nlink() };
        found.insert(path.strip_prefix(root).expect("below").to_owned(), format!("{owner} {links} {what}"));
    }
    found
}

#[test]
fn a_tree_is_mounted_as_it_is() {
    if !may_mount() {
        return;
    }
    for way in ["erofs", "fuse"] {
        let bed = Bed::new();
        some_root(&bed.path("root"));
        let id = bed.put("root", &[]);
        assert_eq!(id, bed.put("root", &[]), "the same folder is the same image");
        let mount = bed.mount(&id, &["--way", way]);
        assert!(mount.said().contains(&format!("by {way}")), "{}", mount.said());
        let (want, found) = (listing(&bed.path("root")), listing(&bed.path("mnt")));
        for (path, what) in &want {
            assert_eq!(found.get(path), Some(what), "{way}: {}", path.display());
        }
        assert_eq!(found.len(), want.len());
        assert!(fs::write(bed.path("mnt/new"), "x").is_err(), "it is read-only");
        let said = mount.end();
        assert!(said.contains("0 failed"), "{said}");
        // What was touched is fetched ahead the next time: without the store it is all there.
        let mount = bed.mount(&id, &["--way", way, "--no-prefetch"]);
        bed.packs("store").iter().for_each(|pack| fs::remove_file(pack).expect("removed"));
        assert_eq!(listing(&bed.path("mnt")), want);
        mount.end();
    }
}

#[test]
fn what_runs_touched_is_fetched_ahead() {
    if !may_mount() {
        return;
    }
    let bed = Bed::new();
    some_root(&bed.path("root"));
    let id = bed.put("root", &[]);
    let cached = || files(&bed.path("cache/leaves")).len();
    let mount = bed.mount(&id, &[]);
    assert_eq!(cached(), 1, "metadata alone");
    fs::read(bed.path("mnt/usr/lib/libtorch.so")).expect("read");
    let touched = cached();
    mount.end();
    fs::remove_dir_all(bed.path("cache/leaves")).expect("removed");
    let mut mount = bed.mount(&id, &[]);
    mount.wait("what was touched is fetched", || cached() == touched);
    mount.end();
}

#[test]
fn readers_get_an_error_or_another_copy() {
    if !may_mount() {
        return;
    }
    let bed = Bed::new();
    some_root(&bed.path("root"));
    let id = bed.put("root", &[]);
    let copy = Command::new("cp").arg("-r").args([bed.path("store/."), bed.path("mirror")]).status();
    assert!(copy.expect("copied").success());
    let mount = bed.mount(&id, &[]);
    for pack in bed.packs("store") {
        let mut bytes = fs::read(&pack).expect("read");
        let from = bytes.len() / 8;
        bytes[from..].iter_mut().step_by(100_000).for_each(|byte| *byte ^= 4);
        fs::write(&pack, bytes).expect("written");
    }
    let error = fs::read(bed.path("mnt/usr/lib/libtorch.so")).expect_err("damaged");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(mount.said().contains("fetch it from another copy"), "{}", mount.said());
    mount.end();
    let mirror = bed.path("mirror");
    let mount = bed.mount(&id, &["--mirror", mirror.to_str().expect("text")]);
    let want = fs::read(bed.path("root/usr/lib/libtorch.so")).expect("read");
    assert_eq!(fs::read(bed.path("mnt/usr/lib/libtorch.so")).expect("read"), want);
    assert!(!mount.end().contains("0 repaired"));
    // What the disk forgot is found at the next start, and fetched again.
    for leaf in files(&bed.path("cache/leaves")) {
        let mut bytes = fs::read(&leaf).expect("read");
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        fs::write(&leaf, bytes).expect("written");
    }
    let mount = bed.mount(&id, &["--no-prefetch", "--mirror", mirror.to_str().expect("text")]);
    assert_eq!(fs::read(bed.path("mnt/usr/lib/libtorch.so")).expect("read"), want);
    mount.end();
}

#[test]
fn what_ends_or_hangs_is_mounted_again() {
    if !may_mount() {
        return;
    }
    for way in ["erofs", "fuse"] {
        let bed = Bed::new();
        some_root(&bed.path("root"));
        let id = bed.put("root", &[]);
        let mut mount = bed.mount(&id, &["--way", way, "--no-prefetch", "--patience-s", "2"]);
        for signal in [rustix::process::Signal::KILL, rustix::process::Signal::STOP] {
            let server = mount.server().expect("a process that serves");
            Mount::signal(server, signal);
            let file = bed.path("mnt/usr/lib/libtorch.so");
            // Meanwhile there may be errors, but each comes: nothing hangs.
            mount.wait_for_another(server, &file);
            drop(fs::remove_dir_all(bed.path("cache/leaves")));
        }
        let said = mount.said();
        assert!(said.contains("mounts again") && said.contains("hangs"), "{said}");
        // Both killed: readers get errors, and the next mount takes what is left away.
        let server = mount.server().expect("a process that serves");
        mount.child.kill().expect("killed");
        mount.child.wait().expect("ended");
        while !is_gone(server) {
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(fs::read(bed.path("mnt/usr/lib/zeros")));
        let mount = bed.mount(&id, &["--way", way]);
        assert_eq!(listing(&bed.path("mnt")), listing(&bed.path("root")));
        assert!(mount.said().contains("taken away"), "{}", mount.said());
        mount.end();
    }
}

/// Removed and collected as far as may be: what is mounted is read to the end, by another process if that must be.
#[test]
fn a_removed_image_lasts_as_long_as_its_mount() {
    if !may_mount() {
        return;
    }
    let bed = Bed::new();
    some_root(&bed.path("root"));
    let id = bed.put("root", &[]);
    let mut mount = bed.mount(&id, &["--no-prefetch"]);
    assert!(bed.run(&["store", "rm", &id]).status.success());
    let collect = || String::from_utf8_lossy(&bed.run(&["store", "gc", "--grace-h", "0"]).stdout).into_owned();
    assert!(collect().starts_with("deleted 0 packs and 0 indexes"));
    let server = mount.server().expect("a process that serves");
    Mount::signal(server, rustix::process::Signal::KILL);
    let want = listing(&bed.path("root"));
    let file = bed.path("mnt/usr/lib/libtorch.so");
    mount.wait_for_another(server, &file);
    assert_eq!(listing(&bed.path("mnt")), want);
    mount.end();
    assert!(collect().starts_with("deleted 1 pack and 1 index"), "nobody reads it any more");
}

#[test]
fn writes_go_to_a_folder() {
    if !may_mount() {
        return;
    }
    let bed = Bed::new();
    some_root(&bed.path("root"));
    let id = bed.put("root", &[]);
    let writable = bed.path("writable");
    let args = ["--writable", writable.to_str().expect("text")];
    let mount = bed.mount(&id, &args);
    // Nobody becomes root by a file of an image, below the overlay or above it.
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read");
    let here: Vec<&str> = table.lines().filter(|line| line.split(' ').nth(4) == bed.path("mnt").to_str()).collect();
    assert!(here.len() == 3 && here.iter().all(|line| line.contains("nosuid") && line.contains("nodev")), "{here:?}");
    fs::write(bed.path("mnt/empty/new"), "new").expect("written");
    fs::write(bed.path("mnt/usr/lib/zeros"), "changed").expect("written");
    mount.end();
    let mount = bed.mount(&id, &args);
    assert_eq!(fs::read_to_string(bed.path("mnt/empty/new")).expect("read"), "new");
    assert_eq!(fs::read_to_string(bed.path("mnt/usr/lib/zeros")).expect("read"), "changed");
    // One umount ends it: the image without what was written is not shown instead.
    let mut mount = mount;
    assert!(Command::new("umount").arg(bed.path("mnt")).status().expect("runs").success());
    assert!(mount.child.wait().expect("ended").success(), "{}", mount.said());
    assert!(!is_mounted(&bed.path("mnt")));
    assert_eq!(fs::metadata(bed.path("root/usr/lib/zeros")).expect("there").len(), 5 << 20);
}

#[test]
fn what_cannot_be_mounted_is_named() {
    let bed = Bed::new();
    fs::create_dir(bed.path("root")).expect("a folder");
    fs::write(bed.path("root/file"), noise(100, 7)).expect("written");
    let id = bed.put("root", &[]);
    let root = bed.path("root");
    let weights = bed.run(&["store", "put", root.to_str().expect("text")]);
    let weights = String::from_utf8_lossy(&weights.stdout).trim().to_owned();
    let mnt = bed.path("mnt");
    let mnt = mnt.to_str().expect("text");
    assert!(bed.refused(&[&weights, mnt]).contains("store it with --kind image or --kind cache"));
    assert!(bed.refused(&[&"0".repeat(64), mnt]).contains("there is no object"));
    assert!(bed.refused(&[&id, "/nowhere/at/all"]).contains("make it first"));
    assert!(bed.refused(&[&id, mnt, "--cache", "/proc"]).contains("cannot hold a cache"));
    assert!(bed.refused(&[&id, mnt, "--cache-gib", "0"]).contains("a number above 0"));
    assert!(bed.refused(&[&id, mnt, "--store", "/nowhere"]).contains("is no store"));
    assert!(bed.refused(&[&id, mnt, "--way", "nbd"]).contains("possible values: erofs, fuse"));
    let file = bed.path("root/file");
    let done = bed.run(&["store", "put", "--kind", "image", file.to_str().expect("text")]);
    assert!(String::from_utf8_lossy(&done.stderr).contains("is no folder"), "{done:?}");
    assert!(!is_mounted(Path::new(mnt)));
}

/// A compile cache is found by names and times: thousands of small files with theirs, and writes above them.
#[test]
fn a_cache_is_mounted_with_its_times() {
    if !may_mount() {
        return;
    }
    let bed = Bed::new();
    for n in 0..1500_u64 {
        let folder = bed.path("inductor").join(format!("{:02}", n % 40));
        fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join(format!("kernel-{n}.cubin"));
        fs::write(&file, noise(300 + n as usize, n)).expect("written");
        let time = std::time::UNIX_EPOCH + Duration::new(1_700_000_000 + n, 123_456_789);
        fs::File::options().write(true).open(file).expect("there").set_modified(time).expect("set");
    }
    let id = bed.put_as("cache", "inductor", &["--compress"]);
    let writes = bed.path("writes");
    let mount = bed.mount(&id, &["--writable", writes.to_str().expect("text")]);
    for n in (0..1500_u64).step_by(37) {
        let name = format!("{:02}/kernel-{n}.cubin", n % 40);
        let meta = fs::metadata(mount.folder.join(&name)).expect("there");
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_700_000_000 + n as i64, 123_456_789), "{name}");
        assert!(fs::read(mount.folder.join(&name)).expect("read") == noise(300 + n as usize, n), "{name}");
    }
    fs::write(mount.folder.join("new"), "x").expect("written");
    // Another mount that would keep its writes in the same folder.
    let other = bed.path("other");
    fs::create_dir(&other).expect("a folder");
    let args = [&id, other.to_str().expect("text"), "--writable", writes.to_str().expect("text")];
    assert!(bed.refused(&args).contains("keeps the writes of another mount"));
}

/// What is written while the process that serves is dead is kept where all writes are, and nothing of it goes below.
#[test]
#[allow(clippy::disallowed_methods, reason = "a restart takes real time")]
fn writes_go_on_while_it_mounts_again() {
    if !may_mount() {
        return;
    }
    for way in ["erofs", "fuse"] {
        let bed = Bed::new();
        some_root(&bed.path("root"));
        let id = bed.put("root", &[]);
        let writes = bed.path("writes");
        let mount = bed.mount(&id, &["--way", way, "--writable", writes.to_str().expect("text")]);
        let server = mount.server().expect("a process that serves");
        Mount::signal(server, rustix::process::Signal::KILL);
        let (began, mut written) = (Instant::now(), Vec::new());
        while mount.server().is_none_or(|now| now == server) || began.elapsed() < Duration::from_secs(4) {
            let name = format!("written-{}", written.len());
            if fs::write(mount.folder.join(&name), "x").is_ok() {
                written.push(name);
            }
            assert!(began.elapsed() < PATIENCE, "it does not mount again");
            std::thread::sleep(Duration::from_millis(2));
        }
        let lost = written.iter().filter(|name| !mount.folder.join(name).exists()).count();
        assert!(lost == 0, "{way}: {lost} of {} are lost", written.len());
        mount.end();
        let below = fs::read_dir(bed.path("mnt")).expect("read").count();
        assert!(below == 0, "{way}: {below} files below");
    }
}
