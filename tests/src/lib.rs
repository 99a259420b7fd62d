//! A mesh in network namespaces: one namespace a pod, a bridge between them, and the real binaries in them.
//!
//! Everything happens inside a network and mount namespace of our own (see [`enter`]), so that nothing of the host is
//! touched and all of it is gone when the process ends. Works as root, and through a user namespace without.

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Set in the process that runs inside the namespaces.
const INSIDE: &str = "WEFT_TESTS_INSIDE";

/// Runs this program again in namespaces of its own, and ends with its status; returns at once inside.
///
/// # Errors
/// When neither root nor a user namespace is to be had: says what is missing.
pub fn enter() -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        // Where `ip netns` keeps its names: ours alone.
        run("mount", &["-t", "tmpfs", "tmpfs", "/run"])?;
        run("mkdir", &["-p", "/run/netns", "/run/etc-upper", "/run/etc-work"])?;
        // And where it looks for the files of a pod (/etc/netns), without touching the host's /etc.
        let layers = "lowerdir=/etc,upperdir=/run/etc-upper,workdir=/run/etc-work";
        run("mount", &["-t", "overlay", "overlay", "-o", layers, "/etc"])
            .or_else(|_| run("mount", &["-t", "overlay", "overlay", "-o", &format!("{layers},userxattr"), "/etc"]))?;
        run("ip", &["link", "set", "lo", "up"])?;
        return Ok(());
    }
    for tool in ["unshare", "setpriv", "ip", "nft", "curl", "python3", "mount"] {
        let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).stdout(Stdio::null()).status()?;
        ensure!(found.success(), "{tool} is missing: run `make install`");
    }
    let root = String::from_utf8(Command::new("id").arg("-u").output()?.stdout)?.trim() == "0";
    let mut unshare = Command::new("unshare");
    unshare.args(["--net", "--mount"]);
    if !root {
        unshare.args(["--user", "--map-root-user"]);
    }
    let works = Command::new(unshare.get_program()).args(unshare.get_args()).arg("true").output()?;
    if !works.status.success() {
        bail!(
            "network namespaces are not to be had: {}. Run as root, or allow user namespaces \
             (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)",
            String::from_utf8_lossy(&works.stderr).trim()
        );
    }
    // In our place, so that signals reach the one that has something to clean up.
    let failed = unshare.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1").exec();
    Err(failed).context("cannot run unshare")
}

/// Names a name server in every pod's `/etc/resolv.conf`, where the sidecar's redirection catches queries to it.
///
/// # Errors
/// When the file cannot be covered.
pub fn name_server(address: &str) -> Result<()> {
    let text = format!("nameserver {address}\n");
    let file = Path::new("/etc/resolv.conf");
    if file.exists() {
        let ours = "/run/resolv.conf";
        std::fs::write(ours, text)?;
        return run("mount", &["--bind", ours, "/etc/resolv.conf"]).map(drop);
    }
    // A link into `/run`, which is empty here and ours to fill.
    let target = Path::new("/etc").join(std::fs::read_link(file).context("there is no /etc/resolv.conf")?);
    std::fs::create_dir_all(target.parent().context("no folder")?)?;
    std::fs::write(target, text)?;
    Ok(())
}

/// Runs a command to its end.
///
/// # Errors
/// When it fails; with what it printed.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| format!("cannot run {program}"))?;
    text(&format!("{program} {}", args.join(" ")), &output)
}

fn text(what: &str, output: &Output) -> Result<String> {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{what}: {}\n{out}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(out)
}

/// Waits until `check` gives something.
///
/// # Errors
/// When it has given nothing after `limit`; with its last error.
pub fn wait_for<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(e) if Instant::now() > end => return Err(e.context(format!("waited {limit:?} for {what}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The folder of this crate.
pub fn tests_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// One of Weft's binaries, as cargo built it beside us.
///
/// # Errors
/// When it is not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let mut dir = own.parent().context("no folder")?;
    if dir.ends_with("deps") {
        dir = dir.parent().context("no folder")?;
    }
    let path = dir.join(name);
    ensure!(path.exists(), "{} is not built: cargo build", path.display());
    Ok(path)
}

/// Python packages that scenarios use: each set in a virtual environment of its own, kept beside the build.
const PYTHONS: [(&str, &[&str]); 2] = [("grpc", &["grpcio==1.85.1"]), ("consul", &["python-consul==1.1.0"])];

/// Makes the virtual environments that are missing. To be called before [`enter`]: inside no registry is reached.
///
/// # Errors
/// When a package is not to be had.
pub fn install_pythons() -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    for (name, packages) in PYTHONS {
        let venv = venv(name)?;
        let python = venv.join("bin/python").to_string_lossy().into_owned();
        let complete = venv.join("complete");
        let wanted = packages.join(" ");
        if std::fs::read_to_string(&complete).is_ok_and(|found| found == wanted) {
            continue;
        }
        run("python3", &["-m", "venv", "--clear", &venv.to_string_lossy()])?;
        run(&python, &[&["-m", "pip", "install", "--quiet", "--disable-pip-version-check"], packages].concat())?;
        std::fs::write(complete, wanted)?;
    }
    Ok(())
}

fn venv(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().find(|dir| dir.ends_with("deps")).and_then(Path::parent);
    let target = target.or_else(|| own.parent()).context("no folder")?;
    Ok(target.join(format!("venv-{name}")))
}

/// The Python of one of the virtual environments.
///
/// # Errors
/// When there is no such environment.
pub fn python_of(name: &str) -> Result<String> {
    let python = venv(name)?.join("bin/python");
    ensure!(python.exists(), "{} is missing", python.display());
    Ok(python.to_string_lossy().into_owned())
}

/// A process that ends with its owner.
pub struct Process {
    child: Child,
    /// What it wrote.
    pub log: PathBuf,
}

impl Process {
    /// Sends a signal by name.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, name: &str) -> Result<()> {
        run("kill", &[&format!("-{name}"), &self.child.id().to_string()]).map(drop)
    }

    /// Waits for its end, and its exit code.
    ///
    /// # Errors
    /// When it takes longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<i32> {
        wait_for("a process to end", limit, || {
            let status = self.child.try_wait()?.context("still running")?;
            Ok(status.code().unwrap_or(-1))
        })
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it wrote so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A network namespace with one address.
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: String,
    netns: String,
    dir: PathBuf,
}

impl Pod {
    /// A command inside the pod.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // It ends with us, however we end; and an interrupt from the terminal is ours to handle.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "ip", "netns", "exec", &self.netns]).arg(program).process_group(0);
        command
    }

    /// What `/etc/resolv.conf` says inside the pod.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn resolv_conf(&self, text: &str) -> Result<()> {
        self.etc("resolv.conf", text).map(drop)
    }

    /// What a file of `/etc` says inside the pod, if there is one outside. Returns where it really is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn etc(&self, file: &str, text: &str) -> Result<PathBuf> {
        // `ip netns exec` puts the files of this folder over those of /etc.
        let dir = Path::new("/etc/netns").join(&self.netns);
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(file), text)?;
        Ok(dir.join(file))
    }

    /// Runs a command inside the pod to its end.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.command(program).args(args).output()?;
        text(&format!("[{}] {program} {}", self.name, args.join(" ")), &output)
    }

    /// Starts a command inside the pod. It is the process itself, not a wrapper, so that signals reach it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, what: &str, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Result<Process> {
        let log = self.dir.join(format!("{}-{what}.log", self.name));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let child = self
            .command(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {what} in {}", self.name))?;
        Ok(Process { child, log })
    }

    /// Starts a command in the pod's network but among this process's mounts, as on a machine: the namespaces that it
    /// makes by `ip netns` are seen by the next one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_as_host(&self, what: &str, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Result<Process> {
        let log = self.dir.join(format!("{}-{what}.log", self.name));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let netns = format!("--net=/run/netns/{}", self.netns);
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nsenter", &netns])
            .arg(program)
            .args(args)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {what} in {}", self.name))?;
        Ok(Process { child, log })
    }

    /// curl with these arguments: what it printed.
    ///
    /// # Errors
    /// When curl fails.
    pub fn curl(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["-sS", "--max-time", "10"];
        all.extend(args);
        self.run("curl", &all)
    }

    /// Runs the many-requests client (`tests/apps/client.py`) with a plan.
    ///
    /// # Errors
    /// When it fails as a program; failed requests are results.
    pub fn requests(&self, plan: &Value) -> Result<Vec<Value>> {
        let script = tests_dir().join("apps/client.py");
        let out = self.run("python3", &[&script.to_string_lossy(), &plan.to_string()])?;
        Ok(serde_json::from_str(&out)?)
    }

    /// One request to `url` for each value of a header, by one curl process: who served each (`x-served-by`).
    ///
    /// # Errors
    /// When curl fails, or one was not answered by an application.
    pub fn served_by_header(&self, url: &str, header: &str, values: &[String]) -> Result<Vec<String>> {
        let one = |value: &String| {
            format!(
                "url = \"{url}\"\nheader = \"{header}: {value}\"\noutput = /dev/null\nwrite-out = \"%header{{x-served-by}}\\n\"\n"
            )
        };
        let plan = self.dir.join(format!("{}-curl", self.name));
        std::fs::write(&plan, values.iter().map(one).collect::<Vec<_>>().join("next\n"))?;
        let out = self.run("curl", &["-sS", "-K", &plan.to_string_lossy()])?;
        let servers: Vec<String> = out.lines().map(str::to_owned).collect();
        ensure!(servers.len() == values.len() && servers.iter().all(|s| !s.is_empty()), "some had no answer");
        Ok(servers)
    }

    /// Starts the many-requests client and returns at once.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn requests_meanwhile(&self, plan: &Value) -> Result<Meanwhile> {
        let script = tests_dir().join("apps/client.py");
        let child = self
            .command("python3")
            .arg(script)
            .arg(plan.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Meanwhile(child))
    }

    /// Starts the application (`tests/apps/server.py`) and waits until it listens.
    ///
    /// # Errors
    /// When it does not within ten seconds.
    pub fn serve(&self, port: u16, name: &str) -> Result<Process> {
        let script = tests_dir().join("apps/server.py");
        let port_text = port.to_string();
        let args = [&*script.to_string_lossy(), &port_text, name];
        let process = self.spawn(&format!("app-{port}"), "python3", &args)?;
        wait_for("the application", Duration::from_secs(10), || {
            ensure!(process.output().contains("listening"), "{}", process.output());
            Ok(())
        })?;
        Ok(process)
    }
}

/// Requests that run in the background.
pub struct Meanwhile(Child);

impl Meanwhile {
    /// Their results.
    ///
    /// # Errors
    /// When the client fails as a program.
    pub fn results(self) -> Result<Vec<Value>> {
        let output = self.0.wait_with_output()?;
        Ok(serde_json::from_str(&text("client.py", &output)?)?)
    }
}

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
        let number = MESHES.fetch_add(1, Ordering::Relaxed) % 200 + 1;
        let dir = tempfile::tempdir()?;
        let netns = format!("m{number}-center");
        let ip = format!("10.99.{number}.1");
        run("ip", &["netns", "add", &netns])?;
        let inside = |args: &[&str]| run("ip", &[&["-n", &netns], args].concat());
        inside(&["link", "set", "lo", "up"])?;
        // With an address of its own: else it has its lowest port's, which changes when a pod is added, and what its
        // neighbours send to the one that they know is lost for seconds.
        inside(&["link", "add", "br0", "address", "02:00:00:00:00:01", "type", "bridge"])?;
        inside(&["addr", "add", &format!("{ip}/24"), "dev", "br0"])?;
        inside(&["link", "set", "br0", "up"])?;
        let policies = dir.path().join("policies");
        std::fs::create_dir(&policies)?;
        let center = Pod { name: "center".into(), ip, netns, dir: dir.path().to_owned() };
        let mut mesh = Mesh {
            center,
            policies,
            control_plane: None,
            control_plane_args: control_plane_args.iter().map(|s| (*s).to_owned()).collect(),
            dir,
            subnet: number,
            next: AtomicU32::new(2),
            tokens: Default::default(),
        };
        mesh.start_control_plane()?;
        Ok(mesh)
    }

    /// Starts the control plane on the data that it left.
    ///
    /// # Errors
    /// When it is not ready within ten seconds.
    pub fn start_control_plane(&mut self) -> Result<()> {
        let data = self.dir.path().join("control-plane");
        let listen = format!("{}:15012", self.center.ip);
        let (data, policies) = (data.to_string_lossy().into_owned(), self.policies.to_string_lossy().into_owned());
        let mut args = vec!["--data-dir", &data, "--policies", &policies, "--listen", &listen];
        args.extend(self.control_plane_args.iter().map(String::as_str));
        let process = self.center.spawn("control-plane", binary("weft-control-plane")?, &args)?;
        self.control_plane = Some(process);
        wait_for("the control plane", Duration::from_secs(10), || self.weftctl(&["status"]).map(drop))
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

    /// What `weftctl status` prints, whatever its exit status.
    pub fn status(&self) -> String {
        match self.weftctl(&["status"]) {
            Ok(text) => text,
            Err(e) => e.to_string(),
        }
    }

    /// Writes a policy file, whole at once as editors do.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn policy(&self, file: &str, yaml: &str) -> Result<()> {
        let temporary = self.policies.join(format!(".{file}.new"));
        std::fs::write(&temporary, yaml)?;
        std::fs::rename(temporary, self.policies.join(file))?;
        Ok(())
    }

    /// A file with a token for this service account.
    ///
    /// # Errors
    /// When the control plane makes none.
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
        wait_for("the sidecar", Duration::from_secs(10), || {
            pod.curl(&["-f", "http://127.0.0.1:15021/healthz/ready"])
                .map_err(|e| e.context(std::fs::read_to_string(&process.log).unwrap_or_default()))
        })?;
        Ok(process)
    }

    /// Starts a sidecar in a pod and returns at once.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn sidecar_unready(&self, pod: &Pod, account: &str, args: &[&str]) -> Result<Process> {
        let token = self.token(account)?.to_string_lossy().into_owned();
        let data = self.dir.path().join(format!("sidecar-{}", pod.name)).to_string_lossy().into_owned();
        let control = format!("{}:15012", self.center.ip);
        let mut all = vec!["run", "--control-plane", &control, "--token-file", &token, "--workers", "2"];
        if !args.contains(&"--data-dir") {
            all.extend(["--data-dir", &data]);
        }
        all.extend(args);
        pod.spawn("sidecar", binary("weft-sidecar")?, &all)
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
        let sidecar = self.sidecar(&pod, service, &all)?;
        self.redirect(&pod)?;
        self.wait_healthy(&pod.ip)?;
        Ok(Instance { pod, app, sidecar })
    }

    /// A pod with a sidecar and redirection, and no service.
    ///
    /// # Errors
    /// When a part of it does not start.
    pub fn client(&self, name: &str) -> Result<(Pod, Process)> {
        let pod = self.pod(name)?;
        let sidecar = self.sidecar(&pod, name, &["--workload", name])?;
        self.redirect(&pod)?;
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

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("WEFT_TESTS_LOGS").is_some() {
            for log in std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
                if log.path().extension().is_some_and(|e| e == "log") {
                    let text = std::fs::read_to_string(log.path()).unwrap_or_default();
                    let tail: Vec<&str> = text.lines().rev().take(15).collect();
                    let name = log.file_name();
                    eprintln!(
                        "--- {}\n{}",
                        name.to_string_lossy(),
                        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
                    );
                }
            }
        }
    }
}

/// A service's instance.
pub struct Instance {
    /// Where it runs.
    pub pod: Pod,
    /// The application.
    pub app: Process,
    /// Its sidecar.
    pub sidecar: Process,
}

/// Of results of [`Pod::requests`]: who served each.
pub fn served_by(results: &[Value]) -> Vec<String> {
    results.iter().map(|r| r["headers"]["x-served-by"].as_str().unwrap_or("-").to_owned()).collect()
}

/// Of results of [`Pod::requests`]: how many of each status; 0: no answer.
pub fn statuses(results: &[Value]) -> HashMap<u64, usize> {
    let mut counts = HashMap::new();
    for result in results {
        *counts.entry(result["status"].as_u64().unwrap_or(0)).or_default() += 1;
    }
    counts
}
