//! The registry, as DNS reads it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::api::consul::{QueryResult, prepared};
use crate::state::{Mesh, Node, Nodes};
use weft_policy::fqdn;
use weft_world::{Instance, World};

/// Age at which the table of nodes by address and by name in lower case is rebuilt.
const TABLE_AGE: Duration = Duration::from_secs(1);

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEntry {
    /// Its name, in its own case.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Whether all of its own checks pass.
    pub passing: bool,
    /// Labels of its sidecar: Consul's node metadata.
    pub meta: BTreeMap<String, String>,
}

/// The registry, as far as a caller in a namespace sees it: first its own namespace, then `default`.
pub trait View {
    /// Instances of a service, whatever their health.
    fn instances(&self, namespace: &str, service: &str) -> Vec<Arc<Instance>>;
    /// Virtual IPs of a service.
    fn virtual_ips(&self, namespace: &str, service: &str) -> Vec<IpAddr>;
    /// A node by its name in any case.
    fn node(&self, namespace: &str, name: &str) -> Option<NodeEntry>;
    /// Nodes by their exact names, one for each.
    fn nodes(&self, names: &[&str]) -> Vec<Option<NodeEntry>>;
    /// Names of the nodes at an address.
    fn nodes_at(&self, namespace: &str, address: IpAddr) -> Vec<String>;
    /// Names of the services at an address.
    fn services_at(&self, namespace: &str, address: IpAddr) -> Vec<String>;
    /// The result of the prepared query of that name or id; `None`: there is no such query. `others`: the other data
    /// centres, the nearest first.
    fn prepared(&self, namespace: &str, name: &str, others: &[&str]) -> Option<QueryResult>;
    /// Grows with every change.
    fn version(&self) -> u64;
}

/// The mesh's registry.
pub struct MeshView {
    mesh: Arc<Mesh>,
    table: Mutex<Option<Arc<Table>>>,
}

/// Names of nodes by their form in lower case. A scan of all nodes for each query would delay the mesh.
struct Table {
    built: Instant,
    by_name: HashMap<String, String>,
}

impl MeshView {
    /// The view of this mesh.
    pub fn new(mesh: Arc<Mesh>) -> MeshView {
        MeshView { mesh, table: Mutex::default() }
    }

    fn table(&self) -> Arc<Table> {
        let mut held = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = held.as_ref().filter(|table| table.built.elapsed() < TABLE_AGE) {
            return table.clone();
        }
        let names: Vec<String> = self.mesh.read_nodes(|nodes| nodes.keys().cloned().collect());
        let by_name = names.into_iter().map(|name| (name.to_ascii_lowercase(), name)).collect();
        let table = Arc::new(Table { built: Instant::now(), by_name });
        *held = Some(table.clone());
        table
    }
}

impl View for MeshView {
    fn instances(&self, namespace: &str, service: &str) -> Vec<Arc<Instance>> {
        self.mesh.read(|world| {
            let of = |namespace| world.service_instances(namespace, service).cloned().collect::<Vec<_>>();
            let own = of(namespace);
            if own.is_empty() { of("default") } else { own }
        })
    }

    fn virtual_ips(&self, namespace: &str, service: &str) -> Vec<IpAddr> {
        let of = |world: &World, namespace| {
            let host = world.host(&fqdn(service, namespace)).filter(|host| host.live)?;
            Some(world.addresses_of(host))
        };
        self.mesh.read(|world| of(world, namespace).or_else(|| of(world, "default")).unwrap_or_default())
    }

    fn node(&self, namespace: &str, name: &str) -> Option<NodeEntry> {
        let visible = |name: &str| {
            self.mesh.read_nodes(|nodes| {
                let node = nodes.get(name).filter(|node| sees(namespace, &node.namespace))?;
                Some(entry(name, node))
            })
        };
        visible(name).or_else(|| visible(self.table().by_name.get(name)?))
    }

    fn nodes(&self, names: &[&str]) -> Vec<Option<NodeEntry>> {
        let find = |nodes: &Nodes| names.iter().map(|name| nodes.get(*name).map(|node| entry(name, node))).collect();
        self.mesh.read_nodes(find)
    }

    fn nodes_at(&self, namespace: &str, address: IpAddr) -> Vec<String> {
        self.mesh.read_nodes(|nodes| {
            let visible = nodes.at(address).filter(|(_, node)| sees(namespace, &node.namespace));
            visible.map(|(name, _)| name.to_owned()).collect()
        })
    }

    fn services_at(&self, namespace: &str, address: IpAddr) -> Vec<String> {
        self.mesh.read(|world| {
            let visible = world.at_address(address).filter(|i| i.group.is_empty() && sees(namespace, &i.namespace));
            let mut names: Vec<String> = visible.map(|instance| instance.service.to_ascii_lowercase()).collect();
            names.sort_unstable();
            names.dedup();
            names
        })
    }

    fn prepared(&self, namespace: &str, name: &str, others: &[&str]) -> Option<QueryResult> {
        prepared(&self.mesh, namespace, name, others)
    }

    fn version(&self) -> u64 {
        self.mesh.read(World::version)
    }
}

/// The part that other data centres see: exported services, and the nodes that these are on.
pub struct ExportedView(MeshView);

impl ExportedView {
    /// The view of this mesh.
    pub fn new(mesh: Arc<Mesh>) -> ExportedView {
        ExportedView(MeshView::new(mesh))
    }

    fn is_exported(&self, instance: &Instance) -> bool {
        self.0.mesh.read(|world| world.is_exported(&instance.host()))
    }
}

impl View for ExportedView {
    fn instances(&self, namespace: &str, service: &str) -> Vec<Arc<Instance>> {
        let mut found = self.0.instances(namespace, service);
        if !found.iter().any(|instance| self.is_exported(instance)) {
            found = self.0.instances("default", service);
        }
        found.retain(|instance| self.is_exported(instance));
        found
    }

    /// Useless for callers elsewhere: their own data centre assigns another.
    fn virtual_ips(&self, _: &str, _: &str) -> Vec<IpAddr> {
        Vec::new()
    }

    fn node(&self, namespace: &str, name: &str) -> Option<NodeEntry> {
        let found = self.0.node(namespace, name)?;
        let exports = |world: &World| {
            let mut all = ["default", namespace].into_iter().flat_map(|ns| world.instances_of_node(ns, &found.name));
            all.any(|instance| world.is_exported(&instance.host()))
        };
        let exports = self.0.mesh.read(exports);
        exports.then_some(found)
    }

    fn nodes(&self, names: &[&str]) -> Vec<Option<NodeEntry>> {
        self.0.nodes(names)
    }

    fn nodes_at(&self, _: &str, _: IpAddr) -> Vec<String> {
        Vec::new()
    }

    fn services_at(&self, _: &str, _: IpAddr) -> Vec<String> {
        Vec::new()
    }

    /// Prepared queries belong to one data centre.
    fn prepared(&self, _: &str, _: &str, _: &[&str]) -> Option<QueryResult> {
        None
    }

    fn version(&self) -> u64 {
        self.0.version()
    }
}

fn sees(caller: &str, namespace: &str) -> bool {
    namespace == caller || namespace == "default"
}

fn entry(name: &str, node: &Node) -> NodeEntry {
    let passing = node.checks.values().all(|check| check.status == "passing");
    NodeEntry { name: name.to_owned(), address: node.address, passing, meta: node.labels.clone() }
}

#[cfg(test)]
mod tests {
    use weft_proto::v1;

    use super::*;
    use crate::store::embedded::Embedded;

    /// A sidecar with one instance of a service.
    async fn join(mesh: &Mesh, name: &str, namespace: &str, address: &str, service: &str) -> u64 {
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{name}");
        let node = Node { workload: name.into(), ..Node::new(namespace, identity, address.parse().unwrap()) };
        let session = mesh.begin_session(name, node).await.unwrap();
        let (service_id, service) = ("1".into(), service.into());
        let instance = v1::Instance { service_id, service, port: 80, ..v1::Instance::default() };
        mesh.register(name, session, instance).await.unwrap();
        session
    }

    #[tokio::test]
    async fn callers_see_their_own_namespace_and_default() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(dir.path()).unwrap());
        let mesh = Mesh::open(store, "cluster.local", Duration::from_secs(15)).await.unwrap();
        let session = join(&mesh, "Host-A", "default", "10.0.0.1", "Web").await;
        join(&mesh, "host-b", "team", "10.0.0.2", "web").await;
        join(&mesh, "host-c", "team", "10.0.0.3", "own").await;
        let view = MeshView::new(mesh.clone());
        let addresses = |namespace, service| -> Vec<String> {
            view.instances(namespace, service).iter().map(|instance| instance.address.to_string()).collect()
        };
        assert_eq!(addresses("default", "web"), ["10.0.0.1"]);
        assert_eq!(addresses("other", "WEB"), ["10.0.0.1"]);
        assert_eq!(addresses("team", "web"), ["10.0.0.2"]);
        assert_eq!(addresses("default", "own"), [""; 0]);
        assert!(view.virtual_ips("default", "own").is_empty());
        assert_ne!(view.virtual_ips("team", "web"), view.virtual_ips("default", "web"));
        assert_eq!(view.virtual_ips("team", "web").len(), 1);

        let at = |last| IpAddr::from([10, 0, 0, last]);
        let node = view.node("team", "host-a").unwrap();
        assert_eq!((node.name.as_str(), node.address, node.passing), ("Host-A", at(1), true));
        assert_eq!(view.node("default", "host-b"), None);
        assert_eq!(view.nodes(&["Host-A", "gone"]), [Some(node), None]);
        assert_eq!(view.nodes_at("default", at(1)), ["Host-A"]);
        assert_eq!(view.nodes_at("default", at(2)), [""; 0]);
        assert_eq!(view.services_at("default", at(1)), ["web"]);
        assert_eq!(view.services_at("default", at(2)), [""; 0]);
        assert_eq!(view.services_at("team", at(2)), ["web"]);

        let check = v1::Check { check_id: "disk".into(), status: "warning".into(), ..v1::Check::default() };
        let update = v1::CheckUpdate { check: Some(check), removed: false };
        mesh.update_check("Host-A", session, update).await.unwrap();
        assert!(!view.node("default", "Host-A").unwrap().passing);
    }
}
