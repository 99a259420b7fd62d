//! Kubernetes Services without a virtual IP: headless ones, and those that stand for another host.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::json;
use weft_tests::{Mesh, Pod, Process, wait_for};

use crate::Scenario;
use crate::operations::{SOON, put};
use crate::outside::name_server;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        a_headless_service_leaves_the_choice_of_the_endpoint_to_its_clients,
        an_external_name_resolves_and_routes_to_its_target,
    ]
}

const DB: &str = "
apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  clusterIP: None
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: tcp, port: 81, targetPort: 8080}
  - {name: tcp-routed, port: 82, targetPort: 8080}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db}
spec:
  hosts: [db]
  http:
  - match: [{uri: {prefix: /closed}}]
    directResponse: {status: 418}
  - route:
    - destination: {host: db}
      headers: {request: {set: {x-routed: 'yes'}}}
  tcp:
  - match: [{port: 82}]
    route: [{destination: {host: order-service, port: {number: 80}}}]
";

/// A pod with an instance of `db` that is registered under its name.
fn endpoint(mesh: &Mesh, name: &str) -> Result<(Process, Process, Pod)> {
    let pod = mesh.pod(name)?;
    let app = pod.serve(8080, name)?;
    let sidecar = mesh.sidecar_with_redirection(&pod, "db", &[])?;
    ensure!(put(&pod, "service/register", &json!({"name": "db", "id": name, "port": 8080}))? == "200");
    mesh.wait_healthy(&pod.ip)?;
    Ok((app, sidecar, pod))
}

/// The answer to a query at the pod's own name server.
fn dig(pod: &Pod, name: &str) -> Result<BTreeSet<String>> {
    let text = pod.run("dig", &["+short", "+tries=1", "+time=5", name])?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn dig_until(pod: &Pod, name: &str, want: &[&str]) -> Result<()> {
    wait_for(name, SOON, || {
        let found = dig(pod, name)?;
        ensure!(found == want.iter().map(|text| (*text).to_owned()).collect(), "{name}: {found:?}, not {want:?}");
        Ok(())
    })
}

/// An SRV query has a target at each of `addresses`, with the instances' own port, and that address in the additional section.
fn places(pod: &Pod, name: &str, addresses: &[&str]) -> Result<()> {
    let query = ["+tries=1", "+time=5", "+noall", "+answer", "+additional", "SRV", name];
    let text = pod.run("dig", &query)?;
    let fields = |kind: &str| -> Vec<Vec<&str>> {
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.filter(|fields| fields.get(3) == Some(&kind)).collect()
    };
    let mut found = BTreeSet::new();
    for place in fields("SRV") {
        ensure!(place[4..7] == ["0", "50", "8080"], "{text}");
        let along: Vec<String> = fields("A").iter().filter(|of| of[0] == place[7]).map(|of| of[4].to_owned()).collect();
        ensure!(along.len() == 1 && dig(pod, place[7])? == along.iter().cloned().collect(), "{text}");
        found.extend(along);
    }
    ensure!(found == addresses.iter().map(|text| (*text).to_owned()).collect(), "{name}: {text}");
    Ok(())
}

fn a_headless_service_leaves_the_choice_of_the_endpoint_to_its_clients() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy("db.yaml", DB)?;
    let (_app0, _sidecar0, db0) = endpoint(&mesh, "db-0")?;
    let (_app1, _sidecar1, db1) = endpoint(&mesh, "db-1")?;
    let _order = mesh.instance("order1", "order-service", 8080, &[])?;
    let front = mesh.pod("frontend")?;
    front
        .resolv_conf("nameserver 192.0.2.53\nsearch default.svc.cluster.local svc.cluster.local\noptions ndots:5\n")?;
    let _sidecar = mesh.sidecar_with_redirection(&front, "frontend", &["--workload", "frontend"])?;

    dig_until(&front, "db.default.svc.cluster.local", &[&db0.ip, &db1.ip])?;
    dig_until(&front, "db-0.db.default.svc.cluster.local", &[&db0.ip])?;
    dig_until(&front, "db-1.db.default.svc.cluster.local", &[&db1.ip])?;
    for port in ["http", "tcp"] {
        places(&front, &format!("_{port}._tcp.db.default.svc.cluster.local"), &[&db0.ip, &db1.ip])?;
    }
    places(&front, "_none._tcp.db.default.svc.cluster.local", &[])?;
    // Each endpoint by its own name, over mutual TLS, by the routes of the service.
    for (pod, name) in [(&db0, "db-0"), (&db1, "db-1")] {
        for url in [format!("http://{name}.db/"), format!("http://{name}.db.default.svc.cluster.local/")] {
            wait_for("the endpoint by its name", SOON, || {
                let answer = front.curl(&[&url])?;
                ensure!(answer.contains(&format!("\"name\": \"{name}\"")), "{url}: {answer}");
                Ok(())
            })?;
        }
        // And by its address: always the endpoint of the client's choice.
        let (resolve, url) = (format!("db:80:{}", pod.ip), "http://db/");
        for _ in 0..10 {
            let answer = front.curl(&["--resolve", &resolve, url])?;
            ensure!(answer.contains(&format!("\"name\": \"{name}\"")), "{answer}");
            ensure!(
                answer.to_lowercase().contains("x-forwarded-client-cert") && answer.contains("/sa/frontend"),
                "{answer}"
            );
            ensure!(answer.to_lowercase().contains("x-routed"), "{answer}");
        }
        let answer = front.curl(&["-i", "--resolve", &resolve, "http://db/closed"])?;
        ensure!(answer.contains(" 418 "), "{answer}");
        // TCP too, at the Service's port and at the instance's own.
        for port in ["81", "8080"] {
            let answer = front.curl(&["-H", "Host: none", &format!("http://{}:{port}/", pod.ip)])?;
            ensure!(answer.contains(&format!("\"name\": \"{name}\"")), "{port}: {answer}");
        }
    }
    // A TCP route takes precedence over the original destination.
    wait_for("the route of connections", SOON, || {
        let answer = front.curl(&["-H", "Host: none", &format!("http://{}:82/", db0.ip)])?;
        ensure!(answer.contains("\"name\": \"order1\""), "{answer}");
        Ok(())
    })?;
    // The resolver of the C library finds both.
    let addresses = front.run("getent", &["ahostsv4", "db"])?;
    ensure!(addresses.contains(&db0.ip) && addresses.contains(&db1.ip), "{addresses}");
    let explanation = mesh.weftctl(&["route", "--from", "frontend", "http://db/"])?;
    ensure!(explanation.contains("headless"), "{explanation}");

    ensure!(put(&db0, "service/deregister/db-0", &json!({}))? == "200");
    dig_until(&front, "db.default.svc.cluster.local", &[&db1.ip])?;
    dig_until(&front, "db-0.db.default.svc.cluster.local", &[])
}

const NAMES: &str = "
apiVersion: v1
kind: Service
metadata: {name: store}
spec: {type: ExternalName, externalName: shop.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {type: ExternalName, externalName: order-service.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: api.example.com}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order}
spec:
  hosts: [order-service]
  http:
  - match: [{uri: {prefix: /closed}}]
    directResponse: {status: 418}
  - route: [{destination: {host: order-service}}]
";

fn an_external_name_resolves_and_routes_to_its_target() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let _order = mesh.instance("order1", "order-service", 8080, &[])?;
    let vip = mesh.vip("order-service")?;
    let outside = mesh.pod("outside")?;
    let _app = outside.serve(80, "outside")?;
    let names = mesh.pod("names")?;
    let (_file, server) = name_server(&names, &json!({"api.example.com": [outside.ip]}))?;
    mesh.policy("names.yaml", NAMES)?;
    let front = mesh.pod("frontend")?;
    front.resolv_conf(&format!("nameserver {}\nsearch default.svc.cluster.local\n", names.ip))?;
    let _sidecar = mesh.sidecar_with_redirection(&front, "frontend", &[])?;

    dig_until(&front, "store.default.svc.cluster.local", &[&vip])?;
    dig_until(&front, "outside.default.svc.cluster.local", &["api.example.com.", &outside.ip])?;
    // Over two aliases, with the routes of the target.
    let answer = front.curl(&["http://store/"])?;
    ensure!(answer.contains("\"name\": \"order1\""), "{answer}");
    let answer = front.curl(&["-i", "http://store/closed"])?;
    ensure!(answer.contains(" 418 "), "{answer}");
    let answer = front.curl(&["http://outside/"])?;
    ensure!(answer.contains("\"name\": \"outside\""), "{answer}");
    let queries = server.output();
    ensure!(!queries.contains("svc.cluster.local"), "a name of the mesh left it: {queries}");

    // A loop of aliases is refused, and the last valid version stays.
    mesh.policy("names.yaml", &NAMES.replace("externalName: order-service", "externalName: store"))?;
    wait_for("the loop", SOON, || {
        let status = mesh.status();
        ensure!(status.contains("which is a loop"), "{status}");
        Ok(())
    })?;
    let answer = front.curl(&["http://store/"])?;
    ensure!(answer.contains("\"name\": \"order1\""), "{answer}");
    Ok(())
}
