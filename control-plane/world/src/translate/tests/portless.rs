//! Instances that were registered without a port.

use std::collections::BTreeMap;

use super::*;

#[test]
fn an_instance_without_a_port_is_an_endpoint_only_where_a_document_names_the_port() {
    let portless = instance("order-service", "order-3", "10.0.0.3", 0);
    let addresses = |policies: &str| -> Vec<(String, u32)> {
        let world = world(policies, &[orders(), vec![portless.clone()]].concat());
        let endpoints = endpoints(&world, ORDER).unwrap().endpoints;
        endpoints.into_iter().map(|endpoint| (endpoint.address, endpoint.port)).collect()
    };
    let served = |policies: &str| -> Vec<u32> {
        let world = world(policies, std::slice::from_ref(&portless));
        let inbound = inbound(&world, "default", &BTreeMap::new(), &[portless.key()]);
        inbound.services.iter().map(|service| service.port).collect()
    };
    let with_ports = [("10.0.0.1".to_owned(), 8080), ("10.0.0.2".to_owned(), 8080)];
    assert_eq!((addresses(""), served("")), (with_ports.to_vec(), vec![]));
    let by_name = doc("Service", "order-service", "default", "{ports: [{name: http, port: 80, targetPort: web}]}");
    assert_eq!((addresses(&by_name), served(&by_name)), (with_ports.to_vec(), vec![]));
    let by_number = doc("Service", "order-service", "default", "{ports: [{name: http, port: 80, targetPort: 8080}]}");
    assert_eq!((addresses(&by_number).len(), served(&by_number)), (3, vec![8080]));
    // Settings of the one registered port still find it.
    let world = world(ISSUE, &[orders(), vec![portless]].concat());
    assert_eq!(crate::world::ports::of(&world, world.host(ORDER).unwrap())[0].policy_number, 8080);
}
