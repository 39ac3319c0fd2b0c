//! The same commands on every sort of store: a folder, and buckets of real servers (moto's S3, Azurite's blobs). Where a
//! server is not installed, that is said; `make moto` installs both.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::store::{files, noise};

/// The key of the account that every Azurite has, from its documentation.
const AZURITE_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A store, and the variables with which the agent finds it.
struct Bed {
    folder: tempfile::TempDir,
    address: String,
    variables: Vec<(&'static str, String)>,
    server: Option<Child>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            drop(server.kill());
            drop(server.wait());
        }
    }
}

impl Bed {
    fn folder() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = folder.path().join("store");
        fs::create_dir(&store).expect("a folder");
        Self { address: store.to_str().expect("text").into(), folder, variables: Vec::new(), server: None }
    }

    /// moto's S3, if it is installed.
    fn s3() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let program = installed("MOTO_SERVER", "moto/bin/moto_server")?;
        let server = start(Command::new(program).args(["-H", "127.0.0.1", "-p", &port.to_string()]), port);
        let endpoint = format!("http://127.0.0.1:{port}");
        let made = Command::new("curl").args(["-sf", "-X", "PUT", &format!("{endpoint}/snapshots")]).output();
        assert!(made.expect("curl").status.success(), "a bucket");
        let variables = vec![
            ("AWS_ENDPOINT", endpoint),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ACCESS_KEY_ID", "key".into()),
            ("AWS_SECRET_ACCESS_KEY", "secret".into()),
        ];
        Some(Self { folder, address: "s3://snapshots/some/prefix".into(), variables, server: Some(server) })
    }

    /// Azurite, if it is installed.
    fn azure() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let program = installed("AZURITE_BLOB", "azurite/node_modules/.bin/azurite-blob")?;
        let mut command = Command::new(program);
        command.args(["--blobPort", &port.to_string(), "--silent", "--skipApiVersionCheck", "--disableTelemetry"]);
        let server = start(command.arg("--location").arg(folder.path().join("azurite")), port);
        let endpoint = format!("http://127.0.0.1:{port}/devstoreaccount1");
        let made = Command::new("python3").arg("-c").arg(MAKE_CONTAINER).args([&endpoint, AZURITE_KEY]).output();
        let made = made.expect("python3");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let variables = vec![
            ("AZURE_STORAGE_ACCOUNT_NAME", "devstoreaccount1".into()),
            ("AZURE_STORAGE_ACCOUNT_KEY", AZURITE_KEY.into()),
            ("AZURE_ENDPOINT", endpoint),
            ("AZURE_ALLOW_HTTP", "true".into()),
        ];
        Some(Self { folder, address: "az://snapshots/some/prefix".into(), variables, server: Some(server) })
    }

    /// The same, sealed with a key of its own.
    fn sealed(mut self) -> Self {
        let file = self.text("tenant.key");
        assert!(self.ok(&["store", "keygen", &file]).1.contains("keep a copy of it elsewhere"));
        self.variables.push(("PILOTLIGHT_KEY_FILE", file));
        self
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pilotlight-agent"));
        command.args(args).env("PILOTLIGHT_STORE", &self.address).env("PILOTLIGHT_CACHE", self.path("cache"));
        command.envs(self.variables.iter().map(|(name, value)| (name, value))).output().expect("runs")
    }

    fn ok(&self, args: &[&str]) -> (String, String) {
        let done = self.run(args);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(done.status.success(), "{args:?}: {}{}", text(&done.stdout), text(&done.stderr));
        (text(&done.stdout), text(&done.stderr))
    }

    fn refused(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert!(!done.status.success(), "{args:?}");
        String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("text").to_owned()
    }
}

/// Signed as the blob service wants it (Microsoft, "Authorize with Shared Key").
const MAKE_CONTAINER: &str = r#"
import base64, hashlib, hmac, sys, urllib.request
from email.utils import formatdate
endpoint, key = sys.argv[1:]
date = formatdate(usegmt=True)
signed = "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:%s\nx-ms-version:2021-08-06\n/devstoreaccount1/devstoreaccount1/snapshots\nrestype:container" % date
mac = base64.b64encode(hmac.new(base64.b64decode(key), signed.encode(), hashlib.sha256).digest()).decode()
headers = {"x-ms-date": date, "x-ms-version": "2021-08-06", "Authorization": "SharedKey devstoreaccount1:" + mac}
urllib.request.urlopen(urllib.request.Request(endpoint + "/snapshots?restype=container", headers=headers, method="PUT"))
"#;

/// A program that a variable names, or that lies below `target`.
fn installed(variable: &str, below_target: &str) -> Option<PathBuf> {
    let built = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")).join(below_target);
    let found = std::env::var_os(variable).map(PathBuf::from).or_else(|| built.exists().then_some(built));
    if found.is_none() {
        eprintln!("skipped: {below_target} is not installed; 'make moto' does");
    }
    found
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port()
}

#[allow(clippy::disallowed_methods, reason = "a real server takes real time")]
fn start(command: &mut Command, port: u16) -> Child {
    let server = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the server starts");
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(began.elapsed() < Duration::from_secs(60), "the server does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
    server
}

/// What every store does.
fn conforms(bed: &Bed) {
    let root = bed.path("model/sub");
    fs::create_dir_all(&root).expect("a folder");
    fs::write(root.join("weights"), noise((70 << 20) + 5, 1)).expect("written");
    fs::write(root.join("zeros"), vec![0; 3 << 20]).expect("written");
    assert!(bed.ok(&["store", "ls"]).0.starts_with("no objects"));
    let model = bed.text("model");
    let (id, said) = bed.ok(&["store", "put", &model]);
    assert!(said.contains("stored 70.00 MiB in 2 packs"), "{said}");
    let (again, said) = bed.ok(&["store", "put", &model]);
    assert!(again == id && said.contains("stored 0 B in 0 packs"), "{said}");
    assert!(bed.ok(&["store", "ls"]).0.contains(&id));
    bed.ok(&["store", "get", &id, &bed.text("copy")]);
    for name in ["weights", "zeros"] {
        assert!(fs::read(bed.path("copy/sub").join(name)).expect("read") == fs::read(root.join(name)).expect("read"));
    }
    assert!(bed.ok(&["store", "verify"]).0.contains("all as it was stored"));
    // Two at the same time, of the same content.
    fs::write(root.join("more"), noise(9 << 20, 2)).expect("written");
    let ids: Vec<String> = std::thread::scope(|scope| {
        let both: Vec<_> = (0..2).map(|_| scope.spawn(|| bed.ok(&["store", "put", &model]).0)).collect();
        both.into_iter().map(|put| put.join().expect("ended")).collect()
    });
    assert_eq!(ids[0], ids[1]);
    assert!(bed.ok(&["store", "verify"]).0.starts_with("2 objects"));
    assert!(bed.refused(&["store", "get", &"0".repeat(64), &bed.text("none")]).contains("there is no object"));
}

#[test]
fn a_folder_is_a_store() {
    conforms(&Bed::folder());
}

#[test]
fn a_sealed_folder_is_a_store_to_who_has_its_key() {
    let bed = Bed::folder().sealed();
    conforms(&bed);
    // The store has nothing of the content and of its names.
    let secret = fs::read(bed.path("model/sub/weights")).expect("read");
    let id = bed.ok(&["store", "ls"]).0.lines().nth(1).expect("one").split(' ').next().expect("an id").to_owned();
    for file in files(&bed.path("store")) {
        assert!(!file.to_str().expect("text").contains(&id[..16]), "{}", file.display());
        let bytes = fs::read(&file).expect("read");
        assert!(!bytes.windows(32).any(|part| part == &secret[1000..1032]), "{}", file.display());
    }
    let file = bed.path("tenant.key");
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    assert!(bed.refused(&["store", "keygen", &bed.text("tenant.key")]).contains("that is not there yet"));
    // What lies there is found, mended and deleted as anywhere.
    let pack = files(&bed.path("store/packs")).into_iter().max_by_key(|file| fs::metadata(file).expect("there").len());
    let pack = pack.expect("one");
    let mut bytes = fs::read(&pack).expect("read");
    bytes[1_000_000] ^= 1;
    fs::write(&pack, &bytes).expect("written");
    let said = bed.refused(&["store", "verify"]);
    assert!(said.contains("was not sealed with this key, or was changed since"), "{said}");
    bed.ok(&["store", "rm", &id]);
    assert!(bed.ok(&["store", "gc", "--grace-h", "0"]).0.starts_with("deleted"));

    // Another tenant, and nobody.
    let other = bed.text("other.key");
    bed.ok(&["store", "keygen", &other]);
    let get = ["store", "get", &id, &bed.text("stolen")];
    let (put, remove) = (["store", "put", &bed.text("model")], ["store", "rm", &id]);
    for command in [&["store", "ls"][..], &get, &put, &["store", "verify"], &remove] {
        let with = [command, &["--key-file", &other]].concat();
        assert!(bed.refused(&with).contains("give the key file of its tenant"), "{command:?}");
    }
    let mut open = bed;
    open.variables.clear();
    for command in [&["store", "ls"][..], &get, &["store", "put", &open.text("model")], &["store", "gc"]] {
        assert!(open.refused(command).contains("give its key file with --key-file"), "{command:?}");
    }
    fs::write(open.path("no.key"), "secret").expect("written");
    assert!(open.refused(&["store", "ls", "--key-file", &open.text("no.key")]).contains("holds no key"));
    // What lies in the clear is not sealed beside it.
    let clear = Bed::folder();
    clear.ok(&["store", "put", &open.text("model")]);
    let said = clear.refused(&["store", "put", &open.text("model"), "--key-file", &other]);
    assert!(said.contains("in the clear"), "{said}");
}

#[test]
fn a_sealed_s3_bucket_is_a_store() {
    if let Some(bed) = Bed::s3() {
        conforms(&bed.sealed());
    }
}

#[test]
fn an_s3_bucket_is_a_store() {
    if let Some(mut bed) = Bed::s3() {
        conforms(&bed);
        bed.address = "s3://nowhere".into();
        assert!(bed.refused(&["store", "ls"]).contains("the store failed"));
    }
}

#[test]
fn an_azure_container_is_a_store() {
    if let Some(bed) = Bed::azure() {
        conforms(&bed);
    }
}

#[test]
fn an_address_that_is_none_is_named() {
    let mut bed = Bed::folder();
    for address in ["memory://x", "ftp://x/y", "s3:/x", "gopher://", "http://example.invalid/x", "://", "s3://"] {
        bed.address = address.into();
        let said = bed.refused(&["store", "ls"]);
        assert!(said.contains("is no store: give a folder that exists, or s3://"), "{address}: {said}");
    }
}
