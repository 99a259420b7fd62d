//! What this machine's own resolver is set up to do: `/etc/resolv.conf` and `/etc/nsswitch.conf`.
//!
//! Read by the DNS listener, which forwards to the same name servers that the application would have asked, and by the
//! redirection, which has to know when queries do not travel as DNS at all.

use std::net::IpAddr;

/// Where the name servers are listed.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where the C library reads by which ways it looks up a host.
pub const NSSWITCH_CONF: &str = "/etc/nsswitch.conf";

/// The name servers of a `resolv.conf`, in order; the first three, as the C library takes them.
pub fn nameservers(resolv_conf: &str) -> Vec<IpAddr> {
    let lines = resolv_conf.lines().map(str::split_ascii_whitespace);
    let servers = lines.filter_map(|mut words| {
        if words.next() != Some("nameserver") {
            return None;
        }
        // A scope (`fe80::1%eth0`) cannot be kept in an address; such a server is passed over.
        words.next()?.parse::<IpAddr>().ok()
    });
    servers.take(3).collect()
}

/// Whether the C library asks systemd-resolved over its own channel before (and so instead of) DNS.
pub fn bypasses_dns(nsswitch_conf: &str) -> bool {
    let hosts = nsswitch_conf.lines().find_map(|line| line.trim_start().strip_prefix("hosts:"));
    let services = hosts.unwrap_or_default().split_ascii_whitespace();
    services.take_while(|service| *service != "dns").any(|service| service == "resolve")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_of_resolv_conf() {
        let text = "# nameserver 1.1.1.1\nsearch a.b\nnameserver 127.0.0.53 # local\n nameserver fd00::1\n\
                    nameserver fe80::1%eth0\nnameserver nonsense\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n";
        let expected: Vec<IpAddr> = ["127.0.0.53", "fd00::1", "10.0.0.1"].map(|a| a.parse().unwrap()).into();
        assert_eq!(nameservers(text), expected);
        assert_eq!(nameservers(""), Vec::<IpAddr>::new());
    }

    #[test]
    fn resolve_before_dns_is_noticed() {
        assert!(bypasses_dns("passwd: files\nhosts: mymachines resolve [!UNAVAIL=return] files dns\n"));
        assert!(bypasses_dns("hosts: files resolve"));
        assert!(!bypasses_dns("hosts: files dns resolve\n"));
        assert!(!bypasses_dns("#hosts: resolve dns\nhosts: files dns\n"));
        assert!(!bypasses_dns(""));
    }
}
