use clap::Parser;

use super::*;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    capture: Capture,
}

fn compiled(arguments: &str, shared_host: bool, nameservers: &[&str]) -> Result<Rules> {
    let capture = Args::try_parse_from(std::iter::once("x").chain(arguments.split_whitespace()))?.capture;
    let own = Own { outbound: 15001, inbound: 15006, dns: 15053, pages: vec![15021] };
    let nameservers: Vec<_> = nameservers.iter().map(|a| a.parse().unwrap()).collect();
    compile(&capture, own, shared_host, &nameservers)
}

#[test]
fn a_shared_host_needs_options() {
    for (arguments, missing) in [
        ("", "--inbound-ports is required"),
        ("--uid 1001", "--inbound-ports is required"),
        ("--inbound-ports 8080", "--uid or --cgroup"),
        ("--inbound-ports 22,8080 --uid 1001", "port 22 is never taken"),
    ] {
        let error = compiled(arguments, true, &[]).map(drop).unwrap_err().to_string();
        assert!(error.contains(missing), "{arguments}: {error}");
    }
    let rules = compiled("--inbound-ports 1-1024 --cgroup /sys/fs/cgroup/a/b/", true, &[]).unwrap();
    assert!(rules.shared_host);
    assert_eq!(rules.cgroups, ["a/b"]);
    // A namespace of its own needs nothing.
    assert!(compiled("", false, &[]).is_ok());
}

#[test]
fn queries_of_a_resolver_in_the_pod_are_not_captured() {
    let servers = |list: &[&str]| Dns::Servers(list.iter().map(|a| a.parse().unwrap()).collect());
    for (arguments, nameservers, expected) in [
        ("", &["10.0.0.2"][..], servers(&["10.0.0.2"])),
        ("", &["127.0.0.53"], Dns::Loopback),
        ("", &["127.0.0.53", "10.0.0.2"], servers(&["127.0.0.53", "10.0.0.2"])),
        ("", &[], Dns::All),
        // The resolver is another user's.
        ("--uid 1001", &["127.0.0.53"], servers(&["127.0.0.53"])),
        ("--dns all", &["10.0.0.2"], Dns::All),
        ("--dns all", &["127.0.0.53"], Dns::All),
        ("--dns loopback", &["10.0.0.2"], Dns::Loopback),
        ("--no-dns", &["10.0.0.2"], Dns::Off),
        ("--dns off", &["10.0.0.2"], Dns::Off),
    ] {
        assert_eq!(compiled(arguments, false, nameservers).unwrap().dns, expected, "{arguments} {nameservers:?}");
    }
}

#[test]
fn option_values_cannot_inject_rules() {
    for arguments in ["--uid 1};flush", "--uid \"\"", "--cgroup a\"b", "--cgroup /", "--inbound-ports 80;81"] {
        assert!(compiled(arguments, false, &[]).is_err(), "{arguments}");
    }
}

#[test]
fn systemd_resolved_is_detected_and_the_fix_is_printed() {
    let nss = "hosts: files resolve [!UNAVAIL=return] dns\n";
    let noted = |arguments: &str, nameserver: &str, nsswitch: &str| {
        notes(&compiled(arguments, false, &[nameserver]).unwrap(), nsswitch).join("\n")
    };
    let note = noted("", "10.0.0.2", nss);
    assert!(note.contains("by `resolve` (systemd-resolved)") && note.contains("Fix: sed -i '/^"), "{note}");
    assert!(note.ends_with(" /etc/nsswitch.conf"), "{note}");
    let note = noted("", "127.0.0.53", "hosts: files dns\n");
    assert!(note.contains("127.0.0.53") && !note.contains("sed"), "{note}");
    assert_eq!(noted("", "127.0.0.53", nss).lines().count(), 2);
    assert_eq!(noted("", "10.0.0.2", "hosts: files dns\n"), "");
    assert_eq!(noted("--no-dns", "127.0.0.53", nss), "", "look-ups are left alone");
}
