//! The file of a SQLite database: readable by its owner alone, and watched. A file that somebody removes, replaces or cuts
//! short goes on taking commits that nobody will ever read again.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

/// What became of the file under a server that uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// It is what was opened, and its log is no shorter.
    Same,
    /// Its log is shorter: a checkpoint of somebody else, or damage.
    LogCut,
    /// Its log is another file.
    LogReplaced,
    /// It is not there, or another is, or it was cut short.
    Gone,
}

/// A file that is watched.
#[derive(Debug, Clone)]
pub(super) struct DatabaseFile(Arc<Watched>);

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    /// Device and number of the file that was opened.
    is: Option<(u64, u64)>,
    /// Its length when it was last looked at: SQLite never shortens a file by itself.
    length: Mutex<u64>,
    log: Mutex<Log>,
}

/// Its log, as it was when it was last looked at.
#[derive(Debug, Default)]
struct Log {
    number: u64,
    length: u64,
    /// It was replaced under whoever writes to it.
    lost: bool,
}

/// The path in `sqlite:FILE`; none for a database in memory.
fn path_of(url: &str) -> Option<PathBuf> {
    let rest = url.strip_prefix("sqlite:")?;
    let path = rest.strip_prefix("//").unwrap_or(rest).split('?').next()?;
    let path = percent_encoding::percent_decode_str(path).decode_utf8().ok()?;
    (!path.is_empty() && !path.contains(":memory:") && !url.contains("mode=memory")).then(|| PathBuf::from(&*path))
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

/// Takes everybody else's rights away.
fn close_to_others(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 == 0 { Ok(()) } else { fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o700)) }
}

/// Makes the file where there is none, and lets nobody else read it: it has the key that hosts join with. The log and its
/// index get the rights of the file.
pub(super) fn prepare(url: &str) {
    let Some(path) = path_of(url) else { return };
    let may_make = !url.contains("mode=ro") && !url.contains("mode=rw&") && !url.ends_with("mode=rw");
    if may_make {
        // Whatever is wrong with the path is said when it is opened.
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).ok();
    }
    for end in ["", "-wal", "-shm"] {
        let part = beside(&path, end);
        match close_to_others(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %part.display(), "others may read the database, and cannot be kept from it");
            }
            _ => {}
        }
    }
}

impl DatabaseFile {
    /// The file of a database that was opened a moment ago.
    pub fn of(url: &str) -> Option<Self> {
        let path = path_of(url)?;
        // The log lies beside the file that a link leads to.
        let path = fs::canonicalize(&path).unwrap_or(path);
        let found = fs::metadata(&path).ok();
        let is = found.as_ref().map(|m| (m.dev(), m.ino()));
        let (length, log) = (Mutex::new(found.map_or(0, |m| m.len())), Mutex::new(Log::of(&path)));
        Some(Self(Arc::new(Watched { path, is, length, log })))
    }

    /// Looks at it.
    pub fn look(&self) -> Seen {
        let Ok(now) = fs::metadata(&self.0.path) else { return Seen::Gone };
        let mut known = self.0.length.lock();
        if Some((now.dev(), now.ino())) != self.0.is || now.len() < *known {
            return Seen::Gone;
        }
        *known = now.len();
        let mut log = self.0.log.lock();
        let now = Log::of(&self.0.path);
        log.lost = now.number != log.number;
        if log.lost {
            return Seen::LogReplaced;
        }
        if now.length < log.length {
            return Seen::LogCut;
        }
        log.length = now.length;
        Seen::Same
    }

    /// The log was found to be whole as it is now.
    pub fn trust_log(&self) {
        *self.0.log.lock() = Log::of(&self.0.path);
    }

    /// A connection is opened to write with: its log is the one that is there, unless that was taken from under another.
    pub fn opened(&self) {
        let mut log = self.0.log.lock();
        if !log.lost {
            *log = Log::of(&self.0.path);
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

impl Log {
    fn of(path: &Path) -> Self {
        let found = fs::metadata(beside(path, "-wal"));
        found.map_or_else(|_| Self::default(), |m| Self { number: m.ino(), length: m.len(), lost: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_that_sqlite_opens() {
        let path = |url: &str| path_of(url).map(|p| p.display().to_string());
        assert_eq!(path("sqlite:x.db?mode=rwc").as_deref(), Some("x.db"));
        assert_eq!(path("sqlite:///var/x.db").as_deref(), Some("/var/x.db"));
        assert_eq!(path("sqlite:/var/x.db").as_deref(), Some("/var/x.db"));
        assert_eq!(path("sqlite:a%20b.db").as_deref(), Some("a b.db"));
        assert_eq!([path("sqlite::memory:"), path("postgres://x/y")], [None, None]);
    }

    #[test]
    fn what_becomes_of_the_file_is_seen() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("x.db");
        let url = format!("sqlite:{}", path.display());
        prepare(&url);
        assert_eq!(fs::metadata(&path).expect("made").permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("ours");
        prepare(&url);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let log = beside(&path, "-wal");
        fs::write(&log, [0; 100]).expect("written");
        let file = DatabaseFile::of(&url).expect("a file");
        assert_eq!(file.look(), Seen::Same);
        fs::write(&log, [0; 200]).expect("written");
        assert_eq!(file.look(), Seen::Same);
        fs::write(&log, [0; 150]).expect("written");
        assert_eq!(file.look(), Seen::LogCut);
        file.trust_log();
        assert_eq!(file.look(), Seen::Same);
        fs::write(beside(&path, "-other"), [0; 300]).expect("written");
        fs::rename(beside(&path, "-other"), &log).expect("moved");
        assert_eq!(file.look(), Seen::LogReplaced);
        file.opened();
        assert_eq!(file.look(), Seen::LogReplaced, "opening another connection does not bring it back");
        file.trust_log();
        let aside = folder.path().join("aside");
        fs::rename(&path, &aside).expect("moved");
        assert_eq!(file.look(), Seen::Gone);
        fs::copy(&aside, &path).expect("copied");
        assert_eq!(file.look(), Seen::Gone, "a copy is another file");
        fs::rename(&aside, &path).expect("moved back");
        assert_eq!(file.look(), Seen::Same);
        fs::write(&path, [1; 10]).expect("written");
        assert_eq!(file.look(), Seen::Same);
        fs::write(&path, []).expect("written");
        assert_eq!(file.look(), Seen::Gone, "cut short where it lies");
    }
}
