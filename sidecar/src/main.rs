//! `weft-sidecar`: the command line; see `weft_sidecar::run`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_appender::non_blocking::NonBlockingBuilder;
use weft_sidecar::commands::run::Request;
use weft_sidecar::commands::{exec, run, wait};
use weft_sidecar::host::hot_restart::{self, End};
use weft_sidecar::host::{notify, redirect};
use weft_sidecar::net::sockets;

/// Lines of the log that wait for being written; more are dropped.
const LOG_LINES: usize = 4096;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The Weft proxy beside one service.
#[derive(Parser)]
#[command(version = option_env!("WEFT_VERSION").unwrap_or(env!("CARGO_PKG_VERSION")))]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Join the mesh and serve until SIGTERM, then drain; on SIGHUP start the program anew, which takes over at once.
    Run(Box<run::Config>),
    /// Join the mesh and run a command in it; on SIGTERM drain first, then stop the command.
    Exec(Box<exec::Options>),
    /// Serve the ports of Istio's Gateways for clients without a sidecar, until SIGTERM.
    Gateway(Box<run::GatewayConfig>),
    /// Bring this pod's traffic to the proxy, by nftables.
    #[command(subcommand)]
    Redirect(redirect::Action),
    /// Wait until the sidecar of this pod is ready, for the hook that holds the application's containers back.
    Wait(wait::Options),
    /// The part of `exec` inside the namespaces of its command.
    #[command(hide = true)]
    Inside(exec::rootless::Inside),
    /// Represent successors to a supervisor that started their predecessor.
    #[command(hide = true)]
    Follow,
    /// Write the man pages into a folder, for deploy/build.sh.
    #[command(hide = true)]
    Man { folder: PathBuf },
}

fn main() -> ExitCode {
    // The allocator asks for huge pages, 2 MiB each time it touches one: an idle sidecar would double by them. Where they
    // cannot be turned off nothing is lost but memory.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    match run(Args::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("weft-sidecar: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<ExitCode> {
    if let Command::Inside(options) = &args.command {
        return exec::rootless::inside(options).map(|()| ExitCode::SUCCESS);
    }
    if let Command::Man { folder } = &args.command {
        clap_mangen::generate_to(Args::command(), folder)
            .with_context(|| format!("cannot write man pages into {}", folder.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    // On a thread of its own, which drops lines that it cannot write in time: a slow disk or a full pipe must hold up neither
    // traffic nor DNS. The guard writes the rest at the end. Its queue is allocated at the start, 40 bytes a line: the default
    // would be 5 MB.
    let queue = NonBlockingBuilder::default().buffered_lines_limit(LOG_LINES);
    let (log, guard) = queue.finish(std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("WEFT_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(log)
        .init();
    // Before the process opens any descriptor.
    sockets::take_over();
    hot_restart::take_over()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let end = match args.command {
        Command::Run(config) => runtime.block_on(serve(*config)),
        Command::Gateway(config) => runtime.block_on(serve((*config).into())),
        Command::Exec(options) => runtime.block_on(exec::run(*options)).map(|code| End::Exit(code.into())),
        Command::Follow => runtime.block_on(hot_restart::follow()).map(End::Exit),
        Command::Wait(options) => runtime.block_on(wait::run(&options)).map(|()| End::Exit(ExitCode::SUCCESS)),
        Command::Redirect(action) => redirect::run(&action).map(|()| End::Exit(ExitCode::SUCCESS)),
        // Done above.
        Command::Inside(_) | Command::Man { .. } => Ok(End::Exit(ExitCode::SUCCESS)),
    };
    // A name look-up that hangs must not hold up the end.
    runtime.shutdown_background();
    drop(guard);
    match end? {
        End::Exit(code) => Ok(code),
        End::Follow(successor) => successor.become_follower(),
    }
}

async fn serve(config: run::Config) -> Result<End> {
    let sidecar = run::start(config, run::Application::MayRun)?;
    let mut signals = Signals::new()?;
    let mut up = std::pin::pin!(async {
        sidecar.succeed().await?;
        sidecar.restored().await;
        sidecar.ready().await;
        notify::ready();
        sidecar.register().await;
        anyhow::Ok(())
    });
    let mut serves = false;
    loop {
        let request = tokio::select! {
            request = signals.next() => request,
            result = &mut up, if !serves => {
                result?;
                serves = true;
                continue;
            }
        };
        if request == Request::Stop {
            notify::stopping();
            sidecar.stop().await;
            return Ok(End::Exit(ExitCode::SUCCESS));
        }
        if hot_restart::has_predecessor() {
            tracing::warn!("no reload: this process has not taken over from its own predecessor yet");
            continue;
        }
        notify::reloading();
        match sidecar.hand_over().await {
            Ok(successor) => return sidecar.outlast(successor, async || signals.next().await).await,
            Err(e) => {
                notify::reload_failed();
                tracing::error!("the reload failed, and this process goes on: {e:#}");
            }
        }
    }
}

/// The signals that this process handles.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let receive = |kind: SignalKind| signal(kind).context("cannot receive signals");
        Ok(Signals {
            terminate: receive(SignalKind::terminate())?,
            interrupt: receive(SignalKind::interrupt())?,
            hangup: receive(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop,
            _ = self.interrupt.recv() => Request::Stop,
            _ = self.hangup.recv() => Request::Reload,
        }
    }
}
