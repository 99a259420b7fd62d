//! The connection of `weftctl` to a control plane; `apply` and `token create`.
//!
//! It uses the socket in the control plane's data folder, which only its owner can open.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};
use weft_proto::v1;
use weft_proto::v1::admin_client::AdminClient;

use super::style;
use crate::files::{self, InputFile};

/// The address of the control plane.
#[derive(Debug, clap::Args)]
pub struct Remote {
    /// Socket of the control plane (admin.sock in its data folder)
    #[arg(long, env = "WEFT_ADMIN_SOCKET", default_value = DEFAULT_SOCKET, global = true)]
    socket: PathBuf,
}

/// The control plane's default, unless `--data-dir` is set.
const DEFAULT_SOCKET: &str = "/var/lib/weft/admin.sock";

impl Remote {
    pub(super) async fn connect(&self) -> Result<AdminClient<Channel>> {
        let path = self.socket.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
        });
        let channel = Endpoint::from_static("http://weft").connect_with_connector(connector).await;
        let channel = channel.map_err(|e| unreachable(&self.socket, &e))?;
        Ok(AdminClient::new(channel).max_decoding_message_size(64 << 20))
    }
}

/// The reason why the control plane is unreachable, and the remedy.
fn unreachable(socket: &Path, error: &(dyn std::error::Error + 'static)) -> anyhow::Error {
    let mut cause: &(dyn std::error::Error + 'static) = error;
    let mut kind = None;
    loop {
        kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind).or(kind);
        match cause.source() {
            Some(inner) => cause = inner,
            None => break,
        }
    }
    let remedy = match kind {
        Some(ErrorKind::NotFound) => {
            "; the socket is admin.sock in the data folder of the control plane (its --data-dir): name it by --socket or \
             WEFT_ADMIN_SOCKET"
        }
        Some(ErrorKind::PermissionDenied) => "; only the user of the control plane may open it: run this as that user",
        Some(ErrorKind::ConnectionRefused) => {
            "; no control plane listens there: start it, or name another by --socket or \
             WEFT_ADMIN_SOCKET"
        }
        _ => "",
    };
    anyhow::anyhow!("cannot reach the control plane at {}: {cause}{remedy}", socket.display())
}

/// Applies policy files: all of them together, or none
#[derive(Debug, clap::Args)]
pub struct Apply {
    /// Files, directories of *.yaml, *.yml and *.json, or - for standard input
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    /// Also if a new version lacks a part that another object needs, so that requests will fail
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    remote: Remote,
}

impl Apply {
    /// Runs it.
    ///
    /// # Errors
    /// If a file cannot be read or the control plane is unreachable.
    pub async fn run(&self, out: &mut impl Write) -> Result<ExitCode> {
        let mut files = Vec::new();
        for InputFile { name, text } in files::read(&self.files) {
            let text = text.with_context(|| name.clone())?;
            files.push(v1::File { name, text });
        }
        let request = v1::ApplyRequest { files, force: self.force };
        let reply = self.remote.connect().await?.apply(request).await.map_err(refused)?.into_inner();
        for line in reply.problems.iter().chain(&reply.changes) {
            writeln!(out, "{}", style::problem(line))?;
        }
        if !reply.applied {
            let text = match reply.changes.as_slice() {
                [] => "nothing was applied",
                _ => "nothing else was applied: apply all of it again",
            };
            writeln!(out, "{text}")?;
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Join tokens and API tokens
#[derive(Debug, clap::Subcommand)]
pub enum Token {
    /// Creates a token and prints it
    Create(CreateToken),
}

/// The rights of a token
#[derive(Debug, clap::Args)]
pub struct CreateToken {
    /// Namespace of the workload
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Service account of the workload: the last part of its identity
    #[arg(long, required_unless_present = "api", conflicts_with = "api")]
    service_account: Option<String>,
    /// Service that the holder may register; repeatable; default: the service account's name
    #[arg(long = "service")]
    services: Vec<String>,
    /// An API token: for a program that uses Consul's HTTP API (X-Consul-Token), not for a sidecar to join with
    #[arg(long)]
    api: bool,
    /// Service that the holder of an API token may read, with * for any text; repeatable; default: all that its
    /// namespace sees
    #[arg(long, requires = "api", value_name = "PATTERN")]
    read: Vec<String>,
    /// Prefix of the keys that the holder of an API token may read and write; repeatable; default: none
    #[arg(long, requires = "api", value_name = "PREFIX")]
    kv: Vec<String>,
    /// Seconds until it expires; also with a unit: 30m, 12h, 7d
    #[arg(long, default_value = "1h", value_parser = seconds)]
    ttl: u64,
    /// File to write it to (0600) instead of standard output
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

impl Token {
    /// Runs it.
    ///
    /// # Errors
    /// If the control plane is unreachable or refuses.
    pub async fn run(&self, out: &mut impl Write) -> Result<ExitCode> {
        let Token::Create(create) = self;
        let request = v1::CreateTokenRequest {
            namespace: create.namespace.clone(),
            service_account: create.service_account.clone().unwrap_or_default(),
            ttl_s: create.ttl,
            services: create.services.clone(),
            api: create.api.then(|| v1::ApiRights { read: create.read.clone(), keys: create.kv.clone() }),
        };
        let reply = create.remote.connect().await?.create_token(request).await.map_err(refused)?.into_inner();
        match &create.out {
            None => writeln!(out, "{}", reply.token)?,
            Some(path) => {
                write_private(path, &reply.token).with_context(|| format!("cannot write {}", path.display()))?
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    writeln!(file, "{text}")
}

fn seconds(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => (&text[..at], unit),
        _ => (text, 's'),
    };
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(format!("{unit:?} is not a unit (s, m, h, d)")),
    };
    let number: u64 = number.parse().map_err(|_| "a number of seconds, or with a unit: 30m, 12h, 7d".to_owned())?;
    number.checked_mul(factor).filter(|s| *s > 0).ok_or_else(|| "too long or zero".to_owned())
}

pub(super) fn refused(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_socket_is_reported_with_its_option() {
        let dir = tempfile::tempdir().unwrap();
        let remote = |name: &str| Remote { socket: dir.path().join(name) };
        let missing = remote("admin.sock").connect().await.unwrap_err().to_string();
        assert!(missing.contains("WEFT_ADMIN_SOCKET") && missing.contains("admin.sock: No such file"), "{missing}");
        drop(std::os::unix::net::UnixListener::bind(dir.path().join("left")).unwrap());
        let refused = remote("left").connect().await.unwrap_err().to_string();
        assert!(refused.contains("no control plane listens there"), "{refused}");
    }

    #[test]
    fn durations() {
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("2h"), Ok(7200));
        assert_eq!(seconds("7d"), Ok(604_800));
        for bad in ["", "h", "0", "1w", "-1", "99999999999999999999d"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
