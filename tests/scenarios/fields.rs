//! Policy fields one by one: the effect of each, observed from outside, is that of Istio's reference.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Instance, Kind, Mesh, Pod, Process, document, served_by, statuses, tests_dir, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        fields_hash_by_cookie_source_and_query,
        fields_timeouts_and_retries,
        fields_http2_between_sidecars,
        fields_of_connections,
        fields_port_level,
        fields_service_entries,
    ]
}

const SOON: Duration = Duration::from_secs(10);

/// A mesh with instances of `order-service` and a client.
struct Setting {
    mesh: Mesh,
    instances: Vec<Instance>,
    front: Pod,
    sidecar: Process,
    vip: String,
}

impl Setting {
    fn new(instances: usize) -> Result<Setting> {
        Setting::with(instances, &[])
    }

    fn with(instances: usize, args: &[&str]) -> Result<Setting> {
        let mesh = Mesh::start(&[])?;
        let instance = |i| mesh.instance(&format!("order{i}"), "order-service", 8080, args);
        let instances = (1..=instances).map(instance).collect::<Result<Vec<_>>>()?;
        let (front, sidecar) = mesh.client("frontend")?;
        let vip = mesh.vip("order-service")?;
        Ok(Setting { mesh, instances, front, sidecar, vip })
    }

    /// A DestinationRule for `order-service`, in place of the one before.
    fn rule(&self, traffic_policy: Value) -> Result<()> {
        let spec = json!({"host": "order-service", "trafficPolicy": traffic_policy});
        self.mesh.policy("rule.yaml", &document(Kind::DestinationRule, "order", spec))
    }

    /// The one route of a VirtualService for `order-service`, in place of the one before.
    fn route(&self, mut route: Value) -> Result<()> {
        route["route"] = json!([{"destination": {"host": "order-service"}}]);
        let spec = json!({"hosts": ["order-service"], "http": [route]});
        self.mesh.policy("route.yaml", &document(Kind::VirtualService, "order", spec))
    }

    fn get(&self, path: &str, more: &[&str]) -> Result<String> {
        let url = format!("http://{}{path}", self.vip);
        self.front.curl(&[&["-i", "-H", "Host: order-service"], more, &[url.as_str()]].concat())
    }

    fn many(&self, plan: Value) -> Result<Vec<Value>> {
        let mut all = json!({"url": format!("http://{}/", self.vip), "headers": {"Host": "order-service"}});
        for (key, value) in plan.as_object().into_iter().flatten() {
            all[key] = if key == "path" { continue } else { value.clone() };
        }
        if let Some(path) = plan["path"].as_str() {
            all["url"] = format!("http://{}{path}", self.vip).into();
        }
        self.front.requests(&all)
    }

    /// Established connections from the client's proxy to an instance.
    fn connections_to(&self, instance: &Instance) -> Result<usize> {
        let text = self.front.run("ss", &["-Htn", "state", "established", "dst", &instance.pod.ip])?;
        Ok(text.lines().count())
    }
}

/// A header of an answer of `curl -i`.
fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next()?;
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

fn fields_hash_by_cookie_source_and_query() -> Result<()> {
    let s = Setting::new(3)?;
    let server = |answer: &str| header(answer, "x-served-by").map(str::to_owned).context("no x-served-by");

    s.rule(
        json!({"loadBalancer": {"consistentHash": {"httpCookie": {"name": "session", "ttl": "60s", "path": "/"}}}}),
    )?;
    let first = wait_for("a cookie", SOON, || {
        let answer = s.get("/", &[])?;
        ensure!(header(&answer, "set-cookie").is_some(), "{answer}");
        Ok(answer)
    })?;
    let cookie = header(&first, "set-cookie").unwrap_or_default().to_owned();
    ensure!(cookie.starts_with("session=\"") && cookie.contains("; Max-Age=60; Path=/; HttpOnly"), "{cookie}");
    let pair = cookie.split(';').next().unwrap_or_default();
    for _ in 0..10 {
        let answer = s.get("/", &["-H", &format!("Cookie: {pair}")])?;
        ensure!(server(&answer)? == server(&first)?, "another instance than the one that the cookie was given for");
        ensure!(header(&answer, "set-cookie").is_none(), "a second cookie: {answer}");
    }
    let mut servers = BTreeSet::new();
    for i in 0..30 {
        servers.insert(server(&s.get("/", &["-H", &format!("Cookie: session=\"{i}\"")])?)?);
    }
    ensure!(servers.len() == 3, "cookies lead to {servers:?}");

    s.rule(json!({"loadBalancer": {"consistentHash": {"httpQueryParameterName": "user"}}}))?;
    wait_for("the query parameter to decide", SOON, || {
        let mut servers = BTreeSet::new();
        for user in 0..20 {
            let of_user: BTreeSet<String> =
                (0..3).map(|n| server(&s.get(&format!("/?n={n}&user={user}"), &[])?)).collect::<Result<_>>()?;
            ensure!(of_user.len() == 1, "user {user} is served by {of_user:?}");
            servers.extend(of_user);
        }
        ensure!(servers.len() == 3, "query parameters lead to {servers:?}");
        Ok(())
    })?;

    s.rule(json!({"loadBalancer": {"consistentHash": {"useSourceIp": true}}}))?;
    wait_for("the source address to decide", SOON, || {
        let servers: BTreeSet<String> = served_by(&s.many(json!({"count": 30}))?).into_iter().collect();
        ensure!(servers.len() == 1, "{servers:?}");
        Ok(())
    })
}

fn fields_timeouts_and_retries() -> Result<()> {
    let s = Setting::new(1)?;
    let order = &s.instances[0];
    s.route(json!({"timeout": "200ms"}))?;
    wait_for("the timeout", SOON, || {
        let start = Instant::now();
        let answer = s.get("/sleep/2000", &[])?;
        ensure!(status(&answer) == "504" && start.elapsed() < Duration::from_millis(1500), "{answer}");
        let why = header(&answer, "x-weft-reason").unwrap_or_default();
        ensure!(why.contains("timeout") && why.contains("VirtualService/default/order"), "{why}");
        Ok(())
    })?;
    ensure!(s.front.curl(&["http://127.0.0.1:15020/metrics"])?.contains("response_flags=\"UT\""), "no UT");

    // Requests that reached the application, as its sidecar counts them.
    let requests = |code: &str| -> Result<u64> {
        let text = order.pod.curl(&["http://127.0.0.1:15020/metrics"])?;
        let lines = text.lines().filter(|l| l.starts_with("istio_requests_total{") && l.contains("\"destination\""));
        let of_code = lines.filter(|l| l.contains(&format!("response_code=\"{code}\"")));
        Ok(of_code.filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    };
    s.route(json!({"retries": {"attempts": 3, "retryOn": "503"}}))?;
    wait_for("three retries", SOON, || {
        let before = requests("503")?;
        let answer = s.get("/status/503", &[])?;
        ensure!(status(&answer) == "503", "{answer}");
        let attempts = wait_for("the count", Duration::from_secs(1), || {
            let n = requests("503")? - before;
            ensure!(n == 4, "{n} attempts");
            Ok(n)
        })?;
        ensure!(attempts == 4, "{attempts}");
        Ok(())
    })?;
    let before = requests("503")?;
    ensure!(status(&s.get("/status/500", &[])?) == "500" && requests("503")? == before, "500 is not 503");

    s.route(
        json!({"timeout": "5s", "retries": {"attempts": 2, "perTryTimeout": "100ms", "retryOn": "gateway-error"}}),
    )?;
    wait_for("the timeout of a try", SOON, || {
        let start = Instant::now();
        let answer = s.get("/sleep/3000", &[])?;
        let took = start.elapsed();
        ensure!(status(&answer) == "504", "{answer}");
        ensure!(took > Duration::from_millis(300) && took < Duration::from_millis(1500), "three tries took {took:?}");
        Ok(())
    })?;

    // An address that drops packets.
    let hole = s.mesh.pod("hole")?;
    hole.run("nft", &["table inet hole { chain in { type filter hook input priority 0; tcp dport 9000 drop; }; }"])?;
    let entry = json!({
        "hosts": ["hole.test"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 9000}],
        "resolution": "STATIC",
        "endpoints": [{"address": hole.ip}],
    });
    let pool = json!({"tcp": {"connectTimeout": "200ms"}});
    let rule = json!({"host": "hole.test", "trafficPolicy": {"connectionPool": pool}});
    let entry = document(Kind::ServiceEntry, "hole", entry);
    s.mesh.policy("hole.yaml", &(entry + &document(Kind::DestinationRule, "hole", rule)))?;
    wait_for("the connect timeout", SOON, || {
        let start = Instant::now();
        let answer = s.front.curl(&["-i", "http://hole.test/"])?;
        let took = start.elapsed();
        ensure!(status(&answer) == "503" && took < Duration::from_secs(2), "after {took:?}: {answer}");
        ensure!(answer.contains("timeout"), "{answer}");
        Ok(())
    })?;
    ensure!(s.front.curl(&["http://127.0.0.1:15020/metrics"])?.contains("response_flags=\"UF,URX\""), "no UF,URX");

    // Headers of the request override the route, and are removed before the application.
    let start = Instant::now();
    let answer = s.get("/sleep/3000", &["-H", "x-envoy-upstream-rq-timeout-ms: 100"])?;
    ensure!(status(&answer) == "504" && start.elapsed() < Duration::from_secs(1), "{answer}");
    let before = requests("500")?;
    let headers = ["-H", "x-envoy-retry-on: 5xx", "-H", "x-envoy-max-retries: 1"];
    ensure!(status(&s.get("/status/500", &headers)?) == "500");
    wait_for("one retry", SOON, || {
        let n = requests("500")? - before;
        ensure!(n == 2, "{n} attempts");
        Ok(())
    })?;
    ensure!(!s.get("/", &headers)?.contains("x-envoy-max-retries"), "the application sees it");

    // A response that does not end in time is broken off.
    s.route(json!({"timeout": "500ms"}))?;
    wait_for("the end in the middle of a response", SOON, || {
        let url = format!("http://{}/drip/5", s.vip);
        let start = Instant::now();
        let broken = s.front.curl(&["-H", "Host: order-service", "-o", "/dev/null", &url]);
        let took = start.elapsed();
        ensure!(broken.is_err() && took < Duration::from_secs(2), "after {took:?}: {broken:?}");
        Ok(())
    })
}

fn fields_http2_between_sidecars() -> Result<()> {
    // Declared, as a port named `http` would be: the application speaks HTTP/1.1 alone.
    let s = Setting::with(1, &["--protocol", "http"])?;
    let order = &s.instances[0];
    let load = json!({"path": "/sleep/300", "count": 12, "concurrency": 12});
    ensure!(statuses(&s.many(load.clone())?) == HashMap::from([(200, 12)]));
    let as_they_came = s.connections_to(order)?;
    ensure!(as_they_came >= 12, "a connection for each HTTP/1.1 request at a time, not {as_they_came}");

    s.rule(json!({"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE", "idleTimeout": "1s"}}}))?;
    wait_for("one HTTP/2 connection", SOON, || {
        let results = s.many(load.clone())?;
        ensure!(statuses(&results) == HashMap::from([(200, 12)]), "{:?}", statuses(&results));
        let connections = s.connections_to(order)?;
        ensure!((1..=2).contains(&connections), "{connections} connections");
        Ok(())
    })?;
    // An HTTP/2 client is served too.
    s.rule(json!({"connectionPool": {"http": {"useClientProtocol": true}}}))?;
    let answer = s.get("/", &["--http2-prior-knowledge"])?;
    ensure!(answer.starts_with("HTTP/2 200"), "{answer}");

    s.rule(json!({"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE", "maxConcurrentStreams": 3, "idleTimeout": "1s"}}}))?;
    wait_for("three streams a connection", SOON, || {
        let results = s.many(load.clone())?;
        ensure!(statuses(&results) == HashMap::from([(200, 12)]), "{:?}", statuses(&results));
        let connections = s.connections_to(order)?;
        ensure!((4..=6).contains(&connections), "{connections} connections");
        Ok(())
    })
}

fn fields_of_connections() -> Result<()> {
    let s = Setting::new(1)?;
    let order = &s.instances[0];
    // Requests on kept connections after the bound is lifted go on without one.
    s.rule(json!({"connectionPool": {"http": {"maxRequestsPerConnection": 2}}}))?;
    let most = |results: &[Value]| -> Option<u64> {
        let bodies = results.iter().filter_map(|r| serde_json::from_str::<Value>(r["body"].as_str()?).ok());
        bodies.filter_map(|b| b["request"].as_u64()).max()
    };
    wait_for("two requests a connection", SOON, || {
        let most = most(&s.many(json!({"count": 20}))?);
        ensure!(most == Some(2), "{most:?}");
        Ok(())
    })?;
    s.rule(json!({"connectionPool": {"http": {"idleTimeout": "1s"}}}))?;
    wait_for("more requests a connection", SOON, || {
        let most = most(&s.many(json!({"count": 20}))?);
        ensure!(most >= Some(10), "{most:?}");
        Ok(())
    })?;
    wait_for("idle connections to be closed", SOON, || {
        let open = s.connections_to(order)?;
        ensure!(open == 0, "{open} connections");
        Ok(())
    })?;
    s.rule(json!({"connectionPool": {"tcp": {"tcpKeepalive": {"time": "100s", "interval": "10s", "probes": 3}}}}))?;
    wait_for("keep-alive", SOON, || {
        s.get("/", &[])?;
        let sockets = s.front.run("ss", &["-Htno", "state", "established", "dst", &order.pod.ip])?;
        ensure!(sockets.contains("timer:(keepalive,1min"), "{sockets}");
        Ok(())
    })?;
    // TCP: idle timeout and maximum duration.
    let tcp = s.mesh.pod("tcp")?;
    let script = tests_dir().join("apps/tcp.py").to_string_lossy().into_owned();
    let _server = tcp.spawn("tcp", "python3", &[&script, "9000", "echo"])?;
    let _sidecar =
        s.mesh.sidecar_with_redirection(&tcp, "tcp", &["--service", "tcp", "--port", "9000", "--protocol", "tcp"])?;
    s.mesh.wait_healthy(&tcp.ip)?;
    let to = s.mesh.vip("tcp")?;
    // The server echoes data until the connection ends.
    let lasts = |field: &str, pause: &str| -> Result<Duration> {
        let program = format!(
            "import socket,time,sys\nc=socket.create_connection(('{to}',9000),timeout=15)\nstart=time.monotonic()\n\
             try:\n while time.monotonic()-start<10:\n  c.sendall(b'x')\n  if not c.recv(10): break\n  {pause}\n\
             except ConnectionError: pass\nprint(time.monotonic()-start)"
        );
        let text = s.front.run("python3", &["-c", &program])?;
        let seconds = text.trim().parse().with_context(|| format!("{field}: {text}"))?;
        Ok(Duration::from_secs_f64(seconds))
    };
    for (field, pause) in [("maxConnectionDuration", "time.sleep(.05)"), ("idleTimeout", "c.recv(1);break")] {
        let rule = json!({"host": "tcp", "trafficPolicy": {"connectionPool": {"tcp": {field: "1s"}}}});
        s.mesh.policy("tcp.yaml", &document(Kind::DestinationRule, "tcp", rule))?;
        wait_for(field, Duration::from_secs(30), || {
            let lasted = lasts(field, pause)?;
            ensure!(lasted > Duration::from_millis(900) && lasted < Duration::from_secs(4), "it lasted {lasted:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn fields_port_level() -> Result<()> {
    let s = Setting::new(1)?;
    let order = &s.instances[0];
    let _second = order.pod.serve(8081, "second")?;
    // A Service document: two ports, one of them with a name for its target.
    let ports = json!([
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "http-second", "port": 81, "targetPort": 8081},
    ]);
    s.mesh.policy("service.yaml", &document(Kind::Service, "order-service", json!({"ports": ports})))?;
    let at = |port: u16| -> Result<String> {
        s.front.curl(&["-H", "Host: order-service", &format!("http://{}:{port}/", s.vip)])
    };
    wait_for("both ports", SOON, || {
        let (first, second) = (at(80)?, at(81)?);
        ensure!(first.contains("\"order1\"") && second.contains("\"second\""), "{first} {second}");
        Ok(())
    })?;
    s.rule(json!({"connectionPool": {"http": {"maxRequestsPerConnection": 3}}, "portLevelSettings": [{"port": {"number": 81}, "connectionPool": {"http": {"maxRequestsPerConnection": 1}}}]}))?;
    let most = |port: u16| -> Result<u64> {
        let results = s.front.requests(&json!({
            "url": format!("http://{}:{port}/", s.vip), "count": 20, "headers": {"Host": "order-service"},
        }))?;
        let bodies = results.iter().filter_map(|r| serde_json::from_str::<Value>(r["body"].as_str()?).ok());
        bodies.filter_map(|b| b["request"].as_u64()).max().context("no answers")
    };
    wait_for("settings of each port", SOON, || {
        let found = (most(80)?, most(81)?);
        ensure!(found == (3, 1), "{found:?}");
        Ok(())
    })?;
    // STRICT except for one port.
    let outside = s.mesh.pod("outside")?;
    let plain = |port: u16| outside.curl(&["-i", &format!("http://{}:{port}/", order.pod.ip)]);
    ensure!(status(&plain(8080)?) == "200" && status(&plain(8081)?) == "200");
    let open = json!({
        "selector": {"matchLabels": {"app": "none"}},
        "mtls": {"mode": "STRICT"},
        "portLevelMtls": {"8081": {"mode": "PERMISSIVE"}},
    });
    s.mesh.strict()?;
    s.mesh.policy("open.yaml", &document(Kind::PeerAuthentication, "open", open))?;
    wait_for("STRICT", SOON, || {
        let (first, second) = (plain(8080)?, plain(8081)?);
        ensure!(status(&first) == "403" && status(&second) == "403", "{first} {second}");
        Ok(())
    })?;
    let labelled = s.mesh.pod("labelled")?;
    let _apps = (labelled.serve(8080, "first")?, labelled.serve(8081, "second")?);
    let args = ["--service", "order-service", "--port", "8080", "--label", "app=none"];
    let _sidecar = s.mesh.sidecar_with_redirection(&labelled, "order-service", &args)?;
    let plain = |port: u16| outside.curl(&["-i", &format!("http://{}:{port}/", labelled.ip)]);
    let (first, second) = (plain(8080)?, plain(8081)?);
    ensure!(status(&first) == "403" && status(&second) == "200", "{first} {second}");
    Ok(())
}

fn fields_service_entries() -> Result<()> {
    let s = Setting::new(1)?;
    let outside = s.mesh.pod("outside")?;
    let _app = outside.serve(8080, "outside")?;
    let other = s.mesh.pod("other")?;
    let _other = other.serve(8080, "other")?;
    let entry = |name: &str, port: &Value, resolution: &str, more: Value| {
        let mut spec = json!({"hosts": [format!("{name}.test")], "ports": [port], "resolution": resolution});
        for (field, value) in more.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        document(Kind::ServiceEntry, name, spec)
    };
    let workload =
        |name: &str, ip: &str| document(Kind::WorkloadEntry, name, json!({"address": ip, "labels": {"app": "far"}}));
    let port = json!({"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080});
    let plain = json!({"number": 8080, "name": "http", "protocol": "HTTP"});
    let pool = json!({"http": {"maxRequestsPerConnection": 1}});
    let policies = [
        entry("static", &port, "STATIC", json!({"endpoints": [{"address": outside.ip}]})),
        entry("dns", &port, "DNS", json!({"endpoints": [{"address": "real.test"}]})),
        entry("none", &plain, "NONE", json!({"addresses": [outside.ip]})),
        entry("far", &port, "STATIC", json!({"workloadSelector": {"labels": {"app": "far"}}})),
        workload("far-1", &outside.ip),
        workload("far-2", &other.ip),
        document(
            Kind::DestinationRule,
            "none",
            json!({"host": "none.test", "trafficPolicy": {"connectionPool": pool}}),
        ),
    ];
    s.mesh.policy("entries.yaml", &policies.concat())?;
    // Where the proxy's own look-up of a DNS endpoint finds it: files are read when a process starts.
    s.front.hosts(&format!("127.0.0.1 localhost\n{} real.test\n", outside.ip))?;
    let Setting { mesh, front, sidecar, .. } = s;
    drop(sidecar);
    let _restarted = mesh.sidecar(&front, "frontend", &["--workload", "frontend"])?;
    for host in ["static.test", "dns.test"] {
        wait_for(host, SOON, || {
            let answer = front.curl(&["-i", &format!("http://{host}/")])?;
            ensure!(header(&answer, "x-served-by") == Some("outside"), "{answer}");
            Ok(())
        })?;
    }
    // NONE: to the original destination, under the policy of the host.
    let results = front.requests(&json!({
        "url": format!("http://{}:8080/", outside.ip), "count": 5, "headers": {"Host": "none.test:8080"},
    }))?;
    ensure!(served_by(&results).iter().all(|name| name == "outside"), "{results:?}");
    ensure!(results.iter().all(|r| r["body"].as_str().is_some_and(|b| b.contains("\"request\": 1,"))), "{results:?}");
    // Both workloads that the selector selects.
    wait_for("both workloads", SOON, || {
        let plan = json!({"url": "http://far.test/", "count": 10});
        let servers: BTreeSet<String> = served_by(&front.requests(&plan)?).into_iter().collect();
        ensure!(servers == BTreeSet::from(["other".to_owned(), "outside".to_owned()]), "{servers:?}");
        Ok(())
    })
}
