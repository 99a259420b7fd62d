//! `exec --netns`: a pod for one command on an ordinary machine, a network namespace and a veth pair.
//!
//! The `ip` program makes it, and the sidecar is run in it once more, by `ip netns exec`: no part of the proxy needs to handle
//! two namespaces, and a resolver's configuration can differ. The outer process keeps the pod and removes it when the inner
//! one has ended. If it is killed, the kernel signals the inner one, which drains; leftovers of the pod are recognised by its
//! name, and removed when the same pod is made again.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use weft_listen::address;

use crate::commands::run;
use crate::host::claim::{self, Claim};
use crate::host::redirect::rules::VIRTUAL_IPS;
use crate::host::redirect::{run_tool, tool};
use crate::net::connect;
use crate::resolve::resolv;
use aws_lc_rs::digest::{SHA256, digest};

/// Ranges of pods' addresses, unless one is given: private ranges (RFC 1918) that few networks use. The first /30 that no route
/// of this machine covers is taken, starting at one derived from the pod's name, so that a pod keeps its address over
/// restarts and two pods that are made at once do not take the same.
const RANGES: [Net; 3] = [Net::new(10, 87, 0, 0, 16), Net::new(172, 30, 0, 0, 16), Net::new(192, 168, 0, 0, 16)];
/// Longest wait for leftover processes in the namespace to end: they may drain.
const LEFTOVERS: Duration = Duration::from_secs(5);
/// Where systemd-resolved keeps the servers that it asks itself.
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// IPv4 addresses that share their first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Net {
    first: u32,
    bits: u8,
}

impl Net {
    const fn new(a: u8, b: u8, c: u8, d: u8, bits: u8) -> Net {
        Net { first: u32::from_be_bytes([a, b, c, d]), bits }
    }

    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0)
    }

    fn contains(self, address: u32) -> bool {
        address & self.mask() == self.first & self.mask()
    }

    fn overlaps(self, other: Net) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }
}

impl FromStr for Net {
    type Err = ();

    /// As routes are written: without bits it is one address.
    fn from_str(text: &str) -> Result<Net, ()> {
        let (address, bits) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address.parse().map_err(drop)?;
        let bits = bits.parse().map_err(drop)?;
        if bits > 32 { Err(()) } else { Ok(Net { first: address.to_bits(), bits }) }
    }
}

/// The value of `--netns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Any address that is free.
    Any,
    /// This one.
    Link(Link),
}

/// The two ends of the veth pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pod: Ipv4Addr,
    host: Ipv4Addr,
    bits: u8,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Wanted, String> {
        if text.is_empty() {
            return Ok(Wanted::Any);
        }
        let wrong = || format!("{text:?} is not an address and prefix such as 10.87.0.2/30, with room for two hosts");
        let net: Net = text.parse().map_err(|()| wrong())?;
        let (first, last) = (net.first & net.mask(), net.first | !net.mask());
        if net.bits > 30 || net.first == first || net.first == last {
            return Err(wrong());
        }
        let host = if net.first == first + 1 { first + 2 } else { first + 1 };
        Ok(Wanted::Link(Link { pod: net.first.into(), host: host.into(), bits: net.bits }))
    }
}

/// Runs this very command line once more in a pod of its own, without `--netns`. Returns the code to exit with.
///
/// # Errors
/// When the pod cannot be made.
pub(super) async fn run(wanted: Wanted, config: &run::Config) -> Result<u8> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "--netns=ADDRESS/PREFIX gives a pod an address of its own on this machine, which needs root; --netns without an \
         address does not. With root the command need not stay root: -- setpriv --reuid USER --regid GROUP --init-groups \
         your-command"
    );
    for address in &config.control_planes {
        reachable(address, wanted).await?;
    }
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot make the data folder {}", config.data_dir.display()))?;
    let mut signals = super::signals()?;
    let pod = Pod::make(&config.data_dir, wanted)?;
    let inside = std::env::current_exe().context("cannot find this program's file")?;
    let mut command = vec![tool("ip").into(), "netns".into(), "exec".into(), OsString::from(&pod.name), inside.into()];
    command.extend(arguments(std::env::args_os().skip(1)));
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let child = super::child::spawn(&command, limit).context("cannot run ip (package iproute2)")?;
    let ready = || std::future::ready(());
    super::supervise(child, &mut signals, std::future::pending(), ready).await
}

/// The command line for the one inside.
fn arguments(ours: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut all = Vec::new();
    let mut options = true;
    for argument in ours {
        options &= argument != "--";
        let netns = argument.to_str().is_some_and(|a| a == "--netns" || a.starts_with("--netns="));
        if !(options && netns) {
            all.push(argument);
        }
        if all.len() == 1 {
            all.push(format!("--within={}", std::process::id()).into());
        }
    }
    all
}

/// Ends with the process outside. To be called inside, first of all.
///
/// # Errors
/// When that one has ended already.
pub(super) fn end_with(outside: i32) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get());
    // From another PID namespace it would be 0; the death signal works all the same.
    ensure!(parent.is_none() || parent == Some(outside), "the process that made this network namespace has ended");
    Ok(())
}

/// Refuses a control plane that the pod cannot reach, and warns if others cannot reach the pod.
async fn reachable(control_plane: &str, wanted: Wanted) -> Result<()> {
    let split = control_plane.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let Some((host, port)) = split else { return Ok(()) };
    // One that has no address now is looked for by the one inside for ever.
    let Ok(found) = connect::resolve(host.trim_matches(['[', ']']), port).await else { return Ok(()) };
    ensure!(
        !found.ip().is_loopback(),
        "--control-plane {control_plane} is on this machine's loopback, where a pod with an address of its own does not \
         reach it: give another address of this machine, or --netns without an address"
    );
    if wanted == Wanted::Any && !address::is_local(found.ip()) {
        tracing::warn!(
            "the control plane {control_plane} is on another machine: it takes this machine's address for the pod's, and \
             others do not reach the service there. Give the pod an address that your network routes to this machine: \
             --netns=ADDRESS/PREFIX"
        );
    }
    Ok(())
}

/// A namespace and the devices of its link; removed when it is dropped.
struct Pod {
    name: String,
    interface: String,
    /// So that no other process makes the same one, or takes it for a leftover.
    _claim: Claim,
}

impl Pod {
    fn make(data_dir: &Path, wanted: Wanted) -> Result<Pod> {
        // The folder identifies a sidecar over restarts, and no two may share it.
        let folder = data_dir.canonicalize().with_context(|| format!("cannot read {}", data_dir.display()))?;
        let hash = digest(&SHA256, folder.as_os_str().as_encoded_bytes());
        let hash = hash.as_ref();
        let seed = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
        let (name, interface) = (format!("weft-{seed:08x}"), format!("weft{seed:08x}"));
        let Some(claim) = claim::claim(&format!("weft-netns/{name}"))? else {
            let holder = claim::holder(&format!("weft-netns/{name}"));
            let holder = holder.map_or_else(|| "another process".into(), |h| h.to_string());
            bail!(
                "{holder} runs in the namespace {name} with the same --data-dir {}: give each its own",
                folder.display()
            );
        };
        let pod = Pod { name, interface, _claim: claim };
        pod.end_leftovers()?;
        pod.take_down()?;
        let link = match wanted {
            Wanted::Link(link) => link,
            Wanted::Any => free(seed, &routes()?)
                .context("no private address is free for the pod: give one, --netns=ADDRESS/PREFIX")?,
        };
        // From here on a failure removes everything that was made.
        pod.set_up(link, wanted == Wanted::Any)?;
        tracing::info!(address = %link.pod, gateway = %link.host, "made the network namespace {}", pod.name);
        Ok(pod)
    }

    fn set_up(&self, link: Link, translate: bool) -> Result<()> {
        let Pod { name, interface, .. } = self;
        let Link { pod, host, bits } = link;
        ip(&["netns", "add", name])?;
        ip(&["link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", name])?;
        ip(&["addr", "add", &format!("{host}/{bits}"), "dev", interface])?;
        ip(&["link", "set", interface, "up"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        ip(&["-n", name, "addr", "add", &format!("{pod}/{bits}"), "dev", "eth0"])?;
        ip(&["-n", name, "link", "set", "eth0", "up"])?;
        ip(&["-n", name, "route", "add", "default", "via", &host.to_string()])?;
        forward()?;
        warn_of_firewall();
        if translate {
            // Other machines have no way back to it. This one, and its other pods, see its own address.
            let table = format!(
                "table ip {name} {{\n chain leaving {{\n  type nat hook postrouting priority srcnat; policy accept;\n  \
                 ip saddr {pod} oifname != \"weft*\" masquerade\n }}\n}}\n"
            );
            run_tool("nft", "nftables", &["-f", "-"], Some(&table))?;
        }
        self.resolver()
    }

    /// Gives the pod name servers that it reaches, where this machine's are on its loopback.
    fn resolver(&self) -> Result<()> {
        let ours = std::fs::read_to_string(resolv::RESOLV_CONF).unwrap_or_default();
        let on_loopback = |text: &str| resolv::nameservers(text).iter().all(IpAddr::is_loopback);
        if !on_loopback(&ours) {
            return Ok(());
        }
        let resolved_conf = std::fs::read_to_string(RESOLVED_CONF).unwrap_or_default();
        if on_loopback(&resolved_conf) {
            tracing::warn!(
                "the name servers of {} are on this machine's loopback, where the pod does not reach them: it will find \
                 names of the mesh only. Name others there, or in /etc/netns/{}/resolv.conf",
                resolv::RESOLV_CONF,
                self.name
            );
            return Ok(());
        }
        // `ip netns exec` puts it over /etc/resolv.conf (ip-netns(8)).
        let folder = self.etc();
        std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::write(folder.join("resolv.conf"), resolved_conf))
            .with_context(|| format!("cannot write {}/resolv.conf", folder.display()))
    }

    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.name)
    }

    fn exists(&self) -> bool {
        Path::new("/run/netns").join(&self.name).exists()
    }

    /// Ends processes that an earlier run left in the namespace when it was killed.
    fn end_leftovers(&self) -> Result<()> {
        let end = Instant::now() + LEFTOVERS;
        while self.exists() {
            let found = ip(&["netns", "pids", &self.name])?;
            let left: Vec<Pid> = found.lines().filter_map(|l| Pid::from_raw(l.trim().parse().ok()?)).collect();
            if left.is_empty() {
                break;
            }
            if Instant::now() > end {
                tracing::warn!("killing processes of an earlier run in the namespace {}: {left:?}", self.name);
                for pid in left {
                    // It may have ended just now.
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Removes all of the pod that there is.
    fn take_down(&self) -> Result<()> {
        // Not by /sys: that shows the network namespace in which it was mounted.
        if ip(&["link", "show", "dev", &self.interface]).is_ok() {
            ip(&["link", "del", "dev", &self.interface])?;
        }
        if self.exists() {
            ip(&["netns", "del", &self.name])?;
        }
        let name = &self.name;
        run_tool("nft", "nftables", &["-f", "-"], Some(&format!("table ip {name}\ndelete table ip {name}\n")))?;
        match std::fs::remove_file(self.etc().join("resolv.conf")).and_then(|()| std::fs::remove_dir(self.etc())) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::debug!("{} stays: {e}", self.etc().display());
            }
            _ => {}
        }
        Ok(())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Err(e) = self.take_down() {
            tracing::warn!("the network namespace {} stays: {e:#}", self.name);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<String> {
    let output = run_tool("ip", "iproute2", arguments, None)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Lets this machine pass packets on. It stays so: others may have come to need it.
fn forward() -> Result<()> {
    let file = "/proc/sys/net/ipv4/ip_forward";
    if std::fs::read_to_string(file).is_ok_and(|value| value.trim() != "0") {
        return Ok(());
    }
    std::fs::write(file, "1").with_context(|| format!("cannot set {file} to 1"))?;
    tracing::info!("this machine forwards packets from now on ({file})");
    Ok(())
}

/// Warns if a firewall (Docker's, ufw's) keeps this machine from forwarding packets: a drop there counts even if a table of
/// Weft accepts, and Weft does not change tables of other programs.
fn warn_of_firewall() {
    let chain = run_tool("nft", "nftables", &["list", "chain", "ip", "filter", "FORWARD"], None);
    let text = chain.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    if text.contains("policy drop") && !text.contains("\"weft*\"") {
        tracing::warn!(
            "this machine's firewall drops what it forwards (policy of ip filter FORWARD), the pod's packets too unless a \
             rule of it says otherwise. Fix: nft insert rule ip filter FORWARD iifname \"weft*\" accept; nft insert rule ip \
             filter FORWARD oifname \"weft*\" accept"
        );
    }
}

/// Destinations of this machine's routes, in any table, default routes aside.
fn routes() -> Result<Vec<Net>> {
    let json = ip(&["-j", "-4", "route", "show", "table", "all"])?;
    let routes: Vec<serde_json::Value> = serde_json::from_str(&json).context("cannot read the routes")?;
    let destinations = routes.iter().filter_map(|route| route["dst"].as_str()?.parse::<Net>().ok());
    Ok(destinations.filter(|net| net.bits > 0).chain(VIRTUAL_IPS.parse()).collect())
}

/// A /30 that no route covers.
fn free(seed: u32, taken: &[Net]) -> Option<Link> {
    RANGES.into_iter().find_map(|range| {
        let slots = 1u32 << (30 - range.bits);
        let links = (0..slots).map(|n| Net { first: range.first + 4 * (seed.wrapping_add(n) % slots), bits: 30 });
        let net = links.into_iter().find(|link| !taken.iter().any(|net| net.overlaps(*link)))?;
        Some(Link { pod: (net.first + 2).into(), host: (net.first + 1).into(), bits: 30 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netns_address_and_gateway() {
        for (text, host) in [("10.1.2.2/30", "10.1.2.1"), ("10.1.2.1/30", "10.1.2.2"), ("10.1.2.77/24", "10.1.2.1")] {
            let Ok(Wanted::Link(link)) = text.parse() else { panic!("{text}") };
            assert_eq!((link.host.to_string(), format!("{}/{}", link.pod, link.bits)), (host.into(), text.to_owned()));
        }
        for wrong in
            ["10.1.2.2", "10.1.2.2/31", "10.1.2.0/30", "10.1.2.3/30", "10.1.2.2/x", "fd00::2/64", "10.1.2.2/33"]
        {
            assert!(wrong.parse::<Wanted>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn netns_takes_a_prefix_without_a_route() {
        let link = |taken: &[&str]| {
            let taken: Vec<Net> = taken.iter().map(|t| t.parse().unwrap()).collect();
            free(1, &taken).map(|link| format!("{} {}", link.pod, link.host))
        };
        assert_eq!(link(&["192.168.1.0/24", "127.0.0.0/8"]).unwrap(), "10.87.0.6 10.87.0.5");
        assert_eq!(link(&["10.87.0.4/30"]).unwrap(), "10.87.0.10 10.87.0.9", "another pod has it");
        assert_eq!(link(&["10.87.0.7"]).unwrap(), "10.87.0.10 10.87.0.9");
        assert_eq!(link(&["10.0.0.0/8"]).unwrap(), "172.30.0.6 172.30.0.5");
        assert_eq!(link(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]), None);
    }

    #[test]
    fn the_inner_process_gets_the_same_options() {
        let ours = "exec --netns=10.1.2.2/30 --service a --netns -- sh --netns".split(' ').map(OsString::from);
        let inside: Vec<_> = arguments(ours).into_iter().map(|a| a.into_string().unwrap()).collect();
        assert!(inside[1].starts_with("--within="), "{inside:?}");
        assert_eq!(
            (&inside[0][..], &inside[2..]),
            ("exec", &["--service", "a", "--", "sh", "--netns"].map(String::from)[..])
        );
    }
}
