//! Resolution of endpoints that are names outside the mesh.
//!
//! A ServiceEntry with `resolution: DNS` has every address of a name as an endpoint (Envoy's STRICT_DNS). Names are resolved
//! again when the records' time to live has ended; while no answer comes the last one stays.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::resolve::lookup::{self, Found};

/// Names and their addresses, sorted.
pub type Addresses = Arc<HashMap<Arc<str>, Vec<IpAddr>>>;

/// After a failure.
const RETRY: Duration = Duration::from_secs(5);
/// Look-ups in progress at a time.
const ASKING: usize = 16;

/// The interface to the directory: it sets the wanted names and reads their addresses.
#[derive(Debug)]
pub struct Resolution {
    wanted: watch::Sender<BTreeSet<Arc<str>>>,
    known: watch::Receiver<Addresses>,
}

impl Resolution {
    /// Begins; nothing is wanted yet.
    pub fn start() -> Resolution {
        Resolution::by(|name| async move { lookup::addresses(&name).await })
    }

    fn by<F>(look_up: impl Fn(Arc<str>) -> F + Send + 'static) -> Resolution
    where
        F: Future<Output = Option<Found>> + Send + 'static,
    {
        let (wanted, names) = watch::channel(BTreeSet::new());
        let (addresses, known) = watch::channel(Addresses::default());
        tokio::spawn(keep(look_up, names, addresses));
        Resolution { wanted, known }
    }

    /// Only these are wanted from now on.
    pub fn want(&self, names: BTreeSet<Arc<str>>) {
        self.wanted.send_if_modified(|was| {
            let other = *was != names;
            *was = names;
            other
        });
    }

    /// The known addresses. A name that is missing was never resolved.
    pub fn known(&mut self) -> Addresses {
        self.known.borrow_and_update().clone()
    }

    /// Waits until that is something else.
    pub async fn changed(&mut self) {
        if self.known.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

async fn keep<F>(
    look_up: impl Fn(Arc<str>) -> F,
    mut names: watch::Receiver<BTreeSet<Arc<str>>>,
    addresses: watch::Sender<Addresses>,
) where
    F: Future<Output = Option<Found>> + Send + 'static,
{
    let mut due: BTreeMap<Arc<str>, Instant> = BTreeMap::new();
    let mut asking: JoinSet<(Arc<str>, Option<Found>)> = JoinSet::new();
    loop {
        let now = Instant::now();
        let ready: Vec<Arc<str>> = due.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
        for name in ready.into_iter().take(ASKING.saturating_sub(asking.len())) {
            // Resolved again when the answer has come.
            due.remove(&name);
            let answer = look_up(name.clone());
            asking.spawn(async move { (name, answer.await) });
        }
        let next = due.values().min().copied().filter(|_| asking.len() < ASKING);
        tokio::select! {
            changed = names.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = names.borrow_and_update().clone();
                due.retain(|name, _| wanted.contains(name));
                let known = addresses.borrow().clone();
                for name in wanted.iter().filter(|name| !known.contains_key(*name)) {
                    due.entry(name.clone()).or_insert(now);
                }
                if known.keys().any(|name| !wanted.contains(name)) {
                    let left = known.iter().filter(|(name, _)| wanted.contains(*name));
                    addresses.send_replace(Arc::new(left.map(|(n, a)| (n.clone(), a.clone())).collect()));
                }
            }
            Some(answer) = asking.join_next(), if !asking.is_empty() => {
                let Ok((name, found)) = answer else { continue };
                if !names.borrow().contains(&name) {
                    continue;
                }
                let again = found.as_ref().map_or(RETRY, |(_, ttl)| *ttl);
                due.insert(name.clone(), Instant::now() + again);
                let Some((found, _)) = found else { continue };
                let known = addresses.borrow().clone();
                if known.get(&name) != Some(&found) {
                    tracing::debug!(%name, ?found, "resolved");
                    let mut known = (*known).clone();
                    known.insert(name, found);
                    addresses.send_replace(Arc::new(known));
                }
            }
            () = tokio::time::sleep_until(next.unwrap_or(now)), if next.is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn names(names: &[&str]) -> BTreeSet<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_resolved_again_when_their_ttl_ends() {
        let answers: Arc<Mutex<Vec<Option<Found>>>> = Arc::new(Mutex::new(vec![
            Some((vec![ip("10.0.0.1")], Duration::from_secs(30))),
            Some((vec![ip("10.0.0.1"), ip("10.0.0.2")], Duration::from_secs(30))),
            None,
            Some((vec![ip("10.0.0.3")], Duration::from_secs(30))),
        ]));
        let left = answers.clone();
        let mut resolution = Resolution::by(move |_| {
            let mut answers = answers.lock().unwrap();
            let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
            std::future::ready(answer)
        });
        let start = Instant::now();
        resolution.want(names(&["db.test"]));
        let mut seen = Vec::new();
        for _ in 0..3 {
            resolution.changed().await;
            let known = resolution.known();
            seen.push((start.elapsed().as_secs(), known["db.test"].len()));
        }
        // The failure changes nothing, and is soon tried again.
        assert_eq!(seen, [(0, 1), (30, 2), (65, 1)]);
        assert_eq!(left.lock().unwrap().len(), 1);
        resolution.want(names(&[]));
        resolution.changed().await;
        assert!(resolution.known().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn look_ups_in_progress_are_bounded() {
        let mut resolution = Resolution::by(|_| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((vec![ip("10.0.0.1")], Duration::from_secs(3600)))
        });
        let many: Vec<String> = (0..40).map(|n| format!("n{n}.test")).collect();
        resolution.want(many.iter().map(|name| Arc::from(name.as_str())).collect());
        let start = Instant::now();
        while resolution.known().len() < 40 {
            resolution.changed().await;
        }
        assert_eq!(start.elapsed().as_secs(), 3);
    }
}
