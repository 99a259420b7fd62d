//! The store: redb and etcd keep the same promises, and several control planes over etcd serve as one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use weft_control_plane::store::embedded::Embedded;
use weft_control_plane::store::etcd::{Access, Etcd as EtcdStore};
use weft_control_plane::store::{Change, Condition, Error, Op, Shared, Table};
use weft_tests::{Etcd, Kind, Mesh, Pod, document, statuses, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        redb_and_etcd_keep_the_same_promises,
        acknowledged_writes_survive_a_kill,
        three_control_planes_over_etcd_serve_as_one,
        compacted_history_is_read_anew,
        a_control_plane_without_its_store_sends_sidecars_elsewhere,
        a_control_plane_above_its_share_sends_sidecars_to_another,
        a_snapshot_brings_a_mesh_back,
    ]
}

/// The contract of `Store`, for both implementations.
fn redb_and_etcd_keep_the_same_promises() -> Result<()> {
    let mesh = Mesh::network(&[])?;
    let etcd = Etcd::start(&mesh.center, 1)?;
    let dir = tempfile::tempdir()?;
    // In the network of the servers.
    let netns = std::fs::File::open(format!("/run/netns/{}", mesh.center.netns()))?;
    let thread = std::thread::spawn({
        let (url, path) = (format!("{}/a/b", etcd.store()), dir.path().to_owned());
        move || -> Result<()> {
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&netns),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let redb: Shared = Arc::new(Embedded::open(&path)?);
                contract(redb).await.context("redb")?;
                let etcd: Shared = Arc::new(EtcdStore::connect(&url, &Access::default()).await?);
                contract(etcd).await.context("etcd")
            })
        }
    });
    thread.join().map_err(|_| anyhow::anyhow!("the contract's thread panicked"))?
}

async fn contract(store: Shared) -> Result<()> {
    let put = |key: &str, value: &str| Op::put(Table::Kv, key, value);
    let mut watch = store.watch().await?;
    ensure!(watch.records.is_empty(), "{:?}", watch.records);
    // A transaction is all or nothing, and grows the revision by one.
    let first = store.txn(vec![Condition::absent(Table::Kv, "a/b")], vec![put("a/b", "1"), put("c", "2")]).await?;
    let first = first.context("nothing was there")?;
    ensure!(first > watch.revision, "{first} after {}", watch.revision);
    let refused = vec![Condition::unchanged(Table::Kv, "c", first), Condition::absent(Table::Kv, "a/b")];
    ensure!(store.txn(refused, vec![put("c", "x")]).await?.is_none(), "one condition does not hold");
    let second = store.txn(vec![Condition::unchanged(Table::Kv, "c", first)], vec![put("c", "3")]).await?;
    ensure!(second == Some(first + 1), "{second:?}");
    ensure!(store.txn(vec![], vec![Op::delete(Table::Kv, "nothing")]).await? == Some(0), "no change, no revision");
    let record = store.get(Table::Kv, "c").await?.context("c is there")?;
    ensure!((record.created, record.modified, record.value.as_slice()) == (first, first + 1, b"3"), "{record:?}");
    ensure!(store.get(Table::Sessions, "c").await?.is_none(), "tables are apart");
    // The watch delivers both changes, in order and with their revisions.
    let event = watch.changes.recv().await.context("the watch has ended")?;
    ensure!(event.revision == first && event.changes.len() == 2 && event.changes[0].key == "a/b", "{event:?}");
    let event = watch.changes.recv().await.context("the watch has ended")?;
    ensure!(event.changes == [Change { table: Table::Kv, key: "c".into(), record: Some(record) }], "{event:?}");
    // Leases.
    let lease = store.grant(Duration::from_secs(1)).await?;
    store.txn(vec![], vec![Op::put_leased(Table::Alive, "x", "1", lease)]).await?.context("done")?;
    let event = watch.changes.recv().await.context("the watch has ended")?;
    ensure!(event.changes[0].record.as_ref().is_some_and(|r| r.lease == lease), "{event:?}");
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        ensure!(store.keep_alive(lease).await?, "it is kept alive");
    }
    ensure!(store.get(Table::Alive, "x").await?.is_some(), "and its records");
    let event =
        tokio::time::timeout(Duration::from_secs(10), watch.changes.recv()).await?.context("the watch has ended")?;
    ensure!(event.changes == [Change { table: Table::Alive, key: "x".into(), record: None }], "{event:?}");
    ensure!(!store.keep_alive(lease).await?, "it has ended");
    let late = store.txn(vec![], vec![Op::put_leased(Table::Alive, "x", "1", lease)]).await;
    ensure!(late == Err(Error::LeaseEnded), "{late:?}");
    // A record that is written again without the lease stays when the lease is revoked.
    let lease = store.grant(Duration::from_secs(60)).await?;
    let bound = |key: &str| Op::put_leased(Table::Alive, key, "1", lease);
    store.txn(vec![], vec![bound("y"), bound("z")]).await?.context("done")?;
    store.txn(vec![], vec![Op::put(Table::Alive, "y", "2")]).await?.context("done")?;
    store.revoke(lease).await?;
    store.revoke(lease).await?;
    ensure!(store.get(Table::Alive, "y").await?.is_some() && store.get(Table::Alive, "z").await?.is_none());
    // A snapshot of all records, at one revision.
    let watch = store.watch().await?;
    let keys: Vec<_> = watch.records.iter().map(|(table, record)| (*table, record.key.as_str())).collect();
    ensure!(keys == [(Table::Alive, "y"), (Table::Kv, "a/b"), (Table::Kv, "c")], "{keys:?}");
    // Many at once, each once.
    let writers = (0..50).map(|n| {
        let store = store.clone();
        tokio::spawn(async move { store.txn(vec![Condition::absent(Table::Kv, "one")], vec![put_one(n)]).await })
    });
    let mut won = 0;
    for writer in writers.collect::<Vec<_>>() {
        won += usize::from(writer.await??.is_some());
    }
    ensure!(won == 1, "{won} of fifty made it");
    Ok(())
}

fn put_one(n: u32) -> Op {
    Op::put(Table::Kv, "one", n.to_string())
}

/// Ids of the instances of order-service that the agent in this pod lists.
fn listed(pod: &Pod) -> Result<Vec<String>> {
    let text = pod.curl(&["-f", "http://127.0.0.1:8500/v1/health/service/order-service"])?;
    let all: Value = serde_json::from_str(&text)?;
    let ids = all.as_array().context("no array")?.iter().filter_map(|i| i["Service"]["ID"].as_str());
    Ok(ids.map(str::to_owned).collect())
}

/// Registers instances until `end` is set. Returns the acknowledged ids.
fn registrar(pod: &Pod, first: usize, count: usize) -> Result<Vec<String>> {
    let mut acknowledged = Vec::new();
    for n in first..first + count {
        // Critical until the first report, so that it gets no request.
        let body = format!(
            "{{\"Name\":\"order-service\",\"ID\":\"o-{n}\",\"Port\":{},\"Check\":{{\"TTL\":\"10m\"}}}}",
            9000 + n
        );
        let url = "http://127.0.0.1:8500/v1/agent/service/register";
        let status = pod.curl(&["-o", "/dev/null", "-w", "%{http_code}", "-X", "PUT", "-d", &body, url])?;
        if status == "200" {
            acknowledged.push(format!("o-{n}"));
        }
    }
    Ok(acknowledged)
}

/// kill -9 of the only control plane in the middle of writes.
fn acknowledged_writes_survive_a_kill() -> Result<()> {
    let mut mesh = Mesh::start(&["--lease", "30"])?;
    let pod = mesh.pod("order")?;
    let _sidecar = mesh.sidecar(&pod, "order-service", &[])?;
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        std::thread::scope(|scope| -> Result<()> {
            let writer = scope.spawn(|| registrar(&pod, round * 30, 30));
            std::thread::sleep(Duration::from_millis(300));
            mesh.control_plane.take().context("it runs")?.signal("KILL")?;
            acknowledged.extend(writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??);
            Ok(())
        })?;
        mesh.start_control_plane()?;
    }
    ensure!(acknowledged.len() == 90, "the agent takes registrations meanwhile: {}", acknowledged.len());
    wait_for("all of them", Duration::from_secs(15), || {
        let listed = listed(&pod)?;
        let missing: Vec<_> = acknowledged.iter().filter(|id| !listed.contains(id)).collect();
        ensure!(missing.is_empty(), "{missing:?} were acknowledged and are not there");
        Ok(())
    })
}

fn three_control_planes_over_etcd_serve_as_one() -> Result<()> {
    let mut mesh = Mesh::network(&[])?;
    let center = mesh.center.again();
    let mut etcd = Etcd::start(&center, 3)?;
    let store = etcd.store();
    mesh.control_plane_args = ["--store", &store, "--lease", "4"].map(str::to_owned).to_vec();
    mesh.start_control_plane()?;
    let others = [1, 2].map(|number| mesh.another_control_plane(number, &["--store", &store, "--lease", "4"]));
    let [second, third] = others;
    let (_second, third) = (second?, third?);
    let at = |numbers: [u16; 3]| numbers.map(|n| format!("{}:{}", center.ip, 15012 + n)).join(",");
    let app = mesh.pod("order")?;
    let _server = app.serve(8080, "order")?;
    let through_third = at([2, 1, 0]);
    let args = ["--control-plane", &through_third, "--service", "order-service", "--port", "8080"];
    let _order = mesh.sidecar_with_redirection(&app, "order-service", &args)?;
    let front = mesh.pod("front")?;
    let through_second = at([1, 0, 2]);
    let _front = mesh.sidecar_with_redirection(&front, "frontend", &["--control-plane", &through_second])?;

    // Registered through one control plane, visible through another within a second.
    ensure!(registrar(&app, 0, 1)? == ["o-0"]);
    let start = Instant::now();
    wait_for("the other control plane", Duration::from_secs(3), || {
        ensure!(listed(&front)?.contains(&"o-0".to_owned()), "not there yet");
        Ok(())
    })?;
    println!("seen through another control plane {} ms after it was acknowledged", start.elapsed().as_millis());

    // Records that the store has lost are registered again.
    let record = || -> Result<Value> {
        let all = etcd.query(0, "kv/range", r#"{"key": "AA==", "range_end": "AA==", "keys_only": true}"#)?;
        let is_of_order = |kv: &&Value| {
            kv["key"]
                .as_str()
                .and_then(|key| BASE64_STANDARD.decode(key).ok())
                .is_some_and(|key| key.ends_with(b"/o-0"))
        };
        all["kvs"].as_array().into_iter().flatten().find(is_of_order).cloned().context("no record of o-0")
    };
    let before = record()?;
    etcd.query(0, "kv/deleterange", &json!({"key": before["key"]}).to_string())?;
    wait_for("the next heartbeat", Duration::from_secs(10), || {
        ensure!(record()?["create_revision"] != before["create_revision"], "not deleted yet");
        ensure!(listed(&front)?.contains(&"o-0".to_owned()), "not seen yet");
        Ok(())
    })?;
    app.curl(&["-f", "-X", "PUT", "http://127.0.0.1:8500/v1/agent/service/deregister/o-0"])?;

    // A control plane is killed during writes: its sidecars reconnect to another, no acknowledged write is lost, and
    // no live instance is removed.
    let vip = mesh.vip("order-service")?;
    let url = format!("http://{vip}/sleep/10");
    let load = json!({"url": url, "seconds": 25, "headers": {"Host": "order-service"}});
    let load = front.requests_meanwhile(&load)?;
    let acknowledged = std::thread::scope(|scope| -> Result<Vec<String>> {
        let writer = scope.spawn(|| registrar(&app, 100, 40));
        std::thread::sleep(Duration::from_millis(400));
        third.signal("KILL")?;
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?
    })?;
    ensure!(acknowledged.len() == 40, "{acknowledged:?}");
    let seen = || {
        let listed = listed(&front)?;
        let missing: Vec<_> = acknowledged.iter().filter(|id| !listed.contains(id)).collect();
        ensure!(missing.is_empty() && listed.contains(&"order-service-8080".to_owned()), "{missing:?}");
        Ok(())
    };
    wait_for("all that was acknowledged", Duration::from_secs(20), seen)?;
    // Past the lease of the killed control plane.
    std::thread::sleep(Duration::from_secs(6));
    seen()?;
    for id in &acknowledged {
        app.curl(&["-f", "-X", "PUT", &format!("http://127.0.0.1:8500/v1/agent/service/deregister/{id}")])?;
    }

    // etcd's leader is killed: writes go on, by the next.
    etcd.kill(etcd.leader()?)?;
    wait_for("a write without the leader", Duration::from_secs(30), || {
        ensure!(registrar(&app, 500, 1)?.len() == 1, "not taken");
        ensure!(listed(&front)?.contains(&"o-500".to_owned()), "not seen");
        Ok(())
    })?;
    let results = load.results()?;
    ensure!(statuses(&results).len() == 1, "requests failed meanwhile: {:?}", statuses(&results));
    Ok(())
}

/// A control plane's etcd is away while history is written and compacted.
fn compacted_history_is_read_anew() -> Result<()> {
    let mut mesh = Mesh::network(&[])?;
    let center = mesh.center.again();
    let mut etcd = Etcd::start(&center, 3)?;
    let (first, second) =
        (format!("etcd://{},{}", etcd.address(0), etcd.address(1)), format!("etcd://{}", etcd.address(2)));
    mesh.control_plane_args = ["--store", &first, "--lease", "60"].map(str::to_owned).to_vec();
    mesh.start_control_plane()?;
    let other = mesh.another_control_plane(1, &["--store", &second, "--lease", "60"])?;
    let app = mesh.pod("order")?;
    let _order = mesh.sidecar(&app, "order-service", &[])?;
    let front = mesh.pod("front")?;
    let through_other = format!("{}:15013", center.ip);
    let _front = mesh.sidecar(&front, "frontend", &["--control-plane", &through_other])?;
    registrar(&app, 0, 3)?;
    wait_for("the other control plane", Duration::from_secs(5), || {
        ensure!(listed(&front)?.len() == 3, "{:?}", listed(&front)?);
        Ok(())
    })?;
    etcd.kill(2)?;
    app.curl(&["-f", "-X", "PUT", "http://127.0.0.1:8500/v1/agent/service/deregister/o-1"])?;
    registrar(&app, 5, 2)?;
    let status = etcd.query(0, "maintenance/status", "{}")?;
    let revision = status["header"]["revision"].as_str().context("no revision")?;
    etcd.query(0, "kv/compaction", &format!("{{\"revision\":\"{revision}\"}}"))?;
    etcd.restart(2)?;
    wait_for("the missed changes", Duration::from_secs(20), || {
        let mut ids = listed(&front)?;
        ids.sort();
        ensure!(ids == ["o-0", "o-2", "o-5", "o-6"], "{ids:?}");
        Ok(())
    })?;
    ensure!(other.output().contains("compacted"), "it is not logged: {}", other.output());
    Ok(())
}

/// One of two control planes loses its etcd: its sidecar reconnects to the other and receives changes; when both have lost
/// it, the sidecars keep their last state.
fn a_control_plane_without_its_store_sends_sidecars_elsewhere() -> Result<()> {
    let mut mesh = Mesh::network(&[])?;
    let center = mesh.center.again();
    let mut etcd = Etcd::start(&center, 3)?;
    let (first, second) =
        (format!("etcd://{},{}", etcd.address(0), etcd.address(1)), format!("etcd://{}", etcd.address(2)));
    mesh.control_plane_args = ["--store", &first, "--lease", "3"].map(str::to_owned).to_vec();
    mesh.start_control_plane()?;
    let _other = mesh.another_control_plane(1, &["--store", &second, "--lease", "3"])?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let front = mesh.pod("front")?;
    let addresses = format!("{0}:15013,{0}:15012", center.ip);
    let _front = mesh.sidecar_with_redirection(&front, "frontend", &["--control-plane", &addresses])?;
    let vip = mesh.vip("order-service")?;
    let call = || front.curl(&["-f", "-H", "Host: order-service", &format!("http://{vip}/")]);
    wait_for("the first call", Duration::from_secs(5), call)?;
    etcd.kill(2)?;
    // Later changes reach the first control plane alone.
    let second = mesh.pod("order2")?;
    let _server = second.serve(8080, "order2")?;
    let _sidecar =
        mesh.sidecar_with_redirection(&second, "order-service", &["--service", "order-service", "--port", "8080"])?;
    wait_for("the second instance to be called", Duration::from_secs(40), || {
        ensure!(call()?.contains("order2"), "only the first one is");
        Ok(())
    })?;
    etcd.kill(1)?;
    std::thread::sleep(Duration::from_secs(8));
    for _ in 0..20 {
        call()?;
    }
    ensure!(order.pod.curl(&["-f", "http://127.0.0.1:15021/healthz/ready"]).is_ok());
    Ok(())
}

/// A control plane loses its data, and a snapshot restores it with the same CA, so that
/// sidecars keep their certificates.
fn a_snapshot_brings_a_mesh_back() -> Result<()> {
    let mut mesh = Mesh::start(&[])?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    order.pod.curl(&["-f", "-X", "PUT", "-d", "blue", "http://127.0.0.1:8500/v1/kv/app/colour"])?;
    let rule = document(Kind::DestinationRule, "order", json!({"host": "order-service"}));
    let file = mesh.center.folder("rule.yaml").to_string_lossy().into_owned();
    std::fs::write(&file, rule)?;
    mesh.weftctl(&["apply", "-f", &file])?;
    let vip = mesh.vip("order-service")?;
    let saved = mesh.center.folder("saved").to_string_lossy().into_owned();
    let output = mesh.weftctl(&["snapshot", "save", &saved])?;
    ensure!(output.contains("records in"), "{output}");
    ensure!(mesh.weftctl(&["snapshot", "save", &saved]).is_err(), "an existing file is not overwritten");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&saved)?.permissions());
    ensure!(mode & 0o777 == 0o600, "{mode:o}");

    mesh.stop_control_plane_and_forget()?;
    mesh.start_control_plane()?;
    ensure!(mesh.weftctl(&["get"])?.is_empty(), "nothing is left");
    let restored = mesh.weftctl(&["snapshot", "restore", &saved])?;
    ensure!(restored.contains("restart the control planes"), "{restored}");
    mesh.control_plane.take().context("it runs")?.signal("TERM")?;
    mesh.start_control_plane()?;
    mesh.wait_healthy(&order.pod.ip)?;
    ensure!(mesh.weftctl(&["get", "-o", "name"])?.contains("DestinationRule/default/order"), "the policy is back");
    ensure!(mesh.vip("order-service")? == vip, "the virtual IP is the same");
    let value = wait_for("the pair", Duration::from_secs(10), || {
        order.pod.curl(&["-f", "http://127.0.0.1:8500/v1/kv/app/colour?raw&consistent"])
    })?;
    ensure!(value == "blue", "{value}");
    // A new sidecar trusts the same root.
    let (front, _sidecar) = mesh.client("frontend")?;
    let answer = front.curl(&["-f", "-H", "Host: order-service", &format!("http://{vip}/")])?;
    ensure!(answer.contains("sa/frontend"), "{answer}");
    let damaged = mesh.center.folder("damaged").to_string_lossy().into_owned();
    let mut bytes = std::fs::read(&saved)?;
    bytes[40] ^= 1;
    std::fs::write(&damaged, bytes)?;
    let refused = mesh.weftctl(&["snapshot", "restore", &damaged]).err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(refused.contains("checksum"), "{refused}");
    Ok(())
}

/// Two control planes with a share of one stream each, and three sidecars: none goes without.
fn a_control_plane_above_its_share_sends_sidecars_to_another() -> Result<()> {
    let mut mesh = Mesh::network(&[])?;
    let center = mesh.center.again();
    let etcd = Etcd::start(&center, 1)?;
    let store = etcd.store();
    let args = ["--store", &store, "--max-streams", "1"];
    mesh.control_plane_args = args.map(str::to_owned).to_vec();
    mesh.start_control_plane()?;
    let second = mesh.another_control_plane(1, &args)?;
    let both = format!("{0}:15012,{0}:15013", center.ip);
    let mut sidecars = Vec::new();
    for name in ["one", "two", "three"] {
        let pod = mesh.pod(name)?;
        sidecars.push((mesh.sidecar(&pod, name, &["--control-plane", &both])?, pod));
    }
    let first = mesh.control_plane.as_ref().context("it runs")?;
    let status: Value = serde_json::from_str(&mesh.weftctl(&["status", "-o", "json"])?)?;
    let streams = status["sidecars"].as_array().map_or(0, Vec::len);
    ensure!(streams == 1 || streams == 2, "{streams} of three streams are at one control plane: {status:#}");
    let logs = [first.output(), second.output()].concat();
    ensure!(logs.contains("a stream is sent away: this control plane serves 1 streams"), "{logs}");
    Ok(())
}
