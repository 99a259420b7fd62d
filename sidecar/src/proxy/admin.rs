//! The sidecar's HTTP endpoints besides traffic: readiness, metrics, and the admin endpoint.
//!
//! For kubelets, Prometheus and people; none of them changes anything, but for the page that stops the sidecar. Readiness
//! and metrics are meant to be reached from
//! outside and hold nothing secret; the admin endpoint is on loopback alone.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Signal, getpid, kill_process};
use tokio::net::TcpListener;
use weft_listen::idle::IdleLimit;

use crate::control::directory::Name;
use crate::net::{connect, sockets};
use crate::proxy::Proxy;
use crate::proxy::activity::Activity;
use crate::proxy::application::answer as text;

/// The page of metrics that the application's are added to, where there are any.
const MERGED_PAGE: &str = "/stats/prometheus";
/// The page that stops the sidecar, as Istio's.
const QUIT_PAGE: &str = "/quitquitquit";

/// Which pages a listener shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// 15021: `/healthz/ready`.
    Ready,
    /// 15020: `/metrics`, `/stats/prometheus`, probes of the application, `/quitquitquit`.
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
                    let application = &proxy.settings.application;
                    let answer = match request.uri().path() {
                        path if pages == Pages::Metrics && application.has(path) => application.probe(&request).await,
                        QUIT_PAGE if pages == Pages::Metrics => quit(&proxy, &request, from.ip()),
                        MERGED_PAGE if pages == Pages::Metrics && request.method() == Method::GET => {
                            match &application.metrics {
                                Some(page) => application.merge_metrics(metrics(&proxy), page).await,
                                None => page(&proxy, pages, &request),
                            }
                        }
                        _ => page(&proxy, pages, &request),
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
    if let Some(refused) = (pages == Pages::Admin).then(|| refusal(proxy, request)).flatten() {
        return refused;
    }
    match (request.uri().path(), pages) {
        ("/healthz/ready" | "/ready", _) => match not_ready(proxy) {
            None => text(StatusCode::OK, "ready\n".into()),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        },
        ("/metrics" | MERGED_PAGE, Pages::Metrics | Pages::Admin) => {
            let mut response = text(StatusCode::OK, metrics(proxy));
            let kind = http::HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
            response
        }
        ("/config", Pages::Admin) => text(StatusCode::OK, config(proxy)),
        ("/certs", Pages::Admin) => text(StatusCode::OK, certificates(proxy)),
        _ => text(StatusCode::NOT_FOUND, "no such page\n".into()),
    }
}

fn metrics(proxy: &Proxy) -> String {
    if let Some(credentials) = proxy.identity.current() {
        let left = credentials.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        proxy.metrics.certificate_left_s.set(left.as_secs_f64());
    }
    let count = |activity: &Activity| i64::try_from(activity.count()).unwrap_or(i64::MAX);
    proxy.metrics.outbound_active.set(count(&proxy.outbound));
    proxy.metrics.inbound_active.set(count(&proxy.inbound));
    proxy.metrics.render()
}

/// Stops the sidecar as SIGTERM does, for a Job whose pod lasts as long as its proxy. Only a program of this pod may.
fn quit(proxy: &Proxy, request: &Request<Incoming>, from: IpAddr) -> Response<Full<Bytes>> {
    // Deliveries have a source of their own.
    let from = from.to_canonical();
    if !from.is_loopback() || from == connect::DELIVERY_SOURCE {
        return text(StatusCode::FORBIDDEN, "programs of this pod only, at 127.0.0.1\n".into());
    }
    if request.method() != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "POST only\n".into());
    }
    if let Some(refused) = refusal(proxy, request) {
        return refused;
    }
    tracing::info!("a program of this pod stops the sidecar ({QUIT_PAGE})");
    match kill_process(getpid(), Signal::TERM) {
        Ok(()) => text(StatusCode::OK, "the sidecar stops\n".into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("the sidecar cannot stop itself: {error}\n")),
    }
}

/// Refuses web pages in a browser.
fn refusal(proxy: &Proxy, request: &Request<Incoming>) -> Option<Response<Full<Bytes>>> {
    let names = &proxy.settings.names;
    let refused = names.refuses(request.method(), request.uri(), request.headers(), "--api-host")?;
    Some(text(refused.status, format!("{}\n", refused.text)))
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
