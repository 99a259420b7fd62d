//! The configuration of this machine's resolver: `/etc/resolv.conf` and `/etc/nsswitch.conf`.
//!
//! The DNS listener forwards to the name servers in it, as the application would have; the redirection needs to know when
//! queries do not travel as DNS at all.

use std::net::IpAddr;

/// Where the name servers are listed.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where the C library reads by which ways it looks up a host.
pub const NSSWITCH_CONF: &str = "/etc/nsswitch.conf";

/// Where hosts are listed that need no name server.
pub const HOSTS: &str = "/etc/hosts";

/// The addresses of `name` in a hosts file (hosts(5)).
pub fn addresses_of(hosts: &str, name: &str) -> Vec<IpAddr> {
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default().split_ascii_whitespace());
    let found = lines.filter_map(|mut words| {
        let address: IpAddr = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    });
    let mut found: Vec<IpAddr> = found.collect();
    found.sort_unstable();
    found.dedup();
    found
}

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

/// Whether the C library asks systemd-resolved over its own channel before (and so instead of) DNS; then the `sed` script
/// that makes it ask by DNS.
pub fn without_resolve(nsswitch_conf: &str) -> Option<&'static str> {
    let hosts = nsswitch_conf.lines().find_map(|line| line.trim_start().strip_prefix("hosts:"))?;
    let mut services = hosts.split('#').next().unwrap_or_default().split_ascii_whitespace();
    services.by_ref().take_while(|service| *service != "dns").any(|service| service == "resolve").then(|| {
        // An action in brackets (`[!UNAVAIL=return]`, nsswitch.conf(5)) belongs to the service before it.
        if services.any(|service| service == "dns") {
            r"/^[[:space:]]*hosts:/s/[[:space:]]resolve\([[:space:]]*\[[^]]*\]\)*//"
        } else {
            r"/^[[:space:]]*hosts:/s/[[:space:]]resolve\([[:space:]]*\[[^]]*\]\)*/ dns/"
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_hosts() {
        let text =
            "127.0.0.1 localhost\n10.0.0.2 db.test db # not.test\n# 10.0.0.3 db.test\n::1 DB.test\nnonsense db.test\n";
        let expected: Vec<IpAddr> = ["10.0.0.2", "::1"].map(|a| a.parse().unwrap()).into();
        assert_eq!(addresses_of(text, "db.test"), expected);
        assert!(addresses_of(text, "not.test").is_empty());
    }

    #[test]
    fn nameservers_of_resolv_conf() {
        let text = "# nameserver 1.1.1.1\nsearch a.b\nnameserver 127.0.0.53 # local\n nameserver fd00::1\n\
                    nameserver fe80::1%eth0\nnameserver nonsense\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n";
        let expected: Vec<IpAddr> = ["127.0.0.53", "fd00::1", "10.0.0.1"].map(|a| a.parse().unwrap()).into();
        assert_eq!(nameservers(text), expected);
        assert_eq!(nameservers(""), Vec::<IpAddr>::new());
    }

    #[test]
    fn resolve_before_dns_in_nsswitch_is_detected_and_the_fix_works() {
        for (before, after) in [
            ("hosts: mymachines resolve [!UNAVAIL=return] files dns", "hosts: mymachines files dns"),
            ("hosts:\tresolve dns", "hosts: dns"),
            ("hosts: files resolve", "hosts: files dns"),
            (" hosts: files resolve [!UNAVAIL=return] [NOTFOUND=return] myhostname", "hosts: files dns myhostname"),
        ] {
            let file = format!("passwd: files resolve\n{before}\n");
            let edit = without_resolve(&file).expect(before);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("nsswitch.conf");
            std::fs::write(&path, &file).unwrap();
            assert!(std::process::Command::new("sed").args(["-i", edit]).arg(&path).status().unwrap().success());
            let fixed = std::fs::read_to_string(&path).unwrap();
            assert_eq!(without_resolve(&fixed), None, "{fixed}");
            let (first, hosts) = fixed.split_once('\n').unwrap();
            let words: Vec<_> = hosts.split_ascii_whitespace().collect();
            assert_eq!((first, words.join(" ").as_str()), ("passwd: files resolve", after));
        }
        for fine in
            ["hosts: files dns resolve\n", "#hosts: resolve dns\nhosts: files dns\n", "hosts: dns # resolve", ""]
        {
            assert_eq!(without_resolve(fine), None, "{fine}");
        }
    }
}
