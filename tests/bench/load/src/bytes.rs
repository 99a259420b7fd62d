//! Byte streams: a server that sends or counts, and connections that load it in one direction. The bytes follow a
//! pattern, and both ends check the first and last byte of each read.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

const BLOCK: usize = 256 * 1024;
/// Not a power of two, so that a lost or repeated buffer is detected.
const PERIOD: u64 = 251;
/// Buffer size of the load's sockets. The default for a thousand sockets exceeds the kernel's limit, which would then
/// determine the figures instead of the proxy.
const ROOM: u32 = 256 * 1024;
const FOR_EVER: Duration = Duration::from_secs(86400);

#[derive(clap::Args)]
pub(crate) struct Server {
    /// Sends until the client ends
    #[arg(long)]
    source: SocketAddr,
    /// Counts, and answers with the count after the client's half-close
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

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_send_buffer_size(ROOM)?;
    socket.set_recv_buffer_size(ROOM)?;
    Ok(socket)
}

pub(crate) async fn serve(options: Server) -> Result<()> {
    let listen = |address| -> Result<TcpListener> {
        let socket = socket(address)?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket.listen(4096)?)
    };
    let (source, sink) = (listen(options.source)?, listen(options.sink)?);
    let pattern = Rc::new(pattern());
    let local = tokio::task::LocalSet::new();
    let run = async {
        loop {
            tokio::select! {
                accepted = source.accept() => {
                    let (mut stream, pattern) = (accepted?.0, pattern.clone());
                    tokio::task::spawn_local(async move {
                        // Ends with the client.
                        let _ = send(&mut stream, &pattern, Instant::now() + FOR_EVER).await;
                    });
                }
                accepted = sink.accept() => {
                    let mut stream = accepted?.0;
                    tokio::task::spawn_local(async move {
                        if let Ok(count) = receive(&stream, Instant::now() + FOR_EVER, |_| {}).await {
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
        // Yields to other tasks, because these loops rarely wait.
        tokio::task::yield_now().await;
    }
    Ok(position)
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BLOCK]);
}

/// Reads until the end of the stream, or until `end`, and calls `more` for each read. Returns the bytes read, or an error
/// where they differ from the pattern.
async fn receive(stream: &TcpStream, end: Instant, mut more: impl FnMut(usize)) -> io::Result<u64> {
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
            Ok(n) => {
                position += n as u64;
                more(n);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        tokio::task::yield_now().await;
    }
    Ok(position)
}

pub(crate) async fn run(options: Options) -> Result<Value> {
    let local = tokio::task::LocalSet::new();
    local.run_until(async { if options.upload { upload(options).await } else { download(options).await } }).await
}

async fn connect(options: &Options) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for _ in 0..options.connections {
        let stream = socket(options.to)?.connect(options.to).await;
        streams.push(stream.with_context(|| format!("connecting to {}", options.to))?);
    }
    Ok(streams)
}

/// The bytes that all connections have received.
#[derive(Default)]
struct Received {
    bytes: Cell<u64>,
    /// Connections that have received data.
    delivering: Cell<u32>,
    one_more: Notify,
}

/// Measures once all connections deliver, and reports that moment: the handshakes are not part of the figures.
async fn download(options: Options) -> Result<Value> {
    let received = Rc::new(Received::default());
    let mut tasks = JoinSet::new();
    for stream in connect(&options).await? {
        let received = received.clone();
        tasks.spawn_local(async move {
            let mut begun = false;
            receive(&stream, Instant::now() + FOR_EVER, |n| {
                received.bytes.set(received.bytes.get() + n as u64);
                if !std::mem::replace(&mut begun, true) {
                    received.delivering.set(received.delivering.get() + 1);
                    received.one_more.notify_one();
                }
            })
            .await
        });
    }
    let all = async {
        while received.delivering.get() < options.connections {
            received.one_more.notified().await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(60), all).await.is_err() {
        anyhow::bail!("{} of {} connections deliver", received.delivering.get(), options.connections);
    }
    println!("ready");
    let before = received.bytes.get();
    tokio::time::sleep(Duration::from_secs(options.seconds)).await;
    let bytes = received.bytes.get() - before;
    let mut errors = 0;
    while let Some(ended) = tasks.try_join_next() {
        if errors == 0 {
            eprintln!("a connection ended: {ended:?}");
        }
        errors += 1;
    }
    Ok(json!({"gb": bytes as f64 / 1e9, "errors": errors}))
}

async fn upload(options: Options) -> Result<Value> {
    let pattern = Rc::new(pattern());
    let streams = connect(&options).await?;
    println!("ready");
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let tasks: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            let pattern = pattern.clone();
            tokio::task::spawn_local(async move {
                let sent = send(&mut stream, &pattern, end).await?;
                stream.shutdown().await?;
                // Bytes in flight arrive first.
                let counted = tokio::time::timeout(Duration::from_secs(20), stream.read_u64()).await??;
                ensure!(counted == sent, "{sent} bytes were sent, {counted} arrived");
                anyhow::Ok(sent)
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
    Ok(json!({"gb": total as f64 / 1e9, "errors": errors}))
}
