//! `weftctl validate`: checks policy files without a control plane.
//!
//! Prints one line a problem, as compilers do, so that editors and CI can jump to it.

use std::{io::Write, path::PathBuf, process::ExitCode, sync::Arc};

use super::remote::texts;
use crate::{
    policy::{Document, Problem, Severity, check, parse},
    translate::warnings,
    world::World,
};

/// Checks policy files and exits with 1 if any has an error
#[derive(Debug, clap::Args)]
pub struct Validate {
    /// Files, directories of *.yaml, *.yml and *.json, or - for standard input; checked together
    #[arg(required = true, value_name = "FILE|DIR|-")]
    paths: Vec<PathBuf>,
}

impl Validate {
    /// Runs it.
    pub fn run(&self, out: &mut impl Write) -> anyhow::Result<ExitCode> {
        let mut documents: Vec<Document> = Vec::new();
        let mut problems: Vec<Problem> = Vec::new();
        let texts = texts(&self.paths)?;
        for (file, text) in &texts {
            let parsed = parse(file, text);
            documents.extend(parsed.documents);
            problems.extend(parsed.problems);
        }
        problems.extend(check(&documents.iter().collect::<Vec<_>>()));
        // Who is registered is not known here: only what the documents say of each other.
        let mut world = World::new("cluster.local", 1);
        world.set_policies(documents.iter().cloned().map(Arc::new).collect(), 0);
        problems.extend(warnings(&world, false));
        for problem in &problems {
            writeln!(out, "{problem}")?;
        }
        let count = |severity| problems.iter().filter(|problem| problem.severity == severity).count();
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        let files = plural(texts.len(), "file");
        if errors > 0 {
            writeln!(out, "{files}: {}, {}", plural(errors, "error"), plural(warnings, "warning"))?;
            return Ok(ExitCode::FAILURE);
        }
        let valid = plural(documents.len(), "document");
        writeln!(out, "{files}: {valid} valid, {}", plural(warnings, "warning"))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> (String, ExitCode) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("p.yaml");
        std::fs::write(&file, text).unwrap();
        let mut out = Vec::new();
        let code = Validate { paths: vec![file] }.run(&mut out).unwrap();
        let prefix = format!("{}/", directory.path().display());
        (String::from_utf8(out).unwrap().replace(&prefix, ""), code)
    }

    #[test]
    fn one_line_a_problem_and_a_summary() {
        let good = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {mtls: {mode: STRICT}}\n";
        assert_eq!(run(good), ("1 file: 1 document valid, 0 warnings\n".to_owned(), ExitCode::SUCCESS));
        let bad = good.replace("STRICT", "STRIKT");
        let want = "p.yaml:4:21: error: `mtls.mode`: unknown value `STRIKT`, did you mean `STRICT`?\n\
                    1 file: 1 error, 0 warnings\n";
        assert_eq!(run(&bad), (want.to_owned(), ExitCode::FAILURE));
        let foreign = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n";
        let want = "p.yaml:2:7: warning: kind Deployment of apps/v1 does not concern the mesh: skipped\n\
                    1 file: 0 documents valid, 1 warning\n";
        assert_eq!(run(foreign), (want.to_owned(), ExitCode::SUCCESS));
    }
}
