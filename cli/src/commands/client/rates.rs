//! `pilotlight rates`: how nodes fare at each place.

use serde_json::Value;

use super::{Client, Remote, block_on, number, print_json, text};
use crate::commands::Format;
use crate::render::table;

/// Prints how nodes fare at each place.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub fn run(remote: &Remote) -> anyhow::Result<()> {
    block_on(remote, async |client: &Client| {
        let list: Value = client.get("/v1/rates").await?;
        let places = list["items"].as_array().cloned().unwrap_or_default();
        if remote.output == Format::Json {
            return print_json(&places);
        }
        let head = ["place", "GPU-hours", "faults", "a GPU-day", "boots", "pass", "in service", "repair", "speed"];
        let mut rows = table(&head, 1..9);
        for place in &places {
            let share = |name: &str| format!("{:.1} %", 100.0 * number(&place[name], "mean"));
            let faults = &place["faults_per_gpu_day"];
            rows.add_row([
                format!("{}/{}/{}", text(place, "provider"), text(place, "region"), text(place, "instance_type")),
                format!("{:.0}", number(place, "gpu_hours")),
                format!("{:.1}", number(place, "faults")),
                format!("{:.1e} ({:.1e}-{:.1e})", number(faults, "mean"), number(faults, "q05"), number(faults, "q95")),
                format!("{:.0}", number(place, "boots")),
                share("boot_pass"),
                share("in_service"),
                format!("{:.0} s", number(place, "repair_p50_s")),
                format!("{:.0} %", 100.0 * number(place, "speed_p50")),
            ]);
        }
        println!("{rows}");
        Ok(())
    })
}
