//! `weftctl apply`, `get`, `delete`, `status` and `token create`: what needs a control plane.
//!
//! Speaks over the socket in the control plane's data folder, which only its owner can open.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};
use weft_proto::v1::admin_client::AdminClient;
use weft_proto::v1::{self, ObjectName};

use super::files::{self, Given};

/// Where the control plane is.
#[derive(Debug, clap::Args)]
pub struct Remote {
    /// Socket of the control plane (admin.sock in its data folder)
    #[arg(long, env = "WEFT_ADMIN_SOCKET", default_value = "/var/lib/weft/admin.sock", global = true)]
    socket: PathBuf,
}

impl Remote {
    pub(super) async fn connect(&self) -> Result<AdminClient<Channel>> {
        let path = self.socket.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
        });
        let channel = Endpoint::from_static("http://weft").connect_with_connector(connector).await;
        let channel = channel.map_err(|e| {
            let cause = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            anyhow::anyhow!("cannot reach the control plane at {}: {cause}", self.socket.display())
        })?;
        Ok(AdminClient::new(channel).max_decoding_message_size(64 << 20))
    }
}

/// Applies policy files: all of them together, or none
#[derive(Debug, clap::Args)]
pub struct Apply {
    /// Files, directories of *.yaml, *.yml and *.json, or - for standard input
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

impl Apply {
    /// Runs it.
    ///
    /// # Errors
    /// When a file cannot be read or the control plane not be reached.
    pub async fn run(&self, out: &mut impl Write) -> Result<ExitCode> {
        let mut files = Vec::new();
        for Given { name, text } in files::read(&self.files) {
            let text = text.with_context(|| name.clone())?;
            files.push(v1::File { name, text });
        }
        let reply = self.remote.connect().await?.apply(v1::ApplyRequest { files }).await.map_err(refused)?.into_inner();
        for line in reply.problems.iter().chain(&reply.changes) {
            writeln!(out, "{line}")?;
        }
        if !reply.applied {
            writeln!(out, "nothing was applied")?;
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Shows policies: all, of a kind, or one
#[derive(Debug, clap::Args)]
pub struct Get {
    /// DestinationRule, VirtualService, ...
    kind: Option<String>,
    /// Name of the object
    name: Option<String>,
    /// Namespace; all where it is not given
    #[arg(short, long, default_value = "")]
    namespace: String,
    /// `name` for one line each, `yaml` for the objects as they were given
    #[arg(short, long, default_value = "name", value_parser = ["name", "yaml"])]
    output: String,
    #[command(flatten)]
    remote: Remote,
}

impl Get {
    /// Runs it.
    ///
    /// # Errors
    /// When the control plane cannot be reached.
    pub async fn run(&self, out: &mut impl Write) -> Result<ExitCode> {
        let object = ObjectName {
            kind: self.kind.clone().unwrap_or_default(),
            namespace: self.namespace.clone(),
            name: self.name.clone().unwrap_or_default(),
        };
        let request = v1::GetRequest { object: Some(object) };
        let objects = self.remote.connect().await?.get(request).await.map_err(refused)?.into_inner().objects;
        if objects.is_empty() && self.name.is_some() {
            bail!("there is no such object");
        }
        for object in &objects {
            let name = object.object.clone().unwrap_or_default();
            if self.output == "yaml" {
                writeln!(out, "---\n# {}\n{}", object.source, object.yaml.trim_end())?;
            } else {
                writeln!(out, "{}/{}/{}\t{}", name.kind, name.namespace, name.name, object.source)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Deletes a policy that was applied
#[derive(Debug, clap::Args)]
pub struct Delete {
    /// DestinationRule, VirtualService, ...
    kind: String,
    /// Name of the object
    name: String,
    /// Namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    remote: Remote,
}

impl Delete {
    /// Runs it.
    ///
    /// # Errors
    /// When the control plane cannot be reached, or has no such object.
    pub async fn run(&self, out: &mut impl Write) -> Result<ExitCode> {
        let object = ObjectName { kind: self.kind.clone(), namespace: self.namespace.clone(), name: self.name.clone() };
        let request = v1::DeleteRequest { object: Some(object) };
        let reply = self.remote.connect().await?.delete(request).await.map_err(refused)?.into_inner();
        if !reply.error.is_empty() {
            bail!("{}", reply.error);
        }
        writeln!(out, "{}/{}/{} deleted", self.kind, self.namespace, self.name)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Shows the mesh: services, instances, connected sidecars, and what each has acknowledged or refused
#[derive(Debug, clap::Args)]
pub struct Status {
    #[command(flatten)]
    remote: Remote,
}

impl Status {
    /// Runs it. The exit status is 1 while a policy is refused by its file's control plane or by a sidecar.
    ///
    /// # Errors
    /// When the control plane cannot be reached.
    pub async fn run(&self, out: &mut impl Write) -> Result<ExitCode> {
        let status = self.remote.connect().await?.status(v1::StatusRequest {}).await.map_err(refused)?.into_inner();
        let mut healthy = true;
        for service in &status.services {
            writeln!(out, "service {}  {}", service.host, service.addresses.join(" "))?;
            for i in &service.instances {
                let identity = if i.identity.is_empty() { "(no sidecar: plaintext)" } else { &i.identity };
                let ejected = match i.ejected_by {
                    0 => String::new(),
                    n => format!("  ejected by {n} caller{}", if n == 1 { "" } else { "s" }),
                };
                writeln!(
                    out,
                    "  {:<21} {:<9} {}  {}  {} on {}{ejected}",
                    i.address, i.health, i.labels, identity, i.service_id, i.node
                )?;
            }
            for r in &service.remotes {
                let (name, share) = (&r.datacenter, r.share);
                writeln!(out, "  in {name}: {} of {} healthy, {share} % of the requests go there", r.healthy, r.total)?;
            }
        }
        for datacenter in &status.datacenters {
            writeln!(out, "{}", of_datacenter(datacenter))?;
        }
        for sidecar in &status.sidecars {
            writeln!(
                out,
                "sidecar {}  {}  {}  version {}  connected {} s",
                sidecar.node, sidecar.address, sidecar.identity, sidecar.version, sidecar.connected_s
            )?;
            if !sidecar.group.is_empty() {
                writeln!(out, "  group     {:<45} {}", sidecar.group, sidecar.joined)?;
            }
            for r in &sidecar.resources {
                let state = if !r.refused.is_empty() {
                    healthy = false;
                    format!("REFUSED {}: {} (serves on with {})", r.sent, r.refused, none(&r.acknowledged))
                } else if r.acknowledged == r.sent {
                    format!("{} acknowledged", r.sent)
                } else {
                    format!("{} sent, {} acknowledged", r.sent, none(&r.acknowledged))
                };
                writeln!(out, "  {:<9} {:<45} {state}", r.r#type, r.name)?;
            }
        }
        for problem in &status.policy_problems {
            healthy &= !problem.contains(": error: ");
            writeln!(out, "{problem}")?;
        }
        writeln!(
            out,
            "{} services, {} sidecars, world version {}",
            status.services.len(),
            status.sidecars.len(),
            status.world_version
        )?;
        Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// One line. A data centre that is away is no error of this one: what it said last is used.
fn of_datacenter(datacenter: &v1::DatacenterStatus) -> String {
    let heard = datacenter.heard_s.map_or_else(|| "never heard of".into(), |s| format!("last heard of {s} s ago"));
    let state = if datacenter.connected { "connected" } else { "NOT CONNECTED" };
    let error = if datacenter.error.is_empty() { String::new() } else { format!("  ({})", datacenter.error) };
    let (name, address) = (&datacenter.name, &datacenter.address);
    format!("datacenter {name}  {address}  {state}, {heard}, exports {} services{error}", datacenter.services)
}

fn none(version: &str) -> &str {
    if version.is_empty() { "none" } else { version }
}

/// Join tokens and API tokens
#[derive(Debug, clap::Subcommand)]
pub enum Token {
    /// Makes a token and prints it
    Create(CreateToken),
}

/// What a token is for
#[derive(Debug, clap::Args)]
pub struct CreateToken {
    /// Namespace of the workload
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Service account of the workload: the last part of its identity
    #[arg(long, required_unless_present = "api", conflicts_with = "api")]
    service_account: Option<String>,
    /// Service that the holder may register; repeatable; the service account's name where none is given
    #[arg(long = "service")]
    services: Vec<String>,
    /// An API token: for a program that uses Consul's HTTP API (X-Consul-Token), not for a sidecar to join with
    #[arg(long)]
    api: bool,
    /// Service that the holder of an API token may read, with * for any text; repeatable; all that its namespace sees
    /// where none is given
    #[arg(long, requires = "api", value_name = "PATTERN")]
    read: Vec<String>,
    /// Beginning of the keys that the holder of an API token may read and write; repeatable; none where none is given
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
    /// When the control plane cannot be reached or refuses.
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
