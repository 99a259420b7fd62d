//! `weftctl install`: what a Kubernetes cluster needs.

use std::io::Write;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::Value;
use weft_policy::{Kind, crd};

/// Prints or installs the objects that a Kubernetes cluster needs
#[derive(Subcommand)]
pub enum Install {
    /// Prints the definitions of the policy kinds, for `kubectl apply -f -`
    Print,
    Crds(Crds),
}

/// Installs the definitions of the policy kinds by kubectl; those of an installation of Istio are left alone
#[derive(Args)]
pub struct Crds {
    /// Context of the kubeconfig
    #[arg(long)]
    context: Option<String>,
}

impl Install {
    /// Runs the command.
    ///
    /// # Errors
    /// If the output cannot be written, or kubectl is missing or fails.
    pub fn run(self, out: &mut impl Write) -> Result<ExitCode> {
        match self {
            Install::Print => {
                write!(out, "{}", manifest(&definitions())?)?;
                Ok(ExitCode::SUCCESS)
            }
            Install::Crds(crds) => crds.run(out),
        }
    }
}

impl Crds {
    fn run(self, out: &mut impl Write) -> Result<ExitCode> {
        let mut own = Vec::new();
        for definition in definitions() {
            let name = definition["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let label = r"jsonpath={.metadata.name}={.metadata.labels.app\.kubernetes\.io/managed-by}";
            let found = self.kubectl(&["get", "crd", &name, "--ignore-not-found", "-o", label], "")?;
            match found.trim().split_once('=') {
                Some((_, manager)) if manager != "weft" => {
                    writeln!(
                        out,
                        "customresourcedefinition.apiextensions.k8s.io/{name} is of another installation: kept"
                    )?;
                }
                _ => own.push(definition),
            }
        }
        if !own.is_empty() {
            let applied =
                self.kubectl(&["apply", "--server-side", "--field-manager=weft", "-f", "-"], &manifest(&own)?)?;
            write!(out, "{applied}")?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The output of kubectl.
    fn kubectl(&self, args: &[&str], input: &str) -> Result<String> {
        let context = self.context.as_ref().map(|name| format!("--context={name}"));
        let mut child = Command::new("kubectl")
            .args(context)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run kubectl; install it, or use `weftctl install print`")?;
        if let Some(mut stdin) = child.stdin.take() {
            // kubectl that ends early has an error of its own.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("kubectl {} failed: {}", args.join(" "), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn definitions() -> Vec<Value> {
    Kind::ALL.iter().filter_map(|kind| crd::definition(*kind)).collect()
}

/// One document for each object. JSON is YAML, but kubectl takes a text that begins with a brace for one object.
fn manifest(objects: &[Value]) -> Result<String> {
    let texts: Result<Vec<String>, _> = objects.iter().map(serde_json::to_string_pretty).collect();
    Ok(texts?.iter().map(|text| format!("---\n{text}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_has_a_document_for_each_definition() {
        let mut out = Vec::new();
        Install::Print.run(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let names: Vec<Value> = text.split("---\n").skip(1).map(|one| serde_json::from_str(one).unwrap()).collect();
        assert_eq!(names.len(), definitions().len());
        assert!(text.contains("\"name\": \"virtualservices.networking.istio.io\""));
    }
}
