//! `exec --netns` without root, and on a machine whose control plane is on loopback: the command has a user and a network
//! namespace of its own, and the sidecar stays in the machine's network ([`crate::net::pod`]).
//!
//! `unshare` makes the namespaces and runs this program once more in them ([`inside`]). It gives them a way out, a pair of
//! veth devices with both ends there, and the redirection; opens the sockets at which captured traffic arrives; hands
//! them over; and when the sidecar is ready becomes the command. A second process stays in the namespaces and opens sockets
//! for deliveries, as long as the sidecar lives.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{self, CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};
use socket2::Socket;

use super::{Capture, child, supervise};
use crate::commands::run::{self, Application, Config};
use crate::host::children;
use crate::host::claim;
use crate::host::redirect::{self, run_tool};
use crate::net::connect;
use crate::net::pod;
use crate::net::sockets;
use aws_lc_rs::digest::{SHA256, digest};

/// How long the namespaces may take to be made.
const WITHIN: Duration = Duration::from_secs(20);
/// The address of the device behind the default route. TEST-NET-1 (RFC 5737): no destination has it.
const OWN: &str = "192.0.2.1/32";
/// Longest path of a Unix socket (unix(7)).
const LONGEST_PATH: usize = 107;

/// Options of the inner process; for the program itself.
#[derive(Debug, Clone, clap::Args)]
pub struct Inside {
    /// Where the sidecar waits.
    #[arg(long)]
    at: PathBuf,
    /// Open sockets for the sidecar, and nothing else.
    #[arg(long)]
    sockets: bool,
    /// The command and its arguments.
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// A socket that the sidecar listens at in the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Wanted {
    address: SocketAddr,
    datagrams: bool,
}

/// The setup of the namespaces.
#[derive(Debug, Serialize, Deserialize)]
struct Setup {
    /// For `nft -f -`.
    rules: String,
    sockets: Vec<Wanted>,
}

/// The addresses of the pod's own loopback at which a sidecar with this configuration listens.
fn wanted(config: &Config) -> Vec<Wanted> {
    let outbound = SocketAddr::from((Ipv4Addr::LOCALHOST, config.outbound_port));
    let streams = [Some(outbound), config.http_proxy, config.agent_api.0, config.eureka_api.0];
    let both = [config.dns_listen.0, config.consul_dns.0];
    let all = streams.into_iter().chain(both).flatten().map(|address| Wanted { address, datagrams: false });
    let all = all.chain(both.into_iter().flatten().map(|address| Wanted { address, datagrams: true }));
    // A service at 127.0.0.1 is reached at ::1 too.
    let six = |wanted: &Wanted| {
        let address = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), wanted.address.port());
        (wanted.address.ip() == Ipv4Addr::LOCALHOST).then_some(Wanted { address, ..*wanted })
    };
    all.flat_map(|wanted| [Some(wanted), six(&wanted)]).flatten().collect()
}

/// The pod's address on this machine's loopback, by its data folder: each pod has another one, and the same after a restart.
fn loopback_address(data_dir: &Path) -> Ipv4Addr {
    let hash = digest(&SHA256, data_dir.as_os_str().as_encoded_bytes());
    let hash = hash.as_ref();
    // 127.0.0.0/16 is where programs are used to be.
    Ipv4Addr::new(127, 1 + hash[0] % 254, hash[1], 1 + hash[2] % 254)
}

/// Whether all control planes are on this machine's loopback.
pub(super) async fn is_control_plane_on_loopback(config: &Config) -> bool {
    for control_plane in &config.control_planes {
        let split = control_plane.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let Some((host, port)) = split else { return false };
        match connect::resolve(host.trim_matches(['[', ']']), port).await {
            Ok(found) if found.ip().is_loopback() => {}
            _ => return false,
        }
    }
    true
}

/// Runs the command in namespaces of its own. Returns the code to exit with.
///
/// # Errors
/// When they cannot be made, or the sidecar does not start.
pub(super) async fn run(mut config: Config, capture: Capture, command: &[String]) -> Result<u8> {
    ensure!(
        config.workload_group.is_none(),
        "--workload-group with --netns needs root: the ports of a group's members are not opened in the machine's network"
    );
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot make the data folder {}", config.data_dir.display()))?;
    config.data_dir = config
        .data_dir
        .canonicalize()
        .with_context(|| format!("cannot read the data folder {}", config.data_dir.display()))?;
    // The folder identifies a sidecar over restarts, and no two may share it.
    let name = format!("weft-pod/{}", config.data_dir.display());
    let Some(_claim) = claim::claim(&name[name.len().saturating_sub(LONGEST_PATH)..])? else {
        bail!("another command runs with the same --data-dir {}: give each its own", config.data_dir.display());
    };
    let on_loopback = is_control_plane_on_loopback(&config).await;
    let address = match on_loopback {
        true => Some(IpAddr::V4(loopback_address(&config.data_dir))),
        false => None,
    };
    let port = config.port.filter(|_| config.service.is_some());
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let mut signals = super::signals()?;
    let (rules, notes) = redirect::for_pod(&capture, config.own_ports(), config.dns_listen.0.is_some())?;
    let setup = Setup { rules, sockets: wanted(&config) };
    let meeting = Meeting::at(&config.data_dir)?;
    let mut child =
        child::spawn(&unshare(&meeting.path, command)?, limit).context("cannot run unshare (package util-linux)")?;
    let mut ready = tokio::select! {
        met = meeting.set_up(&setup) => met?,
        status = child.wait() => {
            let status = status.context("cannot wait for unshare")?;
            bail!(
                "the command got no user and network namespace ({status}, see above). They are made without root where the \
                 system allows it: sysctl kernel.unprivileged_userns_clone=1 (Debian), \
                 kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), user.max_user_namespaces above 0. Or run as root"
            );
        }
    };
    drop(meeting);
    for note in notes {
        tracing::warn!("{note}");
    }
    config.place_outside(address);
    let sidecar = run::start(config, Application::Follows)?;
    tokio::select! {
        () = sidecar.ready() => {}
        Some(signal) = super::stop(&mut signals) => return Ok(super::killed_by(signal)),
    }
    // The command starts.
    ready.write_all(b"g").context("the process inside has ended")?;
    let register = async {
        if let Some(port) = port {
            super::accepts(port).await;
        }
        sidecar.restore().await;
        sidecar.register().await;
    };
    let code = supervise(child, &mut signals, register, || sidecar.drain()).await;
    sidecar.finish_outbound().await;
    code
}

/// The command line that makes the namespaces. The user stays the same one; `--keep-caps` lets `ip` and `nft` be run inside.
fn unshare(at: &Path, command: &[String]) -> Result<Vec<OsString>> {
    let own = std::env::current_exe().context("cannot find this program's file")?;
    let options = ["--user", "--map-current-user", "--net", "--keep-caps", "--"].map(OsString::from);
    let inside = [own.into(), "inside".into(), "--at".into(), at.into(), "--".into()];
    let unshare = redirect::tool("unshare").into();
    Ok([unshare].into_iter().chain(options).chain(inside).chain(command.iter().map(OsString::from)).collect())
}

/// Where the process inside and the sidecar meet: a socket in the data folder, which both see.
struct Meeting {
    path: PathBuf,
    listener: UnixListener,
}

impl Meeting {
    fn at(data_dir: &Path) -> Result<Meeting> {
        let path = data_dir.join("exec.sock");
        ensure!(
            path.as_os_str().len() <= LONGEST_PATH,
            "--data-dir {} is too long: {} is the path of a Unix socket, of {LONGEST_PATH} bytes at most",
            data_dir.display(),
            path.display()
        );
        // Of an earlier run; nothing is lost where there is none.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
        listener.set_nonblocking(true)?;
        Ok(Meeting { path, listener })
    }

    /// Lets the inner process set up its namespaces, and takes over its sockets. Returns the connection to the process that becomes
    /// the command.
    async fn set_up(&self, setup: &Setup) -> Result<UnixStream> {
        let mut inside = self.accept().await?;
        let mut line = serde_json::to_vec(setup)?;
        line.push(b'\n');
        inside.write_all(&line)?;
        for wanted in &setup.sockets {
            let received = pod::receive(&inside).context("the process inside has ended before it was set up")?;
            match received {
                Some(socket) => sockets::hand_over(Socket::from(socket), wanted.address)?,
                // A machine without IPv6.
                None => sockets::withhold(wanted.address),
            }
        }
        pod::enter(self.accept().await?)?;
        Ok(inside)
    }

    async fn accept(&self) -> Result<UnixStream> {
        let start = Instant::now();
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_read_timeout(Some(WITHIN))?;
                    return Ok(stream);
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e).context("cannot meet the process inside"),
            }
            ensure!(start.elapsed() < WITHIN, "no process inside the namespaces after {WITHIN:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        // The next run removes it otherwise.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The program inside the namespaces: sets them up, and becomes the command when the sidecar is ready.
///
/// # Errors
/// If something cannot be set up, or the sidecar ends first.
pub fn inside(options: &Inside) -> Result<()> {
    let mut outside = UnixStream::connect(&options.at)
        .with_context(|| format!("cannot reach the sidecar at {}", options.at.display()))?;
    if options.sockets {
        pod::serve(outside);
        return Ok(());
    }
    // The command has no way out of its network without the sidecar.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    let mut line = String::new();
    BufReader::new(&outside).read_line(&mut line)?;
    let setup: Setup = serde_json::from_str(&line).context("the sidecar has ended")?;
    way_out()?;
    run_tool("nft", "nftables", &["-f", "-"], Some(&setup.rules))?;
    for wanted in &setup.sockets {
        send_socket(&outside, *wanted)?;
    }
    let own = std::env::current_exe().context("cannot find this program's file")?;
    // Detached, so that it is no child of the command, which would have to wait for it.
    let detached = Command::new(redirect::tool("setsid"))
        .args(["--fork".as_ref(), own.as_os_str(), "inside".as_ref(), "--sockets".as_ref(), "--at".as_ref()])
        .arg(&options.at)
        .stdin(Stdio::null())
        .status()
        .context("cannot run setsid (package util-linux)")?;
    ensure!(detached.success(), "setsid failed: {detached}");
    let mut word = [0];
    outside.read_exact(&mut word).context("the sidecar has ended")?;
    drop(outside);
    let (program, arguments) = options.command.split_first().context("no command")?;
    // It has no more capabilities inside than outside.
    let sets = thread::capabilities(None).context("cannot read the capabilities")?;
    let sets = CapabilitySets { inheritable: CapabilitySet::empty(), ..sets };
    thread::set_capabilities(None, sets).context("cannot give the capabilities up")?;
    let error = children::without_ambient_capabilities(|| Command::new(program).args(arguments).exec());
    eprintln!("weft-sidecar: cannot run {}: {error}", program.to_string_lossy());
    std::process::exit(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 })
}

/// A way to everywhere, so that connections are begun, which the redirection then catches. Nothing leaves by it.
fn way_out() -> Result<()> {
    let ip = |arguments: &[&str]| run_tool("ip", "iproute2", arguments, None).map(drop);
    ip(&["link", "set", "lo", "up"])?;
    ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "eth1"])?;
    ip(&["addr", "add", OWN, "dev", "eth0"])?;
    ip(&["link", "set", "eth0", "up"])?;
    ip(&["link", "set", "eth1", "up"])?;
    ip(&["route", "add", "default", "dev", "eth0"])
}

fn send_socket(outside: &UnixStream, wanted: Wanted) -> Result<()> {
    let opened = match wanted.datagrams {
        true => sockets::udp(wanted.address).map(|socket| socket.as_fd().try_clone_to_owned()),
        false => sockets::tcp(wanted.address)
            .map(|socket| socket.as_fd().try_clone_to_owned())
            .map_err(std::io::Error::other),
    };
    match opened {
        Ok(socket) => Ok(pod::send(outside, Some(socket?.as_fd()))?),
        Err(_) if wanted.address.is_ipv6() => Ok(pod::send(outside, None)?),
        Err(e) => Err(e).with_context(|| format!("cannot listen on {} inside", wanted.address)),
    }
}

impl Config {
    /// Of a sidecar outside its pod's network. `address`: the pod's on this machine's loopback, where the control plane is;
    /// without one it is the address that the control plane sees.
    fn place_outside(&mut self, address: Option<IpAddr>) {
        self.outside = true;
        let Some(address) = address else { return };
        connect::set_source_address(address);
        // Pages of several pods do not get in each other's way.
        for page in [&mut self.ready_listen, &mut self.metrics_listen, &mut self.admin_listen] {
            if page.ip().is_unspecified() || page.ip().is_loopback() {
                page.set_ip(address);
            }
        }
        tracing::info!(%address, ready = %self.ready_listen, metrics = %self.metrics_listen, "the pod's address on this machine");
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        config: Config,
    }

    fn config(arguments: &str) -> Config {
        let line = format!("exec --control-plane 127.0.0.1:15012 {arguments}");
        Line::parse_from(line.split_whitespace()).config
    }

    #[test]
    fn rootless_pods_open_loopback_listeners() {
        let found = wanted(&config("--agent-api off --eureka-api off --consul-dns off"));
        let of = |text: &str, datagrams| Wanted { address: text.parse().unwrap(), datagrams };
        assert_eq!(
            found,
            [
                of("127.0.0.1:15001", false),
                of("[::1]:15001", false),
                of("127.0.0.1:15053", false),
                of("[::1]:15053", false),
                of("127.0.0.1:15053", true),
                of("[::1]:15053", true),
            ]
        );
    }

    #[tokio::test]
    async fn each_data_folder_has_an_address_of_its_own_on_loopback() {
        let address = |folder: &str| loopback_address(Path::new(folder));
        assert_eq!(address("/a"), address("/a"));
        assert_ne!(address("/a"), address("/b"));
        assert!(address("/a").is_loopback() && address("/a").octets()[1] != 0);
        assert!(is_control_plane_on_loopback(&config("")).await);
        assert!(!is_control_plane_on_loopback(&config("--control-plane 192.0.2.1:1")).await);
        let mut placed = config("--metrics-listen 192.0.2.7:9");
        placed.place_outside(Some(address("/a").into()));
        assert_eq!(placed.ready_listen, SocketAddr::from((address("/a"), 15021)));
        assert_eq!(placed.metrics_listen.to_string(), "192.0.2.7:9");
    }
}
