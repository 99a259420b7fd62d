//! `weft-sidecar`: the command line; see `weft_sidecar::run`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use weft_sidecar::{exec, redirect, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The Weft proxy beside one service.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Join the mesh and serve until SIGTERM, then drain.
    Run(Box<run::Config>),
    /// Join the mesh and run a command in it; on SIGTERM drain first, then stop the command.
    Exec(Box<exec::Options>),
    /// Bring this pod's traffic to the proxy, by nftables.
    #[command(subcommand)]
    Redirect(redirect::Action),
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("weft-sidecar: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("WEFT_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = match args.command {
        Command::Run(config) => runtime.block_on(async {
            let sidecar = run::start(*config, run::Application::MayRun)?;
            let stop = stop_signal();
            tokio::pin!(stop);
            tokio::select! {
                () = &mut stop => {}
                () = async { sidecar.ready().await; sidecar.register().await; std::future::pending().await } => {}
            }
            sidecar.drain().await;
            Ok(ExitCode::SUCCESS)
        }),
        Command::Exec(options) => runtime.block_on(exec::run(*options)).map(ExitCode::from),
        Command::Redirect(action) => redirect::run(&action).map(|()| ExitCode::SUCCESS),
    };
    // A name look-up that hangs must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn stop_signal() {
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    let Ok(mut terminate) = terminate else { return std::future::pending().await };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
