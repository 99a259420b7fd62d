//! Identities of pods: the token of a service account is reviewed by the API server, and its pod is looked up.
//!
//! A token is believed if the API server does, if it is for the mesh's audience, and if it is bound to a pod that is there
//! and has the address of the peer: a token that was taken from a pod is of no use elsewhere. Nothing is cached here: a
//! sidecar shows its token once and renews by its certificate, and the API server itself remembers a review for ten
//! seconds.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, PostParams};
use serde::Deserialize;
use tokio::sync::Semaphore;
use weft_identity::token::decode;
use weft_injection::AUDIENCE;

/// The annotation of a pod with the names that its programs may register by Consul's and Eureka's APIs, separated by commas.
pub const SERVICES: &str = "weft.dev/services";
/// Reviews at a time: others wait, and peers without a valid token cannot occupy the API server.
const CONCURRENT: usize = 16;
/// Longest wait for a review, with its turn.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Pause until the address of a pod is looked for again.
const ADDRESS: Duration = Duration::from_millis(250);
/// Subject of the token of a service account (Kubernetes, "Managing Service Accounts").
const SUBJECT: &str = "system:serviceaccount:";
/// Group of all service accounts.
const GROUP: &str = "system:serviceaccounts";
/// Names of a pod's services, at most.
const MOST_SERVICES: usize = 64;

/// Reviews tokens.
pub struct Accounts {
    client: Client,
    /// Whether a peer must have an address of its pod.
    check_address: bool,
    slots: Semaphore,
}

/// The entitlement of a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Namespace of the workload and its service account.
    pub namespace: String,
    /// The service account.
    pub name: String,
    /// Services that its programs may register, or the name of a grant.
    pub services: Vec<String>,
}

/// The reason why a token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The token, its pod or its peer.
    #[error("{0}")]
    Refused(String),
    /// The API server does not answer: the same token may be accepted later.
    #[error("{0}")]
    Unavailable(String),
}

/// The owner of a reviewed token.
#[derive(Debug, PartialEq, Eq)]
struct Reviewed {
    namespace: String,
    name: String,
    pod: String,
    uid: String,
}

/// The claims of a token that are looked at before the API server is.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(default)]
    aud: Audiences,
}

/// RFC 7519, section 4.1.3: one audience or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Audiences {
        Audiences::Several(Vec::new())
    }
}

impl Accounts {
    /// Reviews by the API server of `client`. `check_address`: whether a peer must have an address of its pod, which is
    /// not so where a network translates addresses between pods and the control plane.
    pub fn new(client: Client, check_address: bool) -> Accounts {
        Accounts { client, check_address, slots: Semaphore::new(CONCURRENT) }
    }

    /// Whether a text has the form of such a token.
    pub fn is_token(text: &str) -> bool {
        claims(text).is_ok()
    }

    /// The account of the token that a peer at `remote` shows.
    ///
    /// # Errors
    /// If it is not valid, or the API server cannot tell.
    pub async fn review(&self, token: &str, remote: IpAddr) -> Result<Account, Refusal> {
        let claims = claims(token)?;
        let audiences = match claims.aud {
            Audiences::One(one) => vec![one],
            Audiences::Several(several) => several,
        };
        if !audiences.iter().any(|audience| audience == AUDIENCE) {
            return refused(format!(
                "the token of {} is for the audience {audiences:?}, not {AUDIENCE}: mount a projected token with `audience: {AUDIENCE}`",
                claims.sub
            ));
        }
        let answer = async {
            // Never closed.
            let slot = self.slots.acquire().await.ok();
            let reviewed = self.reviewed(token).await?;
            let mut pod = self.pod(&reviewed).await?;
            // The kubelet reports the address of a pod some time after its containers have started.
            drop(slot);
            while self.check_address && addresses(&pod).is_empty() && is_of(&pod, &reviewed) {
                tokio::time::sleep(ADDRESS).await;
                let _slot = self.slots.acquire().await.ok();
                pod = self.pod(&reviewed).await?;
            }
            account(reviewed, &pod, self.check_address.then_some(remote))
        };
        let late =
            |_| Refusal::Unavailable(format!("the Kubernetes API has not answered within {} s", TIMEOUT.as_secs()));
        tokio::time::timeout(TIMEOUT, answer).await.unwrap_or_else(|e| Err(late(e)))
    }

    async fn reviewed(&self, token: &str) -> Result<Reviewed, Refusal> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let made = Api::<TokenReview>::all(self.client.clone()).create(&PostParams::default(), &review).await;
        reviewed(made.map_err(|e| failed("review the token", &e))?.status)
    }

    async fn pod(&self, owner: &Reviewed) -> Result<Pod, Refusal> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &owner.namespace);
        match pods.get_opt(&owner.pod).await.map_err(|e| failed("look up the pod", &e))? {
            Some(pod) => Ok(pod),
            None => refused(format!("the pod {}/{} of the token is gone", owner.namespace, owner.pod)),
        }
    }
}

fn refused<T>(text: String) -> Result<T, Refusal> {
    Err(Refusal::Refused(text))
}

fn failed(what: &str, error: &kube::Error) -> Refusal {
    Refusal::Unavailable(format!("the Kubernetes API could not {what}: {error}"))
}

fn claims(token: &str) -> Result<Claims, Refusal> {
    let payload = token.split('.').nth(1).filter(|_| token.split('.').count() == 3);
    let claims: Option<Claims> = payload.and_then(|payload| decode(payload).ok());
    match claims.filter(|claims| claims.sub.starts_with(SUBJECT)) {
        Some(claims) => Ok(claims),
        None => refused("this is not a token of a service account (a JSON Web Token with that subject)".to_owned()),
    }
}

/// The owner of a token by the API server's review.
fn reviewed(status: Option<TokenReviewStatus>) -> Result<Reviewed, Refusal> {
    let status = status.unwrap_or_default();
    // A wrong audience is an error, not `authenticated: false`.
    if let Some(error) = status.error.filter(|error| !error.is_empty()) {
        return refused(format!("the Kubernetes API refuses the token: {error}"));
    }
    if status.authenticated != Some(true) {
        return refused("the Kubernetes API refuses the token: it is expired, or its pod is gone".to_owned());
    }
    if !status.audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE) {
        return refused(format!("the Kubernetes API has not compared the token's audience with {AUDIENCE}"));
    }
    let user = status.user.unwrap_or_default();
    let username = user.username.unwrap_or_default();
    let account = username.strip_prefix(SUBJECT).and_then(|account| account.split_once(':'));
    let is_member = user.groups.unwrap_or_default().iter().any(|group| group == GROUP);
    let Some((namespace, name)) = account.filter(|_| is_member) else {
        return refused(format!("the token is that of {username}, not of a service account"));
    };
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| extra.get(&format!("authentication.kubernetes.io/{key}")).and_then(|values| values.first());
    match (one("pod-name"), one("pod-uid")) {
        (Some(pod), Some(uid)) => {
            Ok(Reviewed { namespace: namespace.to_owned(), name: name.to_owned(), pod: pod.clone(), uid: uid.clone() })
        }
        _ => refused(format!(
            "the token of {username} is not bound to a pod: mount a projected token (`serviceAccountToken`)"
        )),
    }
}

/// Whether a pod is the one that a token is bound to.
fn is_of(pod: &Pod, owner: &Reviewed) -> bool {
    pod.metadata.uid.as_ref() == Some(&owner.uid)
}

fn addresses(pod: &Pod) -> Vec<&str> {
    let status = pod.status.as_ref();
    let several = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten().map(|one| &one.ip);
    let one = status.and_then(|status| status.pod_ip.as_ref());
    several.chain(one).map(String::as_str).collect()
}

/// The account of a token whose owner is the pod of that name. `remote`: the peer's address, if it must be the pod's.
fn account(owner: Reviewed, pod: &Pod, remote: Option<IpAddr>) -> Result<Account, Refusal> {
    let name = || format!("{}/{}", owner.namespace, owner.pod);
    if !is_of(pod, &owner) {
        return refused(format!("the pod {} of the token has been replaced by another of its name", name()));
    }
    let status = pod.status.as_ref();
    if let Some(phase @ ("Failed" | "Succeeded")) = status.and_then(|status| status.phase.as_deref()) {
        return refused(format!("the pod {} of the token has ended ({phase})", name()));
    }
    if let Some(remote) = remote {
        let remote = remote.to_canonical();
        let addresses = addresses(pod);
        if !addresses.iter().any(|address| address.parse() == Ok(remote)) {
            let addresses = if addresses.is_empty() { "none yet".to_owned() } else { addresses.join(", ") };
            return refused(format!(
                "the token of the pod {} is shown by {remote}, and the pod's addresses are: {addresses}",
                name()
            ));
        }
    }
    let services = services(pod).map_err(|e| Refusal::Refused(format!("the pod {}: {e}", name())))?;
    Ok(Account { namespace: owner.namespace, name: owner.name, services })
}

/// The names of the pod's annotation.
fn services(pod: &Pod) -> Result<Vec<String>, String> {
    let text = pod.metadata.annotations.as_ref().and_then(|all| all.get(SERVICES)).map_or("", String::as_str);
    let names: Vec<String> =
        text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if names.len() > MOST_SERVICES {
        return Err(format!(
            "the annotation {SERVICES} has {} names, at most {MOST_SERVICES} are allowed",
            names.len()
        ));
    }
    match names.iter().find(|name| !weft_policy::is_label(name)) {
        Some(name) => Err(format!("the annotation {SERVICES} has {name:?}, which is no name of a service")),
        None => Ok(names),
    }
}

#[cfg(test)]
mod tests;
