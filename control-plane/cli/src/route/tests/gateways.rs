//! Requests through a gateway, and further settings of routes and destinations.

use super::*;

const EDGE: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: edge}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [old.example.com], tls: {httpsRedirect: true}}
  - {port: {number: 8080, name: plain, protocol: HTTP}, hosts: ['*.example.com']}
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [shop.example.com], tls: {mode: SIMPLE, credentialName: c}}
  - {port: {number: 443, name: pass, protocol: TLS}, hosts: [raw.example.com], tls: {mode: PASSTHROUGH}}
  - {port: {number: 443, name: mesh, protocol: HTTPS}, hosts: [in.example.com], tls: {mode: ISTIO_MUTUAL}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example.com]
  gateways: [edge]
  http:
  - name: login
    match: [{uri: {prefix: /login}, scheme: {exact: http}}]
    redirect: {scheme: https}
  - name: all
    headers: {request: {set: {x-by: 'edge %PROTOCOL%'}, remove: [x-secret]}, response: {add: {x-seen: '1'}}}
    corsPolicy: {allowOrigins: [{exact: 'https://a.test'}], allowMethods: [GET]}
    mirror: {host: pay.test}
    route:
    - {destination: {host: pay.test}, weight: 90}
    - {destination: {host: pay.test, port: {number: 80}}, weight: 10, headers: {request: {set: {':authority': b.test, x-b: '1'}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: raw}
spec:
  hosts: [raw.example.com]
  gateways: [edge]
  tls: [{match: [{sniHosts: [raw.example.com]}], route: [{destination: {host: pay.test}}]}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: pay}
spec:
  hosts: [pay.test]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.9.0.1}]
";

fn edge(args: &[&str]) -> (String, ExitCode) {
    run(EDGE, &[&["--gateway", "edge"], args].concat())
}

#[test]
fn a_request_through_a_gateway() {
    let (out, code) = edge(&["http://shop.example.com:8080/cart"]);
    assert_eq!(code, ExitCode::SUCCESS, "{out}");
    for line in [
        "GET http://shop.example.com:8080/cart, from outside through Gateway default/edge\n",
        "host      shop.example.com:8080: a host of Gateway/default/edge",
        "route     VirtualService/default/shop: http[1] \"all\"",
        "not http[0] \"login\": path \"/cart\" is not prefix \"/login\"",
        "headers.request.remove: x-secret\n",
        "headers.request.set: x-by: edge %PROTOCOL%\n",
        "headers.response.add: x-seen: 1\n",
        "corsPolicy.allowOrigins: exact \"https://a.test\"\n",
        "corsPolicy.allowMethods: GET\n",
        "mirror: 100 % to pay.test\n",
        "headers.request.set: x-b: 1\n",
        "result    forwarded to an endpoint",
    ] {
        assert!(out.contains(line), "{line}\n{out}");
    }
    let (out, _) = edge(&["http://shop.example.com:8080/login"]);
    assert!(out.contains("redirect: 301 to https://shop.example.com:8080/login\n"), "{out}");
    let (out, _) = edge(&["shop.example.com/login", "--tls"]);
    assert!(out.contains("http[1] \"all\"") && out.contains("scheme \"https\" is not exact \"http\""), "{out}");
}

#[test]
fn requests_that_a_gateway_refuses() {
    for (args, want) in [
        (&["http://old.example.com/"][..], "answered 301 by httpsRedirect"),
        (&["http://other.test:8080/"], "no VirtualService of the gateway has this host"),
        (&["http://shop.example.com:9999/"], "Gateway default/edge does not listen on port 9999"),
        (&["http://shop.example.com:443/"], "accepts TLS only (--tls or https://)"),
        (&["https://shop.example.com:8080/"], "accepts plaintext only"),
        (&["https://in.example.com/"], "accepts workloads of the mesh only (ISTIO_MUTUAL)"),
        (&["https://other.example.com/"], "no server of port 443 has the host other.example.com"),
    ] {
        let (out, _) = edge(args);
        assert!(out.contains(want), "{args:?}: {out}");
    }
    let (out, code) = run(EDGE, &["--gateway", "nowhere", "http://a/"]);
    assert!(out.contains("there is no Gateway default/nowhere") && code == ExitCode::FAILURE, "{out}");
    assert!(Command::try_parse_from(["route", "a/", "--tls"]).is_err(), "only a gateway ends TLS");
    assert!(Command::try_parse_from(["route", "a/", "--gateway", "g", "--from", "b"]).is_err());
}

#[test]
fn tls_that_a_gateway_passes_through() {
    let (out, code) = edge(&["https://raw.example.com/"]);
    assert!(out.starts_with("TLS to server name raw.example.com, port 443"), "{out}");
    assert!(out.contains("to        100 %: pay.test") && code == ExitCode::SUCCESS, "{out}");
}

#[test]
fn a_tcp_port_of_a_range_of_addresses_is_a_connection() {
    let range = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: databases}
spec:
  hosts: [db.test]
  addresses: [10.20.0.0/16]
  ports: [{number: 5432, name: tcp, protocol: TCP}]
";
    let (out, code) = run(range, &["10.20.3.4:5432"]);
    assert!(out.starts_with("a connection to 10.20.3.4:5432, port 5432") && code == ExitCode::SUCCESS, "{out}");
    assert!(out.contains("to        100 %: db.test port 5432"), "{out}");
}

#[test]
fn a_server_name_leads_to_hosts_that_it_names_itself() {
    let wild = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild}
spec:
  hosts: ['*.wild.test']
  ports: [{number: 443, name: tls, protocol: TLS}]
  resolution: DYNAMIC_DNS
";
    let (out, code) = run(wild, &["https://a.wild.test/"]);
    assert!(out.starts_with("TLS to server name a.wild.test") && code == ExitCode::SUCCESS, "{out}");
}
