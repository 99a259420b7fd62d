use std::collections::BTreeMap;
use std::net::IpAddr;

use bytes::Bytes;
use http::{Method, Request};
use serde_json::Value;
use weft_proto::v1;

use super::*;
use crate::api::consul;
use crate::api::consul::connect::Roots;
use crate::api::dns;
use crate::identity::caller::{Caller, Rights};
use crate::state::Node;
use crate::store::embedded::Embedded;
use weft_world::Scope;
use weft_world::translate;

const EXPORT: &str = "apiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\nmetadata: {name: order}\n";
const SUBSETS: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: order}\n\
    spec: {host: order, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}\n";

/// A data centre without peers.
struct Centre {
    name: &'static str,
    dir: tempfile::TempDir,
    mesh: Arc<Mesh>,
    ca: Arc<Ca>,
    listener: Option<TcpListener>,
    address: String,
}

/// A federated data centre.
struct Running {
    mesh: Arc<Mesh>,
    consul: Arc<Consul>,
    federation: Arc<Federation>,
    _dir: tempfile::TempDir,
}

async fn centre(name: &'static str, trust_domain: &str) -> Centre {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(&dir.path().join("store")).unwrap());
    let mesh = Mesh::open(store, trust_domain, Duration::from_secs(60)).await.unwrap();
    let (ca, _) = Ca::create(trust_domain, SystemTime::now()).unwrap();
    std::fs::write(dir.path().join("root.pem"), ca.root_pem()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    Centre { name, dir, mesh, ca: Arc::new(ca), listener: Some(listener), address }
}

impl Centre {
    fn as_peer(&self) -> PeerAddress {
        let (datacenter, address) = (self.name.to_owned(), self.address.clone());
        PeerAddress { datacenter, address, root: self.dir.path().join("root.pem") }
    }

    async fn start(mut self, peers: Vec<PeerAddress>) -> Running {
        let gateways = vec![PeerGateway { address: "10.9.9.9".into(), port: 15443 }];
        let settings = Settings {
            datacenter: self.name.into(),
            peers,
            failback: Duration::ZERO,
            keep: Duration::from_secs(3600),
            ..Settings::default()
        };
        let federation = Federation::start(&settings, &self.mesh, &self.ca).await.unwrap();
        let consul = Arc::new(Consul {
            mesh: self.mesh.clone(),
            address: ([10, 0, 0, 9], 15012).into(),
            roots: Roots::of(&self.ca),
            federation: federation.clone(),
            allow_external: false,
        });
        let dns = dns::Settings { datacenter: self.name.into(), ..dns::Settings::default() };
        let exported = Dns::exported(self.mesh.clone(), dns);
        federation.answer(self.listener.take().unwrap(), gateways, &self.ca, consul.clone(), exported).unwrap();
        Running { mesh: self.mesh, consul, federation, _dir: self.dir }
    }

    /// Registers an instance of a service; the check's status can be changed by registering it again.
    async fn register(&self, number: u8, service: &str, tag: &str, status: &str) {
        register(&self.mesh, number, service, tag, status).await;
    }
}

async fn register(mesh: &Mesh, number: u8, service: &str, tag: &str, status: &str) {
    let domain = mesh.read(|world| world.trust_domain().to_owned());
    let identity = format!("spiffe://{domain}/ns/default/sa/{service}");
    let node = Node { workload: service.into(), ..Node::new("default", identity, [10, 0, 0, number].into()) };
    let name = format!("n{number}");
    let session = mesh.begin_session(&name, node).await.unwrap();
    let check = v1::Check { check_id: "c".into(), status: status.into(), ..v1::Check::default() };
    let instance = v1::Instance {
        service_id: service.into(),
        service: service.into(),
        port: 8080,
        tags: vec![tag.into()],
        checks: vec![check],
        ..v1::Instance::default()
    };
    mesh.register(&name, session, instance).await.unwrap();
}

async fn apply(mesh: &Mesh, texts: &[&str]) {
    let parsed = weft_world::parse_policies("a.yaml", &texts.join("---\n"));
    assert_eq!(parsed.problems, []);
    mesh.change_policies(parsed.documents, &[]).await.unwrap();
}

/// Waits for a change that another data centre causes.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within ten seconds: {what}");
}

fn remotes(mesh: &Mesh) -> Vec<v1::Remote> {
    let found = mesh.read(|world| {
        let host = world.host("order.default.svc.cluster.local");
        host.map(|host| translate::endpoints(world, host))
    });
    found.map(|found| found.remotes).unwrap_or_default()
}

/// Percent of a subset's requests for other data centres; `None`: they do not have it.
fn share(mesh: &Mesh, subset: &str) -> Option<u32> {
    remotes(mesh).first().and_then(|remote| remote.subsets.get(subset)).map(|subset| subset.share)
}

impl Running {
    async fn get(&self, uri: &str, rights: Rights) -> (u16, Value) {
        let caller = Caller {
            namespace: "default".into(),
            identity: String::new(),
            address: IpAddr::from([10, 0, 0, 77]),
            rights,
        };
        let request = Request::builder().method(Method::GET).uri(uri).body(Bytes::new()).unwrap();
        let answered = consul::answer(&self.consul, &caller, request).await;
        let text = || String::from_utf8_lossy(answered.body()).into();
        let body = serde_json::from_slice(answered.body()).unwrap_or_else(|_| Value::String(text()));
        (answered.status().as_u16(), body)
    }
}

/// dc1 and dc2 with an exported service order in both.
async fn two() -> (Running, Running) {
    let (one, two) = (centre("dc1", "one.example").await, centre("dc2", "two.example").await);
    one.register(1, "order", "v1", "passing").await;
    for (number, tag) in [(1, "v1"), (2, "v2")] {
        two.register(number, "order", tag, "passing").await;
    }
    two.register(3, "secret", "v1", "passing").await;
    apply(&two.mesh, &[EXPORT, SUBSETS]).await;
    apply(&one.mesh, &[SUBSETS]).await;
    let (peer_of_two, peer_of_one) = (one.as_peer(), two.as_peer());
    let (one, two) = (one.start(vec![peer_of_one]).await, two.start(vec![peer_of_two]).await);
    until("dc1 has the summary of dc2", || !remotes(&one.mesh).is_empty()).await;
    until("dc2 is connected to dc1", || two.federation.status(&two.mesh)[0].connected).await;
    (one, two)
}

#[tokio::test]
async fn summaries_cross_and_traffic_follows_health() {
    let (one, two) = two().await;
    let [remote] = &remotes(&one.mesh)[..] else { panic!() };
    assert_eq!((remote.datacenter.as_str(), remote.gateways[0].address.as_str()), ("dc2", "10.9.9.9"));
    assert_eq!(remote.subsets["v2"].identities, ["spiffe://two.example/ns/default/sa/order"]);
    // There are no local instances of v2.
    assert_eq!((share(&one.mesh, ""), share(&one.mesh, "v1")), (Some(0), Some(0)));
    until("v2 is elsewhere alone", || share(&one.mesh, "v2") == Some(100)).await;
    // It is not exported, so it is unknown; and nothing crosses in the other direction.
    assert_eq!(one.mesh.read(|world| translate::resolve(world, &Scope::of("default"), "secret")), None);
    assert!(remotes(&two.mesh).is_empty());
    let trusted = one.mesh.read(|world| translate::inbound(world, "default", &BTreeMap::new(), &[])).trust;
    assert_eq!(trusted.iter().map(|bundle| bundle.trust_domain.as_str()).collect::<Vec<_>>(), ["two.example"]);

    register(&one.mesh, 1, "order", "v1", "critical").await;
    until("all goes to dc2", || share(&one.mesh, "") == Some(100)).await;
    // A local write does not wait for peers.
    register(&one.mesh, 1, "order", "v1", "passing").await;
    until("it returns", || share(&one.mesh, "") == Some(0)).await;
    register(&two.mesh, 2, "order", "v2", "critical").await;
    until("dc2 has no v2 any more", || share(&one.mesh, "v2").is_none() && share(&one.mesh, "").is_some()).await;
}

#[tokio::test]
async fn a_service_of_another_data_centre_only_resolves_here() {
    let (one, two) = two().await;
    apply(&two.mesh, &[&EXPORT.replace("order", "secret")]).await;
    let resolve = || one.mesh.read(|world| translate::resolve(world, &Scope::of("default"), "secret"));
    until("it is known here", || resolve().is_some()).await;
    let service =
        |mesh: &Mesh, host: &str| mesh.read(|world| translate::service(world, &Scope::of("default"), host)).unwrap();
    let imported = service(&one.mesh, &resolve().unwrap());
    assert_eq!((imported.addresses.len(), imported.clusters[0].undefined), (1, false), "it has a virtual IP");
    // Its gateway can find every subset.
    let exported = service(&two.mesh, "order.default.svc.cluster.local");
    let subsets: Vec<&str> = exported.clusters.iter().map(|cluster| cluster.subset.as_str()).collect();
    assert_eq!((exported.exported, subsets), (true, vec!["", "v1", "v2"]));
    let all = two.mesh.policies().api;
    let export = all.iter().find(|d| d.reference() == "ServiceExport/default/secret").unwrap();
    two.mesh.change_policies(Vec::new(), &[(**export).clone()]).await.unwrap();
    until("it is forgotten", || resolve().is_none()).await;
}

#[tokio::test]
async fn queries_are_forwarded_to_the_named_data_centre() {
    let (one, two) = two().await;
    let (status, items) = one.get("/v1/health/service/order?dc=dc2&token=mine", Rights::All).await;
    assert_eq!((status, items.as_array().unwrap().len()), (200, 2), "{items}");
    assert_eq!(items[0]["Node"]["Datacenter"], "dc2");
    assert_eq!(one.get("/v1/catalog/datacenters", Rights::Read).await.1, serde_json::json!(["dc1", "dc2"]));
    // Services without an export are hidden from all kinds of queries.
    let services = one.get("/v1/catalog/services?dc=dc2", Rights::All).await.1;
    assert_eq!(services.as_object().unwrap().keys().collect::<Vec<_>>(), ["order"]);
    for (uri, want) in [
        ("/v1/health/service/secret?dc=dc2", serde_json::json!([])),
        ("/v1/catalog/service/secret?dc=dc2", serde_json::json!([])),
        ("/v1/catalog/node/n3?dc=dc2", Value::Null),
        ("/v1/health/node/n3?dc=dc2", serde_json::json!([])),
    ] {
        assert_eq!(one.get(uri, Rights::All).await, (200, want), "{uri}");
    }
    let nodes = one.get("/v1/catalog/nodes?dc=dc2", Rights::All).await.1;
    assert_eq!(nodes.as_array().unwrap().len(), 2, "{nodes}");
    // A token restricts reads there, too.
    let claims = crate::identity::token::ApiClaims {
        trust_domain: "one.example".into(),
        namespace: "default".into(),
        services: vec!["own".into()],
        read: vec!["pay*".into()],
        keys: Vec::new(),
        expires: 0,
    };
    let narrowed = one.get("/v1/health/service/order?dc=dc2", Rights::Token(Arc::new(claims))).await;
    assert_eq!(narrowed, (200, serde_json::json!([])));
    for (uri, want) in [
        ("/v1/kv/a?dc=dc2", (501, "in another data centre only the catalog and health")),
        ("/v1/health/service/order?dc=dc9", (500, "No path to datacenter")),
    ] {
        let (status, text) = one.get(uri, Rights::All).await;
        assert!(status == want.0 && text.as_str().unwrap().contains(want.1), "{uri}: {status} {text}");
    }
    // Queries are not forwarded to a third data centre.
    let third = one.get("/v1/health/service/order?dc=dc2", Rights::Peer(Arc::default())).await;
    assert_eq!(third, (500, "No path to datacenter".into()));
    drop(two);
}

#[tokio::test]
async fn the_last_summary_outlives_the_link_and_the_process() {
    let (one, two) = (centre("dc1", "one.example").await, centre("dc2", "two.example").await);
    two.register(1, "order", "v1", "passing").await;
    apply(&two.mesh, &[EXPORT]).await;
    let (store, kept) = (one.dir.path().join("store"), tempfile::tempdir().unwrap());
    let (peer_of_two, mut peer_of_one) = (one.as_peer(), two.as_peer());
    std::fs::copy(&peer_of_one.root, kept.path().join("two.pem")).unwrap();
    peer_of_one.root = kept.path().join("two.pem");
    let one = one.start(vec![peer_of_one.clone()]).await;
    // A runtime of its own can be stopped as a whole.
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let listener = two.listener.unwrap().into_std().unwrap();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = Some(TcpListener::from_std(listener).unwrap());
            let _two = Centre { listener, ..two }.start(vec![peer_of_two]).await;
            // It ends in either case.
            let _ = stopped.await;
        });
        runtime.shutdown_background();
    });
    until("dc1 has the summary of dc2", || share(&one.mesh, "") == Some(100)).await;
    stop.send(()).unwrap();
    tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
    until("the link is down", || !one.federation.status(&one.mesh)[0].connected).await;
    let status = &one.federation.status(&one.mesh)[0];
    assert!(!status.error.is_empty() && status.last_message.is_some() && status.services == 1, "{status:?}");
    assert_eq!(share(&one.mesh, ""), Some(100));
    let (code, text) = one.get("/v1/health/service/order?dc=dc2", Rights::All).await;
    assert_eq!((code, text.as_str()), (500, Some("No path to datacenter")));
    register(&one.mesh, 5, "own", "v1", "passing").await;
    // A control plane that starts during a partition has the summary from its store.
    let copied = kept.path().join("store");
    std::fs::create_dir(&copied).unwrap();
    for file in std::fs::read_dir(&store).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copied.join(file.file_name())).unwrap();
    }
    let mesh = Mesh::open(Arc::new(Embedded::open(&copied).unwrap()), "one.example", Duration::from_secs(60)).await;
    let mesh = mesh.unwrap();
    assert!(remotes(&mesh).is_empty(), "summaries of others than peers are removed");
    let (ca, _) = Ca::create("one.example", SystemTime::now()).unwrap();
    let settings = Settings { peers: vec![peer_of_one], ..Settings::default() };
    let federation = Federation::start(&settings, &mesh, &Arc::new(ca)).await.unwrap();
    until("it is known again", || share(&mesh, "") == Some(100)).await;
    assert!(federation.status(&mesh)[0].last_message.is_some());
    // The summary of a removed peer is deleted.
    let (ca, _) = Ca::create("one.example", SystemTime::now()).unwrap();
    Federation::start(&Settings::default(), &mesh, &Arc::new(ca)).await.unwrap();
    until("it is gone", || mesh.read(|world| world.remote_summaries().next().is_none())).await;
    assert!(mesh.read(|world| translate::resolve(world, &Scope::of("default"), "order")).is_none());
}

#[tokio::test]
async fn unknown_peers_are_refused_with_a_reason() {
    let (one, two, three) =
        (centre("dc1", "one.example").await, centre("dc2", "two.example").await, centre("dc3", "two.example").await);
    let peer_of_two = one.as_peer();
    // Known there by another name; authenticated by another root; not a peer there at all.
    let renamed = PeerAddress { datacenter: "dc9".into(), ..two.as_peer() };
    let forged = PeerAddress { root: three.as_peer().root, ..two.as_peer() };
    let unknown = three.as_peer();
    let _two = two.start(vec![peer_of_two]).await;
    let _three = three.start(Vec::new()).await;
    for (peer, want) in [
        (renamed, "belongs to the data centre \"dc2\", not \"dc9\""),
        (forged, "invalid peer certificate"),
        (unknown, ""),
    ] {
        let mesh = {
            let store = Arc::new(Embedded::open(&tempfile::tempdir().unwrap().keep()).unwrap());
            Mesh::open(store, "one.example", Duration::from_secs(60)).await.unwrap()
        };
        let settings = Settings { peers: vec![peer.clone()], ..Settings::default() };
        let federation = Federation::start(&settings, &mesh, &one.ca).await.unwrap();
        until("it is refused", || !federation.status(&mesh)[0].error.is_empty()).await;
        let status = &federation.status(&mesh)[0];
        assert!(status.error.contains(want) && !status.connected, "{peer:?}: {status:?}");
        assert!(remotes(&mesh).is_empty());
    }
}

#[test]
fn a_peers_summary_cannot_claim_other_trust_domains() {
    let peer = Peering { datacenter: "dc2".into(), trust_domain: "two.example".into(), root_der: Vec::new() };
    let subset = |identities: &[&str]| v1::SubsetSummary {
        healthy: 1,
        total: 1,
        identities: identities.iter().map(|id| (*id).to_owned()).collect(),
        ..v1::SubsetSummary::default()
    };
    let service = |name: &str, subsets| v1::ServiceSummary { namespace: "default".into(), name: name.into(), subsets };
    let gateway = |address: &str, port| v1::PeerGateway { address: address.into(), port };
    let summaries = v1::Summaries {
        datacenter: "dc1".into(),
        services: vec![
            service("a", vec![subset(&["spiffe://one.example/ns/a/sa/a", "spiffe://two.example/ns/a/sa/a", "x"])]),
            service("a/b", Vec::new()),
            service("", Vec::new()),
        ],
        gateways: vec![
            gateway("10.0.0.1", 1),
            gateway("a b", 1),
            gateway("unix:///run/a", 1),
            gateway("h", 70_000),
            gateway("fd00::1", 2),
        ],
    };
    let sound = weft_world::sound(summaries, &peer);
    assert_eq!(sound.datacenter, "dc2");
    assert_eq!(sound.gateways, [gateway("10.0.0.1", 1), gateway("fd00::1", 2)]);
    assert_eq!(sound.services, [service("a", vec![subset(&["spiffe://two.example/ns/a/sa/a"])])]);
}
