//! Explains which route and endpoint a request would get: `weftctl route`, live and from files alone.
//!
//! Nothing is decided here. [`Facts`] are the messages that a sidecar would receive, made by `translate`; `dispatch`,
//! and `gateway` for callers from outside, call `weft_core::target` and `weft_core::gateway`, as the sidecar does; the
//! decisions of routes, balancers and hashes are weft-core's too. The result is an [`Explanation`], which [`text`]
//! prints in words.
//!
//! Pure: the world, the client, the request and the time are arguments.

mod caller;
mod destination;
mod dispatch;
mod effects;
mod facts;
mod gateway;
mod query;
pub mod report;
mod routes;
mod settings;
pub mod text;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use weft_core::compile::CompileError;
use weft_core::flag::ResponseFlag;
use weft_core::reply::{LocalReply, Reason};
use weft_core::route::{Action, Connection, Forward, Routed};
use weft_core::service::Port;
use weft_core::target::is_virtual;

pub use caller::{Name, Workload, find};
pub use facts::Facts;
pub use query::{Client, Query};
pub use report::Explanation;

use crate::translate::Audience;
use crate::world::World;
use destination::Sender;
use dispatch::{Candidate, Dispatch};
use report::{Setting, Verdict};

/// Explains a request of `client`. `complete`: all registrations are known.
///
/// # Errors
/// If sidecars would refuse the resources of the host.
pub fn explain(
    world: &World,
    client: &Client,
    query: &Query,
    complete: bool,
    now: Instant,
) -> Result<Explanation, CompileError> {
    Facts::gather(world, client, query, complete).explain(client, query, now)
}

impl Facts {
    /// Explains the request that these facts were gathered for.
    ///
    /// # Errors
    /// If sidecars would refuse the resources of the host.
    pub fn explain(&self, client: &Client, query: &Query, now: Instant) -> Result<Explanation, CompileError> {
        let mut explanation = Explanation { request: request(query), caller: caller(client), ..Explanation::default() };
        if !query.has_path {
            explanation.notes.push("the path holds an encoded NUL".to_owned());
            explanation.verdict = refused(&Reason::BadRequest { detail: "" }, "");
            return Ok(explanation);
        }
        if let Some(entered) = &self.gateway {
            return self.by_gateway(explanation, entered, client, query, now);
        }
        let local = self.original.unwrap_or_else(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), query.port));
        let source = client.source();
        let candidates = dispatch::Candidates::of(self)?;
        let way = candidates.way(query, local);
        let sender = Sender { client, complete: self.complete, now, view: query.view(source, local) };
        match way {
            Dispatch::Passthrough => self.unknown_host(&mut explanation, query),
            Dispatch::Pinned(candidate, cluster, endpoint) => {
                self.host(&mut explanation, candidate, query);
                explanation
                    .notes
                    .push("the caller dialed an endpoint directly: no route and no balancer applies".to_owned());
                explanation.destinations.push(sender.pinned(candidate, cluster, &endpoint)?);
                explanation.verdict = overall(&explanation);
            }
            Dispatch::Request(candidate) => {
                self.host(&mut explanation, candidate, query);
                match candidate.service.port(query.port) {
                    Some(port) => self.by_route(&mut explanation, candidate, port, &sender)?,
                    None => {
                        explanation.notes.push(no_such_port(candidate, query.port));
                        explanation.verdict = refused(&Reason::NoRoute, "");
                    }
                }
            }
            Dispatch::Connection(candidate, port, server_name) => {
                explanation.request.method.clear();
                explanation.request.server_name = query.server_name.clone().or(server_name.clone());
                self.host(&mut explanation, candidate, query);
                let connection = Connection { server_name: server_name.as_deref(), source, destination: local };
                self.by_connection_route(&mut explanation, candidate, port, &connection, &sender)?;
            }
        }
        Ok(explanation)
    }

    /// A request to a host that is unknown in the mesh.
    fn unknown_host(&self, explanation: &mut Explanation, query: &Query) {
        let original = self.original.filter(|address| is_virtual(address.ip()));
        explanation.host.query = query.authority.clone();
        let target = self.by_authority.as_ref().map_or("", |meant| &meant.host.service.external_name);
        explanation.host.because = match (target, self.hint.as_str()) {
            ("", "") => "unknown host".to_owned(),
            ("", hint) => format!("unknown host for this caller; {hint}"),
            (target, _) => {
                format!("a Service of type ExternalName for `{target}`, which is unknown in the mesh")
            }
        };
        if original.is_some() {
            explanation.verdict = if query.server_name.is_some() {
                closed("this virtual IP is not assigned, and is not a real address")
            } else {
                refused(&Reason::UnknownHost, "")
            };
            return;
        }
        explanation.verdict = Verdict::Unknown { passes: self.passes.as_ref().map(|(passes, _)| *passes) };
        explanation.notes.push(match &self.passes {
            Some((true, sidecar)) => format!("ALLOW_ANY by {sidecar}: it is passed through to its original destination"),
            Some((false, sidecar)) => format!("REGISTRY_ONLY by {sidecar}: it is refused"),
            None => "it is passed through to its original destination, unless the caller's proxy was started with --outbound-traffic \
                     registry-only"
                .to_owned(),
        });
    }

    fn host(&self, explanation: &mut Explanation, candidate: &Candidate<'_>, query: &Query) {
        let meant = candidate.meant;
        let by_authority = self.by_authority.as_ref().is_some_and(|other| std::ptr::eq(other, meant));
        explanation.host.name = candidate.service.host.to_string();
        explanation.host.sources.clone_from(&meant.host.sources);
        let is_address = query.host.parse::<IpAddr>().is_ok();
        let means = dispatch::in_words(meant.by);
        (explanation.host.query, explanation.host.because) = match (by_authority, is_address) {
            (true, _) => (meant.query.clone(), means.to_owned()),
            (false, true) => (meant.query.clone(), format!("{means}, which is dialed")),
            (false, false) => (query.host.clone(), "the host that is dialed".to_owned()),
        };
        if let Some(port) = candidate.service.port(query.port) {
            explanation.port = Some(report::Port {
                number: port.number,
                name: port.name.to_string(),
                protocol: settings::protocol(port.protocol).to_owned(),
            });
        }
        if !self.complete && meant.host.sources.is_empty() {
            explanation.notes.push("no document here defines the host: it is assumed to be registered".to_owned());
        }
    }

    fn by_route(
        &self,
        explanation: &mut Explanation,
        candidate: &Candidate<'_>,
        port: &Port,
        sender: &Sender<'_>,
    ) -> Result<(), CompileError> {
        let view = &sender.view;
        let audience = Audience { client: &self.scope, gateway: self.gateway_key() };
        explanation.routes =
            candidate.meant.host.routes.as_ref().and_then(|document| routes::http(document, &audience, port, view));
        if let Some(entries) = candidate.meant.host.attached.get(&u32::from(port.number)) {
            explanation.routes = routes::attached(entries, port, view);
        }
        if let Some(routes) = &mut explanation.routes {
            routes.delegates = candidate.meant.host.delegates;
        }
        let Some(route) = port.routes.find(view) else {
            explanation.verdict = refused(&Reason::NoRoute, "");
            return Ok(());
        };
        let ended = effects::of_filters(route, view, &mut explanation.notes);
        if let Some(verdict) = ended.clone().filter(|verdict| matches!(verdict, Verdict::Answered { .. })) {
            explanation.verdict = verdict;
            return Ok(());
        }
        match &*route.action {
            Action::Redirect(redirect) => {
                let location = redirect.location(&route.matcher, view, view.scheme, view.local.port());
                explanation.effects =
                    vec![Setting::new("redirect", format!("{} to {location}", redirect.status.as_u16()))];
                explanation.verdict = Verdict::Answered { status: redirect.status.as_u16(), by: "redirect".to_owned() };
            }
            Action::DirectResponse(direct) => {
                explanation.effects = vec![effects::direct_response(direct)];
                explanation.verdict =
                    Verdict::Answered { status: direct.status.as_u16(), by: "directResponse".to_owned() };
            }
            Action::Forward(forward) => {
                explanation.effects = effects::of_forward(route, forward, candidate, view);
                self.divided(explanation, candidate, forward, sender, view.authority)?;
            }
        }
        if let Some(verdict) = ended {
            explanation.verdict = verdict;
        }
        Ok(())
    }

    fn by_connection_route(
        &self,
        explanation: &mut Explanation,
        candidate: &Candidate<'_>,
        port: &Port,
        connection: &Connection<'_>,
        sender: &Sender<'_>,
    ) -> Result<(), CompileError> {
        let audience = Audience { client: &self.scope, gateway: None };
        let document = candidate.meant.host.routes.as_ref();
        explanation.routes = document.and_then(|document| routes::connections(document, &audience, port, connection));
        let name = connection.server_name.unwrap_or_default();
        match port.connection_routes.find(connection) {
            Routed::To(route) => self.divided(explanation, candidate, &route.forward, sender, name),
            Routed::Default => {
                explanation.destinations.push(sender.destination(candidate, port.cluster, 100.0, None, name)?);
                explanation.verdict = overall(explanation);
                Ok(())
            }
            Routed::Nowhere => {
                explanation.verdict = closed("no route matches this server name");
                Ok(())
            }
        }
    }

    fn divided(
        &self,
        explanation: &mut Explanation,
        candidate: &Candidate<'_>,
        forward: &Forward,
        sender: &Sender<'_>,
        name: &str,
    ) -> Result<(), CompileError> {
        let hash = (!explanation.request.method.is_empty()).then_some(&forward.hash[..]);
        for destination in &forward.destinations {
            let percent = forward.percent(destination);
            let name = destination.authority.as_ref().map_or(name, |authority| authority.as_str());
            let to = sender.destination(candidate, destination.cluster, percent, hash, name)?;
            let effects = effects::of_destination(forward, destination);
            let cluster = candidate.service.cluster(destination.cluster);
            let verdict = match cluster.undefined {
                true => refused(&Reason::ClusterUndefined(forward.undefined_status), &cluster.policy),
                false => to.verdict,
            };
            explanation.destinations.push(report::Destination { effects, verdict, ..to });
        }
        explanation.verdict = overall(explanation);
        Ok(())
    }
}

fn request(query: &Query) -> report::Request {
    report::Request {
        // Of the client's own TLS only the server name is visible.
        method: if query.server_name.is_some() { String::new() } else { query.method.to_string() },
        authority: query.authority.clone(),
        url: format!("{}{}", query.origin, query.path_and_query),
        port: query.port,
        server_name: query.server_name.clone(),
    }
}

fn caller(client: &Client) -> report::Caller {
    report::Caller {
        workload: client.workload.clone(),
        namespace: client.namespace.clone(),
        labels: client.labels.clone(),
        locality: client.location.locality.to_string(),
        gateway: client.gateway.as_ref().map(|(namespace, name)| format!("{namespace}/{name}")).unwrap_or_default(),
    }
}

/// A response of the sidecar itself.
fn refused(reason: &Reason, policy: &str) -> Verdict {
    let reply = LocalReply::new(reason, policy);
    Verdict::Refused {
        status: reply.status.as_u16(),
        flag: reply.flag.map_or("-", |flag| flag.as_str()).to_owned(),
        reason: reply.reason,
    }
}

/// A connection that the sidecar closes.
fn closed(reason: &str) -> Verdict {
    Verdict::Refused { status: 0, flag: ResponseFlag::NoRoute.as_str().to_owned(), reason: reason.to_owned() }
}

/// The verdict for all destinations with a share: a problem of one of them is a problem of some of the requests.
fn overall(explanation: &Explanation) -> Verdict {
    let used =
        || explanation.destinations.iter().filter(|destination| destination.percent > 0.0).map(|one| &one.verdict);
    let bad = used().find(|verdict| !verdict.is_good());
    let open = || used().find(|verdict| **verdict == Verdict::Unregistered);
    bad.or_else(open).cloned().unwrap_or(Verdict::Served)
}

fn no_such_port(candidate: &Candidate<'_>, number: u16) -> String {
    let ports: Vec<String> = candidate.service.ports.iter().map(|port| port.number.to_string()).collect();
    match ports.as_slice() {
        [] => format!("`{}` has no port", candidate.service.host),
        _ => format!("`{}` has no port {number}: it has {}", candidate.service.host, ports.join(", ")),
    }
}

#[cfg(test)]
mod tests;
