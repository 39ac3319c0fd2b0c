//! One line of a log, in whatever form it comes: `/dev/kmsg`, dmesg (plain, `-T`, `-x`, `-r`, `-d`, `-e`, iso), journalctl
//! (short and its kin, json), syslog files. Who speaks, when, and what.

use std::borrow::Cow;

use serde_json::Value;

/// Who wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// The kernel.
    Kernel,
    /// A process: what it quotes is no evidence.
    Process,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its number, where it has one.
    pub seq: Option<u64>,
    /// Microseconds since the boot, where it says.
    pub since_boot_us: Option<u64>,
    /// Microseconds since the line before, where that is all that it says.
    pub since_last_us: Option<u64>,
    /// By the clock, where it says.
    pub wall: Option<Wall>,
    /// Which boot, where it says.
    pub boot: Option<String>,
    /// Which host, where it says.
    pub host: Option<String>,
    /// Who.
    pub speaker: Speaker,
    /// What.
    pub text: Cow<'a, str>,
}

/// A time by the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wall {
    /// Milliseconds since 1970; since the beginning of some year, where the year is not told.
    pub ms: i64,
    /// The year is told.
    pub has_year: bool,
}

/// A line that cannot be taken apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// The number.
    #[error("{0} is no number of a line: no line can follow it")]
    Number(u64),
    /// A form of the journal in which a line is spread over several.
    #[error("this is the journal's export or verbose form: use journalctl -k -o json, or -o short-iso")]
    ManyLines,
}

const FACILITIES: [&str; 20] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "local0",
    "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];
/// Times that no kernel has: thirty years since a boot,
const SINCE_BOOT_MAX_US: u64 = 1_000_000_000_000_000;
/// and the year 5000.
const WALL_MAX_US: u64 = 100_000_000_000_000_000;
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

fn plain(text: &str) -> Line<'_> {
    Line {
        seq: None,
        since_boot_us: None,
        since_last_us: None,
        wall: None,
        boot: None,
        host: None,
        speaker: Speaker::Kernel,
        text: Cow::Borrowed(text),
    }
}

/// Takes a line apart. Text without any form is taken for the kernel's, as `dmesg -t` prints it.
///
/// # Errors
/// [`FormError`].
pub fn split(line: &str) -> Result<Line<'_>, FormError> {
    let line = line.trim_end_matches(['\r', '\n']).trim_start_matches('\u{1e}');
    let line = line.strip_prefix("data: ").filter(|json| json.starts_with('{')).unwrap_or(line);
    if line.contains('\u{1b}') {
        let clean = without_colours(line);
        let Line { seq, since_boot_us, since_last_us, wall, boot, host, speaker, text } = split(&clean)?;
        let text = Cow::Owned(text.into_owned());
        return Ok(Line { seq, since_boot_us, since_last_us, wall, boot, host, speaker, text });
    }
    let field = line.trim();
    if field.starts_with("__CURSOR=") || field.starts_with("_TRANSPORT=") || field == "{" {
        return Err(FormError::ManyLines);
    }
    if line.starts_with('{')
        && let Some(made) = json(line)
    {
        return Ok(made);
    }
    if let Some(made) = kmsg(line)? {
        return Ok(made);
    }
    Ok(written(line))
}

/// Colours of a terminal: `dmesg --color=always`.
fn without_colours(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        clean += part.strip_prefix('[').and_then(|p| p.split_once('m')).map_or(part, |(_, rest)| rest);
    }
    clean
}

/// A record of the journal.
fn json(line: &str) -> Option<Line<'static>> {
    let record: Value = serde_json::from_str(line).ok()?;
    let field = |name: &str| record.get(name).and_then(Value::as_str);
    let text = match record.get("MESSAGE")? {
        Value::String(text) => text.clone(),
        // Bytes that are no UTF-8.
        Value::Array(bytes) => {
            let bytes: Vec<u8> = bytes.iter().filter_map(|b| u8::try_from(b.as_u64()?).ok()).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        _ => return None,
    };
    let us = |name: &str| field(name).and_then(|t| t.parse::<u64>().ok()).filter(|us| *us < WALL_MAX_US);
    let monotonic = us("_SOURCE_MONOTONIC_TIMESTAMP").or_else(|| us("__MONOTONIC_TIMESTAMP"));
    let realtime = us("__REALTIME_TIMESTAMP").and_then(|t| i64::try_from(t / 1000).ok());
    // Processes write into the kernel's log too, with a facility of their own.
    let is_kernel = field("_TRANSPORT") == Some("kernel") && field("SYSLOG_FACILITY").is_none_or(|f| f == "0");
    Some(Line {
        seq: None,
        since_boot_us: monotonic,
        since_last_us: None,
        wall: realtime.map(|ms| Wall { ms, has_year: true }),
        boot: field("_BOOT_ID").map(str::to_owned),
        host: field("_HOSTNAME").map(str::to_owned),
        speaker: if is_kernel { Speaker::Kernel } else { Speaker::Process },
        text: Cow::Owned(text),
    })
}

/// `6,1234,5678901,-;text`; the first number has the facility in it, 0 is the kernel's.
fn kmsg(line: &str) -> Result<Option<Line<'_>>, FormError> {
    let Some((head, text)) = line.split_once(';') else { return Ok(None) };
    let mut cells = head.split(',');
    let mut number = || cells.next().and_then(|cell| cell.parse::<u64>().ok());
    let (Some(level), Some(seq)) = (number(), number()) else { return Ok(None) };
    let since_boot_us = number().filter(|us| *us < SINCE_BOOT_MAX_US);
    if seq == u64::MAX {
        return Err(FormError::Number(seq));
    }
    let speaker = if level >> 3 == 0 { of_text(text) } else { Speaker::Process };
    Ok(Some(Line { seq: Some(seq), since_boot_us, speaker, ..plain(text) }))
}

/// A process that writes into the kernel's log puts its name in front: `systemd[1]: …`.
fn of_text(text: &str) -> Speaker {
    let word = text.split(' ').next().unwrap_or_default();
    let named = word.strip_suffix("]:").and_then(|w| w.split_once('['));
    let is_process = named.is_some_and(|(name, pid)| !name.is_empty() && is_number(pid));
    if is_process { Speaker::Process } else { Speaker::Kernel }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Forms that people read.
fn written(line: &str) -> Line<'_> {
    let mut made = plain(line);
    let mut rest = line.trim_start();
    let mut foreign = false;
    if let Some((number, after)) = rest.strip_prefix('<').and_then(|r| r.split_once('>'))
        && let Ok(priority) = number.parse::<u32>()
    {
        foreign |= priority >> 3 != 0;
        // RFC 5424 has its version here.
        rest = after.strip_prefix("1 ").unwrap_or(after);
    }
    if let Some((facility, after)) = rest.split_once(':').filter(|(f, _)| FACILITIES.contains(&f.trim()))
        && let Some((_, text)) = after.split_once(':')
    {
        foreign |= facility.trim() != "kern";
        rest = text.trim_start();
    }
    let mut stamped = false;
    // What dmesg prints has no host in it: its times are in brackets, or have a comma.
    let mut has_host = true;
    if let Some((wall, after)) = clock(rest) {
        has_host = !rest[..rest.len() - after.len()].contains(',');
        (made.wall, rest, stamped) = (Some(wall), after, true);
    } else if let Some(after) = bracket(rest, &mut made) {
        (rest, stamped, has_host) = (after, true, false);
    }
    if !stamped {
        // Times that somebody has cut out, and a name without host and time.
        rest = rest.strip_prefix("[...]").unwrap_or(rest).trim_start();
        rest = rest.strip_prefix("kernel: ").unwrap_or(rest);
    }
    let mut speaker = of_text(rest);
    if stamped && let Some(said) = rest.strip_prefix("kernel: ") {
        // `journalctl --no-hostname`.
        rest = said;
        speaker = of_text(rest);
    } else if stamped && let Some((host, who, text)) = of_host(rest, has_host) {
        (made.host, speaker, rest) = (Some(host.to_owned()), who, text);
        // Files of syslog have the kernel's own time in front of its text.
        if who == Speaker::Kernel
            && let Some(after) = bracket(rest.trim_start(), &mut made)
        {
            rest = after;
            speaker = of_text(rest);
        }
    }
    made.speaker = if foreign { Speaker::Process } else { speaker };
    made.text = Cow::Borrowed(rest);
    made
}

/// `[   12.345678] text`, and what else dmesg puts between brackets. What is no time is text.
fn bracket<'a>(text: &'a str, made: &mut Line<'_>) -> Option<&'a str> {
    let (stamp, rest) = text.strip_prefix('[')?.split_once(']')?;
    let stamp = stamp.trim();
    let us = |text: &str| {
        let seconds = text.trim().parse::<f64>().ok().filter(|s| s.is_finite())?;
        let us = (seconds * 1e6).round() as u64;
        (seconds >= 0.0 && us < SINCE_BOOT_MAX_US).then_some(us)
    };
    if let Some((at, _)) = stamp.split_once('<').filter(|(before, _)| !before.is_empty()) {
        match us(at) {
            Some(since_boot) => made.since_boot_us = Some(since_boot),
            None => made.wall = Some(date(at.trim())?),
        }
    } else if let Some(delta) = stamp.strip_prefix('<').and_then(|s| s.strip_suffix('>')).or(stamp.strip_prefix('+')) {
        made.since_last_us = Some(us(delta)?);
    } else if let Some(since_boot) = us(stamp) {
        made.since_boot_us = Some(since_boot);
    } else {
        made.wall = Some(date(stamp)?);
    }
    let rest = rest.trim_start();
    // Which thread or processor it was: `[  T123]`.
    let caller = rest.strip_prefix('[').and_then(|r| r.split_once(']'));
    let after = caller.filter(|(who, _)| who.trim().strip_prefix(['T', 'C']).is_some_and(is_number));
    Some(after.map_or(rest, |(_, after)| after.trim_start()))
}

/// `Sun Mar  1 10:16:40 2026` of `dmesg -T`, `Mar 1 10:16` of `dmesg -e`.
fn date(stamp: &str) -> Option<Wall> {
    let words: Vec<&str> = stamp.split_whitespace().collect();
    let (month, day, time, year) = match words[..] {
        [_, month, day, time, year] => (month, day, time, Some(year.parse().ok()?)),
        [month, day, time] => (month, day, time, None),
        _ => return None,
    };
    let month = MONTHS.iter().position(|m| *m == month)? as i64 + 1;
    wall(year, month, day.parse().ok()?, clock_ms(time)?)
}

/// Times by the clock at the beginning of a line, and what follows.
fn clock(text: &str) -> Option<(Wall, &str)> {
    let mut words = text.split_whitespace();
    let (first, second, third) = (words.next()?, words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let after = |last: &str| text[last.as_ptr() as usize - text.as_ptr() as usize + last.len()..].trim_start();
    // `Mar 01 10:16:40 …`
    if let Some(month) = MONTHS.iter().position(|m| *m == first) {
        let time = clock_ms(third)?;
        return Some((wall(None, month as i64 + 1, second.parse().ok()?, time)?, after(third)));
    }
    // `2026-03-01T10:16:40,123456+00:00 …`
    if let Some((date, time)) = first.split_once('T')
        && let Some(day) = iso_day(date)
    {
        return Some((Wall { ms: day * 86_400_000 + zoned_ms(time)?, has_year: true }, after(first)));
    }
    // `2026-03-01 10:16:40 …`, and `Sun 2026-03-01 10:16:40 UTC …`
    if let Some(day) = iso_day(first) {
        return Some((Wall { ms: day * 86_400_000 + zoned_ms(second)?, has_year: true }, after(second)));
    }
    if let Some(day) = iso_day(second) {
        let zone = words.next()?;
        return Some((Wall { ms: day * 86_400_000 + clock_ms(third)?, has_year: true }, after(zone)));
    }
    // `1772360200.123456 …`
    let (seconds, fraction) = first.split_once('.')?;
    let is_epoch = seconds.len() >= 9 && is_number(seconds) && is_number(fraction);
    let seconds = first.parse::<f64>().ok().filter(|s| is_epoch && *s * 1e6 < WALL_MAX_US as f64)?;
    Some((Wall { ms: (seconds * 1000.0) as i64, has_year: true }, after(first)))
}

fn iso_day(date: &str) -> Option<i64> {
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let fits = year.len() == 4 && parts.next().is_none();
    let (year, month, day) = (year.parse().ok()?, month.parse().ok()?, day.parse().ok()?);
    let fits = fits && (1970..5000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    fits.then(|| days(year, month, day))
}

/// `10:16:40.123456+02:00`: milliseconds of the day, in UTC.
fn zoned_ms(text: &str) -> Option<i64> {
    let text = text.trim_end_matches('Z');
    let Some(at) = text.rfind(['+', '-']) else { return clock_ms(text) };
    let digits: String = text[at + 1..].chars().filter(char::is_ascii_digit).collect();
    let (hours, minutes) = digits.split_at_checked(2).filter(|(_, minutes)| minutes.len() <= 2)?;
    let offset = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().unwrap_or(0);
    let sign = if text[at..].starts_with('-') { -1 } else { 1 };
    Some(clock_ms(&text[..at])? - sign * offset * 60_000)
}

/// `10:16:40`, `10:16:40.123`, `10:16`.
fn clock_ms(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once(['.', ',']).unwrap_or((text, ""));
    let mut parts = whole.split(':').map(str::parse::<i64>);
    let (hours, minutes, seconds) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next().unwrap_or(Ok(0)).ok()?);
    let fits = (0..24).contains(&hours) && (0..60).contains(&minutes) && (0..=60).contains(&seconds);
    let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
    fits.then_some(())?;
    Some(((hours * 60 + minutes) * 60 + seconds) * 1000 + digits.parse::<i64>().ok()?)
}

/// Where no year is told, one that has a 29th of February.
fn wall(year: Option<i64>, month: i64, day: i64, time_ms: i64) -> Option<Wall> {
    let told = year.unwrap_or(1972);
    let fits = (1970..5000).contains(&told) && (1..=31).contains(&day);
    fits.then(|| Wall { ms: days(told, month, day) * 86_400_000 + time_ms, has_year: year.is_some() })
}

/// Days since 1970 in the Gregorian calendar (H. Hinnant, "chrono-compatible low-level date algorithms").
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// `node-1 kernel: text` behind a time: host, who, text. Text of the kernel's own may look alike (`Command line: …`): unless
/// there must be a host, only `kernel` or a number of a process tells that there is one.
fn of_host(text: &str, has_host: bool) -> Option<(&str, Speaker, &str)> {
    let (host, rest) = text.split_once(' ')?;
    let is_ipv6 =
        host.contains("::") && !host.ends_with(':') && host.chars().all(|c| c.is_ascii_hexdigit() || c == ':');
    if host.is_empty() || (host.contains([':', '[', '(', '<']) && !is_ipv6) {
        return None;
    }
    let rest = rest.trim_start();
    // RFC 5424: `host kernel - - - text`, with structured data in place of the last dash.
    if let Some(said) = rest.strip_prefix("kernel - - ") {
        let data = said.strip_prefix("- ").or_else(|| said.strip_prefix('[')?.split_once("] ").map(|(_, text)| text));
        return Some((host, Speaker::Kernel, data?));
    }
    let (who, said) = match rest.split_once(": ") {
        Some(both) => both,
        None => (rest.strip_suffix(':')?, ""),
    };
    let (name, pid) = who.strip_suffix(']').and_then(|w| w.split_once('[')).map_or((who, None), |(n, p)| (n, Some(p)));
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_./@()".contains(c));
    if !is_name || pid.is_some_and(|pid| !is_number(pid)) {
        return None;
    }
    if !has_host && name != "kernel" && pid.is_none() {
        return None;
    }
    let speaker = if name == "kernel" && pid.is_none_or(|pid| pid == "0") { Speaker::Kernel } else { Speaker::Process };
    Some((host, speaker, said))
}
