//! Consul's DNS interface, on the control plane and in sidecars, by dig and dnspython.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Mesh, Pod, Process, python_of, tests_dir, wait_for};

use crate::Scenario;
use crate::operations::{SOON, put};
use crate::outside::name_server;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        dig_and_dnspython_find_registered_services,
        names_outlive_the_control_plane,
        only_queries_to_the_pods_own_name_servers_are_captured,
    ]
}

/// The output of dig.
struct Answer {
    status: String,
    flags: String,
    /// Type, data and TTL of each record of the answer section.
    records: Vec<(String, String, u32)>,
    text: String,
}

impl Answer {
    fn data(&self) -> BTreeSet<&str> {
        self.records.iter().map(|(_, data, _)| data.as_str()).collect()
    }
}

/// Asks a name server on loopback.
fn dig(pod: &Pod, args: &[&str]) -> Result<Answer> {
    let all = [&["@127.0.0.1", "-p", "8600", "+tries=1", "+time=5"], args].concat();
    parse(pod.run("dig", &all)?)
}

fn parse(text: String) -> Result<Answer> {
    let after = |mark: &str| text.split_once(mark).map(|(_, rest)| rest);
    let status = after("status: ").and_then(|rest| rest.split(',').next()).context("no status")?.to_owned();
    let flags = after(";; flags:").and_then(|rest| rest.split(';').next()).context("no flags")?.to_owned();
    let lines = after(";; ANSWER SECTION:\n").unwrap_or_default().lines().take_while(|line| !line.is_empty());
    let records = lines.map(|line| {
        let mut words = line.split_whitespace();
        let ttl = words.nth(1).and_then(|ttl| ttl.parse().ok()).context("no TTL")?;
        let kind = words.nth(1).context("no type")?.to_owned();
        Ok((kind, words.collect::<Vec<_>>().join(" "), ttl))
    });
    let records = records.collect::<Result<_>>()?;
    Ok(Answer { status, flags, records, text })
}

/// Waits for an answer with this data.
fn dig_until(pod: &Pod, args: &[&str], data: &[&str]) -> Result<Answer> {
    wait_for("an answer", SOON, || {
        let answer = dig(pod, args)?;
        ensure!(answer.data() == data.iter().copied().collect(), "{args:?}: {}", answer.text);
        Ok(answer)
    })
}

/// A pod with a sidecar, and instances registered there: id, port, tag, whether they are healthy.
fn instances(
    mesh: &Mesh,
    name: &str,
    service: &str,
    all: impl IntoIterator<Item = (String, u16, &'static str, bool)>,
) -> Result<(Pod, Process)> {
    let pod = mesh.pod(name)?;
    let sidecar = mesh.sidecar(&pod, service, &[])?;
    for (id, port, tag, healthy) in all {
        let check = if healthy { Value::Null } else { json!({"ttl": "60s"}) };
        let body = json!({"name": service, "id": id, "port": port, "tags": [tag], "check": check});
        ensure!(put(&pod, "service/register", &body)? == "200", "{name}: {id}");
    }
    Ok((pod, sidecar))
}

fn dig_and_dnspython_find_registered_services() -> Result<()> {
    let python = python_of("dns")?;
    let mesh = Mesh::start(&[])?;
    let (order1, _s1) =
        instances(&mesh, "order1", "order-service", [("a".into(), 8080, "v1", true), ("b".into(), 8081, "v2", false)])?;
    let (order2, _s2) = instances(&mesh, "order2", "order-service", [("a".into(), 9090, "v2", true)])?;
    let (_sick, _s3) = instances(&mesh, "sick", "sick", [("a".into(), 80, "v1", false)])?;
    let many = (0..40).map(|n| (format!("id{n}"), 7000 + n, "v1", true));
    let (many, _s4) = instances(&mesh, "many", "many", many)?;
    let front = mesh.pod("frontend")?;
    front.resolv_conf("nameserver 10.255.255.53\n")?;
    let _s5 = mesh.sidecar_with_redirection(&front, "frontend", &[])?;
    let hex = format!("{:08x}", u32::from(order1.ip.parse::<Ipv4Addr>()?));

    for (place, pod) in [("the control plane", &mesh.center), ("a sidecar", &front)] {
        println!("{place}:");
        let both = dig_until(pod, &["order-service.service.consul"], &[&order1.ip, &order2.ip])?;
        ensure!(both.status == "NOERROR" && both.records.iter().all(|r| r.2 <= 1), "{}", both.text);
        ensure!(both.flags.contains(" aa") || place == "a sidecar", "{}", both.text);
        // A tag, and an instance whose check is critical.
        dig_until(pod, &["v1.order-service.service.dc1.consul"], &[&order1.ip])?;
        dig_until(pod, &["V2.Order-Service.Service.Consul"], &[&order2.ip])?;
        let srv = dig(pod, &["_order-service._tcp.service.consul", "SRV"])?;
        let mut targets = Vec::new();
        for (_, data, _) in &srv.records {
            let [priority, weight, port, target] = data.split(' ').collect::<Vec<_>>()[..] else {
                anyhow::bail!("{}", srv.text)
            };
            ensure!((priority, weight) == ("1", "1") && target.ends_with(".node.dc1.consul."), "{}", srv.text);
            targets.push((port.to_owned(), target.to_owned()));
        }
        targets.sort();
        let [(port1, node1), (port2, node2)] = &targets[..] else { anyhow::bail!("{}", srv.text) };
        ensure!((port1.as_str(), port2.as_str()) == ("8080", "9090"), "{}", srv.text);
        for (node, ip) in [(node1, &order1.ip), (node2, &order2.ip)] {
            let additional = srv.text.split(";; ADDITIONAL SECTION:").nth(1).context("no additional records")?;
            let given = additional.lines().any(|line| line.starts_with(node.as_str()) && line.ends_with(ip.as_str()));
            ensure!(given, "{}", srv.text);
            dig_until(pod, &[node], &[ip])?;
            dig_until(pod, &["-x", ip], &[node])?;
        }
        dig_until(pod, &[&format!("{hex}.addr.consul")], &[&order1.ip])?;
        dig_until(pod, &["order-service.virtual.consul"], &[&mesh.vip("order-service")?])?;
        for (name, kind, status) in [
            ("gone.service.consul", "A", "NXDOMAIN"),
            ("sick.service.consul", "A", "NXDOMAIN"),
            ("order-service.service.dc9.consul", "A", "NXDOMAIN"),
            ("order-service.service.consul", "AAAA", "NOERROR"),
            ("order-service.service.consul", "MX", "NOERROR"),
            ("service.consul", "A", "NOERROR"),
        ] {
            let none = dig(pod, &[name, kind])?;
            let soa = none.text.contains("SOA\tns.consul. hostmaster.consul.");
            ensure!(none.status == status && none.records.is_empty() && soa, "{}", none.text);
        }
        // Too large for a packet: truncated over UDP, complete over TCP.
        let cut = dig(pod, &["many.service.consul", "SRV", "+noedns", "+ignore"])?;
        ensure!(cut.flags.contains(" tc") && (1..40).contains(&cut.records.len()), "{}", cut.text);
        let whole = dig(pod, &["many.service.consul", "SRV", "+noedns"])?;
        ensure!(!whole.flags.contains(" tc") && whole.data().len() == 40, "{}", whole.text);
        ensure!(whole.text.contains("retrying in TCP mode"), "{}", whole.text);
        // One address for each SRV record, though all instances are on one node.
        let additional = whole.text.split(";; ADDITIONAL SECTION:").nth(1).unwrap_or_default();
        ensure!(additional.matches(&format!("\tA\t{}\n", many.ip)).count() == 40, "{}", whole.text);
        let large = dig(pod, &["many.service.consul", "SRV", "+bufsize=4096", "+ignore"])?;
        ensure!(!large.flags.contains(" tc") && large.data().len() == 40, "{}", large.text);
        dig_until(pod, &["many.service.consul"], &[&many.ip])?;
        let script = tests_dir().join("clients/dns_python.py").to_string_lossy().into_owned();
        print!("{}", pod.run(&python, &[&script, &order1.ip, &order2.ip, &many.ip])?);
    }
    let outside = dig(&mesh.center, &["example.com"])?;
    ensure!(outside.status == "REFUSED", "{}", outside.text);

    // Captured queries: a service's address is its virtual IP, all other answers are Consul's.
    let captured =
        |args: &[&str]| parse(front.run("dig", &[&["@10.255.255.53", "+tries=1", "+time=5"], args].concat())?);
    let vip = mesh.vip("order-service")?;
    for name in ["order-service.service.consul", "order-service.service.dc1.consul"] {
        let answer = captured(&[name])?;
        ensure!(answer.data() == BTreeSet::from([vip.as_str()]), "{}", answer.text);
    }
    let tagged = captured(&["v1.order-service.service.consul"])?;
    ensure!(tagged.data() == BTreeSet::from([order1.ip.as_str()]), "{}", tagged.text);
    let srv = captured(&["order-service.service.consul", "SRV"])?;
    ensure!(srv.records.len() == 2, "{}", srv.text);
    let gone = captured(&["gone.service.consul"])?;
    ensure!(gone.status == "NXDOMAIN" && gone.text.contains("SOA"), "{}", gone.text);
    Ok(())
}

/// A query to another name server is not captured; of the pod's own servers, a silent one is tried last.
fn only_queries_to_the_pods_own_name_servers_are_captured() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let (order, _order) = instances(&mesh, "order1", "order-service", [("a".into(), 8080, "v1", true)])?;
    let servers = [("own", "192.0.2.1"), ("second", "192.0.2.2"), ("other", "192.0.2.3")].map(|(name, address)| {
        let pod = mesh.pod(name)?;
        let server = name_server(&pod, &json!({"here.example": [address]}))?;
        anyhow::Ok((pod, server))
    });
    let [own, second, other] = servers;
    let ((own, (_own, own_server)), (second, _second), (other, _other)) = (own?, second?, other?);
    let front = mesh.pod("frontend")?;
    front.resolv_conf(&format!("nameserver {}\nnameserver {}\n", own.ip, second.ip))?;
    let _front = mesh.sidecar_with_redirection(&front, "frontend", &["--workload", "frontend"])?;
    let ask = |server: &str, args: &[&str]| {
        let server = format!("@{server}");
        parse(front.run("dig", &[&[server.as_str(), "+tries=1", "+time=8"], args].concat())?)
    };
    let vip = mesh.vip("order-service")?;
    let name = "order-service.default.svc.cluster.local";
    ensure!(ask(&own.ip, &[name])?.data() == BTreeSet::from([vip.as_str()]), "captured");
    ensure!(ask(&other.ip, &[name])?.status == "NXDOMAIN", "the mesh's name is none of the other server's");
    ensure!(ask(&own.ip, &["here.example"])?.data() == BTreeSet::from(["192.0.2.1"]), "the pod's first");
    ensure!(
        ask(&other.ip, &["here.example"])?.data() == BTreeSet::from(["192.0.2.3"]),
        "the answer of the other server"
    );

    // Answers without records have an SOA record, and mesh addresses have PTR records.
    for (name, kind, status) in [(name, "AAAA", "NOERROR"), ("gone.default.svc.cluster.local", "A", "NXDOMAIN")] {
        let none = ask(&own.ip, &[name, kind])?;
        let soa = none.text.contains("SOA\tns.dns.svc.cluster.local. hostmaster.svc.cluster.local.");
        ensure!(none.status == status && none.records.is_empty() && soa, "{}", none.text);
    }
    let host = format!("{name}.");
    ensure!(ask(&own.ip, &["-x", &vip])?.data() == BTreeSet::from([host.as_str()]), "the virtual IP's name");
    let node = ask(&own.ip, &["-x", &order.ip])?;
    ensure!(
        node.records.iter().all(|(_, data, _)| data.ends_with(".consul.")) && !node.records.is_empty(),
        "{}",
        node.text
    );

    // Only the first look-up waits for the silent server.
    own_server.signal("STOP")?;
    ensure!(ask(&own.ip, &["here.example"])?.data() == BTreeSet::from(["192.0.2.2"]), "the second answers");
    let began = std::time::Instant::now();
    for _ in 0..5 {
        ensure!(ask(&own.ip, &["here.example"])?.data() == BTreeSet::from(["192.0.2.2"]), "the second answers");
    }
    ensure!(began.elapsed() < std::time::Duration::from_secs(2), "{:?}", began.elapsed());
    own_server.signal("CONT")
}

fn names_outlive_the_control_plane() -> Result<()> {
    // Also on an address for other machines, with a recursor that is unavailable.
    let listen = ["--dns-listen", "127.0.0.1:8600", "--dns-listen", "0.0.0.0:8601", "--dns-recursor", "192.0.2.1"];
    let mut mesh = Mesh::start(&listen)?;
    let (order, _s1) = instances(&mesh, "order1", "order-service", [("a".into(), 8080, "v1", true)])?;
    let (front, _s2) = mesh.client("frontend")?;
    let name = "order-service.service.consul";
    dig_until(&front, &[name], &[&order.ip])?;
    ensure!(dig(&front, &[name, "SRV"])?.records.len() == 1, "no SRV record");
    let center = format!("@{}", mesh.center.ip);
    let direct = parse(front.run("dig", &[&center, "-p", "8601", "+tries=1", name])?)?;
    ensure!(direct.data() == BTreeSet::from([order.ip.as_str()]), "{}", direct.text);
    let failed = parse(front.run("dig", &[&center, "-p", "8601", "+tries=1", "+time=5", "example.com"])?)?;
    ensure!(failed.status == "SERVFAIL" && failed.flags.contains(" ra"), "{}", failed.text);
    mesh.control_plane = None;
    // A stale answer is served.
    wait_for("a stale answer", SOON, || {
        let answer = dig(&front, &[name])?;
        ensure!(answer.data() == BTreeSet::from([order.ip.as_str()]), "{}", answer.text);
        ensure!(answer.records[0].2 == 5, "{}", answer.text);
        Ok(())
    })?;
    ensure!(dig(&front, &[name, "SRV"])?.records.len() == 1, "SRV is remembered too");
    let never = dig(&front, &["never.service.consul"])?;
    ensure!(never.status == "SERVFAIL", "{}", never.text);
    mesh.start_control_plane()?;
    wait_for("a fresh answer", SOON, || {
        let answer = dig(&front, &[name])?;
        ensure!(answer.records.len() == 1 && answer.records[0].2 <= 1, "{}", answer.text);
        let never = dig(&front, &["never.service.consul"])?;
        ensure!(never.status == "NXDOMAIN", "{}", never.text);
        Ok(())
    })
}
