//! The kernel log: `/dev/kmsg`, or a file with lines of it or of dmesg.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use health::gate::{Look, Unseen};
use health::kernel_log::form::{self, Speaker};
use health::kernel_log::places::Place;
use health::kernel_log::{Fault, LINE_MAX, Listener, PciAddress, Record};

/// Longest record of the kernel, bytes (`CONSOLE_EXT_LOG_MAX`).
const RECORD_MAX: usize = 8192;
/// Records of GPUs that are kept of one reading,
const RECORDS_MAX: usize = 4096;
/// and of one kind on one device: a storm says no more in its hundredth line, and must not hide what comes after it.
const ALIKE_MAX: usize = 64;

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
    listener: Listener,
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
        Self { path: path.to_owned(), open: None, next: None, listener: Listener::default() }
    }

    /// The same, from a line on; earlier ones are passed over.
    #[must_use]
    pub fn from_line(path: &Path, next: u64) -> Self {
        Self { path: path.to_owned(), open: None, next: Some(next), listener: Listener::default() }
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
        let mut taking = Taking::of(&mut self.listener, &mut self.next);
        let mut record = [0; RECORD_MAX];
        let Some(open) = &mut self.open else { return Ok(taking.said) };
        loop {
            match open.read(&mut record) {
                Ok(0) => break,
                Ok(n) => taking.record(&String::from_utf8_lossy(&record[..n])),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                // Lines were overwritten before they were read; the next read goes on after them.
                Err(e) if e.raw_os_error() == Some(libc::EPIPE) => taking.said.gap = true,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    self.open = None;
                    return Err(e);
                }
            }
        }
        let said = taking.said;
        // The ring had turned over before anybody read it: the journal may have what is lost.
        if from_start
            && said.gap
            && let Some(whole) = journal(&mut self.listener)
        {
            return Ok(whole);
        }
        Ok(said)
    }

    fn file(&mut self) -> std::io::Result<Said> {
        let first = self.open.is_none();
        if first {
            self.open = Some(File::open(&self.path)?);
        }
        let mut taking = Taking::of(&mut self.listener, &mut self.next);
        let Some(open) = &mut self.open else { return Ok(taking.said) };
        let mut reader = BufReader::new(open);
        let mut line = Vec::new();
        // A line at a time: a file may have any length.
        while reader.by_ref().take(LINE_MAX as u64).read_until(b'\n', &mut line)? > 0 {
            taking.record(&String::from_utf8_lossy(&line));
            // The rest of a line that is too long is not another line.
            while line.len() == LINE_MAX && line.last() != Some(&b'\n') {
                line.clear();
                reader.by_ref().take(LINE_MAX as u64).read_until(b'\n', &mut line)?;
            }
            line.clear();
        }
        if first && taking.kernel_lines == 0 {
            self.open = None;
            let why = "no line of it is the kernel's, and a kernel's log is never empty";
            return Err(std::io::Error::new(ErrorKind::InvalidData, why));
        }
        Ok(taking.said)
    }
}

/// A reading.
struct Taking<'a> {
    listener: &'a mut Listener,
    next: &'a mut Option<u64>,
    said: Said,
    kernel_lines: u64,
    /// Records by device and fault.
    alike: BTreeMap<(Option<PciAddress>, String), usize>,
}

impl<'a> Taking<'a> {
    fn of(listener: &'a mut Listener, next: &'a mut Option<u64>) -> Self {
        Self { listener, next, said: Said::default(), kernel_lines: 0, alike: BTreeMap::new() }
    }

    fn record(&mut self, text: &str) {
        // What follows the first line are fields of it, and lines that belong to it.
        let Some(line) = text.lines().next() else { return };
        let Ok(line) = form::split(line) else {
            self.said.gap = true;
            return;
        };
        self.kernel_lines += u64::from(line.speaker == Speaker::Kernel && !line.text.trim().is_empty());
        if let Some(seq) = line.seq {
            // The first line of a boot has number 0.
            let awaited = self.next.unwrap_or(0);
            if seq < awaited {
                // It was told before; what it names is to be known all the same.
                self.listener.take(&line);
                return;
            }
            self.said.gap |= seq > awaited;
            *self.next = seq.checked_add(1);
        }
        self.keep(&line);
    }

    /// Keeps what a line says of GPUs. What is beyond the most that are kept is lost, and said to be.
    fn keep(&mut self, line: &form::Line<'_>) {
        let Some(mut record) = self.listener.take(line) else { return };
        let places = self.listener.places();
        if matches!(record.fault, Fault::LinkLost | Fault::PcieCorrected | Fault::PcieUncorrected { .. })
            && let Some(place) = record.device.map(|port| places.place(port))
        {
            match place {
                Place::Gpu(gpu) => record.device = Some(gpu),
                // Which of them is for the gate to find.
                Place::Several if record.fault != Fault::PcieCorrected => {
                    (record.device, record.fault) = (None, Fault::LinkLost);
                }
                // Where the log has lost who is behind a port, it does not know that nobody is.
                Place::Other if places.gpus().next().is_some() => return,
                Place::Several | Place::Other | Place::Unknown => {}
            }
        }
        let kind = (record.device, format!("{:?}", record.fault));
        if self.alike.len() >= RECORDS_MAX && !self.alike.contains_key(&kind) {
            self.said.gap = true;
            return;
        }
        let alike = self.alike.entry(kind).or_default();
        *alike += 1;
        if *alike > ALIKE_MAX {
            return;
        }
        if self.said.records.len() < RECORDS_MAX {
            self.said.records.push(record);
        } else {
            self.said.gap = true;
        }
    }
}

/// The kernel log of this boot as the journal keeps it.
fn journal(listener: &mut Listener) -> Option<Said> {
    let args = ["--dmesg", "--boot", "--no-pager", "--quiet", "--output=short-monotonic"];
    let made = Command::new("journalctl").args(args).output().ok().filter(|o| o.status.success())?;
    let text = String::from_utf8_lossy(&made.stdout);
    text.lines().next()?;
    let mut next = None;
    let mut taking = Taking::of(listener, &mut next);
    text.lines().for_each(|line| taking.record(line));
    Some(taking.said)
}
