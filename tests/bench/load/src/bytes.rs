//! Byte streams: a server that sends or counts, and connections that load it in one direction. The bytes follow a
//! pattern, and both ends look at where each read begins and ends in it.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

const BLOCK: usize = 256 * 1024;
/// Not a power of two, so that a lost or doubled buffer shows.
const PERIOD: u64 = 251;

#[derive(clap::Args)]
pub(crate) struct Server {
    /// Sends for ever
    #[arg(long)]
    source: SocketAddr,
    /// Counts, and answers the count when the client has ended
    #[arg(long)]
    sink: SocketAddr,
}

#[derive(clap::Args)]
pub(crate) struct Options {
    to: SocketAddr,
    /// To send, not to receive
    #[arg(long)]
    upload: bool,
    #[arg(long, default_value_t = 2)]
    connections: u32,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

fn pattern() -> Vec<u8> {
    (0..BLOCK as u64 + PERIOD).map(|i| (i % PERIOD) as u8).collect()
}

fn expected(position: u64) -> u8 {
    (position % PERIOD) as u8
}

pub(crate) async fn serve(options: Server) -> Result<()> {
    let source = TcpListener::bind(options.source).await?;
    let sink = TcpListener::bind(options.sink).await?;
    let pattern = Rc::new(pattern());
    let local = tokio::task::LocalSet::new();
    let run = async {
        loop {
            tokio::select! {
                accepted = source.accept() => {
                    let (mut stream, pattern) = (accepted?.0, pattern.clone());
                    tokio::task::spawn_local(async move {
                        // Ends when the client goes.
                        let _ = send(&mut stream, &pattern, Instant::now() + Duration::from_secs(86400)).await;
                    });
                }
                accepted = sink.accept() => {
                    let mut stream = accepted?.0;
                    tokio::task::spawn_local(async move {
                        if let Ok(count) = receive(&stream, Instant::now() + Duration::from_secs(86400)).await {
                            let _ = stream.write_u64(count).await;
                        }
                    });
                }
            }
        }
    };
    local.run_until(run).await
}

/// Writes the pattern until `end`; the bytes written.
async fn send(stream: &mut TcpStream, pattern: &[u8], end: Instant) -> io::Result<u64> {
    let mut position = 0;
    while Instant::now() < end {
        let from = (position % PERIOD) as usize;
        match tokio::time::timeout_at(end, stream.writable()).await {
            Ok(ready) => ready?,
            Err(_) => break,
        }
        match stream.try_write(&pattern[from..from + BLOCK]) {
            Ok(n) => position += n as u64,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        // Others have their turn: these loops seldom wait.
        tokio::task::yield_now().await;
    }
    Ok(position)
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BLOCK]);
}

/// Reads until the end, or until `end`; the bytes read. An error when they are not the pattern.
async fn receive(stream: &TcpStream, end: Instant) -> io::Result<u64> {
    let mut position = 0;
    while Instant::now() < end {
        match tokio::time::timeout_at(end, stream.readable()).await {
            Ok(ready) => ready?,
            Err(_) => break,
        }
        let read = BUFFER.with_borrow_mut(|buffer| {
            let n = stream.try_read(buffer)?;
            let right = n == 0 || buffer[0] == expected(position) && buffer[n - 1] == expected(position + n as u64 - 1);
            if right { Ok(n) } else { Err(io::Error::other(format!("other bytes than were sent, after {position}"))) }
        });
        match read {
            Ok(0) => break,
            Ok(n) => position += n as u64,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        tokio::task::yield_now().await;
    }
    Ok(position)
}

pub(crate) async fn run(options: Options) -> Result<Value> {
    let pattern = Rc::new(pattern());
    let local = tokio::task::LocalSet::new();
    let all = local.run_until(async {
        let mut streams = Vec::new();
        for _ in 0..options.connections {
            let stream = TcpStream::connect(options.to).await;
            streams.push(stream.with_context(|| format!("connecting to {}", options.to))?);
        }
        if !options.upload {
            // A thousand handshakes are not what is measured.
            for stream in &streams {
                stream.readable().await?;
            }
        }
        let end = Instant::now() + Duration::from_secs(options.seconds);
        let tasks: Vec<_> = streams
            .into_iter()
            .map(|mut stream| {
                let pattern = pattern.clone();
                tokio::task::spawn_local(async move {
                    if !options.upload {
                        return Ok(receive(&stream, end).await?);
                    }
                    let sent = send(&mut stream, &pattern, end).await?;
                    stream.shutdown().await?;
                    // What was under way arrives first.
                    let counted = tokio::time::timeout(Duration::from_secs(20), stream.read_u64()).await??;
                    ensure!(counted == sent, "{sent} bytes were sent, {counted} arrived");
                    Ok(sent)
                })
            })
            .collect();
        let (mut total, mut errors) = (0, 0);
        for task in tasks {
            match task.await? {
                Ok(bytes) => total += bytes,
                Err(e) => {
                    if errors == 0 {
                        eprintln!("{e:#}");
                    }
                    errors += 1;
                }
            }
        }
        anyhow::Ok((total, errors))
    });
    let (total, errors) = all.await?;
    Ok(json!({"gb": total as f64 / 1e9, "errors": errors}))
}
