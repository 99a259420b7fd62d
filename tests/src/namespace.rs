//! Namespaces of our own, as root or through a user namespace.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::run;

/// Set in the process that runs inside the namespaces.
pub(crate) const INSIDE: &str = "WEFT_TESTS_INSIDE";

/// Runs this program again in namespaces of its own, and ends with its status; returns at once inside.
///
/// # Errors
/// If neither root nor a user namespace is available; the text names what is missing.
pub fn enter() -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        // Where `ip netns` keeps its names: ours alone.
        run("mount", &["-t", "tmpfs", "tmpfs", "/run"])?;
        run("mkdir", &["-p", "/run/netns", "/run/etc-upper", "/run/etc-work"])?;
        // And where it looks for the files of a pod (/etc/netns), without touching the host's /etc.
        let layers = "lowerdir=/etc,upperdir=/run/etc-upper,workdir=/run/etc-work";
        run("mount", &["-t", "overlay", "overlay", "-o", layers, "/etc"])
            .or_else(|_| run("mount", &["-t", "overlay", "overlay", "-o", &format!("{layers},userxattr"), "/etc"]))?;
        // One that is there already may be another user's.
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
    // In our place, so that signals reach the one that has something to clean up.
    let failed = unshare.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1").exec();
    Err(failed).context("cannot run unshare")
}

/// Names a name server in every pod's `/etc/resolv.conf`, where the sidecar's redirection catches queries to it.
///
/// # Errors
/// When the file cannot be covered.
pub fn name_server(address: &str) -> Result<()> {
    let text = format!("nameserver {address}\n");
    let file = Path::new("/etc/resolv.conf");
    if file.exists() {
        let ours = "/run/resolv.conf";
        std::fs::write(ours, text)?;
        return run("mount", &["--bind", ours, "/etc/resolv.conf"]).map(drop);
    }
    // A link into `/run`, which is empty here and ours to fill.
    let target = Path::new("/etc").join(std::fs::read_link(file).context("there is no /etc/resolv.conf")?);
    std::fs::create_dir_all(target.parent().context("no folder")?)?;
    std::fs::write(target, text)?;
    Ok(())
}
