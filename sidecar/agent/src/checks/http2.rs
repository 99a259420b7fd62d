//! Checks over HTTP/2: gRPC's health protocol, and PING frames.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use http::{HeaderMap, HeaderValue, Method, Request, Version, header};
use prost::Message;

use super::{Place, Sockets, dial};

/// Maximum size of a health response, which holds one number.
const MAX_ANSWER: usize = 4096;

/// `grpc.health.v1.HealthCheckRequest` (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).
#[derive(Clone, PartialEq, Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct HealthResponse {
    /// 1: SERVING.
    #[prost(int32, tag = "1")]
    status: i32,
}

/// A connection and the task that drives it; dropping it stops both.
struct Connection {
    sender: SendRequest<Bytes>,
    ping: Option<PingPong>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn open(sockets: &dyn Sockets, place: &Place, timeout: Duration) -> Result<Connection, String> {
    let stream = dial::open(sockets, place, Some(b"h2"), timeout).await?;
    let (sender, mut connection) =
        h2::client::handshake(stream).await.map_err(|e| format!("HTTP/2 handshake failed: {e}"))?;
    let ping = connection.ping_pong();
    // Requests on the connection report its errors.
    let driver = tokio::spawn(async move { drop(connection.await) });
    Ok(Connection { sender, ping, driver })
}

/// Succeeds if the peer answers a PING.
pub(super) async fn ping(sockets: &dyn Sockets, place: &Place, timeout: Duration) -> Result<(), String> {
    let mut connection = open(sockets, place, timeout).await?;
    let mut ping = connection.ping.take().ok_or("the connection does not support PING")?;
    ping.ping(Ping::opaque()).await.map(drop).map_err(|e| format!("no answer: {e}"))
}

/// Succeeds if the server reports SERVING.
pub(super) async fn health(
    sockets: &dyn Sockets,
    place: &Place,
    service: &str,
    timeout: Duration,
) -> Result<(), String> {
    let connection = open(sockets, place, timeout).await?;
    let scheme = if place.tls.is_some() { "https" } else { "http" };
    let request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("{scheme}://{}:{}/grpc.health.v1.Health/Check", place.host, place.port))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "Consul Health Check")
        .body(())
        .map_err(|e| e.to_string())?;
    let message = HealthRequest { service: service.to_owned() };
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(u32::try_from(message.encoded_len()).map_err(|_| "the service's name is too long")?);
    message.encode(&mut body).map_err(|e| e.to_string())?;

    let failed = |e: h2::Error| format!("no answer: {e}");
    let mut sender = connection.sender.clone().ready().await.map_err(failed)?;
    let (response, mut stream) = sender.send_request(request, false).map_err(failed)?;
    stream.send_data(body.freeze(), true).map_err(failed)?;
    let (head, mut received) = response.await.map_err(failed)?.into_parts();
    if !head.status.is_success() {
        return Err(format!("reply {}", head.status));
    }
    grpc_status(&head.headers)?;
    let mut answer = Vec::new();
    while let Some(data) = received.data().await {
        let data = data.map_err(failed)?;
        answer.extend_from_slice(&data);
        if answer.len() > MAX_ANSWER {
            return Err("the answer is too long".into());
        }
        received.flow_control().release_capacity(data.len()).map_err(failed)?;
    }
    if let Some(trailers) = received.trailers().await.map_err(failed)? {
        grpc_status(&trailers)?;
    }
    let answer = answer.get(5..).and_then(|message| HealthResponse::decode(message).ok());
    match answer.ok_or("the answer is not a message of gRPC's health protocol")?.status {
        1 => Ok(()),
        2 => Err("NOT_SERVING".into()),
        3 => Err("SERVICE_UNKNOWN".into()),
        _ => Err("UNKNOWN".into()),
    }
}

/// Fails unless the server's gRPC status is OK.
fn grpc_status(headers: &HeaderMap) -> Result<(), String> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    match headers.get("grpc-status").map(text) {
        Some(code) if code != "0" => {
            let message = headers.get("grpc-message").map(text).unwrap_or_default();
            Err(format!("gRPC status {code} {message}").trim_end().to_owned())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use http::Response;
    use tokio::net::TcpListener;

    use super::super::Kind;
    use super::super::probe::probe;
    use super::super::state::Status;
    use super::super::tests::Plain;
    use super::*;

    /// A server that reports SERVING for the service "order" and knows no other.
    async fn server() -> Place {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(answer(request, respond));
                    }
                });
            }
        });
        Place { host: "127.0.0.1".into(), port, tls: None }
    }

    async fn answer(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        let message = request.into_body().data().await.unwrap().unwrap();
        let message = HealthRequest::decode(&message[5..]).unwrap();
        let mut trailers = HeaderMap::new();
        let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut stream = respond.send_response(response, false).unwrap();
        if let Some(status) = ["", "order", "late"].iter().position(|s| *s == message.service) {
            let status = [1, 1, 2][status];
            stream.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]), false).unwrap();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
        } else {
            trailers.insert("grpc-status", HeaderValue::from_static("5"));
            trailers.insert("grpc-message", HeaderValue::from_static("unknown service"));
        }
        stream.send_trailers(trailers).unwrap();
    }

    #[tokio::test]
    async fn grpc_health_status_decides() {
        let place = server().await;
        for (service, status, expected) in [
            ("", Status::Passing, "Success"),
            ("order", Status::Passing, "Success"),
            ("late", Status::Critical, "NOT_SERVING"),
            ("other", Status::Critical, "gRPC status 5 unknown service"),
        ] {
            let kind = Kind::Grpc(place.clone(), service.into());
            let (found, output) = probe(&Plain, &kind, Duration::from_secs(5)).await;
            assert_eq!(
                (found, output),
                (status, format!("gRPC check 127.0.0.1:{}: {expected}", place.port)),
                "{service}"
            );
        }
    }

    #[tokio::test]
    async fn ping_fails_without_an_answer() {
        let place = server().await;
        assert_eq!(probe(&Plain, &Kind::Http2Ping(place), Duration::from_secs(5)).await.0, Status::Passing);
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = Place { host: "127.0.0.1".into(), port: silent.local_addr().unwrap().port(), tls: None };
        let (status, output) = probe(&Plain, &Kind::Http2Ping(place), Duration::from_millis(100)).await;
        assert!(status == Status::Critical && output.ends_with("no answer within 100ms"), "{output}");
    }
}
