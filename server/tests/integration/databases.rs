//! Databases for tests: a SQLite file, and a PostgreSQL server of its own on a socket.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A database that goes away with its test.
pub struct Database {
    /// What to open.
    pub url: String,
    folder: tempfile::TempDir,
    server: Option<Child>,
}

impl Database {
    /// Ends the PostgreSQL server as a crash would; what it has is there when it is started again.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // Postgres ends at once on SIGQUIT, with its children.
            let _ = Command::new("kill").args(["-QUIT", &server.id().to_string()]).status();
            let _ = server.wait();
        }
    }

    /// A session of a replica that locked the log, asked for much, and reads nothing of the answer, as one that is frozen.
    pub fn holder_that_does_not_read(&self) -> Child {
        let psql = binaries().expect("it ran before").join("psql");
        let mut holder = Command::new(psql);
        holder.arg("-h").arg(self.folder.path()).args(["-U", "pilotlight", "-d", "postgres", "-q"]);
        holder.args(["-c", "BEGIN", "-c", "SELECT seq FROM log_head FOR UPDATE"]);
        holder.args(["-c", "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000)) TO STDOUT"]);
        holder.env("PGAPPNAME", "pilotlight").stdout(Stdio::piped()).spawn().expect("psql starts")
    }

    /// Starts the PostgreSQL server again.
    pub fn start(&mut self) {
        self.server = Some(run_postgres(&binaries().expect("it ran before"), self.folder.path()));
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs a statement in a database, beside the server.
pub async fn execute(url: &str, text: &'static str) {
    use sqlx::Connection;
    sqlx::any::install_default_drivers();
    let mut connection = sqlx::AnyConnection::connect(url).await.expect("opens");
    sqlx::raw_sql(text).execute(&mut connection).await.expect("runs");
    connection.close().await.expect("closes");
}

/// A SQLite file.
pub fn sqlite() -> Option<Database> {
    let folder = tempfile::tempdir().expect("temp");
    Some(Database { url: format!("sqlite:{}", folder.path().join("test.db").display()), folder, server: None })
}

fn binaries() -> Option<PathBuf> {
    let newest = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|e| e.path().join("bin")).max()?;
    newest.join("initdb").exists().then_some(newest)
}

/// A command that does not run as root, which Postgres refuses.
fn unprivileged(program: &Path, folder: &Path) -> Command {
    let root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.starts_with(b"0"));
    let mut command = if root {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A network of its own, in which a server listens.
pub struct Network {
    /// Name of the network namespace.
    pub namespace: String,
    /// Its addresses there, with commas between them.
    pub addresses: String,
}

/// A PostgreSQL server on a socket; none where it is not installed.
pub fn postgres() -> Option<Database> {
    postgres_in(None)
}

/// The same, in a network of its own too.
pub fn postgres_in(network: Option<&Network>) -> Option<Database> {
    let Some(bin) = binaries() else {
        println!("skipped: PostgreSQL is not installed (scripts/setup installs it)");
        return None;
    };
    // Socket paths are short.
    let folder = tempfile::Builder::new().prefix("pl").tempdir_in("/tmp").expect("temp");
    let data = folder.path().join("data");
    std::fs::create_dir(&data).expect("made");
    let all = ["a+rwx"];
    let _ = Command::new("chmod").args(all).arg(folder.path()).status();
    let _ = Command::new("chown").arg("nobody:nogroup").arg(&data).status();
    let made = unprivileged(&bin.join("initdb"), folder.path())
        .args(["-D", &data.display().to_string(), "-U", "pilotlight", "-A", "trust", "-N", "--no-instructions"])
        .status()
        .expect("initdb starts");
    assert!(made.success(), "initdb failed");
    if network.is_some() {
        let all = "host all all 0.0.0.0/0 trust\n";
        let mut file = std::fs::OpenOptions::new().append(true).open(data.join("pg_hba.conf")).expect("initdb made it");
        std::io::Write::write_all(&mut file, all.as_bytes()).expect("written");
    }
    let server = run_postgres_in(&bin, folder.path(), network);
    let url = format!("postgres://pilotlight@localhost/postgres?host={}", folder.path().display());
    Some(Database { url, folder, server: Some(server) })
}

fn run_postgres(bin: &Path, folder: &Path) -> Child {
    run_postgres_in(bin, folder, None)
}

fn run_postgres_in(bin: &Path, folder: &Path, network: Option<&Network>) -> Child {
    let here = unprivileged(&bin.join("postgres"), folder);
    let mut command = match network {
        None => here,
        Some(network) => {
            let mut there = Command::new("ip");
            there.args(["netns", "exec", &network.namespace]).arg(here.get_program()).args(here.get_args());
            there.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
            there
        }
    };
    let addresses = network.map_or("", |n| n.addresses.as_str());
    let server = command
        .args(["-D", &folder.join("data").display().to_string(), "-k", &folder.display().to_string(), "-h", addresses])
        .args(["-c", "fsync=off", "-c", "max_connections=60"])
        .spawn()
        .expect("postgres starts");
    let began = (0..400).find(|_| {
        std::thread::sleep(Duration::from_millis(50));
        ready(bin, folder)
    });
    assert!(began.is_some(), "PostgreSQL did not start within 20 s");
    server
}

fn ready(bin: &Path, folder: &Path) -> bool {
    let mut ask = Command::new(bin.join("pg_isready"));
    ask.arg("-h").arg(folder).args(["-U", "pilotlight"]).stdout(Stdio::null());
    ask.status().is_ok_and(|s| s.success())
}
