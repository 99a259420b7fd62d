use super::*;
use crate::control::directory::Lookup;
use weft_proto::envoy::Any;

const HOST: &str = "order.default.svc.cluster.local";

fn resource(kind: &str, name: &str, aliases: &[&str], version: &str, message: &impl Message) -> Resource {
    Resource {
        version: version.into(),
        name: name.into(),
        aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
        resource: Some(Any { type_url: kind.into(), value: message.encode_to_vec().into() }),
    }
}

fn response(kind: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    let removed_resources = removed.iter().map(|name| (*name).to_owned()).collect();
    DeltaDiscoveryResponse { type_url: kind.into(), resources, removed_resources, ..Default::default() }
}

fn service(aliases: &[&str]) -> DeltaDiscoveryResponse {
    let cluster = v1::Cluster { name: "c".into(), host: HOST.into(), ..Default::default() };
    let port = v1::Port { number: 80, ..Default::default() };
    let message = v1::Service { host: HOST.into(), ports: vec![port], clusters: vec![cluster], ..Default::default() };
    response(SERVICE_TYPE, vec![resource(SERVICE_TYPE, HOST, aliases, "1", &message)], &[])
}

fn endpoints(version: &str, addresses: &[&str]) -> DeltaDiscoveryResponse {
    let endpoint =
        |a: &&str| v1::Endpoint { address: (*a).into(), port: 8080, health: 1, weight: 1, ..Default::default() };
    let message =
        v1::Endpoints { host: HOST.into(), endpoints: addresses.iter().map(endpoint).collect(), ..Default::default() };
    response(ENDPOINTS_TYPE, vec![resource(ENDPOINTS_TYPE, HOST, &[], version, &message)], &[])
}

fn served(directory: &Directory) -> usize {
    match directory.known("order") {
        Some(Lookup::Service(view)) => view.clusters[0].endpoints.len(),
        _ => 0,
    }
}

/// A directory that subscribes to "order" and has one endpoint of it.
async fn knowing() -> (Arc<Directory>, Writer) {
    let (directory, mut writer) = new(Default::default(), None, &[]);
    writer.set_connected(true);
    let reader = directory.clone();
    let lookup = tokio::spawn(async move { matches!(reader.lookup("order").await, Lookup::Service(_)) });
    let interest = writer.next_interest().await.unwrap();
    assert_eq!((interest.kind, interest.subscribe), (SERVICE_TYPE, vec!["order".to_owned()]));
    let (interest, refused) = writer.apply(service(&["order"]));
    assert_eq!((refused, interest.len(), interest[0].kind), (None, 1, ENDPOINTS_TYPE));
    writer.apply(endpoints("1", &["10.0.0.1"]));
    assert!(lookup.await.unwrap());
    assert_eq!(served(&directory), 1);
    (directory, writer)
}

#[tokio::test]
async fn removals_are_held_back_after_a_reconnect() {
    let (directory, mut writer) = knowing().await;
    // On the first connection there was nothing that could have been forgotten.
    writer.apply(endpoints("2", &[]));
    assert_eq!(served(&directory), 0);
    writer.apply(endpoints("3", &["10.0.0.1"]));

    writer.set_connected(false);
    writer.set_connected(true);
    writer.apply(endpoints("4", &[]));
    assert_eq!(served(&directory), 1, "it may have lost its memory");
    assert!(writer.sweep().is_empty());
    assert_eq!(served(&directory), 1);
    // The time for a correction is over.
    writer.distrust_empty_until = Some(Instant::now());
    writer.sweep();
    assert_eq!(served(&directory), 0);

    // A correction is applied at once, and the change that was held back is dropped.
    writer.apply(endpoints("5", &["10.0.0.1"]));
    writer.set_connected(true);
    writer.apply(response(ENDPOINTS_TYPE, Vec::new(), &[HOST]));
    writer.apply(endpoints("6", &["10.0.0.1", "10.0.0.2"]));
    writer.distrust_empty_until = Some(Instant::now());
    writer.sweep();
    assert_eq!(served(&directory), 2);
}

#[tokio::test]
async fn look_ups_end_when_the_control_plane_is_away_or_the_service_is_refused() {
    let (directory, mut writer) = new(Default::default(), None, &[]);
    writer.set_connected(true);
    let reader = directory.clone();
    let queued = tokio::spawn(async move { reader.lookup("240.240.0.9:80").await });
    tokio::task::yield_now().await;
    let start = Instant::now();
    writer.set_connected(false);
    assert!(matches!(queued.await.unwrap(), Lookup::Unknown));

    writer.set_connected(true);
    let reader = directory.clone();
    let waiting = tokio::spawn(async move { reader.lookup("240.240.0.1:80").await });
    writer.next_interest().await.unwrap();
    let bad = v1::Service { host: "not a host name".into(), ..Default::default() };
    let bad = resource(SERVICE_TYPE, HOST, &["240.240.0.1:80"], "1", &bad);
    let (_, refused) = writer.apply(response(SERVICE_TYPE, vec![bad], &[]));
    assert!(refused.is_some());
    assert!(matches!(waiting.await.unwrap(), Lookup::Unknown));
    assert!(start.elapsed() < std::time::Duration::from_secs(1));
}

#[tokio::test]
async fn the_locality_of_the_pod_places_a_sidecar_without_one() {
    let inbound = |version: &str, locality: &str| {
        let message =
            v1::Inbound { locality: locality.into(), mtls: v1::MtlsMode::Permissive.into(), ..Default::default() };
        response(INBOUND_TYPE, vec![resource(INBOUND_TYPE, SELF, &[], version, &message)], &[])
    };
    let cluster = |directory: &Directory| match directory.known("order") {
        Some(Lookup::Service(view)) => view.clusters[0].clone(),
        _ => panic!("order is unknown"),
    };
    let (directory, mut writer) = knowing().await;
    let before = cluster(&directory);
    writer.apply(inbound("1", "eu/a"));
    let placed = cluster(&directory);
    assert!(!placed.is_at(&Arc::default()) && &*writer.location.locality == "eu/a");
    assert!(!Arc::ptr_eq(&before, &placed), "its balancer has to know");
    writer.apply(inbound("2", "eu/a"));
    assert!(Arc::ptr_eq(&placed, &cluster(&directory)), "nothing changed");

    let location = Location { locality: "us/b".into(), ..Location::default() };
    let (_, mut configured) = new(location, None, &[]);
    configured.apply(inbound("1", "eu/a"));
    assert_eq!(&*configured.location.locality, "us/b", "the setting of the sidecar counts");
}
