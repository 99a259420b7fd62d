//! `weftctl validate`: checks policy files without a control plane.
//!
//! Prints one line for each problem, as compilers do, so that editors and CI can jump to it, or a JSON list for
//! programs.

use std::{io::Write, path::PathBuf, process::ExitCode, sync::Arc};

use serde_json::Value;

use super::style;
use crate::files::{self, InputFile};
use weft_policy::{Code, Document, Place, Problem, Severity, check};
use weft_world::translate::warnings;
use weft_world::{World, parse_policies};

/// Checks policy files and exits with 1 if any has an error
#[derive(Debug, clap::Args)]
pub struct Validate {
    /// Files, directories of *.yaml, *.yml and *.json, or - for standard input; checked together
    #[arg(required = true, value_name = "FILE|DIR|-")]
    paths: Vec<PathBuf>,
    /// `text` for one line for each problem, `json` for a list of them
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
    /// Shows probable mistakes too: hosts that only the registry can offer, annotations that have no effect here
    #[arg(short, long)]
    verbose: bool,
}

impl Validate {
    /// Runs it.
    pub fn run(&self, out: &mut impl Write) -> anyhow::Result<ExitCode> {
        let given = files::read(&self.paths);
        let (world, mut problems) = analyse(&given);
        problems.retain(|problem| self.verbose || problem.severity != Severity::Info);
        report(out, &self.output, given.len(), &world, &problems)
    }
}

/// Prints the problems of files in the form `output`. The exit status is 1 if any of them is an error.
pub(super) fn report(
    out: &mut impl Write,
    output: &str,
    files: usize,
    world: &World,
    problems: &[Problem],
) -> anyhow::Result<ExitCode> {
    let count = |severity| problems.iter().filter(|problem| problem.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let code = if errors > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    if output == "json" {
        let list: Vec<Value> = problems.iter().map(Problem::to_json).collect();
        writeln!(out, "{:#}", Value::from(list))?;
        return Ok(code);
    }
    for problem in problems {
        writeln!(out, "{}", style::problem(&problem.to_string()))?;
    }
    let (files, warnings) = (plural(files, "file"), plural(warnings, "warning"));
    if errors > 0 {
        writeln!(out, "{files}: {}, {warnings}", plural(errors, "error"))?;
    } else {
        writeln!(out, "{files}: {} valid, {warnings}", plural(world.documents().count(), "document"))?;
    }
    Ok(code)
}

/// The world of the files, and all of their problems. Registrations are unknown here.
pub(super) fn analyse(given: &[InputFile]) -> (World, Vec<Problem>) {
    let mut documents: Vec<Document> = Vec::new();
    let mut problems: Vec<Problem> = Vec::new();
    for file in given {
        match &file.text {
            Ok(text) => {
                let parsed = parse_policies(&file.name, text);
                documents.extend(parsed.documents);
                problems.extend(parsed.problems);
            }
            Err(error) => problems.push(Problem {
                file: file.name.clone(),
                place: Place { line: 1, column: 1 },
                severity: Severity::Error,
                code: Code::Unreadable,
                path: String::new(),
                text: format!("cannot be read: {error}"),
            }),
        }
    }
    problems.extend(check(&documents.iter().collect::<Vec<_>>()));
    let mut world = World::new("cluster.local", 1);
    world.set_policies(documents.into_iter().map(Arc::new).collect(), 0);
    problems.extend(warnings(&world, false));
    (world, problems)
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
