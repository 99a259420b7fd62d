//! Grants: lists of services that are too long for a token or a certificate. The control plane's store holds the list,
//! and token and certificate carry its name, which is derived from its content.

use std::collections::BTreeSet;

use aws_lc_rs::digest;
use weft_core::hex;

/// Maximum number of services listed in a token or certificate; a longer list becomes a grant.
pub const INLINE: usize = 32;
/// Suffix of a grant's name. Names of services have no dot.
const SUFFIX: &str = ".grant";
/// Length of the digest in a grant's name, in bytes; long enough to be collision-resistant.
const DIGEST: usize = 16;

/// The name of the grant with these services: `<32 hex digits>.grant`. Independent of case and order.
pub fn name<S: AsRef<str>>(services: &[S]) -> String {
    let sorted: BTreeSet<String> = services.iter().map(|service| service.as_ref().to_ascii_lowercase()).collect();
    let mut text = digest::Context::new(&digest::SHA256);
    for service in &sorted {
        text.update(service.as_bytes());
        text.update(b"\n");
    }
    format!("{}{SUFFIX}", hex::encode(&text.finish().as_ref()[..DIGEST]))
}

/// Whether an entry in a list of services is the name of a grant.
pub fn is_name(entry: &str) -> bool {
    entry.ends_with(SUFFIX)
}

/// Whether two lists grant the same services; either may be the name of a grant.
pub fn are_same(one: &[String], other: &[String]) -> bool {
    let of = |list: &[String]| match list {
        [entry] if is_name(entry) => entry.clone(),
        list => name(list),
    };
    of(one) == of(other)
}

/// The first services of a list and the number of further ones, for display.
pub fn shown<S: AsRef<str>>(services: &[S]) -> String {
    const FIRST: usize = 8;
    let first: Vec<&str> = services.iter().take(FIRST).map(AsRef::as_ref).collect();
    match services.len().saturating_sub(FIRST) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grant_names_depend_on_their_services_only() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (one, same, other) = (list(&["a", "B", "c"]), list(&["C", "a", "b", "a"]), list(&["a", "b"]));
        assert_eq!(name(&one), name(&same));
        assert_ne!(name(&one), name(&other));
        assert_ne!(name(&list(&["ab"])), name(&other));
        assert!(is_name(&name(&one)) && !is_name("grant"));
        assert!(are_same(&one, &[name(&same)]) && are_same(&one, &same) && !are_same(&one, &[name(&other)]));
        assert_eq!(shown(&other), "a, b");
        let nine: Vec<String> = (0..9).map(|n| n.to_string()).collect();
        assert!(shown(&nine).ends_with("7 and 1 more"), "{}", shown(&nine));
        // It fits into a DNS name of a certificate.
        assert!(name(&one).len() <= 63);
    }
}
