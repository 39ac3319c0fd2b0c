//! `pilotlight status`, `pause`, `resume`.

use serde_json::{Value, json};

use super::{Client, Remote, block_on, duration, number, print_json, text};
use crate::commands::Format;
use crate::render::{section, table};

/// Runs `status`.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub fn run(remote: &Remote) -> anyhow::Result<()> {
    block_on(remote, async |client: &Client| {
        let pools: Value = client.get("/v1/pools").await?;
        let classes: Value = client.get("/v1/classes").await?;
        let loops: Value = client.get("/v1/loops").await?;
        if remote.output == Format::Json {
            return print_json(&json!({ "pools": pools["items"], "classes": classes["items"], "loops": loops }));
        }
        print!("{}", shown(&pools, &classes, &loops));
        Ok(())
    })
}

fn items(list: &Value) -> &[Value] {
    list.get("items").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn borrows_usd_per_gpu_h(class: &Value) -> Option<f64> {
    class["spec"]["borrows_usd_per_gpu_h"].as_f64()
}

fn shown(pools: &Value, classes: &Value, loops: &Value) -> String {
    let spend: f64 = items(pools).iter().map(|p| number(p, "spend_usd_per_h")).sum();
    let state = match (loops["leads"].as_bool(), loops["paused"].as_bool()) {
        (_, Some(true)) => "PAUSED: nothing is launched or given back ('pilotlight resume')".to_owned(),
        (Some(true), _) => format!("leads (term {})", text(loops, "term")),
        _ => "follows another replica".to_owned(),
    };
    let up = duration((number(loops, "uptime_s") * 1000.0) as i64);
    let mut out = format!("This replica {state}, up {up}. Spend ${spend:.2}/h.\n");
    // Where nobody may borrow there is nothing to show.
    let lends = items(classes).iter().any(|class| borrows_usd_per_gpu_h(class).is_some());
    let lent = lends.then_some("lent");
    let head = ["GPU", "used"].into_iter().chain(lent).chain(["idle", "pending", "out of service", "$/h"]);
    let head: Vec<&str> = head.collect();
    let mut gpus = table(&head, 1..head.len());
    for pool in items(pools) {
        let counts = head[..head.len() - 1].iter().map(|name| text(pool, &name.to_lowercase().replace(' ', "_")));
        gpus.add_row(counts.chain([format!("{:.2}", number(pool, "spend_usd_per_h"))]));
    }
    out += &section("GPUs", &gpus);
    let mut wanted = table(&["class", "active", "waiting", "free GPUs", "hits", "misses", "hit rate", "target"], 1..8);
    for class in items(classes) {
        let (hits, misses) = (number(class, "hits"), number(class, "misses"));
        let rate = if hits + misses > 0.0 { format!("{:.2} %", 100.0 * hits / (hits + misses)) } else { "-".into() };
        wanted.add_row([
            text(&class["spec"], "name"),
            text(class, "active"),
            text(class, "waiting"),
            text(class, "free_gpus"),
            text(class, "hits"),
            text(class, "misses"),
            rate,
            match borrows_usd_per_gpu_h(class) {
                Some(price) => format!("borrows at ${price:.2}/GPU-h"),
                None => format!("{:.2} %", 100.0 * number(&class["spec"], "hit_rate")),
            },
        ]);
    }
    out += &section("Classes", &wanted);
    let mut work = table(&["loop", "last run", "took", "result"], 1..3);
    for one in loops["loops"].as_array().map_or(&[][..], Vec::as_slice) {
        let ran = super::ago(one, "ran_at_ms");
        let result = match one["error"].as_str() {
            Some(error) => format!("FAILED {} times: {error}", text(one, "failures")),
            None => text(one, "result"),
        };
        work.add_row([text(one, "name"), ran, format!("{} ms", text(one, "took_ms")), result]);
    }
    out + &section("Loops", &work)
}

/// Runs `pause` or `resume`.
///
/// # Errors
/// As [`run`].
pub fn switch(remote: &Remote, path: &str) -> anyhow::Result<()> {
    block_on(remote, async |client: &Client| {
        let after = client.post(path, &json!({})).await?;
        if remote.output == Format::Json {
            return print_json(&after);
        }
        let paused = after["paused"] == json!(true);
        println!("{}", if paused { "paused: plans are made and not acted on" } else { "plans are acted on again" });
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_is_shown_where_somebody_may_borrow() {
        let pools = json!({ "items": [
            { "gpu": "H100-SXM", "used": 12, "lent": 8, "idle": 4, "pending": 0, "out_of_service": 0, "spend_usd_per_h": 40.0 },
        ]});
        let chat = json!({ "spec": { "name": "chat", "hit_rate": 0.99 }, "active": 1, "hits": 99, "misses": 1 });
        let batch = json!({ "spec": { "name": "batch", "hit_rate": 0.0, "borrows_usd_per_gpu_h": 0.6 }, "active": 4 });
        let loops = json!({ "leads": true, "term": 1, "uptime_s": 60, "loops": [] });
        let alone = shown(&pools, &json!({ "items": [chat] }), &loops);
        assert!(!alone.contains("lent"), "{alone}");
        let both = shown(&pools, &json!({ "items": [chat, batch] }), &loops);
        let row = both.lines().find(|line| line.contains("H100-SXM")).expect("a row");
        assert_eq!(
            row.split_whitespace().collect::<Vec<_>>(),
            ["H100-SXM", "12", "8", "4", "0", "0", "40.00"],
            "{both}"
        );
        assert!(both.contains("borrows at $0.60/GPU-h"), "{both}");
    }
}
