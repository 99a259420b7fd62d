//! `weft-sidecar redirect`: the nftables rules that bring a pod's traffic to its proxy.
//!
//! [`rules`] renders the rules as text; here the text goes to the `nft` program, the route for virtual IPs is added, and a
//! useless or dangerous redirection is refused or warned about. Nothing of it needs root: in a user namespace CAP_NET_ADMIN
//! over its own network namespace is enough.

pub mod guard;
pub mod host;
pub mod rules;
mod verdict;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::host::children;
use crate::host::redirect::rules::{Cidr, Dns, Own, Ports, REMOVED, Rules, render, render_marked};
use crate::resolve::resolv;

/// The actions of `redirect`.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Action {
    /// Capture this network namespace's traffic; repeat it to change the options.
    Install(Box<Install>),
    /// Remove the redirection.
    Remove(Remove),
    /// Print the installed rules.
    Show,
}

/// Options of `redirect install`.
#[derive(Debug, Clone, clap::Args)]
pub struct Install {
    #[command(flatten)]
    capture: Capture,
    /// Do not check that the proxy is ready.
    #[arg(long)]
    force: bool,
    /// The proxy's listener of redirected outbound connections.
    #[arg(long, default_value_t = 15001)]
    outbound_port: u16,
    /// The proxy's listener of redirected inbound connections.
    #[arg(long, default_value_t = 15006)]
    inbound_port: u16,
    /// The proxy's listener of redirected DNS queries.
    #[arg(long, default_value_t = 15053)]
    dns_port: u16,
    /// The proxy's readiness endpoint.
    #[arg(long, default_value_t = 15021)]
    ready_port: u16,
    /// The proxy's metrics endpoint.
    #[arg(long, default_value_t = 15020)]
    metrics_port: u16,
    /// The proxy's admin endpoint.
    #[arg(long, default_value_t = 15000)]
    admin_port: u16,
}

/// Options of `redirect remove`.
#[derive(Debug, Clone, clap::Args)]
pub struct Remove {
    /// The proxy's admin endpoint.
    #[arg(long, default_value_t = 15000)]
    admin_port: u16,
    /// Data folder of a stopped sidecar: its record of the rules is removed too, or the sidecar would install them again.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
}

/// The traffic that is captured.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Capture {
    /// Inbound ports that are captured (8080,9000-9010) [default: all]. Required on a shared host.
    #[arg(long, value_delimiter = ',')]
    inbound_ports: Option<Vec<Ports>>,
    /// Inbound ports that are excluded.
    #[arg(long, value_delimiter = ',')]
    exclude_inbound_ports: Vec<Ports>,
    /// Outbound ports that are excluded.
    #[arg(long, value_delimiter = ',')]
    exclude_outbound_ports: Vec<Ports>,
    /// Destinations that are excluded (10.0.0.0/8,fd00::/8).
    #[arg(long, value_delimiter = ',')]
    exclude_outbound_ranges: Vec<Cidr>,
    /// The only destinations that are captured, besides virtual IPs [default: all].
    #[arg(long, value_delimiter = ',')]
    include_outbound_ranges: Vec<Cidr>,
    /// Users whose outbound traffic is captured, by number or name [default: all].
    #[arg(long, value_delimiter = ',', value_parser = user)]
    uid: Vec<String>,
    /// Control groups (version 2) whose outbound traffic is captured: paths below /sys/fs/cgroup.
    #[arg(long, value_delimiter = ',', value_parser = cgroup)]
    cgroup: Vec<String>,
    /// The proxy's user, if it has one of its own (1337); only needed where it cannot mark its sockets.
    #[arg(long)]
    proxy_uid: Option<u32>,
    /// Which queries to port 53 are captured. auto: those to the name servers of /etc/resolv.conf, so that a query to another
    /// server reaches it; only those to loopback if the resolver is in this pod too, so that its own queries are not captured.
    /// all: queries to any server.
    #[arg(long, value_enum, default_value_t = CaptureDns::Auto)]
    dns: CaptureDns,
    /// The same as --dns off.
    #[arg(long)]
    no_dns: bool,
    /// This network namespace belongs to one pod alone, even if it looks shared.
    #[arg(long, conflicts_with = "shared_host")]
    own_namespace: bool,
    /// Other workloads are in this network namespace too.
    #[arg(long)]
    shared_host: bool,
}

/// See [`Dns`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum CaptureDns {
    #[default]
    Auto,
    All,
    Loopback,
    Off,
}

fn user(text: &str) -> Result<String, String> {
    let fine = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    if fine { Ok(text.to_owned()) } else { Err("a user is a number or a name".into()) }
}

fn cgroup(text: &str) -> Result<String, String> {
    let path = text.strip_prefix("/sys/fs/cgroup").unwrap_or(text).trim_matches('/');
    if path.is_empty() || path.contains(['"', '\n', '\\']) {
        return Err("a control group is a path below /sys/fs/cgroup, other than its root".into());
    }
    Ok(path.to_owned())
}

/// Runs the action of the command line.
///
/// # Errors
/// If it is refused, or `nft` is missing or fails.
pub fn run(action: &Action) -> Result<()> {
    match action {
        Action::Install(options) => install(options),
        Action::Remove(options) => remove_for_good(options),
        Action::Show => show(),
    }
}

fn install(options: &Install) -> Result<()> {
    if !options.force {
        host::check_proxy(options.ready_port, options.admin_port, options.capture.proxy_uid.is_some())?;
        if !options.capture.leaves_dns_alone() {
            host::check_dns(options.dns_port)?;
        }
    }
    let own = Own {
        outbound: options.outbound_port,
        inbound: options.inbound_port,
        dns: options.dns_port,
        pages: vec![options.ready_port, options.metrics_port, options.admin_port],
    };
    apply(&options.capture, own)
}

/// Installs the rules, without asking whether a proxy is there.
///
/// # Errors
/// As [`run`].
pub fn apply(capture: &Capture, own: Own) -> Result<()> {
    let rules = compile(capture, own, capture.on_shared_host(), &host::nameservers())?;
    // First: a route alone does no harm.
    host::add_route().context("virtual IPs have no route")?;
    nft(&["-f", "-"], Some(&render_marked(&rules, rand::random())))?;
    let nsswitch = std::fs::read_to_string(resolv::NSSWITCH_CONF).unwrap_or_default();
    for line in notes(&rules, &nsswitch) {
        tracing::warn!("{line}");
    }
    tracing::info!("traffic is redirected to the proxy");
    Ok(())
}

/// The rules, for `nft -f -`, of a network namespace that holds one command alone, and notes about this machine's name
/// look-ups. `dns`: look-ups are captured.
///
/// # Errors
/// If an option does not fit there.
pub fn for_pod(capture: &Capture, own: Own, dns: bool) -> Result<(String, Vec<String>)> {
    let selective = !capture.uid.is_empty() || !capture.cgroup.is_empty();
    ensure!(!selective && !capture.shared_host, "--uid, --cgroup and --shared-host have no meaning with --netns");
    // The name servers are elsewhere: a query to any address is the command's.
    let no_dns = !dns || capture.leaves_dns_alone();
    let capture = Capture { dns: CaptureDns::All, no_dns, ..capture.clone() };
    let rules = compile(&capture, own, false, &[])?;
    let nsswitch = std::fs::read_to_string(resolv::NSSWITCH_CONF).unwrap_or_default();
    Ok((render(&rules), notes(&rules, &nsswitch)))
}

/// Replaces the table in the same transaction as the rules that follow.
const TABLE_ANEW: &str = "table inet weft\ndelete table inet weft\n";
/// Name of a sidecar's record of the rules, in its data folder.
pub const RECORD: &str = "redirection.nft";
/// Longest wait for a sidecar to notice that rules are removed on purpose.
const NOTICED: Duration = Duration::from_secs(3);

/// The table as it is; `None`: there is none.
fn installed() -> Result<Option<String>> {
    match nft(&["-s", "list", "table", "inet", "weft"], None) {
        Ok(found) => Ok(Some(String::from_utf8_lossy(&found.stdout).into_owned())),
        Err(e) if e.to_string().contains("No such file or directory") => Ok(None),
        Err(e) => Err(e),
    }
}

/// As [`remove`], so that no sidecar takes it for a loss.
fn remove_for_good(options: &Remove) -> Result<()> {
    if let Some(folder) = &options.data_dir {
        let record = folder.join(RECORD);
        match std::fs::remove_file(&record) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", record.display()));
            }
            _ => {}
        }
    }
    if installed()?.is_some() {
        nft(&["-f", "-"], Some(&format!("{TABLE_ANEW}table inet weft {{\n\t{REMOVED} {{\n\t}}\n}}\n")))?;
        let until = Instant::now() + NOTICED;
        let noticed = loop {
            match host::guards(options.admin_port) {
                // No sidecar runs here.
                None => break options.data_dir.is_some(),
                Some(false) => break true,
                Some(true) if Instant::now() > until => break false,
                Some(true) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        if !noticed {
            tracing::warn!(
                "a sidecar that is started here later, or one that may not read rules, treats this as a loss: \
                 `redirect remove --data-dir` with its data folder removes its record of the rules"
            );
        }
    }
    remove()
}

/// Takes the rules and the route back; no error where there are none.
///
/// # Errors
/// As [`run`].
pub fn remove() -> Result<()> {
    // Made first, so that removing twice is no error.
    nft(&["-f", "-"], Some(TABLE_ANEW))?;
    host::remove_route()
}

fn show() -> Result<()> {
    let tables = nft(&["list", "tables", "inet"], None)?;
    let tables = String::from_utf8_lossy(&tables.stdout);
    ensure!(
        tables.lines().any(|line| line.trim() == "table inet weft"),
        "nothing is redirected in this network namespace"
    );
    let table = nft(&["list", "table", "inet", "weft"], None)?;
    std::io::stdout().write_all(&table.stdout)?;
    Ok(())
}

impl Capture {
    /// Whether any option is set.
    pub fn is_given(&self) -> bool {
        *self != Capture::default()
    }

    /// Excludes DNS.
    pub fn leave_dns_alone(&mut self) {
        self.no_dns = true;
    }

    fn leaves_dns_alone(&self) -> bool {
        self.no_dns || self.dns == CaptureDns::Off
    }

    /// Refuses where the proxy of this very process would be sent its own traffic.
    ///
    /// # Errors
    /// Names the way to let it mark its sockets.
    pub fn check_marks(&self) -> Result<()> {
        ensure!(self.proxy_uid.is_some() || crate::net::connect::marks(), host::NO_MARKS);
        Ok(())
    }

    fn on_shared_host(&self) -> bool {
        self.shared_host || (!self.own_namespace && host::in_init_namespace())
    }
}

/// The options as typed, made into rules.
fn compile(capture: &Capture, own: Own, shared_host: bool, nameservers: &[std::net::IpAddr]) -> Result<Rules> {
    let selective = !capture.uid.is_empty() || !capture.cgroup.is_empty();
    if shared_host {
        let way_out = "this is the host's own network namespace, and others live in it: capturing everything would cut \
                       them off. (--own-namespace, if only the application and its proxy are here)";
        let ports = capture.inbound_ports.as_deref().unwrap_or_default();
        ensure!(!ports.is_empty(), "--inbound-ports is required: {way_out}");
        ensure!(selective, "--uid or --cgroup of the application is required: {way_out}");
        ensure!(
            !ports.iter().any(|p| p.from == p.to && p.contains(22)),
            "port 22 is never taken on a shared host: it is the way in when something goes wrong"
        );
    }
    let dns = match capture.dns {
        _ if capture.no_dns => Dns::Off,
        CaptureDns::All => Dns::All,
        CaptureDns::Loopback => Dns::Loopback,
        // A resolver in this pod: if its queries upstream were captured, they would come back to it for ever.
        CaptureDns::Auto if !selective && !nameservers.is_empty() && nameservers.iter().all(|a| a.is_loopback()) => {
            Dns::Loopback
        }
        // Without any the C library asks one on loopback, and other resolvers have servers of their own.
        CaptureDns::Auto if nameservers.is_empty() => Dns::All,
        CaptureDns::Auto => Dns::Servers(nameservers.to_vec()),
        CaptureDns::Off => Dns::Off,
    };
    Ok(Rules {
        inbound_ports: capture.inbound_ports.clone(),
        exclude_inbound_ports: capture.exclude_inbound_ports.clone(),
        exclude_outbound_ports: capture.exclude_outbound_ports.clone(),
        exclude_outbound_ranges: capture.exclude_outbound_ranges.clone(),
        include_outbound_ranges: capture.include_outbound_ranges.clone(),
        uids: capture.uid.clone(),
        cgroups: capture.cgroup.clone(),
        proxy_uid: capture.proxy_uid,
        dns,
        own,
        shared_host,
    })
}

/// Notes about this machine's name look-ups for the operator; `nsswitch`: how the C library makes them.
fn notes(rules: &Rules, nsswitch: &str) -> Vec<String> {
    let mut notes = Vec::new();
    if rules.dns == Dns::Off {
        return notes;
    }
    if let Some(edit) = resolv::without_resolve(nsswitch) {
        notes.push(format!(
            "{} looks up hosts by `resolve` (systemd-resolved) before `dns`: those queries never reach port 53, so names \
             of the mesh will not be found. Fix: sed -i '{edit}' {0}",
            resolv::NSSWITCH_CONF
        ));
    }
    if rules.dns == Dns::Loopback {
        notes.push(
            "the resolver of this pod is on loopback (systemd-resolved's is 127.0.0.53): queries to it are captured, queries \
             to other resolvers are taken as its own and left alone. --dns all captures them too, which is right only \
             where that resolver runs in another network namespace: one in this would be sent its own queries for ever"
                .into(),
        );
    }
    notes
}

/// Runs `nft`, with `input` on its standard input.
fn nft(arguments: &[&str], input: Option<&str>) -> Result<Output> {
    run_tool("nft", "nftables", arguments, input)
}

/// Where a program of the administrator's is: not on every user's path.
pub(crate) fn tool(name: &str) -> PathBuf {
    let program = ["/usr/sbin", "/sbin", "/usr/bin"].map(|folder| Path::new(folder).join(name));
    program.into_iter().find(|path| path.exists()).unwrap_or_else(|| name.into())
}

/// Runs a program of the Debian package `package`.
pub(crate) fn run_tool(name: &str, package: &str, arguments: &[&str], input: Option<&str>) -> Result<Output> {
    let program = tool(name);
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let (mut child, _ours) = match children::spawn(|| command.spawn(), |child| Some(child.id())) {
        Ok(child) => child,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            bail!("the program {name} is missing: install the package {package} (apt-get install {package})")
        }
        Err(e) => return Err(e).with_context(|| format!("cannot run {}", program.display())),
    };
    if let (Some(input), Some(mut to)) = (input, child.stdin.take()) {
        // A program that has exited already is reported below.
        let _ = to.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let right = if said.contains("Operation not permitted") { " (it needs CAP_NET_ADMIN)" } else { "" };
        bail!("{name} {} failed{right}: {}", arguments.join(" "), said.trim());
    }
    Ok(output)
}

#[cfg(test)]
mod tests;
