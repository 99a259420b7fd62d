//! `weftctl`, the administrator's command. A table of contents: each subcommand lives in `weft_control_plane::cli`.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use weft_control_plane::cli::completion::Completion;
use weft_control_plane::cli::objects::{Delete, Get};
use weft_control_plane::cli::remote::{Apply, Token};
use weft_control_plane::cli::route::Route;
use weft_control_plane::cli::snapshot::Snapshot;
use weft_control_plane::cli::status::Status;
use weft_control_plane::cli::validate::Validate;

/// Checks, applies and explains the policies of a Weft mesh
#[derive(Parser)]
#[command(name = "weftctl", version)]
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
    #[command(subcommand)]
    Token(Token),
    #[command(subcommand)]
    Snapshot(Snapshot),
    Completion(Completion),
}

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            anstream::eprintln!("weftctl: {error}");
            return ExitCode::FAILURE;
        }
    };
    // Without colours where it is no terminal.
    let out = &mut anstream::stdout().lock();
    let result = runtime.block_on(async {
        match Weftctl::parse().command {
            Command::Validate(command) => command.run(out),
            Command::Apply(command) => command.run(out).await,
            Command::Get(command) => command.run(out).await,
            Command::Delete(command) => command.run(out).await,
            Command::Status(command) => command.run(out).await,
            Command::Route(command) => command.run(out).await,
            Command::Token(command) => command.run(out).await,
            Command::Snapshot(command) => command.run(out).await,
            Command::Completion(command) => command.run(Weftctl::command(), out),
        }
    });
    result.unwrap_or_else(|error| {
        anstream::eprintln!("\x1b[1;31mweftctl\x1b[0m: {error:#}");
        ExitCode::FAILURE
    })
}
