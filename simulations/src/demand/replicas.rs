//! Traces that say directly how many GPUs or replicas were in use.

use std::collections::BTreeMap;
use std::path::Path;

use providers::table::{DataError, Table, read_text};
use serde::Deserialize;

use super::{Series, Unit};

/// Reads `t_s,class,gpus` rows, or a table with a time (`t_s` in seconds or `hour`) and a column for each class.
///
/// # Errors
/// A bad number, uneven steps, a missing value or a clock going backwards, by line and column.
pub fn read_replicas(path: &Path) -> Result<Series, DataError> {
    let table = Table::open(path, &[])?;
    let names = table.column_names();
    if names.iter().any(|n| n == "class") { read_long(path, table) } else { read_wide(path, table, &names) }
}

fn read_wide(path: &Path, table: Table, names: &[String]) -> Result<Series, DataError> {
    let (time, scale) = match names.first().map(String::as_str) {
        Some("t_s") => ("t_s", 1.0),
        Some("hour") => ("hour", 3600.0),
        _ => {
            return Err(DataError::line(path, 1, None, "the first column must be t_s or hour"));
        }
    };
    let classes: Vec<String> = names[1..].to_vec();
    if classes.is_empty() {
        return Err(DataError::line(path, 1, None, "has no class columns"));
    }
    let mut values = vec![Vec::new(); classes.len()];
    let mut times: Vec<f64> = Vec::new();
    table.each(|row| {
        let at = row.number(time)? * scale;
        check_step(&times, at).map_err(|what| row.error(time, what))?;
        times.push(at);
        for (k, class) in classes.iter().enumerate() {
            values[k].push(row.number_text(class, row.at(k + 1))?);
        }
        Ok(())
    })?;
    let step_s = step_of(path, &times)?;
    Ok(Series { step_s, classes, values, unit: Unit::Replicas, notes: Vec::new() })
}

fn read_long(path: &Path, table: Table) -> Result<Series, DataError> {
    let mut rows: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let mut times: std::collections::BTreeSet<u64> = std::collections::BTreeSet::new();
    table.each(|row| {
        let at = row.number("t_s")?;
        if at.fract() != 0.0 || at > 1e12 {
            return Err(row.error("t_s", format!("{at} is no whole number of seconds")));
        }
        let class: String = row.parse("class")?;
        let series = rows.entry(class).or_default();
        if series.last().is_some_and(|(before, _)| at <= *before) {
            return Err(row.error("t_s", "is not after the class's line before"));
        }
        series.push((at, row.number("gpus")?));
        times.insert(at as u64);
        Ok(())
    })?;
    let grid: Vec<f64> = times.iter().map(|t| *t as f64).collect();
    for i in 1..grid.len() {
        check_step(&grid[..i], grid[i]).map_err(|what| DataError::file(path, format!("t_s {}: {what}", grid[i])))?;
    }
    let step_s = step_of(path, &grid)?;
    let mut notes = Vec::new();
    let mut values = Vec::new();
    let mut classes = Vec::new();
    for (class, series) in rows {
        if series.len() < grid.len() {
            notes.push(format!("{class}: {} missing steps are 0", grid.len() - series.len()));
        }
        let known: BTreeMap<u64, f64> = series.into_iter().map(|(t, v)| (t as u64, v)).collect();
        values.push(times.iter().map(|t| known.get(t).copied().unwrap_or(0.0)).collect());
        classes.push(class);
    }
    Ok(Series { step_s, classes, values, unit: Unit::Gpus, notes })
}

/// Steps must be equal and forward.
fn check_step(times: &[f64], at: f64) -> Result<(), String> {
    let Some(last) = times.last() else {
        return Ok(());
    };
    if at <= *last {
        return Err(format!("{at} is not after {last}"));
    }
    let step = if times.len() > 1 { times[1] - times[0] } else { at - last };
    if (at - last - step).abs() > 1e-6 * step {
        return Err(format!("comes {} s after the line before, the steps are {step} s", at - last));
    }
    Ok(())
}

fn step_of(path: &Path, times: &[f64]) -> Result<u32, DataError> {
    match times {
        [a, b, ..] if (1.0..=604_800.0).contains(&(b - a)) => Ok((b - a) as u32),
        [_, _, ..] => Err(DataError::file(path, "has steps of less than a second or more than a week")),
        _ => Err(DataError::file(path, "has fewer than two time steps")),
    }
}

#[derive(Deserialize)]
struct PrometheusAnswer {
    status: String,
    data: Option<PrometheusData>,
    error: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PrometheusData {
    result_type: String,
    result: Vec<PrometheusSeries>,
}

#[derive(Deserialize)]
struct PrometheusSeries {
    metric: BTreeMap<String, String>,
    values: Vec<(f64, String)>,
}

/// Reads the answer of Prometheus's `/api/v1/query_range`: one class for each series, named by its `class` label or by
/// all labels. Steps without a sample are held at the last value and said in the notes.
///
/// # Errors
/// An error answer, another result type, or a value that is not a number of at least 0, by its place.
pub fn read_prometheus(path: &Path) -> Result<Series, DataError> {
    let text = read_text(path)?;
    let answer: PrometheusAnswer = serde_json::from_str(&text).map_err(|e| {
        DataError::line(path, e.line() as u64, None, format!("is not the answer of a range query ({e})"))
    })?;
    if answer.status != "success" {
        return Err(DataError::file(path, format!("holds an error: {}", answer.error.unwrap_or(answer.status))));
    }
    let data = answer.data.ok_or_else(|| DataError::file(path, "has no data"))?;
    if data.result_type != "matrix" || data.result.is_empty() {
        return Err(DataError::file(path, format!("holds {} series of type {}", data.result.len(), data.result_type)));
    }
    let mut times: Vec<f64> = data.result.iter().flat_map(|s| s.values.iter().map(|v| v.0)).collect();
    times.sort_by(f64::total_cmp);
    times.dedup();
    let mut steps: Vec<f64> = times.windows(2).map(|w| w[1] - w[0]).collect();
    steps.sort_by(f64::total_cmp);
    let step = steps.first().copied().unwrap_or(0.0).round();
    let step_s = step_of(path, &[0.0, step])?;
    let count = ((times[times.len() - 1] - times[0]) / step).round() as usize + 1;
    if count > 10_000_000 {
        return Err(DataError::file(path, format!("covers {count} steps")));
    }
    let mut series =
        Series { step_s, classes: Vec::new(), values: Vec::new(), unit: Unit::Replicas, notes: Vec::new() };
    for (i, one) in data.result.iter().enumerate() {
        let labels = || one.metric.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
        let name = one.metric.get("class").cloned().unwrap_or_else(labels);
        let mut values = vec![f64::NAN; count];
        for (j, (at, text)) in one.values.iter().enumerate() {
            let value = text.parse::<f64>().ok().filter(|v| v.is_finite() && *v >= 0.0).ok_or_else(|| DataError {
                column: Some(format!("data.result[{i}].values[{j}]")),
                ..DataError::file(path, format!("'{text}' is not a number of at least 0"))
            })?;
            values[((at - times[0]) / step).round() as usize] = value;
        }
        let missing = values.iter().filter(|v| v.is_nan()).count();
        let mut last = values.iter().copied().find(|v| !v.is_nan()).unwrap_or(0.0);
        for value in &mut values {
            if value.is_nan() {
                *value = last;
            }
            last = *value;
        }
        if missing > 0 {
            series.notes.push(format!("{name}: {missing} missing steps keep the last value"));
        }
        if series.classes.contains(&name) {
            let what = format!("'{name}' names two series: sum them in the query");
            return Err(DataError { column: Some(format!("data.result[{i}].metric")), ..DataError::file(path, what) });
        }
        series.classes.push(name);
        series.values.push(values);
    }
    Ok(series)
}
