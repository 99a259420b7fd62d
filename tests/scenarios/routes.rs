//! Routes of a VirtualService, observed at both ends; unknown destinations; the access log.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::{Mesh, Pod, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        routes_match_change_redirect_and_answer,
        routes_and_rules_for_some_clients,
        faults_and_cors,
        mirrors_and_delegates,
        unknown_destinations_and_the_access_log,
    ]
}

const ROUTES: &str = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order}
spec:
  hosts: [order-service]
  http:
  - name: old
    match: [{uri: {prefix: /old/}}]
    redirect: {uri: /new, redirectCode: 302}
  - match: [{uri: {exact: /teapot}}]
    directResponse: {status: 418, body: {string: short and stout}}
  - match: [{uri: {regex: "/v[0-9]+/items"}, method: {exact: POST}}]
    headers:
      request: {set: {x-set: "%REQ(x-from)%"}, add: {x-added: one}, remove: [x-secret]}
      response: {set: {x-answered-by: mesh}, remove: [server]}
    rewrite: {uri: /rewritten}
    route: [{destination: {host: order-service}}]
  - match:
    - {queryParams: {kind: {exact: special}}}
    - {headers: {x-kind: {regex: "spec.*"}}}
    - {authority: {prefix: special.}}
    rewrite: {authority: other.test}
    route: [{destination: {host: order-service}}]
  - match: [{uri: {prefix: /api}, ignoreUriCase: true}]
    rewrite: {uri: /internal}
    route: [{destination: {host: order-service}}]
  - match: [{uri: {prefix: /plain}}]
    route: [{destination: {host: order-service}}]
"#;

fn routes_match_change_redirect_and_answer() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy("order.yaml", ROUTES)?;
    let _order = mesh.instance("order1", "order-service", 8080, &[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let get = |path: &str, more: &[&str]| {
        let url = format!("http://{vip}{path}");
        front.curl(&[&["-i", "-H", "Host: order-service"], more, &[url.as_str()]].concat())
    };
    wait_for("the routes", Duration::from_secs(10), || {
        let answer = get("/teapot", &[])?;
        ensure!(answer.starts_with("HTTP/1.1 418") && answer.ends_with("short and stout"), "{answer}");
        Ok(())
    })?;
    let answer = get("/old/thing", &[])?;
    ensure!(answer.starts_with("HTTP/1.1 302") && answer.contains("http://order-service/new\r\n"), "{answer}");

    let answer = get("/v12/items", &["-X", "POST", "-H", "x-from: me", "-H", "x-secret: 1"])?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
    let body: Value = serde_json::from_str(body)?;
    let sent = |name: &str| -> Vec<String> {
        let all = body["headers"].as_array().into_iter().flatten();
        let ours = all.filter(|h| h[0].as_str().is_some_and(|n| n.eq_ignore_ascii_case(name)));
        ours.filter_map(|h| h[1].as_str().map(str::to_owned)).collect()
    };
    ensure!(body["path"] == "/rewritten", "{body}");
    ensure!(sent("x-set") == ["me"] && sent("x-added") == ["one"] && sent("x-secret").is_empty(), "{body}");
    ensure!(head.contains("x-answered-by: mesh") && !head.to_lowercase().contains("\r\nserver:"), "{head}");
    ensure!(get("/v12/items", &[])?.starts_with("HTTP/1.1 404"), "a GET matches no route");

    for (path, more) in [("/?kind=special", vec![]), ("/", vec!["-H", "x-kind: special"])] {
        let answer = get(path, &more)?;
        ensure!(answer.contains("\"other.test\""), "{path}: {answer}");
    }
    let answer = get("/API/list?x=1", &[])?;
    ensure!(answer.contains("\"path\": \"/internal/list?x=1\""), "{answer}");
    ensure!(get("/plain", &[])?.starts_with("HTTP/1.1 200"));
    let none = get("/nothing", &[])?;
    ensure!(none.starts_with("HTTP/1.1 404") && none.contains("x-weft-reason: no_route"), "{none}");
    Ok(())
}

/// Lines of the JSON access log in a sidecar's output.
fn lines(output: &str) -> Vec<Value> {
    output.lines().filter(|l| l.starts_with('{')).filter_map(|l| serde_json::from_str(l).ok()).collect()
}

fn unknown_destinations_and_the_access_log() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let outside = mesh.pod("outside")?;
    let _app = outside.serve(8080, "outside")?;
    let client = |name: &str, args: &[&str]| -> Result<_> {
        let pod = mesh.pod(name)?;
        let all = [&["--workload", name, "--access-log", "-"], args].concat();
        let sidecar = mesh.sidecar_with_redirection(&pod, name, &all)?;
        Ok((pod, sidecar))
    };
    let (front, sidecar) = client("frontend", &[])?;
    let (strict, _strict_sidecar) = client("strict", &["--outbound-traffic", "registry-only"])?;
    let vip = mesh.vip("order-service")?;
    let get = |pod: &Pod, to: &str, host: &str| {
        let host = format!("Host: {host}");
        pod.curl(&["-i", "-H", &host, "-H", "x-request-id: abc-123", &format!("http://{to}/path?q=1")])
    };
    let passed = get(&front, &format!("{}:8080", outside.ip), "www.example.com")?;
    ensure!(passed.contains("\"outside\""), "passthrough of an unknown destination: {passed}");
    let refused = get(&strict, &format!("{}:8080", outside.ip), "www.example.com")?;
    ensure!(refused.starts_with("HTTP/1.1 502") && refused.contains("x-weft-reason: unknown_host"), "{refused}");
    ensure!(get(&strict, &vip, "order-service")?.starts_with("HTTP/1.1 200"), "the mesh is known");
    ensure!(get(&front, &vip, "order-service")?.starts_with("HTTP/1.1 200"));
    let line = wait_for("the line", Duration::from_secs(5), || {
        let lines = lines(&sidecar.output());
        lines.into_iter().find(|l| l["upstream_cluster"].as_str().is_some_and(|c| c.contains("order"))).context("none")
    })?;
    for (field, value) in [
        ("method", "GET"),
        ("path", "/path?q=1"),
        ("authority", "order-service"),
        ("protocol", "HTTP/1.1"),
        ("request_id", "abc-123"),
        ("response_flags", "-"),
        ("upstream_host", &format!("{}:8080", order.pod.ip)),
        ("source_principal", "spiffe://cluster.local/ns/default/sa/frontend"),
        ("destination_principal", "spiffe://cluster.local/ns/default/sa/order-service"),
    ] {
        ensure!(line[field] == value, "{field}: {line}");
    }
    ensure!(line["response_code"] == 200 && line["duration_ms"].as_f64() > Some(0.0), "{line}");
    // A client that disconnects before the response.
    let url = format!("http://{vip}/sleep/2000");
    let gone = front.curl(&["-H", "Host: order-service", "--max-time", "0.3", &url]);
    ensure!(gone.is_err(), "{gone:?}");
    wait_for("its line", Duration::from_secs(5), || {
        let lines = lines(&sidecar.output());
        let line = lines.into_iter().find(|l| l["path"] == "/sleep/2000").context("none")?;
        ensure!(line["response_flags"] == "DC" && line["response_code"] == 0, "{line}");
        Ok(())
    })
}

const FOR_SOME: &str = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order}
spec:
  hosts: [order-service]
  http:
  - match: [{sourceLabels: {tier: web}, uri: {prefix: /client}}]
    directResponse: {status: 200, body: {string: the web}}
  - match: [{sourceNamespace: elsewhere}]
    directResponse: {status: 200, body: {string: elsewhere}}
  - match: [{port: 81}]
    directResponse: {status: 200, body: {string: port 81}}
  - match: [{uri: {prefix: /client}, withoutHeaders: {x-known: {exact: "yes"}}, scheme: {exact: http}}]
    directResponse: {status: 200, body: {string: unknown client}}
  - route: [{destination: {host: order-service}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec:
  host: order-service
  workloadSelector: {matchLabels: {tier: web}}
  trafficPolicy:
    tls: {mode: DISABLE}
"#;

/// Two clients of one namespace have different routes and rules, by their labels.
fn routes_and_rules_for_some_clients() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy("order.yaml", FOR_SOME)?;
    let _order = mesh.instance("order1", "order-service", 8080, &[])?;
    let vip = mesh.vip("order-service")?;
    let client = |name: &str, labels: &[&str]| -> Result<(Pod, weft_tests::Process)> {
        let pod = mesh.pod(name)?;
        let sidecar = mesh.sidecar_with_redirection(&pod, name, labels)?;
        Ok((pod, sidecar))
    };
    let (web, _web_sidecar) = client("web", &["--label", "tier=web"])?;
    let (batch, _batch_sidecar) = client("batch", &["--label", "tier=batch"])?;
    let ask = |pod: &Pod, port: u16, headers: &[&str]| -> Result<String> {
        let url = format!("http://{vip}:{port}/client");
        let headers = headers.iter().flat_map(|header| ["-H", header]);
        pod.curl(&[&["-H", "Host: order-service"][..], &headers.collect::<Vec<_>>(), &[&url]].concat())
    };
    for (pod, port, headers, wanted) in [
        (&web, 80, &[][..], "the web"),
        (&batch, 80, &[], "unknown client"),
        (&batch, 80, &["x-known: no"], "unknown client"),
        (&batch, 80, &["x-known: yes"], "sa/batch"),
        (&batch, 81, &["x-known: yes"], "port 81"),
    ] {
        let answer = ask(pod, port, headers)?;
        ensure!(answer.contains(wanted), "{port} {headers:?}: {answer}, not {wanted}");
    }
    // Plaintext from one client, which then has no identity, mTLS from the other.
    let call = |pod: &Pod| pod.curl(&["-f", "-H", "Host: order-service", &format!("http://{vip}/")]);
    let (of_web, of_batch) = (call(&web)?, call(&batch)?);
    ensure!(!of_web.contains("sa/web") && of_batch.contains("sa/batch"), "{of_web} {of_batch}");
    // Labels of a registered instance count too: the client then matches other routes.
    let registration = r#"{"name": "batch", "port": 9, "tags": ["tier=web"], "meta": {"tier": "web"}}"#;
    batch.curl(&["-f", "-X", "PUT", "-d", registration, "http://127.0.0.1:8500/v1/agent/service/register"])?;
    wait_for("the other routes", Duration::from_secs(10), || {
        let answer = ask(&batch, 80, &[])?;
        ensure!(answer.contains("the web"), "{answer}");
        Ok(())
    })
}

const FAULTS: &str = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order}
spec:
  hosts: [order-service]
  http:
  - match: [{uri: {prefix: /slow}}]
    fault: {delay: {fixedDelay: 700ms, percentage: {value: 100}}}
    # It counts from after the delay.
    timeout: 500ms
    route: [{destination: {host: order-service}}]
  - match: [{uri: {prefix: /half}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 50}}}
    route: [{destination: {host: order-service}}]
  - match: [{uri: {prefix: /gone}}]
    fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}
    route: [{destination: {host: order-service}}]
    retries: {attempts: 3, retryOn: 5xx}
  - match: [{uri: {prefix: /cors}}]
    corsPolicy:
      allowOrigins: [{exact: "https://a.example"}]
      allowMethods: [GET, PUT]
      allowHeaders: [x-token]
      exposeHeaders: [x-shown]
      maxAge: 1h
      allowCredentials: true
    route: [{destination: {host: order-service}}]
  - route: [{destination: {host: order-service}}]
"#;

fn faults_and_cors() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy("order.yaml", FAULTS)?;
    let _order = mesh.instance("order1", "order-service", 8080, &[])?;
    let (pod, sidecar) = mesh.client_with("frontend", &["--access-log", "-"])?;
    let vip = mesh.vip("order-service")?;
    let ask = |path: &str, more: &[&str]| -> Result<String> {
        let url = format!("http://{vip}{path}");
        Ok(pod.curl(&[&["-i", "-H", "Host: order-service"][..], more, &[&url]].concat())?.to_lowercase())
    };
    let start = std::time::Instant::now();
    let slow = ask("/slow", &[])?;
    let took = start.elapsed();
    ensure!(slow.contains(" 200 ") && took >= Duration::from_millis(700), "{took:?} {slow}");
    let plan =
        serde_json::json!({"url": format!("http://{vip}/half"), "count": 400, "headers": {"Host": "order-service"}});
    let statuses = weft_tests::statuses(&pod.requests(&plan)?);
    let aborted = statuses.get(&418).copied().unwrap_or_default();
    ensure!((140..260).contains(&aborted) && aborted + statuses[&200] == 400, "{statuses:?}");
    let gone = ask("/gone", &[])?;
    ensure!(gone.contains(" 503 ") && gone.ends_with("fault filter abort"), "{gone}");
    ensure!(gone.contains("x-weft-reason: fault_injected; policy=virtualservice/default/order"), "{gone}");
    let grpc = ask("/gone", &["-H", "content-type: application/grpc"])?;
    ensure!(grpc.contains(" 200 ") && grpc.contains("grpc-status: 14"), "{grpc}");

    let origin = ["-H", "Origin: https://a.example"];
    let question = ["-X", "OPTIONS", "-H", "Access-Control-Request-Method: PUT"];
    let preflight = ask("/cors", &[&origin[..], &question].concat())?;
    for header in
        ["allow-origin: https://a.example", "allow-methods: get,put", "allow-headers: x-token", "max-age: 3600"]
    {
        ensure!(preflight.contains(&format!("access-control-{header}")), "{header}: {preflight}");
    }
    ensure!(preflight.contains(" 200 ") && !preflight.contains("order1"), "it is answered by the sidecar: {preflight}");
    let actual = ask("/cors", &origin)?;
    ensure!(actual.contains("access-control-expose-headers: x-shown") && actual.contains("order1"), "{actual}");
    let other = ask("/cors", &["-H", "Origin: https://b.example"])?;
    ensure!(!other.contains("access-control") && other.contains("order1"), "{other}");
    let log = sidecar.output();
    ensure!(log.contains("\"DI\"") && log.contains("\"FI\""), "{log}");
    Ok(())
}

const COPIES: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order}
spec:
  hosts: [order-service]
  http:
  - match: [{uri: {prefix: /half}}]
    route: [{destination: {host: order-service}}]
    mirrors:
    - {destination: {host: shadow-service}, percentage: {value: 25}}
    - {destination: {host: missing}}
  - match: [{uri: {prefix: /team}}]
    timeout: 5s
    delegate: {name: team}
  - rewrite: {uriRegexRewrite: {match: '/all/([a-z]+)', rewrite: '/\1/all'}}
    route: [{destination: {host: order-service}}]
    mirror: {host: shadow-service}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: team}
spec:
  http:
  - match: [{uri: {prefix: /team/a}}]
    directResponse: {status: 299, body: {string: BODY}}
";

/// Mirrored requests are complete and do not delay the original; their responses are dropped. A changed delegate takes effect.
fn mirrors_and_delegates() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let policy = |body: &str| mesh.policy("order.yaml", &COPIES.replace("BODY", body));
    policy("one")?;
    let _order = mesh.instance("order1", "order-service", 8080, &[])?;
    let shadow = mesh.instance("shadow1", "shadow-service", 8080, &[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let ask = |path: &str, more: &[&str]| {
        let url = format!("http://{vip}{path}");
        front.curl(&[&["-i", "-H", "Host: order-service"][..], more, &[&url]].concat())
    };
    let seen = |part: &str| -> Result<Vec<Value>> {
        let all: Vec<Value> = serde_json::from_str(&shadow.pod.curl(&["http://127.0.0.1:8080/seen"])?)?;
        Ok(all.into_iter().filter(|one| one[1].as_str().is_some_and(|path| path.contains(part))).collect())
    };
    let copied = |part: &str, count: usize| {
        wait_for("the copies", Duration::from_secs(10), || {
            let seen = seen(part)?;
            ensure!(seen.len() == count, "{seen:?}");
            Ok(seen)
        })
    };
    wait_for("the delegate", Duration::from_secs(10), || {
        let answer = ask("/team/a", &[])?;
        ensure!(answer.contains(" 299 ") && answer.ends_with("one"), "{answer}");
        Ok(())
    })?;
    policy("two")?;
    wait_for("the delegate's new answer", Duration::from_secs(10), || {
        ensure!(ask("/team/a", &[])?.ends_with("two"), "not yet");
        Ok(())
    })?;
    // The delegate has no route for it, and the next route matches all requests.
    ensure!(ask("/team/b", &[])?.contains("order1"), "the next route");
    copied("/team/b", 1)?;

    let body = "a line of text\n".repeat(20_000);
    let file = front.folder("body");
    std::fs::write(&file, &body)?;
    let file = format!("@{}", file.display());
    for (path, more) in [("/all/length", &[][..]), ("/all/chunked", &["-H", "Transfer-Encoding: chunked"])] {
        let answer = ask(path, &[&["--data-binary", &file][..], more].concat())?;
        let (_, own) = answer.split_once("\r\n\r\n").context("no body")?;
        let own: Value = serde_json::from_str(own.trim_start_matches("HTTP/1.1 100 Continue\r\n\r\n"))?;
        let one = copied(&format!("{}/all", &path[4..]), 1)?.remove(0);
        ensure!(one[0] == "POST" && one[2] == body.len() && one[3] == own["body_sha256"], "{one} {own}");
        ensure!(one[4] == "order-service" && own["path"] == one[1] && own["name"] == "order1", "{one} {own}");
    }
    // A slow mirror delays no request, and a failing one fails none.
    let start = std::time::Instant::now();
    let plan =
        serde_json::json!({"url": format!("http://{vip}/half"), "count": 400, "headers": {"Host": "order-service"}});
    let statuses = weft_tests::statuses(&front.requests(&plan)?);
    ensure!(statuses[&200] == 400, "{statuses:?}");
    wait_for("a quarter of the copies", Duration::from_secs(10), || {
        let count = seen("/half")?.len();
        ensure!((60..140).contains(&count), "{count}");
        Ok(())
    })?;
    shadow.app.signal("STOP")?;
    let slow = ask("/slow", &["--data", "x"])?;
    ensure!(slow.contains("order1") && start.elapsed() < Duration::from_secs(30), "{slow}");
    shadow.app.signal("CONT")?;
    copied("/slow", 1)?;
    Ok(())
}
