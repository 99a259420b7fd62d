//! Messages to the byte: unusual requests and responses, through the caller's sidecar and the application's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::{Mesh, Pod, Process, tests_dir, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        early_responses_lose_no_request,
        only_websocket_is_tunnelled,
        a_response_that_breaks_a_rule_is_502_and_names_it,
        the_target_names_the_authority,
        requests_to_a_forward_proxy_are_unchanged,
        the_endpoint_decides_about_expectations,
        targets_pass_as_they_came_and_refusals_are_logged_and_counted,
        a_hundred_headers_pass_two_sidecars,
        a_safe_request_is_repeated_on_both_sides_of_a_call,
    ]
}

/// Scenarios that mostly wait; they run beside the others.
const DENIED: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wire}
spec:
  hosts: [wire]
  http:
  - match: [{uri: {prefix: /denied}}]
    directResponse: {status: 403, body: {string: denied}}
  - route: [{destination: {host: wire}}]
";

/// A service whose application is `wire_server.py`, and a client; fields are in the order of their ends.
pub(crate) struct Wire {
    pub(crate) front_sidecar: Process,
    pub(crate) front: Pod,
    pub(crate) sidecar: Process,
    _app: Process,
    pub(crate) pod: Pod,
    pub(crate) mesh: Mesh,
}

fn script(name: &str) -> String {
    tests_dir().join("apps").join(name).to_string_lossy().into_owned()
}

pub(crate) fn start(pod: &Pod, args: &[&str]) -> Result<Process> {
    let args: Vec<String> = std::iter::once(script(args[0])).chain(args[1..].iter().map(|a| (*a).to_owned())).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let process = pod.spawn("app", "python3", &args)?;
    wait_for("the application", Duration::from_secs(10), || {
        ensure!(process.output().contains("listening"), "{}", process.output());
        Ok(())
    })?;
    Ok(process)
}

impl Wire {
    pub(crate) fn start() -> Result<Wire> {
        Wire::with(&[])
    }

    /// `args`: of both sidecars.
    pub(crate) fn with(args: &[&str]) -> Result<Wire> {
        let mesh = Mesh::start(&[])?;
        let pod = mesh.pod("wire")?;
        let app = start(&pod, &["wire_server.py", "8080"])?;
        let of_service = ["--service", "wire", "--port", "8080", "--protocol", "http", "--access-log", "-"];
        let sidecar = mesh.sidecar_with_redirection(&pod, "wire", &[&of_service, args].concat())?;
        mesh.wait_healthy(&pod.ip)?;
        let (front, front_sidecar) =
            mesh.client_with("front", &[&["--workload", "front", "--access-log", "-"], args].concat())?;
        mesh.policy("wire.yaml", DENIED)?;
        let wire = Wire { front_sidecar, front, sidecar, _app: app, pod, mesh };
        let vip = wire.mesh.vip("wire")?;
        wait_for("the routes", Duration::from_secs(10), || {
            let denied = wire.front.curl(&["-H", "Host: wire", &format!("http://{vip}/denied")])?;
            ensure!(denied == "denied", "{denied}");
            Ok(())
        })?;
        Ok(wire)
    }

    /// The answer to these pieces, through both sidecars.
    pub(crate) fn ask(&self, pieces: &[&str]) -> Result<String> {
        self.ask_at(&self.mesh.vip("wire")?, "80", pieces)
    }

    pub(crate) fn ask_at(&self, host: &str, port: &str, pieces: &[&str]) -> Result<String> {
        let script = script("wire_client.py");
        self.front.run("python3", &[&[&*script, host, port], pieces].concat())
    }

    /// Waits for a line of a sidecar's log that holds all of `parts`.
    pub(crate) fn logged(process: &Process, parts: &[&str]) -> Result<String> {
        wait_for("a line of the access log", Duration::from_secs(5), || {
            let log = process.output();
            let line = log.lines().find(|line| parts.iter().all(|part| line.contains(part)));
            line.map(str::to_owned).with_context(|| format!("no line with {parts:?}"))
        })
    }
}

/// On kept connections; the early response is the application's, or that of a route of the caller's sidecar.
fn early_responses_lose_no_request() -> Result<()> {
    let wire = Wire::start()?;
    for _ in 0..3 {
        let lost = wire.ask(&["posts", "60"])?;
        ensure!(lost.trim() == "lost 0", "{lost}");
    }
    // An upload that is refused early: the client gets the response.
    let head = r"POST /early-413 HTTP/1.1\r\nHost: wire\r\nContent-Length: 8000000\r\n\r\n";
    let refused = wire.ask(&[head, "@8000000"])?;
    ensure!(refused.starts_with("HTTP/1.1 413 ") && refused.contains("too much"), "{refused}");
    ensure!(refused.to_lowercase().contains("connection: close"), "{refused}");
    let upload = format!(
        "head -c 8000000 /dev/zero | curl -sS -o /dev/null -w '%{{http_code}} %{{exitcode}}' --max-time 10 --http2-prior-knowledge \
         -H 'Host: wire' --data-binary @- http://{}/early-413",
        wire.mesh.vip("wire")?
    );
    // RFC 9113, 8.1: a client must not discard the response when the reset with NO_ERROR comes. curl 7.88 does when it is about to
    // write as both are there (exit status 92), which is more likely on a busy machine: another try.
    wait_for("413 over HTTP/2", Duration::from_secs(20), || {
        let answer = wire.front.run("sh", &["-c", &upload])?;
        ensure!(answer == "413 0", "{answer}");
        Ok(())
    })?;
    Wire::logged(&wire.front_sidecar, &["/early-413", "HTTP/2.0", "\"response_code\":413", "\"bytes_sent\":8"])
        .map(drop)
}

fn only_websocket_is_tunnelled() -> Result<()> {
    let wire = Wire::start()?;
    let asking = |path: &str, token: &str| {
        format!(
            r"GET {path} HTTP/1.1\r\nHost: wire\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {token}\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
        )
    };
    // h2c is ignored, and so is the header that belongs to it.
    let h2c = wire.ask(&[&asking("/seen", "h2c")])?;
    let lower = h2c.to_lowercase();
    ensure!(
        h2c.starts_with("HTTP/1.1 200 OK") && !lower.contains("upgrade:") && !lower.contains("http2-settings:"),
        "{h2c}"
    );
    let denied = wire.ask(&[&asking("/denied", "h2c")])?;
    ensure!(denied.starts_with("HTTP/1.1 403 "), "{denied}");
    // Other upgrades are refused by name.
    for token in ["foo", "TLS/1.0", "websocket, foo"] {
        let refused = wire.ask(&[&asking("/upgrade", token)])?;
        ensure!(refused.starts_with("HTTP/1.1 403 "), "{token}: {refused}");
        ensure!(refused.contains(&format!("x-weft-reason: upgrade_refused: {token}\r\n")), "{token}: {refused}");
    }
    let connect = wire.ask(&[r"CONNECT wire:80 HTTP/1.1\r\nHost: wire:80\r\n\r\n"])?;
    ensure!(connect.starts_with("HTTP/1.1 404 ") && connect.contains("connect_refused"), "{connect}");
    // WebSocket passes, and is one entry in the access log of each sidecar.
    let websocket = r"GET /upgrade HTTP/1.1\r\nHost: wire\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n";
    let inside = wire.ask(&[websocket, "~200", "@1000"])?;
    ensure!(inside.starts_with("HTTP/1.1 101 ") && inside.ends_with(&format!("{}\n", "x".repeat(1000))), "{inside}");
    for sidecar in [&wire.front_sidecar, &wire.sidecar] {
        let parts =
            ["\"response_code\":101", "\"bytes_received\":1000", "\"bytes_sent\":1000", "\"path\":\"/upgrade\""];
        Wire::logged(sidecar, &parts)?;
    }
    // Unless an option allows them.
    let wire = Wire::with(&["--upgrade-type", "foo,connect"])?;
    let switched = wire.ask(&[&asking("/upgrade", "foo"), "~200", "hello"])?;
    ensure!(switched.starts_with("HTTP/1.1 101 ") && switched.ends_with("hello\n"), "{switched}");
    let websocket = wire.ask(&[&asking("/upgrade", "websocket")])?;
    ensure!(websocket.starts_with("HTTP/1.1 403 "), "{websocket}");
    let connect = wire.ask(&[r"CONNECT wire:80 HTTP/1.1\r\nHost: wire:80\r\n\r\n"])?;
    ensure!(connect.starts_with("HTTP/1.1 200 ") && connect.contains("CONNECT wire:80 HTTP/1.1"), "{connect}");
    Ok(())
}

fn a_response_that_breaks_a_rule_is_502_and_names_it() -> Result<()> {
    let wire = Wire::start()?;
    let answered = |answer: &str| {
        let encoded: String = answer.bytes().map(|byte| format!("%{byte:02X}")).collect();
        wire.ask(&[&format!(r"GET /answer?{encoded} HTTP/1.1\r\nHost: wire\r\n\r\n")])
    };
    for (headers, rule) in [
        ("Transfer-Encoding: gzip, chunked", r#"transfer-encoding "gzip, chunked""#),
        ("Transfer-Encoding: chunked, chunked", r#"transfer-encoding "chunked, chunked""#),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", r#"transfer-encoding "chunked, chunked""#),
        ("Transfer-Encoding: identity\r\nContent-Length: 2", r#"transfer-encoding "identity""#),
        ("Content-Length: 2\r\nContent-Length: 2", "more than one content-length"),
        ("Content-Length: +2", "invalid content-length"),
        ("bad name: x\r\nContent-Length: 2", "invalid header name"),
    ] {
        let answer = answered(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n\r\nok"))?;
        ensure!(answer.starts_with("HTTP/1.1 502 "), "{headers}: {answer}");
        ensure!(answer.contains(&format!("x-weft-reason: upstream_protocol_error: {rule}\r\n")), "{headers}: {answer}");
        Wire::logged(&wire.sidecar, &["UPE", &rule.replace('"', "\\\"")])?;
    }
    // Framing errors without ambiguity are corrected.
    for (status, length) in [("204 No Content", "5"), ("304 Not Modified", "5"), ("204 No Content", "0")] {
        let answer = answered(&format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n"))?;
        ensure!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        ensure!(!answer.to_lowercase().contains("content-length"), "{answer}");
        let url = format!(
            "http://{}/answer?{}",
            wire.mesh.vip("wire")?,
            "HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n".bytes().map(|b| format!("%{b:02X}")).collect::<String>()
        );
        let http2 = wire.front.curl(&["--http2-prior-knowledge", "-H", "Host: wire", "-w", "%{http_code}", &url])?;
        ensure!(http2 == "204", "{http2}");
    }
    Ok(())
}

fn the_target_names_the_authority() -> Result<()> {
    let wire = Wire::start()?;
    let absolute = wire.ask(&[r"GET http://wire/seen HTTP/1.1\r\nHost: internal.wire\r\n\r\n"])?;
    ensure!(absolute.contains("GET /seen HTTP/1.1\r\n") && !absolute.contains("internal.wire"), "{absolute}");
    ensure!(absolute.to_lowercase().contains("\r\nhost: wire\r\n"), "{absolute}");
    for target in ["http://u:p@wire/", "*", "wire:80", "ftp://wire/"] {
        let refused = wire.ask(&[&format!(r"GET {target} HTTP/1.1\r\nHost: wire\r\n\r\n")])?;
        ensure!(
            refused.starts_with("HTTP/1.1 400 ") && refused.contains("x-weft-reason: bad_request: "),
            "{target}: {refused}"
        );
    }
    for host in [r"Host: u@wire", r"Host: wire\r\nHost: other", "Host: wire/x"] {
        let refused = wire.ask(&[&format!(r"GET / HTTP/1.1\r\n{host}\r\n\r\n")])?;
        ensure!(refused.starts_with("HTTP/1.1 400 "), "{host}: {refused}");
    }
    // In HTTP/2 `:authority` takes precedence, and the application gets one host.
    let vip = wire.mesh.vip("wire")?;
    let both = wire.front.curl(&[
        "--http2-prior-knowledge",
        "-H",
        "Host: u@wire",
        "-w",
        "%{http_code}",
        &format!("http://{vip}/"),
    ])?;
    ensure!(both.ends_with("400"), "{both}");
    // Headers of the mesh are removed from trailers.
    let trailers = wire.ask(&[
        r"POST /seen HTTP/1.1\r\nHost: wire\r\nTransfer-Encoding: chunked\r\n\r\n",
        r"1\r\nx\r\n0\r\nX-Forwarded-Client-Cert: By=me\r\nX-Envoy-Retry-On: 5xx\r\nHost: other\r\nX-Sum: 42\r\n\r\n",
    ])?;
    let seen = trailers.split("--trailers--").nth(1).context("no trailers")?.to_lowercase();
    ensure!(
        seen.contains("x-sum: 42")
            && !seen.contains("x-forwarded")
            && !seen.contains("x-envoy")
            && !seen.contains("host"),
        "{seen}"
    );
    Ok(())
}

/// `http_proxy=` names a proxy outside the mesh.
fn requests_to_a_forward_proxy_are_unchanged() -> Result<()> {
    let wire = Wire::start()?;
    let outside = wire.mesh.pod("outside")?;
    let _proxy = start(&outside, &["wire_server.py", "3128"])?;
    let ask = |text: &str| wire.ask_at(&outside.ip, "3128", &[text]);
    let seen = ask(
        r"GET http://www.example.com/p?q HTTP/1.1\r\nHost: www.example.com\r\nProxy-Authorization: Basic eDp5\r\n\r\n",
    )?;
    ensure!(seen.contains("GET http://www.example.com/p?q HTTP/1.1\r\n"), "{seen}");
    ensure!(seen.contains("Proxy-Authorization: Basic eDp5\r\n"), "{seen}");
    let challenge = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n";
    let encoded: String = challenge.bytes().map(|byte| format!("%{byte:02X}")).collect();
    for line in [format!("GET http://www.example.com/answer?{encoded}"), format!("GET /answer?{encoded}")] {
        let challenged = ask(&format!(r"{line} HTTP/1.1\r\nHost: www.example.com\r\n\r\n"))?;
        ensure!(challenged.starts_with("HTTP/1.1 407 "), "{challenged}");
        ensure!(challenged.contains("Proxy-Authenticate: Basic realm=\"x\"\r\n"), "{challenged}");
    }
    let connect = ask(r"CONNECT www.example.com:443 HTTP/1.1\r\nHost: www.example.com:443\r\n\r\n")?;
    ensure!(
        connect.starts_with("HTTP/1.1 200 ") && connect.contains("CONNECT www.example.com:443 HTTP/1.1"),
        "{connect}"
    );
    Ok(())
}

fn the_endpoint_decides_about_expectations() -> Result<()> {
    let wire = Wire::start()?;
    let expecting = |path: &str| {
        format!(r"POST {path} HTTP/1.1\r\nHost: wire\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    };
    let refused = wire.ask(&[&expecting("/refuse")])?;
    ensure!(refused.starts_with("HTTP/1.1 417 ") && refused.to_lowercase().contains("connection: close"), "{refused}");
    let answer = wire.ask(&[&expecting("/want"), "~500", "hello"])?;
    ensure!(
        answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n") && answer.contains("\r\n\r\n5"),
        "{answer}"
    );
    // A server without support for 100-continue gets the body too.
    let unknown = wire.ask(&[&expecting("/length"), "~1500", "hello"])?;
    ensure!(
        unknown.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n") && unknown.contains("\r\n\r\n5"),
        "{unknown}"
    );
    let hints = wire.ask(&[r"GET /hints HTTP/1.1\r\nHost: wire\r\n\r\n"])?;
    ensure!(
        hints.starts_with("HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK"),
        "{hints}"
    );
    let old = wire.ask(&[r"GET /hints HTTP/1.0\r\nHost: wire\r\n\r\n"])?;
    ensure!(old.starts_with("HTTP/1.0 200 OK"), "{old}");
    Ok(())
}

fn targets_pass_as_they_came_and_refusals_are_logged_and_counted() -> Result<()> {
    let wire = Wire::start()?;
    for (sent, seen) in [
        (r#"/api?query=up{job="a"}"#, r#"/api?query=up{job="a"}"#),
        (r"/q?a=<b>|\\^`{}", r"/q?a=<b>|\^`{}"),
        (r#"/a"b{c}|d^e`f<g>"#, "/a%22b%7Bc%7D%7Cd%5Ee%60f%3Cg%3E"),
    ] {
        let answer = wire.ask(&[&format!(r"GET {sent} HTTP/1.1\r\nHost: wire\r\n\r\n")])?;
        ensure!(answer.contains(&format!("GET {seen} HTTP/1.1\r\n")), "{sent}: {answer}");
    }
    // Unparsable requests are refused, and the refusal is logged.
    for (request, status, reason) in [
        (r"GET /odd\x80 HTTP/1.1\r\nHost: wire\r\n\r\n", "400", "bad_request: "),
        (r"GET / HTTP/1.1\r\nHost: wire\r\nTransfer-Encoding: gzip\r\n\r\n", "501", "unsupported_coding: "),
        (
            r"POST /chunks HTTP/1.1\r\nHost: wire\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "400",
            "bad_request: a chunk without a size",
        ),
    ] {
        let refused = wire.ask(&[request])?;
        ensure!(refused.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {refused}");
        ensure!(refused.contains(&format!("x-weft-reason: {reason}")), "{request}: {refused}");
        Wire::logged(&wire.front_sidecar, &[&format!("\"response_code\":{status}"), "DPE", reason])?;
    }
    let large = wire.ask(&[r"GET /large HTTP/1.1\r\nHost: wire\r\nX: ", "@70000", r"\r\n\r\n"])?;
    ensure!(large.starts_with("HTTP/1.1 431 ") && large.contains("x-weft-reason: header_too_large"), "{large}");
    let line = Wire::logged(&wire.front_sidecar, &["\"response_code\":431"])?;
    ensure!(line.contains("\"path\":\"/large\"") && line.contains("\"method\":\"GET\""), "{line}");
    let metrics = wire.front.curl(&["http://127.0.0.1:15020/metrics"])?;
    let counted = metrics.lines().any(|line| {
        line.starts_with("istio_requests_total{")
            && line.contains("response_code=\"431\"")
            && line.contains("response_flags=\"DPE\"")
    });
    ensure!(counted, "431 is not counted");
    // By HTTP/2 too.
    let vip = wire.mesh.vip("wire")?;
    let url = format!("http://{vip}/");
    let headers: Vec<String> = (0..101).map(|i| format!("x-{i}: {i}")).collect();
    let headers = headers.iter().flat_map(|header| ["-H", header.as_str()]);
    let plain = ["--http2-prior-knowledge", "-i", "-H", "Host: wire", &url];
    let http2 = wire.front.curl(&plain.into_iter().chain(headers).collect::<Vec<_>>())?;
    ensure!(http2.starts_with("HTTP/2 431") && http2.contains("x-weft-reason: header_too_large"), "{http2}");
    Ok(())
}

/// Limits count the client's bytes.
fn a_hundred_headers_pass_two_sidecars() -> Result<()> {
    let wire = Wire::start()?;
    let with = |count: usize| {
        let all: String = (0..count).map(|i| format!(r"X-{i}: {i}\r\n")).collect();
        wire.ask(&[&format!(r"GET /seen HTTP/1.1\r\nHost: wire\r\nTE: trailers, deflate\r\n{all}\r\n")])
    };
    let most = with(98)?;
    ensure!(most.starts_with("HTTP/1.1 200 OK") && most.contains("X-97: 97\r\n"), "{most}");
    ensure!(most.to_lowercase().contains("\r\nte: trailers\r\n"), "{most}");
    let more = with(99)?;
    ensure!(more.starts_with("HTTP/1.1 431 "), "{more}");
    let metrics = wire.front.curl(&["http://127.0.0.1:15020/metrics"])?;
    for name in ["istio_request_bytes", "istio_response_bytes"] {
        let of = |suffix: &str| {
            metrics.lines().any(|line| line.starts_with(&format!("{name}_{suffix}{{")) && line.contains("\"200\""))
        };
        ensure!(of("bucket") && of("sum") && of("count"), "{name} is no histogram with values");
    }
    Ok(())
}

/// The application closes an idle connection as the second request arrives: the sidecar repeats the request where that is safe.
fn a_safe_request_is_repeated_on_both_sides_of_a_call() -> Result<()> {
    let wire = Wire::start()?;
    let url = format!("http://{}/second", wire.mesh.vip("wire")?);
    for round in 0..6 {
        let answer = wire.front.curl(&["-H", "Host: wire", "-w", "%{http_code}", "-o", "/dev/null", &url])?;
        ensure!(answer == "200", "round {round}: {answer}");
    }
    // Directly to the application's sidecar.
    let outside = wire.mesh.pod("outside")?;
    let direct = format!("http://{}:8080/second", wire.pod.ip);
    for round in 0..6 {
        let answer = outside.curl(&["-w", "%{http_code}", "-o", "/dev/null", &direct])?;
        ensure!(answer == "200", "round {round} from outside: {answer}");
    }
    let posted = |_| outside.curl(&["-w", "%{http_code}", "-o", "/dev/null", "-d", "x", &direct]);
    let statuses: Vec<String> = (0..2).map(posted).collect::<Result<_>>()?;
    ensure!(statuses.contains(&"503".to_owned()), "an unsafe request was repeated: {statuses:?}");
    Ok(())
}
