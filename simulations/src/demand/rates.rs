//! Traces of request rates: many clients in windows, or one rate over time.

use std::collections::BTreeMap;
use std::path::Path;

use providers::table::{DataError, Table, read_text};
use serde::Deserialize;

use super::requests::seconds_of;

/// Rates of several clients in equal windows.
#[derive(Debug, Clone, PartialEq)]
pub struct Rates {
    /// Length of a window in seconds.
    pub window_s: u32,
    /// Clients.
    pub clients: Vec<Client>,
    /// Rates are of tokens, not of requests.
    pub are_tokens: bool,
    /// Windows that were filled in, and anything else done to the data.
    pub notes: Vec<String>,
}

/// One client.
#[derive(Debug, Clone, PartialEq)]
pub struct Client {
    /// `model/client`.
    pub name: String,
    /// Requests per second, `[windows]`.
    pub rate_per_s: Vec<f64>,
    /// Coefficient of variation of the times between requests, `[windows]`; 1 is Poisson.
    pub cv: Vec<f64>,
}

/// Longest trace of minutes: 19 years.
const MINUTES_MAX: usize = 10_000_000;
/// Longest trace of windows.
const WINDOWS_MAX: f64 = 1e6;

/// Longest run of windows in which no client sends anything that is taken for a gap in the log.
const GAP_WINDOWS_MAX: usize = 48;

/// Reads ServeGen's client rates: rows with a rate above 0; a missing row is 0. Runs in which all clients of a model
/// are 0 are logging gaps and are interpolated, and said so in the notes.
///
/// # Errors
/// A bad row, by line and column.
pub fn read_servegen(path: &Path) -> Result<Rates, DataError> {
    const WINDOW_S: u32 = 600;
    let mut rows: BTreeMap<(String, String), BTreeMap<usize, (f64, f64)>> = BTreeMap::new();
    Table::open(path, &["model", "client_id", "t_start_s", "rate_req_per_s", "cv"])?.each(|row| {
        let start = row.number("t_start_s")?;
        if start % f64::from(WINDOW_S) != 0.0 {
            return Err(row.error("t_start_s", format!("{start} is not a multiple of {WINDOW_S}")));
        }
        if start / f64::from(WINDOW_S) > WINDOWS_MAX {
            return Err(row.error("t_start_s", format!("{start} is more than {WINDOWS_MAX} windows from the start")));
        }
        let window = (start / f64::from(WINDOW_S)) as usize;
        let cv = if row.text("cv").is_empty() { 1.0 } else { row.number("cv")? };
        let client = rows.entry((row.parse("model")?, row.parse("client_id")?)).or_default();
        if client.insert(window, (row.number("rate_req_per_s")?, cv)).is_some() {
            return Err(row.error("t_start_s", format!("window {start} stands twice for this client")));
        }
        Ok(())
    })?;
    let mut lengths: BTreeMap<&str, usize> = BTreeMap::new();
    for ((model, _), windows) in &rows {
        let end = windows.keys().next_back().map_or(0, |w| w + 1);
        let length = lengths.entry(model).or_default();
        *length = end.max(*length);
    }
    let longest = lengths.values().copied().max().unwrap_or(0);
    if longest == 0 {
        return Err(DataError::file(path, "has no rates"));
    }
    let mut notes = Vec::new();
    let mut clients = Vec::new();
    for (model, length) in &lengths {
        let of_model: Vec<_> = rows.iter().filter(|((m, _), _)| m == model).collect();
        if *length < longest {
            notes.push(format!("{model} covers {length} of {longest} windows and is left out"));
            continue;
        }
        let silent: Vec<bool> = (0..*length).map(|w| of_model.iter().all(|(_, rows)| !rows.contains_key(&w))).collect();
        let gaps = gaps(&silent);
        let filled: usize = gaps.iter().map(|(a, b)| b - a).sum();
        if filled > 0 {
            notes.push(format!("{model}: {filled} windows without any client are interpolated"));
        }
        for ((model, client), windows) in of_model {
            let value = |w: usize| windows.get(&w).copied();
            let mut rate_per_s: Vec<f64> = (0..*length).map(|w| value(w).map_or(0.0, |v| v.0)).collect();
            let cv = (0..*length).map(|w| value(w).map_or(1.0, |v| v.1)).collect();
            for &(a, b) in &gaps {
                let (before, after) = (rate_per_s[a - 1], rate_per_s[b]);
                for (i, rate) in rate_per_s[a..b].iter_mut().enumerate() {
                    *rate = before + (after - before) * (i + 1) as f64 / (b - a + 1) as f64;
                }
            }
            clients.push(Client { name: format!("{model}/{client}"), rate_per_s, cv });
        }
    }
    Ok(Rates { window_s: WINDOW_S, clients, are_tokens: false, notes })
}

/// Runs of `true` inside the series that are short enough to be gaps.
fn gaps(silent: &[bool]) -> Vec<(usize, usize)> {
    let mut gaps = Vec::new();
    let mut start = None;
    for (w, quiet) in silent.iter().enumerate() {
        match (quiet, start) {
            (true, None) => start = Some(w),
            (false, Some(a)) => {
                if a > 0 && w - a <= GAP_WINDOWS_MAX {
                    gaps.push((a, w));
                }
                start = None;
            }
            _ => {}
        }
    }
    gaps
}

#[derive(Deserialize)]
struct MinuteFile {
    week1_min: Vec<Minute>,
}

#[derive(Deserialize)]
struct Minute {
    t: usize,
    tps: f64,
}

/// Reads a table of a time and one rate. Times are text or seconds; the first column named `timestamp…` and the first
/// of `value`, `rate…` or `req_per_min…` are used (a rate per minute is divided by 60, a count by its step). Also reads
/// the JSON of per-minute token rates derived from BurstGPT, where absent minutes are 0.
///
/// # Errors
/// A bad row, uneven steps that cannot be filled, or a clock going backwards, by line and column.
pub fn read_rate(path: &Path) -> Result<Rates, DataError> {
    if read_text(path)?.trim_start().starts_with('{') {
        return read_minutes(path);
    }
    let table = Table::open(path, &[])?;
    let names = table.column_names();
    let find = |starts: &[&str]| names.iter().find(|n| starts.iter().any(|s| n.starts_with(s))).cloned();
    let time = find(&["timestamp", "t_s"]);
    let value = find(&["value", "rate", "req_per_min"]);
    let (Some(time), Some(value)) = (time, value) else {
        return Err(DataError::line(
            path,
            1,
            None,
            format!("needs a time and a rate; the header has {}", names.join(", ")),
        ));
    };
    let mut points: Vec<(u64, f64, f64)> = Vec::new();
    table.each(|row| {
        let text = row.text(&time);
        let at = seconds_of(text).or_else(|| text.parse().ok());
        let at = at.ok_or_else(|| row.error(&time, format!("'{text}' is no time")))?;
        if points.last().is_some_and(|p| at <= p.1) {
            return Err(row.error(&time, "is not after the line before"));
        }
        points.push((row.line, at, row.number(&value)?));
        Ok(())
    })?;
    if points.len() < 2 {
        return Err(DataError::file(path, "has fewer than two rows"));
    }
    let mut steps: Vec<f64> = points.windows(2).map(|p| p[1].1 - p[0].1).collect();
    steps.sort_by(f64::total_cmp);
    let window_s = steps[(steps.len() - 1) / 2].round().max(1.0);
    let per_second = if value.starts_with("req_per_min") {
        1.0 / 60.0
    } else if value == "value" {
        1.0 / window_s
    } else {
        1.0
    };
    // Counted from the first row: gaps that are rounded one by one would add up.
    let slot = |at_s: f64| ((at_s - points[0].1) / window_s).round() as usize;
    let mut rate_per_s = vec![points[0].2 * per_second];
    let mut filled = 0;
    for pair in points.windows(2) {
        let apart = slot(pair[1].1) - slot(pair[0].1);
        if apart > 10_001 {
            return Err(DataError::line(
                path,
                pair[1].0,
                Some(&time),
                "comes more than 10,000 steps after the line before",
            ));
        }
        let (from, to) = (pair[0].2 * per_second, pair[1].2 * per_second);
        if apart == 0 {
            // Two rows of one step.
            let last = rate_per_s.len() - 1;
            rate_per_s[last] = (from + to) / 2.0;
        }
        rate_per_s.extend((1..=apart).map(|m| from + (to - from) * m as f64 / apart as f64));
        filled += apart.saturating_sub(1);
    }
    let notes = if filled > 0 { vec![format!("{filled} missing steps are interpolated")] } else { vec![] };
    let cv = vec![1.0; rate_per_s.len()];
    let client = Client { name: super::name_of(path), rate_per_s, cv };
    Ok(Rates { window_s: window_s as u32, clients: vec![client], are_tokens: false, notes })
}

fn read_minutes(path: &Path) -> Result<Rates, DataError> {
    let text = read_text(path)?;
    let file: MinuteFile = serde_json::from_str(&text).map_err(|e| {
        DataError::line(path, e.line() as u64, None, format!("has no list 'week1_min' of t and tps ({e})"))
    })?;
    let end = file.week1_min.iter().map(|m| m.t.saturating_add(1)).max().unwrap_or(0);
    if end == 0 || end > MINUTES_MAX {
        return Err(DataError::file(path, format!("covers {end} minutes")));
    }
    let mut rate_per_s = vec![0.0; end];
    let mut seen = std::collections::BTreeSet::new();
    for (i, minute) in file.week1_min.iter().enumerate() {
        if !minute.tps.is_finite() || minute.tps < 0.0 {
            let column = Some(format!("week1_min[{i}].tps"));
            return Err(DataError { column, ..DataError::file(path, format!("{} is not a rate", minute.tps)) });
        }
        if !seen.insert(minute.t) {
            let column = Some(format!("week1_min[{i}].t"));
            return Err(DataError { column, ..DataError::file(path, format!("minute {} stands twice", minute.t)) });
        }
        rate_per_s[minute.t] = minute.tps;
    }
    let cv = vec![1.0; end];
    let client = Client { name: super::name_of(path), rate_per_s, cv };
    let notes = vec![format!("{} empty minutes are 0", end - seen.len())];
    Ok(Rates { window_s: 60, clients: vec![client], are_tokens: true, notes })
}
