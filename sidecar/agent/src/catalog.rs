//! What the rest of the mesh has registered, asked of the control plane, with a memory for when it is away.
//!
//! An agent that answers with errors whenever the control plane restarts would take every application down that asks it;
//! the last answer, marked as such, is what Consul's own cache would give.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use http::StatusCode;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::Status;
use weft_proto::v1::{Block, CatalogInstance, ServiceTags};

use super::refused::Refused;

/// Answers that are remembered.
const CACHE: usize = 256;
/// Queries that may block at once: each is a stream of the one connection to the control plane, which allows 200.
const BLOCKING: usize = 128;
/// Longest wait for an answer beyond what the query itself waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between tries of a blocking query while the control plane is away.
const RETRY: Duration = Duration::from_secs(1);

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Question {
    /// Instances of a service.
    Instances(String),
    /// All services with their tags.
    Services,
}

/// An answer; of the two lists the one that was asked for.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// Consul's index.
    pub index: u64,
    /// To [`Question::Instances`].
    pub instances: Vec<CatalogInstance>,
    /// To [`Question::Services`].
    pub services: Vec<ServiceTags>,
}

/// Who answers.
pub trait Source: Send + Sync + 'static {
    /// Asks once.
    fn ask(&self, question: Question, block: Option<Block>) -> BoxFuture<'_, Result<Answer, Status>>;
    /// Where the control plane is.
    fn leader(&self) -> String;
}

/// An answer and, when it is a remembered one, its age.
#[derive(Debug, Clone)]
pub struct Found {
    /// The answer.
    pub answer: Arc<Answer>,
    /// `None`: fresh.
    pub age: Option<Duration>,
}

/// The source and the memory of its answers.
pub struct Catalog {
    source: Box<dyn Source>,
    cache: Mutex<HashMap<Question, (Instant, Arc<Answer>)>>,
    blocking: Semaphore,
}

impl Catalog {
    /// With an empty memory.
    pub fn new(source: impl Source) -> Catalog {
        Catalog { source: Box::new(source), cache: Mutex::default(), blocking: Semaphore::new(BLOCKING) }
    }

    /// Where the control plane is.
    pub fn leader(&self) -> String {
        self.source.leader()
    }

    /// Answers; with `block` when the index has passed the given one, or after the wait.
    ///
    /// # Errors
    /// When the control plane is away and the question was never asked before, or too many wait.
    pub async fn ask(&self, question: Question, block: Option<(u64, Duration)>) -> Result<Found, Refused> {
        let Some((index, wait)) = block else {
            return self.once(&question, None, PATIENCE).await;
        };
        let _permit = self.blocking.try_acquire().map_err(|_| {
            let text = format!("{BLOCKING} blocking queries wait already");
            Refused::new(StatusCode::TOO_MANY_REQUESTS, text)
        })?;
        let end = Instant::now() + wait;
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let wait_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
            // Clients give up a sixteenth after their wait: an answer that says nothing new comes before that.
            let limit = left + (wait / 20).clamp(Duration::from_millis(20), PATIENCE);
            let found = self.once(&question, Some(Block { index, wait_ms }), limit).await?;
            let known = found.age.is_some() && found.answer.index == index;
            if !known || Instant::now() + RETRY >= end {
                if known {
                    tokio::time::sleep_until(end).await;
                }
                return Ok(found);
            }
            // The client has what we remember: it waits for news as if nothing were amiss.
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn once(&self, question: &Question, block: Option<Block>, limit: Duration) -> Result<Found, Refused> {
        let answer = tokio::time::timeout(limit, self.source.ask(question.clone(), block)).await;
        let failure = match answer {
            Ok(Ok(answer)) => {
                let answer = Arc::new(answer);
                self.remember(question, &answer);
                return Ok(Found { answer, age: None });
            }
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::debug!(?question, "the control plane does not answer: {failure}");
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        match cache.get(question) {
            Some((at, answer)) => Ok(Found { answer: answer.clone(), age: Some(at.elapsed()) }),
            None => Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "No cluster leader")),
        }
    }

    fn remember(&self, question: &Question, answer: &Arc<Answer>) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE && !cache.contains_key(question) {
            let oldest = cache.iter().min_by_key(|(_, (at, _))| *at).map(|(question, _)| question.clone());
            oldest.and_then(|oldest| cache.remove(&oldest));
        }
        cache.insert(question.clone(), (Instant::now(), answer.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Answers with index 7 while it is up; waits when asked to.
    struct Fake(Arc<AtomicBool>);

    impl Source for Fake {
        fn ask(&self, _: Question, block: Option<Block>) -> BoxFuture<'_, Result<Answer, Status>> {
            Box::pin(async move {
                if !self.0.load(Ordering::Relaxed) {
                    return Err(Status::unavailable("away"));
                }
                if let Some(block) = block.filter(|b| b.index == 7) {
                    tokio::time::sleep(Duration::from_millis(block.wait_ms)).await;
                }
                Ok(Answer { index: 7, ..Default::default() })
            })
        }

        fn leader(&self) -> String {
            String::new()
        }
    }

    fn named(name: &str) -> Question {
        Question::Instances(name.into())
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_control_plane_is_away_the_last_answer_serves() {
        let up = Arc::new(AtomicBool::new(true));
        let catalog = Catalog::new(Fake(up.clone()));
        assert_eq!(catalog.ask(named("a"), None).await.unwrap().age, None);
        up.store(false, Ordering::Relaxed);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(catalog.ask(named("a"), None).await.unwrap().age, Some(Duration::from_secs(3)));
        let refused = catalog.ask(named("b"), None).await.unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.text.as_str()), (500, "No cluster leader"));
        // One who knows the remembered answer waits as long as it would have; one who does not has it at once.
        let start = Instant::now();
        catalog.ask(named("a"), Some((6, Duration::from_secs(30)))).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        catalog.ask(named("a"), Some((7, Duration::from_secs(30)))).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_is_held_and_not_exceeded_by_a_sixteenth() {
        let catalog = Catalog::new(Fake(Arc::new(AtomicBool::new(true))));
        for wait in [Duration::from_secs(1), Duration::from_secs(300)] {
            let start = Instant::now();
            assert_eq!(catalog.ask(named("a"), Some((7, wait))).await.unwrap().age, None);
            assert!(start.elapsed() >= wait && start.elapsed() <= wait + wait / 16, "{:?}", start.elapsed());
        }
    }

    #[tokio::test]
    async fn the_memory_is_bounded() {
        let catalog = Catalog::new(Fake(Arc::new(AtomicBool::new(true))));
        for n in 0..2 * CACHE {
            catalog.ask(named(&n.to_string()), None).await.unwrap();
        }
        assert_eq!(catalog.cache.lock().unwrap().len(), CACHE);
    }
}
