//! A pod: a network namespace with one address, and the processes in it.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{run, tests_dir, text, wait_for};

/// A process that is killed when this is dropped.
pub struct Process {
    child: Child,
    /// The file with its output.
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

    /// Resident memory in KB.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resident_kb(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Its output so far.
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
    pub(crate) netns: String,
    pub(crate) dir: PathBuf,
}

impl Pod {
    /// Another handle on the same pod.
    pub fn again(&self) -> Pod {
        Pod { name: self.name.clone(), ip: self.ip.clone(), netns: self.netns.clone(), dir: self.dir.clone() }
    }

    /// Name of its network namespace.
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// A command inside the pod.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // Killed when this process ends, for any reason; the process group keeps an interrupt of the terminal away from it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "ip", "netns", "exec", &self.netns]).arg(program).process_group(0);
        command
    }

    /// Sets `/etc/resolv.conf` inside the pod.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn resolv_conf(&self, text: &str) -> Result<()> {
        self.etc("resolv.conf", text).map(drop)
    }

    /// Replaces a file of `/etc` inside the pod; it must exist outside. Returns the path of the new file.
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

    /// Sets `/etc/hosts` inside the pod, for processes that start later.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn hosts(&self, text: &str) -> Result<()> {
        let dir = Path::new("/etc/netns").join(&self.netns);
        std::fs::create_dir_all(&dir)?;
        Ok(std::fs::write(dir.join("hosts"), text)?)
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
    pub fn spawn(&self, name: &str, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Result<Process> {
        self.spawn_with(name, program, args, &[])
    }

    /// As [`Pod::spawn`], with an input that stays open until it is dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_with_input(
        &self,
        name: &str,
        program: impl AsRef<std::ffi::OsStr>,
        args: &[&str],
    ) -> Result<(Process, std::process::ChildStdin)> {
        let mut command = self.command(program);
        command.args(args);
        let mut process = self.logged_with(name, command, Stdio::piped())?;
        let input = process.child.stdin.take().context("no input")?;
        Ok((process, input))
    }

    /// As [`Pod::spawn`], with further variables in its environment.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_with(
        &self,
        name: &str,
        program: impl AsRef<std::ffi::OsStr>,
        args: &[&str],
        environment: &[(String, String)],
    ) -> Result<Process> {
        // For the program alone, not for the commands that start it.
        let mut command = self.command("env");
        command.args(environment.iter().map(|(name, value)| format!("{name}={value}"))).arg(program).args(args);
        self.logged(name, command)
    }

    /// A folder of the pod's own.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{}-{name}", self.name))
    }

    fn logged(&self, name: &str, command: Command) -> Result<Process> {
        self.logged_with(name, command, Stdio::null())
    }

    fn logged_with(&self, name: &str, mut command: Command, input: Stdio) -> Result<Process> {
        let log = self.dir.join(format!("{}-{name}.log", self.name));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        command.stdin(input).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start {name} in {}", self.name))?;
        Ok(Process { child, log })
    }

    /// As [`Pod::spawn`], with a full pipe for its output: every write blocks while the returned reader is neither read nor
    /// dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_unread(
        &self,
        program: impl AsRef<std::ffi::OsStr>,
        args: &[&str],
    ) -> Result<(Process, std::io::PipeReader)> {
        let (reader, mut writer) = std::io::pipe()?;
        let flags = rustix::fs::fcntl_getfl(&writer)?;
        rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK)?;
        while std::io::Write::write(&mut writer, b"\n").is_ok() {}
        rustix::fs::fcntl_setfl(&writer, flags)?;
        let child = self
            .command(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .spawn()
            .with_context(|| format!("cannot start a process in {}", self.name))?;
        Ok((Process { child, log: PathBuf::new() }, reader))
    }

    /// Starts a command in the pod's network but with this process's mounts, as on a machine: namespaces of
    /// `ip netns` are shared with later commands.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_as_host(&self, name: &str, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Result<Process> {
        let netns = format!("--net=/run/netns/{}", self.netns);
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter", &netns]).arg(program).args(args).process_group(0);
        self.logged(name, command)
    }

    /// Runs curl with these arguments. Returns its output.
    ///
    /// # Errors
    /// When curl fails.
    pub fn curl(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["-sS", "--max-time", "10"];
        all.extend(args);
        self.run("curl", &all)
    }

    /// Starts a client of `tests/apps` that prints "ready" after its work, and runs until it is dropped.
    ///
    /// # Errors
    /// When it is not ready within two minutes.
    pub fn client(&self, script: &str, args: &[&str]) -> Result<Process> {
        let path = tests_dir().join("apps").join(script);
        let path = path.to_string_lossy();
        let all = [&[&*path], args].concat();
        let mut process = self.spawn(&format!("{script}-{}", args.join("-")), "python3", &all)?;
        wait_for("a client", Duration::from_secs(120), || {
            let output = process.output();
            ensure!(output.contains("ready") || !process.is_running(), "not ready");
            Ok(())
        })?;
        ensure!(process.output().contains("ready"), "{script} {args:?}: {}", process.output());
        Ok(process)
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

    /// One request to `url` for each value of a header, by one curl process. Returns the server of each (`x-served-by`).
    ///
    /// # Errors
    /// When curl fails, or a response has no such header.
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
