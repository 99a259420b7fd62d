//! A WorkloadGroup's probe, made with the agent's checks by Kubernetes' rules: there is no warning state, and a workload is
//! unhealthy until its probe succeeds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use tokio::time::Instant;
use weft_agent::checks::probe::probe;
use weft_agent::checks::state::{MAX_OUTPUT, State, Status, Thresholds};
use weft_agent::checks::{Definition, Http, Kind, Place, Sockets, Tls};
use weft_agent::entry::{new_state, wire};
use weft_proto::v1::{self, probe::Kind as Wanted};
use weft_registry_api::registration::GROUP_ID;

use crate::control::registration::Registrations;

/// Its id among the checks of the registration.
const CHECK_ID: &str = "probe";
/// Where a probe goes that names no host.
const HERE: &str = "127.0.0.1";

/// Probes for ever, and reports changes; to be aborted.
pub(super) async fn run(
    group: String,
    wanted: v1::Probe,
    registrations: Arc<Registrations>,
    sockets: Arc<dyn Sockets>,
) {
    let made = kind(&wanted).and_then(|kind| allowed(kind, &*sockets));
    let mut check = Check::new(&group, &wanted, made.as_ref().ok(), before(&registrations));
    tokio::time::sleep(Duration::from_secs(wanted.initial_delay_s.into())).await;
    loop {
        let result = match &made {
            Ok(kind) => probe(&*sockets, kind, check.definition.timeout).await,
            Err(why) => (Status::Critical, why.clone()),
        };
        if let Some(report) = check.take(result, Instant::now()) {
            registrations.check(report, false).await;
        }
        tokio::time::sleep(check.definition.interval).await;
    }
}

/// There is no probe any more.
pub(super) async fn forget(registrations: &Registrations) {
    let (check_id, service_id) = (CHECK_ID.to_owned(), GROUP_ID.to_owned());
    registrations.check(v1::Check { check_id, service_id, ..Default::default() }, true).await;
}

/// The result of an earlier probe: a changed probe does not make a workload unhealthy.
fn before(registrations: &Registrations) -> Status {
    let own = registrations.instances().into_iter().find(|instance| instance.service_id == GROUP_ID);
    let status = own.and_then(|own| Status::parse(&own.checks.first()?.status));
    status.unwrap_or(Status::Critical)
}

/// The check and how it fares.
struct Check {
    definition: Definition,
    state: State,
}

impl Check {
    fn new(group: &str, wanted: &v1::Probe, kind: Option<&Kind>, before: Status) -> Check {
        let seconds = |n: u32| Duration::from_secs(n.max(1).into());
        let definition = Definition {
            id: CHECK_ID.into(),
            name: format!("Probe of the WorkloadGroup {group}"),
            notes: String::new(),
            service_id: GROUP_ID.into(),
            kind: kind.cloned().unwrap_or(Kind::Maintenance),
            interval: seconds(wanted.period_s),
            timeout: seconds(wanted.timeout_s),
            initial: before,
            thresholds: Thresholds {
                passing: wanted.success_threshold,
                warning: wanted.failure_threshold,
                critical: wanted.failure_threshold,
            },
            max_output: MAX_OUTPUT,
            deregister_after: None,
        };
        let state = new_state(&definition, Instant::now()).without_credit();
        Check { definition, state }
    }

    /// Takes a result; returns the check that the control plane needs, if it changed.
    fn take(&mut self, (status, output): (Status, String), now: Instant) -> Option<v1::Check> {
        let status = if status == Status::Passing { status } else { Status::Critical };
        let was = self.state.status();
        if !self.state.probed(status, output, now) {
            return None;
        }
        let is = self.state.status();
        if was != is {
            let output: String = self.state.output().lines().next().unwrap_or_default().chars().take(200).collect();
            tracing::info!(output, "the probe of the workload group went from {} to {}", was.as_str(), is.as_str());
        }
        self.state.take_due_update(now).then(|| wire(&self.definition, &self.state))
    }
}

/// Refuses a program where none may be run.
fn allowed(kind: Kind, sockets: &dyn Sockets) -> Result<Kind, String> {
    match sockets.no_scripts().filter(|_| matches!(kind, Kind::Script(_))) {
        Some(why) => Err(format!("exec: {why}")),
        None => Ok(kind),
    }
}

/// The probe as a check of the agent.
fn kind(wanted: &v1::Probe) -> Result<Kind, String> {
    let place = |host: &str, port: u32| -> Result<Place, String> {
        let host = if host.is_empty() { HERE } else { host };
        let port = u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(|| format!("{port} is no port"))?;
        Ok(Place { host: host.to_owned(), port, tls: None })
    };
    match wanted.kind.as_ref().ok_or("a probe of a kind that this sidecar does not know")? {
        Wanted::Tcp(tcp) => Ok(Kind::Tcp(place(&tcp.host, tcp.port)?)),
        Wanted::Grpc(grpc) => Ok(Kind::Grpc(place("", grpc.port)?, grpc.service.clone())),
        Wanted::Exec(exec) => Ok(Kind::Script(exec.command.clone())),
        Wanted::Http(http) => Ok(Kind::Http(request(http, &place(&http.host, http.port)?)?)),
    }
}

fn request(http: &v1::HttpProbe, place: &Place) -> Result<Http, String> {
    let scheme = if http.tls { "https" } else { "http" };
    let host = if place.host.contains(':') { format!("[{}]", place.host) } else { place.host.clone() };
    let url = format!("{scheme}://{host}:{}{}", place.port, http.path);
    let header = |header: &v1::ProbeHeader| -> Result<(HeaderName, HeaderValue), String> {
        let wrong = || format!("{:?} is not a header", header.name);
        let name = HeaderName::try_from(&header.name).map_err(|_| wrong())?;
        Ok((name, HeaderValue::try_from(&header.value).map_err(|_| wrong())?))
    };
    Ok(Http {
        url: url.parse().map_err(|_| format!("{url} is not a URL"))?,
        method: Method::GET,
        headers: http.headers.iter().map(header).collect::<Result<_, _>>()?,
        body: Bytes::new(),
        disable_redirects: false,
        // As in Kubernetes: any answer from this pod is the application's.
        tls: Tls { server_name: String::new(), skip_verify: true },
    })
}

#[cfg(test)]
mod tests;
