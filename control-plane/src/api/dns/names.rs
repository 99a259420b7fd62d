//! Names as queries: Consul's forms under `consul.`, and the tables of addresses.
//!
//! Names between the forms (`service.consul`, `dc1.consul`, `_tcp.service.consul`) exist without records: resolvers
//! that descend a name label by label (RFC 9156) would conclude from "no such name" that nothing below exists (RFC
//! 8020).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;

/// The domain.
pub const DOMAIN: &str = "consul";
/// The labels before the data centre, or the domain.
const KINDS: [&str; 7] = ["service", "connect", "virtual", "ingress", "node", "query", "addr"];

/// The subject of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A name outside the served zones.
    Outside,
    /// The name of an address (PTR).
    Reverse(IpAddr),
    /// The domain itself.
    Apex,
    /// `ns.consul`: this server.
    NameServer,
    /// A thing in a data centre; `None`: in this one.
    Of(Option<String>, Thing),
}

/// The things in a data centre. Names are in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Thing {
    /// `[tag.]name.service` or `_name._tag`; `_tcp` is not a tag.
    Service {
        /// Its name.
        name: String,
        /// Only instances with this tag.
        tag: Option<String>,
    },
    /// `name.connect`: instances that accept mutual TLS.
    Connect(String),
    /// `name.virtual`: the service's virtual IP.
    Virtual(String),
    /// `name.node`.
    Node(String),
    /// `name.query`: the result of the prepared query of that name or id.
    Query(String),
    /// `<hexip>.addr`: the address in the name.
    Address(IpAddr),
    /// A name without data of its own that has names below it.
    Between,
    /// An impossible name.
    Nothing,
}

/// The subject of `name`.
pub fn subject(name: &Name) -> Subject {
    if let Some(address) = reverse(name) {
        return Subject::Reverse(address);
    }
    let mut labels: Vec<&[u8]> = name.iter().collect();
    if !labels.pop().is_some_and(|last| last.eq_ignore_ascii_case(DOMAIN.as_bytes())) {
        return Subject::Outside;
    }
    let lower = |label: &&[u8]| String::from_utf8(label.to_ascii_lowercase()).ok();
    // Registered names are text.
    let Some(labels) = labels.iter().map(lower).collect::<Option<Vec<String>>>() else {
        return Subject::Of(None, Thing::Nothing);
    };
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    match labels[..] {
        [] => Subject::Apex,
        ["ns"] => Subject::NameServer,
        ["dc"] => Subject::Of(None, Thing::Between),
        [ref rest @ .., datacenter, "dc"] => Subject::Of(Some(datacenter.to_owned()), thing(rest)),
        [.., last] if KINDS.contains(&last) || last.starts_with('_') => Subject::Of(None, thing(&labels)),
        [ref rest @ .., datacenter] => Subject::Of(Some(datacenter.to_owned()), thing(rest)),
    }
}

/// The thing that the labels before the data centre name.
fn thing(labels: &[&str]) -> Thing {
    let text = |label: &str| label.to_owned();
    match labels {
        [] => Thing::Between,
        [name, tag] | [name, tag, "service"] if name.starts_with('_') && tag.starts_with('_') => {
            let tag = text(&tag[1..]);
            Thing::Service { name: text(&name[1..]), tag: (tag != "tcp").then_some(tag) }
        }
        [one] | [one, "service"] if one.starts_with('_') => Thing::Between,
        [kind] if KINDS.contains(kind) => Thing::Between,
        // A tag may contain dots.
        [tag @ .., name, "service"] => {
            Thing::Service { name: text(name), tag: (!tag.is_empty()).then(|| tag.join(".")) }
        }
        [name, "connect"] => Thing::Connect(text(name)),
        [name, "virtual"] => Thing::Virtual(text(name)),
        [name @ .., "node"] => Thing::Node(name.join(".")),
        [name @ .., "query"] => Thing::Query(name.join(".")),
        [hex, "addr"] => hex_address(hex).map_or(Thing::Nothing, Thing::Address),
        // There are no ingress gateways of Consul's kind: the name exists without an address.
        [.., "ingress"] => Thing::Between,
        _ => Thing::Nothing,
    }
}

/// The address of a complete name of in-addr.arpa (RFC 1035, 3.5) or ip6.arpa (RFC 3596, 2.5).
fn reverse(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr().to_canonical())
}

/// `7f000001` is 127.0.0.1; 32 digits are an IPv6 address.
fn hex_address(hex: &str) -> Option<IpAddr> {
    // `from_str_radix` would accept a leading plus.
    if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    match hex.len() {
        8 => Some(Ipv4Addr::from(u32::from_str_radix(hex, 16).ok()?).into()),
        32 => Some(Ipv6Addr::from(u128::from_str_radix(hex, 16).ok()?).into()),
        _ => None,
    }
}

/// `<hexip>.addr.<datacenter>.consul.`; `None` if the data centre's name is invalid in DNS.
pub fn address_name(address: IpAddr, datacenter: &str) -> Option<Name> {
    let hex = match address {
        IpAddr::V4(v4) => format!("{:08x}", u32::from(v4)),
        IpAddr::V6(v6) => format!("{:032x}", u128::from(v6)),
    };
    under(&hex, "addr", datacenter)
}

/// `<name>.<kind>.<datacenter>.consul.`; `None` if the name is invalid in DNS.
pub fn under(name: &str, kind: &str, datacenter: &str) -> Option<Name> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if !name.bytes().all(plain) {
        return None;
    }
    Name::from_ascii(format!("{name}.{kind}.{datacenter}.{DOMAIN}.")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Subject {
        subject(&Name::from_ascii(name).unwrap())
    }

    #[test]
    fn consuls_forms() {
        let service = |name: &str, tag: Option<&str>| Thing::Service { name: name.into(), tag: tag.map(Into::into) };
        let v4 = IpAddr::from([127, 0, 0, 1]);
        let cases = [
            ("web.service.consul.", None, service("web", None)),
            ("WEB.Service.Consul.", None, service("web", None)),
            ("web.service.dc1.consul.", Some("dc1"), service("web", None)),
            ("web.service.dc1.dc.consul.", Some("dc1"), service("web", None)),
            ("v1.web.service.consul.", None, service("web", Some("v1"))),
            ("a.b.web.service.dc2.consul.", Some("dc2"), service("web", Some("a.b"))),
            ("_web._tcp.service.consul.", None, service("web", None)),
            ("_web._tcp.consul.", None, service("web", None)),
            ("_web._v1.service.consul.", None, service("web", Some("v1"))),
            ("_web._v1.service.dc1.consul.", Some("dc1"), service("web", Some("v1"))),
            ("_web._v1.dc1.consul.", Some("dc1"), service("web", Some("v1"))),
            // A service with the name of a kind.
            ("node.service.consul.", None, service("node", None)),
            ("web.connect.consul.", None, Thing::Connect("web".into())),
            ("web.virtual.dc1.consul.", Some("dc1"), Thing::Virtual("web".into())),
            ("web.ingress.consul.", None, Thing::Between),
            ("web.query.consul.", None, Thing::Query("web".into())),
            ("geo.web.query.dc1.consul.", Some("dc1"), Thing::Query("geo.web".into())),
            ("host-1.node.consul.", None, Thing::Node("host-1".into())),
            ("host.example.node.dc1.consul.", Some("dc1"), Thing::Node("host.example".into())),
            ("7f000001.addr.consul.", None, Thing::Address(v4)),
            ("7F000001.addr.dc1.consul.", Some("dc1"), Thing::Address(v4)),
            ("00000000000000000000000000000001.addr.consul.", None, Thing::Address(Ipv6Addr::LOCALHOST.into())),
            ("7f00001.addr.consul.", None, Thing::Nothing),
            ("service.consul.", None, Thing::Between),
            ("service.dc1.consul.", Some("dc1"), Thing::Between),
            ("_tcp.service.consul.", None, Thing::Between),
            ("_tcp.consul.", None, Thing::Between),
            ("_tcp.dc1.consul.", Some("dc1"), Thing::Between),
            ("dc1.consul.", Some("dc1"), Thing::Between),
            ("dc.consul.", None, Thing::Between),
            ("dc1.dc.consul.", Some("dc1"), Thing::Between),
            ("web.dc1.consul.", Some("dc1"), Thing::Nothing),
            ("a.web.connect.consul.", None, Thing::Nothing),
        ];
        for (name, datacenter, thing) in cases {
            assert_eq!(of(name), Subject::Of(datacenter.map(Into::into), thing), "{name}");
        }
        assert_eq!(of("consul."), Subject::Apex);
        assert_eq!(of("ns.consul."), Subject::NameServer);
        assert_eq!(hex_address("+f000001"), None);
        let odd = Name::from_labels([&b"\xff"[..], b"service", b"consul"]).unwrap();
        assert_eq!(subject(&odd), Subject::Of(None, Thing::Nothing));
    }

    #[test]
    fn other_names_and_addresses() {
        for name in [".", "example.com.", "web.service.consul.example.", "notconsul."] {
            assert_eq!(of(name), Subject::Outside, "{name}");
        }
        assert_eq!(of("4.3.2.10.in-addr.arpa."), Subject::Reverse([10, 2, 3, 4].into()));
        let v6 = format!("1.{}ip6.arpa.", "0.".repeat(31));
        assert_eq!(of(&v6), Subject::Reverse(Ipv6Addr::LOCALHOST.into()));
        // The name of a network, not of an address.
        assert_eq!(of("3.2.10.in-addr.arpa."), Subject::Outside);
        assert_eq!(of("x.3.2.10.in-addr.arpa."), Subject::Outside);
    }

    #[test]
    fn names_are_written_as_they_are_read() {
        for address in ["10.1.2.3", "fd00::1"] {
            let address: IpAddr = address.parse().unwrap();
            let name = address_name(address, "dc1").unwrap();
            assert_eq!(subject(&name), Subject::Of(Some("dc1".into()), Thing::Address(address)));
        }
        assert!(under("host-1", "node", "dc1").is_some());
        assert!(under("host 1", "node", "dc1").is_none());
        assert!(under("a..b", "node", "dc1").is_none());
        assert!(under(&"x".repeat(64), "node", "dc1").is_none());
    }
}
