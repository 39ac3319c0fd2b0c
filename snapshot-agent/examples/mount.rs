//! Benchmark: a tree mounted by each way, beside the same tree on the local filesystem: long reads, many small ones, storms of
//! stat and open. With a module to import, also a Python process that imports it from nothing: beside a copy of the tree first,
//! squashfs and a plain EROFS image. Needs root. `mount AGENT TREE [MODULE]`; MODULE is imported from TREE.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a benchmark prints and reads the clock")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 9;
const READERS: usize = 256;
const READS: usize = 100;

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn ok(command: &mut Command) -> String {
    let done = command.output().expect("runs");
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

struct Bench {
    agent: PathBuf,
    tree: PathBuf,
    id: String,
    folder: tempfile::TempDir,
}

struct Mount {
    child: Child,
    folder: PathBuf,
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.folder).status());
        drop(self.child.wait());
    }
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn mount(&self, more: &[&str]) -> Mount {
        let folder = self.path("mnt");
        let mut command = Command::new(&self.agent);
        command.arg("mount").arg(&self.id).arg(&folder).args(more).arg("--store").arg(self.path("store"));
        let log = File::create(self.path("log")).expect("a log");
        let child = command.arg("--cache").arg(self.path("cache")).stderr(log).spawn().expect("runs");
        while !fs::read_to_string(self.path("log")).is_ok_and(|said| said.contains(" by ")) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Mount { child, folder }
    }

    /// What the last mount said when it ended.
    fn said(&self) -> String {
        fs::read_to_string(self.path("log")).expect("a log").lines().last().unwrap_or_default().to_owned()
    }
}

fn files(below: &Path) -> Vec<(PathBuf, u64)> {
    let (mut found, mut left) = (Vec::new(), vec![below.to_owned()]);
    while let Some(path) = left.pop() {
        for entry in fs::read_dir(path).expect("read").map(|entry| entry.expect("read")) {
            let meta = entry.metadata().expect("there");
            if meta.is_dir() {
                left.push(entry.path());
            } else if meta.is_file() {
                found.push((entry.path(), meta.len()));
            }
        }
    }
    found.sort();
    found
}

fn long_read(file: &Path) -> f64 {
    let mut buffer = vec![0; 1 << 20];
    seconds(|| {
        let file = File::open(file).expect("open");
        let mut at = 0;
        loop {
            match file.read_at(&mut buffer, at).expect("read") {
                0 => break,
                n => at += n as u64,
            }
        }
    })
}

/// The 99th percentile of reads of 4 KiB by many threads at once, milliseconds.
fn small_reads(file: &Path, bytes: u64, seed: u64) -> f64 {
    let mut times: Vec<f64> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS as u64)
            .map(|reader| {
                scope.spawn(move || {
                    let mut rng = fleet::rng::Rng::new(seed * 1000 + reader);
                    let file = File::open(file).expect("open");
                    let mut buffer = [0; 4096];
                    let mut read = || {
                        let at = rng.below((bytes / 4096) as usize) as u64 * 4096;
                        seconds(|| assert_eq!(file.read_at(&mut buffer, at).expect("read"), 4096))
                    };
                    (0..READS).map(|_| read()).collect::<Vec<f64>>()
                })
            })
            .collect();
        readers.into_iter().flat_map(|reader| reader.join().expect("ended")).collect()
    });
    times.sort_by(f64::total_cmp);
    times[times.len() * 99 / 100] * 1e3
}

fn stats(files: &[PathBuf]) -> f64 {
    seconds(|| assert!(files.iter().all(|file| fs::symlink_metadata(file).is_ok())))
}

fn opens(files: &[PathBuf]) -> f64 {
    let mut buffer = vec![0; 1 << 20];
    let mut read = 0;
    seconds(|| {
        files.iter().for_each(|file| read += File::open(file).expect("open").read_at(&mut buffer, 0).expect("read"))
    })
}

fn drop_caches() {
    ok(Command::new("sync").arg("-f").arg("/"));
    fs::write("/proc/sys/vm/drop_caches", "3").expect("root may");
}

/// Warm, side by side with the tree itself.
fn warm(bench: &Bench, way: &str) {
    let mount = bench.mount(&["--way", way, "--no-prefetch"]);
    let local = files(&bench.tree);
    let (largest, bytes) = local.iter().max_by_key(|(_, bytes)| *bytes).expect("a file").clone();
    let folder = mount.folder.clone();
    let there = |path: &Path| folder.join(path.strip_prefix(&bench.tree).expect("below"));
    let names: Vec<PathBuf> = local.iter().map(|(path, _)| path.clone()).collect();
    let mounted: Vec<PathBuf> = names.iter().map(|path| there(path)).collect();
    // Once, so that all is warm.
    let _ = [opens(&names), opens(&mounted), long_read(&largest), long_read(&there(&largest))];
    let mut times = vec![(Vec::new(), Vec::new()); 4];
    for round in 0..ROUNDS as u64 {
        let measured = [
            (long_read(&largest), long_read(&there(&largest))),
            (stats(&names), stats(&mounted)),
            (opens(&names), opens(&mounted)),
            (small_reads(&largest, bytes, round), small_reads(&there(&largest), bytes, round)),
        ];
        for (all, (local, mounted)) in times.iter_mut().zip(measured) {
            all.0.push(local);
            all.1.push(mounted);
        }
    }
    for (what, (local, mounted)) in
        ["one long read", "stat of every file", "open and read of every file"].iter().zip(&times)
    {
        let (local, mounted) = (median(local.clone()), median(mounted.clone()));
        println!(
            "{way:6} {what:28} local {local:8.3} s, mounted {mounted:8.3} s: {:5.0} % of its speed",
            100.0 * local / mounted
        );
    }
    let (local, mounted) = &times[3];
    let (local, mounted) = (median(local.clone()), median(mounted.clone()));
    println!("{way:6} {READERS} readers of 4 KiB, p99       local {local:8.3} ms, mounted {mounted:8.3} ms");
    // The kernel forgets the mounted file's pages and keeps those of the agent's disk: every read comes to the agent.
    let file = there(&largest);
    let cold = (0..ROUNDS as u64).map(|round| {
        let opened = File::open(&file).expect("open");
        rustix::fs::fadvise(&opened, 0, None, rustix::fs::Advice::DontNeed).expect("forgotten");
        small_reads(&file, bytes, 100 + round)
    });
    println!("{way:6} {READERS} readers of 4 KiB, p99       through the agent {:8.3} ms", median(cold.collect()));
    drop(mount);
    let _mount = bench.mount(&["--way", way, "--no-prefetch"]);
    drop_caches();
    let cold = small_reads(&file, bytes, 77);
    println!("{way:6} {READERS} readers of 4 KiB, p99       after a start, all caches dropped {cold:8.3} ms");
}

fn import(site: &Path, module: &str) -> f64 {
    let mut command = Command::new("python3");
    command.args(["-B", "-c", &format!("import {module}")]).env("PYTHONPATH", site).env("TF_CPP_MIN_LOG_LEVEL", "3");
    command.stdout(Stdio::null()).stderr(Stdio::null());
    seconds(|| assert!(command.status().expect("runs").success(), "{command:?}"))
}

fn cold(bench: &Bench, module: &str) {
    let report = |what: &str, seconds: f64, more: &str| println!("import {what:44} {seconds:8.2} s  {more}");
    drop_caches();
    report("from the local disk", import(&bench.tree, module), "");
    report("again, all warm", import(&bench.tree, module), "");
    drop_caches();
    let copy = bench.path("copy");
    let copied = seconds(|| drop(ok(Command::new("cp").arg("-a").arg(&bench.tree).arg(&copy))));
    report("after a copy of the tree", copied + import(&copy, module), &format!("{copied:.2} s of it the copy"));
    drop(fs::remove_dir_all(&copy));
    for (kind, tool) in [("squashfs", "mksquashfs"), ("erofs", "mkfs.erofs")] {
        let (image, at) = (bench.path(kind), bench.path("plain"));
        let (from, to) = if kind == "erofs" { (&image, &bench.tree) } else { (&bench.tree, &image) };
        let args: &[&str] = if kind == "erofs" { &[] } else { &["-quiet", "-no-progress", "-noI", "-noD", "-noF"] };
        if !Command::new(tool)
            .arg(from)
            .arg(to)
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
        {
            println!("import from {kind}: skipped, no {tool}");
            continue;
        }
        drop_caches();
        ok(Command::new("mount").args(["-t", kind, "-o", "ro,loop"]).args([&image, &at]));
        report(&format!("from a local image, {kind}, uncompressed"), import(&at, module), "");
        ok(Command::new("umount").arg(&at));
        drop(fs::remove_file(&image));
    }
    for way in ["erofs", "fuse"] {
        // What the readers above touched is no run.
        drop(fs::remove_dir_all(bench.path("cache/traces")));
        for (what, more) in [("first run on a host", &["--no-prefetch"][..]), ("on another host, after that run", &[])]
        {
            drop(fs::remove_dir_all(bench.path("cache/leaves")));
            drop_caches();
            let mut imported = 0.0;
            let all = seconds(|| {
                let mount = bench.mount(&[&["--way", way], more].concat());
                imported = import(&mount.folder, module);
                drop(mount);
            });
            report(
                &format!("{way}, {what}"),
                all,
                &format!("mount and all; import alone {imported:.2} s; {}", bench.said()),
            );
        }
        drop_caches();
        let mount = bench.mount(&["--way", way]);
        report(&format!("{way}, on the agent's disk, kernel cold"), import(&mount.folder, module), "");
        report(&format!("{way}, again, all warm"), import(&mount.folder, module), "");
        drop(mount);
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, agent, tree, module @ ..] = &args[..] else { panic!("give AGENT, TREE and perhaps MODULE") };
    // Beside the tree, so that both lie on the same disk.
    let tree = fs::canonicalize(tree).expect("a tree");
    let folder = tempfile::tempdir_in(tree.parent().expect("a parent")).expect("a folder");
    for name in ["store", "mnt", "plain"] {
        fs::create_dir(folder.path().join(name)).expect("a folder");
    }
    let agent = fs::canonicalize(agent).expect("an agent");
    let mut put = Command::new(&agent);
    put.args(["store", "put", "--kind", "image", "--store"]).arg(folder.path().join("store")).arg(&tree);
    let mut id = String::new();
    let took = seconds(|| id = ok(&mut put));
    println!("{} files; stored as an image in {took:.1} s", files(&tree).len());
    let bench = Bench { agent, tree, id, folder };
    ["erofs", "fuse"].iter().for_each(|way| warm(&bench, way));
    module.iter().for_each(|module| cold(&bench, module));
}
