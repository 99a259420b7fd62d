//! One member of the mesh that sends the largest of everything, and the refusals of the control plane.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use prost_types::value::Kind as ValueKind;
use prost_types::{Struct, Value as ProstValue};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use weft_proto::SERVICE_TYPE;
use weft_proto::envoy::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_proto::envoy::{DeltaDiscoveryRequest, Node};
use weft_proto::v1::catalog_client::CatalogClient;
use weft_proto::v1::{Check, CheckUpdate, Hello, Instance, Question};
use weft_sidecar::control::connection::Control;

use crate::fleet::{Registrar, instance};
use crate::handshakes::join;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    control_plane: String,
    /// Must name the service s0
    #[arg(long)]
    token_file: PathBuf,
}

pub(crate) async fn run(options: Options) -> Result<Value> {
    let control = join(options.control_plane, options.token_file).await?;
    let mut refused = serde_json::Map::new();
    let mut note = |request: &str, why: String| refused.insert(request.to_owned(), why.into());
    note("labels of a sidecar", labels(&control).await?);
    let (one, all) = registrations(&control).await?;
    note("metadata of an instance", one);
    note("registrations of an identity", all);
    note("output of a check", output(&control).await?);
    let long = "x".repeat(100_000);
    note("a subscribed name", discovery(&control, vec![subscribe(vec![long.clone()])]).await?);
    let metadata = Struct { fields: [("LABELS".to_owned(), of_labels(&long))].into() };
    let node = Node { id: "n".into(), metadata: Some(metadata), ..Default::default() };
    let introduced = DeltaDiscoveryRequest { node: Some(node), ..subscribe(Vec::new()) };
    note("labels in a stream", discovery(&control, vec![introduced]).await?);
    let versions = (0..200).map(|message| DeltaDiscoveryRequest {
        initial_resource_versions: (0..20_000)
            .map(|n| (format!("{:0>100}", message * 20_000 + n), "0".into()))
            .collect(),
        ..subscribe(Vec::new())
    });
    // Accepted and dropped: the client subscribes to none of them.
    ensure!(
        discovery(&control, versions.chain([subscribe(vec![String::new(); 20_001])]).collect())
            .await?
            .contains("names")
    );
    note("names of an identity", names(&control).await?);
    let value = vec![b'x'; 512 << 10];
    note("pairs of an identity", writes(&control, 200, |n| (format!("kv/large/{n}"), value.clone())).await?);
    let _node = Registrar::open(&control, "sessions-0000001").await?;
    let session = |name: &str| format!(r#"{{"Node": "sessions-0000001", "Name": "{name}"}}"#).into_bytes();
    note("name of a session", writes(&control, 1, |_| ("session/create".into(), session(&long))).await?);
    note("sessions of an identity", writes(&control, 6000, |_| ("session/create".into(), session(""))).await?);
    let query = |bytes: usize| {
        format!(r#"{{"Service": {{"Service": "s0", "Near": "", "ServiceMeta": {{"k": "{}"}}}}}}"#, &long[..bytes])
    };
    note("metadata of a query", writes(&control, 1, |_| ("query".into(), query(20_000).into_bytes())).await?);
    note("queries of an identity", writes(&control, 1100, |_| ("query".into(), query(1000).into_bytes())).await?);
    Ok(Value::Object(refused))
}

fn of_labels(text: &str) -> ProstValue {
    let value = |kind| ProstValue { kind: Some(kind) };
    let label = value(ValueKind::StringValue(text.to_owned()));
    value(ValueKind::StructValue(Struct { fields: [("label".to_owned(), label)].into() }))
}

/// 2,000 nodes with 50 KB of labels each.
async fn labels(control: &Control) -> Result<String> {
    let channel = control.connect().await?;
    let mut why = String::new();
    for n in 0..2000 {
        let labels = [("label".to_owned(), "x".repeat(50_000))].into();
        let hello = Hello { node: format!("large-{n:08x}"), labels, ..Default::default() };
        match Registrar::of(channel.clone(), hello).await {
            Ok(_) => return Ok(String::new()),
            Err(e) => why = e.to_string(),
        }
    }
    Ok(why)
}

fn with_meta(n: usize, bytes: usize) -> Instance {
    let meta = (0..16).map(|key| (format!("{key:02}"), "x".repeat(bytes))).collect();
    Instance { meta, ..instance("s0".into(), format!("i{n}"), u32::try_from(n % 60_000).unwrap_or_default() + 1) }
}

/// The reasons for refusing an instance that is too large, and one more of the largest instances than an identity may have.
async fn registrations(control: &Control) -> Result<(String, String)> {
    let mut one = Err(anyhow::anyhow!("nothing was refused"));
    let mut registrars = Vec::new();
    for sidecar in 0..4 {
        let mut registrar = Registrar::open(control, &format!("largest-{sidecar:08x}")).await?;
        if sidecar == 0 {
            one = registrar.register(with_meta(0, 4097)).await;
        }
        for n in 0..1000 {
            if let Err(e) = registrar.register(with_meta(sidecar * 1000 + n, 4090)).await {
                return Ok((one.err().map(|e| e.to_string()).unwrap_or_default(), e.to_string()));
            }
        }
        registrars.push(registrar);
    }
    Ok((String::new(), String::new()))
}

async fn output(control: &Control) -> Result<String> {
    let mut registrar = Registrar::open(control, "output-00000001").await?;
    let check = Check { check_id: "c".into(), output: "x".repeat(1_000_000), ..Default::default() };
    let refused = registrar.check(CheckUpdate { check: Some(check), removed: false }).await;
    Ok(refused.err().map(|e| e.to_string()).unwrap_or_default())
}

fn subscribe(names: Vec<String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: SERVICE_TYPE.into(), resource_names_subscribe: names, ..Default::default() }
}

/// The error of a stream after these messages.
async fn discovery(control: &Control, messages: Vec<DeltaDiscoveryRequest>) -> Result<String> {
    let mut client = AggregatedDiscoveryServiceClient::new(control.connect().await?);
    let (requests, outgoing) = mpsc::channel(1);
    let sending = tokio::spawn(async move {
        for message in messages {
            if requests.send(message).await.is_err() {
                return None;
            }
        }
        Some(requests)
    });
    let answer = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await;
    let mut responses = match answer {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Ok(status.message().to_owned()),
    };
    loop {
        match responses.next().await {
            Some(Ok(_)) => {}
            Some(Err(status)) => {
                sending.abort();
                return Ok(status.message().to_owned());
            }
            None => return Ok(String::new()),
        }
    }
}

/// The refusal that ends this number of writes through Consul's API: paths and bodies.
async fn writes(control: &Control, count: usize, of: impl Fn(usize) -> (String, Vec<u8>)) -> Result<String> {
    let mut client = CatalogClient::new(control.connect().await?);
    for n in 0..count {
        let (path, body) = of(n);
        let method = if path == "query" { "POST" } else { "PUT" };
        let question =
            Question { method: method.into(), path: format!("/v1/{path}"), body: body.into(), ..Default::default() };
        let answer = client.ask(question).await?.into_inner();
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        match answer.status {
            200 => {}
            413 => return Ok(text),
            other => anyhow::bail!("write {n} of {path}: status {other}: {text:.500}"),
        }
    }
    Ok(String::new())
}

/// Streams that subscribe to 20,000 names of 500 bytes each, until one is refused.
async fn names(control: &Control) -> Result<String> {
    let mut streams = Vec::new();
    for stream in 0..20 {
        let channel = control.connect().await?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let (requests, outgoing) = mpsc::channel(1);
        let sending = tokio::spawn(async move {
            for part in 0..4 {
                let names = (0..5_000).map(|n| format!("{:0>500}", stream * 20_000 + part * 5_000 + n)).collect();
                if requests.send(subscribe(names)).await.is_err() {
                    break;
                }
            }
            requests
        });
        let mut responses = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?.into_inner();
        let mut answered = 0;
        while answered < 20_000 {
            match responses.next().await {
                Some(Ok(response)) => answered += response.removed_resources.len(),
                Some(Err(status)) => return Ok(status.message().to_owned()),
                None => return Ok(String::new()),
            }
        }
        streams.push((sending, responses));
    }
    Ok(String::new())
}
