//! `tls` and `tcp`: routes of connections whose content is not parsed.

use std::collections::BTreeMap;

use weft_core::names::is_within;

use super::{
    DESTINATION, Destination, MESH,
    matching::{check_namespace, is_gateway},
    plain_destination,
};
use crate::decode::fields::{Fields, Shape, object, read};
use crate::yaml::Place;
use crate::{Subnet, names};

/// One entry of `tls` or `tcp`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionRoute {
    /// Any of them; empty: every connection.
    pub matches: Vec<ConnectionMatch>,
    /// At least one.
    pub destinations: Vec<Destination>,
    /// Its place in the file.
    pub place: Place,
}

/// One entry of `match`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConnectionMatch {
    /// `sniHosts`, in lower case; empty for `tcp`.
    pub server_names: Vec<String>,
    /// `port`.
    pub port: Option<u32>,
    /// `destinationSubnets`, as written; empty: any.
    pub destinations: Vec<String>,
    /// `sourceSubnet`; empty: any.
    pub source: String,
    /// `sourceLabels` of the client.
    pub source_labels: BTreeMap<String, String>,
    /// `sourceNamespace`; empty: any.
    pub source_namespace: String,
    /// `gateways`; empty: those of the VirtualService.
    pub gateways: Vec<String>,
}

const ROUTE: Shape = &[object("destination", DESTINATION), read("weight")];
/// Fields of an entry of `tls`.
pub(super) const TLS: Shape = &[
    object(
        "match",
        &[
            read("sniHosts"),
            read("port"),
            read("destinationSubnets"),
            read("sourceLabels"),
            read("gateways"),
            read("sourceNamespace"),
        ],
    ),
    object("route", ROUTE),
];
/// Fields of an entry of `tcp`.
pub(super) const TCP: Shape = &[
    object(
        "match",
        &[
            read("port"),
            read("destinationSubnets"),
            read("sourceSubnet"),
            read("sourceLabels"),
            read("gateways"),
            read("sourceNamespace"),
        ],
    ),
    object("route", ROUTE),
];

/// Reads an entry of `tls`, whose server names must be among `hosts`, or without them one of `tcp`. `of_gateways`: it
/// applies to a gateway too.
pub(super) fn decode(fields: &Fields<'_>, hosts: Option<&[String]>, of_gateways: bool) -> ConnectionRoute {
    fields.require("route");
    let destinations: Vec<Destination> = fields.objects("route").iter().map(plain_destination).collect();
    if destinations.len() > 1 && destinations.iter().all(|destination| destination.weight == 0) {
        fields.error("route", "the weights add up to 0: no destination would get a connection");
    }
    let matches: Vec<ConnectionMatch> =
        fields.objects("match").iter().map(|one| decode_match(one, hosts, of_gateways)).collect();
    if hosts.is_some() && matches.is_empty() {
        fields.error_at(fields.place, "`match` with `sniHosts` is required");
    }
    ConnectionRoute { matches, destinations, place: fields.place }
}

fn decode_match(fields: &Fields<'_>, hosts: Option<&[String]>, of_gateways: bool) -> ConnectionMatch {
    let mut server_names = Vec::new();
    if let Some(hosts) = hosts {
        for (name, place) in fields.strings("sniHosts") {
            let name = name.to_ascii_lowercase();
            if name != "*" && !names::is_host_or_wildcard(&name) {
                fields.error_at(place, format!("`{name}` is not a server name: a host, *.suffix, *-suffix or *"));
            } else if !hosts.iter().any(|host| is_within(&name, &host.to_ascii_lowercase())) {
                let text = format!("server name `{name}` is not among the `hosts` of this VirtualService");
                fields.error_at(place, text);
            }
            server_names.push(name);
        }
        if server_names.is_empty() && !fields.misspelled("sniHosts") {
            fields.error_at(fields.place, "`match` with `sniHosts` is required");
        }
    }
    let subnet = |text: &str, place: Place| {
        if Subnet::parse(text).is_none() {
            fields.error_at(place, format!("`{text}` is neither an IP address nor a CIDR range"));
        }
    };
    let destinations = fields.strings("destinationSubnets");
    destinations.iter().for_each(|(text, place)| subnet(text, *place));
    let source = if hosts.is_none() { fields.string("sourceSubnet") } else { None }.unwrap_or_default();
    if !source.is_empty() {
        subnet(&source, fields.place_of("sourceSubnet"));
    }
    let gateways = fields.strings("gateways");
    for (gateway, place) in &gateways {
        if !is_gateway(gateway) {
            fields.error_at(*place, format!("`{gateway}` is not a gateway: mesh, a name, or namespace/name"));
        }
    }
    let gateways: Vec<String> = gateways.into_iter().map(|(gateway, _)| gateway).collect();
    let of_mesh_alone = if gateways.is_empty() { !of_gateways } else { gateways.iter().all(|name| name == MESH) };
    for (name, given) in [("destinationSubnets", !destinations.is_empty()), ("sourceSubnet", !source.is_empty())] {
        if given && !of_mesh_alone {
            fields.error(name, format!("`{name}` is not supported yet for gateways"));
        }
    }
    check_namespace(fields);
    ConnectionMatch {
        server_names,
        port: fields.port("port"),
        destinations: destinations.into_iter().map(|(text, _)| text).collect(),
        source,
        source_labels: fields.labels("sourceLabels"),
        source_namespace: fields.string("sourceNamespace").unwrap_or_default(),
        gateways,
    }
}
