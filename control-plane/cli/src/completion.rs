//! `weftctl completion`: a script for the shell.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap_complete::Shell;

/// Prints a completion script: `source <(weftctl completion bash)`
#[derive(Debug, clap::Args)]
pub struct Completion {
    /// Shell that reads it
    shell: Shell,
}

impl Completion {
    /// Runs it; `command` is the completed command.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn run(&self, mut command: clap::Command, out: &mut impl Write) -> Result<ExitCode> {
        let mut script = Vec::new();
        let name = command.get_name().to_owned();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        out.write_all(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
