//! The redirection as text for `nft`: a pure function of the options.
//!
//! One table, deleted and made anew in one transaction, so that installing twice is installing once and no packet meets
//! half of it. Open connections go on as they began.
//!
//! The chains have the order of the decisions: the proxy's own sockets first (by their mark), then DNS, then excluded
//! traffic, then the rest.

use std::fmt::{self, Write};
use std::net::IpAddr;
use std::str::FromStr;

use crate::net::connect::{DELIVERY_SOURCE, MARK_DELIVERY, MARK_UPSTREAM};

/// Where virtual IPs come from: always captured.
pub const VIRTUAL_IPS: &str = "240.240.0.0/16";

/// Port 22: on a shared host it is the administrator's way in.
const SSH: u16 = 22;

/// Ports from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// The first.
    pub from: u16,
    /// The last.
    pub to: u16,
}

impl Ports {
    /// Whether `port` is one of them.
    pub fn contains(&self, port: u16) -> bool {
        (self.from..=self.to).contains(&port)
    }
}

impl From<u16> for Ports {
    fn from(port: u16) -> Ports {
        Ports { from: port, to: port }
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Ports, String> {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let parse = |port: &str| match port.trim().parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("{text:?} is neither a port nor a range such as 8000-8100")),
        };
        let (from, to) = (parse(from)?, parse(to)?);
        if from > to { Err(format!("{text:?} runs backwards")) } else { Ok(Ports { from, to }) }
    }
}

/// Addresses that share their first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    bits: u8,
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Cidr, String> {
        let wrong = || format!("{text:?} is neither an address nor a range such as 10.0.0.0/8");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        if bits > most { Err(wrong()) } else { Ok(Cidr { address, bits }) }
    }
}

impl fmt::Display for Cidr {
    /// As a match on the destination.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.address.is_ipv4() { "ip" } else { "ip6" };
        write!(f, "{family} daddr {}/{}", self.address, self.bits)
    }
}

/// Which queries to port 53 are captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dns {
    /// None.
    Off,
    /// Those to these name servers, the pod's own: a query to another reaches it, as in Istio.
    Servers(Vec<IpAddr>),
    /// Queries to resolvers on loopback: queries to other servers are such a resolver's own.
    Loopback,
    /// All.
    All,
}

/// The sidecar's ports.
#[derive(Debug, Clone)]
pub struct Own {
    /// Where redirected outbound connections arrive.
    pub outbound: u16,
    /// Where redirected inbound connections arrive.
    pub inbound: u16,
    /// Where redirected DNS arrives.
    pub dns: u16,
    /// Pages that are reached from outside as they are.
    pub pages: Vec<u16>,
}

/// The traffic that is captured.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Ports captured inbound; all, where it is `None`.
    pub inbound_ports: Option<Vec<Ports>>,
    /// Ports left alone inbound.
    pub exclude_inbound_ports: Vec<Ports>,
    /// Ports left alone outbound, DNS too.
    pub exclude_outbound_ports: Vec<Ports>,
    /// Destinations left alone.
    pub exclude_outbound_ranges: Vec<Cidr>,
    /// The only destinations captured, besides virtual IPs; all, where there are none.
    pub include_outbound_ranges: Vec<Cidr>,
    /// Users whose outbound traffic is captured; all, where there are neither users nor control groups.
    pub uids: Vec<String>,
    /// Control groups (version 2) whose outbound traffic is captured, as paths below `/sys/fs/cgroup`.
    pub cgroups: Vec<String>,
    /// The user that the proxy runs as, where it has one of its own.
    pub proxy_uid: Option<u32>,
    /// Which DNS is captured.
    pub dns: Dns,
    /// The sidecar's ports.
    pub own: Own,
    /// Whether others than this pod live in this network namespace.
    pub shared_host: bool,
}

/// Connections that were open before go on as they are: their next packet is new to connection tracking, but does not begin a
/// connection, and translating it would break them (the sidecar's own stream to the control plane first).
const NOT_A_BEGINNING: &str = "tcp flags & (fin | syn | rst | ack) != syn accept";
/// To an address of this machine.
const TO_THIS_POD: &str = "fib daddr type local jump inbound";

/// The prefix of the name of the chain, without rules, that marks an installation.
pub(super) const MARK: &str = "chain installed_";
/// A table with this chain is about to be removed.
pub const REMOVED: &str = "chain removed";

/// The rules for `nft -f -`, marked as an installation of their own by `number`.
pub fn render_marked(rules: &Rules, number: u64) -> String {
    let text = render(rules);
    let body = text.strip_suffix("}\n").unwrap_or(&text);
    format!("{body}\t{MARK}{number:016x} {{\n\t}}\n}}\n")
}

/// The rules for `nft -f -`.
pub fn render(rules: &Rules) -> String {
    let mut text = String::from("table inet weft\ndelete table inet weft\ntable inet weft {\n");
    // Before the translations of other tables (-100, as Docker's of its resolver): the first one counts.
    chain(&mut text, "output", Some("type nat hook output priority -101; policy accept;"), &output(rules));
    let hook = Some("type nat hook prerouting priority -101; policy accept;");
    chain(&mut text, "prerouting", hook, &[NOT_A_BEGINNING, TO_THIS_POD].map(String::from));
    let loopback = ["ip daddr 127.0.0.0/8 accept", "ip6 daddr ::1 accept"];
    chain(&mut text, "upstream", None, &[loopback[0], loopback[1], TO_THIS_POD, "accept"].map(String::from));
    chain(&mut text, "inbound", None, &inbound(rules));
    chain(&mut text, "application", None, &application(rules));
    text.push_str("}\n");
    text
}

fn chain(text: &mut String, name: &str, hook: Option<&str>, rules: &[String]) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "\tchain {name} {{");
    for line in hook.into_iter().chain(rules.iter().map(String::as_str)) {
        let _ = writeln!(text, "\t\t{line}");
    }
    text.push_str("\t}\n");
}

/// Outgoing traffic, by its owner.
fn output(rules: &Rules) -> Vec<String> {
    let mut lines = vec![
        NOT_A_BEGINNING.to_owned(),
        format!("meta mark {MARK_DELIVERY:#x} accept"),
        format!("meta mark {MARK_UPSTREAM:#x} jump upstream"),
    ];
    if let Some(uid) = rules.proxy_uid {
        // Without marks: a delivery is recognised by its source address. Over IPv6 there is none, so a pod's call to itself goes
        // to the application and not through the proxy.
        lines.push(format!("meta skuid {uid} ip saddr {DELIVERY_SOURCE} accept"));
        lines.push(format!("meta skuid {uid} meta nfproto ipv4 jump upstream"));
        lines.push(format!("meta skuid {uid} accept"));
    }
    if !rules.uids.is_empty() {
        lines.push(format!("meta skuid {{ {} }} jump application", rules.uids.join(", ")));
    }
    for path in &rules.cgroups {
        let path = path.trim_matches('/');
        let level = path.split('/').count();
        lines.push(format!("socket cgroupv2 level {level} \"{path}\" jump application"));
    }
    if rules.uids.is_empty() && rules.cgroups.is_empty() {
        lines.push("jump application".into());
    }
    lines
}

/// Traffic to this pod, from outside or from its own proxy.
fn inbound(rules: &Rules) -> Vec<String> {
    let own = &rules.own;
    let mut untouched: Vec<Ports> = [own.outbound, own.inbound, own.dns].map(Ports::from).into();
    untouched.extend(own.pages.iter().copied().map(Ports::from));
    untouched.extend(&rules.exclude_inbound_ports);
    if rules.shared_host {
        untouched.push(SSH.into());
    }
    let mut lines = vec![format!("tcp dport {} accept", set(&untouched))];
    lines.push(match &rules.inbound_ports {
        None => format!("meta l4proto tcp redirect to :{}", own.inbound),
        Some(ports) if ports.is_empty() => "accept".into(),
        Some(ports) => format!("tcp dport {} redirect to :{}", set(ports), own.inbound),
    });
    lines
}

/// Traffic of the application.
fn application(rules: &Rules) -> Vec<String> {
    let mut lines = Vec::new();
    if !rules.exclude_outbound_ports.is_empty() {
        let ports = set(&rules.exclude_outbound_ports);
        lines.push(format!("meta l4proto {{ tcp, udp }} th dport {ports} accept"));
    }
    let dns = format!("meta l4proto {{ tcp, udp }} th dport 53 redirect to :{}", rules.own.dns);
    match &rules.dns {
        Dns::Off => {}
        Dns::Servers(servers) => lines.extend(to_servers(servers).map(|to| format!("{to} {dns}"))),
        Dns::Loopback => {
            lines.extend([format!("ip daddr 127.0.0.0/8 {dns}"), format!("ip6 daddr ::1 {dns}")]);
            lines.push("meta l4proto { tcp, udp } th dport 53 accept".into());
        }
        Dns::All => lines.push(dns),
    }
    // Link-local addresses mean something only together with an interface, which a redirect loses.
    lines.extend(["ip daddr 127.0.0.0/8 accept".into(), "ip6 daddr { ::1, fe80::/10 } accept".into()]);
    lines.extend(rules.exclude_outbound_ranges.iter().map(|range| format!("{range} accept")));
    let redirect = format!("meta l4proto tcp redirect to :{}", rules.own.outbound);
    if rules.include_outbound_ranges.is_empty() {
        lines.push(redirect);
    } else {
        lines.push(format!("ip daddr {VIRTUAL_IPS} {redirect}"));
        lines.extend(rules.include_outbound_ranges.iter().map(|range| format!("{range} {redirect}")));
    }
    lines
}

/// Matches on name servers as the destination, one for each family.
fn to_servers(servers: &[IpAddr]) -> impl Iterator<Item = String> {
    let of = |family: &'static str, is_v4: bool| {
        let mut found: Vec<&IpAddr> = servers.iter().filter(|server| server.is_ipv4() == is_v4).collect();
        found.sort_unstable();
        found.dedup();
        let found: Vec<String> = found.into_iter().map(ToString::to_string).collect();
        (!found.is_empty()).then(|| format!("{family} daddr {{ {} }}", found.join(", ")))
    };
    [of("ip", true), of("ip6", false)].into_iter().flatten()
}

/// A set of ports; nft refuses sets whose ranges overlap, so they are joined.
fn set(ports: &[Ports]) -> String {
    let mut sorted = ports.to_vec();
    sorted.sort_unstable();
    let mut joined: Vec<Ports> = Vec::new();
    for ports in sorted {
        match joined.last_mut() {
            Some(last) if ports.from <= last.to => last.to = last.to.max(ports.to),
            _ => joined.push(ports),
        }
    }
    let words = joined.iter().map(|p| if p.from == p.to { p.from.to_string() } else { format!("{}-{}", p.from, p.to) });
    format!("{{ {} }}", words.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::host::redirect) fn default() -> Rules {
        Rules {
            inbound_ports: None,
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            exclude_outbound_ranges: Vec::new(),
            include_outbound_ranges: Vec::new(),
            uids: Vec::new(),
            cgroups: Vec::new(),
            proxy_uid: None,
            dns: Dns::All,
            own: Own { outbound: 15001, inbound: 15006, dns: 15053, pages: vec![15020, 15021, 15000] },
            shared_host: false,
        }
    }

    fn ports(text: &[&str]) -> Vec<Ports> {
        text.iter().map(|t| t.parse().unwrap()).collect()
    }

    fn ranges(text: &[&str]) -> Vec<Cidr> {
        text.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn a_pods_namespace_is_captured_whole() {
        let expected = "\
table inet weft
delete table inet weft
table inet weft {
	chain output {
		type nat hook output priority -101; policy accept;
		tcp flags & (fin | syn | rst | ack) != syn accept
		meta mark 0x57ef0002 accept
		meta mark 0x57ef0001 jump upstream
		jump application
	}
	chain prerouting {
		type nat hook prerouting priority -101; policy accept;
		tcp flags & (fin | syn | rst | ack) != syn accept
		fib daddr type local jump inbound
	}
	chain upstream {
		ip daddr 127.0.0.0/8 accept
		ip6 daddr ::1 accept
		fib daddr type local jump inbound
		accept
	}
	chain inbound {
		tcp dport { 15000, 15001, 15006, 15020, 15021, 15053 } accept
		meta l4proto tcp redirect to :15006
	}
	chain application {
		meta l4proto { tcp, udp } th dport 53 redirect to :15053
		ip daddr 127.0.0.0/8 accept
		ip6 daddr { ::1, fe80::/10 } accept
		meta l4proto tcp redirect to :15001
	}
}
";
        assert_eq!(render(&default()), expected);
    }

    #[test]
    fn a_shared_host_is_captured_by_its_options() {
        let rules = Rules {
            inbound_ports: Some(ports(&["8080", "9000-9010"])),
            exclude_inbound_ports: ports(&["9005"]),
            uids: vec!["1001".into(), "shop".into()],
            cgroups: vec!["/system.slice/order.service".into()],
            proxy_uid: Some(1337),
            shared_host: true,
            ..default()
        };
        let text = render(&rules);
        for line in [
            "tcp dport { 22, 9005, 15000, 15001, 15006, 15020, 15021, 15053 } accept",
            "tcp dport { 8080, 9000-9010 } redirect to :15006",
            "meta skuid 1337 ip saddr 127.0.0.6 accept",
            "meta skuid 1337 meta nfproto ipv4 jump upstream",
            "meta skuid 1337 accept",
            "meta skuid { 1001, shop } jump application",
            "socket cgroupv2 level 2 \"system.slice/order.service\" jump application",
        ] {
            assert!(text.contains(&format!("\t\t{line}\n")), "{line}\n{text}");
        }
        assert!(!text.contains("\t\tjump application"), "{text}");
        assert!(!text.contains("meta l4proto tcp redirect to :15006"), "{text}");
    }

    #[test]
    fn exclusions_precede_redirections() {
        let rules = Rules {
            exclude_outbound_ports: ports(&["5432", "53"]),
            exclude_outbound_ranges: ranges(&["169.254.169.254", "fd00::/8"]),
            include_outbound_ranges: ranges(&["10.0.0.0/8"]),
            ..default()
        };
        let lines = [
            "meta l4proto { tcp, udp } th dport { 53, 5432 } accept",
            "meta l4proto { tcp, udp } th dport 53 redirect to :15053",
            "ip daddr 127.0.0.0/8 accept",
            "ip6 daddr { ::1, fe80::/10 } accept",
            "ip daddr 169.254.169.254/32 accept",
            "ip6 daddr fd00::/8 accept",
            "ip daddr 240.240.0.0/16 meta l4proto tcp redirect to :15001",
            "ip daddr 10.0.0.0/8 meta l4proto tcp redirect to :15001",
        ];
        assert_eq!(application(&rules), lines);
    }

    #[test]
    fn queries_to_other_name_servers_are_not_captured() {
        let servers = ["10.0.0.2", "fd00::2", "127.0.0.1", "10.0.0.2"].map(|a| a.parse().unwrap()).to_vec();
        let lines = application(&Rules { dns: Dns::Servers(servers), ..default() });
        let dns = "meta l4proto { tcp, udp } th dport 53 redirect to :15053";
        assert_eq!(lines[0], format!("ip daddr {{ 10.0.0.2, 127.0.0.1 }} {dns}"));
        assert_eq!(lines[1], format!("ip6 daddr {{ fd00::2 }} {dns}"));
        assert!(lines[2..].iter().all(|line| !line.contains("dport 53")), "{lines:?}");
    }

    #[test]
    fn a_local_resolvers_own_queries_are_not_captured() {
        let lines = application(&Rules { dns: Dns::Loopback, ..default() });
        let dns = "meta l4proto { tcp, udp } th dport 53";
        assert_eq!(lines[0], format!("ip daddr 127.0.0.0/8 {dns} redirect to :15053"));
        assert_eq!(lines[2], format!("{dns} accept"));
        assert!(!render(&Rules { dns: Dns::Off, ..default() }).contains(" 53 "));
    }

    #[test]
    fn ports_and_ranges_are_checked() {
        assert_eq!(set(&ports(&["9", "1-5", "3-7", "7", "20"])), "{ 1-7, 9, 20 }");
        for wrong in ["", "0", "70000", "80-", "9-8", "http", "8 0"] {
            assert!(wrong.parse::<Ports>().is_err(), "{wrong}");
        }
        for wrong in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "a", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
        assert!(Ports { from: 20, to: 25 }.contains(22));
    }
}
