//! `weft-sidecar exec`: a command beside its sidecar, in network namespaces of its own and without.

use crate::Scenario;
use crate::machine::{belongings, user};
use crate::operations::SOON;
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use weft_tests::{Mesh, Process, binary, tests_dir, wait_for};

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        a_second_sidecar_in_a_namespace_is_refused_and_a_second_command_joins,
        exec_netns_makes_a_pod_and_leaves_nothing_behind,
        exec_netns_needs_no_root_and_no_address,
        exec_reaps_orphans_and_passes_no_capabilities_on,
    ]
}

fn a_second_sidecar_in_a_namespace_is_refused_and_a_second_command_joins() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let mut second = mesh.sidecar_unready(&order.pod, "billing", &["--data-dir", "/run/second"])?;
    let code = second.wait(SOON)?;
    let log = second.output();
    let why = format!("another weft-sidecar of order-service (process {}) serves port 15001", order.sidecar.id());
    ensure!(code == 1 && log.contains(&why) && log.contains("weft-sidecar exec --netns"), "{code}: {log}");

    // A command of the same service joins the running sidecar; a command of another service is refused, as its sidecar would be.
    let exec = |service: &str| -> Result<Process> {
        let token = mesh.token(service)?.to_string_lossy().into_owned();
        let control = format!("{}:15012", mesh.center.ip);
        let config = ["exec", "--control-plane", &control, "--token-file", &token, "--data-dir", "/run/third"];
        let command = ["--service", service, "--", "sh", "-c", "exit 5"];
        order.pod.spawn(&format!("exec-{service}"), binary("weft-sidecar")?, &[&config[..], &command].concat())
    };
    let mut joined = exec("order-service")?;
    let code = joined.wait(SOON)?;
    ensure!(code == 5 && joined.output().contains("the command joins it"), "{code}: {}", joined.output());
    let mut refused = exec("billing")?;
    let code = refused.wait(SOON)?;
    ensure!(code == 1 && refused.output().contains("another weft-sidecar of order-service"), "{}", refused.output());
    // The running sidecar is undisturbed, and after its end another may start.
    let (front, _sidecar) = mesh.client("frontend")?;
    let url = format!("http://{}:8080/", order.pod.ip);
    ensure!(front.curl(&["-f", &url])?.contains("sa/frontend"));
    drop(order.sidecar);
    mesh.sidecar(&order.pod, "billing", &["--data-dir", "/run/second"]).map(drop)
}

/// `weft-sidecar exec --netns` on the machine that the control plane runs on.
fn netns(mesh: &Mesh, name: &str, service: &str, options: &[&str], command: &[&str]) -> Result<Process> {
    let token = mesh.token(service)?.to_string_lossy().into_owned();
    let (control, data) = (format!("{}:15012", mesh.center.ip), format!("/run/netns-{name}"));
    let config = ["exec", "--control-plane", &control, "--token-file", &token, "--data-dir", &data];
    let all = [&config[..], &["--service", service], options, &["--"], command].concat();
    mesh.center.spawn_as_host(name, binary("weft-sidecar")?, &all)
}

/// A control plane on a machine's loopback, and commands beside it, run by an ordinary user if the test can switch to one.
struct Machine {
    mesh: Mesh,
    folder: String,
    /// The command that switches to an ordinary user; empty if the test runs as one.
    user: Vec<&'static str>,
}

impl Machine {
    fn new() -> Result<Machine> {
        let mesh = Mesh::network(&[])?;
        let folder = "/run/rootless".to_owned();
        let user: Vec<&str> = ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"].into();
        let other = std::process::Command::new(user[0]).args(&user[1..]).arg("true").output()?.status.success();
        std::fs::create_dir_all(format!("{folder}/policies"))?;
        // The build folder may be unreadable for an ordinary user.
        for name in ["weft-sidecar", "weft-control-plane", "weftctl"] {
            let (from, to) = (binary(name)?, format!("{folder}/{name}"));
            std::fs::write(&to, "")?;
            weft_tests::run("mount", &["--bind", &from.to_string_lossy(), &to])?;
        }
        weft_tests::run("chmod", &["777", &folder])?;
        Ok(Machine { mesh, folder, user: if other { user } else { Vec::new() } })
    }

    fn all<'a>(&'a self, program: &'a str, args: &[&'a str]) -> (&'a str, Vec<&'a str>) {
        let mut all = [&self.user[..], &[program], args].concat();
        (all.remove(0), all)
    }

    fn spawn(&self, name: &str, program: &str, args: &[&str]) -> Result<Process> {
        let program = format!("{}/{program}", self.folder);
        let (program, args) = self.all(&program, args);
        self.mesh.center.spawn_with(name, program, &args, &[("PATH".into(), "/usr/bin:/bin".into())])
    }

    fn weftctl(&self, args: &[&str]) -> Result<String> {
        let socket = format!("WEFT_ADMIN_SOCKET={}/control-plane/admin.sock", self.folder);
        let program = format!("{}/weftctl", self.folder);
        let (user, mut all) = self.all(&program, args);
        all.insert(0, user);
        all.insert(0, &socket);
        self.mesh.center.run("env", &all)
    }

    /// A command in the mesh.
    fn exec(&self, name: &str, options: &[&str], command: &[&str]) -> Result<Process> {
        let (token, data) = (format!("{}/{name}.token", self.folder), format!("{}/{name}", self.folder));
        if !std::fs::exists(&token)? {
            self.weftctl(&[
                "token",
                "create",
                "--service-account",
                name,
                "--service",
                name,
                "--service",
                "other",
                "--out",
                &token,
            ])?;
        }
        let exec =
            ["exec", "--netns", "--control-plane", "127.0.0.1:15012", "--token-file", &token, "--data-dir", &data];
        self.spawn(name, "weft-sidecar", &[&exec, options, &["--"], command].concat())
    }
}

/// The first steps on one machine: no root, no bridge, no address plan.
fn exec_netns_needs_no_root_and_no_address() -> Result<()> {
    let machine = Machine::new()?;
    let folder = &machine.folder;
    let (data, policies) = (format!("{folder}/control-plane"), format!("{folder}/policies"));
    let args = ["--data-dir", &data, "--policies", &policies, "--listen", "127.0.0.1:15012"];
    let control_plane = machine.spawn("control-plane", "weft-control-plane", &args)?;
    wait_for("the control plane", SOON, || {
        machine.weftctl(&["status"]).map(drop).map_err(|e| e.context(control_plane.output()))
    })?;
    let server = tests_dir().join("apps/server.py");
    let visible = format!("{folder}/server.py");
    std::fs::copy(server, &visible)?;
    let hello = ["python3", &visible, "8000", "hello1"];
    let mut service = machine.exec("hello", &["--service", "hello", "--port", "8000"], &hello)?;
    let registered = |text: &str| {
        wait_for("the registration", SOON, || {
            let status = machine.weftctl(&["status"])?;
            let line = status.lines().find(|line| line.contains(text) && line.contains(" healthy "));
            line.map(str::to_owned).with_context(|| format!("{status}\n{}", service.output()))
        })
    };
    let line = registered("hello-8000")?;
    ensure!(line.trim().starts_with("127.") && line.contains("sa/hello"), "{line}");
    // By name and mTLS, with the caller's identity; destinations outside the mesh are reached through the machine's network, and the
    // pod's own agent registers another port.
    let outside = machine.mesh.pod("outside")?;
    let _web = outside.spawn("web", "python3", &["-u", "-m", "http.server", "9000"])?;
    let put = r#"{\"Name\":\"other\",\"Port\":8001}"#;
    let script = format!(
        "id -u; grep CapEff /proc/self/status; curl -sS -m 5 -H 'Host: hello' http://hello:80/; \
         for i in 1 2 3 4 5 6 7 8 9; do curl -sS -f -m 5 -o /dev/null http://{}:9000/ && echo outside && break; sleep 0.2; done; \
         curl -sS -f -m 5 -X PUT -d \"{put}\" http://127.0.0.1:8500/v1/agent/service/register && echo put; \
         curl -sS -m 5 http://127.0.0.1:8500/v1/agent/self | grep -o '\"AdvertiseAddr\":\"127[0-9.]*' ; exit 7",
        outside.ip
    );
    let mut client = machine.exec("client", &[], &["sh", "-c", &script])?;
    let code = client.wait(SOON)?;
    let output = client.output();
    ensure!(code == 7, "{code}: {output}");
    let user = if machine.user.is_empty() { "0" } else { "1000" };
    for wanted in [user, "CapEff:\t0000000000000000", "sa/client", "outside\n", "put\n"] {
        let found = output.lines().any(|line| line == wanted.trim()) || output.contains(wanted);
        ensure!(found || (wanted.starts_with("Cap") && machine.user.is_empty()), "{wanted}: {output}");
    }
    // Both directions at once, and a second pod with the same port: each has an address of its own.
    let second = ["python3", &visible, "8000", "hello2"];
    let other = machine.exec("second", &["--service", "other", "--port", "8000"], &second)?;
    let line = registered("other-8000").map_err(|e| e.context(other.output()))?;
    ensure!(line.contains(":8000 "), "{line}");
    let mut client = machine.exec("client", &[], &["curl", "-sS", "-m", "5", "-H", "Host: other", "http://other/"])?;
    ensure!(client.wait(SOON)? == 0 && client.output().contains("hello2"), "{}", client.output());
    // Two pods cannot share a data folder.
    let mut same = machine.exec("hello", &[], &["true"])?;
    ensure!(same.wait(SOON)? == 1 && same.output().contains("with the same --data-dir"), "{}", same.output());
    // SIGTERM: the instance is deregistered first, and no process or file is left.
    service.signal("TERM")?;
    ensure!(service.wait(Duration::from_secs(30))? == 0, "{}", service.output());
    ensure!(service.output().contains("drained"), "{}", service.output());
    ensure!(!machine.weftctl(&["status"])?.contains("hello-8000"), "it is still registered");
    ensure!(!std::fs::exists(format!("{folder}/hello/exec.sock"))?, "the socket is left");
    drop(other);
    wait_for("the end of the processes inside", SOON, || {
        let left = machine.mesh.center.run("sh", &["-c", "pgrep -fa '[i]nside --sockets|[s]erver.py 8000' || true"])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })?;
    for name in ["weft-sidecar", "weft-control-plane", "weftctl"] {
        weft_tests::run("umount", &["-l", &format!("{folder}/{name}")])?;
    }
    Ok(())
}

/// The address in the mesh of the only healthy instance of a service.
fn address_of(mesh: &Mesh, id: &str) -> Result<String> {
    wait_for("the pod's registration", SOON, || {
        let status = mesh.status();
        let line = status.lines().find(|l| l.contains(&format!(" {id} on ")) && l.contains(" healthy "));
        let address = line.and_then(|l| l.split_whitespace().next()).with_context(|| status.clone())?;
        Ok(address.rsplit_once(':').context("no port")?.0.to_owned())
    })
}

/// Namespaces, links and files that `exec --netns` has created and not removed.
fn left(mesh: &Mesh) -> Result<String> {
    let namespaces = weft_tests::run("ip", &["netns", "list"])?;
    let links = mesh.center.run("ip", &["-o", "link"])?;
    let tables = mesh.center.run("nft", &["list", "tables"])?;
    let all = [namespaces, links, tables].concat();
    Ok(all.lines().filter(|l| l.contains("weft")).collect::<Vec<_>>().join("\n"))
}

fn exec_netns_makes_a_pod_and_leaves_nothing_behind() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let server = tests_dir().join("apps/server.py").to_string_lossy().into_owned();
    let order = ["python3", &server, "8080", "order1"];
    let options = ["--port", "8080", "--netns"];
    let mut process = netns(&mesh, "order", "order-service", &options, &order)?;
    let ip = address_of(&mesh, "order-service-8080").map_err(|e| e.context(process.output()))?;
    ensure!(ip.starts_with("10.87."), "an address of its own: {ip}");
    // Reached at its own address, by the mesh and by this machine.
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let call = || front.curl(&["-f", "-H", "Host: order-service", &format!("http://{vip}/")]);
    ensure!(call()?.contains("sa/frontend"));
    ensure!(mesh.center.curl(&["-f", &format!("http://{ip}:8080/")])?.contains("order1"));

    // A second service with the same port, at an address given by an option; they call each other, and a
    // machine outside.
    let outside = mesh.pod("outside")?;
    let web = outside.spawn("web", "python3", &["-u", "-m", "http.server", "9000"])?;
    let script = format!(
        "python3 {server} 8080 billing1 & trap 'kill $!' TERM; curl -sS -m 10 -H 'Host: order-service' http://{vip}/; \
         for i in 1 2 3 4 5 6 7 8 9; do curl -sS -f -m 5 -o /dev/null http://{}:9000/ && break; sleep 0.2; done; wait",
        outside.ip
    );
    let options = ["--port", "8080", "--netns=10.77.7.2/30"];
    let billing = netns(&mesh, "billing", "billing", &options, &["sh", "-c", &script])?;
    ensure!(address_of(&mesh, "billing-8080").map_err(|e| e.context(billing.output()))? == "10.77.7.2");
    wait_for("its calls", SOON, || {
        ensure!(billing.output().contains("sa/billing"), "{}", billing.output());
        // A given address is not masqueraded.
        ensure!(web.output().contains("10.77.7.2 - -"), "{}", web.output());
        Ok(())
    })?;
    // A chosen address is masqueraded: other machines see this machine's.
    let output = process.output();
    let (_, name) = output.split_once("made the network namespace ").context(output.clone())?;
    let name = name.split_whitespace().next().context("no name")?;
    weft_tests::run(
        "ip",
        &["netns", "exec", name, "curl", "-sS", "-m", "10", &format!("http://{}:9000/", outside.ip)],
    )?;
    wait_for("its call", SOON, || {
        ensure!(web.output().contains(&format!("{} - -", mesh.center.ip)), "{}", web.output());
        Ok(())
    })?;
    let same = netns(&mesh, "order", "order-service", &["--netns"], &["true"])?;
    wait_for("the refusal", SOON, || {
        ensure!(same.output().contains("with the same --data-dir /run/netns-order"), "{}", same.output());
        Ok(())
    })?;
    ensure!(call()?.contains("sa/frontend"), "and nothing happens to the first one");

    // Killed: the processes inside end too, and the next start creates the same pod again.
    process.signal("KILL")?;
    process.wait(SOON)?;
    ensure!(left(&mesh)?.contains("weft"), "a killed process cannot clean up");
    let mut process = netns(&mesh, "order", "order-service", &["--port", "8080", "--netns"], &order)?;
    wait_for("the pod's return", SOON, || {
        ensure!(process.output().matches("made the network namespace").count() == 2, "{}", process.output());
        call()
    })?;
    ensure!(address_of(&mesh, "order-service-8080")? == ip, "its address is the same");

    // Stopped by SIGTERM: nothing is left.
    process.signal("TERM")?;
    let code = process.wait(Duration::from_secs(30))?;
    ensure!(code == 0, "the application handles SIGTERM: {code}\n{}", process.output());
    let mut billing = billing;
    billing.signal("TERM")?;
    billing.wait(Duration::from_secs(30))?;
    ensure!(left(&mesh)?.is_empty(), "{}", left(&mesh)?);
    ensure!(!mesh.status().contains("healthy"), "{}", mesh.status());

    // Name servers on this machine's loopback are unreachable for the pod: it gets the upstream servers of systemd-resolved.
    let usual = std::fs::read_to_string("/etc/resolv.conf")?;
    std::fs::create_dir_all("/run/systemd/resolve")?;
    std::fs::write("/run/systemd/resolve/resolv.conf", "nameserver 10.9.8.7\n")?;
    std::fs::write("/etc/resolv.conf", "nameserver 127.0.0.53\n")?;
    let cat = netns(&mesh, "order", "order-service", &["--netns"], &["cat", "/etc/resolv.conf"])
        .and_then(|mut process| process.wait(SOON).map(|_| process.output()));
    std::fs::write("/etc/resolv.conf", usual)?;
    let cat = cat?;
    ensure!(cat.lines().any(|l| l == "nameserver 10.9.8.7"), "{cat}");
    // Pods of other scenarios have folders there too; these have this prefix.
    let left =
        std::fs::read_dir("/etc/netns")?.flatten().find(|f| f.file_name().to_string_lossy().starts_with("weft-"));
    ensure!(left.is_none(), "a folder is left: {left:?}");

    // Errors name the mistake.
    let refusal = |name: &str, options: &[&str], words: &str| -> Result<()> {
        let mut process = netns(&mesh, name, "order-service", options, &["true"])?;
        let code = process.wait(SOON)?;
        ensure!(code != 0 && process.output().contains(words), "{code}: {}", process.output());
        Ok(())
    };
    refusal("a", &["--netns=10.1.2.3/31"], "an address and prefix such as 10.87.0.2/30")?;
    refusal("b", &["--netns=10.78.7.2/30", "--control-plane", "127.0.0.1:15012"], "is on this machine's loopback")?;
    let unprivileged = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    if weft_tests::run("setpriv", &[&unprivileged[..], &["true"]].concat()).is_ok() {
        let sidecar = std::fs::read(binary("weft-sidecar")?)?;
        std::fs::write("/run/weft-sidecar", sidecar)?;
        weft_tests::run("chmod", &["755", "/run", "/run/weft-sidecar"])?;
        let exec = ["/run/weft-sidecar", "exec", "--control-plane", "10.0.0.1:1", "--netns=10.1.2.2/30", "--", "true"];
        let refused = weft_tests::run("setpriv", &[&unprivileged[..], &exec].concat());
        let refused =
            refused.err().context("a user other than root gives a pod an address of the machine")?.to_string();
        ensure!(refused.contains("needs root"), "{refused}");
    }
    Ok(())
}

fn exec_reaps_orphans_and_passes_no_capabilities_on() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let pod = mesh.pod("worker")?;
    let token = mesh.token("worker")?.to_string_lossy().into_owned();
    let control = format!("{}:15012", mesh.center.ip);
    let sidecar = binary("weft-sidecar")?.to_string_lossy().into_owned();
    let config = ["exec", "--control-plane", &control, "--token-file", &token, "--data-dir", "/run/worker", "--"];
    let orphans = "for i in 1 2 3; do (sleep 6 &); done; ";
    // Beside other processes: the sidecar adopts orphans and reaps them.
    let script = format!("{orphans} exec sleep 600");
    let process = pod.spawn("exec", &sidecar, &[&config[..], &["sh", "-c", &script]].concat())?;
    let children = || weft_tests::run("ps", &["-o", "stat=,args=", "--ppid", &process.id().to_string()]);
    wait_for("the orphans", SOON, || {
        let children = children()?;
        ensure!(children.matches("sleep 6\n").count() == 3, "{children}");
        Ok(())
    })?;
    wait_for("their burial", SOON, || {
        let children = children()?;
        ensure!(children.lines().count() == 1 && children.contains("sleep 600"), "{children}");
        Ok(())
    })?;
    drop(process);
    // As process 1, where a container's command runs.
    let script = format!("{orphans} sleep 7; ps -eo ppid=,stat= | grep -c '^ *1 Z'; exit 3");
    let inside = ["--pid", "--fork", "--mount-proc", &sidecar];
    let mut process = pod.spawn("init", "unshare", &[&inside[..], &config, &["sh", "-c", &script]].concat())?;
    let code = process.wait(SOON)?;
    ensure!(code == 3 && process.output().lines().any(|l| l == "0"), "{code}: {}", process.output());

    let Some(user) = user("1000") else { return Ok(()) };
    let [sidecar, token, data] = belongings(&mesh, "worker", "1000")?;
    let ambient = ["--inh-caps", "+net_admin", "--ambient-caps", "+net_admin", &sidecar];
    let config = ["exec", "--control-plane", &control, "--token-file", &token, "--data-dir", &data, "--redirect", "--"];
    let status = ["grep", "-E", "^Cap(Prm|Eff|Amb)", "/proc/self/status"];
    let user: Vec<&str> = user.iter().map(String::as_str).collect();
    let mut process = pod.spawn("ambient", "setpriv", &[&user[..], &ambient, &config, &status].concat())?;
    let code = process.wait(SOON)?;
    let log = process.output();
    ensure!(code == 0 && log.matches("\t0000000000000000").count() == 3, "the command has capabilities: {code}: {log}");
    // The proxy kept its capabilities: it installed the redirection before, and removed it after.
    ensure!(log.contains("traffic is redirected") && !log.contains("the redirection stays"), "{log}");
    ensure!(pod.run("nft", &["list", "tables"])?.is_empty());
    Ok(())
}
