//! `pilotlight-agent capture` and `restore`, as people run them, with CRIU and a real process: memory, threads, a child behind
//! pipes, an open file, a listening socket.
#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fleet::rng::Rng;
use serde_json::Value;

use crate::store::turns;

const PATIENCE: Duration = Duration::from_secs(60);

/// CRIU, if it is there and this process may use it.
pub fn criu() -> Option<PathBuf> {
    let built = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/criu/criu"));
    let found = std::env::var_os("PILOTLIGHT_CRIU").map(PathBuf::from).or_else(|| built.exists().then(|| built.into()));
    let found = found.filter(|_| rustix::process::geteuid().is_root());
    if found.is_none() {
        eprintln!("skipped: captured processes need root and CRIU; 'make criu' brings it");
    }
    found
}

/// What is answered at an address, if it is.
pub fn got(url: &str) -> Option<String> {
    let done = Command::new("curl").args(["-sf", "--max-time", "5", url]).output().expect("curl");
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
}

/// The same snapshot with its description changed.
pub fn changed(agent: impl Fn(&[&str]) -> Command, copy: &Path, id: &str, change: impl FnOnce(&mut Value)) -> String {
    let folder = copy.display().to_string();
    assert!(agent(&["store", "get", id, &folder]).output().expect("runs").status.success());
    let path = copy.join("capture.json");
    let mut captured: Value = serde_json::from_slice(&fs::read(&path).expect("there")).expect("JSON");
    change(&mut captured);
    fs::write(path, captured.to_string()).expect("written");
    let done = agent(&["store", "put", "--kind", "snapshot", &folder]).output().expect("runs");
    fs::remove_dir_all(copy).expect("removed");
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

struct Bed {
    folder: tempfile::TempDir,
    criu: PathBuf,
    port: u16,
}

impl Bed {
    fn new(criu: PathBuf) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["store", "state", "files"] {
            fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
        let bed = Self { folder, criu, port };
        bed.recipe(1.0, "");
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A server with 64 MiB that takes so long to start.
    fn recipe(&self, start_s: f64, more: &str) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/workloads/server.py");
        let (port, files) = (self.port, self.path("files").display().to_string());
        let text = format!(
            "command = ['python3', '{script}', '{port}', '{files}', '64', '{start_s}']\n\
             environment = {{ MODEL = 'small' }}\n\
             warm_up = [['curl', '-sf', 'http://127.0.0.1:{port}/x']]\n{more}\n\
             [ready]\nurl = 'http://127.0.0.1:{port}/health'\nwithin_s = 30\n\
             [canary]\nurl = 'http://127.0.0.1:{port}/canary'\n"
        );
        fs::write(self.path("recipe.toml"), text).expect("written");
    }

    fn agent(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pilotlight-agent"));
        command.args(args).env("PILOTLIGHT_STORE", self.path("store")).env("PILOTLIGHT_CRIU", &self.criu);
        command.env("PILOTLIGHT_STATE", self.path("state")).env("SECRET_OF_THE_AGENT", "x");
        command.env("PILOTLIGHT_INTERPOSERS", self.path("interposers"));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.agent(args).output().expect("runs")
    }

    fn capture(&self) -> String {
        let recipe = self.path("recipe.toml").display().to_string();
        let done = self.run(&["capture", &recipe]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    fn explain(&self, id: &str) -> String {
        String::from_utf8_lossy(&self.run(&["restore", id, "--explain"]).stdout).into_owned()
    }

    /// Brought up, and told how.
    fn restore(&self, id: &str) -> Up<'_> {
        let log = fs::File::create(self.path("said")).expect("a log");
        let child = self.agent(&["restore", id]).stderr(log).stdout(Stdio::null()).spawn().expect("started");
        let mut up = Up { child, bed: self };
        up.wait("it is up", |up| up.said().contains("ready by"));
        up
    }

    fn get(&self, path: &str) -> Option<String> {
        got(&format!("http://127.0.0.1:{}{path}", self.port))
    }

    fn asked(&self) -> Value {
        serde_json::from_str(&self.get("/x").expect("an answer")).expect("JSON")
    }

    fn changed(&self, id: &str, change: impl FnOnce(&mut Value)) -> String {
        changed(|args| self.agent(args), &self.path("copy"), id, change)
    }

    /// Nobody listens, and no process of the workload is left.
    fn is_gone(&self) -> bool {
        let script = format!("server.py {} ", self.port);
        let left = Command::new("pgrep").args(["-f", &script]).output().expect("pgrep");
        left.stdout.is_empty() && TcpStream::connect(("127.0.0.1", self.port)).is_err()
    }
}

struct Up<'a> {
    child: Child,
    bed: &'a Bed,
}

impl Up<'_> {
    fn said(&self) -> String {
        fs::read_to_string(self.bed.path("said")).unwrap_or_default()
    }

    fn wait(&mut self, what: &str, mut until: impl FnMut(&mut Self) -> bool) {
        let began = Instant::now();
        while !until(self) {
            let ended = self.child.try_wait().expect("a child");
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "{what}: {ended:?} {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stop(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("there");
        let code = self.child.wait().expect("ended").code();
        assert!(self.bed.is_gone());
        code
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_process_comes_back_as_it_was() {
    let Some(criu) = criu() else { return };
    let bed = Bed::new(criu);
    let id = bed.capture();
    assert!(bed.is_gone(), "what is captured is gone");
    assert!(bed.explain(&id).lines().nth(1).is_some_and(|line| line.starts_with("restore") && line.contains("first")));
    let up = bed.restore(&id);
    assert!(up.said().contains("ready by restore"), "{}", up.said());
    let first = bed.asked();
    assert!(bed.get("/canary").expect("an answer") == first["memory"].as_str().expect("text"), "{first}");
    // Health, warm-up and canary were asked before, and are again; the child doubles, the file goes on where it was.
    let asked = first["asked"].as_u64().expect("a number");
    assert!(asked >= 5 && first["doubled"] == 2 * asked && first["at"] == 20, "{first}");
    assert_eq!((&first["environment"], &first["pid"]), (&"small".into(), &10_000.into()));
    let second = bed.asked();
    let beats = |answer: &Value| answer["beats"].as_u64().expect("a number");
    assert!(beats(&first) > 0 && beats(&second) > beats(&first), "threads go on: {first} {second}");
    // What it prints comes out, and its end is the agent's.
    let mut up = up;
    up.wait("its output comes", |up| up.said().contains("served /x"));
    drop(bed.get("/crash"));
    assert_eq!(up.child.wait().expect("ended").code(), Some(3));
    assert!(bed.is_gone());
    // Nothing of the agent's environment is in the snapshot.
    let copy = bed.path("copy").display().to_string();
    assert!(bed.run(&["store", "get", &id, &copy]).status.success());
    let secret = |path: &Path| fs::read(path).expect("read").windows(19).any(|part| part == b"SECRET_OF_THE_AGENT");
    assert!(crate::store::files(Path::new(&copy)).iter().all(|path| !secret(path)));
}

#[test]
fn what_cannot_come_back_starts_cold() {
    let Some(criu) = criu() else { return };
    let bed = Bed::new(criu);
    let id = bed.capture();
    // Refused before anything is started.
    let wrong = bed.changed(&id, |captured| {
        captured["requirements"]["cpu_features"].as_array_mut().expect("a list").push("avx9000".into());
        captured["requirements"]["kernel"] = serde_json::json!([99, 1]);
    });
    let said = bed.explain(&wrong);
    assert!(said.contains("lacks avx9000") && said.contains("on Linux 99.1, this host has"), "{said}");
    let up = bed.restore(&wrong);
    assert!(up.said().contains("ready by cold start") && !up.said().contains("restore failed"), "{}", up.said());
    assert_eq!(up.stop(), Some(143), "SIGTERM is passed on");
    // It comes back, and is not what it was.
    fs::write(bed.path("files/log"), "x".repeat(10)).expect("written");
    let other = bed.changed(&id, |captured| captured["answer"] = "another".into());
    let up = bed.restore(&other);
    let said = up.said();
    assert!(said.contains("answers its canary differently") && said.contains("ready by cold start"), "{said}");
    up.stop();
    // A file that it holds is another one: CRIU says so, and after three times nobody asks it again.
    fs::write(bed.path("files/log"), "x".repeat(500)).expect("written");
    for _ in 0..3 {
        let up = bed.restore(&id);
        assert!(up.said().contains("has bad size") && up.said().contains("ready by cold start"), "{}", up.said());
        up.stop();
        // The cold start wrote to it.
        fs::write(bed.path("files/log"), "x".repeat(500)).expect("written");
    }
    assert!(bed.explain(&id).contains("it failed 3 times in a row on this host"));
    let up = bed.restore(&id);
    assert!(!up.said().contains("bad size"), "{}", up.said());
    up.stop();
    fs::write(bed.path("files/log"), "x".repeat(10)).expect("written");
    drop(bed.run(&["restore", &id, "--forget", "--explain"]));
    let up = bed.restore(&id);
    assert!(up.said().contains("ready by restore"), "{}", up.said());
    up.stop();
}

#[test]
fn what_is_damaged_or_slower_is_not_restored() {
    let Some(criu) = criu() else { return };
    let bed = Bed::new(criu);
    let id = bed.capture();
    // SNAP-1: of ten flipped bits none gets into a process.
    let packs = crate::store::files(&bed.path("store/packs"));
    let pack = packs.iter().max_by_key(|path| fs::metadata(path).expect("there").len()).expect("one");
    let whole = fs::read(pack).expect("read");
    let mut flipped = whole.clone();
    (1..=10).for_each(|n| flipped[n * whole.len() / 11] ^= 4);
    fs::write(pack, flipped).expect("written");
    let up = bed.restore(&id);
    let said = up.said();
    assert!(said.contains("fetch it from another copy") && said.contains("ready by cold start"), "{said}");
    up.stop();
    fs::write(pack, whole).expect("written");
    // A cold start of a tenth of a second is not to be beaten.
    let fast = bed.changed(&id, |captured| captured["cold_s"] = 0.1.into());
    assert!(bed.explain(&fast).contains("a cold start is expected to take 0.1 s"), "{}", bed.explain(&fast));
}

/// What was started longest ago makes room for what is fetched.
#[test]
fn images_are_kept_within_bounds() {
    let Some(criu) = criu() else { return };
    let bed = Bed::new(criu);
    let id = bed.capture();
    bed.restore(&id).stop();
    let images = || {
        let kept = fs::read_dir(bed.path("state/images")).expect("read").flatten();
        kept.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(images(), [id.as_str()]);
    let other = bed.changed(&id, |captured| captured["cold_s"] = 50.0.into());
    fs::write(bed.path("files/log"), "x".repeat(10)).expect("written");
    let mut child =
        bed.agent(&["restore", &other, "--keep-gib", "0.2"]).stderr(Stdio::null()).spawn().expect("started");
    let began = Instant::now();
    while images() != [other.as_str()] {
        assert!(began.elapsed() < PATIENCE, "{:?}", images());
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
}

#[test]
fn a_capture_that_fails_stores_nothing() {
    let Some(criu) = criu() else { return };
    let bed = Bed::new(criu);
    let recipe = bed.path("recipe.toml").display().to_string();
    let refused = |why: &str| {
        let done = bed.run(&["capture", &recipe]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success() && said.contains(why), "{why}: {said}");
        assert!(bed.is_gone() && String::from_utf8_lossy(&bed.run(&["store", "ls"]).stdout).starts_with("no objects"));
    };
    bed.recipe(0.0, "before_capture = [['false']]");
    refused("before_capture: 'false' ended with");
    bed.recipe(0.0, &format!("before_capture = [['curl', '-s', 'http://127.0.0.1:{}/crash']]", bed.port));
    refused("before_capture");
    let ready = format!("[ready]\nurl = 'http://127.0.0.1:{}/'\nwithin_s = 1", bed.port);
    fs::write(&recipe, format!("command = ['sleep', '60']\n{ready}")).expect("written");
    refused("within 1 s");
    fs::write(&recipe, format!("command = ['sh', '-c', 'exit 7']\n{ready}")).expect("written");
    refused("the workload ended with code 7 before it served");
    fs::write(&recipe, format!("command = ['/nonexistent']\n{ready}")).expect("written");
    refused("the workload ended with code 127 before it served");
    fs::write(&recipe, "command = 'x'").expect("written");
    refused("recipe ");
    let none = bed.agent(&["capture", &recipe]).env("PILOTLIGHT_CRIU", "/nonexistent").output().expect("runs");
    assert!(!none.status.success());
}

/// Whenever the agent is killed, nothing of the workload is left, and the next start works.
#[test]
fn killed_at_any_moment_nothing_is_left() {
    let Some(criu) = criu() else { return };
    let bed = Bed::new(criu);
    let id = bed.capture();
    let seed = turns("SEED", 23);
    let mut rng = Rng::new(seed);
    for turn in 0..turns("KILLS", 8) {
        let mut child = bed.agent(&["restore", &id]).stderr(Stdio::null()).spawn().expect("started");
        std::thread::sleep(Duration::from_micros(rng.below(900_000) as u64));
        child.kill().expect("killed");
        child.wait().expect("ended");
        let began = Instant::now();
        while !bed.is_gone() {
            assert!(began.elapsed() < Duration::from_secs(5), "turn {turn} of seed {seed}: something is left");
            std::thread::sleep(Duration::from_millis(10));
        }
        // What it had written meanwhile is its own affair, not CRIU's.
        fs::write(bed.path("files/log"), "x".repeat(10)).expect("written");
    }
    let up = bed.restore(&id);
    assert!(up.said().contains("ready by restore"), "{}", up.said());
    up.stop();
}
