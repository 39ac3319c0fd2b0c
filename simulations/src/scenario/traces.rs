//! Availability and fault traces.

use std::path::Path;

use providers::sim::Steps;
use providers::table::{DataError, read_text};
use serde::Deserialize;

#[derive(Deserialize)]
struct Availability {
    metadata: Metadata,
    data: Vec<f64>,
}

#[derive(Deserialize)]
struct Metadata {
    gap_seconds: f64,
}

/// An availability trace (`{"metadata": {"gap_seconds": g}, "data": [count, …]}`), as nodes from `from_s` of it on:
/// `nodes` times its value over its largest.
///
/// # Errors
/// Not of that form, or a number that is negative or not finite.
pub fn availability(path: &Path, from_s: f64, nodes: f64) -> Result<Steps, DataError> {
    let text = read_text(path)?;
    let trace: Availability = serde_json::from_str(&text)
        .map_err(|e| DataError::line(path, e.line() as u64, None, format!("is no availability trace ({e})")))?;
    let gap = trace.metadata.gap_seconds;
    let bad = trace.data.iter().position(|v| !v.is_finite() || *v < 0.0);
    if let Some(i) = bad {
        return Err(DataError::file(path, format!("data[{i}] is no count")));
    }
    if !(gap >= 1.0 && gap.is_finite()) || trace.data.is_empty() {
        return Err(DataError::file(path, "has no data, or steps of less than a second"));
    }
    let largest = trace.data.iter().copied().fold(0.0, f64::max).max(1.0);
    let mut steps: Vec<(f64, f64)> = Vec::new();
    for (i, value) in trace.data.iter().enumerate() {
        let (at, count) = (i as f64 * gap - from_s, (nodes * value / largest).floor());
        if at <= 0.0 {
            steps = vec![(0.0, count)];
        } else if steps.last().is_none_or(|last| last.1 != count) {
            steps.push((at, count));
        }
    }
    if steps.is_empty() {
        steps.push((0.0, 0.0));
    }
    Ok(Steps(steps))
}

#[derive(Deserialize)]
struct FaultEvent {
    node_id: String,
    event_time: f64,
    event_type: String,
}

/// Faults of a fleet of servers: `(seconds from from_s, server)`; servers are numbered in the order that they first fail,
/// spread over the 400 of the fleet that the trace comes from.
///
/// # Errors
/// Not a list of `node_id`, `event_time` (days) and `event_type`, or a time that is no number.
pub fn faults(path: &Path, from_s: f64) -> Result<Vec<(f64, u32)>, DataError> {
    const SERVERS: usize = 400;
    let text = read_text(path)?;
    let events: Vec<FaultEvent> = serde_json::from_str(&text)
        .map_err(|e| DataError::line(path, e.line() as u64, None, format!("is no list of faults ({e})")))?;
    let mut known: Vec<String> = Vec::new();
    let mut faults = Vec::new();
    for (i, event) in events.into_iter().enumerate().filter(|(_, e)| e.event_type == "fault_start") {
        if !event.event_time.is_finite() {
            return Err(DataError::file(path, format!("event {i} has no time")));
        }
        let place = known.iter().position(|k| *k == event.node_id).unwrap_or_else(|| {
            known.push(event.node_id);
            known.len() - 1
        });
        // A fixed shuffle, so that servers that fail early do not get the low numbers, which exist most of the time.
        let server = (place * 163 + 71) % SERVERS;
        faults.push((event.event_time * 86_400.0 - from_s, server as u32));
    }
    faults.retain(|f| f.0 >= 0.0);
    faults.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("temp");
        file.write_all(text.as_bytes()).expect("written");
        file
    }

    #[test]
    fn availability_becomes_steps() {
        let trace = file(r#"{"metadata": {"gap_seconds": 100}, "data": [0, 1, 1, 4, 0]}"#);
        assert_eq!(
            availability(trace.path(), 150.0, 8.0).expect("a trace").0,
            [(0.0, 2.0), (150.0, 8.0), (250.0, 0.0)]
        );
        assert!(availability(file("{}").path(), 0.0, 1.0).is_err());
        let broken = file(r#"{"metadata": {"gap_seconds": 100}, "data": [0, -1]}"#);
        assert!(availability(broken.path(), 0.0, 1.0).expect_err("negative").to_string().contains("data[1]"));
    }

    #[test]
    fn faults_are_starts_by_time() {
        let trace = file(
            r#"[{"node_id": "b", "event_time": 2.0, "event_type": "fault_start"},
                {"node_id": "b", "event_time": 2.5, "event_type": "fault_end"},
                {"node_id": "a", "event_time": 1.0, "event_type": "fault_start"}]"#,
        );
        let found = faults(trace.path(), 43_200.0).expect("faults");
        assert_eq!(found.len(), 2);
        assert!(found[0].0 == 43_200.0 && found[1].0 == 129_600.0 && found[0].1 != found[1].1);
    }
}
