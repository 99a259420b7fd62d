use super::*;
use crate::control::agent::Delivery;

fn wanted(kind: Option<Wanted>) -> v1::Probe {
    v1::Probe { timeout_s: 2, period_s: 5, success_threshold: 2, failure_threshold: 3, kind, ..Default::default() }
}

#[test]
fn a_probe_becomes_a_check_of_the_agent() {
    let made = |probe: Wanted| kind(&wanted(Some(probe)));
    let place = |host: &str, port| Place { host: host.into(), port, tls: None };
    let tcp = v1::TcpProbe { host: "::1".into(), port: 80 };
    assert_eq!(made(Wanted::Tcp(tcp)), Ok(Kind::Tcp(place("::1", 80))));
    let grpc = v1::GrpcProbe { port: 90, service: "a".into() };
    assert_eq!(made(Wanted::Grpc(grpc)), Ok(Kind::Grpc(place(HERE, 90), "a".into())));
    let command = vec!["a".to_owned()];
    assert_eq!(made(Wanted::Exec(v1::ExecProbe { command: command.clone() })), Ok(Kind::Script(command)));
    let http = |host: &str, tls, name: &str| {
        let headers = vec![v1::ProbeHeader { name: name.into(), value: "b".into() }];
        made(Wanted::Http(v1::HttpProbe { host: host.into(), port: 81, path: "/h?a".into(), tls, headers }))
    };
    for (host, tls, url) in [("", false, "http://127.0.0.1:81/h?a"), ("::1", true, "https://[::1]:81/h?a")] {
        let Ok(Kind::Http(made)) = http(host, tls, "x-a") else { panic!("{url}") };
        assert_eq!((made.url.to_string(), made.headers.len(), made.tls.skip_verify), (url.to_owned(), 1, true));
    }
    assert!(http("", false, "a b").unwrap_err().contains("\"a b\" is not a header"));
    assert!(made(Wanted::Tcp(v1::TcpProbe::default())).unwrap_err().contains("0 is no port"));
    assert!(kind(&wanted(None)).unwrap_err().contains("does not know"));
}

#[test]
fn script_probes_need_script_checks() {
    let script = || Kind::Script(vec!["a".into()]);
    assert!(allowed(script(), &Delivery { scripts: false }).unwrap_err().contains("--enable-script-checks"));
    assert_eq!(allowed(script(), &Delivery { scripts: true }), Ok(script()));
    let tcp = Kind::Tcp(Place { host: HERE.into(), port: 80, tls: None });
    assert_eq!(allowed(tcp.clone(), &Delivery { scripts: false }), Ok(tcp));
}

fn statuses(before: Status, results: &[Status]) -> Vec<Option<String>> {
    let mut check = Check::new("vms", &wanted(None), None, before);
    let mut take = |result| check.take((result, String::new()), Instant::now()).map(|report| report.status);
    results.iter().map(|result| take(*result)).collect()
}

#[tokio::test]
async fn a_probe_reports_changes_after_its_thresholds() {
    use Status::{Critical, Passing, Warning};
    let some = |status: &str| Some(status.to_owned());
    let results = [Passing, Passing, Passing, Critical, Warning, Critical, Critical, Passing, Critical];
    let report = [None, some("passing"), None, None, None, some("critical"), None, None, None];
    assert_eq!(statuses(Critical, &results), report);
    // One that was well before its probe was changed stays so.
    assert_eq!(statuses(Passing, &[Critical, Critical, Critical]), [None, None, some("critical")]);
}
