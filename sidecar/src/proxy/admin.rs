//! The sidecar's HTTP endpoints besides traffic: readiness, metrics, and the admin endpoint.
//!
//! For kubelets, Prometheus and people; none of them changes anything. Readiness and metrics are meant to be reached from
//! outside and hold nothing secret; the admin endpoint is on loopback alone.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use weft_listen::idle::IdleLimit;

use crate::control::directory::Name;
use crate::net::connect;
use crate::net::sockets;
use crate::proxy::Proxy;
use crate::proxy::activity::Activity;

/// Longest wait for the application's answer to a probe.
const PROBE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Which pages a listener shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// 15021: `/healthz/ready`.
    Ready,
    /// 15020: `/metrics`, `/stats/prometheus`, `/app-health/<port>/<path>`.
    Metrics,
    /// 15000: everything.
    Admin,
}

/// Serves for ever.
pub async fn serve(proxy: Arc<Proxy>, listener: TcpListener, pages: Pages) {
    let idle = Arc::<IdleLimit>::default();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (proxy, connection) = (proxy.clone(), Arc::new(idle.enter(from.ip())));
        tokio::spawn(async move {
            let own = connection.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let (proxy, connection) = (proxy.clone(), own.clone());
                async move {
                    connection.work();
                    let probe = request.uri().path().strip_prefix("/app-health/").filter(|_| pages == Pages::Metrics);
                    let answer = match probe {
                        Some(probe) => probe_application(&proxy.settings.probes, probe).await,
                        None => page(&proxy, pages, &request),
                    };
                    connection.rest();
                    Ok::<_, Infallible>(answer)
                }
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(std::time::Duration::from_secs(60))
                .serve_connection(TokioIo::new(stream), service);
            let mut serving = std::pin::pin!(serving);
            tokio::select! {
                // A client that breaks off is its own affair.
                _ = serving.as_mut() => return,
                () = connection.dismissed() => return,
                // The next scrape and the next probe are of the successor.
                () = sockets::turn_over() => serving.as_mut().graceful_shutdown(),
            }
            let _ = serving.await;
        });
    }
}

fn page(proxy: &Proxy, pages: Pages, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".into());
    }
    // The admin endpoint is not for web pages in a browser.
    let page = (pages == Pages::Admin).then(|| {
        let names = &proxy.settings.names;
        names.refuses(request.method(), request.uri(), request.headers(), "--api-host")
    });
    if let Some(refused) = page.flatten() {
        return text(refused.status, format!("{}\n", refused.text));
    }
    match (request.uri().path(), pages) {
        ("/healthz/ready" | "/ready", _) => match not_ready(proxy) {
            None => text(StatusCode::OK, "ready\n".into()),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        },
        ("/metrics" | "/stats/prometheus", Pages::Metrics | Pages::Admin) => {
            if let Some(credentials) = proxy.identity.current() {
                let left = credentials.not_after.duration_since(SystemTime::now()).unwrap_or_default();
                proxy.metrics.certificate_left_s.set(left.as_secs_f64());
            }
            let count = |activity: &Activity| i64::try_from(activity.count()).unwrap_or(i64::MAX);
            proxy.metrics.outbound_active.set(count(&proxy.outbound));
            proxy.metrics.inbound_active.set(count(&proxy.inbound));
            let mut response = text(StatusCode::OK, proxy.metrics.render());
            let kind = http::HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
            response
        }
        ("/config", Pages::Admin) => text(StatusCode::OK, config(proxy)),
        ("/certs", Pages::Admin) => text(StatusCode::OK, certificates(proxy)),
        _ => text(StatusCode::NOT_FOUND, "no such page\n".into()),
    }
}

/// Passes a declared probe on to the application: `<port>/<path>`. A client outside the mesh (a kubelet) has no mesh certificate,
/// and STRICT would refuse it; any other path would be a hole in STRICT.
async fn probe_application(declared: &[String], probe: &str) -> Response<Full<Bytes>> {
    if !declared.iter().any(|d| d == probe) {
        let known = declared.iter().map(|d| format!("/app-health/{d}\n")).collect::<String>();
        return text(
            StatusCode::NOT_FOUND,
            format!("this probe is not declared (--app-probe); declared are:\n{known}"),
        );
    }
    let (port, path) = probe.split_once('/').unwrap_or((probe, ""));
    let asking = async {
        let to = std::net::SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), port.parse()?);
        let stream = connect::tcp(to, connect::MARK_DELIVERY, PROBE_TIMEOUT, None).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get(format!("/{path}"))
            .header(http::header::HOST, to.to_string())
            .header(http::header::USER_AGENT, "weft-probe")
            .header(http::header::CONNECTION, "close")
            .body(Full::<Bytes>::default())?;
        anyhow::Ok(sender.send_request(request).await?.status())
    };
    match tokio::time::timeout(PROBE_TIMEOUT, asking).await {
        Ok(Ok(status)) => text(status, format!("{status}\n")),
        Ok(Err(e)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("the application does not answer: {e:#}\n")),
        Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the application does not answer in time\n".into()),
    }
}

/// Why requests cannot be served yet.
pub fn not_ready(proxy: &Proxy) -> Option<String> {
    if proxy.is_draining() {
        return Some("draining".to_owned());
    }
    if let Some(problem) = proxy.identity.clock_problem() {
        return Some(problem);
    }
    if proxy.identity.valid().is_err() {
        return Some("no valid certificate".to_owned());
    }
    if proxy.directory.snapshot().inbound.is_none() {
        return Some("no inbound policy yet".to_owned());
    }
    proxy.redirection.problem()
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// The directory, as JSON.
fn config(proxy: &Proxy) -> String {
    let snapshot = proxy.directory.snapshot();
    let names: Vec<_> = snapshot
        .names()
        .map(|(name, meaning)| match meaning {
            Name::Absent => serde_json::json!({ "name": name, "absent": true }),
            Name::Service(view) => serde_json::json!({ "name": name, "host": &*view.service.host }),
        })
        .collect();
    let all = snapshot.clusters().cloned().chain(proxy.ports.clusters());
    let clusters: Vec<_> = all
        .map(|cluster| {
            let (connections, pending) = cluster.shared.pool.counts();
            let endpoints: Vec<_> = cluster
                .endpoints
                .iter()
                .map(|e| {
                    serde_json::json!({
                        "address": &*e.key,
                        "health": format!("{:?}", e.config.health).to_lowercase(),
                        "ejected": e.is_ejected(),
                        "in_flight": e.state.in_flight(),
                        "identity": e.identities().first().map(|id| id.as_str()),
                        "datacenter": e.remote.as_ref().map(|remote| &*remote.datacenter),
                        "share": e.remote.as_ref().map(|remote| remote.share),
                        "labels": e.config.labels,
                    })
                })
                .collect();
            serde_json::json!({
                "name": &*cluster.config.name,
                "policy": &*cluster.config.policy,
                "connections": connections,
                "pending": pending,
                "requests": cluster.shared.limits.requests.active(),
                "endpoints": endpoints,
            })
        })
        .collect();
    let all = serde_json::json!({
        "connected": proxy.directory.connected(),
        "marks": crate::net::connect::marks(),
        "redirected": proxy.redirection.is_installed(),
        "names": names,
        "clusters": clusters,
    });
    format!("{all:#}\n")
}

fn certificates(proxy: &Proxy) -> String {
    let Some(credentials) = proxy.identity.current() else { return "{}\n".into() };
    let seconds = |t: SystemTime| t.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let all = serde_json::json!({
        "id": credentials.id.as_str(),
        "services": credentials.services,
        "not_before": seconds(credentials.not_before),
        "not_after": seconds(credentials.not_after),
        "renew_at": seconds(SystemTime::now() + proxy.identity.renewal_due_in()),
        "clock_ahead_ms": proxy.identity.clock.ahead_ms(),
    });
    format!("{all:#}\n")
}
