//! The registry under strain: fifty thousand instances, a clock that jumps, invalid registrations.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Mesh, Pod, binary, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        a_member_that_sends_the_largest_of_everything_is_refused_and_costs_bounded_memory,
        a_token_that_grants_three_thousand_services_is_small_and_joins,
        fifty_thousand_instances_survive_a_kill_and_the_loss_of_all_leases,
        clock_jumps_remove_no_instances,
        invalid_input_is_refused_and_state_survives,
        web_pages_cannot_use_the_apis_on_loopback,
        a_sidecar_whose_token_names_another_identity_joins_anew,
        consuls_config_entries_route_requests,
        a_service_without_a_port_is_found_by_name_and_is_no_endpoint,
    ]
}

fn a_member_that_sends_the_largest_of_everything_is_refused_and_costs_bounded_memory() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let token = mesh.center.folder("largest.token").to_string_lossy().into_owned();
    mesh.weftctl(&["token", "create", "--service-account", "largest", "--service", "s0", "--out", &token])?;
    let control = format!("{}:15012", mesh.center.ip);
    let resident = || anyhow::Ok(mesh.control_plane.as_ref().context("it runs")?.resident_kb()? / 1024);
    let before = resident()?;
    let args = ["largest", "--control-plane", &control, "--token-file", &token];
    let mut process = mesh.center.spawn("largest", binary("weft-load")?, &args)?;
    ensure!(process.wait(Duration::from_secs(120))? == 0, "{}", process.output());
    let output = process.output();
    let refused: Value = serde_json::from_str(output.lines().last().context("nothing printed")?)?;
    for (request, why) in [
        ("labels of a sidecar", "1 labels of 50005 bytes together, at most 128 of 8192 bytes"),
        ("metadata of an instance", "tags, metadata and tagged addresses are too large"),
        ("registrations of an identity", "has registered"),
        ("output of a check", "at most 8192"),
        ("a subscribed name", "resource_names_subscribe has 100000 bytes, at most 512"),
        ("labels in a stream", "labels of 100005 bytes"),
        ("names of an identity", "it asks for names of"),
        ("pairs of an identity", "at most 50000 of 67108864 bytes together are allowed; delete keys"),
        ("name of a session", "the field Name has 100000 bytes, at most 512"),
        ("sessions of an identity", "has written 5000 sessions"),
        ("metadata of a query", "too many for one of the prepared queries, at most 16384"),
        ("queries of an identity", "has written 1000 prepared queries"),
    ] {
        ensure!(refused[request].as_str().is_some_and(|text| text.contains(why)), "{request}: {:#}", refused);
    }
    let metrics = mesh.center.curl(&["-f", "http://127.0.0.1:8501/metrics"])?;
    let counted = metrics.lines().find_map(|line| line.strip_prefix("weft_out_of_bounds_total "));
    ensure!(counted.is_some_and(|count| count.parse().is_ok_and(|count: u64| count > 2000)), "{metrics}");
    let after = resident()?;
    println!("the control plane had {before} MB, and has {after} MB");
    ensure!(after < before + 450, "memory went from {before} to {after} MB");
    // Other members are served as before.
    let _order = mesh.instance("order1", "order", 8080, &[])?;
    Ok(())
}

fn a_token_that_grants_three_thousand_services_is_small_and_joins() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let token = mesh.center.folder("many.token").to_string_lossy().into_owned();
    let services: Vec<String> = (0..3000).flat_map(|n| ["--service".to_owned(), format!("service-{n}")]).collect();
    let services: Vec<&str> = services.iter().map(String::as_str).collect();
    mesh.weftctl(&[&["token", "create", "--service-account", "many", "--out", &token], &services[..]].concat())?;
    ensure!(std::fs::metadata(&token)?.len() < 1024, "the token is large");
    let pod = mesh.pod("many1")?;
    let _app = pod.serve(8080, "many1")?;
    let args = ["--token-file", &token, "--service", "service-2999", "--port", "8080"];
    let sidecar = mesh.sidecar(&pod, "many", &args)?;
    mesh.wait_healthy(&pod.ip)?;
    // The refusal of another service fits on a line.
    let refused = crate::operations::put(&pod, "service/register", &json!({"name": "other", "port": 8081}))?;
    ensure!(refused.contains("may not register the service") && refused.contains("and 2992 more"), "{refused:.500}");
    drop(sidecar);
    Ok(())
}

const SIDECARS: usize = 50;

fn fifty_thousand_instances_survive_a_kill_and_the_loss_of_all_leases() -> Result<()> {
    let mut mesh = Mesh::start(&["--lease", "4"])?;
    let token = mesh.center.folder("load.token").to_string_lossy().into_owned();
    let services: Vec<String> = (0..SIDECARS).flat_map(|n| ["--service".to_owned(), format!("s{n}")]).collect();
    let services: Vec<&str> = services.iter().map(String::as_str).collect();
    mesh.weftctl(&[&["token", "create", "--service-account", "load", "--out", &token], &services[..]].concat())?;
    let control = format!("{}:15012", mesh.center.ip);
    let before = mesh.control_plane.as_ref().context("it runs")?.resident_kb()?;
    let load = binary("weft-load")?;
    let args = ["registry", "--control-plane", &control, "--token-file", &token];
    let mut process = mesh.center.spawn("load", load, &args)?;
    ensure!(process.wait(Duration::from_secs(180))? == 0, "{}", process.output());
    let output = process.output();
    let figures: Value = serde_json::from_str(output.lines().last().context("no figures")?)?;
    ensure!(figures["registrations"] == 50_000, "{figures}");
    let grown = mesh.control_plane.as_ref().context("it runs")?.resident_kb()? - before;
    println!(
        "{:.0} registrations a second, {} KB for each thousand",
        figures["registrations_per_s"].as_f64().unwrap_or(0.0),
        grown / 50
    );
    ensure!(grown < 50 * 3 * 1700, "{grown} KB for 50,000 instances");

    let (front, _sidecar) = mesh.client("frontend")?;
    let all = |front: &Pod| -> Result<()> {
        for service in ["s0", "s17", "s49"] {
            let url = format!("http://127.0.0.1:8500/v1/health/service/{service}?consistent");
            let found: Value = serde_json::from_str(&front.curl(&["-f", &url])?)?;
            let count = found.as_array().map_or(0, Vec::len);
            ensure!(count == 1000, "{count} instances of {service}");
        }
        Ok(())
    };
    all(&front)?;
    let summary = mesh.weftctl(&["status"])?;
    ensure!(summary.contains("50 services, ") && summary.contains("All of it: -o wide"), "{summary:.2000}");
    ensure!(summary.lines().count() <= 40, "it does not fit a screen: {} lines", summary.lines().count());
    // All registrars are gone at once: a fault of the control plane or the network, so no instance is removed.
    wait_for("the leases to end", Duration::from_secs(20), || {
        let log = mesh.control_plane.as_ref().context("it runs")?.output();
        ensure!(log.contains("many leases ended at once"), "not yet");
        Ok(())
    })?;
    all(&front)?;
    let summary = mesh.weftctl(&["status"])?;
    ensure!(summary.contains("50000 instances"), "{summary:.2000}");
    mesh.control_plane.take().context("it runs")?.signal("KILL")?;
    let start = Instant::now();
    mesh.start_control_plane()?;
    println!("up with 50,000 instances after {} ms", start.elapsed().as_millis());
    wait_for("the sidecar to come back", Duration::from_secs(15), || all(&front))?;
    Ok(())
}

/// The control plane's clock jumps by hours while sidecars come and go: leases use the monotonic clock.
fn clock_jumps_remove_no_instances() -> Result<()> {
    let mut mesh = Mesh::network(&["--lease", "4"])?;
    let file = mesh.center.folder("clock").to_string_lossy().into_owned();
    let set = |offset: &str| std::fs::write(&file, offset).context("the clock");
    set("+0")?;
    let library = find_library()?;
    mesh.control_plane_env = vec![
        ("LD_PRELOAD".into(), library),
        ("FAKETIME_TIMESTAMP_FILE".into(), file.clone()),
        ("FAKETIME_NO_CACHE".into(), "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
        ("DONT_FAKE_MONOTONIC".into(), "1".into()),
    ];
    mesh.start_control_plane()?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let (front, _front) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let call = || front.curl(&["-f", "-H", "Host: order-service", &format!("http://{vip}/")]);
    call()?;
    for (round, offset) in ["+6h", "-6h", "+0"].into_iter().enumerate() {
        set(offset)?;
        // Past the lease.
        std::thread::sleep(Duration::from_secs(6));
        mesh.wait_healthy(&order.pod.ip)?;
        call()?;
        let body =
            format!("{{\"Name\":\"order-service\",\"ID\":\"o-{round}\",\"Port\":9000,\"Check\":{{\"TTL\":\"10m\"}}}}");
        order.pod.curl(&["-f", "-X", "PUT", "-d", &body, "http://127.0.0.1:8500/v1/agent/service/register"])?;
        let found = front.curl(&["-f", "http://127.0.0.1:8500/v1/health/service/order-service?consistent"])?;
        ensure!(found.contains(&format!("\"o-{round}\"")), "registered at {offset}: {found}");
        if offset == "-6h" {
            // A new sidecar: its certificate has the control plane's time.
            let hour = || weft_tests::run("date", &["-u", "-d", "6 hours ago", "+%Y-%m-%dT%H"]);
            let before = hour()?;
            let late = mesh.pod("late")?;
            let _late = mesh.sidecar(&late, "late", &[])?;
            let log = mesh.control_plane.as_ref().context("it runs")?.output();
            let jumped = [before, hour()?].iter().any(|hour| log.contains(hour.trim()));
            ensure!(jumped, "the clock did not jump:\n{log}");
        }
    }
    let log = mesh.control_plane.as_ref().context("it runs")?.output();
    ensure!(!log.contains("its lease has ended"), "{log}");
    Ok(())
}

/// The library that gives a process another clock.
pub(crate) fn find_library() -> Result<String> {
    let known = std::fs::read_dir("/usr/lib")?.flatten().map(|dir| dir.path().join("faketime/libfaketimeMT.so.1"));
    let found =
        known.into_iter().find(|path| path.exists()).context("libfaketime is not installed (package faketime)")?;
    Ok(found.to_string_lossy().into_owned())
}

/// Invalid registrations, and the errors that they get.
fn invalid_input_is_refused_and_state_survives() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let large = order.pod.folder("large").to_string_lossy().into_owned();
    std::fs::write(&large, vec![b' '; 10 << 20])?;
    let large = format!("@{large}");
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let register = "/v1/agent/service/register";
    let cases = [
        (register, "not json", "400", "decode error"),
        (register, "[]", "400", "is to be an object"),
        (register, "{}", "400", "Missing service name"),
        (register, r#"{"Name":"order-service","Port":"80"}"#, "400", "port of the service must be an integer"),
        (register, r#"{"Name":"order-service","Port":70000}"#, "400", "port"),
        (register, r#"{"Name":"order-service","Tags":"v1"}"#, "400", "tags"),
        (register, r#"{"Name":"order-service","Meta":{"a":1}}"#, "400", "meta.a"),
        (register, r#"{"Name":"order-service","Address":"0.0.0.0"}"#, "400", "Invalid service address"),
        (register, r#"{"Name":"order-service","Port":80,"Address":"192.0.2.1"}"#, "400", "192.0.2.1"),
        (register, r#"{"Name":"payment-service","Port":80}"#, "403", "may not register"),
        (
            register,
            r#"{"Name":"order-service","Port":80,"Check":{"HTTP":"http://192.0.2.1/","Interval":"1s"}}"#,
            "400",
            "192.0.2.1",
        ),
        (register, &large, "413", "too large"),
        (register, &deep, "400", "decode error"),
        ("/v1/agent/service/deregister/another-owners", "", "404", "Unknown service ID"),
        ("/v1/agent/check/pass/nothing", "", "404", "Unknown check ID"),
        ("/v1/agent/nonsense", "", "501", "not supported"),
        ("/v1/kv/", "x", "400", "Missing key name"),
        ("/v1/session/create", r#"{"TTL":"1ms"}"#, "400", "Invalid Session TTL"),
        ("/eureka/apps/ORDER-SERVICE", "<instance", "4", ""),
    ];
    for (path, body, status, words) in cases {
        let method = if path.starts_with("/eureka") { "POST" } else { "PUT" };
        let url = format!("http://127.0.0.1:8500{path}");
        let args = ["-X", method, "--data-binary", body, "-w", "\n%{http_code}", &url];
        let answer = order.pod.curl(&args).with_context(|| path.to_owned())?;
        let (text, code) = answer.rsplit_once('\n').context("no status")?;
        let shown: String = body.chars().take(80).collect();
        ensure!(code.starts_with(status) && text.contains(words), "{path} {shown}: {code} {text}");
    }
    mesh.wait_healthy(&order.pod.ip)?;
    let status = mesh.status();
    ensure!(status.matches(" healthy ").count() == 1, "nothing was lost and nothing came:\n{status}");
    Ok(())
}

/// Requests of a browser after DNS rebinding, or from another origin.
fn web_pages_cannot_use_the_apis_on_loopback() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let pod = mesh.pod("order1")?;
    let _sidecar = mesh.sidecar(
        &pod,
        "order-service",
        &["--service", "order-service", "--port", "8080", "--api-host", "agent.test"],
    )?;
    let ask = |pod: &Pod, url: &str, args: &[&str]| pod.curl(&[args, &["-w", "\n%{http_code}", url]].concat());
    let (evil, origin) =
        (["-H", "Host: evil.example:8500"], ["-X", "PUT", "-d", "x", "-H", "Origin: https://evil.example"]);
    let here = [
        "http://127.0.0.1:8500/v1/agent/services",
        "http://127.0.0.1:8761/eureka/apps",
        "http://127.0.0.1:15000/config",
    ];
    for url in here {
        let answer = ask(&pod, url, &evil)?;
        ensure!(answer.ends_with("\n421") && !answer.contains("order-service"), "{url}: {answer}");
        ensure!(answer.contains("--api-host evil.example"), "the remedy: {answer}");
        for name in ["127.0.0.1:8500", "localhost", "agent.test:8500"] {
            let answer = ask(&pod, url, &["-H", &format!("Host: {name}")])?;
            ensure!(answer.ends_with("\n200"), "{url} as {name}: {answer}");
        }
    }
    let written = ask(&pod, "http://127.0.0.1:8500/v1/kv/a", &origin)?;
    ensure!(written.ends_with("\n403") && written.contains("other origins"), "{written}");
    pod.curl(&["-f", "-X", "PUT", "-d", "x", "http://127.0.0.1:8500/v1/kv/b"])?;
    let keys = pod.curl(&["-f", "http://127.0.0.1:8500/v1/kv/?keys"])?;
    ensure!(keys.trim() == r#"["b"]"#, "{keys}");
    // Probes use the pod's address and any host name.
    ask(&pod, "http://127.0.0.1:15021/healthz/ready", &evil).and_then(|answer| {
        ensure!(answer.ends_with("\n200"), "{answer}");
        Ok(())
    })?;
    let center = ask(&mesh.center, "http://127.0.0.1:8501/v1/catalog/services", &evil)?;
    ensure!(center.ends_with("\n421") && center.contains("--http-name evil.example"), "{center}");
    Ok(())
}

/// One data folder with one token, then another, then the first again.
fn a_sidecar_whose_token_names_another_identity_joins_anew() -> Result<()> {
    let mesh = Mesh::start(&["--lease", "4"])?;
    let pod = mesh.pod("order1")?;
    let _app = pod.serve(8080, "order1")?;
    for account in ["order", "payment", "payment", "order"] {
        let sidecar = mesh.sidecar(&pod, account, &["--service", account, "--port", "8080"])?;
        let id = format!("spiffe://cluster.local/ns/default/sa/{account}");
        wait_for("the registration", Duration::from_secs(20), || {
            let status = mesh.status();
            let registered =
                status.lines().any(|line| line.contains(&format!("{}:8080", pod.ip)) && line.contains(&id));
            ensure!(registered, "{status}");
            Ok(())
        })?;
        sidecar.signal("KILL")?;
    }
    Ok(())
}

fn a_service_without_a_port_is_found_by_name_and_is_no_endpoint() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let order = mesh.instance("order1", "order", 8080, &[])?;
    let register = |body: &str| {
        let url = "http://127.0.0.1:8500/v1/agent/service/register";
        order.pod.curl(&["-w", "%{http_code}", "-X", "PUT", "-d", body, url])
    };
    ensure!(register(r#"{"Name":"order","ID":"portless"}"#)? == "200");
    let (front, _sidecar) = mesh.client("frontend")?;
    wait_for("the service by its name", Duration::from_secs(10), || {
        let found = front.curl(&["-f", "http://127.0.0.1:8500/v1/health/service/order?passing"])?;
        let found: Value = serde_json::from_str(&found)?;
        let mut ports: Vec<i64> =
            found.as_array().into_iter().flatten().filter_map(|i| i["Service"]["Port"].as_i64()).collect();
        ports.sort_unstable();
        ensure!(ports == [0, 8080], "{found}");
        Ok(())
    })?;
    ensure!(mesh.status().contains("(no port)"), "{}", mesh.status());
    let srv = front.run("dig", &["+short", "@127.0.0.1", "-p", "8600", "order.service.consul", "SRV"])?;
    ensure!(srv.lines().count() == 2 && srv.contains("1 1 0 "), "{srv}");
    for _ in 0..10 {
        let answer = front.curl(&["-f", "http://order/"])?;
        ensure!(answer.contains("sa/frontend"), "{answer}");
    }
    Ok(())
}

/// A service-resolver and a service-splitter, written by a program with a token beside its sidecar.
fn consuls_config_entries_route_requests() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let _instances = ["v1", "v2"]
        .map(|version| {
            mesh.instance(&format!("order-{version}"), "order", 8080, &["--label", &format!("version={version}")])
        })
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let token = mesh.weftctl(&["token", "create", "--api", "--service", "order"])?;
    let header = format!("X-Consul-Token: {}", token.trim());
    let put = |body: &str| {
        let url = "http://127.0.0.1:8500/v1/config";
        front.curl(&["-w", " %{http_code}", "-X", "PUT", "-H", &header, "-d", body, url])
    };
    let served = |wanted: [bool; 2]| {
        wait_for("the routes", Duration::from_secs(10), || {
            let answers: Vec<String> = (0..20).map(|_| front.curl(&["-f", "http://order/"])).collect::<Result<_>>()?;
            let seen = ["order-v1", "order-v2"].map(|name| answers.iter().any(|answer| answer.contains(name)));
            ensure!(seen == wanted, "{seen:?}, not {wanted:?}");
            Ok(())
        })
    };
    served([true, true])?;
    let subsets =
        r#""Subsets":{"v1":{"Filter":"Service.Meta.version == v1"},"v2":{"Filter":"Service.Meta.version == v2"}}"#;
    let resolver = format!(r#"{{"Kind":"service-resolver","Name":"order","DefaultSubset":"v2",{subsets}}}"#);
    let answer = put(&resolver)?;
    ensure!(answer == "true 200", "{answer}");
    served([false, true])?;
    let split = r#"{"Kind":"service-splitter","Name":"order","Splits":[{"Weight":100,"ServiceSubset":"v1"}]}"#;
    ensure!(put(split)? == "true 200");
    served([true, false])?;
    let refused = put(&resolver.replace("\"DefaultSubset\":\"v2\"", "\"Failover\":{\"*\":{\"Service\":\"x\"}}"))?;
    ensure!(refused.ends_with("400") && refused.starts_with("Failover:"), "{refused}");
    for kind in ["service-splitter", "service-resolver"] {
        let url = format!("http://127.0.0.1:8500/v1/config/{kind}/order");
        front.curl(&["-f", "-X", "DELETE", "-H", &header, &url])?;
    }
    served([true, true])?;
    ensure!(mesh.weftctl(&["get", "-o", "name"])?.is_empty(), "nothing is left");
    Ok(())
}
