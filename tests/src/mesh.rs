//! A control plane and the pods around it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weft_policy::Kind;

use crate::pod::{Pod, Process};
use crate::{binary, document, run, text, wait_for};

/// A control plane and the pods around it.
pub struct Mesh {
    /// The control plane's pod; its network is the bridge.
    pub center: Pod,
    /// Folder of policy files.
    pub policies: PathBuf,
    /// The control plane.
    pub control_plane: Option<Process>,
    /// Further arguments of the control plane.
    pub control_plane_args: Vec<String>,
    /// Further variables of its environment.
    pub control_plane_env: Vec<(String, String)>,
    dir: tempfile::TempDir,
    subnet: u32,
    next: AtomicU32,
    tokens: std::sync::Mutex<HashMap<String, PathBuf>>,
}

static MESHES: AtomicU32 = AtomicU32::new(0);

impl Mesh {
    /// A mesh with a running control plane and no pods.
    ///
    /// # Errors
    /// When a namespace cannot be made, or the control plane does not start.
    pub fn start(control_plane_args: &[&str]) -> Result<Mesh> {
        let mut mesh = Mesh::network(control_plane_args)?;
        mesh.start_control_plane()?;
        Ok(mesh)
    }

    /// A mesh whose control plane is not started yet.
    ///
    /// # Errors
    /// When a namespace cannot be made.
    pub fn network(control_plane_args: &[&str]) -> Result<Mesh> {
        let number = MESHES.fetch_add(1, Ordering::Relaxed) % 200 + 1;
        let dir = tempfile::tempdir()?;
        let netns = format!("m{number}-center");
        let ip = format!("10.99.{number}.1");
        run("ip", &["netns", "add", &netns])?;
        let inside = |args: &[&str]| run("ip", &[&["-n", &netns], args].concat());
        inside(&["link", "set", "lo", "up"])?;
        // With a fixed address: otherwise it has that of its lowest port, which changes when a pod is added, and packets of
        // neighbours to the old address are lost for seconds.
        inside(&["link", "add", "br0", "address", "02:00:00:00:00:01", "type", "bridge"])?;
        inside(&["addr", "add", &format!("{ip}/24"), "dev", "br0"])?;
        inside(&["link", "set", "br0", "up"])?;
        let policies = dir.path().join("policies");
        std::fs::create_dir(&policies)?;
        let center = Pod { name: "center".into(), ip, netns, dir: dir.path().to_owned() };
        Ok(Mesh {
            center,
            policies,
            control_plane: None,
            control_plane_env: Vec::new(),
            control_plane_args: control_plane_args.iter().map(|s| (*s).to_owned()).collect(),
            dir,
            subnet: number,
            next: AtomicU32::new(2),
            tokens: Default::default(),
        })
    }

    /// Starts the control plane, with the data of an earlier one if there is any.
    ///
    /// # Errors
    /// When it is not ready within ten seconds.
    pub fn start_control_plane(&mut self) -> Result<()> {
        let data = self.dir.path().join("control-plane");
        let listen = format!("{}:15012", self.center.ip);
        let (data, policies) = (data.to_string_lossy().into_owned(), self.policies.to_string_lossy().into_owned());
        let mut args = vec!["--data-dir", &data, "--policies", &policies, "--listen", &listen];
        if !self.control_plane_args.iter().any(|arg| arg == "--policy-grace") {
            // Scenarios remove files to withdraw policies.
            args.extend(["--policy-grace", "0"]);
        }
        args.extend(self.control_plane_args.iter().map(String::as_str));
        let process =
            self.center.spawn_with("control-plane", binary("weft-control-plane")?, &args, &self.control_plane_env)?;
        self.control_plane = Some(process);
        wait_for("the control plane", Duration::from_secs(10), || self.weftctl(&["status"]).map(drop))
    }

    /// The control plane's data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("control-plane")
    }

    /// The data folder of [`Mesh::another_control_plane`].
    pub fn data_dir_of(&self, number: u16) -> PathBuf {
        self.dir.path().join(format!("control-plane-{number}"))
    }

    /// Kills the control plane and removes its data.
    ///
    /// # Errors
    /// When it does not run, or its folder cannot be removed.
    pub fn stop_control_plane_and_forget(&mut self) -> Result<()> {
        let process = self.control_plane.take().context("it does not run")?;
        process.signal("KILL")?;
        drop(process);
        Ok(std::fs::remove_dir_all(self.dir.path().join("control-plane"))?)
    }

    /// Starts one more control plane on a shared store; `number` from 1. It listens on 15012 + `number` of the
    /// same address.
    ///
    /// # Errors
    /// When it is not ready within ten seconds.
    pub fn another_control_plane(&self, number: u16, args: &[&str]) -> Result<Process> {
        let data = self.data_dir_of(number);
        let listen = format!("{}:{}", self.center.ip, 15012 + number);
        let (data, policies) = (data.to_string_lossy().into_owned(), self.policies.to_string_lossy().into_owned());
        let all = [&["--data-dir", &data, "--policies", &policies, "--listen", &listen], args].concat();
        let process = self.center.spawn(&format!("control-plane-{number}"), binary("weft-control-plane")?, &all)?;
        wait_for("another control plane", Duration::from_secs(10), || {
            ensure!(process.output().contains("control plane is ready"), "{}", process.output());
            Ok(())
        })?;
        Ok(process)
    }

    /// A new pod.
    ///
    /// # Errors
    /// When its namespace cannot be made.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let netns = format!("m{}-{name}", self.subnet);
        let ip = format!("10.99.{}.{number}", self.subnet);
        let port = format!("p{number}");
        run("ip", &["netns", "add", &netns])?;
        let inside = |args: &[&str]| run("ip", &[&["-n", &netns], args].concat());
        inside(&["link", "set", "lo", "up"])?;
        run(
            "ip",
            &[
                "link",
                "add",
                "eth0",
                "netns",
                &netns,
                "type",
                "veth",
                "peer",
                "name",
                &port,
                "netns",
                &self.center.netns,
            ],
        )?;
        run("ip", &["-n", &self.center.netns, "link", "set", &port, "master", "br0", "up"])?;
        inside(&["addr", "add", &format!("{ip}/24"), "dev", "eth0"])?;
        inside(&["link", "set", "eth0", "up"])?;
        inside(&["route", "add", "default", "via", &self.center.ip])?;
        Ok(Pod { name: name.into(), ip, netns, dir: self.dir.path().to_owned() })
    }

    /// Runs weftctl.
    ///
    /// # Errors
    /// When it exits with another status than 0.
    pub fn weftctl(&self, args: &[&str]) -> Result<String> {
        let socket = self.dir.path().join("control-plane/admin.sock");
        let binary = binary("weftctl")?;
        let output = Command::new(&binary).args(args).env("WEFT_ADMIN_SOCKET", socket).output()?;
        text(&format!("weftctl {}", args.join(" ")), &output)
    }

    /// The output of `weftctl status -o wide`, with any exit status.
    pub fn status(&self) -> String {
        match self.weftctl(&["status", "-o", "wide"]) {
            Ok(text) => text,
            Err(e) => e.to_string(),
        }
    }

    /// Writes a policy file atomically.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn policy(&self, file: &str, yaml: &str) -> Result<()> {
        let temporary = self.policies.join(format!(".{file}.new"));
        std::fs::write(&temporary, yaml)?;
        std::fs::rename(temporary, self.policies.join(file))?;
        Ok(())
    }

    /// Requires mTLS of all workloads of the default namespace: PeerAuthentication `default`, in `strict.yaml`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn strict(&self) -> Result<()> {
        let spec = json!({"mtls": {"mode": "STRICT"}});
        self.policy("strict.yaml", &document(Kind::PeerAuthentication, "default", spec))
    }

    /// A file with a token for this service account.
    ///
    /// # Errors
    /// When the control plane creates none.
    pub fn token(&self, account: &str) -> Result<PathBuf> {
        let mut tokens = self.tokens.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        if let Some(token) = tokens.get(account) {
            return Ok(token.clone());
        }
        let path = self.dir.path().join(format!("{account}.token"));
        self.weftctl(&["token", "create", "--service-account", account, "--out", &path.to_string_lossy()])?;
        tokens.insert(account.to_owned(), path.clone());
        Ok(path)
    }

    /// Starts a sidecar in a pod, without redirection, and waits until it is ready.
    ///
    /// # Errors
    /// When it is not within ten seconds.
    pub fn sidecar(&self, pod: &Pod, account: &str, args: &[&str]) -> Result<Process> {
        let process = self.sidecar_unready(pod, account, args)?;
        self.wait_ready(pod).map_err(|e| e.context(process.output()))?;
        Ok(process)
    }

    /// Waits until the sidecar of a pod is ready.
    ///
    /// # Errors
    /// When it is not within ten seconds.
    pub fn wait_ready(&self, pod: &Pod) -> Result<()> {
        wait_for("the sidecar", Duration::from_secs(10), || {
            pod.curl(&["-f", "http://127.0.0.1:15021/healthz/ready"]).map(drop)
        })
    }

    /// Starts a sidecar in a pod and returns at once.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn sidecar_unready(&self, pod: &Pod, account: &str, args: &[&str]) -> Result<Process> {
        let all = self.sidecar_args(pod, account, args)?;
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        pod.spawn("sidecar", binary("weft-sidecar")?, &all)
    }

    /// The command line of a pod's sidecar, `args` last.
    ///
    /// # Errors
    /// When there is no token for it.
    pub fn sidecar_args(&self, pod: &Pod, account: &str, args: &[&str]) -> Result<Vec<String>> {
        let data = self.dir.path().join(format!("sidecar-{}", pod.name)).to_string_lossy().into_owned();
        let control = format!("{}:15012", self.center.ip);
        let brings_own = args.contains(&"--token-file") || args.contains(&"--service-account-token");
        let own = if brings_own { None } else { Some(self.token(account)?) };
        let own = own.map(|path| path.to_string_lossy().into_owned());
        let mut all = vec!["run"];
        if let Some(token) = &own {
            all.extend(["--token-file", token]);
        }
        if !args.contains(&"--control-plane") {
            all.extend(["--control-plane", &control]);
        }
        if !args.contains(&"--workers") {
            all.extend(["--workers", "2"]);
        }
        if !args.contains(&"--data-dir") {
            all.extend(["--data-dir", &data]);
        }
        if !args.contains(&"--drain-min") {
            // Scenarios about the drain set it.
            all.extend(["--drain-min", "0"]);
        }
        all.extend(args);
        Ok(all.into_iter().map(str::to_owned).collect())
    }

    /// Starts a sidecar in a pod, waits until it is ready, and redirects the pod's traffic to it.
    ///
    /// # Errors
    /// When it is not ready within ten seconds, or the rules cannot be installed.
    pub fn sidecar_with_redirection(&self, pod: &Pod, account: &str, args: &[&str]) -> Result<Process> {
        let process = self.sidecar(pod, account, args)?;
        self.redirect(pod)?;
        Ok(process)
    }

    /// Redirects a pod's traffic to its sidecar.
    ///
    /// # Errors
    /// When the rules cannot be installed.
    pub fn redirect(&self, pod: &Pod) -> Result<()> {
        pod.run(&binary("weft-sidecar")?.to_string_lossy(), &["redirect", "install"]).map(drop)
    }

    /// A pod with an application, its sidecar and redirection, registered as `service`.
    ///
    /// # Errors
    /// When a part of it does not start.
    pub fn instance(&self, name: &str, service: &str, port: u16, args: &[&str]) -> Result<Instance> {
        let pod = self.pod(name)?;
        let app = pod.serve(port, name)?;
        let port = port.to_string();
        let mut all = vec!["--service", service, "--port", &port];
        all.extend(args);
        let sidecar = self.sidecar_with_redirection(&pod, service, &all)?;
        self.wait_healthy(&pod.ip)?;
        Ok(Instance { pod, app, sidecar })
    }

    /// A pod with a sidecar and redirection, and no service.
    ///
    /// # Errors
    /// When a part of it does not start.
    pub fn client(&self, name: &str) -> Result<(Pod, Process)> {
        self.client_with(name, &["--workload", name])
    }

    /// The same, with these arguments of the sidecar.
    ///
    /// # Errors
    /// When a part of it does not start.
    pub fn client_with(&self, name: &str, args: &[&str]) -> Result<(Pod, Process)> {
        let pod = self.pod(name)?;
        let sidecar = self.sidecar_with_redirection(&pod, name, args)?;
        Ok((pod, sidecar))
    }

    /// Waits until an instance at this address is registered and healthy.
    ///
    /// # Errors
    /// When it is not within ten seconds.
    pub fn wait_healthy(&self, ip: &str) -> Result<()> {
        wait_for("a registration", Duration::from_secs(10), || {
            let status = self.status();
            let found = status.lines().any(|l| l.contains(&format!(" {ip}:")) && l.contains(" healthy "));
            ensure!(found, "{ip} is not registered and healthy:\n{status}");
            Ok(())
        })
    }

    /// The virtual IP of a service in the default namespace.
    ///
    /// # Errors
    /// When it has none.
    pub fn vip(&self, service: &str) -> Result<String> {
        let status = self.status();
        let line = status.lines().find(|l| l.starts_with(&format!("service {service}.default.svc.cluster.local")));
        let vip = line.and_then(|l| l.split_whitespace().nth(2)).context("no virtual IP")?;
        Ok(vip.to_owned())
    }
}

/// The smallest mesh: one instance of order-service, and a client. Fields are in the order of their ends.
pub struct Pair {
    /// Virtual IP of order-service.
    pub vip: String,
    /// The client's sidecar.
    pub sidecar: Process,
    /// The client's pod.
    pub front: Pod,
    /// The instance.
    pub order: Instance,
    /// The mesh.
    pub mesh: Mesh,
}

impl Pair {
    /// Starts it.
    ///
    /// # Errors
    /// When a part of it does not start.
    pub fn start() -> Result<Pair> {
        let mesh = Mesh::start(&[])?;
        let order = mesh.instance("order1", "order-service", 8080, &[])?;
        let (front, sidecar) = mesh.client("frontend")?;
        let vip = mesh.vip("order-service")?;
        Ok(Pair { vip, sidecar, front, order, mesh })
    }
}

thread_local! {
    static LOGS: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

/// The ends of the logs of this thread's meshes, since the last call, for the message of a failed scenario.
pub fn take_logs() -> String {
    LOGS.take()
}

/// Last lines of each log for the message of a failed scenario.
const LOG_LINES: usize = 40;

impl Drop for Mesh {
    fn drop(&mut self) {
        let mut ends = String::new();
        for log in std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            if log.path().extension().is_some_and(|e| e == "log") {
                let text = std::fs::read_to_string(log.path()).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let end = &lines[lines.len().saturating_sub(LOG_LINES)..];
                ends.push_str(&format!("--- {}\n{}\n", log.file_name().to_string_lossy(), end.join("\n")));
            }
        }
        if std::env::var_os("WEFT_TESTS_LOGS").is_some() {
            eprintln!("{ends}");
        }
        LOGS.with_borrow_mut(|logs| logs.push_str(&ends));
    }
}

/// A service's instance.
pub struct Instance {
    /// Its pod.
    pub pod: Pod,
    /// The application.
    pub app: Process,
    /// Its sidecar.
    pub sidecar: Process,
}
