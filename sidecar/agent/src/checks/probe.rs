//! One probe of a check; a failure is a result.
//!
//! Each probe has a connection of its own, marked as exempt from redirection, and goes to the agent's own addresses
//! only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::net::UdpSocket;

use super::state::Status;
use super::target::Own;
use super::{Kind, Place, Sockets, dial, http, http2};

/// Wait for the rejection of a datagram: within a pod it arrives at once.
const UDP_WAIT: Duration = Duration::from_secs(1);

/// Runs one probe.
pub async fn probe(sockets: &dyn Sockets, kind: &Kind, timeout: Duration) -> (Status, String) {
    let late = || format!("no answer within {timeout:?}");
    match kind {
        Kind::Ttl(_) | Kind::Maintenance | Kind::Alias(_) => (Status::Critical, String::new()),
        Kind::Script(args) => match sockets.script(args, timeout).await {
            Ok(ran) => {
                let status = match ran.code {
                    Some(0) => Status::Passing,
                    Some(1) => Status::Warning,
                    _ => Status::Critical,
                };
                (status, ran.output)
            }
            Err(e) => (Status::Critical, format!("{}: {e}", args.join(" "))),
        },
        Kind::Http(request) => {
            let result =
                tokio::time::timeout(timeout, http::fetch(sockets, request, http::Elsewhere::Follows, timeout)).await;
            let describe = |outcome: String| format!("HTTP {} {}: {outcome}", request.method, request.url);
            match result.unwrap_or_else(|_| Err(late())) {
                Ok((status, body)) => (http::health(status), describe(format!("{status} Output: {body}"))),
                Err(e) => (Status::Critical, describe(e)),
            }
        }
        Kind::Tcp(place) => {
            let opened = tokio::time::timeout(timeout, dial::open(sockets, place, None, timeout)).await;
            result(format!("TCP connect {place}"), opened.unwrap_or_else(|_| Err(late())).map(drop))
        }
        Kind::Udp(place) => {
            result(format!("UDP connect {place}"), datagram(sockets.own(), place, timeout.min(UDP_WAIT)).await)
        }
        Kind::Grpc(place, service) => {
            let response = tokio::time::timeout(timeout, http2::health(sockets, place, service, timeout)).await;
            result(format!("gRPC check {place}"), response.unwrap_or_else(|_| Err(late())))
        }
        Kind::Http2Ping(place) => {
            let pinged = tokio::time::timeout(timeout, http2::ping(sockets, place, timeout)).await;
            result(format!("HTTP/2 ping {place}"), pinged.unwrap_or_else(|_| Err(late())))
        }
    }
}

/// Runs one probe by the kubelet's rules: an HTTP status from 200 to 399 is a success, and so is a redirect to another host.
///
/// # Errors
/// The failure of the probe.
pub async fn kubelet_probe(sockets: &dyn Sockets, kind: &Kind, timeout: Duration) -> Result<String, String> {
    let Kind::Http(request) = kind else {
        let (status, output) = probe(sockets, kind, timeout).await;
        return if status == Status::Passing { Ok(output) } else { Err(output) };
    };
    let fetched = tokio::time::timeout(timeout, http::fetch(sockets, request, http::Elsewhere::Ends, timeout)).await;
    let (status, body) = fetched.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")))?;
    let output = format!("HTTP {status}: {body}");
    if (200..400).contains(&status.as_u16()) { Ok(output) } else { Err(output) }
}

fn result(probe_name: String, result: Result<(), String>) -> (Status, String) {
    match result {
        Ok(()) => (Status::Passing, format!("{probe_name}: Success")),
        Err(e) => (Status::Critical, format!("{probe_name}: {e}")),
    }
}

/// Sends one datagram. No response passes, because few protocols answer an unknown message.
async fn datagram(own: Own, place: &Place, wait: Duration) -> Result<(), String> {
    let mut last = "no address".to_owned();
    for to in own.resolve(&place.host, place.port).await.map_err(|e| e.to_string())? {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let response = async {
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.connect(to).await?;
            socket.send(b"weft health check\n").await?;
            match tokio::time::timeout(wait, socket.recv(&mut [0; 512])).await {
                Ok(Err(e)) => Err(e),
                Ok(Ok(_)) | Err(_) => Ok(()),
            }
        };
        match response.await {
            Ok(()) => return Ok(()),
            Err(e) => last = e.to_string(),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::http::tests::http;
    use crate::checks::tests::Plain;

    fn place(port: u16) -> Place {
        Place { host: "localhost".into(), port, tls: None }
    }

    #[tokio::test]
    async fn timeouts_and_refused_connections_are_critical() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (status, output) = probe(&Plain, &Kind::Http(http(port, "/")), Duration::from_millis(50)).await;
        assert!(status == Status::Critical && output.contains("no answer within 50ms"), "{output}");
        let tcp = Kind::Tcp(place(port));
        assert_eq!(probe(&Plain, &tcp, Duration::from_secs(1)).await.0, Status::Passing);
        drop(listener);
        let (status, output) = probe(&Plain, &tcp, Duration::from_secs(1)).await;
        assert!(status == Status::Critical && output.contains("refused"), "{output}");
    }

    #[tokio::test]
    async fn a_rejected_datagram_is_critical() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let udp = Kind::Udp(Place { host: "127.0.0.1".into(), ..place(socket.local_addr().unwrap().port()) });
        assert_eq!(probe(&Plain, &udp, Duration::from_millis(50)).await.0, Status::Passing, "silence");
        drop(socket);
        let (status, output) = probe(&Plain, &udp, Duration::from_secs(5)).await;
        assert!(status == Status::Critical && output.contains("refused"), "{output}");
    }
}
