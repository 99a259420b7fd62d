//! Many registrations at one control plane: sidecars, each with its instances, all at once.

use std::io::BufRead;
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::time::Instant;
use weft_sidecar::control::connection::Control;

use crate::fleet::{Registrar, instance};
use crate::handshakes::join;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    control_plane: String,
    /// Must name the services s0, s1 ..., one for each sidecar
    #[arg(long)]
    token_file: PathBuf,
    #[arg(long, default_value_t = 50)]
    sidecars: usize,
    /// Of each sidecar
    #[arg(long, default_value_t = 1000)]
    instances: usize,
}

pub(crate) async fn run(options: Options) -> Result<Value> {
    let control = Rc::new(join(options.control_plane.clone(), options.token_file.clone()).await?);
    tokio::task::LocalSet::new().run_until(all(options, control)).await
}

async fn all(options: Options, control: Rc<Control>) -> Result<Value> {
    let mut registrars = Vec::new();
    for sidecar in 0..options.sidecars {
        registrars.push(Registrar::open(&control, &format!("registrar-{sidecar:08x}")).await?);
    }
    let start = Instant::now();
    let tasks = registrars.into_iter().enumerate().map(|(sidecar, mut registrar)| {
        tokio::task::spawn_local(async move {
            let mut took = Vec::with_capacity(options.instances);
            for i in 0..options.instances {
                let start = Instant::now();
                // All have one address, so that each needs a port of its own.
                let port = 10_000 + u32::try_from((sidecar * options.instances + i) % 55_000)?;
                registrar.register(instance(format!("s{sidecar}"), format!("i{i}"), port)).await?;
                took.push(u64::try_from(start.elapsed().as_micros())?);
            }
            anyhow::Ok((registrar, took))
        })
    });
    // Sessions stay open, because registrations end with them.
    let (mut sessions, mut took) = (Vec::new(), Vec::new());
    for task in tasks.collect::<Vec<_>>() {
        let (registrar, one) = task.await??;
        sessions.push(registrar);
        took.extend(one);
    }
    let seconds = start.elapsed().as_secs_f64();
    took.sort_unstable();
    let figures = json!({
        "registrations": took.len(),
        "registrations_per_s": took.len() as f64 / seconds,
        "p50_ms": super::percentile(&took, 0.5) as f64 / 1000.0,
        "p99_ms": super::percentile(&took, 0.99) as f64 / 1000.0,
    });
    super::print(&json!({"ready": true, "figures": figures}))?;
    // The caller measures the control plane meanwhile; heartbeats go on.
    let mut line = tokio::task::spawn_blocking(|| std::io::stdin().lock().read_line(&mut String::new()));
    let mut tick = tokio::time::interval(std::time::Duration::from_secs(2));
    loop {
        tokio::select! {
            read = &mut line => {
                read??;
                return Ok(figures);
            }
            _ = tick.tick() => {
                for registrar in &mut sessions {
                    registrar.heartbeat().await?;
                }
            }
        }
    }
}
