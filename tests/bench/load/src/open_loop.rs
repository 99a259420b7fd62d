//! Requests at a fixed rate over HTTP/1.1 connections. The latency of a request is counted from its
//! scheduled time, so that a stall counts for all requests that it delays.
//!
//! One thread a connection: the kernel's timers are finer than an event loop's.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Address to connect to
    to: SocketAddr,
    /// The Host header
    #[arg(long)]
    host: String,
    /// Requests a second, over all connections
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    #[arg(long, default_value_t = 32)]
    connections: u32,
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Length of each response's body
    #[arg(long, default_value_t = 128)]
    body: usize,
}

pub(crate) fn run(options: &Options) -> Result<Value> {
    let start = Instant::now() + Duration::from_millis(100);
    let threads: Vec<_> = (0..options.connections)
        .map(|i| {
            let one = Connection {
                to: options.to,
                request: format!("GET / HTTP/1.1\r\nHost: {}\r\nuser-id: {i}\r\n\r\n", options.host),
                body: options.body,
                // Evenly spread over the period.
                start: start + Duration::from_secs(1) / options.rate * i,
                period: Duration::from_secs(1) / options.rate * options.connections,
                count: options.rate * options.seconds / options.connections,
            };
            std::thread::Builder::new().stack_size(64 * 1024).spawn(move || one.run())
        })
        .collect();
    let (mut latencies, mut errors) = (Vec::new(), 0);
    for thread in threads {
        match thread?.join() {
            Ok(Ok(more)) => latencies.extend(more),
            Ok(Err(e)) => {
                eprintln!("{e:#}");
                errors += 1;
            }
            Err(_) => errors += 1,
        }
    }
    latencies.sort_unstable();
    let us = |share| super::percentile(&latencies, share) as f64 / 1000.0;
    let took = start.elapsed().as_secs_f64();
    Ok(json!({
        "requests": latencies.len(), "rps": latencies.len() as f64 / took, "errors": errors,
        "p50_us": us(0.5), "p99_us": us(0.99),
    }))
}

struct Connection {
    to: SocketAddr,
    request: String,
    body: usize,
    start: Instant,
    period: Duration,
    count: u32,
}

impl Connection {
    /// Latencies in nanoseconds.
    fn run(self) -> Result<Vec<u64>> {
        // A timer may otherwise be 50 us late.
        rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
        let mut stream = TcpStream::connect(self.to).with_context(|| format!("connecting to {}", self.to))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut latencies = Vec::with_capacity(self.count as usize);
        for i in 0..self.count {
            let due = self.start + self.period * i;
            let early = due.saturating_duration_since(Instant::now());
            let from = if early.is_zero() {
                due
            } else {
                std::thread::sleep(early);
                Instant::now()
            };
            stream.write_all(self.request.as_bytes())?;
            self.answer(&mut stream)?;
            latencies.push(u64::try_from(from.elapsed().as_nanos())?);
        }
        Ok(latencies)
    }

    fn answer(&self, stream: &mut TcpStream) -> Result<()> {
        let mut buffer = [0; 4096];
        let mut filled = 0;
        loop {
            let n = stream.read(&mut buffer[filled..])?;
            ensure!(n > 0, "the connection was closed");
            filled += n;
            let head = buffer[..filled].windows(4).position(|w| w == b"\r\n\r\n");
            if let Some(head) = head
                && filled >= head + 4 + self.body
            {
                ensure!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..filled]));
                return Ok(());
            }
        }
    }
}
