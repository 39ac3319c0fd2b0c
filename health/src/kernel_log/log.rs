//! A whole log: its boots, its times, the host whose it is. No time is invented: what a log does not tell is not known.

use super::form::{self, FormError, Line, Speaker, Wall};
use super::{LINE_MAX, Listener, Places, Record};

/// Records that are kept; a longer log says so.
const RECORDS_MAX: usize = 100_000;
/// Times since the boot may be out of order by so much, microseconds: processors write at once.
const DISORDER_US: u64 = 2_000_000;
/// A year, milliseconds: where a log tells none, December is followed by January.
const YEAR_MS: i64 = 366 * 86_400_000;
/// A clock that is set back by more than this is another clock, milliseconds.
const SET_BACK_MS: i64 = 60_000;
/// Lines that come before the kernel names its version: the first processor's, its microcode.
const BEFORE_VERSION: u64 = 8;
/// Names that a host has before it knows its own.
const NAMELESS: [&str; 4] = ["localhost", "localhost.localdomain", "(none)", "archiso"];

/// Why a log cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// A line.
    #[error("line {number}: {source}")]
    Line {
        /// Its number in the file, from 1.
        number: u64,
        /// Why.
        source: FormError,
    },
    /// Logs of several hosts are in it.
    #[error("it has lines of {0} and of {1}: take one host's with --host")]
    Hosts(String, String),
}

/// Something that a log says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A line about a GPU.
    Record(Record),
    /// Lines are missing before the next one.
    Gap(u64),
}

/// With its place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which boot, from 0.
    pub boot: u32,
    /// Milliseconds: by the clock where the log has it, or else since its first boot, with no time between boots. None
    /// where it is not known.
    pub at_ms: Option<i64>,
    /// Major version of the driver, where the log had named it by then.
    pub driver_major: Option<u32>,
    /// What.
    pub said: Said,
}

/// What a log has.
#[derive(Debug, Clone, Default)]
pub struct Whole {
    /// What it says of GPUs, in its order.
    pub entries: Vec<Entry>,
    /// Which GPUs and ports it names.
    pub places: Places,
    /// The first time by the clock; none where the log tells times since a boot.
    pub begins_ms: Option<i64>,
    /// Lines of the kernel.
    pub kernel_lines: u64,
    /// Lines of processes, which are no evidence.
    pub process_lines: u64,
    /// Boots.
    pub boots: u32,
    /// Entries were left out, since there were too many.
    pub is_cut: bool,
    /// The host, where the log names it.
    pub host: Option<String>,
    /// The driver's major version at its end.
    pub driver_major: Option<u32>,
}

/// Reads a log line by line, in bounded memory.
#[derive(Debug, Default)]
pub struct Log {
    listener: Listener,
    whole: Whole,
    only: Option<String>,
    lines: u64,
    /// Lines of the kernel in this boot.
    of_boot: u64,
    /// It has named its version in this boot, or said something of a GPU: what names it after that is another boot.
    is_under_way: bool,
    boot_id: Option<String>,
    seq: Option<u64>,
    since_boot_us: Option<u64>,
    /// What is added to times since the boot, and to dates without a year.
    base_ms: i64,
    years_ms: i64,
    yearless_ms: Option<i64>,
    /// By how much the clock was set back.
    set_back_ms: i64,
    /// Who spoke last, where lines say who speaks.
    stamped: Option<Speaker>,
    last_ms: Option<i64>,
}

impl Log {
    /// Only of this host, where lines name one.
    #[must_use]
    pub fn of_host(only: Option<String>) -> Self {
        Self { only, ..Self::default() }
    }

    /// Takes the next line.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn read(&mut self, line: &[u8]) -> Result<(), LogError> {
        self.lines += 1;
        let line = &line[..line.len().min(LINE_MAX)];
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end_matches(['\r', '\n']);
        if text.starts_with("-- ") {
            if text.starts_with("-- Boot ") || text.starts_with("-- Reboot") {
                self.boots_again();
            }
            return Ok(());
        }
        // Fields of a record of /dev/kmsg, and lines of a text that has several.
        if text.trim().is_empty() || text.starts_with(" SUBSYSTEM=") || text.starts_with(" DEVICE=") {
            return Ok(());
        }
        let line = form::split(text).map_err(|source| LogError::Line { number: self.lines, source })?;
        if let Some(host) = line.host.as_ref().filter(|host| !NAMELESS.contains(&host.as_str())) {
            if self.only.as_ref().is_some_and(|only| only != host) {
                return Ok(());
            }
            let first = self.whole.host.get_or_insert_with(|| host.clone());
            if first != host {
                return Err(LogError::Hosts(first.clone(), host.clone()));
            }
        }
        let is_bare = line.seq.is_none() && line.since_boot_us.or(line.since_last_us).is_none() && line.wall.is_none();
        // What follows in a text of several lines is its speaker's.
        let speaker = if is_bare { self.stamped.unwrap_or(line.speaker) } else { line.speaker };
        if !is_bare {
            self.stamped = Some(speaker);
        }
        if speaker == Speaker::Process {
            self.whole.process_lines += 1;
            let at_ms = self.last_ms;
            self.number(&line, at_ms);
            return Ok(());
        }
        self.kernel_line(&line);
        Ok(())
    }

    fn kernel_line(&mut self, line: &Line<'_>) {
        self.whole.kernel_lines += 1;
        let another = line.boot.is_some() && self.boot_id.is_some() && line.boot != self.boot_id;
        let again =
            |now: Option<u64>, last: Option<u64>, by: u64| now.zip(last).is_some_and(|(n, l)| n.saturating_add(by) < l);
        let names_version = line.text.trim_start().starts_with("Linux version ");
        if another
            || (names_version && (self.is_under_way || self.of_boot > BEFORE_VERSION))
            || again(line.seq, self.seq, 0)
            || again(line.since_boot_us, self.since_boot_us, DISORDER_US)
        {
            self.boots_again();
        }
        self.boot_id = line.boot.clone().or(self.boot_id.take());
        self.of_boot += 1;
        self.is_under_way |= names_version;
        let at_ms = self.time(line);
        self.number(line, at_ms);
        if let Some(record) = self.listener.take(line) {
            self.is_under_way = true;
            self.push(at_ms, Said::Record(record));
        }
    }

    /// Whoever speaks: each line has the next number.
    fn number(&mut self, line: &Line<'_>, at_ms: Option<i64>) {
        if let Some((last, seq)) = self.seq.zip(line.seq).filter(|(last, seq)| *seq > last.saturating_add(1)) {
            self.push(at_ms, Said::Gap(seq - last - 1));
        }
        self.seq = line.seq.or(self.seq);
    }

    fn push(&mut self, at_ms: Option<i64>, said: Said) {
        if self.whole.entries.len() >= RECORDS_MAX {
            self.whole.is_cut = true;
            return;
        }
        let (boot, driver_major) = (self.whole.boots, self.listener.driver_major());
        self.whole.entries.push(Entry { boot, at_ms, driver_major, said });
    }

    fn boots_again(&mut self) {
        if self.of_boot == 0 {
            return;
        }
        self.whole.boots += 1;
        (self.of_boot, self.is_under_way) = (0, false);
        (self.seq, self.since_boot_us, self.boot_id) = (None, None, None);
        self.base_ms = self.last_ms.unwrap_or(self.base_ms);
    }

    /// When it was. Times go forward only: what comes later in a log was not before.
    fn time(&mut self, line: &Line<'_>) -> Option<i64> {
        let since_boot_us = line.since_boot_us.or_else(|| {
            let passed = line.since_last_us?;
            Some(self.since_boot_us.unwrap_or(0).saturating_add(passed))
        });
        self.since_boot_us = since_boot_us.max(self.since_boot_us);
        let at_ms = match line.wall {
            Some(Wall { ms, has_year: true }) => Some(ms),
            Some(Wall { ms, has_year: false }) => {
                // Half a year back is the next year.
                if self.yearless_ms.is_some_and(|last| last - ms > YEAR_MS / 2) {
                    self.years_ms += YEAR_MS;
                }
                self.yearless_ms = Some(ms);
                Some(self.years_ms.saturating_add(ms))
            }
            None => since_boot_us.map(|us| self.base_ms.saturating_add(i64::try_from(us / 1000).unwrap_or(i64::MAX))),
        };
        // A clock that was ahead and is set right goes on where it was: what passes between two lines is what counts.
        let at_ms = at_ms.filter(|_| line.wall.is_some()).map_or(at_ms, |told| {
            let at_ms = told.saturating_add(self.set_back_ms);
            match self.last_ms.filter(|last| at_ms.saturating_add(SET_BACK_MS) < *last) {
                Some(last) => {
                    self.set_back_ms = last.saturating_sub(told);
                    Some(last)
                }
                None => Some(at_ms),
            }
        });
        // Minutes only, and what has passed since: `dmesg -e`.
        let at_ms = match (at_ms, line.since_last_us, self.last_ms) {
            (Some(_), Some(passed), Some(last)) => Some(last.saturating_add(i64::try_from(passed / 1000).unwrap_or(0))),
            _ => at_ms,
        };
        if line.wall.is_some() && self.last_ms.is_none() {
            self.whole.begins_ms = at_ms;
        }
        self.last_ms = at_ms.max(self.last_ms);
        at_ms.and(self.last_ms)
    }

    /// All of it.
    #[must_use]
    pub fn finish(self) -> Whole {
        let (places, driver_major) = (self.listener.places().clone(), self.listener.driver_major());
        let boots = if self.whole.kernel_lines == 0 { 0 } else { self.whole.boots + 1 };
        Whole { places, boots, driver_major, ..self.whole }
    }
}
