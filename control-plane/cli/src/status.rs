//! `weftctl status`.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use weft_core::clock::{self, SKEW_THRESHOLD};
use weft_proto::v1;

use super::remote::{Remote, refused};
use super::style::{self, bad, good, odd};

/// Shows the mesh: services, instances, connected sidecars, and the updates that each has acknowledged or refused
///
/// For a mesh that does not fit a screen, it shows totals and problems.
#[derive(Debug, clap::Args)]
pub struct Status {
    /// `summary` if it does not fit a screen, `wide` for all, `json` for programs
    #[arg(short, long, default_value = "summary", value_parser = ["summary", "wide", "json"])]
    output: String,
    /// Only services whose name or host matches this pattern; `*` stands for any text
    #[arg(long, value_name = "PATTERN", default_value = "")]
    service: String,
    /// Only sidecars whose node matches this pattern
    #[arg(long, value_name = "PATTERN", default_value = "")]
    sidecar: String,
    /// Maximum number of services and sidecars
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    limit: u32,
    /// Number of services and sidecars to skip
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    offset: u32,
    #[command(flatten)]
    remote: Remote,
}

impl Status {
    /// Runs it. The exit status is 1 if a policy is refused by its file's control plane or by a sidecar, or if the
    /// store accepts no writes.
    ///
    /// # Errors
    /// If the control plane is unreachable.
    pub async fn run(&self, out: &mut impl Write) -> Result<ExitCode> {
        let request = v1::StatusRequest {
            summary: self.output == "summary",
            service: self.service.clone(),
            sidecar: self.sidecar.clone(),
            limit: self.limit,
            offset: self.offset,
        };
        let status = self.remote.connect().await?.status(request).await.map_err(refused)?.into_inner();
        match self.output.as_str() {
            "json" => writeln!(out, "{:#}", to_json(&status))?,
            _ => print(&status, out)?,
        }
        Ok(if is_healthy(&status) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Whether no policy is refused and the store accepts writes.
fn is_healthy(status: &v1::StatusReply) -> bool {
    let mut resources = status.sidecars.iter().flat_map(|sidecar| &sidecar.resources);
    status.store_problem.is_empty()
        && resources.all(|resource| resource.refused.is_empty())
        && status.totals.is_none_or(|totals| totals.refusing == 0)
        && !status.policy_problems.iter().any(|problem| problem.contains(": error: "))
}

fn print(status: &v1::StatusReply, out: &mut impl Write) -> Result<()> {
    for service in &status.services {
        of_service(service, out)?;
    }
    for datacenter in &status.datacenters {
        writeln!(out, "{}", of_datacenter(datacenter))?;
    }
    for sidecar in &status.sidecars {
        of_sidecar(sidecar, out)?;
    }
    for problem in &status.policy_problems {
        writeln!(out, "{}", style::problem(problem))?;
    }
    for r in &status.refused {
        let (identity, address, times, since) = (&r.identity, &r.address, r.times, r.since_s);
        let refused = bad("REFUSED a certificate");
        writeln!(out, "identity {identity}  {refused}  {times} times in {since} s, last from {address}: {}", r.reason)?;
    }
    if !status.store_problem.is_empty() {
        writeln!(out, "store  {}  {}", bad("NOT WRITABLE"), status.store_problem)?;
    }
    let totals = status.totals.unwrap_or_default();
    let version = status.world_version;
    if !totals.summary {
        writeln!(out, "{} services, {} sidecars, world version {version}", totals.services, totals.sidecars)?;
        return Ok(());
    }
    let shown = (status.services.len(), status.sidecars.len());
    of_totals(&totals, version, shown, out)
}

/// A large mesh in a few lines.
fn of_totals(
    totals: &v1::StatusTotals,
    version: u64,
    (services, sidecars): (usize, usize),
    out: &mut impl Write,
) -> Result<()> {
    let count = |count: u32, text: &str| match count {
        0 => format!("0 {text}"),
        count => bad(&format!("{count} {text}")),
    };
    let without = count(totals.services_without_healthy, "without a healthy instance");
    writeln!(out, "{} services, {without}", totals.services)?;
    let others = totals.instances.saturating_sub(totals.healthy);
    writeln!(out, "{} instances, {} healthy, {}", totals.instances, totals.healthy, count(others, "not healthy"))?;
    let refusing = count(totals.refusing, "refusing an update");
    writeln!(out, "{} sidecars, {} not yet up to date, {refusing}", totals.sidecars, totals.behind)?;
    writeln!(out, "world version {version}")?;
    if services + sidecars > 0 {
        writeln!(out, "Above: {services} services and {sidecars} sidecars that have a problem.")?;
    }
    writeln!(out, "All of it: -o wide or -o json, with --service, --sidecar, --limit and --offset.")?;
    Ok(())
}

fn of_service(service: &v1::ServiceStatus, out: &mut impl Write) -> Result<()> {
    writeln!(out, "service {}  {}", service.host, service.addresses.join(" "))?;
    for i in &service.instances {
        let identity = if i.identity.is_empty() { "(no sidecar: plaintext)" } else { &i.identity };
        let ejected = match i.ejected_by {
            0 => String::new(),
            n => odd(&format!("  ejected by {n} caller{}", if n == 1 { "" } else { "s" })),
        };
        // Padded before it is coloured: colours have no width.
        let health = format!("{:<9}", i.health);
        let health = match i.health.as_str() {
            "healthy" => good(&health),
            "unhealthy" => bad(&health),
            _ => odd(&health),
        };
        let (labels, id, node) = (&i.labels, &i.service_id, &i.node);
        writeln!(out, "  {:<21} {health} {labels}  {identity}  {id} on {node}{ejected}", i.address)?;
    }
    if service.more > 0 {
        writeln!(out, "  and {} more instances", service.more)?;
    }
    for r in &service.remotes {
        let (name, share) = (&r.datacenter, r.share);
        writeln!(out, "  in {name}: {} of {} healthy, {share} % of the requests go there", r.healthy, r.total)?;
    }
    Ok(())
}

fn of_sidecar(sidecar: &v1::SidecarStatus, out: &mut impl Write) -> Result<()> {
    writeln!(
        out,
        "sidecar {}  {}  {}  version {}  connected {} s",
        sidecar.node, sidecar.address, sidecar.identity, sidecar.version, sidecar.connected_s
    )?;
    if !sidecar.group.is_empty() {
        writeln!(out, "  group     {:<45} {}", sidecar.group, sidecar.joined)?;
    }
    if Duration::from_millis(sidecar.clock_ahead_ms.unsigned_abs()) > SKEW_THRESHOLD {
        writeln!(out, "  its clock is {}", odd(&format!("{} this one", clock::describe(sidecar.clock_ahead_ms))))?;
    }
    for r in &sidecar.resources {
        let state = if !r.refused.is_empty() {
            let refused = bad(&format!("REFUSED {}", r.sent));
            format!("{refused}: {} (serves on with {})", r.refused, none(&r.acknowledged))
        } else if r.acknowledged == r.sent {
            format!("{} acknowledged", r.sent)
        } else {
            format!("{} sent, {} acknowledged", r.sent, none(&r.acknowledged))
        };
        writeln!(out, "  {:<9} {:<45} {state}", r.r#type, r.name)?;
    }
    Ok(())
}

/// One line. An unreachable data centre is not an error of this one: its last summary is used.
fn of_datacenter(datacenter: &v1::DatacenterStatus) -> String {
    let heard = datacenter.heard_s.map_or_else(|| "never connected".into(), |s| format!("last message {s} s ago"));
    let state = if datacenter.connected { "connected".to_owned() } else { odd("NOT CONNECTED") };
    let error = if datacenter.error.is_empty() { String::new() } else { format!("  ({})", datacenter.error) };
    let (name, address) = (&datacenter.name, &datacenter.address);
    format!("datacenter {name}  {address}  {state}, {heard}, exports {} services{error}", datacenter.services)
}

fn none(version: &str) -> &str {
    if version.is_empty() { "none" } else { version }
}

/// The status for programs: the names of the API's fields, in camel case.
fn to_json(status: &v1::StatusReply) -> Value {
    let list = |items: Vec<Value>| Value::Array(items);
    json!({
        "worldVersion": status.world_version,
        "services": list(status.services.iter().map(service_json).collect()),
        "sidecars": list(status.sidecars.iter().map(sidecar_json).collect()),
        "datacenters": list(status.datacenters.iter().map(datacenter_json).collect()),
        "policyProblems": status.policy_problems,
        "refusedIdentities": list(status.refused.iter().map(refused_json).collect()),
        "totals": totals_json(&status.totals.unwrap_or_default()),
        "storeProblem": status.store_problem,
        "healthy": is_healthy(status),
    })
}

fn totals_json(totals: &v1::StatusTotals) -> Value {
    json!({
        "services": totals.services,
        "servicesWithoutHealthy": totals.services_without_healthy,
        "instances": totals.instances,
        "healthyInstances": totals.healthy,
        "sidecars": totals.sidecars,
        "sidecarsBehind": totals.behind,
        "sidecarsRefusing": totals.refusing,
    })
}

fn service_json(service: &v1::ServiceStatus) -> Value {
    let instance = |i: &v1::InstanceStatus| {
        let labels = i.labels.split(',').filter_map(|pair| pair.split_once('='));
        json!({
            "node": i.node,
            "serviceId": i.service_id,
            "address": i.address,
            "health": i.health,
            "identity": i.identity,
            "labels": labels.map(|(k, v)| (k.to_owned(), v.into())).collect::<serde_json::Map<String, Value>>(),
            "ejectedBy": i.ejected_by,
        })
    };
    let remote = |r: &v1::RemoteStatus| json!({ "datacenter": r.datacenter, "healthy": r.healthy, "total": r.total, "sharePercent": r.share });
    json!({
        "host": service.host,
        "namespace": service.namespace,
        "addresses": service.addresses,
        "instances": service.instances.iter().map(instance).collect::<Vec<_>>(),
        "remotes": service.remotes.iter().map(remote).collect::<Vec<_>>(),
    })
}

fn sidecar_json(sidecar: &v1::SidecarStatus) -> Value {
    let resource = |r: &v1::ResourceStatus| {
        json!({
            "type": r.r#type,
            "name": r.name,
            "sent": r.sent,
            "acknowledged": r.acknowledged,
            "refused": r.refused,
        })
    };
    json!({
        "node": sidecar.node,
        "identity": sidecar.identity,
        "address": sidecar.address,
        "version": sidecar.version,
        "connectedSeconds": sidecar.connected_s,
        "group": sidecar.group,
        "joined": sidecar.joined,
        "clockAheadMilliseconds": sidecar.clock_ahead_ms,
        "resources": sidecar.resources.iter().map(resource).collect::<Vec<_>>(),
    })
}

fn refused_json(refused: &v1::RefusedIdentity) -> Value {
    json!({
        "identity": refused.identity,
        "address": refused.address,
        "sinceSeconds": refused.since_s,
        "times": refused.times,
        "reason": refused.reason,
    })
}

fn datacenter_json(datacenter: &v1::DatacenterStatus) -> Value {
    json!({
        "name": datacenter.name,
        "address": datacenter.address,
        "connected": datacenter.connected,
        "heardSecondsAgo": datacenter.heard_s,
        "services": datacenter.services,
        "error": datacenter.error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> v1::StatusReply {
        let instance = |health: &str| v1::InstanceStatus {
            address: "10.0.0.1:80".into(),
            health: health.into(),
            labels: "app=web,version=v1".into(),
            service_id: "web-1".into(),
            node: "n1".into(),
            ejected_by: 1,
            ..Default::default()
        };
        let service = v1::ServiceStatus {
            host: "web.default.svc.cluster.local".into(),
            instances: vec![instance("healthy"), instance("unhealthy"), instance("draining")],
            ..Default::default()
        };
        let resource = v1::ResourceStatus { sent: "2".into(), refused: "no".into(), ..Default::default() };
        let sidecar = v1::SidecarStatus { node: "n1".into(), resources: vec![resource], ..Default::default() };
        let problems = vec!["a.yaml:1:1: error: wrong".to_owned()];
        v1::StatusReply {
            services: vec![service],
            sidecars: vec![sidecar],
            policy_problems: problems,
            ..Default::default()
        }
    }

    #[test]
    fn colours_stand_beside_the_text_and_not_in_it() {
        let mut out = Vec::new();
        print(&status(), &mut out).unwrap();
        let coloured = String::from_utf8(out).unwrap();
        assert!(coloured.contains("\x1b[32mhealthy  \x1b[0m") && coloured.contains("\x1b[1;31mREFUSED 2\x1b[0m"));
        let plain = anstream::adapter::strip_str(&coloured).to_string();
        assert!(
            plain.contains("  10.0.0.1:80           unhealthy app=web,version=v1  (no sidecar: plaintext)"),
            "{plain}"
        );
        assert!(plain.contains("REFUSED 2: no (serves on with none)") && plain.contains("a.yaml:1:1: error: wrong"));
    }

    #[test]
    fn a_large_mesh_is_summed_up_after_its_problems() {
        let totals = v1::StatusTotals {
            services: 10_000,
            services_without_healthy: 1,
            instances: 20_000,
            healthy: 19_999,
            sidecars: 10_000,
            behind: 3,
            refusing: 1,
            summary: true,
        };
        let mut out = Vec::new();
        print(&v1::StatusReply { totals: Some(totals), world_version: 7, ..status() }, &mut out).unwrap();
        let text = anstream::adapter::strip_str(&String::from_utf8(out).unwrap()).to_string();
        let end = "\
10000 services, 1 without a healthy instance
20000 instances, 19999 healthy, 1 not healthy
10000 sidecars, 3 not yet up to date, 1 refusing an update
world version 7
Above: 1 services and 1 sidecars that have a problem.
All of it: -o wide or -o json, with --service, --sidecar, --limit and --offset.
";
        assert!(text.ends_with(end) && text.lines().count() <= 16, "{text}");
        assert!(!is_healthy(&v1::StatusReply { totals: Some(totals), ..Default::default() }), "one refuses something");
    }

    #[test]
    fn json_is_for_programs() {
        let json = to_json(&status());
        let instance = &json["services"][0]["instances"][1];
        assert_eq!((&instance["health"], &instance["labels"]["version"]), (&json!("unhealthy"), &json!("v1")));
        assert_eq!((&json["sidecars"][0]["resources"][0]["refused"], &json["healthy"]), (&json!("no"), &json!(false)));
        assert_eq!(json["datacenters"], json!([]));
        assert!(is_healthy(&v1::StatusReply::default()));
    }
}
