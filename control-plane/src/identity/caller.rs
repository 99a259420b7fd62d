//! The caller of an API request: the namespaces that it sees, and its rights, which a token may reduce.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use http::StatusCode;
use weft_registry_api::error::ApiError;

use super::pattern::matches;
use super::token::ApiClaims;
use weft_world::{Instance, World};

/// The sender of a request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Its namespace: names are looked up there first, then in "default".
    pub namespace: String,
    /// Its SPIFFE ID; empty: it has no sidecar.
    pub identity: String,
    /// Its address.
    pub address: IpAddr,
    /// Its rights in that namespace.
    pub rights: Rights,
}

/// The rights of a caller in its namespace.
#[derive(Debug, Clone)]
pub enum Rights {
    /// Read and write all: a sidecar's program without a token.
    All,
    /// Read all: a program of this machine without a token.
    Read,
    /// The rights of its token.
    Token(Arc<ApiClaims>),
    /// Read exported services that match one of these patterns (none: all): a control plane of another data centre, for
    /// one of its callers.
    Peer(Arc<Vec<String>>),
}

impl Rights {
    /// Whether services of this name may be read. The right to register includes it.
    pub fn read(&self, service: &str) -> bool {
        match self {
            Rights::All | Rights::Read => true,
            Rights::Peer(patterns) => patterns.is_empty() || patterns.iter().any(|p| matches(p, service)),
            Rights::Token(claims) => {
                claims.read.is_empty() || claims.read.iter().any(|p| matches(p, service)) || self.registers(service)
            }
        }
    }

    /// Whether all services may be read.
    fn read_all(&self) -> bool {
        match self {
            Rights::All | Rights::Read => true,
            Rights::Token(claims) => claims.read.is_empty(),
            Rights::Peer(_) => false,
        }
    }

    /// The rights in the form for another data centre: patterns of services that may be read there.
    pub(crate) fn elsewhere(&self) -> Vec<String> {
        match self {
            Rights::Token(claims) if !claims.read.is_empty() => {
                claims.read.iter().chain(&claims.services).cloned().collect()
            }
            Rights::Peer(patterns) => patterns.to_vec(),
            Rights::All | Rights::Read | Rights::Token(_) => Vec::new(),
        }
    }

    /// Whether a token grants the registration of a service.
    pub fn registers(&self, service: &str) -> bool {
        matches!(self, Rights::Token(claims) if claims.services.iter().any(|s| s.eq_ignore_ascii_case(service)))
    }

    /// Whether a token grants the registration of any service.
    pub(crate) fn registers_any(&self) -> bool {
        matches!(self, Rights::Token(claims) if !claims.services.is_empty())
    }

    /// Whether all keys with this prefix may be written. The right includes reads.
    fn writes_keys(&self, prefix: &str) -> bool {
        match self {
            Rights::All => true,
            Rights::Read | Rights::Peer(_) => false,
            Rights::Token(claims) => claims.keys.iter().any(|granted| prefix.starts_with(granted.as_str())),
        }
    }

    /// Whether a key may be read.
    fn reads_key(&self, key: &str) -> bool {
        matches!(self, Rights::Read) || self.writes_keys(key)
    }

    fn sessions(&self) -> bool {
        match self {
            Rights::All | Rights::Read => true,
            Rights::Token(claims) => !claims.keys.is_empty(),
            Rights::Peer(_) => false,
        }
    }
}

/// The author of a write. Converted from a namespace it has no identity.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// The SPIFFE ID whose budget counts; empty: a program without a sidecar, whose token the administrator made, which
    /// only the bounds of all writers concern.
    pub identity: &'a str,
}

impl<'a> From<&'a str> for Writer<'a> {
    fn from(namespace: &'a str) -> Writer<'a> {
        Writer { namespace, identity: "" }
    }
}

impl Caller {
    /// The author of its writes.
    pub(crate) fn writer(&self) -> Writer<'_> {
        Writer { namespace: &self.namespace, identity: &self.identity }
    }

    /// Whether the services of a namespace are visible to this caller.
    pub(crate) fn sees(&self, namespace: &str) -> bool {
        namespace == self.namespace || namespace == "default"
    }

    /// Index of a service: a change in either namespace may change the answer.
    pub(crate) fn service_index(&self, world: &World, service: &str) -> u64 {
        world.service_index(&self.namespace, service).max(world.service_index("default", service))
    }

    /// Instances of a service: of the caller's namespace, or if it has none, of "default".
    pub(crate) fn instances_of(&self, world: &World, service: &str) -> Vec<Arc<Instance>> {
        let of = |namespace: &str| -> Vec<Arc<Instance>> {
            world.service_instances(namespace, service).filter(|i| self.reads(world, i)).cloned().collect()
        };
        let own = of(&self.namespace);
        if own.is_empty() { of("default") } else { own }
    }

    /// Whether an instance of a visible namespace may be read.
    fn reads(&self, world: &World, instance: &Instance) -> bool {
        if !instance.group.is_empty() {
            return false;
        }
        let exported = || world.is_exported(&instance.host());
        self.rights.read(&instance.service) && (!matches!(self.rights, Rights::Peer(_)) || exported())
    }

    /// The instances of one node in any of the caller's namespaces.
    pub(crate) fn instances_of_node(&self, world: &World, node: &str) -> Vec<Arc<Instance>> {
        let other = (self.namespace != "default").then_some("default");
        let namespaces = std::iter::once(self.namespace.as_str()).chain(other);
        let all = namespaces.flat_map(|namespace| world.instances_of_node(namespace, node));
        all.filter(|instance| self.reads(world, instance)).cloned().collect()
    }

    /// All instances that the caller sees.
    pub(crate) fn instances(&self, world: &World) -> Vec<Arc<Instance>> {
        let seen = |instance: &&Arc<Instance>| self.sees(&instance.namespace) && self.reads(world, instance);
        world.instances().filter(seen).cloned().collect()
    }

    /// The visible nodes of the caller's namespaces: those of services that it may read; `None`: all.
    pub(crate) fn nodes(&self, world: &World) -> Option<HashSet<String>> {
        let narrowed = !self.rights.read_all();
        narrowed.then(|| self.instances(world).into_iter().map(|instance| instance.node.clone()).collect())
    }

    /// Whether the caller's token hides anything that its namespace sees.
    pub fn is_narrowed(&self) -> bool {
        !self.rights.read_all()
    }

    /// Whether a key may be read.
    pub(crate) fn reads_key(&self, key: &str) -> bool {
        self.rights.reads_key(key)
    }

    /// Whether sessions are visible.
    pub(crate) fn reads_sessions(&self) -> bool {
        self.rights.sessions()
    }

    /// # Errors
    /// If the key may not be read.
    pub(crate) fn read_key(&self, key: &str) -> Result<(), ApiError> {
        if self.reads_key(key) { Ok(()) } else { Err(self.denied("key:read", key)) }
    }

    /// # Errors
    /// If not all keys with this prefix may be written.
    pub(crate) fn write_keys(&self, prefix: &str) -> Result<(), ApiError> {
        if self.rights.writes_keys(prefix) { Ok(()) } else { Err(self.denied("key:write", prefix)) }
    }

    /// # Errors
    /// If it may not have sessions.
    pub(crate) fn write_sessions(&self, id: &str) -> Result<(), ApiError> {
        let may = self.rights.sessions() && !matches!(self.rights, Rights::Read);
        if may { Ok(()) } else { Err(self.denied("session:write", id)) }
    }

    /// # Errors
    /// If it may not write a prepared query of a service: that needs the right to register the service.
    pub(crate) fn write_query(&self, service: &str) -> Result<(), ApiError> {
        let may = matches!(self.rights, Rights::All) || self.rights.registers(service);
        if may { Ok(()) } else { Err(self.denied("query:write", service)) }
    }

    /// # Errors
    /// If it may not fire events: that needs the right to register any service.
    pub(crate) fn write_events(&self, name: &str) -> Result<(), ApiError> {
        let may = matches!(self.rights, Rights::All) || self.rights.registers_any();
        if may { Ok(()) } else { Err(self.denied("event:write", name)) }
    }

    /// # Errors
    /// If it belongs to another data centre.
    pub(crate) fn read_events(&self) -> Result<(), ApiError> {
        if matches!(self.rights, Rights::Peer(_)) { Err(self.denied("event:read", "")) } else { Ok(()) }
    }

    /// # Errors
    /// If its token does not grant the registration of the service.
    pub fn register(&self, service: &str) -> Result<(), ApiError> {
        if self.rights.registers(service) { Ok(()) } else { Err(self.denied("service:write", service)) }
    }

    /// Consul's words.
    pub(crate) fn denied(&self, permission: &str, on: &str) -> ApiError {
        let who = match self.rights {
            Rights::Token(_) => "this token",
            Rights::All | Rights::Read => "a request without a token (X-Consul-Token)",
            Rights::Peer(_) => "another data centre",
        };
        let text = format!("Permission denied: {who} lacks permission '{permission}' on {on:?}");
        ApiError::new(StatusCode::FORBIDDEN, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_those_of_the_token() {
        let list = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
        let rights = |services: &[&str], read: &[&str], keys: &[&str]| {
            Rights::Token(Arc::new(ApiClaims {
                trust_domain: "cluster.local".into(),
                namespace: "default".into(),
                services: list(services),
                read: list(read),
                keys: list(keys),
                expires: 0,
            }))
        };
        // For each: reads order, reads payment, registers order, writes all below conf/, writes conf/a, reads conf/a,
        // has sessions.
        for (what, rights, want) in [
            ("a sidecar", Rights::All, [true, true, false, true, true, true, true]),
            ("no token", Rights::Read, [true, true, false, false, false, true, true]),
            ("nothing named", rights(&[], &[], &[]), [true, true, false, false, false, false, false]),
            ("a service", rights(&["Order"], &[], &[]), [true, true, true, false, false, false, false]),
            ("a pattern", rights(&["order"], &["pay*"], &[]), [true, true, true, false, false, false, false]),
            ("another", rights(&["order"], &["x"], &[]), [true, false, true, false, false, false, false]),
            ("a reader", rights(&[], &["pay*"], &[]), [false, true, false, false, false, false, false]),
            ("keys", rights(&[], &[], &["conf/"]), [true, true, false, true, true, true, true]),
            ("one key", rights(&[], &[], &["conf/a"]), [true, true, false, false, true, true, true]),
            ("all keys", rights(&[], &[], &[""]), [true, true, false, true, true, true, true]),
        ] {
            let got = [
                rights.read("order"),
                rights.read("payment"),
                rights.registers("order"),
                rights.writes_keys("conf/"),
                rights.writes_keys("conf/a"),
                rights.reads_key("conf/a"),
                rights.sessions(),
            ];
            assert_eq!(got, want, "{what}");
        }
    }
}
