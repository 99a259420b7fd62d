//! Findings that Istio's analysers report too.

use super::*;

fn gateway(name: &str, selector: &str, servers: &[&str]) -> String {
    doc("Gateway", name, &format!("{{selector: {selector}, servers: [{}]}}", servers.join(", ")))
}

#[test]
fn gateways_that_cannot_share_a_port() {
    let http = "{port: {number: 80, name: a, protocol: HTTP}, hosts: [a.b]}";
    let tcp = "{port: {number: 80, name: b, protocol: TCP}, hosts: [a.b]}";
    let got = check_texts(&[gateway("g", "{a: b}", &[http, tcp])]);
    let want =
        "error: port 80 speaks TCP here and HTTP at `servers[0]` of Gateway/default/g: the younger is not served";
    assert!(got.len() == 1 && got[0].ends_with(want), "{got:?}");
    let two = |one: &str, other: &str| check_texts(&[gateway("g", one, &[http]), gateway("h", other, &[tcp])]).len();
    assert_eq!(two("{a: b}", "{a: b}"), 1);
    assert_eq!(two("{a: b}", "{a: b, c: d}"), 1, "a workload may have all labels");
    assert_eq!(two("{}", "{a: b}"), 1, "every gateway");
    assert_eq!(two("{a: b}", "{a: c}"), 0);
    let https = "{port: {number: 443, name: a, protocol: HTTPS}, hosts: [a.b], tls: {mode: SIMPLE, credentialName: c}}";
    let pass = "{port: {number: 443, name: b, protocol: TLS}, hosts: [c.b], tls: {mode: PASSTHROUGH}}";
    assert_eq!(check_texts(&[gateway("g", "{a: b}", &[https, pass])]), [""; 0], "server names distinguish them");
    let bound = |bind: &str, name: &str| {
        format!("{{port: {{number: 80, name: {name}, protocol: HTTP}}, bind: '{bind}', hosts: [{name}.b]}}")
    };
    for (bind, conflicts) in [("0.0.0.0", true), ("::", true), ("10.0.0.1", false), ("10.0.0.2", false), ("::1", false)]
    {
        let got = check_texts(&[gateway("g", "{a: b}", &[&bound("10.0.0.1", "one"), &bound(bind, "two")])]);
        let found = got.iter().any(|found| found.contains("at all addresses and at one of them, as `servers[0]`"));
        assert!(found == conflicts && got.len() == usize::from(conflicts), "{bind}: {got:?}");
    }
    let other = bound("10.0.0.1", "c");
    assert_eq!(check_texts(&[gateway("g", "{a: b}", &[tcp, &other.replace("10.0.0.1", "::1")])]).len(), 1);
    let tcp = tcp.replace("hosts:", "bind: 10.0.0.2, hosts:");
    assert_eq!(check_texts(&[gateway("g", "{a: b}", &[&tcp, &other])]), [""; 0], "each has its own address");
}

#[test]
fn duplicate_hosts_and_certificates_of_servers_are_reported() {
    let https = |name: &str, host: &str, credential: &str| {
        format!(
            "{{port: {{number: 443, name: {name}, protocol: HTTPS}}, hosts: [{host}], tls: {{mode: SIMPLE, credentialName: {credential}}}}}"
        )
    };
    let got = check_texts(&[
        gateway("g", "{a: b}", &[&https("a", "a.b", "c")]),
        gateway("h", "{a: b}", &[&https("b", "a.b", "d")]),
    ]);
    assert!(
        got.len() == 1
            && got[0].contains("error: host `a.b` of port 443 is that of `servers[0]` of Gateway/default/g already"),
        "{got:?}"
    );
    let plain = |name: &str| gateway(name, "{a: b}", &["{port: {number: 80, name: a, protocol: HTTP}, hosts: [a.b]}"]);
    let got = check_texts(&[plain("g"), plain("h")]);
    assert!(got.len() == 1 && got[0].contains("warning: host `a.b` of port 80"), "{got:?}");
    let got = check_texts(&[gateway("g", "{a: b}", &[&https("a", "a.b", "c"), &https("b", "c.b", "c")])]);
    assert!(
        got.len() == 1 && got[0].contains("warning: the certificate is that of `servers[0]` of Gateway/default/g too"),
        "{got:?}"
    );
    assert_eq!(check_texts(&[gateway("g", "{a: b}", &[&https("a", "a.b", "c"), &https("b", "c.b", "d")])]), [""; 0]);
}

#[test]
fn two_sidecars_for_the_same_workloads() {
    let sidecar =
        |name: &str, selector: &str| doc("Sidecar", name, &format!("{{{selector}egress: [{{hosts: [./*]}}]}}"));
    let got = check_texts(&[sidecar("a", ""), sidecar("b", "")]);
    assert!(
        got.len() == 1
            && got[0].contains("error: Sidecar/default/a is older and for all workloads of its namespace too"),
        "{got:?}"
    );
    let labels = "workloadSelector: {labels: {a: b}}, ";
    let got = check_texts(&[sidecar("a", labels), sidecar("b", labels)]);
    assert!(got.len() == 1 && got[0].contains("for the same workloads too"), "{got:?}");
    assert_eq!(check_texts(&[sidecar("a", ""), sidecar("b", labels)]), [""; 0]);
}

#[test]
fn routes_of_connections_without_effect() {
    let tls = |matches: &[&str]| {
        let routes = matches.iter().map(|one| format!("{{match: [{one}], route: [{{destination: {{host: a}}}}]}}"));
        let routes = routes.collect::<Vec<_>>().join(", ");
        check_texts(&[doc("VirtualService", "v", &format!("{{hosts: ['*.b'], tls: [{routes}]}}"))])
    };
    let one = |got: Vec<String>, want: &str| assert!(got.len() == 1 && got[0].ends_with(want), "{want}: {got:?}");
    let earlier = "the route at line 4 matches all that this does";
    one(tls(&["{sniHosts: [a.b]}", "{sniHosts: [a.b]}"]), &format!("never reached: {earlier}"));
    one(tls(&["{sniHosts: [a.b, c.b]}", "{sniHosts: [a.b], port: 443}"]), &format!("never reached: {earlier}"));
    one(tls(&["{sniHosts: [a.b]}", "{sniHosts: [a.b]}, {sniHosts: [c.b]}"]), &format!("without effect: {earlier}"));
    one(
        tls(&["{sniHosts: [a.b]}, {sniHosts: [a.b]}"]),
        "without effect: another match of this route takes all that this does",
    );
    assert_eq!(tls(&["{sniHosts: ['*.b']}", "{sniHosts: [a.b]}"]), [""; 0], "the most exact name is looked for first");
    assert_eq!(tls(&["{sniHosts: [a.b], port: 443}", "{sniHosts: [a.b]}"]), [""; 0]);
    assert_eq!(tls(&["{sniHosts: [a.b], sourceLabels: {a: b}}", "{sniHosts: [a.b]}"]), [""; 0]);
    let tcp = "{hosts: [a], tcp: [{route: [{destination: {host: a}}]}, {match: [{port: 1}], route: [{destination: {host: a}}]}]}";
    one(check_texts(&[doc("VirtualService", "v", tcp)]), &format!("never reached: {earlier}"));
}
