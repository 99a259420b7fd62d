//! `weft-sidecar wait`: ends when the sidecar of this pod is ready.
//!
//! Without native sidecars Kubernetes starts the containers of a pod one after the other and waits only for a hook
//! (`postStart`), which runs this.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

use crate::host::redirect::host::readiness;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// How to wait.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The proxy's readiness endpoint.
    #[arg(long, default_value_t = 15021)]
    ready_port: u16,
    /// Seconds to wait at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

/// Waits.
///
/// # Errors
/// If the sidecar is not ready in time; with the reason.
pub async fn run(options: &Options) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(options.timeout);
    loop {
        let answer = readiness(options.ready_port);
        if matches!(answer, Ok((200, _))) {
            return Ok(());
        }
        if Instant::now() >= end {
            let why = match answer {
                Ok((status, body)) => format!("{status}: {}", body.trim()),
                Err(error) => format!("{error:#}"),
            };
            bail!("the sidecar on 127.0.0.1:{} is not ready within {} s: {why}", options.ready_port, options.timeout);
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn waits_until_the_page_says_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ready_port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            for status in ["503 Service Unavailable", "503 Service Unavailable", "200 OK"] {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 512]).unwrap();
                write!(stream, "HTTP/1.0 {status}\r\n\r\nnot ready: draining\n").unwrap();
            }
        });
        run(&Options { ready_port, timeout: 10 }).await.unwrap();
        server.join().unwrap();
        let error = run(&Options { ready_port, timeout: 0 }).await.unwrap_err().to_string();
        assert!(error.contains("is not ready within 0 s"), "{error}");
    }
}
