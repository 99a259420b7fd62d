//! Registered instances in the form that Eureka's clients read: from the instance's own document if Eureka's API
//! registered it, else from Consul's model.

use std::sync::Arc;

use weft_proto::v1::{Check, Health};
use weft_registry_api::eureka::instance::{self as eureka, DataCenter, Lease, Port, Status};
use weft_registry_api::eureka::lease_id;

use weft_world::Instance;

/// An instance, and whether all of its node is out of service.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) instance: Arc<Instance>,
    pub(super) node_out: bool,
}

/// Whether this check marks maintenance.
pub(super) fn is_maintenance(check: &Check) -> bool {
    check.r#type == "maintenance"
}

/// The instance.
pub(super) fn instance_of(row: &Row) -> eureka::Instance {
    let instance = &*row.instance;
    let mut registered = document(instance).unwrap_or_else(|| of_consul(instance));
    registered.app = instance.service.to_uppercase();
    registered.ip_addr = instance.address.to_string();
    registered.metadata.clone_from(&instance.meta);
    if leads_elsewhere(&registered.host_name, instance) {
        registered.host_name.clone_from(&registered.ip_addr);
    }
    registered.status = status(row);
    if is_out(row) {
        registered.overridden = Status::OutOfService;
    }
    registered
}

/// Its status. For instances that lost their lease together with many others the last status counts, as everywhere in
/// the mesh: Eureka's self-preservation does the same.
pub(super) fn status(row: &Row) -> Status {
    let instance = &*row.instance;
    if is_out(row) {
        return Status::OutOfService;
    }
    match instance.health() {
        Health::Draining => Status::Down,
        Health::Unhealthy => said(instance).unwrap_or(Status::Down),
        Health::Healthy | Health::Unknown => Status::Up,
    }
}

fn is_out(row: &Row) -> bool {
    row.node_out || row.instance.checks.iter().any(is_maintenance)
}

/// The status in its own lease, as long as that lasts and is not UP.
fn said(instance: &Instance) -> Option<Status> {
    let id = lease_id(&instance.service_id);
    let lease = instance.checks.iter().find(|check| check.check_id == id && check.status == "critical")?;
    Status::parse(&lease.output).ok()
}

fn document(instance: &Instance) -> Option<eureka::Instance> {
    let map = serde_json::from_str(&instance.eureka).ok()?;
    eureka::Instance::of(&map).ok()
}

/// An id of Consul's is unique on its node only; some of Eureka's clients keep one instance for each id.
fn of_consul(instance: &Instance) -> eureka::Instance {
    let address = instance.address.to_string();
    let host = if instance.address.is_ipv6() { format!("[{address}]") } else { address.clone() };
    eureka::Instance {
        instance_id: format!("{}:{}", instance.node, instance.service_id),
        host_name: address,
        port: Port { number: instance.port, enabled: instance.port != 0 },
        secure_port: Port { number: 443, enabled: false },
        data_center: Some(DataCenter::default()),
        lease: Lease::default(),
        home_page_url: if instance.port == 0 { String::new() } else { format!("http://{host}:{}/", instance.port) },
        vip_address: instance.service.to_lowercase(),
        secure_vip_address: instance.service.to_lowercase(),
        ..Default::default()
    }
}

/// Whether a host name leads callers to themselves, or to an address that is not the instance's.
fn leads_elsewhere(host: &str, instance: &Instance) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|ip| ip != instance.address)
}
