//! The machine around the proxy: child processes, network namespaces, nftables, systemd and hot restart.

pub mod children;
pub mod claim;
pub mod hot_restart;
pub mod notify;
pub mod pod_ports;
pub mod redirect;
pub mod script;

/// The host name of this machine or pod, read once.
pub fn hostname() -> &'static str {
    static NAME: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    &NAME
}
