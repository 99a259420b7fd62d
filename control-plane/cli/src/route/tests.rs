use clap::Parser;
use serde_json::Value;

use super::*;

mod gateways;

const SHOP: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order}
spec:
  hosts: [order]
  http:
  - name: front
    match: [{sourceLabels: {app: front}}]
    route: [{destination: {host: order, subset: v2}}]
  - match: [{uri: {prefix: /moved}}]
    redirect: {uri: /}
  - match: [{uri: {prefix: /pay}}]
    route: [{destination: {host: pay.test}}]
  - match: [{uri: {prefix: /api}}]
    route: [{destination: {host: order, subset: v1}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: order}
spec:
  host: order
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: pay}
spec:
  hosts: [pay.test]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.9.0.1, locality: eu/a}, {address: 10.9.0.2, locality: us/a}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: pay}
spec:
  host: pay.test
  trafficPolicy: {outlierDetection: {}, loadBalancer: {consistentHash: {httpHeaderName: u}}}
";

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    route: Route,
}

/// Runs the command with `text` in a file, whose folder is cut from the output; an error is printed, with the exit
/// status 1.
fn run(text: &str, args: &[&str]) -> (String, ExitCode) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("p.yaml");
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let command = Command::try_parse_from([&["route", "-f", &file], args].concat()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut out = Vec::new();
    let code = runtime.block_on(command.route.run(&mut out)).unwrap_or_else(|error| {
        writeln!(out, "{error:#}").unwrap();
        ExitCode::FAILURE
    });
    (
        anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap())
            .to_string()
            .replace(&format!("{}/", directory.path().display()), ""),
        code,
    )
}

#[test]
fn an_explanation_in_words() {
    let (out, code) = run(SHOP, &["order/pay?x=1", "--locality", "eu/a", "-H", "u: 7"]);
    let want = "\
GET http://order/pay?x=1, from a client of namespace default, locality eu/a
host      order is order.default.svc.cluster.local: a service of the caller's namespace
port      any (the host declares none): detected by the first bytes
route     VirtualService/default/order: http[2], match[0]
          not http[0] \"front\": it is for callers with the labels app=front
          not http[1]: path \"/pay\" is not prefix \"/moved\"
          retries: 2 on connect-failure,refused-stream,cancelled,unavailable
to        100 %: pay.test port 80
          policy: DestinationRule/default/pay
          balancer: ring hash by header u, 1024 entries at least; localities: the nearest first
          outlier detection: consecutive5xxErrors=5 interval=10s baseEjectionTime=30s maxEjectionPercent=10
          TLS: mutual if the endpoint has a sidecar, else plaintext
       -> 10.9.0.1:80           healthy, level 0, weight 1, plaintext, locality eu/a
          10.9.0.2:80           healthy, level 1, weight 1, plaintext, locality us/a
          100 % to level 0, 0 % to level 1
          by header u: 10.9.0.1:80
note      no document here defines the host: it is assumed to be registered
result    forwarded to an endpoint
";
    assert_eq!((out.as_str(), code), (want, ExitCode::SUCCESS));
    let (out, _) = run(SHOP, &["order/pay", "--from", "lab/tester", "--label", "app=front"]);
    let want = "GET http://order/pay, from tester of namespace lab, labels app=front\nhost      order is \
                order.default.svc.cluster.local: a service of namespace default: the caller's namespace has none of this name\n";
    assert!(out.starts_with(want), "{out}");
}

#[test]
fn the_last_line_and_the_exit_status() {
    let open = "forwarded to a registered endpoint (files do not show which)";
    for (args, result, code) in [
        (&["order/api"][..], open, ExitCode::SUCCESS),
        (&["order/any", "--label", "app=front"], open, ExitCode::SUCCESS),
        (&["order/moved/x"], "answered 301 by redirect", ExitCode::SUCCESS),
        (&["pay.test/"], "forwarded to an endpoint", ExitCode::SUCCESS),
        (&["order/none"], "404 NR, no_route", ExitCode::FAILURE),
        (&["order/api", "-X", "POST", "-H", "host: pay.test:80"], "forwarded to an endpoint", ExitCode::SUCCESS),
        (&["absent/"], "unknown host: passed through", ExitCode::FAILURE),
        (&["order:x/"], "\"order:x/\": \"x\" is not a port (1 to 65535)", ExitCode::FAILURE),
        (&["order/", "-H", "x"], "-H: \"x\" is not a name, a ':' and a value", ExitCode::FAILURE),
        (&["order/", "--label", "x"], "--label: \"x\" is not a name, a '=' and a value", ExitCode::FAILURE),
        (&["order/", "--locality", "a//b"], "--locality: \"a//b\" is not REGION[/ZONE[/SUBZONE]]", ExitCode::FAILURE),
        (
            &["order/", "--from", "a."],
            "--from: \"a.\" is not NAME, NAME.NAMESPACE or NAMESPACE/NAME",
            ExitCode::FAILURE,
        ),
    ] {
        let (out, exit) = run(SHOP, args);
        let last = out.lines().last().unwrap();
        assert_eq!((last.trim_start_matches("result    "), exit), (result, code), "{args:?}");
    }
}

#[test]
fn an_explanation_in_json() {
    let (out, code) = run(SHOP, &["order/pay", "-o", "json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, ExitCode::SUCCESS);
    assert_eq!(report["routes"]["taken"]["route"], "http[2]");
    assert_eq!(report["destinations"][0]["endpoints"][1]["address"], "10.9.0.2:80");
    assert_eq!(report["verdict"]["is"], "served");
    assert_eq!(report, serde_json::to_value(serde_json::from_str::<Explanation>(&out).unwrap()).unwrap());
}

#[test]
fn files_with_errors_are_reported_as_by_validate() {
    let (out, code) = run(&SHOP.replace("subset: v1}", "subset: v3}"), &["order/api"]);
    let want = "p.yaml:16:49: error: the DestinationRule of `order.default.svc.cluster.local` has no subset `v3`; it has v1, v2\n";
    assert!(out.starts_with(want) && out.ends_with("1 file: 1 error, 0 warnings\n"), "{out}");
    assert_eq!(code, ExitCode::FAILURE);
    let parsed = Command::try_parse_from(["route", "order/", "--label", "a=b"]);
    assert!(parsed.is_err(), "options for files are refused for a live workload");
}
