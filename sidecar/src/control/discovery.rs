//! The discovery stream: subscriptions go up, changes come down and are acknowledged or refused.
//!
//! One task owns the directory's writer. It reconnects for ever, with growing pauses; a new stream begins with all wanted
//! names and the versions that are held, so that only changes are sent.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use weft_core::backoff::Backoff;
use weft_proto::OTHER_CONTROL_PLANES;
use weft_proto::envoy::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_proto::envoy::{DeltaDiscoveryRequest, Node, Status};

use crate::control::connection::Control;
use crate::control::directory::{Interest, Writer};
use crate::telemetry::metrics::Metrics;

/// How this sidecar introduces itself.
#[derive(Debug, Clone)]
pub struct Introduction {
    /// Unique and stable name of this sidecar.
    pub node: String,
    /// Labels given on the command line.
    pub labels: HashMap<String, String>,
}

/// gRPC's INVALID_ARGUMENT, as a refusal carries it.
const INVALID_ARGUMENT: i32 = 3;
/// Unsent requests beyond which no new names are subscribed to.
const MAX_UNSENT: usize = 256;
const SWEEP: Duration = Duration::from_secs(10);
const SAVE: Duration = Duration::from_secs(1);

/// Keeps the stream up for ever. `reconnect` changes when the certificate was renewed: the stream is then made anew,
/// before the old certificate ends.
pub async fn run(
    control: Arc<Control>,
    mut writer: Writer,
    introduction: Introduction,
    metrics: Arc<Metrics>,
    mut reconnect: watch::Receiver<u64>,
) {
    let mut backoff = Backoff::default();
    loop {
        let (started, turn) = (tokio::time::Instant::now(), control.turn());
        let result = stream(&control, &mut writer, &introduction, &metrics, &mut reconnect).await;
        save(&mut writer);
        match result {
            Ok(()) => {
                // Reconnected on purpose: look-ups of now wait for the next stream, which subscribes to all wanted names.
                backoff.reset();
                continue;
            }
            Err(e) => tracing::warn!("no discovery stream: {e:#}"),
        }
        control.leave(turn);
        writer.set_connected(false);
        metrics.control_plane_connected.set(0);
        if started.elapsed() > Duration::from_secs(30) {
            backoff.reset();
        }
        // Look-ups of this time are answered at once: "not known".
        let pause = tokio::time::sleep(backoff.pause(rand::random()));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                interest = writer.next_interest() => if interest.is_none() { return },
            }
        }
    }
}

/// One stream. `Ok`: it is to be made anew at once.
async fn stream(
    control: &Control,
    writer: &mut Writer,
    introduction: &Introduction,
    metrics: &Metrics,
    reconnect: &mut watch::Receiver<u64>,
) -> Result<()> {
    reconnect.mark_unchanged();
    let channel = control.connect().await?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 << 20);
    let (requests, outgoing) = mpsc::channel(64);
    // Unsent requests wait here, not in a send: if the sidecar waited for the control plane to read while that waits for the
    // sidecar to read, neither would.
    let mut unsent: VecDeque<DeltaDiscoveryRequest> = VecDeque::new();
    for (interest, versions) in writer.initial() {
        let node = (interest.kind == weft_proto::INBOUND_TYPE).then(|| node(introduction));
        unsent.push_back(DeltaDiscoveryRequest { initial_resource_versions: versions, node, ..request(interest) });
    }
    let mut opening = tonic::Request::new(ReceiverStream::new(outgoing));
    opening.metadata_mut().insert(OTHER_CONTROL_PLANES, control.others().into());
    let opened = client.delta_aggregated_resources(opening).await;
    control.refused(opened.as_ref().is_err_and(|status| status.code() == Code::ResourceExhausted));
    let mut responses = opened?.into_inner();
    writer.set_connected(true);
    metrics.control_plane_connected.set(1);
    tracing::info!("connected to the control plane");
    let mut sweep = tokio::time::interval(SWEEP);
    let mut save_tick = tokio::time::interval(SAVE);
    loop {
        tokio::select! {
            room = requests.reserve(), if !unsent.is_empty() => {
                let room = room.context("the stream has ended")?;
                if let Some(request) = unsent.pop_front() {
                    room.send(request);
                }
            }
            response = responses.next() => {
                let response = response.context("the control plane ended the stream")??;
                let (kind, nonce) = (response.type_url.clone(), response.nonce.clone());
                let (interests, refused) = writer.apply(response);
                unsent.push_back(DeltaDiscoveryRequest {
                    type_url: kind,
                    response_nonce: nonce,
                    error_detail: refused.map(|message| Status { code: INVALID_ARGUMENT, message }),
                    ..Default::default()
                });
                unsent.extend(interests.into_iter().map(request));
            }
            // New names wait while many requests are unsent: the queue of look-ups is bounded, and look-ups fail beyond it.
            interest = writer.next_interest(), if unsent.len() < MAX_UNSENT => {
                let interest = interest.context("the proxy stops")?;
                if !interest.kind.is_empty() {
                    unsent.push_back(request(interest));
                }
            }
            _ = sweep.tick() => unsent.extend(writer.sweep().into_iter().map(request)),
            _ = save_tick.tick() => save(writer),
            changed = reconnect.changed() => return changed.context("the proxy stops"),
        }
    }
}

fn save(writer: &mut Writer) {
    // The file is the successor's then.
    if !crate::net::sockets::is_turn_over() {
        writer.save();
    }
}

fn request(interest: Interest) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: interest.kind.to_owned(),
        resource_names_subscribe: interest.subscribe,
        resource_names_unsubscribe: interest.unsubscribe,
        ..Default::default()
    }
}

fn node(introduction: &Introduction) -> Node {
    use prost_types::value::Kind;
    let text = |s: &String| prost_types::Value { kind: Some(Kind::StringValue(s.clone())) };
    let labels = introduction.labels.iter().map(|(k, v)| (k.clone(), text(v))).collect();
    let labels = prost_types::Value { kind: Some(Kind::StructValue(prost_types::Struct { fields: labels })) };
    Node {
        id: introduction.node.clone(),
        metadata: Some(prost_types::Struct { fields: [("LABELS".to_owned(), labels)].into() }),
        user_agent_name: "weft".into(),
        user_agent_version: env!("CARGO_PKG_VERSION").into(),
        ..Default::default()
    }
}
