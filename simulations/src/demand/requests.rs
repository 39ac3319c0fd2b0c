//! Traces of single requests with token counts.

use std::path::Path;

use providers::table::{DataError, Table, read_text};
use serde::Deserialize;

use super::Kind;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request {
    /// Seconds from the first request.
    pub t_s: f64,
    /// Prompt tokens.
    pub input_tokens: f64,
    /// Generated tokens.
    pub output_tokens: f64,
}

#[derive(Deserialize)]
struct MooncakeLine {
    timestamp: f64,
    input_length: f64,
    output_length: f64,
}

/// Longest trace of requests.
const SPAN_MAX_S: f64 = 400.0 * 86_400.0;

/// Reads a trace, sorted by time.
///
/// # Errors
/// A bad row by line and column; a clock that goes backwards by more than a second; an empty file.
pub fn read(path: &Path, kind: Kind) -> Result<Vec<Request>, DataError> {
    let mut all: Vec<(u64, Request)> = Vec::new();
    match kind {
        Kind::Mooncake => {
            for (i, line) in read_text(path)?.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
                let at = i as u64 + 1;
                let row: MooncakeLine = serde_json::from_str(line).map_err(|e| {
                    DataError::line(
                        path,
                        at,
                        None,
                        format!("is not a request with input_length and output_length ({e})"),
                    )
                })?;
                let numbers = [row.timestamp, row.input_length, row.output_length];
                if numbers.iter().any(|n| !n.is_finite() || *n < 0.0) {
                    return Err(DataError::line(path, at, None, "has a negative number"));
                }
                let (input_tokens, output_tokens) = (row.input_length, row.output_length);
                all.push((at, Request { t_s: row.timestamp / 1000.0, input_tokens, output_tokens }));
            }
        }
        Kind::BurstGpt => {
            Table::open(path, &["Timestamp", "Request tokens", "Response tokens"])?.each(|row| {
                let request = Request {
                    t_s: row.number("Timestamp")?,
                    input_tokens: row.number("Request tokens")?,
                    output_tokens: row.number("Response tokens")?,
                };
                all.push((row.line, request));
                Ok(())
            })?;
        }
        _ => {
            Table::open(path, &["TIMESTAMP", "ContextTokens", "GeneratedTokens"])?.each(|row| {
                let text = row.text("TIMESTAMP");
                let t_s = seconds_of(text).ok_or_else(|| row.error("TIMESTAMP", format!("'{text}' is no time")))?;
                let input_tokens = row.number("ContextTokens")?;
                all.push((row.line, Request { t_s, input_tokens, output_tokens: row.number("GeneratedTokens")? }));
                Ok(())
            })?;
        }
    }
    for pair in all.windows(2) {
        if pair[1].1.t_s < pair[0].1.t_s - 1.0 {
            let what = format!("goes back in time by {:.1} s", pair[0].1.t_s - pair[1].1.t_s);
            return Err(DataError::line(path, pair[1].0, None, what));
        }
    }
    let Some(start) = all.iter().map(|(_, r)| r.t_s).reduce(f64::min) else {
        return Err(DataError::file(path, "has no requests"));
    };
    let last = all.iter().map(|(_, r)| r.t_s).fold(start, f64::max);
    if last - start > SPAN_MAX_S {
        return Err(DataError::file(
            path,
            format!("spans {:.0} days; at most {:.0} are possible", (last - start) / 86_400.0, SPAN_MAX_S / 86_400.0),
        ));
    }
    let mut requests: Vec<Request> = all.into_iter().map(|(_, r)| Request { t_s: r.t_s - start, ..r }).collect();
    requests.sort_by(|a, b| a.t_s.total_cmp(&b.t_s));
    Ok(requests)
}

/// Seconds since 1970 of `2023-11-16 18:17:03.9799600` or the same with `T`, in UTC.
#[must_use]
pub fn seconds_of(text: &str) -> Option<f64> {
    let text = text.trim_end_matches('Z').replace('T', " ");
    let format = if text.contains('.') { "%Y-%m-%d %H:%M:%S%.f" } else { "%Y-%m-%d %H:%M:%S" };
    let time = chrono::NaiveDateTime::parse_from_str(&text, format).ok()?.and_utc();
    Some(time.timestamp() as f64 + f64::from(time.timestamp_subsec_nanos()) / 1e9)
}
