//! Interned names: each name is in memory once, whatever the number of its streams.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

/// A host, or a subscribed name.
pub(super) type Name = Arc<str>;

/// Minimum number of names before unused ones are searched for.
const SWEEP: usize = 4096;

/// The names in use.
#[derive(Default)]
pub(super) struct Names(Mutex<Interned>);

#[derive(Default)]
struct Interned {
    all: HashSet<Name>,
    /// Their number after the last sweep.
    swept: usize,
}

impl Names {
    /// The name of this text.
    pub(super) fn of(&self, text: &str) -> Name {
        let mut interned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = interned.all.get(text) {
            return name.clone();
        }
        if interned.all.len() >= SWEEP.max(2 * interned.swept) {
            interned.all.retain(|name| Arc::strong_count(name) > 1);
            interned.swept = interned.all.len();
            if interned.swept < SWEEP {
                interned.all.shrink_to(SWEEP);
            }
        }
        let name: Name = text.into();
        interned.all.insert(name.clone());
        name
    }
}

/// The address of a name that is one, with or without a port.
pub(super) fn address_of(name: &str) -> Option<IpAddr> {
    let with_port = name.parse::<SocketAddr>().ok().map(|address| address.ip());
    with_port.or_else(|| name.trim_matches(['[', ']']).parse().ok())
}

/// The digest of a label, in any case. A collision wakes a stream once too often.
pub(super) type Label = u64;

/// The labels of a name that may be the first label of its host: its first, and its second for `<endpoint>.<service>`.
pub(super) fn labels_of(name: &str) -> impl Iterator<Item = Label> {
    name.split('.').take(2).filter(|label| !label.is_empty()).map(digest)
}

/// The first label of a host.
pub(super) fn first_label(host: &str) -> Label {
    digest(host.split('.').next().unwrap_or_default())
}

fn digest(label: &str) -> Label {
    xxhash_rust::xxh64::xxh64(label.to_ascii_lowercase().as_bytes(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_interned_while_they_are_used() {
        let names = Names::default();
        let order = names.of("order");
        assert!(Arc::ptr_eq(&order, &names.of("order")));
        for n in 0..3 * SWEEP {
            names.of(&format!("n{n}"));
        }
        assert!(names.0.lock().unwrap().all.len() <= SWEEP);
        assert!(Arc::ptr_eq(&order, &names.of("order")));
    }

    #[test]
    fn addresses_and_labels() {
        for (name, address) in [
            ("10.0.0.1:80", Some("10.0.0.1")),
            ("10.0.0.1", Some("10.0.0.1")),
            ("[::1]:80", Some("::1")),
            ("[::1]", Some("::1")),
            ("order", None),
        ] {
            assert_eq!(address_of(name), address.map(|text| text.parse().unwrap()), "{name}");
        }
        assert_eq!(labels_of("Pod-1.db.shop").collect::<Vec<_>>(), ["pod-1", "db"].map(first_label));
        assert_eq!(labels_of("order").collect::<Vec<_>>(), [first_label("order.shop.svc")]);
    }
}
