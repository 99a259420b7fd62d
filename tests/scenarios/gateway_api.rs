//! Routes of Kubernetes' Gateway API, in the mesh and at a gateway.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_tests::{Mesh, binary, wait_for};

use crate::Scenario;
use crate::certificates::Certificates;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![http_routes_in_the_mesh_and_at_a_gateway]
}

const ROUTES: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: order}
spec:
  parentRefs:
  - {group: "", kind: Service, name: order-service}
  - {name: public, sectionName: http}
  - {name: public, sectionName: shop}
  rules:
  - matches: [{path: {type: PathPrefix, value: /api/v2}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: order-service, port: 8000}]
  - matches: [{path: {value: /share}}]
    backendRefs: [{name: order-service, port: 8000}, {name: nothing, port: 80}]
  - matches: [{path: {value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: public}
spec:
  gatewayClassName: weft
  listeners:
  - {name: http, port: 8080, protocol: HTTP, hostname: "*.example.com"}
  - {name: other, port: 8080, protocol: HTTP, hostname: other.example.com}
  - {name: shop, port: 8443, protocol: HTTPS, hostname: shop.example.com, tls: {certificateRefs: [{name: shop}]}}
  - {name: admin, port: 8443, protocol: HTTPS, hostname: admin.example.com, tls: {certificateRefs: [{name: admin}]}}
"#;

fn http_routes_in_the_mesh_and_at_a_gateway() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let certificates = Certificates::new(&mesh.center.folder("certificates"))?;
    for name in ["shop", "admin"] {
        certificates.leaf(name, &format!("{name}.example.com"))?;
    }
    mesh.policy("order.yaml", ROUTES)?;
    let _order = mesh.instance("order1", "order-service", 8000, &[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let edge = mesh.pod("edge")?;
    let token = mesh.token("ingress")?.to_string_lossy().into_owned();
    let (control, data) = (format!("{}:15012", mesh.center.ip), edge.folder("data").to_string_lossy().into_owned());
    let label = "gateway.networking.k8s.io/gateway-name=public";
    let args = ["gateway", "--control-plane", &control, "--token-file", &token, "--data-dir", &data, "--label", label];
    let credentials = certificates.path("");
    let args = [&args[..], &["--credentials", &credentials]].concat();
    let process = edge.spawn("gateway", binary("weft-sidecar")?, &args)?;
    let outside = mesh.pod("outside")?;
    let (inner, outer) = (mesh.vip("order-service")?, format!("{}:8080", edge.ip));
    for (pod, address, host) in [(&front, &inner, "order-service"), (&outside, &outer, "shop.example.com")] {
        let get = |path: &str, show: &str| {
            let (url, host) = (format!("http://{address}{path}"), format!("Host: {host}"));
            pod.curl(&["-o", "/dev/null", "-w", show, "-H", &host, &url])
        };
        wait_for("the routes", Duration::from_secs(15), || {
            let status = get("/api/v2", "%{http_code}").map_err(|e| e.context(process.output()))?;
            ensure!(status == "200", "{status}");
            Ok(())
        })?;
        // Whole segments are matched and replaced.
        for (path, wanted) in [("/api/v2/a/b?c=d", "/a/b?c=d"), ("/api/v2/", "/"), ("/api/v2", "/")] {
            let answer = pod.curl(&["-H", &format!("Host: {host}"), &format!("http://{address}{path}")])?;
            ensure!(answer.contains(&format!("\"path\": \"{wanted}\"")), "{path}: {answer}");
        }
        for path in ["/api/v2x", "/api", "/"] {
            let status = get(path, "%{http_code}")?;
            ensure!(status == "404", "{path}: {status}");
        }
        // Half of the requests have a backend.
        let statuses: Vec<String> = (0..40).map(|_| get("/share", "%{http_code}")).collect::<Result<_>>()?;
        for wanted in ["200", "500"] {
            let count = statuses.iter().filter(|status| *status == wanted).count();
            ensure!((5..=35).contains(&count), "{wanted}: {statuses:?}");
        }
        let moved = get("/moved/a", "%{http_code} %{redirect_url}")?;
        let port = address.split_once(':').map_or(String::new(), |(_, port)| format!(":{port}"));
        ensure!(moved == format!("302 http://{host}{port}/new/a"), "{moved}");
    }
    // The listener with the more specific hostname has no route.
    let status = outside.curl(&[
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "-H",
        "Host: other.example.com",
        &format!("http://{outer}/api/v2"),
    ])?;
    ensure!(status == "404", "{status}");
    // TLS ends at the listener of the server name; a request for another listener's host came the wrong way.
    for (host, wanted) in [("shop", "200"), ("admin", "421"), ("none", "404")] {
        let (resolved, header) = (format!("shop.example.com:8443:{}", edge.ip), format!("Host: {host}.example.com"));
        let url = "https://shop.example.com:8443/api/v2/a";
        let ca = certificates.ca();
        let args = ["-o", "/dev/null", "-w", "%{http_code}", "--cacert", &ca, "--resolve", &resolved];
        let status = outside.curl(&[&args[..], &["-H", &header, url]].concat())?;
        ensure!(status == wanted, "{host}: {status}");
    }
    Ok(())
}
