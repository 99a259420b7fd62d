//! A request from outside, by a Gateway: the server that takes it, and the service behind the host. Each decision is
//! `weft_core::gateway`'s, as in the sidecar.

use std::sync::Arc;
use std::time::Instant;

use weft_core::compile::{self, CompileError};
use weft_core::gateway::{self, Server, Speaks};
use weft_core::names::normalise;
use weft_core::reply::Reason;
use weft_core::route::Action;

use super::destination::Sender;
use super::dispatch::Candidate;
use super::facts::{Facts, GatewayFacts};
use super::report::{Explanation, Setting, Verdict};
use super::{Client, Query, closed, refused};

impl Facts {
    /// Namespace and name of the gateway, where the request comes by one.
    pub(super) fn gateway_key(&self) -> Option<(&str, &str)> {
        self.gateway.as_ref().map(|entered| (entered.key.0.as_str(), entered.key.1.as_str()))
    }

    /// What becomes of a request that comes by a gateway.
    pub(super) fn by_gateway(
        &self,
        mut told: Explanation,
        entered: &GatewayFacts,
        client: &Client,
        query: &Query,
        now: Instant,
    ) -> Result<Explanation, CompileError> {
        told.host.query = query.authority.clone();
        let name = format!("{}/{}", entered.key.0, entered.key.1);
        if !entered.exists {
            told.host.because = format!("there is no Gateway {name}");
            told.verdict = closed("no such gateway");
            return Ok(told);
        }
        let all = compile::gateway_servers(&entered.servers)?;
        let servers: Vec<Arc<Server>> = all.into_iter().filter(|server| server.port == query.port).collect();
        let Some(first) = servers.first() else {
            told.host.because = format!("Gateway {name} does not listen on port {}", query.port);
            told.verdict = closed("no server of the gateway has this port");
            return Ok(told);
        };
        let is_tls = matches!(first.protocol, Speaks::Https | Speaks::Tls);
        if first.protocol != Speaks::Tcp && is_tls != query.server_name.is_some() {
            let (wanted, remedy) =
                if is_tls { ("TLS", "--tls or https://") } else { ("plaintext", "http:// without --tls") };
            told.host.because = format!("port {} of Gateway {name} takes {wanted} alone ({remedy})", query.port);
            told.verdict = closed("the gateway closes the connection");
            return Ok(told);
        }
        if first.protocol == Speaks::Tcp {
            let behind = gateway::service(&servers, "").map(|(_, service)| service.clone());
            return self.connection_behind(told, entered, behind.as_deref(), client, query, now);
        }
        let mut serving = servers.clone();
        if let Some(server_name) = &query.server_name {
            let Some(server) = gateway::by_server_name(&servers, server_name).cloned() else {
                told.host.because = format!("no server of port {} is for server name {server_name}", query.port);
                told.verdict = closed("no server of this port is for this server name");
                return Ok(told);
            };
            if server.auto_passthrough {
                told.host.because = format!("{} passes the mesh's own TLS on (AUTO_PASSTHROUGH)", server.name);
                told.verdict = closed("this is not the mesh's own TLS");
                return Ok(told);
            }
            if server.is_of_mesh() {
                told.host.because = format!("{} lets workloads of the mesh in alone (ISTIO_MUTUAL)", server.name);
                told.verdict = closed("the caller has no certificate of the mesh");
                return Ok(told);
            }
            if server.protocol == Speaks::Tls {
                let passing = servers.iter().filter(|server| server.protocol == Speaks::Tls);
                let behind = gateway::service(passing, server_name).map(|(_, service)| service.clone());
                return self.connection_behind(told, entered, behind.as_deref(), client, query, now);
            }
            serving = vec![server];
            told.request.method = query.method.to_string();
        }
        self.request_behind(told, entered, &serving, client, query, now)
    }

    fn request_behind(
        &self,
        mut told: Explanation,
        entered: &GatewayFacts,
        servers: &[Arc<Server>],
        client: &Client,
        query: &Query,
        now: Instant,
    ) -> Result<Explanation, CompileError> {
        let found = gateway::service(servers, &normalise(&query.authority));
        let redirects = match found {
            Some((server, _)) => server.https_redirect,
            None => servers.iter().any(|server| server.https_redirect),
        };
        if redirects {
            told.host.because = "a server with httpsRedirect takes it".to_owned();
            told.effects = vec![Setting::new("tls.httpsRedirect", "301 to the same under https")];
            told.verdict = Verdict::Answered { status: 301, by: "httpsRedirect".to_owned() };
            return Ok(told);
        }
        let Some((server, meant)) = found.and_then(|(server, service)| Some((server, entered.behind.get(&**service)?)))
        else {
            told.host.because = "no VirtualService of the gateway is for this host".to_owned();
            told.verdict = refused(&Reason::NoRoute, "");
            return Ok(told);
        };
        let Some(candidate) = Candidate::of(Some(meant))? else { return Ok(told) };
        told.host.name.clone_from(&query.authority);
        told.host.because = format!("a host of {}", server.name);
        let sender = self.sender(client, query, now);
        match candidate.service.port(0) {
            Some(port) => {
                self.by_route(&mut told, &candidate, port, &sender)?;
                // Routes of all VirtualServices of the host are joined.
                let route = port.routes.find(&sender.view);
                told.effects.splice(0..0, route.map(|route| Setting::new("route", &route.name)));
            }
            None => told.verdict = refused(&Reason::NoRoute, ""),
        }
        Ok(told)
    }

    /// Bytes, or TLS that does not end at the gateway.
    fn connection_behind(
        &self,
        mut told: Explanation,
        entered: &GatewayFacts,
        behind: Option<&str>,
        client: &Client,
        query: &Query,
        now: Instant,
    ) -> Result<Explanation, CompileError> {
        told.request.method.clear();
        let Some(candidate) = Candidate::of(behind.and_then(|service| entered.behind.get(service)))? else {
            told.host.because = "no VirtualService of the gateway is for this connection".to_owned();
            told.verdict = closed("no route is for this connection");
            return Ok(told);
        };
        told.host.name.clone_from(&query.authority);
        told.host.because = format!("a connection by Gateway {}/{}", entered.key.0, entered.key.1);
        let sender = self.sender(client, query, now);
        let route = candidate.service.port(0).and_then(|port| port.routes.find(&sender.view));
        match route.map(|route| &*route.action) {
            Some(Action::Forward(forward)) => {
                let name = query.server_name.as_deref().unwrap_or_default();
                self.divided(&mut told, &candidate, forward, &sender, name)?;
            }
            _ => told.verdict = closed("no route is for this connection"),
        }
        Ok(told)
    }

    fn sender<'a>(&self, client: &'a Client, query: &'a Query, now: Instant) -> Sender<'a> {
        let mut view = query.view(client.source(), ([0, 0, 0, 0], query.port).into());
        view.scheme = query.scheme();
        Sender { client, complete: self.complete, now, view }
    }
}
