//! The kernel log: `/dev/kmsg`, or a file with lines of it or of dmesg.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use health::gate::{Look, Unseen};
use health::kernel_log::{Record, read, sequence};

/// Longest record of the kernel, bytes (`CONSOLE_EXT_LOG_MAX`).
const RECORD_MAX: usize = 8192;
/// Records of GPUs that are kept of one reading: a storm says no more in its ten thousandth line.
const RECORDS_MAX: usize = 1000;
/// Longest file, bytes.
const FILE_MAX: u64 = 64 << 20;

/// What a reading gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// Lines about GPUs.
    pub records: Vec<Record>,
    /// Lines were lost.
    pub gap: bool,
}

/// The log, read on from where the last reading ended.
#[derive(Debug)]
pub struct KernelLog {
    path: PathBuf,
    open: Option<File>,
    /// The next line's number.
    next: Option<u64>,
}

fn unseen(path: &Path, error: &std::io::Error) -> Unseen {
    let path = path.display();
    match error.kind() {
        ErrorKind::PermissionDenied => Unseen::NoPermission(format!("{path}: run as root, or with CAP_SYSLOG")),
        _ => Unseen::Error(format!("{path}: {error}")),
    }
}

impl KernelLog {
    /// Of `/dev/kmsg`, or of a file.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), open: None, next: None }
    }

    /// The same, from a line on; earlier ones are passed over.
    #[must_use]
    pub fn from_line(path: &Path, next: u64) -> Self {
        Self { path: path.to_owned(), open: None, next: Some(next) }
    }

    /// Number of the next line.
    #[must_use]
    pub fn next_line(&self) -> u64 {
        self.next.unwrap_or(0)
    }

    /// Everything of this boot that has not been read yet.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn read_on(&mut self) -> Look<Said> {
        let path = self.path.clone();
        let fail = |e: std::io::Error| unseen(&path, &e);
        let kind = std::fs::metadata(&path).map_err(fail)?.file_type();
        if kind.is_char_device() { self.device() } else { self.file() }.map_err(fail)
    }

    fn device(&mut self) -> std::io::Result<Said> {
        // The journal has the whole boot, and not less: it helps who wants all of it.
        let from_start = self.open.is_none() && self.next.unwrap_or(0) == 0;
        if self.open.is_none() {
            let open = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&self.path)?;
            self.open = Some(open);
        }
        let mut said = Said::default();
        let mut record = [0; RECORD_MAX];
        let Some(open) = &mut self.open else { return Ok(said) };
        loop {
            match open.read(&mut record) {
                Ok(0) => break,
                Ok(n) => take(&mut said, &mut self.next, &String::from_utf8_lossy(&record[..n])),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                // Lines were overwritten before they were read; the next read goes on after them.
                Err(e) if e.raw_os_error() == Some(libc::EPIPE) => said.gap = true,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    self.open = None;
                    return Err(e);
                }
            }
        }
        // The ring had turned over before anybody read it: the journal may have what is lost.
        if from_start
            && said.gap
            && let Some(whole) = journal()
        {
            return Ok(whole);
        }
        Ok(said)
    }

    fn file(&mut self) -> std::io::Result<Said> {
        let mut said = Said::default();
        if self.open.is_none() {
            self.open = Some(File::open(&self.path)?);
        }
        let Some(open) = &mut self.open else { return Ok(said) };
        let mut bytes = Vec::new();
        open.by_ref().take(FILE_MAX).read_to_end(&mut bytes)?;
        for line in String::from_utf8_lossy(&bytes).lines() {
            take(&mut said, &mut self.next, line);
        }
        Ok(said)
    }
}

fn take(said: &mut Said, next: &mut Option<u64>, text: &str) {
    // What follows the first line are fields of it, and lines that belong to it.
    let Some(line) = text.lines().next() else { return };
    if let Some(seq) = sequence(line) {
        // The first line of a boot has number 0.
        let awaited = next.unwrap_or(0);
        if seq < awaited {
            return;
        }
        said.gap |= seq > awaited;
        *next = Some(seq + 1);
    }
    keep(said, line);
}

/// Keeps what a line says of GPUs. What is beyond the most that are kept is lost, and said to be.
fn keep(said: &mut Said, line: &str) {
    let Some(record) = read(line) else { return };
    if said.records.len() < RECORDS_MAX {
        said.records.push(record);
    } else {
        said.gap = true;
    }
}

/// The kernel log of this boot as the journal keeps it.
fn journal() -> Option<Said> {
    let args = ["--dmesg", "--boot", "--no-pager", "--quiet", "--output=short-monotonic"];
    let made = Command::new("journalctl").args(args).output().ok().filter(|o| o.status.success())?;
    let text = String::from_utf8_lossy(&made.stdout);
    let mut lines = text.lines().peekable();
    lines.peek()?;
    let mut said = Said::default();
    lines.for_each(|line| keep(&mut said, line));
    Some(said)
}
