//! The commands of the README and of `docs/getting-started.md`, run as they are written.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_tests::docs::page;
use weft_tests::{Mesh, binary, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![getting_started_works_as_written, the_first_service_of_the_readme_works_as_written]
}

fn getting_started_works_as_written() -> Result<()> {
    run_page("docs/getting-started.md")
}

fn the_first_service_of_the_readme_works_as_written() -> Result<()> {
    run_page("README.md")
}

/// The shell prints this line after each block of commands.
const DONE: &str = "weft-tests-done";
/// Time for processes that a block starts in the background, before the next command.
const READING: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(60);

fn run_page(path: &str) -> Result<()> {
    let mesh = Mesh::network(&[])?;
    let folder = mesh.data_dir().with_file_name("reader");
    std::fs::create_dir_all(&folder)?;
    let programs = binary("weftctl")?;
    let programs = programs.parent().context("no folder")?.to_string_lossy().into_owned();
    let log = folder.with_file_name("reader.log");
    let output = std::fs::File::create(&log)?;
    let mut shell = mesh
        .center
        .command("bash")
        .env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap_or_default()))
        .current_dir(&folder)
        .stdin(Stdio::piped())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()?;
    let mut commands = shell.stdin.take().context("no standard input")?;
    let printed = || std::fs::read_to_string(&log).unwrap_or_default();
    let mut run = |commands_of_page: &str| -> Result<(String, bool)> {
        let before = printed().len();
        writeln!(commands, "{commands_of_page}\necho {DONE} $?")?;
        let text = finished(&printed, before)?;
        let succeeded = text.lines().any(|line| line == format!("{DONE} 0"));
        Ok((text, succeeded))
    };
    let result = read(path, &mut run);
    // A failure leaves processes in the background.
    let _ = writeln!(commands, "kill $(jobs -p) 2>/dev/null; wait");
    drop(commands);
    let end = Instant::now() + LIMIT;
    while shell.try_wait()?.is_none() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = shell.kill();
    result.map_err(|e| e.context(logs(&folder)))
}

/// Runs the page's commands by `run`, which returns their output and whether they succeeded.
fn read(path: &str, run: &mut impl FnMut(&str) -> Result<(String, bool)>) -> Result<()> {
    let blocks = page(path)?.blocks();
    for (at, block) in blocks.iter().enumerate().filter(|(_, block)| block.is("sh", &["test"])) {
        let expected = blocks.get(at + 1).filter(|next| next.is("text", &["output"]) || next.is("text", &["like"]));
        let mut attempt = || {
            let (output, succeeded) = run(&block.text)?;
            ensure!(succeeded, "it fails: {output}");
            ensure!(
                expected.is_none_or(|expected| expected.is_printed_in(&output)),
                "another output is expected: {output}"
            );
            Ok(())
        };
        let begins_something = block.text.contains(" &\n");
        // Repeated as a reader would: registrations and policies take a moment.
        let limit = if begins_something { Duration::ZERO } else { LIMIT };
        wait_for(&format!("{path}:{}", block.line), limit, &mut attempt)?;
        if begins_something {
            std::thread::sleep(READING);
        }
    }
    Ok(())
}

/// The output of a block of commands, from `before` on.
fn finished(printed: &impl Fn() -> String, before: usize) -> Result<String> {
    wait_for("a block of commands", LIMIT, || {
        let text = printed();
        let new = text.get(before..).unwrap_or_default();
        ensure!(new.contains(DONE), "{new}");
        Ok(new.to_owned())
    })
}

/// The ends of the logs that the page's commands write.
fn logs(folder: &std::path::Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "log") {
            let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(20)..].join("\n");
            text.push_str(&format!("{}:\n{end}\n", entry.path().display()));
        }
    }
    text
}
