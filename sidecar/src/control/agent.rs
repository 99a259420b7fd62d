//! The agent's (`weft_agent`) connections to this sidecar: the registration stream, the certificate, marked sockets, the
//! control plane.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::net::TcpStream;
use tonic::Status;
use weft_agent::checks::{ScriptResult, Sockets};
use weft_agent::forward::Source;
use weft_agent::upstream::Upstream;
use weft_identity::grant;
use weft_proto::v1::catalog_client::CatalogClient;
use weft_proto::v1::{Answer, Check, Instance, Question};
use weft_registry_api::error::ApiError;

use crate::control::connection::Control;
use crate::control::registration::Registrations;
use crate::host::pod_ports::PodPorts;
use crate::host::script;
use crate::net::connect;
use crate::tls::identity::Identity;

/// Largest answer of the control plane, bytes.
const MAX_ANSWER: usize = 64 << 20;

/// The registration stream, within the certificate's rights.
pub struct Session {
    /// The pod's registrations.
    pub registrations: Arc<Registrations>,
    /// Names the services that may be.
    pub identity: Arc<Identity>,
    /// Where the pod's network is not the sidecar's: opens the ports of registered services.
    pub pod_ports: Option<PodPorts>,
}

impl Upstream for Session {
    fn register(&self, instance: Instance) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move {
            if let Some(ports) = &self.pod_ports {
                ports.open(u16::try_from(instance.port).unwrap_or(0)).map_err(ApiError::bad_request)?;
            }
            self.registrations.register(instance).await.map_err(ApiError::upstream)
        })
    }

    fn deregister<'a>(&'a self, service_id: &'a str, wait: Duration) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            // The number of acknowledgements concerns drains only.
            let _ = self.registrations.deregister(service_id, wait).await;
        })
    }

    fn check(&self, check: Check, removed: bool) -> BoxFuture<'_, ()> {
        Box::pin(self.registrations.check(check, removed))
    }

    fn refused(&self) -> Vec<(String, String)> {
        self.registrations.refused()
    }

    /// In the control plane's words, for the time when it is away. The same rule is in the control plane's registry.
    fn may_register(&self, service: &str) -> Result<(), String> {
        let Some(own) = self.identity.current() else { return Ok(()) };
        if own.services.iter().any(|s| s.eq_ignore_ascii_case(service)) {
            return Ok(());
        }
        let services = grant::shown(&own.services);
        Err(format!("{} may not register the service {service:?}: its token names {services}", own.id))
    }
}

/// Sockets that no redirection catches.
pub struct Delivery {
    /// Checks may run programs.
    pub scripts: bool,
}

impl Sockets for Delivery {
    fn connect(&self, to: SocketAddr, timeout: Duration) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(connect::tcp(to, connect::MARK_DELIVERY, timeout, None))
    }

    fn no_scripts(&self) -> Option<&'static str> {
        (!self.scripts).then_some("script checks are off; the sidecar's --enable-script-checks turns them on")
    }

    fn script<'a>(&'a self, args: &'a [String], timeout: Duration) -> BoxFuture<'a, io::Result<ScriptResult>> {
        Box::pin(script::run(args, timeout))
    }
}

/// The control plane, queried over the connection that short queries share.
pub struct ControlPlaneCatalog(pub Arc<Control>);

impl Source for ControlPlaneCatalog {
    fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answer, Status>> {
        Box::pin(async move {
            let mut client = CatalogClient::new(self.0.channel()).max_decoding_message_size(MAX_ANSWER);
            let answer = client.ask(question).await;
            if answer.is_err() {
                // The certificate of the connection may have expired: the next connection presents the current one.
                self.0.forget_channel();
            }
            answer.map(tonic::Response::into_inner)
        })
    }
}
