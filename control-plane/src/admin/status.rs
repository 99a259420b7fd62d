//! The reply to `weftctl status`: everything for a small mesh, counts and problems for a large one.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use weft_core::clock::SKEW_THRESHOLD;
use weft_proto::v1;

use super::service::AdminService;
use crate::federation::PeerStatus;
use crate::identity::pattern::matches;
use weft_world::{Member, RemoteHost, World};

/// Lines that fit a screen: a mesh that needs no more is shown completely.
const SCREEN: usize = 40;
/// Services, and sidecars, that a summary shows.
const SUMMARY: usize = 5;
/// Instances of each of them.
const INSTANCES: usize = 2;

impl AdminService {
    pub(super) fn status_of(&self, request: &v1::StatusRequest) -> v1::StatusReply {
        let (mut services, world_version) = self.services(request);
        let odd = self.odd_nodes();
        let wants_sidecars = request.service.is_empty() || !request.sidecar.is_empty();
        let fits = |node: &str| wants_sidecars && (request.sidecar.is_empty() || matches(&request.sidecar, node));
        let counts = self.discovery.counts(fits);
        let mut totals = v1::StatusTotals {
            services: number(services.len()),
            services_without_healthy: number(services.iter().filter(|service| !has_healthy(service)).count()),
            instances: number(services.iter().map(|service| service.instances.len()).sum()),
            healthy: number(services.iter().flat_map(|s| &s.instances).filter(|i| i.health == "healthy").count()),
            sidecars: number(counts.sidecars),
            behind: number(counts.behind),
            refusing: number(counts.refusing),
            summary: false,
        };
        let lines = services.len() + totals.instances as usize + counts.sidecars + counts.resources;
        totals.summary = request.summary && lines > SCREEN;
        let (offset, limit) = match (totals.summary, request.limit) {
            (true, 0) => (0, SUMMARY),
            (_, 0) => (request.offset as usize, usize::MAX),
            (_, limit) => (request.offset as usize, limit as usize),
        };
        if totals.summary {
            let is_odd =
                |i: &v1::InstanceStatus| i.ejected_by > 0 || !matches!(i.health.as_str(), "healthy" | "draining");
            services.retain(|service| !has_healthy(service) || service.instances.iter().any(is_odd));
            services.sort_by_key(has_healthy);
            services.truncate(limit.saturating_add(offset));
            for service in &mut services {
                let all = service.instances.len();
                service.instances.retain(is_odd);
                service.instances.truncate(INSTANCES);
                service.more = number(all - service.instances.len());
            }
        }
        let mut sidecars =
            self.discovery.status(fits, |node| totals.summary.then(|| odd.contains(node)), offset, limit);
        let clocks = self.mesh.clocks();
        for sidecar in &mut sidecars {
            sidecar.clock_ahead_ms = clocks.get(&sidecar.node).copied().unwrap_or_default();
        }
        self.mesh.read(|world| add_groups(world, &mut sidecars));
        v1::StatusReply {
            world_version,
            sidecars,
            policy_problems: self.mesh.policy_problems().iter().map(ToString::to_string).collect(),
            services: services.into_iter().skip(offset).take(limit).collect(),
            datacenters: self.federation.status(&self.mesh).into_iter().map(datacenter).collect(),
            refused: self.refusals.status(tokio::time::Instant::now()),
            totals: Some(totals),
            store_problem: self.store_problem(),
        }
    }

    /// The requested services, by host, and the version of the world.
    fn services(&self, request: &v1::StatusRequest) -> (Vec<v1::ServiceStatus>, u64) {
        let wanted = request.sidecar.is_empty() || !request.service.is_empty();
        let fits = |host: &str| {
            let name = host.split('.').next().unwrap_or_default();
            wanted && (request.service.is_empty() || matches(&request.service, host) || matches(&request.service, name))
        };
        let mut services: BTreeMap<String, v1::ServiceStatus> = BTreeMap::new();
        let ejected = self.mesh.ejected();
        let version = self.mesh.read(|world| {
            let of = |host: &str, namespace: &str| v1::ServiceStatus {
                namespace: namespace.to_owned(),
                addresses: world
                    .host(host)
                    .map(|host| world.addresses_of(host))
                    .iter()
                    .flatten()
                    .map(ToString::to_string)
                    .collect(),
                host: host.to_owned(),
                ..v1::ServiceStatus::default()
            };
            for instance in world.instances() {
                let host = instance.host();
                if !fits(&host) {
                    continue;
                }
                let entry = services.entry(host.clone()).or_insert_with(|| of(&host, &instance.namespace));
                let labels: Vec<String> = instance.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                let address = match instance.port {
                    0 => format!("{} (no port)", instance.address),
                    port => std::net::SocketAddr::new(instance.address, port).to_string(),
                };
                let ejected_by = ejected.get(&(entry.host.clone(), address.clone())).copied().unwrap_or(0);
                entry.instances.push(v1::InstanceStatus {
                    ejected_by,
                    node: instance.node.clone(),
                    service_id: instance.service_id.clone(),
                    address,
                    health: format!("{:?}", instance.health()).to_lowercase(),
                    identity: instance.identity.clone(),
                    labels: labels.join(","),
                });
            }
            for host in world.imported().into_iter().filter(|host| fits(host)) {
                let namespace = world.host(host).map_or("", |host| &host.namespace);
                let entry = services.entry(host.to_owned()).or_insert_with(|| of(host, namespace));
                entry.remotes = remotes(world, host);
            }
            world.version()
        });
        for service in services.values_mut() {
            service.instances.sort_by(|a, b| a.address.cmp(&b.address));
        }
        (services.into_values().collect(), version)
    }

    /// Nodes whose sidecars have a problem outside discovery: a clock that differs, a group that they cannot join.
    fn odd_nodes(&self) -> HashSet<String> {
        let differs = |ahead_ms: &i64| Duration::from_millis(ahead_ms.unsigned_abs()) > SKEW_THRESHOLD;
        let clocks = self.mesh.clocks().into_iter().filter(|(_, ahead_ms)| differs(ahead_ms)).map(|(node, _)| node);
        let outside = self.mesh.read(|world| {
            let members = world.group_members().filter(|member| member.joined.is_err());
            members.map(|member| member.instance.node.clone()).collect::<Vec<_>>()
        });
        clocks.chain(outside).collect()
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn has_healthy(service: &v1::ServiceStatus) -> bool {
    let remote = || service.remotes.iter().any(|remote| remote.healthy > 0);
    service.instances.iter().any(|instance| instance.health == "healthy") || remote()
}

/// A host in other data centres: the first of them gets the share of requests.
fn remotes(world: &World, host: &str) -> Vec<v1::RemoteStatus> {
    let mut share = world.share(host, "");
    let status = |remote: RemoteHost<'_>| {
        let all = remote.subsets.get("").cloned().unwrap_or_default();
        let (healthy, total, datacenter) = (all.healthy, all.total, remote.datacenter.to_owned());
        v1::RemoteStatus { datacenter, healthy, total, share: std::mem::take(&mut share) }
    };
    world.remotes_of(host).map(status).collect()
}

/// Adds the results of joining a WorkloadGroup to sidecars.
fn add_groups(world: &World, sidecars: &mut [v1::SidecarStatus]) {
    let members: BTreeMap<(&str, &str), &Member> = world
        .group_members()
        .map(|member| ((member.instance.node.as_str(), member.instance.identity.as_str()), member))
        .collect();
    for sidecar in sidecars {
        let Some(member) = members.get(&(sidecar.node.as_str(), sidecar.identity.as_str())) else { continue };
        sidecar.joined = match &member.joined {
            Ok(joined) => format!("{} {:?}", joined.name, member.health()).to_lowercase(),
            Err(why) => format!("NOT JOINED: {why}"),
        };
        sidecar.group.clone_from(&member.instance.group);
    }
}

fn datacenter(peer: PeerStatus) -> v1::DatacenterStatus {
    v1::DatacenterStatus {
        name: peer.datacenter,
        address: peer.address,
        connected: peer.connected,
        heard_s: peer.last_message.map(|at| at.elapsed().unwrap_or_default().as_secs()),
        services: peer.services as u64,
        error: peer.error,
    }
}
