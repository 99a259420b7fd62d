//! Disks: a store without space, and one that is damaged.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::{Etcd, Mesh, run, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        a_full_disk_is_reported_and_the_store_recovers_without_a_restart,
        etcd_out_of_space_is_reported_by_name_and_recovers,
        a_damaged_store_names_its_file_and_the_snapshot_that_brings_it_back,
    ]
}

/// Limit of a wait.
const SOON: Duration = Duration::from_secs(15);

/// A small file system of its own.
struct Disk(PathBuf);

impl Disk {
    fn new(at: &Path, size: &str) -> Result<Disk> {
        std::fs::create_dir_all(at)?;
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", &at.to_string_lossy()])?;
        Ok(Disk(at.to_owned()))
    }

    /// Takes all space that is left.
    fn fill(&self) -> Result<()> {
        let mut file = std::fs::File::create(self.0.join("filler"))?;
        let full = std::iter::repeat_with(|| std::io::Write::write_all(&mut file, &[1; 4096])).find_map(Result::err);
        let full = full.context("it has no end")?;
        ensure!(full.kind() == std::io::ErrorKind::StorageFull, "{full}");
        Ok(())
    }

    fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.0.join("filler"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", &self.0.to_string_lossy()]);
    }
}

const RULE: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: order, annotations: {example.com/note: 'NOTE'}}
spec: {host: order-service}
";

/// Applies a rule of some 300 KB, which no page that happens to be free takes.
fn apply(mesh: &Mesh, number: u32) -> Result<String> {
    let file = mesh.center.folder("rule.yaml").to_string_lossy().into_owned();
    let note = number.to_string().repeat(300 << 10);
    std::fs::write(&file, RULE.replace("NOTE", &note))?;
    mesh.weftctl(&["apply", "-f", &file])
}

fn telemetry(mesh: &Mesh, path: &str) -> Result<String> {
    mesh.center.curl(&["-w", "%{http_code}", &format!("http://127.0.0.1:8501{path}")])
}

/// The reports while writes fail.
fn reported(mesh: &Mesh, cause: &str) -> Result<()> {
    let status = mesh.status();
    ensure!(status.contains("NOT WRITABLE") && status.contains(cause), "{status}");
    ensure!(mesh.weftctl(&["status"]).is_err(), "its exit status is not 0");
    let ready = telemetry(mesh, "/healthz/ready")?;
    ensure!(ready.ends_with("503") && ready.contains(cause), "{ready}");
    let metrics = telemetry(mesh, "/metrics")?;
    ensure!(metrics.contains("weft_store_writable 0"), "{metrics}");
    ensure!(!metrics.contains("weft_store_write_failures_total 0"), "{metrics}");
    Ok(())
}

fn recovered(mesh: &mut Mesh) -> Result<()> {
    wait_for("recovery", SOON, || {
        let status = mesh.status();
        ensure!(!status.contains("NOT WRITABLE"), "{status}");
        Ok(())
    })?;
    ensure!(telemetry(mesh, "/healthz/ready")?.ends_with("200"), "{}", telemetry(mesh, "/healthz/ready")?);
    apply(mesh, 3)?;
    let process = mesh.control_plane.as_mut().context("it runs")?;
    ensure!(process.is_running(), "it was not restarted");
    let log = process.output();
    ensure!(log.contains("accepts no writes: ") && log.contains("accepts writes again"), "{log}");
    Ok(())
}

fn a_full_disk_is_reported_and_the_store_recovers_without_a_restart() -> Result<()> {
    let mut mesh = Mesh::network(&["--snapshot-interval", "0"])?;
    let disk = Disk::new(&mesh.data_dir(), "16m")?;
    mesh.start_control_plane()?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let call = || front.curl(&["-f", "-H", "Host: order-service", &format!("http://{vip}/")]);
    wait_for("the first call", SOON, call)?;
    apply(&mesh, 1)?;
    disk.fill()?;
    let refused = apply(&mesh, 2).err().context("it was applied on a full disk")?.to_string();
    ensure!(refused.contains("No space left") && refused.contains("weft.redb"), "{refused}");
    reported(&mesh, "No space left")?;
    // Traffic goes on, and the instance outlives its lease.
    call()?;
    disk.free()?;
    recovered(&mut mesh)?;
    call()?;
    drop(order);
    let _ = mesh.control_plane.take();
    Ok(())
}

fn etcd_out_of_space_is_reported_by_name_and_recovers() -> Result<()> {
    let mut mesh = Mesh::network(&[])?;
    let center = mesh.center.again();
    let etcd = Etcd::start_with(&center, 1, &["--quota-backend-bytes", "4000000"])?;
    mesh.control_plane_args = vec!["--store".into(), etcd.store()];
    mesh.start_control_plane()?;
    let mut number = 10;
    let refused = wait_for("etcd to be full", SOON, || {
        number += 1;
        apply(&mesh, number).err().context("it was applied")
    })?;
    let refused = refused.to_string();
    ensure!(refused.contains("NOSPACE") && refused.contains("etcdctl alarm disarm"), "{refused}");
    reported(&mesh, "NOSPACE")?;
    let status = etcd.query(0, "maintenance/status", "{}")?;
    let revision = status["header"]["revision"].as_str().context("no revision")?;
    etcd.query(0, "kv/compaction", &format!("{{\"revision\":\"{revision}\",\"physical\":true}}"))?;
    etcd.query(0, "maintenance/defragment", "{}")?;
    let member = status["header"]["member_id"].as_str().context("no member")?;
    let disarm = format!("{{\"action\":\"DEACTIVATE\",\"memberID\":\"{member}\",\"alarm\":\"NOSPACE\"}}");
    etcd.query(0, "maintenance/alarm", &disarm)?;
    recovered(&mut mesh)
}

fn a_damaged_store_names_its_file_and_the_snapshot_that_brings_it_back() -> Result<()> {
    let mut mesh = Mesh::network(&["--snapshot-interval", "1"])?;
    mesh.start_control_plane()?;
    apply(&mesh, 1)?;
    let folder = mesh.data_dir().join("snapshots");
    wait_for("a snapshot with the rule", SOON, || {
        let sizes = std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.metadata()?.len()));
        let sizes: Vec<u64> = sizes.collect::<Result<_>>()?;
        ensure!(sizes.iter().any(|size| *size > 300 << 10), "{sizes:?}");
        Ok(())
    })?;
    let process = mesh.control_plane.take().context("it runs")?;
    process.signal("KILL")?;
    drop(process);
    let file = mesh.data_dir().join("weft.redb");
    let mut bytes = std::fs::read(&file)?;
    let (at, page) = (bytes.len() / 2, [0x5a; 4096]);
    for place in bytes.iter_mut().skip(4096).step_by(97) {
        *place ^= 0x40;
    }
    bytes[at..at + page.len()].copy_from_slice(&page);
    std::fs::write(&file, bytes)?;

    let data = mesh.data_dir().to_string_lossy().into_owned();
    let listen = format!("{}:15012", mesh.center.ip);
    let args = ["--data-dir", &data, "--listen", &listen];
    let mut refused = mesh.center.spawn("damaged", weft_tests::binary("weft-control-plane")?, &args)?;
    ensure!(refused.wait(SOON)? != 0, "it does not serve on a damaged store");
    let log = refused.output();
    let newest = std::fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).max().context("no snapshot")?;
    let newest = newest.to_string_lossy().into_owned();
    let way_out = format!("weftctl snapshot restore {newest}");
    ensure!(log.contains(&*file.to_string_lossy()) && log.contains("damaged") && log.contains(&way_out), "{log}");

    // The remedy works. The copy is kept while the empty mesh writes a new store.
    let copy = mesh.center.folder("kept").to_string_lossy().into_owned();
    std::fs::copy(&newest, &copy)?;
    for name in ["weft.redb", "weft.redb.last"] {
        std::fs::rename(mesh.data_dir().join(name), mesh.center.folder(name))?;
    }
    mesh.start_control_plane()?;
    mesh.weftctl(&["snapshot", "restore", &copy])?;
    mesh.control_plane.take().context("it runs")?.signal("TERM")?;
    mesh.start_control_plane()?;
    ensure!(mesh.weftctl(&["get", "-o", "name"])?.contains("DestinationRule/default/order"), "the policy is back");
    Ok(())
}
