//! `pilotlight explain`.

use std::path::Path;

use anyhow::Context;
use planner::planning::{Options, plan};

use super::Format;
use super::client::Remote;
use crate::{output, plan_file, render};

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// [FILE] CLASS: the class to explain, of a plan file, or without one of the running server.
    #[arg(num_args = 1..=2, required = true, value_name = "FILE] [CLASS")]
    what: Vec<String>,
    /// Offers to show.
    #[arg(long, default_value_t = 15)]
    most: usize,
    #[command(flatten)]
    remote: Remote,
}

/// Prints why a class gets these offers and not others.
///
/// # Errors
/// As `plan`; and a class that does not exist.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let options = Options::default();
    let (input, made, name) = match args.what.as_slice() {
        [file, class] => {
            let input = plan_file::load(Path::new(file), None)?.input;
            let busy = output::spinner("planning");
            let made = plan(&input, options)?;
            busy.finish_and_clear();
            (input, made, class)
        }
        [class] => {
            let (input, made) = super::client::plans::newest(&args.remote)?;
            (input, made, class)
        }
        _ => anyhow::bail!("give a class, or a plan file and a class"),
    };
    let class = input.classes.iter().position(|k| k.name == *name).with_context(|| {
        let names: Vec<&str> = input.classes.iter().map(|k| k.name.as_str()).collect();
        format!("there is no class '{name}'; there are: {}", names.join(", "))
    })?;
    let busy = output::spinner("asking the solver");
    let explanation = planner::explain::explain(&input, &made, class, options.effort)?;
    busy.finish_and_clear();
    match args.remote.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&explanation)?),
        Format::Table => print!("{}", render::explanation(&explanation, args.most)),
    }
    Ok(())
}
