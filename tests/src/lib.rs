//! A mesh in network namespaces: one namespace a pod, a bridge between them, and the real binaries in them.
//!
//! Everything runs inside a private network and mount namespace (see [`enter`]), so that the host stays unchanged. Works as root,
//! or in a user namespace.

pub mod docs;
mod document;
mod etcd;
pub mod fields;
#[cfg(test)]
mod layers;
mod mesh;
mod namespace;
mod pod;
mod programs;

use std::collections::HashMap;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

pub use document::document;
pub use etcd::Etcd;
pub use mesh::{Instance, Mesh, Pair, take_logs};
pub use namespace::{enter, name_server};
pub use pod::{Meanwhile, Pod, Process};
pub use programs::{binary, helm, install, node_modules, python_of, repository, tests_dir};
pub use weft_policy::Kind;

/// Runs a command to its end.
///
/// # Errors
/// When it fails; with its output.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| format!("cannot run {program}"))?;
    text(&format!("{program} {}", args.join(" ")), &output)
}

/// Runs a command with `input`; returns its output and its errors.
///
/// # Errors
/// If it cannot be run, or fails.
pub fn feed(command: &mut Command, input: &str) -> Result<(String, String)> {
    let shown = format!("{command:?}");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    Ok((text(&shown, &output)?, String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn text(command: &str, output: &Output) -> Result<String> {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command}: {}\n{out}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(out)
}

/// Waits until `check` succeeds.
///
/// # Errors
/// When it has not succeeded after `limit`; with its last error.
pub fn wait_for<T>(condition: &str, limit: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(e) if Instant::now() > end => return Err(e.context(format!("waited {limit:?} for {condition}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The server of each of the results of [`Pod::requests`].
pub fn served_by(results: &[Value]) -> Vec<String> {
    results.iter().map(|r| r["headers"]["x-served-by"].as_str().unwrap_or("-").to_owned()).collect()
}

/// The number of results of [`Pod::requests`] with each status; 0: no response.
pub fn statuses(results: &[Value]) -> HashMap<u64, usize> {
    let mut counts = HashMap::new();
    for result in results {
        *counts.entry(result["status"].as_u64().unwrap_or(0)).or_default() += 1;
    }
    counts
}
