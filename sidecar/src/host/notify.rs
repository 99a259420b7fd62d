//! Notifications to systemd (sd_notify(3)), where it is the supervisor (`Type=notify`).

use sd_notify::NotifyState;

/// Whether the supervisor follows notifications, so that another process can become the main one.
pub fn is_supervised() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// This process is the main one, and serves.
pub fn ready() {
    tell(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready, NotifyState::Status("ready")]);
}

/// A successor is being started.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(e) => tracing::warn!("systemd is not notified of the reload, the clock cannot be read: {e}"),
    }
}

/// No successor came up, and this process goes on.
pub fn reload_failed() {
    tell(&[NotifyState::Ready, NotifyState::Status("the reload failed: the previous process goes on")]);
}

/// SIGTERM has come.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    // Without systemd this does nothing.
    if let Err(e) = sd_notify::notify(states) {
        tracing::warn!("systemd could not be notified: {e}");
    }
}
