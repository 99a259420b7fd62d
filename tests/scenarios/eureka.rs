//! The sidecar as the pod's Eureka server, with the real py_eureka_client and eureka-js-client.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Mesh, Pod, Process, node_modules, python_of, statuses, tests_dir, wait_for};

use crate::Scenario;

const SERVER: &str = "http://127.0.0.1:8761/eureka/";
const SOON: Duration = Duration::from_secs(15);

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![eureka_clients_find_each_other_and_are_in_the_mesh, eureka_is_answered_while_the_control_plane_is_away,]
}

fn script(name: &str) -> String {
    tests_dir().join("clients").join(name).to_string_lossy().into_owned()
}

fn python(pod: &Pod, app: &str, port: u16) -> Result<Process> {
    let port = port.to_string();
    pod.spawn("py-eureka", python_of("eureka")?, &[&script("py_eureka.py"), "run", SERVER, app, &pod.ip, &port])
}

fn node(pod: &Pod, app: &str, port: u16, more: &[&str]) -> Result<Process> {
    let modules = format!("NODE_PATH={}", node_modules("eureka")?.display());
    let (script, port) = (script("js_eureka.js"), port.to_string());
    pod.spawn("js-eureka", "env", &[&[modules.as_str(), "node", &script, app, &pod.ip, &port], more].concat())
}

/// Waits until a client sees exactly these instances up.
fn sees(client: &Process, name: &str, expected: &[String]) -> Result<()> {
    let mut expected = expected.to_vec();
    expected.sort();
    let expected = expected.join(" ");
    wait_for(name, SOON, || {
        let output = client.output();
        let last = output.lines().rev().find_map(|line| line.strip_prefix("sees")).unwrap_or(" nothing yet");
        ensure!(last.trim() == expected, "{name} sees {:?}, not {expected:?}\n{output}", last.trim());
        Ok(())
    })
}

/// Status of the service's only instance, as Consul's API has it; empty: none.
fn consul_status(pod: &Pod, service: &str) -> Result<String> {
    let text = pod.curl(&["-f", &format!("http://127.0.0.1:8500/v1/health/checks/{service}")])?;
    let checks: Value = serde_json::from_str(&text)?;
    let lease = checks
        .as_array()
        .context("no list")?
        .iter()
        .find(|c| c["CheckID"].as_str().is_some_and(|id| id.starts_with("eureka:")));
    Ok(lease.map_or("", |check| check["Status"].as_str().unwrap_or("?")).to_owned())
}

/// Waits until a call to the service in the mesh has this answer.
fn called(mesh: &Mesh, from: &Pod, service: &str, status: u64) -> Result<()> {
    let url = format!("http://{}/", mesh.vip(service)?);
    wait_for("a call", SOON, || {
        let results = from.requests(&json!({ "url": url, "count": 1, "headers": { "Host": service } }))?;
        ensure!(statuses(&results).contains_key(&status), "{results:?}, not {status}");
        if status == 200 {
            let body = results[0].to_string();
            ensure!(body.contains("sa/"), "no mesh TLS: {body}");
        }
        Ok(())
    })
}

fn eureka_clients_find_each_other_and_are_in_the_mesh() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let cart = mesh.instance("cart1", "cart", 9090, &[])?;
    let mut pods = Vec::new();
    let mut processes = Vec::new();
    for (name, account) in [("order1", "order"), ("web1", "web")] {
        let pod = mesh.pod(name)?;
        processes.push((pod.serve(8080, name)?, mesh.sidecar(&pod, account, &[])?));
        mesh.redirect(&pod)?;
        pods.push(pod);
    }
    let [order, web] = &pods[..] else { anyhow::bail!("two pods") };
    let at = |app: &str, pod: &Pod, port: u16| format!("{app}@{}:{port}", pod.ip);
    let (cart_up, order_up, web_up) = (at("CART", &cart.pod, 9090), at("ORDER", order, 8080), at("WEB", web, 8080));

    // Each client sees the other's instances and those of other sources; so does Consul's API, and the mesh routes calls to them.
    let mut py = python(order, "order", 8080)?;
    sees(&py, "Python", &[cart_up.clone(), order_up.clone()])?;
    let watcher = node(&cart.pod, "cart", 9090, &["delta"])?;
    sees(&watcher, "JavaScript with deltas", &[cart_up.clone(), order_up.clone()])?;
    let mut js = node(web, "web", 8080, &[])?;
    let all = [cart_up.clone(), order_up.clone(), web_up.clone()];
    sees(&py, "Python", &all)?;
    sees(&js, "JavaScript", &all)?;
    let found = web.curl(&["-f", "http://127.0.0.1:8500/v1/health/service/order?passing"])?;
    let found: Value = serde_json::from_str(&found)?;
    let service = &found[0]["Service"];
    ensure!(service["Address"] == order.ip.as_str() && service["Meta"]["version"] == "v1", "{found}");
    ensure!(mesh.status().contains("version=v1"), "metadata are labels:\n{}", mesh.status());
    called(&mesh, web, "order", 200)?;
    called(&mesh, order, "web", 200)?;
    let addresses = web.run("dig", &["+short", "@127.0.0.1", "-p", "8600", "order.service.consul"])?;
    ensure!(addresses.trim() == order.ip, "{addresses}");
    let answer = web.curl(&["-f", &format!("http://{}:8080/", order.ip)])?;
    ensure!(answer.contains("sa/web"), "to the address that the client was given: {answer}");
    wait_for("heartbeats", SOON, || {
        let beats = js.output().lines().filter(|line| *line == "heartbeat").count();
        ensure!(beats >= 3 && !js.output().contains("FAILED"), "{}", js.output());
        Ok(())
    })?;

    // An instance that an operator takes out of service gets no calls until it is back.
    let id = format!("{}:order:8080", order.ip);
    let status = |value: &str| {
        order.run(&python_of("eureka")?, &[&script("py_eureka.py"), "status", SERVER, "ORDER", &id, value])
    };
    let without_order = [cart_up.clone(), web_up.clone()];
    status("OUT_OF_SERVICE")?;
    sees(&js, "JavaScript", &without_order)?;
    sees(&watcher, "JavaScript with deltas", &without_order)?;
    sees(&py, "Python", &without_order)?;
    called(&mesh, web, "order", 503)?;
    status("-")?;
    sees(&js, "JavaScript", &all)?;
    called(&mesh, web, "order", 200)?;
    status("DOWN")?;
    sees(&js, "JavaScript", &without_order)?;
    ensure!(consul_status(web, "order")? == "critical");
    status("UP")?;
    sees(&js, "JavaScript", &all)?;

    for client in [&py, &js, &watcher] {
        let output = client.output().to_lowercase();
        ensure!(!output.contains("error") && !output.contains("fail"), "a client is not content:\n{output}");
    }

    // A killed instance gets no calls after its lease, and gets calls again after its return.
    py.signal("KILL")?;
    py.wait(SOON)?;
    sees(&js, "JavaScript", &without_order)?;
    ensure!(consul_status(web, "order")? == "critical");
    called(&mesh, web, "order", 503)?;
    let py = python(order, "order", 8080)?;
    sees(&py, "Python", &all)?;
    sees(&js, "JavaScript", &all)?;
    called(&mesh, web, "order", 200)?;

    // An instance that deregisters is removed.
    js.signal("TERM")?;
    ensure!(js.wait(SOON)? == 0 && js.output().contains("stopped"), "{}", js.output());
    let left = [cart_up, order_up];
    sees(&watcher, "JavaScript with deltas", &left)?;
    sees(&py, "Python", &left)?;
    py.signal("TERM")?;
    wait_for("the end of its registration", SOON, || {
        let left = consul_status(web, "order")?;
        ensure!(left.is_empty(), "{left}\n{}", py.output());
        Ok(())
    })
}

fn eureka_is_answered_while_the_control_plane_is_away() -> Result<()> {
    let mut mesh = Mesh::start(&[])?;
    let order = mesh.instance("order1", "order", 8080, &[])?;
    let pod = mesh.pod("web1")?;
    let _sidecar = mesh.sidecar(&pod, "web", &["--eureka-api", "127.0.0.1:8762"])?;
    let ask = |method: &str, path: &str, accept: &str, body: &str| {
        let accept = format!("Accept: {accept}");
        let url = format!("http://127.0.0.1:8762/eureka/v2/{path}");
        let answer = pod.curl(&["-i", "--compressed", "-X", method, "-H", &accept, "-d", body, &url])?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        Ok::<_, anyhow::Error>((head.to_lowercase(), body.to_owned()))
    };
    let document = format!(
        "<instance><instanceId>web-1</instanceId><hostName>web</hostName><app>WEB</app><ipAddr>{}</ipAddr>\
         <port enabled=\"true\">8080</port><dataCenterInfo class=\"x.Y\"><name>MyOwn</name></dataCenterInfo></instance>",
        pod.ip
    );
    let (head, text) = ask("POST", "apps/WEB", "*/*", &document)?;
    ensure!(head.contains(" 204 "), "{head}{text}");
    let elsewhere = document.replace(&pod.ip, &order.pod.ip);
    let (head, text) = ask("POST", "apps/WEB", "*/*", &elsewhere)?;
    ensure!(head.contains(" 400 ") && text.contains("is not an address of this pod"), "{head}{text}");
    let (head, text) = ask("POST", "apps/ORDER", "*/*", &document.replace("WEB", "ORDER"))?;
    ensure!(head.contains(" 403 ") && text.contains("may not register"), "{head}{text}");
    let json = "application/json";
    let (_, apps) = ask("GET", "apps", json, "")?;
    let seen: Value = serde_json::from_str(&apps)?;
    let apps_of = seen["applications"]["application"].as_array().context("no list")?;
    ensure!(apps_of.len() == 2 && seen["applications"]["apps__hashcode"] == "UP_2_", "{seen}");
    let (_, xml) = ask("GET", "apps", "*/*", "")?;
    ensure!(xml.starts_with("<applications>"), "{xml}");

    mesh.control_plane.take().map_or(Ok(()), |c| c.signal("KILL"))?;
    for (accept, expected) in [(json, &apps), ("*/*", &xml)] {
        let (head, text) = ask("GET", "apps", accept, "")?;
        ensure!(head.contains(" 200 ") && head.contains("x-cache: hit") && text == *expected, "{head}{text}");
    }
    ensure!(ask("GET", "apps/delta", json, "")?.0.contains(" 503 "));
    // Instances of this pod stay.
    ensure!(ask("PUT", "apps/WEB/web-1", "*/*", "")?.0.contains(" 200 "));
    ensure!(ask("PUT", "apps/WEB/web-1/metadata?version=v2", "*/*", "")?.0.contains(" 200 "));
    mesh.start_control_plane()?;
    wait_for("the changes of the outage", SOON, || {
        let (head, text) = ask("GET", "apps/WEB/web-1", json, "")?;
        ensure!(head.contains(" 200 ") && text.contains(r#""version":"v2""#), "{head}{text}");
        Ok(())
    })
}
