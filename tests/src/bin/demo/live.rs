//! Continuous traffic, while the user edits policies.

use std::collections::{HashMap, VecDeque};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::client::{self, Request};
use crate::steps::USERS;
use crate::{Shop, version};

/// Answers that are shown for each user.
const SHOWN: usize = 20;

/// Sends a request of each user a second, and prints the results, until the process is interrupted.
pub(crate) fn run(shop: &Shop) -> Result<()> {
    println!("\nTraffic goes on. Edit the files in this folder and watch; Ctrl-C ends everything:");
    println!("  {}\n", shop.mesh.policies.display());
    let terminal = std::io::stdout().is_terminal();
    let requests: Vec<Request<'_>> = USERS.iter().map(|user| Request { path: "/", user, canary: false }).collect();
    let mut history: HashMap<&str, VecDeque<String>> = HashMap::new();
    let mut problems = String::new();
    let mut files = snapshot(shop);
    let mut drawn = 0;
    loop {
        let start = Instant::now();
        let answers = client::requests(&shop.front, &requests)?;
        let mut changes = Vec::new();
        let now = snapshot(shop);
        for (file, text) in &now {
            match files.get(file) {
                Some(before) if before == text => {}
                Some(_) => changes.push(format!("edited: {file}")),
                None => changes.push(format!("new: {file}")),
            }
        }
        changes.extend(files.keys().filter(|f| !now.contains_key(*f)).map(|f| format!("removed: {f}")));
        files = now;
        let status = shop.mesh.status();
        let found = status.lines().filter(|l| l.contains(": error: ")).collect::<Vec<_>>().join("\n");
        if found != problems {
            changes.push(if found.is_empty() { "no problems any more".to_owned() } else { found.clone() });
            problems = found;
        }
        if drawn > 0 && terminal {
            print!("\x1b[{drawn}A\x1b[J");
        }
        for change in &changes {
            println!("{change}");
        }
        for (user, answer) in USERS.iter().zip(&answers) {
            let seen = history.entry(user).or_default();
            let result = match answer.status {
                200 => version(answer.server()).to_owned() + ":" + answer.server().trim_start_matches("order-"),
                status => format!("{status} {}", answer.header("x-weft-reason")),
            };
            seen.push_front(result);
            seen.truncate(SHOWN);
            let line: Vec<&str> = seen.iter().map(String::as_str).collect();
            let line: String = format!("  {user:<7} {}", line.join(" ")).chars().take(120).collect();
            println!("{line}");
        }
        drawn = answers.len().min(USERS.len());
        std::io::stdout().flush()?;
        std::thread::sleep(Duration::from_secs(1).saturating_sub(start.elapsed()));
    }
}

/// The policy files and their text.
fn snapshot(shop: &Shop) -> HashMap<String, String> {
    let entries = std::fs::read_dir(&shop.mesh.policies).into_iter().flatten().flatten();
    let files = entries.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()));
    let policies =
        files.filter(|(name, _)| !name.starts_with('.') && (name.ends_with(".yaml") || name.ends_with(".yml")));
    policies.map(|(name, path)| (name, std::fs::read_to_string(path).unwrap_or_default())).collect()
}
