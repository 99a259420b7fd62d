//! Many sidecars at one control plane: registrars with their services and heartbeats, and discovery streams that subscribe to some
//! of them. Then one endpoint comes and goes; the control plane reports the last acknowledgement.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::BufRead;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use prost::Message;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Channel;
use weft_proto::envoy::DeltaDiscoveryRequest;
use weft_proto::envoy::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_proto::v1::registry_client::RegistryClient;
use weft_proto::v1::registry_request::Kind;
use weft_proto::v1::{CheckUpdate, Deregister, Heartbeat, Hello, Instance, RegistryReply, RegistryRequest};
use weft_proto::{ENDPOINTS_TYPE, SERVICE_TYPE};
use weft_sidecar::control::connection::Control;

use crate::handshakes::join;

/// Services of one registrar: half of the instances that a sidecar may have.
const PER_REGISTRAR: usize = 500;
/// Interval of a registrar's heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    control_plane: String,
    /// Must name the services s0, s1 ...
    #[arg(long)]
    token_file: PathBuf,
    #[arg(long, default_value_t = 1000)]
    services: usize,
    #[arg(long, default_value_t = 1000)]
    streams: usize,
    /// Services that each stream subscribes to; s0 is among them
    #[arg(long, default_value_t = 20)]
    each: usize,
    #[arg(long, default_value_t = 5)]
    changes: usize,
}

/// The resources that the streams have received.
#[derive(Default)]
struct Received {
    bytes: Cell<usize>,
    ready: Cell<usize>,
    failed: Cell<usize>,
    changed: Notify,
}

pub(crate) async fn run(options: Options) -> Result<Value> {
    let control = Rc::new(join(options.control_plane.clone(), options.token_file.clone()).await?);
    tokio::task::LocalSet::new().run_until(fleet(options, control)).await
}

async fn fleet(options: Options, control: Rc<Control>) -> Result<Value> {
    let start = Instant::now();
    let numbers: Vec<usize> = (0..options.services).collect();
    for (n, numbers) in numbers.chunks(PER_REGISTRAR).enumerate() {
        let mut registrar = Registrar::open(&control, &format!("registrar-{:08x}", n + 1)).await?;
        for i in numbers {
            // All have one address, so that each instance needs a port of its own.
            registrar.register(instance(format!("s{i}"), format!("s{i}-1"), 20_000 + u32::try_from(*i)?)).await?;
        }
        tokio::task::spawn_local(async move {
            while registrar.heartbeat().await.is_ok() {
                tokio::time::sleep(HEARTBEAT).await;
            }
            eprintln!("the session of a registrar has ended");
        });
    }
    let registering = start.elapsed();
    let received = Rc::new(Received::default());
    let start = Instant::now();
    for i in 0..options.streams {
        let others = (1..options.each).map(|k| 1 + (i * (options.each - 1) + k) % (options.services - 1));
        let names: Vec<String> = std::iter::once(0).chain(others).map(|n| format!("s{n}")).collect();
        let (control, received) = (control.clone(), received.clone());
        tokio::task::spawn_local(async move {
            if let Err(e) = stream(&control, names, &received).await {
                if received.failed.get() == 0 {
                    eprintln!("a stream failed: {e:#}");
                }
                received.failed.set(received.failed.get() + 1);
                received.changed.notify_one();
            }
        });
        // Yields to handshakes.
        tokio::task::yield_now().await;
    }
    while received.ready.get() + received.failed.get() < options.streams {
        received.changed.notified().await;
    }
    let connecting = start.elapsed();
    ensure!(received.failed.get() == 0, "{} streams failed", received.failed.get());
    let at_start = received.bytes.get();
    super::print(&json!({"ready": true}))?;
    // The benchmark measures the control plane meanwhile.
    tokio::task::spawn_blocking(|| std::io::stdin().lock().read_line(&mut String::new())).await??;

    let mut second = Registrar::open(&control, "registrar-00000000").await?;
    let mut took = Vec::new();
    for _ in 0..options.changes {
        // Two instances, then one again; the wait is for the second change.
        second.extra(true).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let start = Instant::now();
        let reply = second.extra(false).await?;
        took.push(u64::try_from(start.elapsed().as_micros())?);
        let count = (reply.acknowledged as usize, reply.subscribers as usize);
        ensure!(count == (options.streams, options.streams), "{count:?} acknowledged, subscribed");
    }
    took.sort_unstable();
    let changed = received.bytes.get() - at_start;
    Ok(json!({
        "registrations_per_s": options.services as f64 / registering.as_secs_f64(),
        "connect_all_s": connecting.as_secs_f64(),
        "bytes_at_start": at_start / options.streams,
        "bytes_per_change": changed / options.streams / options.changes / 2,
        "last_acknowledged_ms": super::percentile(&took, 0.5) as f64 / 1000.0,
        "last_acknowledged_max_ms": super::percentile(&took, 1.0) as f64 / 1000.0,
        // Each instance was added and removed.
        "changes": options.changes * 2,
        "errors": received.failed.get(),
    }))
}

/// One sidecar's discovery stream; never ends.
async fn stream(control: &Control, names: Vec<String>, received: &Received) -> Result<()> {
    let channel = control.connect().await?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let (requests, outgoing) = mpsc::channel(16);
    for kind in [SERVICE_TYPE, ENDPOINTS_TYPE] {
        let resource_names_subscribe = names.clone();
        requests
            .send(DeltaDiscoveryRequest { type_url: kind.into(), resource_names_subscribe, ..Default::default() })
            .await?;
    }
    let mut responses = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?.into_inner();
    let mut seen = BTreeSet::new();
    let mut complete = false;
    while let Some(response) = responses.next().await {
        let response = response?;
        received.bytes.set(received.bytes.get() + response.encoded_len());
        for resource in &response.resources {
            seen.insert((response.type_url.clone(), resource.name.clone()));
        }
        ensure!(response.removed_resources.is_empty(), "unknown: {:?}", response.removed_resources);
        requests
            .send(DeltaDiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                ..Default::default()
            })
            .await?;
        if !complete && seen.len() == names.len() * 2 {
            complete = true;
            received.ready.set(received.ready.get() + 1);
            received.changed.notify_one();
        }
    }
    Err(anyhow::anyhow!("ended"))
}

/// A sidecar's session with the registry.
pub(crate) struct Registrar {
    requests: mpsc::Sender<RegistryRequest>,
    replies: Pin<Box<dyn Stream<Item = Result<RegistryReply>>>>,
    next: u64,
}

impl Registrar {
    pub(crate) async fn open(control: &Control, node: &str) -> Result<Registrar> {
        let hello = Hello { node: node.into(), ..Default::default() };
        Registrar::of(control.connect().await?, hello).await
    }

    pub(crate) async fn of(channel: Channel, hello: Hello) -> Result<Registrar> {
        let mut client = RegistryClient::new(channel);
        let (requests, outgoing) = mpsc::channel(16);
        requests.send(RegistryRequest { id: 0, kind: Some(Kind::Hello(hello)) }).await?;
        let replies = client.session(ReceiverStream::new(outgoing)).await?.into_inner();
        let replies = Box::pin(replies.map(|r| r.map_err(anyhow::Error::from)));
        let mut registrar = Registrar { requests, replies, next: 1 };
        registrar.reply().await?;
        Ok(registrar)
    }

    async fn reply(&mut self) -> Result<RegistryReply> {
        let reply = tokio::time::timeout(Duration::from_secs(60), self.replies.next()).await?;
        let reply = reply.context("the registry ended the session")??;
        ensure!(reply.error.is_empty(), "refused: {}", reply.error);
        Ok(reply)
    }

    async fn ask(&mut self, kind: Kind) -> Result<RegistryReply> {
        self.next += 1;
        self.requests.send(RegistryRequest { id: self.next, kind: Some(kind) }).await?;
        self.reply().await
    }

    pub(crate) async fn register(&mut self, instance: Instance) -> Result<()> {
        self.ask(Kind::Register(instance)).await.map(drop)
    }

    /// A heartbeat.
    pub(crate) async fn heartbeat(&mut self) -> Result<()> {
        self.ask(Kind::Heartbeat(Heartbeat::default())).await.map(drop)
    }

    pub(crate) async fn check(&mut self, update: CheckUpdate) -> Result<()> {
        self.ask(Kind::Check(update)).await.map(drop)
    }

    /// Registers or removes a second instance of s0.
    async fn extra(&mut self, comes: bool) -> Result<RegistryReply> {
        let id = "s0-2".to_owned();
        self.ask(if comes {
            Kind::Register(instance("s0".into(), id, 19_999))
        } else {
            Kind::Deregister(Deregister { service_id: id, wait_ms: 30_000 })
        })
        .await
    }
}

pub(crate) fn instance(service: String, service_id: String, port: u32) -> Instance {
    Instance { service, service_id, port, ..Default::default() }
}
