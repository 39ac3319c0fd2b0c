//! `pilotlight explain`.

use std::path::PathBuf;

use anyhow::Context;
use planner::plan::{Options, plan};

use super::Format;
use crate::{output, plan_file, render};

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The plan file.
    file: PathBuf,
    /// The class to explain.
    class: String,
    /// Offers to show.
    #[arg(long, default_value_t = 15)]
    most: usize,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: Format,
}

/// Runs it.
///
/// # Errors
/// As `plan`; and a class that does not exist.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let loaded = plan_file::load(&args.file, None)?;
    let class = loaded.input.classes.iter().position(|k| k.name == args.class).with_context(|| {
        let names: Vec<&str> = loaded.input.classes.iter().map(|k| k.name.as_str()).collect();
        format!("there is no class '{}'; there are: {}", args.class, names.join(", "))
    })?;
    let busy = output::spinner("planning");
    let options = Options::default();
    let made = plan(&loaded.input, options)?;
    let explanation = planner::explain::explain(&loaded.input, &made, class, options.effort)?;
    busy.finish_and_clear();
    match args.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&explanation)?),
        Format::Table => print!("{}", render::explanation(&explanation, args.most)),
    }
    Ok(())
}
