//! `weftctl`, the administrator's command. A table of contents: each subcommand lives in `weft_control_plane::cli`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use weft_control_plane::cli::validate::Validate;

/// Checks and applies the policies of a Weft mesh
#[derive(Parser)]
#[command(version)]
struct Weftctl {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Validate(Validate),
}

fn main() -> ExitCode {
    let result = match Weftctl::parse().command {
        Command::Validate(validate) => validate.run(&mut std::io::stdout().lock()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("weftctl: {error:#}");
        ExitCode::FAILURE
    })
}
