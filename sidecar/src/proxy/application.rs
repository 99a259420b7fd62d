//! Requests to the application for clients outside the mesh: a kubelet's probes and Prometheus' scrapes.
//!
//! Such a client has no certificate, and STRICT would refuse it. The sidecar asks for it, with the declared requests only:
//! any other would be a hole in STRICT. They go to the pod's own address, past the redirection, as a kubelet's would: an
//! application that listens on loopback alone is not ready.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use weft_agent::checks::probe::kubelet_probe;
use weft_agent::checks::{Http, Kind, Place, Tls};

use crate::control::agent::Delivery;
use crate::net::connect;

/// Longest wait for the application's answer to a probe of `--app-probe`.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest limit of a probe.
const MOST_PROBE_S: u64 = 3600;
/// Longest wait for the application's metrics: Prometheus' own limit.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of the application's metrics.
const MAX_METRICS: usize = 16 << 20;

/// What may be requested.
#[derive(Debug, Clone, Default)]
pub struct Application {
    /// Probes of `--app-probe`, `<port>/<path>`.
    pub declared: Vec<String>,
    /// Kubernetes' probes.
    pub probes: Probes,
    /// The application's metrics.
    pub metrics: Option<Metrics>,
    /// The pod's address.
    pub address: Option<IpAddr>,
}

/// Kubernetes' probes and lifecycle hooks by the page that makes them, as the injection writes them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Probes(BTreeMap<String, Probe>);

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    http_get: Option<HttpGet>,
    tcp_socket: Option<Port>,
    grpc: Option<Port>,
    timeout_seconds: Option<u64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    port: u16,
    path: String,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<Header>,
}

#[derive(Debug, Clone, Deserialize)]
struct Header {
    name: String,
    value: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Port {
    port: u16,
    #[serde(default)]
    service: String,
}

/// The page of the application's metrics.
#[derive(Debug, Clone, Deserialize)]
pub struct Metrics {
    port: u16,
    path: String,
}

impl Probes {
    /// Reads the JSON of the command line.
    ///
    /// # Errors
    /// If it is not a JSON object of probes.
    pub fn parse(text: &str) -> Result<Self> {
        let probes: Self = serde_json::from_str(text).context("not a JSON object of probes")?;
        for (page, probe) in &probes.0 {
            let known = page.starts_with("/app-health/") || page.starts_with("/app-lifecycle/");
            ensure!(known, "{page:?} does not begin with /app-health/ or /app-lifecycle/");
            let kinds = [probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.grpc.is_some()];
            ensure!(
                kinds.iter().filter(|given| **given).count() == 1,
                "{page:?} is not one of httpGet, tcpSocket, grpc"
            );
        }
        Ok(probes)
    }
}

impl Metrics {
    /// Reads the JSON of the command line.
    ///
    /// # Errors
    /// If it is not a JSON object with port and path.
    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).context("not a JSON object with `port` and `path`")
    }
}

impl Application {
    /// Whether a path is that of a probe or hook.
    pub fn has(&self, path: &str) -> bool {
        path.starts_with("/app-health/") || (path.starts_with("/app-lifecycle/") && !self.probes.0.is_empty())
    }

    /// Makes the probe of a page.
    pub async fn probe<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if let Some(probe) = self.probes.0.get(path) {
            return self.probe_as_kubelet(probe, request.headers()).await;
        }
        let name = path.trim_start_matches("/app-health/");
        if self.declared.iter().any(|declared| declared == name) {
            return probe_port(name).await;
        }
        let mut text = "this probe is not declared (--app-probe); declared are:\n".to_owned();
        for known in self.declared.iter().map(|name| format!("/app-health/{name}")).chain(self.probes.0.keys().cloned())
        {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{known}");
        }
        answer(StatusCode::NOT_FOUND, text)
    }

    async fn probe_as_kubelet(&self, probe: &Probe, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let limit = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).clamp(1, MOST_PROBE_S));
        let result = match self.kind(probe, headers) {
            Ok(kind) => kubelet_probe(&Delivery { scripts: false }, &kind, limit).await,
            Err(error) => Err(format!("{error:#}")),
        };
        match result {
            Ok(text) => answer(StatusCode::OK, format!("{text}\n")),
            Err(text) => answer(StatusCode::INTERNAL_SERVER_ERROR, format!("{text}\n")),
        }
    }

    fn kind(&self, probe: &Probe, headers: &HeaderMap) -> Result<Kind> {
        let address = self.address();
        let place = |port| Place { host: address.to_string(), port, tls: None };
        match (&probe.http_get, &probe.tcp_socket, &probe.grpc) {
            (Some(get), ..) => Ok(Kind::Http(get.request(address, headers)?)),
            (_, Some(tcp), _) => Ok(Kind::Tcp(place(tcp.port))),
            (.., Some(grpc)) => Ok(Kind::Grpc(place(grpc.port), grpc.service.clone())),
            _ => Err(anyhow!("the probe has no kind")),
        }
    }

    /// The address of the application.
    fn address(&self) -> IpAddr {
        self.address.unwrap_or(Ipv4Addr::LOCALHOST.into())
    }

    /// The sidecar's metrics with those of the application, in Prometheus' text format.
    pub async fn merge_metrics(&self, own: String, page: &Metrics) -> Response<Full<Bytes>> {
        const END: &str = "# EOF\n";
        let to = SocketAddr::new(self.address(), page.port);
        let asking = async {
            let response = get(to, &page.path, "text/plain;version=0.0.4;q=0.5,*/*;q=0.1", SCRAPE_TIMEOUT).await?;
            ensure!(response.status() == StatusCode::OK, "{}", response.status());
            let body = Limited::new(response.into_body(), MAX_METRICS).collect().await;
            anyhow::Ok(body.map_err(|error| anyhow!("{error}"))?.to_bytes())
        };
        let fetched = tokio::time::timeout(SCRAPE_TIMEOUT, asking).await;
        let mut text = own.trim_end_matches(END).to_owned();
        match fetched.map_err(anyhow::Error::from).flatten() {
            Ok(theirs) => text.push_str(String::from_utf8_lossy(&theirs).trim_end_matches(END)),
            Err(error) => {
                tracing::debug!("no metrics of the application at {to}{}: {error:#}", page.path);
                let error = format!("{error:#}").replace('\n', " ");
                let _ = write!(text, "# no metrics of the application at {to}: {error}");
            }
        }
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let mut response = answer(StatusCode::OK, text);
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

impl HttpGet {
    fn request(&self, address: IpAddr, headers: &HeaderMap) -> Result<Http> {
        let scheme = if self.scheme.eq_ignore_ascii_case("https") { "https" } else { "http" };
        let slash = if self.path.starts_with('/') { "" } else { "/" };
        let url = format!("{scheme}://{}{slash}{}", SocketAddr::new(address, self.port), self.path);
        let mut own = Vec::new();
        for Header { name, value } in &self.http_headers {
            let name = HeaderName::try_from(name).with_context(|| format!("{name:?} is not the name of a header"))?;
            own.push((
                name,
                HeaderValue::try_from(value).with_context(|| format!("{value:?} is not a header's value"))?,
            ));
        }
        let agent = headers.get(header::USER_AGENT).cloned().unwrap_or(HeaderValue::from_static("kube-probe"));
        for (name, value) in [(header::USER_AGENT, agent), (header::ACCEPT, HeaderValue::from_static("*/*"))] {
            if !own.iter().any(|(known, _)| *known == name) {
                own.push((name, value));
            }
        }
        Ok(Http {
            url: url.parse().with_context(|| format!("{url:?} is not a URL"))?,
            method: Method::GET,
            headers: own,
            body: Bytes::new(),
            disable_redirects: false,
            tls: Tls { server_name: String::new(), skip_verify: true },
        })
    }
}

/// Makes a probe of `--app-probe`, `<port>/<path>`.
async fn probe_port(probe: &str) -> Response<Full<Bytes>> {
    let (port, path) = probe.split_once('/').unwrap_or((probe, ""));
    let asking = async {
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.parse()?);
        anyhow::Ok(get(to, &format!("/{path}"), "*/*", PROBE_TIMEOUT).await?.status())
    };
    match tokio::time::timeout(PROBE_TIMEOUT, asking).await {
        Ok(Ok(status)) => answer(status, format!("{status}\n")),
        Ok(Err(e)) => answer(StatusCode::SERVICE_UNAVAILABLE, format!("the application does not answer: {e:#}\n")),
        Err(_) => answer(StatusCode::SERVICE_UNAVAILABLE, "the application does not answer in time\n".into()),
    }
}

async fn get(to: SocketAddr, path: &str, accept: &str, limit: Duration) -> Result<Response<Incoming>> {
    let stream = connect::tcp(to, connect::MARK_DELIVERY, limit, None).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, to.to_string())
        .header(header::USER_AGENT, "weft-probe")
        .header(header::ACCEPT, accept)
        .header(header::CONNECTION, "close")
        .body(Full::<Bytes>::default())?;
    Ok(sender.send_request(request).await?)
}

/// A page of text.
pub(super) fn answer(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers every connection, and sends the requests.
    async fn serve(answer: &'static str) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
        connect::probe_marks();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = vec![0; 4096];
                let n = stream.read(&mut buffer).await.unwrap_or(0);
                let _ = sender.send(String::from_utf8_lossy(&buffer[..n]).into_owned());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (port, receiver)
    }

    fn application(probes: &serde_json::Value) -> Application {
        let address = Some([127, 0, 0, 1].into());
        Application { probes: Probes::parse(&probes.to_string()).unwrap(), address, ..Application::default() }
    }

    async fn text(response: Response<Full<Bytes>>) -> (u16, String) {
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    async fn probe(application: &Application, page: &str) -> (u16, String) {
        let request = Request::get(page).header("user-agent", "kube-probe/1.30").body(()).unwrap();
        text(application.probe(&request).await).await
    }

    #[tokio::test]
    async fn the_probes_of_a_pod_are_made_as_a_kubelet_would() {
        let (good, mut requests) = serve("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        let (bad, _) = serve("HTTP/1.1 503 Oh\r\ncontent-length: 0\r\n\r\n").await;
        let headers = [json!({ "name": "Host", "value": "order" }), json!({ "name": "X-A", "value": "b" })];
        let application = application(&json!({
            "/app-health/a/livez": { "httpGet": { "port": good, "path": "live?x=1", "httpHeaders": headers } },
            "/app-health/a/readyz": { "httpGet": { "port": bad, "path": "/" }, "timeoutSeconds": 5 },
            "/app-health/a/startupz": { "tcpSocket": { "port": good }, "of a newer injection": 1 },
            "/app-health/b/livez": { "grpc": { "port": bad, "service": "b" } },
            "/app-health/b/readyz": { "httpGet": { "port": good, "path": "/a b" } },
            "/app-lifecycle/a/prestopz": { "httpGet": { "port": good, "path": "/stop", "scheme": "HTTPS" } },
        }));
        for (page, status, expected) in [
            ("/app-health/a/livez", 200, "200 OK: ok"),
            ("/app-health/a/readyz", 500, "503"),
            ("/app-health/a/startupz", 200, "Success"),
            ("/app-health/b/livez", 500, "gRPC check"),
            ("/app-health/b/readyz", 500, "is not a URL"),
            ("/app-lifecycle/a/prestopz", 500, "TLS"),
            ("/app-health/c/livez", 404, "declared are:\n/app-health/a/livez\n"),
            ("/app-lifecycle/a/poststartz", 404, "not declared"),
        ] {
            assert!(application.has(page));
            let (found, body) = probe(&application, page).await;
            assert!(found == status && body.contains(expected), "{page}: {found} {body}");
        }
        let request = requests.recv().await.unwrap();
        assert!(request.starts_with("GET /live?x=1 HTTP/1.1\r\n"), "{request}");
        for line in ["host: order\r\n", "x-a: b\r\n", "user-agent: kube-probe/1.30\r\n", "connection: close\r\n"] {
            assert!(request.contains(line), "{request}");
        }
        assert!(!Application::default().has("/app-lifecycle/a/prestopz"));
    }

    #[tokio::test]
    async fn metrics_of_the_application_follow_those_of_the_sidecar() {
        let (port, mut requests) = serve("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\na 1\n# EOF\n").await;
        let application = application(&json!({}));
        let page = |port| Metrics { port, path: "/metrics?x".to_owned() };
        let merged = text(application.merge_metrics("own 1\n# EOF\n".to_owned(), &page(port)).await).await;
        assert_eq!(merged, (200, "own 1\na 1\n".to_owned()));
        assert!(requests.recv().await.unwrap().contains("accept: text/plain;version=0.0.4"));
        let (broken, _) = serve("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n").await;
        let (status, body) = text(application.merge_metrics("own 1\n# EOF\n".to_owned(), &page(broken)).await).await;
        assert_eq!(status, 200);
        assert!(body.starts_with("own 1\n# no metrics of the application at 127.0.0.1:"), "{body}");
    }

    #[test]
    fn the_command_line_names_its_errors() {
        for (text, expected) in [
            ("[]", "not a JSON object of probes"),
            (r#"{"/metrics": {"tcpSocket": {"port": 1}}}"#, "does not begin with /app-health/"),
            (r#"{"/app-health/a/livez": {}}"#, "is not one of httpGet, tcpSocket, grpc"),
            (r#"{"/app-health/a/livez": {"tcpSocket": {"port": 70000}}}"#, "not a JSON object of probes"),
        ] {
            let error = Probes::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(Metrics::parse("{}").is_err() && Metrics::parse(r#"{"port": 1, "path": "/"}"#).is_ok());
    }
}
