//! `pilotlight-agent store`, as people run it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use fleet::rng::Rng;

pub(crate) fn agent(store: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilotlight-agent"));
    command.arg("store").args(args).env("PILOTLIGHT_STORE", store);
    command
}

fn run(store: &Path, args: &[&str]) -> Output {
    agent(store, args).output().expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// Runs a command that succeeds; what it printed.
pub(crate) fn ok(store: &Path, args: &[&str]) -> (String, String) {
    let done = run(store, args);
    assert!(done.status.success(), "{args:?}: {}{}", text(&done.stdout), text(&done.stderr));
    (text(&done.stdout), text(&done.stderr))
}

/// Runs a command that is refused; what it said.
pub(crate) fn refused(store: &Path, args: &[&str]) -> String {
    let done = run(store, args);
    assert!(!done.status.success(), "{args:?}: {}", text(&done.stdout));
    text(&done.stdout) + &text(&done.stderr)
}

pub(crate) fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..n.div_ceil(8)).flat_map(|_| rng.bits().to_le_bytes()).take(n).collect()
}

pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// A folder with a model's files, and an empty store.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let model = folder.path().join("model");
        fs::create_dir_all(model.join("tokenizer")).expect("a folder");
        fs::create_dir(folder.path().join("store")).expect("a folder");
        fs::write(model.join("model-00001.safetensors"), noise(5 << 20, 1)).expect("written");
        fs::write(model.join("zeros.bin"), vec![0; 3 << 20]).expect("written");
        fs::write(model.join("empty"), []).expect("written");
        fs::write(model.join("tokenizer/vocab.json"), "{\"a\": 1}".repeat(40_000)).expect("written");
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("text").to_owned()
    }

    pub(crate) fn store(&self) -> std::path::PathBuf {
        self.folder.path().join("store")
    }

    /// Every file of the store, by its path.
    pub(crate) fn stored(&self, below: &str) -> Vec<std::path::PathBuf> {
        files(&self.store().join(below))
    }
}

/// Every file below a folder.
pub(crate) fn files(below: &Path) -> Vec<std::path::PathBuf> {
    let (mut found, mut left) = (Vec::new(), vec![below.to_owned()]);
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path).expect("read").map(|entry| entry.expect("read").path()));
        } else if path.exists() {
            found.push(path);
        }
    }
    found
}

#[test]
fn files_go_in_and_come_out() {
    let place = Place::new();
    let store = place.store();
    assert!(ok(&store, &["ls"]).0.starts_with("no objects: "));
    let put = ["put", &place.path("model"), "--label", "model=small", "--compress"];
    let (id, said) = ok(&store, &put);
    assert!(said.starts_with("4 files, 8.31 MiB; stored 5.00 MiB in 1 pack"), "{said}");
    let (again, said) = ok(&store, &put);
    assert_eq!(again, id, "the same content has the same name");
    assert!(said.contains("stored 0 B in 0 packs"), "{said}");
    assert_eq!(place.stored("packs").len(), 1);
    let listed = ok(&store, &["ls"]).0;
    assert!(listed.contains(&id) && listed.contains("weights") && listed.contains("model=small"), "{listed}");
    ok(&store, &["get", &id, &place.path("copy")]);
    for name in ["model-00001.safetensors", "zeros.bin", "empty", "tokenizer/vocab.json"] {
        let of = |folder: &str| fs::read(place.folder.path().join(folder).join(name)).expect("read");
        assert_eq!(of("copy"), of("model"), "{name}");
    }
    assert!(ok(&store, &["verify"]).0.starts_with("1 object, 1 pack, 5.00 MiB read and hashed: all as"));
    assert!(refused(&store, &["get", &id, &place.path("copy")]).contains("is there already"));
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a real disk takes real time")]
fn holes_are_neither_read_nor_stored() {
    let place = Place::new();
    let path = place.folder.path().join("model/sparse");
    let file = fs::File::create(&path).expect("made");
    let bytes: u64 = (64 << 30) + 77;
    file.set_len(bytes).expect("longer");
    let content = noise(100_000, 3);
    let at = [0, (3 << 21) + 5, (40 << 30) - 50_000, bytes - 100_000];
    for at in at {
        std::os::unix::fs::FileExt::write_all_at(&file, &content, at).expect("written");
    }
    let model = place.path("model/sparse");
    let began = std::time::Instant::now();
    let (id, said) = ok(&place.store(), &["put", &model]);
    // To read it all would take half a minute.
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    assert!(said.starts_with("1 file, 64.00 GiB; stored") && place.stored("packs").len() == 1, "{said}");
    let pack = fs::metadata(&place.stored("packs")[0]).expect("there").len();
    assert!(pack <= 6 * (2 << 20), "leaves of six stretches: {pack}");
    ok(&place.store(), &["verify"]);
    let other = fs::File::create(place.path("model/other")).expect("made");
    other.set_len(9 << 20).expect("longer");
    std::os::unix::fs::FileExt::write_all_at(&other, &content, 4 << 20).expect("written");
    let (second, _) = ok(&place.store(), &["put", &place.path("model/other")]);
    ok(&place.store(), &["get", &second, &place.path("copy")]);
    assert!(fs::read(place.path("copy/other")).expect("read") == fs::read(place.path("model/other")).expect("read"));
    assert_ne!(id, second);
}

/// What an object needs is there before it, and stays as long as it.
#[test]
fn an_object_keeps_what_it_needs() {
    let place = Place::new();
    let store = place.store();
    let (weights, _) = ok(&store, &["put", &place.path("model")]);
    fs::write(place.path("process"), noise(1000, 8)).expect("written");
    let put = ["put", "--kind", "snapshot", "--needs", &weights, &place.path("process")];
    let (snapshot, _) = ok(&store, &put);
    let said = refused(&store, &["rm", &weights]);
    assert!(said.contains(&format!("is needed by object {snapshot}")), "{said}");
    let missing = ["put", "--needs", &"1".repeat(64), &place.path("process")];
    assert!(refused(&store, &missing).contains("there is no object 111"));
    // Gone by somebody's hand, it is missed.
    let record = store.join(format!("objects/{weights}.json"));
    let document = fs::read(&record).expect("there");
    fs::remove_file(&record).expect("removed");
    assert!(refused(&store, &["verify"]).contains(&format!("which object {snapshot} needs, is not there")));
    fs::write(&record, document).expect("written");
    ok(&store, &["verify"]);
    // Damaged, it can be listed beside others, and removed.
    fs::write(store.join(format!("objects/{snapshot}.json")), "{").expect("written");
    assert!(ok(&store, &["ls"]).0.contains("damaged"));
    ok(&store, &["rm", &snapshot]);
    ok(&store, &["rm", &weights]);
}

#[test]
fn damage_is_found_and_nothing_half_written_stays() {
    let place = Place::new();
    let store = place.store();
    let (id, _) = ok(&store, &["put", &place.path("model")]);
    fs::write(place.folder.path().join("other"), noise(100, 9)).expect("written");
    let (whole, _) = ok(&store, &["put", &place.path("other")]);
    let pack = place.stored("packs").into_iter().max_by_key(|path| fs::metadata(path).expect("there").len());
    let pack = pack.expect("a pack");
    let mut bytes = fs::read(&pack).expect("read");
    bytes[3_000_000] ^= 1;
    fs::write(&pack, &bytes).expect("written");
    let said = refused(&store, &["verify"]);
    assert!(said.contains("has content of hash") && said.contains(&format!("damaged: object {id}")), "{said}");
    assert!(said.contains("1 fault, 1 object damaged") && !said.contains(&whole), "{said}");
    assert!(refused(&store, &["get", &id, &place.path("copy")]).contains("fetch it from another copy"));
    let left = fs::read_dir(place.folder.path()).expect("read").map(|entry| entry.expect("read").file_name());
    let left: Vec<_> = left.filter(|name| name != "model" && name != "store" && name != "other").collect();
    assert!(left.is_empty(), "{left:?}");
    fs::remove_file(&pack).expect("removed");
    assert!(refused(&store, &["verify"]).contains("the store failed at packs/"));
    ok(&store, &["get", &whole, &place.path("copy")]);
}

#[test]
fn what_cannot_be_stored_is_named() {
    let place = Place::new();
    let store = place.store();
    assert!(refused(&place.folder.path().join("nowhere"), &["ls"]).contains("give a folder that exists"));
    assert!(refused(&store, &["put", &place.path("nothing")]).contains("cannot read"));
    assert!(refused(&store, &["get", &"0".repeat(64), &place.path("copy")]).contains("there is no object 000"));
    assert!(refused(&store, &["get", "x", &place.path("copy")]).contains("64 lower-case hexadecimal digits"));
    assert!(refused(&store, &["put", &place.path("model"), "--label", "x"]).contains("NAME=TEXT"));
    assert!(refused(&store, &["put", &place.path("model"), "--label", "x=a\rb"]).contains("one line of text"));
    let link = place.folder.path().join("model/link");
    std::os::unix::fs::symlink("/etc/passwd", &link).expect("linked");
    assert!(refused(&store, &["put", &place.path("model")]).contains("neither a file nor a folder"));
    fs::remove_file(link).expect("removed");
    fs::write(place.folder.path().join("model/a name"), "x").expect("written");
    assert!(refused(&store, &["put", &place.path("model")]).contains("'a name' is no relative path"));
    assert!(ok(&store, &["ls"]).0.starts_with("no objects"), "nothing is half published");
}

/// So many turns, or as many as a soak asks for.
pub(crate) fn turns(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().and_then(|turns| turns.parse().ok()).unwrap_or(usual)
}

/// Killed at any moment of a put, a removal or a collection, the store has whole objects, and loses none that it should have.
#[test]
fn killed_at_any_moment() {
    let place = Place::new();
    let store = place.store();
    let seed = turns("SEED", 17);
    let mut rng = Rng::new(seed);
    let (kept, _) = ok(&store, &["put", &place.path("model")]);
    let big = place.folder.path().join("model/model-00002.safetensors");
    for turn in 0..turns("KILLS", 12) {
        fs::write(&big, noise(80 << 20, 100 + turn % 3)).expect("written");
        let (put, gc) = (["put", &place.path("model")], ["gc", "--grace-h", "0", "--wait-s", "0"]);
        let listed = ok(&store, &["ls"]).0;
        let other =
            listed.lines().filter_map(|line| line.split_whitespace().next()).find(|id| id.len() == 64 && *id != kept);
        let remove = ["rm", other.unwrap_or(&kept)];
        let command = match rng.below(3) {
            0 => &put[..],
            1 => &gc,
            _ if other.is_some() => &remove,
            _ => &put,
        };
        let child = agent(&store, command).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = child.expect("started");
        std::thread::sleep(Duration::from_micros(rng.below(400_000) as u64));
        child.kill().expect("killed");
        child.wait().expect("ended");
        let said = ok(&store, &["verify"]).0;
        assert!(said.contains("all as it was stored"), "turn {turn} of seed {seed}, {command:?}: {said}");
        assert!(ok(&store, &["ls"]).0.contains(&kept), "turn {turn} of seed {seed}, {command:?}");
    }
    let (id, _) = ok(&store, &["put", &place.path("model")]);
    ok(&store, &["get", &id, &place.path("copy")]);
    ok(&store, &["get", &kept, &place.path("copy of the first")]);
    // What the killed left is nobody's: a process of this machine that is gone.
    ok(&store, &["gc", "--grace-h", "0", "--wait-s", "0"]);
    let whole = |path: &std::path::PathBuf| path.extension().is_none() || path.extension().is_some_and(|e| e == "json");
    assert!(place.stored("leases").is_empty() && place.stored("").iter().all(whole), "{:?}", place.stored(""));
    assert!(ok(&store, &["verify"]).0.contains("all as it was stored"));
}
