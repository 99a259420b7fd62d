//! `weft-load`: load that no packaged tool generates. Each command prints one JSON object.

mod bytes;
mod fleet;
mod grpc_server;
mod handshakes;
mod largest;
mod open_loop;
mod registry;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Load for `make bench`.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Requests at a fixed rate, independent of latencies.
    OpenLoop(open_loop::Options),
    /// The server of `bytes`: one port sends, another counts received bytes.
    BytesServer(bytes::Server),
    /// Downloads or uploads over many connections.
    Bytes(bytes::Options),
    /// Answers unary calls.
    GrpcServer(grpc_server::Options),
    /// A new mTLS connection for each request.
    Handshakes(handshakes::Options),
    /// Discovery streams of many sidecars, and changes for all of them.
    Fleet(fleet::Options),
    /// The largest of everything that one member can send, and the refusals.
    Largest(largest::Options),
    /// Registrations of many sidecars, all at once.
    Registry(registry::Options),
}

fn main() -> Result<()> {
    let (soft, hard) = {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        (limit.current, limit.maximum)
    };
    if soft != hard {
        let all = rustix::process::Rlimit { current: hard, maximum: hard };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, all)?;
    }
    let command = Args::parse().command;
    if let Command::OpenLoop(options) = command {
        return print(&open_loop::run(&options)?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::OpenLoop(_) => Ok(()),
            Command::BytesServer(options) => bytes::serve(options).await,
            Command::GrpcServer(options) => grpc_server::serve(options).await,
            Command::Bytes(options) => print(&bytes::run(options).await?),
            Command::Handshakes(options) => print(&handshakes::run(options).await?),
            Command::Fleet(options) => print(&fleet::run(options).await?),
            Command::Largest(options) => print(&largest::run(options).await?),
            Command::Registry(options) => print(&registry::run(options).await?),
        }
    })
}

fn print(figures: &serde_json::Value) -> Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{figures}")?;
    Ok(())
}

/// The value below which a share of the sorted `values` lies.
fn percentile(values: &[u64], share: f64) -> u64 {
    let at = ((values.len() as f64 * share).ceil() as usize).saturating_sub(1);
    values.get(at).copied().unwrap_or(0)
}
