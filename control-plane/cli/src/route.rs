//! `weftctl route`: explains which route and endpoint a request would get, from a control plane or from files alone.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use weft_core::locality::Location;
use weft_proto::v1;

use super::remote::{Remote, refused};
use super::validate::{analyse, report};
use crate::files;
use weft_policy::Severity;
use weft_world::explain::{Client, Explanation, Name, Query, explain};

/// Explains which route, subset, policy and endpoint a request would get: in the live mesh, or with -f from files only
///
/// No request is sent. The exit status is 0 if an endpoint would receive the request, or if a redirect or a direct
/// response is configured for it; it is 1 if the request would be refused, and on every error.
#[derive(Debug, clap::Args)]
pub struct Route {
    /// URL as for curl: [http://]HOST[:PORT][/PATH]; https:// means TLS of the client's own
    #[arg(value_name = "HOST[:PORT]/PATH")]
    url: String,
    /// Workload that sends it: NAME, NAME.NAMESPACE or NAMESPACE/NAME. Without -f it is that of a connected sidecar,
    /// with its labels and locality; default: a client of namespace default without labels
    #[arg(long, value_name = "WORKLOAD")]
    from: Option<String>,
    /// Gateway through which it arrives from outside the mesh: NAME, of namespace default, or NAMESPACE/NAME
    #[arg(long, value_name = "GATEWAY", conflicts_with = "from")]
    gateway: Option<String>,
    /// It reaches the gateway with TLS, as with https://
    #[arg(long, requires = "gateway")]
    tls: bool,
    /// Header of the request, repeatable; host is the authority instead of the URL's
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// Method of the request
    #[arg(short = 'X', long, default_value = "GET")]
    method: String,
    /// The client speaks TLS of its own, and sends this server name
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// Files, directories of *.yaml, *.yml and *.json, or - for standard input, repeatable: the only policies, without
    /// a control plane. Registrations are unknown then
    #[arg(short, long = "file", value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    /// Label of the sending workload, repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", requires = "files")]
    labels: Vec<String>,
    /// Locality of the sending workload
    #[arg(long, value_name = "REGION/ZONE/SUBZONE", requires = "files")]
    locality: Option<String>,
    /// `text` for people, `json` for programs
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
    #[command(flatten)]
    remote: Remote,
}

impl Route {
    /// Runs it.
    ///
    /// # Errors
    /// If an argument is invalid, the control plane is unreachable, or it has no such workload.
    pub async fn run(&self, out: &mut impl Write) -> Result<ExitCode> {
        let headers = pairs(&self.headers, ':', "-H").map_err(|e| anyhow!(e))?;
        let gateway = Client::gateway(self.gateway.as_deref().unwrap_or_default()).map_err(|e| anyhow!(e))?;
        let query = Query::new(&self.address(), &self.method, &headers, self.sni.as_deref()).map_err(|e| anyhow!(e))?;
        let from = self.from.as_deref().map(Name::parse).transpose().map_err(|e| anyhow!(e))?;
        let explanation = if self.files.is_empty() {
            self.live(headers).await?
        } else {
            let client = match gateway {
                Some((namespace, name)) => Client::at_gateway(&namespace, &name),
                None => self.client(from.as_ref()).map_err(|e| anyhow!(e))?,
            };
            let given = files::read(&self.files);
            let (mut world, mut problems) = analyse(&given);
            problems.retain(|problem| problem.severity != Severity::Info);
            if problems.iter().any(|problem| problem.severity == Severity::Error) {
                return report(out, &self.output, given.len(), &world, &problems);
            }
            world.assume_registered();
            explain(&world, &client, &query, false, Instant::now())
                .context("sidecars would refuse the policies of these files")?
        };
        if self.output == "json" {
            writeln!(out, "{:#}", serde_json::to_value(&explanation)?)?;
        } else {
            write!(out, "{explanation}")?;
        }
        Ok(if explanation.verdict.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The URL, with https if `--tls` is given.
    fn address(&self) -> String {
        if self.tls && !self.url.contains("://") { format!("https://{}", self.url) } else { self.url.clone() }
    }

    async fn live(&self, headers: Vec<(String, String)>) -> Result<Explanation> {
        let request = v1::ExplainRequest {
            url: self.address(),
            method: self.method.clone(),
            headers: headers.into_iter().map(|(name, value)| v1::HeaderValue { name, value }).collect(),
            server_name: self.sni.clone(),
            from: self.from.clone().unwrap_or_default(),
            gateway: self.gateway.clone().unwrap_or_default(),
        };
        let reply = self.remote.connect().await?.explain(request).await.map_err(refused)?.into_inner();
        serde_json::from_str(&reply.explanation).context("the control plane and this weftctl have different versions")
    }

    /// The sender, if only files are used.
    fn client(&self, from: Option<&Name>) -> Result<Client, String> {
        let labels: BTreeMap<String, String> = pairs(&self.labels, '=', "--label")?.into_iter().collect();
        let locality = self.locality.as_deref().unwrap_or_default();
        if self.locality.is_some() && (locality.split('/').count() > 3 || locality.split('/').any(str::is_empty)) {
            return Err(format!("--locality: {locality:?} is not REGION[/ZONE[/SUBZONE]]"));
        }
        Ok(Client {
            workload: from.map(|from| from.workload.clone()).unwrap_or_default(),
            location: Location { locality: locality.into(), labels: labels.clone() },
            labels,
            ..Client::of(from.map_or("default", Name::namespace))
        })
    }
}

/// Names and values of a repeatable argument.
fn pairs(given: &[String], separator: char, argument: &str) -> Result<Vec<(String, String)>, String> {
    let pair = |text: &String| match text.split_once(separator).map(|(name, value)| (name.trim(), value.trim())) {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{argument}: {text:?} is not a name, a {separator:?} and a value")),
    };
    given.iter().map(pair).collect()
}

#[cfg(test)]
mod tests;
