//! `weftctl`, the administrator's command. A table of contents: each subcommand is a module of the library.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use weftctl::completion::Completion;
use weftctl::inject::Inject;
use weftctl::install::Install;
use weftctl::objects::{Delete, Get};
use weftctl::remote::{Apply, Token};
use weftctl::route::Route;
use weftctl::snapshot::Snapshot;
use weftctl::status::Status;
use weftctl::validate::Validate;

/// Checks, applies and explains the policies of a Weft mesh
#[derive(Parser)]
#[command(name = "weftctl", version = option_env!("WEFT_VERSION").unwrap_or(env!("CARGO_PKG_VERSION")))]
struct Weftctl {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Validate(Validate),
    Apply(Apply),
    Get(Get),
    Delete(Delete),
    Status(Status),
    Route(Route),
    Inject(Inject),
    #[command(subcommand)]
    Token(Token),
    #[command(subcommand)]
    Snapshot(Snapshot),
    #[command(subcommand)]
    Install(Install),
    Completion(Completion),
    /// Writes the man pages into a folder, for deploy/build.sh
    #[command(hide = true)]
    Man {
        folder: PathBuf,
    },
}

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            anstream::eprintln!("weftctl: {error}");
            return ExitCode::FAILURE;
        }
    };
    // Colours are removed if the stream is not a terminal.
    let out = &mut anstream::stdout().lock();
    let result = runtime.block_on(async {
        match Weftctl::parse().command {
            Command::Validate(command) => command.run(out),
            Command::Apply(command) => command.run(out).await,
            Command::Get(command) => command.run(out).await,
            Command::Delete(command) => command.run(out).await,
            Command::Status(command) => command.run(out).await,
            Command::Route(command) => command.run(out).await,
            Command::Inject(command) => command.run(out),
            Command::Token(command) => command.run(out).await,
            Command::Snapshot(command) => command.run(out).await,
            Command::Install(command) => command.run(out),
            Command::Completion(command) => command.run(Weftctl::command(), out),
            Command::Man { folder } => clap_mangen::generate_to(Weftctl::command(), &folder)
                .map(|()| ExitCode::SUCCESS)
                .with_context(|| format!("cannot write man pages into {}", folder.display())),
        }
    });
    result.unwrap_or_else(|error| {
        anstream::eprintln!("\x1b[1;31mweftctl\x1b[0m: {error:#}");
        ExitCode::FAILURE
    })
}
