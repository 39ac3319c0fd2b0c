//! `pilotlight plan`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use planner::decompose::Effort;
use planner::extensive;
use planner::input::PlanInput;
use planner::model::Model;
use planner::plan::Plan;
use planner::planning::{Options, plan};
use planner::what_if::{self, WhatIf};

use super::Format;
use crate::{output, plan_file, render};

/// Arguments of `plan`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    server: Option<OfServer>,
    #[command(flatten)]
    file: Option<OfFile>,
}

/// Plans of a running server.
#[derive(Debug, clap::Subcommand)]
enum OfServer {
    /// A plan of the running server, the newest if none is named.
    Show(super::client::plans::Show),
    /// What changed between two plans of the running server.
    Diff(super::client::plans::Diff),
}

/// A plan from a file.
#[derive(Debug, clap::Args)]
struct OfFile {
    /// The plan file; 'pilotlight demo DIR' writes one to start from.
    #[arg(required = true)]
    file: PathBuf,
    /// The plan before (JSON): changes are shown against it and damped.
    #[arg(long, value_name = "FILE")]
    parent: Option<PathBuf>,
    /// Also write the whole problem, every offer in every demand path, for another solver.
    #[arg(long, value_name = "FILE")]
    write_mps: Option<PathBuf>,
    /// A question: 'quota:NAME=+8', 'price:TEXT*1.2', 'lift-regions:CLASS', 'hit-rate:CLASS=0.999',
    /// 'budget:200' or 'budget:none'. Can be given several times.
    #[arg(long, value_name = "CHANGE")]
    what_if: Vec<String>,
    /// Measure what one more and one less of a limit is worth, for so many limits.
    #[arg(long, default_value_t = 4)]
    sensitivities: usize,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: Format,
    /// Write the plan as JSON to this file too.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

/// Makes the plan of a file and prints it, with what-ifs.
///
/// # Errors
/// Anything in the input that cannot be planned.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match (&args.server, &args.file) {
        (Some(OfServer::Show(args)), _) => super::client::plans::show(args),
        (Some(OfServer::Diff(args)), _) => super::client::plans::diff(args),
        (None, Some(args)) => of_file(args),
        (None, None) => bail!("name a plan file, or say 'show' or 'diff' for the running server"),
    }
}

fn of_file(args: &OfFile) -> anyhow::Result<()> {
    let questions = args.what_if.iter().map(|q| q.parse()).collect::<Result<Vec<WhatIf>, _>>()?;
    let parent = match &args.parent {
        Some(path) => Some(read_plan(path)?),
        None => None,
    };
    let loaded = plan_file::load(&args.file, parent.as_ref())?;
    refuse_unservable(&loaded.input, &args.file)?;
    let options = Options { effort: Effort::default(), sensitivities: args.sensitivities, ..Options::default() };
    let busy = output::spinner("planning");
    let made = plan(&loaded.input, options).with_context(|| args.file.display().to_string())?;
    busy.finish_and_clear();
    let mut answers = Vec::new();
    for question in &questions {
        let busy = output::spinner("what if");
        answers.push(what_if::ask(&loaded.input, &made, question, options)?);
        busy.finish_and_clear();
    }
    if let Some(path) = &args.write_mps {
        write_mps(path, &loaded)?;
    }
    if let Some(path) = &args.save {
        output::write_whole(path, |out| Ok(serde_json::to_writer_pretty(out, &made)?))?;
    }
    match args.output {
        Format::Json if answers.is_empty() => println!("{}", serde_json::to_string_pretty(&made)?),
        Format::Json => {
            println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "plan": made, "what_if": answers }))?)
        }
        Format::Table => {
            print!("{}", render::plan(&loaded, &made));
            print!("{}", render::answers(&answers));
        }
    }
    Ok(())
}

/// A class that no usable offer can serve is a mistake in the file: no plan can help it.
fn refuse_unservable(input: &PlanInput, file: &std::path::Path) -> anyhow::Result<()> {
    if !planner::validate::problems(input).is_empty() {
        // The planner names those, with their places.
        return Ok(());
    }
    for class in &input.classes {
        let reasons = match planner::explain::refusals(class, &input.offers) {
            (0, reasons) => reasons,
            _ => continue,
        };
        let counted: Vec<String> = reasons.iter().map(|(why, n)| format!("{why} ({n})")).collect();
        bail!("{}: class '{}': no offer can serve it: {}", file.display(), class.name, counted.join(", "));
    }
    Ok(())
}

/// Reads a plan that was saved as JSON.
///
/// # Errors
/// The file is missing or is no plan.
pub fn read_plan(path: &std::path::Path) -> anyhow::Result<Plan> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no plan", path.display()))
}

fn write_mps(path: &std::path::Path, loaded: &plan_file::Loaded) -> anyhow::Result<()> {
    let busy = output::spinner("building the extensive form");
    let model = Model::build(&loaded.input);
    let form = extensive::build(&loaded.input, &model);
    busy.finish_and_clear();
    let bar = output::bar("writing MPS", form.lp.nonzeros() as u64);
    output::write_whole(path, |out| {
        let mut counted = bar.wrap_write(out);
        solver::write_mps(&form.lp, "pilotlight", &mut counted)?;
        Ok(())
    })?;
    bar.finish_and_clear();
    let (rows, cols) = (form.lp.rows.len(), form.lp.cols.len());
    eprintln!("wrote {}: {cols} columns, {rows} rows, {} non-zeros", path.display(), form.lp.nonzeros());
    Ok(())
}
