//! The file system of the container image, as `deploy/docker/rootfs.sh` assembles it: all that the three programs need is inside.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::{Mesh, Pod, binary, run, tests_dir, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    vec![("container_image_runs_the_three_programs_without_a_shell", image)]
}

fn image() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let root = folder.path().join("root");
    let binaries = binary("weftctl")?;
    let binaries = binaries.parent().context("no folder")?;
    let script = tests_dir().join("../deploy/docker/rootfs.sh");
    run(&script.to_string_lossy(), &[&binaries.to_string_lossy(), &root.to_string_lossy()])?;
    ensure!(
        !root.join("bin").exists() && !root.join("usr/bin").exists(),
        "only /usr/local/bin and /usr/sbin hold programs"
    );
    // A container engine mounts /dev; nft is started with this file as its input.
    std::fs::write(root.join("dev/null"), "")?;

    let mesh = Mesh::network(&[])?;
    let pod = mesh.pod("image")?;
    for program in ["weft-sidecar", "weft-control-plane", "weftctl"] {
        let version = inside(&pod, &root, &[program, "--version"])?;
        ensure!(version.starts_with(&format!("{program} {}", env!("CARGO_PKG_VERSION"))), "{version}");
    }

    let root_folder = root.to_string_lossy();
    let _control_plane = pod.spawn("control-plane", "chroot", &[&root_folder, "/usr/local/bin/weft-control-plane"])?;
    let ready = || inside(&pod, &root, &["weftctl", "status"]);
    let status = wait_for("the control plane in the image", Duration::from_secs(10), ready)?;
    ensure!(status.contains("0 services, 0 sidecars"), "{status}");

    // No sidecar runs here, which --force allows.
    inside(&pod, &root, &["weft-sidecar", "redirect", "install", "--force", "--own-namespace"])?;
    let rules = inside(&pod, &root, &["weft-sidecar", "redirect", "show"])?;
    ensure!(rules.contains("redirect to :15001"), "{rules}");
    inside(&pod, &root, &["weft-sidecar", "redirect", "remove"])?;
    Ok(())
}

/// Runs a program of the image in the pod.
fn inside(pod: &Pod, root: &Path, command: &[&str]) -> Result<String> {
    let program = format!("/usr/local/bin/{}", command[0]);
    pod.run("chroot", &[&[&*root.to_string_lossy(), &program], &command[1..]].concat())
}
