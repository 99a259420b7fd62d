use super::*;
use crate::{Object, parse};

fn head(spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {{name: vms}}\nspec: {spec}\n")
}

fn group(spec: &str) -> WorkloadGroup {
    let mut parsed = parse("f.yaml", &head(spec));
    assert_eq!(parsed.problems, [], "{spec}");
    match parsed.documents.remove(0).object {
        Object::WorkloadGroup(group) => *group,
        other => panic!("{other:?}"),
    }
}

fn probe(spec: &str) -> v1::Probe {
    group(&format!("{{template: {{}}, probe: {spec}}}")).probe.unwrap()
}

#[test]
fn a_workload_group_has_a_template_and_a_probe() {
    let parsed = group(
        "{metadata: {labels: {a: meta, b: meta}, annotations: {x: y}}, template: {labels: {a: template, c: template}, \
         ports: {http: 8080}, weight: 3, locality: eu/a, serviceAccount: vm}}",
    );
    let labels = [("a", "meta"), ("b", "meta"), ("c", "template")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let want = WorkloadEntry {
        address: String::new(),
        ports: [("http".to_owned(), 8080)].into(),
        labels: labels.into(),
        weight: 3,
        locality: "eu/a".into(),
        service_account: "vm".into(),
    };
    assert_eq!(parsed, WorkloadGroup { template: want, probe: None });
    assert_eq!(group("{template: {}}").template.service_account, "default");
}

#[test]
fn probes_have_the_defaults_of_kubernetes() {
    let tcp = Some(Kind::Tcp(v1::TcpProbe { host: "::1".into(), port: 80 }));
    let want = v1::Probe {
        initial_delay_s: 0,
        timeout_s: 1,
        period_s: 10,
        success_threshold: 1,
        failure_threshold: 3,
        kind: tcp.clone(),
    };
    assert_eq!(probe("{tcpSocket: {port: 80, host: '::1'}}"), want);
    assert_eq!(probe("{periodSeconds: 0, tcpSocket: {port: 80, host: '::1'}}"), want, "0 is the default");
    let spec = "{initialDelaySeconds: 5, timeoutSeconds: 2, periodSeconds: 3, successThreshold: 4, failureThreshold: 6, \
                tcpSocket: {port: 80, host: '::1'}}";
    let (timeout_s, period_s, success_threshold) = (2, 3, 4);
    let want =
        v1::Probe { initial_delay_s: 5, timeout_s, period_s, success_threshold, failure_threshold: 6, kind: tcp };
    assert_eq!(probe(spec), want);

    let http =
        "{httpGet: {port: 8080, path: /h?a=b, host: localhost, scheme: HTTPS, httpHeaders: [{name: x-a, value: b}]}}";
    let headers = vec![v1::ProbeHeader { name: "x-a".into(), value: "b".into() }];
    let (host, path) = ("localhost".into(), "/h?a=b".into());
    assert_eq!(probe(http).kind, Some(Kind::Http(v1::HttpProbe { host, port: 8080, path, tls: true, headers })));
    let short = v1::HttpProbe { port: 80, path: "/".into(), ..Default::default() };
    assert_eq!(probe("{httpGet: {port: 80}}").kind, Some(Kind::Http(short)));
    let command = vec!["/bin/check".to_owned(), "-v".to_owned()];
    assert_eq!(probe("{exec: {command: [/bin/check, -v]}}").kind, Some(Kind::Exec(v1::ExecProbe { command })));
    let grpc = v1::GrpcProbe { port: 9090, service: "order".into() };
    assert_eq!(probe("{grpc: {port: 9090, service: order}}").kind, Some(Kind::Grpc(grpc)));
}

#[test]
fn invalid_groups_are_reported() {
    let in_probe = |probe: &str| format!("{{template: {{}}, probe: {probe}}}");
    let cases = [
        ("{probe: {tcpSocket: {port: 1}}}".to_owned(), "`template` is required"),
        ("{template: {address: 10.0.0.1}}".to_owned(), "`template.address` is not supported: an entry's address"),
        ("{template: {network: n}}".to_owned(), "`template.network` is not supported: other networks"),
        ("{template: {ports: {http: 0}}}".to_owned(), "`template.ports.http` must be a whole number from 1 to 65535"),
        ("{template: {serviceAcount: a}}".to_owned(), "unknown field `serviceAcount`, did you mean `serviceAccount`?"),
        (in_probe("{}"), "`probe` must have exactly one of httpGet, tcpSocket, exec, grpc"),
        (in_probe("{tcpSocket: {port: 1}, grpc: {port: 1}}"), "`probe` must have exactly one of"),
        (in_probe("{httpget: {port: 1}}"), "unknown field `httpget`, did you mean `httpGet`?"),
        (in_probe("{tcpSocket: {}}"), "`probe.tcpSocket.port` is required"),
        (in_probe("{tcpSocket: {port: 65536}}"), "`probe.tcpSocket.port` must be a whole number from 1 to 65535"),
        (in_probe("{grpc: {port: 1}, periodSeconds: -1}"), "`probe.periodSeconds` must be a whole number from 0"),
        (in_probe("{exec: {command: []}}"), "`probe.exec.command` must name a program"),
        (in_probe("{httpGet: {port: 1, scheme: http}}"), "unknown value `http`, did you mean `HTTP`?"),
        (in_probe("{httpGet: {port: 1, path: health}}"), "`health` is not a path"),
        (in_probe("{httpGet: {port: 1, path: '/a b'}}"), "`/a b` is not a path"),
        (in_probe("{httpGet: {port: 1, host: 'a b'}}"), "`a b` is neither an IP address nor a host name"),
        (in_probe("{httpGet: {port: 1, httpHeaders: [{name: 'a b'}]}}"), "`a b` is not a header name"),
        (in_probe("{httpGet: {port: 1, httpHeaders: [{name: a, value: \"\\n\"}]}}"), "is not a value of a header"),
    ];
    for (spec, want) in cases {
        let problems: Vec<String> = parse("f.yaml", &head(&spec)).problems.iter().map(ToString::to_string).collect();
        assert!(problems.iter().any(|problem| problem.contains(want)), "{spec}\n got: {problems:#?}\nwant: {want}");
    }
}
