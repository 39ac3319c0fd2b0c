//! Device memory of captured processes, by the library that is preloaded into them and this host's own child, with CRIU. CUDA's
//! driver is one that keeps device memory in memory files; on a GPU the same code runs by `make bench-restore`.
#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fleet::rng::Rng;

use crate::restore::{changed, criu, got};
use crate::stand::Stand;
use crate::store::turns;

const PATIENCE: Duration = Duration::from_secs(60);

struct Bed {
    stand: Stand,
    criu: PathBuf,
    port: u16,
    gpus: u32,
}

/// What cargo built of a library beside the tests.
fn built(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("a path");
    let deps = tests.parent().expect("a folder");
    let found = [deps.join(name), deps.parent().expect("a folder").join(name)].into_iter().find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} was not built"))
}

impl Bed {
    fn new(gpus: u32) -> Option<Self> {
        let criu = criu()?;
        let stand = Stand::healthy(gpus);
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
        let bed = Self { stand, criu, port, gpus };
        for name in ["store", "state", "cuda", "driver"] {
            fs::create_dir(bed.path(name)).expect("a folder");
        }
        let driver = bed.path("driver/libcuda.so.1");
        std::os::unix::fs::symlink(built("libcuda_stand_in.so"), &driver).expect("linked");
        std::os::unix::fs::symlink(&driver, bed.path("driver/libcuda.so")).expect("linked");
        bed.recipe(48, 0.0, "");
        Some(bed)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.stand.root().join(name)
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn recipe(&self, mib: u32, zeros: f64, more: &str) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/workloads/device.py");
        let (port, gpus) = (self.port, self.gpus);
        let (driver, folder) = (self.path("driver"), self.path("cuda"));
        let text = format!(
            "command = ['python3', '{script}', '{port}', '{gpus}', '{mib}', '{zeros}']\n\
             environment = {{ LD_LIBRARY_PATH = '{}', CUDA_STAND_IN_FOLDER = '{}', CUDA_STAND_IN_GPUS = '{gpus}' }}\n{more}\n\
             [ready]\nurl = '{}'\nwithin_s = 30\n[canary]\nurl = '{}'\n",
            driver.display(),
            folder.display(),
            self.url("/health"),
            self.url("/canary"),
        );
        fs::write(self.path("recipe.toml"), text).expect("written");
    }

    fn agent(&self, args: &[&str]) -> Command {
        let mut command = self.stand.agent(args);
        command.env("PILOTLIGHT_STORE", self.path("store")).env("PILOTLIGHT_CRIU", &self.criu);
        command.env("PILOTLIGHT_STATE", self.path("state")).env("PILOTLIGHT_INTERPOSERS", self.path("interposers"));
        command.env("LD_LIBRARY_PATH", self.path("driver")).env("CUDA_STAND_IN_FOLDER", self.path("cuda"));
        command.env("CUDA_STAND_IN_GPUS", self.gpus.to_string());
        command
    }

    /// The id, or what was said.
    fn capture(&self) -> Result<String, String> {
        let recipe = self.path("recipe.toml").display().to_string();
        let done = self.agent(&["capture", &recipe]).output().expect("runs");
        if !done.status.success() {
            return Err(String::from_utf8_lossy(&done.stderr).into_owned());
        }
        let id = String::from_utf8_lossy(&done.stdout).trim().to_owned();
        // A cold start takes no time here, so that a restore would never be worth it.
        Ok(changed(|args| self.agent(args), &self.path("copy"), &id, |captured| captured["cold_s"] = 60.into()))
    }

    fn get(&self, path: &str) -> Option<String> {
        got(&self.url(path))
    }

    fn said(&self) -> String {
        fs::read_to_string(self.path("said")).unwrap_or_default()
    }

    fn start(&self, mut command: Command) -> Child {
        let log = fs::File::create(self.path("said")).expect("a log");
        command.stderr(log).stdout(Stdio::null()).stdin(Stdio::piped()).spawn().expect("started")
    }

    fn wait(&self, child: &mut Child, what: &str) {
        let began = Instant::now();
        while !self.said().contains(what) {
            let ended = child.try_wait().expect("a child");
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "{what}: {ended:?} {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Brought up with variables of the driver; what was said, and its canary.
    fn restored(&self, id: &str, args: &[&str], variables: &[(&str, &str)]) -> (String, String) {
        // The driver's stand-in knows a process by its number, which cold starts have had since.
        fs::write(self.path("cuda/state-10000"), "2").expect("written");
        let mut command = self.agent(&[&["restore", id], args].concat());
        command.envs(variables.iter().copied());
        let mut child = self.start(command);
        self.wait(&mut child, "ready by");
        let canary = self.get("/canary").expect("it serves");
        assert!(self.get("/more").is_some(), "it allocates");
        let shared = self.get("/share").expect("it answers");
        assert!(shared == "0" || shared.starts_with("0 801") || said_cold(&self.said()), "{shared}");
        stop(child);
        (self.said(), canary)
    }
}

fn said_cold(said: &str) -> bool {
    said.contains("ready by cold start")
}

fn stop(mut child: Child) {
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)
        .expect("there");
    child.wait().expect("ended");
}

#[test]
fn device_memory_comes_back_where_it_was() {
    let Some(bed) = Bed::new(1) else { return };
    bed.recipe(128, 0.0, "");
    let id = bed.capture().expect("captured");
    let (said, canary) = bed.restored(&id, &[], &[]);
    assert!(said.contains("ready by restore"), "{said}");
    // What is no bulk may be shared, what is bulk is said not to be.
    assert!(said.contains("this workload shares device memory by CUDA IPC"), "{said}");
    // Bulk memory is in a stream of its own, and nowhere else.
    let copy = bed.path("copy").display().to_string();
    assert!(bed.agent(&["store", "get", &id, &copy]).status().expect("runs").success());
    let streams = fs::read_dir(bed.path("copy/device")).expect("a folder").flatten();
    let lengths: Vec<u64> = streams.map(|entry| entry.metadata().expect("there").len()).collect();
    assert_eq!(lengths, [(4 + 122) << 20]);
    let host: u64 =
        crate::store::files(&bed.path("copy/host")).iter().map(|path| fs::metadata(path).expect("there").len()).sum();
    assert!(host < 80 << 20, "{host}");
    // Twice, and with little memory; what was asked before gives the same answer.
    assert_eq!(bed.restored(&id, &["--memory-gib", "0.01"], &[]).1, canary);
    let other = bed.restored(&id, &[], &[("CUDA_STAND_IN_FAIL", "cuCheckpointProcessRestore=1")]);
    assert!(
        other.0.contains("Restore: the driver answers 1") && other.0.contains("ready by cold start"),
        "{}",
        other.0
    );
}

#[test]
fn one_without_bulk_memory_goes_on_too() {
    let Some(bed) = Bed::new(1) else { return };
    bed.recipe(16, 0.0, &format!("warm_up = [['curl', '-sf', '{}']]", bed.url("/free")));
    let id = bed.capture().expect("captured");
    let (said, _) = bed.restored(&id, &[], &[]);
    assert!(said.contains("ready by restore"), "{said}");
}

#[test]
fn several_gpus_come_back_with_access_between_them() {
    let Some(bed) = Bed::new(2) else { return };
    bed.recipe(32, 0.0, &format!("warm_up = [['curl', '-sf', '{}']]", bed.url("/peers")));
    let id = bed.capture().expect("captured");
    // The driver's stand-in refuses, as the driver does, what had access when it was taken off the GPUs.
    let (said, _) = bed.restored(&id, &[], &[]);
    assert!(said.contains("ready by restore"), "{said}");
    let enabled = fs::read_to_string(bed.path("cuda/peers-10000")).expect("noted");
    assert_eq!(enabled, "1");
}

#[test]
fn what_would_be_lost_is_refused_before_anything_is_stopped() {
    let Some(bed) = Bed::new(2) else { return };
    let refused = |recipe: &str, why: &str| {
        bed.recipe(16, 0.0, recipe);
        let said = bed.capture().expect_err("refused");
        assert!(said.contains(why), "{why}: {said}");
        let store = bed.agent(&["store", "ls"]).output().expect("runs");
        assert!(String::from_utf8_lossy(&store.stdout).starts_with("no objects"));
        let state = fs::read_to_string(bed.path("cuda/state-10000")).expect("noted");
        assert_eq!(state, "0", "it was not even locked");
    };
    let asks = |path: &str| format!("warm_up = [['curl', '-sf', '{}']]", bed.url(path));
    refused(&asks("/managed"), "has managed memory (1), which the driver cannot bring back");
}

#[test]
fn what_allocates_while_it_is_captured_is_told_to_stop() {
    let Some(bed) = Bed::new(1) else { return };
    bed.recipe(16, 0.0, &format!("before_capture = [['curl', '-sf', '{}']]", bed.url("/allocating")));
    // On a busy machine it may allocate nothing just then, and is rightly captured.
    let said = (0..10).find_map(|_| bed.capture().err()).expect("refused");
    assert!(said.contains("allocated or freed while it was captured: have before_capture stop it"), "{said}");
}

#[test]
fn a_restore_that_fails_starts_cold() {
    let Some(bed) = Bed::new(1) else { return };
    let id = bed.capture().expect("captured");
    for (variables, why) in [
        (("CUDA_STAND_IN_FAIL", "cuMemCreate=2"), "CUDA_ERROR_OUT_OF_MEMORY"),
        (("CUDA_STAND_IN_FAIL", "cuMemcpyHtoDAsync=700"), "CUDA_ERROR_ILLEGAL_ADDRESS"),
        (("CUDA_STAND_IN_FREE_MIB", "500"), "another process holds it"),
    ] {
        let (said, _) = bed.restored(&id, &["--forget"], &[variables]);
        assert!(said.contains(why) && said.contains("ready by cold start"), "{why}: {said}");
    }
    // In the process itself, when it takes its memory back.
    bed.recipe(48, 0.0, "");
    let text = fs::read_to_string(bed.path("recipe.toml")).expect("read");
    let failing = text.replace(
        "CUDA_STAND_IN_GPUS = '1'",
        "CUDA_STAND_IN_GPUS = '1', CUDA_STAND_IN_FAIL = 'cuMemImportFromShareableHandle=1'",
    );
    fs::write(bed.path("recipe.toml"), failing).expect("written");
    let id = bed.capture().expect("captured");
    let (said, _) = bed.restored(&id, &[], &[]);
    assert!(said.contains("cuMemImportFromShareableHandle: the driver answers 1 in the workload"), "{said}");
    assert!(said.contains("ready by cold start"), "{said}");
}

#[test]
fn zeros_are_neither_stored_nor_read() {
    let Some(bed) = Bed::new(1) else { return };
    bed.recipe(200, 0.9, "");
    let id = bed.capture().expect("captured");
    let stored: u64 =
        crate::store::files(&bed.path("store/packs")).iter().map(|path| fs::metadata(path).expect("there").len()).sum();
    assert!(stored < 60 << 20, "{stored}");
    let (said, _) = bed.restored(&id, &[], &[]);
    assert!(said.contains("ready by restore"), "{said}");
}

#[test]
fn one_that_stands_by_starts_at_a_word() {
    let Some(bed) = Bed::new(1) else { return };
    let id = bed.capture().expect("captured");
    let mut child = bed.start(bed.agent(&["restore", &id, "--standby"]));
    bed.wait(&mut child, "stands by");
    assert!(bed.get("/health").is_none());
    child.stdin.as_mut().expect("piped").write_all(b"\n").expect("heard");
    bed.wait(&mut child, "ready by restore");
    assert!(bed.get("/canary").is_some());
    stop(child);
}

impl Bed {
    /// Processes that have this bed in their environment, with their names and arguments.
    fn processes(&self) -> Vec<(i32, String)> {
        let folder = self.stand.root().display().to_string();
        let of = |entry: fs::DirEntry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let ours = environment.windows(folder.len()).any(|part| part == folder.as_bytes());
            let words = fs::read(entry.path().join("cmdline")).ok()?;
            ours.then(|| (pid, String::from_utf8_lossy(&words).replace('\0', " ")))
        };
        fs::read_dir("/proc").expect("there").flatten().filter_map(of).collect()
    }
}

/// Whatever is killed, whenever: the workload comes up all the same, or ends; and nothing of it is left after its agent.
#[test]
fn killed_at_any_moment_device_memory_is_free() {
    let Some(bed) = Bed::new(1) else { return };
    let id = bed.capture().expect("captured");
    let seed = turns("SEED", 29);
    let mut rng = Rng::new(seed);
    let kill = |pid: i32| {
        // It may have ended meanwhile.
        let pid = rustix::process::Pid::from_raw(pid).expect("a number");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    };
    for turn in 0..turns("KILLS", 8) {
        let victim = ["restore", "criu", "device.py", "probe"][rng.below(4)];
        fs::write(bed.path("cuda/state-10000"), "2").expect("written");
        let mut child = bed.start(bed.agent(&["restore", &id, "--forget"]));
        std::thread::sleep(Duration::from_micros(rng.below(450_000) as u64));
        let found = bed.processes().into_iter().find(|(_, words)| words.contains(victim));
        if let Some((pid, _)) = found {
            kill(pid);
        }
        let began = Instant::now();
        while !bed.said().contains("ready by") && child.try_wait().expect("a child").is_none() {
            assert!(began.elapsed() < PATIENCE, "turn {turn} of seed {seed}, {victim}: {}", bed.said());
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().expect("ended, or killed");
        child.wait().expect("ended");
        let began = Instant::now();
        while !bed.processes().is_empty() {
            let left = bed.processes();
            assert!(began.elapsed() < Duration::from_secs(5), "turn {turn} of seed {seed}, {victim}: {left:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let (said, _) = bed.restored(&id, &["--forget"], &[]);
    assert!(said.contains("ready by restore"), "{said}");
}
