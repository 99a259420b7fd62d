//! A request from outside, through a Gateway: the server that accepts it, and the service behind the host. Each
//! decision is `weft_core::gateway`'s, as in the sidecar.

use std::sync::Arc;
use std::time::Instant;

use weft_core::compile::{self, CompileError};
use weft_core::gateway::{self, Server, ServerProtocol};
use weft_core::names::normalise;
use weft_core::reply::Reason;
use weft_core::route::Action;

use super::destination::Sender;
use super::dispatch::Candidate;
use super::facts::{Facts, GatewayFacts};
use super::report::{Explanation, Setting, Verdict};
use super::{Client, Query, closed, refused};

impl Facts {
    /// Namespace and name of the gateway, if the request arrives through one.
    pub(super) fn gateway_key(&self) -> Option<(&str, &str)> {
        self.gateway.as_ref().map(|entered| (entered.key.0.as_str(), entered.key.1.as_str()))
    }

    /// Explains a request that arrives through a gateway.
    pub(super) fn by_gateway(
        &self,
        mut explanation: Explanation,
        entered: &GatewayFacts,
        client: &Client,
        query: &Query,
        now: Instant,
    ) -> Result<Explanation, CompileError> {
        explanation.host.query = query.authority.clone();
        let name = format!("{}/{}", entered.key.0, entered.key.1);
        if !entered.exists {
            explanation.host.because = format!("there is no Gateway {name}");
            explanation.verdict = closed("no such gateway");
            return Ok(explanation);
        }
        let all = compile::gateway_servers(&entered.servers)?;
        let servers: Vec<Arc<Server>> = all.into_iter().filter(|server| server.port == query.port).collect();
        let Some(first) = servers.first() else {
            explanation.host.because = format!("Gateway {name} does not listen on port {}", query.port);
            explanation.verdict = closed("no server of the gateway has this port");
            return Ok(explanation);
        };
        let is_tls = matches!(first.protocol, ServerProtocol::Https | ServerProtocol::Tls);
        if first.protocol != ServerProtocol::Tcp && is_tls != query.server_name.is_some() {
            let (wanted, remedy) =
                if is_tls { ("TLS", "--tls or https://") } else { ("plaintext", "http:// without --tls") };
            explanation.host.because =
                format!("port {} of Gateway {name} accepts {wanted} only ({remedy})", query.port);
            explanation.verdict = closed("the gateway closes the connection");
            return Ok(explanation);
        }
        if first.protocol == ServerProtocol::Tcp {
            let behind = gateway::service(&servers, "").map(|(_, service)| service.clone());
            return self.connection_behind(explanation, entered, behind.as_deref(), client, query, now);
        }
        let mut serving = servers.clone();
        if let Some(server_name) = &query.server_name {
            let Some(server) = gateway::by_server_name(&servers, server_name).cloned() else {
                explanation.host.because = format!("no server of port {} has the host {server_name}", query.port);
                explanation.verdict = closed("no server of this port has this host");
                return Ok(explanation);
            };
            if server.auto_passthrough {
                explanation.host.because =
                    format!("{} passes through the mesh's own TLS (AUTO_PASSTHROUGH)", server.name);
                explanation.verdict = closed("this is not the mesh's own TLS");
                return Ok(explanation);
            }
            if server.is_of_mesh() {
                explanation.host.because = format!("{} accepts workloads of the mesh only (ISTIO_MUTUAL)", server.name);
                explanation.verdict = closed("the caller has no certificate of the mesh");
                return Ok(explanation);
            }
            if server.protocol == ServerProtocol::Tls {
                let passing = servers.iter().filter(|server| server.protocol == ServerProtocol::Tls);
                let behind = gateway::service(passing, server_name).map(|(_, service)| service.clone());
                return self.connection_behind(explanation, entered, behind.as_deref(), client, query, now);
            }
            serving = vec![server];
            explanation.request.method = query.method.to_string();
        }
        self.request_behind(explanation, entered, &serving, client, query, now)
    }

    fn request_behind(
        &self,
        mut explanation: Explanation,
        entered: &GatewayFacts,
        servers: &[Arc<Server>],
        client: &Client,
        query: &Query,
        now: Instant,
    ) -> Result<Explanation, CompileError> {
        let host = normalise(&query.authority);
        if gateway::is_misdirected(servers, &host) {
            explanation.host.because = "another server of this port has this host".to_owned();
            explanation.verdict = refused(&Reason::Misdirected, "");
            return Ok(explanation);
        }
        let behind = gateway::service(servers, &host);
        let redirects = match behind {
            Some((server, _)) => server.https_redirect,
            None => servers.iter().any(|server| server.https_redirect),
        };
        if redirects {
            explanation.host.because = "a server with httpsRedirect accepts it".to_owned();
            explanation.effects = vec![Setting::new("tls.httpsRedirect", "301 to the same URL with https")];
            explanation.verdict = Verdict::Answered { status: 301, by: "httpsRedirect".to_owned() };
            return Ok(explanation);
        }
        let Some((server, meant)) =
            behind.and_then(|(server, service)| Some((server, entered.behind.get(&**service)?)))
        else {
            explanation.host.because = "no VirtualService of the gateway has this host".to_owned();
            explanation.verdict = refused(&Reason::NoRoute, "");
            return Ok(explanation);
        };
        let Some(candidate) = Candidate::of(Some(meant))? else { return Ok(explanation) };
        explanation.host.name.clone_from(&query.authority);
        explanation.host.because = format!("a host of {}", server.name);
        let sender = self.sender(client, query, now);
        match candidate.service.port(0) {
            Some(port) => {
                self.by_route(&mut explanation, &candidate, port, &sender)?;
                // Routes of all VirtualServices of the host are joined.
                let route = port.routes.find(&sender.view);
                explanation.effects.splice(0..0, route.map(|route| Setting::new("route", &route.name)));
            }
            None => explanation.verdict = refused(&Reason::NoRoute, ""),
        }
        Ok(explanation)
    }

    /// A connection of a TCP protocol, or of TLS that is not terminated at the gateway.
    fn connection_behind(
        &self,
        mut explanation: Explanation,
        entered: &GatewayFacts,
        behind: Option<&str>,
        client: &Client,
        query: &Query,
        now: Instant,
    ) -> Result<Explanation, CompileError> {
        explanation.request.method.clear();
        let Some(candidate) = Candidate::of(behind.and_then(|service| entered.behind.get(service)))? else {
            explanation.host.because = "no VirtualService of the gateway has routes for this connection".to_owned();
            explanation.verdict = closed("no route matches this connection");
            return Ok(explanation);
        };
        explanation.host.name.clone_from(&query.authority);
        explanation.host.because = format!("a connection through Gateway {}/{}", entered.key.0, entered.key.1);
        let sender = self.sender(client, query, now);
        let route = candidate.service.port(0).and_then(|port| port.routes.find(&sender.view));
        match route.map(|route| &*route.action) {
            Some(Action::Forward(forward)) => {
                let name = query.server_name.as_deref().unwrap_or_default();
                self.divided(&mut explanation, &candidate, forward, &sender, name)?;
            }
            _ => explanation.verdict = closed("no route matches this connection"),
        }
        Ok(explanation)
    }

    fn sender<'a>(&self, client: &'a Client, query: &'a Query, now: Instant) -> Sender<'a> {
        let mut view = query.view(client.source(), ([0, 0, 0, 0], query.port).into());
        view.scheme = query.scheme();
        Sender { client, complete: self.complete, now, view }
    }
}
