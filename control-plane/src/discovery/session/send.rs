//! Responses of a stream: current versions, of a size that keeps buffers small.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use tonic::Status;
use weft_proto::envoy::{Any, DeltaDiscoveryResponse, Resource};
use weft_proto::{INBOUND_TYPE, codec};

use super::super::names::Name;
use super::super::{Encoded, Version};
use super::{SELF, Session, version_text};
use weft_world::World;
use weft_world::translate;

/// Bytes of a response, so that the buffers that each stream keeps stay small: with its frame no more than
/// [`codec::BUFFER`]. A response of more than [`MOST_PARTS`] times that is sent in that number of parts.
const RESPONSE: usize = codec::BUFFER - 512;
const MOST_PARTS: usize = 16;
/// Bound on the responses without an answer.
const MAX_UNACKNOWLEDGED: usize = 10_000;

impl Session {
    /// Sends the hosts whose current version the client does not have, or whose names are new to it.
    pub(super) async fn send(
        &mut self,
        kind: &'static str,
        hosts: BTreeMap<Name, Vec<Name>>,
        mut removed: Vec<Name>,
    ) -> Result<(), Status> {
        let mut resources = Vec::new();
        let mut versions = Vec::new();
        for (host, aliases) in hosts {
            let Some(encoded) = self.discovery.encoded(kind, &self.scope, &host) else {
                removed.extend(aliases);
                removed.push(host);
                continue;
            };
            let subscription = self.subscription(kind);
            let known = subscription.sent.get(&host) == Some(&encoded.version);
            // A name that the client subscribed to is answered even if it has the resource under another name; unless
            // it reported at the start of the stream that it has this name with this version.
            if known && aliases.iter().all(|a| *a == host || subscription.sent.get(a) == Some(&encoded.version)) {
                self.discovery.lock().known(self.id, kind, &host, encoded.version);
                continue;
            }
            subscription.sent.insert(host.clone(), encoded.version);
            resources.push(Resource {
                version: version_text(encoded.version),
                name: host.to_string(),
                aliases: aliases.iter().map(|alias| alias.to_string()).collect(),
                resource: Some(Any { type_url: kind.to_owned(), value: encoded.bytes }),
            });
            versions.push((host, encoded.version, encoded.made_at));
        }
        if resources.is_empty() && removed.is_empty() {
            return Ok(());
        }
        removed.sort();
        removed.dedup();
        for name in &removed {
            self.subscription(kind).sent.remove(name);
        }
        self.discovery.lock().dropped(self.id, kind, &removed);
        self.deliver(kind, resources, versions, removed).await
    }

    pub(super) async fn send_inbound(&mut self) -> Result<(), Status> {
        let own = |world: &World| self.instances(world).flat_map(|own| world.concerning(own)).collect::<BTreeSet<_>>();
        let own = self.discovery.mesh.read(own);
        // Before the look-up, so that no later change is missed.
        let own = own.iter().map(|host| self.discovery.names.of(host)).collect();
        self.set_own(own);
        let encoded = self.discovery.mesh.read(|world| {
            let keys: Vec<_> = self.instances(world).map(|i| i.key()).collect();
            let mut inbound = translate::inbound(world, self.certified.id.namespace(), &self.labels(world), &keys);
            inbound.locality = self.pod(world).map(|pod| pod.locality.clone()).unwrap_or_default();
            Encoded::new(&inbound, world.version())
        });
        if self.inbound == Some(encoded.version) {
            return Ok(());
        }
        self.inbound = Some(encoded.version);
        let resource = Resource {
            version: version_text(encoded.version),
            name: SELF.to_owned(),
            aliases: Vec::new(),
            resource: Some(Any { type_url: INBOUND_TYPE.to_owned(), value: encoded.bytes }),
        };
        self.deliver(
            INBOUND_TYPE,
            vec![resource],
            vec![(self.discovery.names.of(SELF), encoded.version, encoded.made_at)],
            Vec::new(),
        )
        .await
    }

    /// Sends resources in as many responses as they need.
    async fn deliver(
        &mut self,
        kind: &'static str,
        resources: Vec<Resource>,
        versions: Vec<(Name, Version, u64)>,
        removed: Vec<Name>,
    ) -> Result<(), Status> {
        let most = RESPONSE.max(resources.iter().map(Message::encoded_len).sum::<usize>() / MOST_PARTS);
        let mut part = (Vec::new(), Vec::new());
        let mut bytes = 0;
        for (resource, version) in resources.into_iter().zip(versions) {
            let more = resource.encoded_len();
            if bytes + more > most && bytes > 0 {
                self.respond(kind, std::mem::take(&mut part), Vec::new()).await?;
                bytes = 0;
            }
            bytes += more;
            part.0.push(resource);
            part.1.push(version);
        }
        self.respond(kind, part, removed).await
    }

    async fn respond(
        &mut self,
        kind: &'static str,
        (resources, versions): (Vec<Resource>, Vec<(Name, Version, u64)>),
        removed: Vec<Name>,
    ) -> Result<(), Status> {
        if self.in_flight.len() >= MAX_UNACKNOWLEDGED {
            return Err(Status::resource_exhausted(format!(
                "{MAX_UNACKNOWLEDGED} responses were neither acknowledged nor refused"
            )));
        }
        self.nonce += 1;
        self.discovery.lock().sent(self.id, kind, versions.iter().map(|(host, version, _)| (host, *version)));
        self.in_flight.insert(self.nonce, (kind, versions));
        let response = DeltaDiscoveryResponse {
            system_version_info: self.discovery.mesh.read(World::version).to_string(),
            resources,
            type_url: kind.to_owned(),
            nonce: self.nonce.to_string(),
            removed_resources: removed.iter().map(|name| name.to_string()).collect(),
        };
        self.replies.send(Box::new(Ok(response))).await.map_err(|_| Status::cancelled("the client has disconnected"))
    }
}
