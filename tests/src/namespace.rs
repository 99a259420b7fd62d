//! Private namespaces, as root or through a user namespace.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::run;

/// Set in the process that runs inside the namespaces.
pub(crate) const INSIDE: &str = "WEFT_TESTS_INSIDE";

/// Executes this program again in private namespaces; inside them returns at once.
///
/// # Errors
/// If neither root nor a user namespace is available; the error names the missing one.
pub fn enter() -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        // Private names of `ip netns`.
        run("mount", &["-t", "tmpfs", "tmpfs", "/run"])?;
        run("mkdir", &["-p", "/run/netns", "/run/etc-upper", "/run/etc-work"])?;
        // A private /etc/netns, with the files of pods, without changes of the host's /etc.
        let layers = "lowerdir=/etc,upperdir=/run/etc-upper,workdir=/run/etc-work";
        run("mount", &["-t", "overlay", "overlay", "-o", layers, "/etc"])
            .or_else(|_| run("mount", &["-t", "overlay", "overlay", "-o", &format!("{layers},userxattr"), "/etc"]))?;
        // An existing folder may belong to another user.
        run("mkdir", &["-p", "/etc/netns"])?;
        run("mount", &["-t", "tmpfs", "tmpfs", "/etc/netns"])?;
        run("ip", &["link", "set", "lo", "up"])?;
        return Ok(());
    }
    for tool in ["unshare", "setpriv", "ip", "nft", "curl", "python3", "mount"] {
        let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).stdout(Stdio::null()).status()?;
        ensure!(found.success(), "{tool} is missing: run `make install`");
    }
    let root = String::from_utf8(Command::new("id").arg("-u").output()?.stdout)?.trim() == "0";
    let mut unshare = Command::new("unshare");
    unshare.args(["--net", "--mount"]);
    if !root {
        unshare.args(["--user", "--map-root-user"]);
    }
    let works = Command::new(unshare.get_program()).args(unshare.get_args()).arg("true").output()?;
    if !works.status.success() {
        bail!(
            "network namespaces are unavailable: {}. Run as root, or allow user namespaces \
             (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)",
            String::from_utf8_lossy(&works.stderr).trim()
        );
    }
    // Executed in place, so that signals reach the process that cleans up.
    let failed = unshare.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1").exec();
    Err(failed).context("cannot run unshare")
}

/// Sets a name server in every pod's `/etc/resolv.conf`, where the sidecar's redirection captures queries to it.
///
/// # Errors
/// When the file cannot be replaced.
pub fn name_server(address: &str) -> Result<()> {
    let text = format!("nameserver {address}\n");
    let file = Path::new("/etc/resolv.conf");
    if file.exists() {
        let own = "/run/resolv.conf";
        std::fs::write(own, text)?;
        return run("mount", &["--bind", own, "/etc/resolv.conf"]).map(drop);
    }
    // A link into `/run`, which is empty and writable here.
    let target = Path::new("/etc").join(std::fs::read_link(file).context("there is no /etc/resolv.conf")?);
    std::fs::create_dir_all(target.parent().context("no folder")?)?;
    std::fs::write(target, text)?;
    Ok(())
}
