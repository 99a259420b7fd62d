//! What an agent does not answer by itself, passed on to the control plane, with a memory for when that is away.
//!
//! An agent that answers with errors whenever the control plane restarts would take every application down that asks it;
//! the last answer, marked as such, is what Consul's own cache would give. Writes and reads that are to be `consistent`
//! have no such answer.

mod memory;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, request};
use rand::RngExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::Status;
use weft_proto::v1::{Answer, Question};

use crate::answer::{self, Answered};
use crate::query::{Query, without};
use crate::refused::Refused;
use memory::{Key, Memory};

/// Queries that may block at once: each is a stream of the one connection to the control plane, which allows 200.
const BLOCKING: usize = 128;
/// Longest wait for an answer beyond what the query itself waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait for an answer where an earlier one is known.
const HEDGE: Duration = Duration::from_millis(500);
/// Pause between tries of a blocking query while the control plane is away: from this to twice as long, so that those that wait do not
/// come at once.
const RETRY: Duration = Duration::from_secs(1);
/// Headers of a request that are passed on.
const HEADERS: [&str; 3] = ["x-consul-token", "authorization", "accept"];
/// The beginning of Eureka's paths.
const EUREKA: &str = "/eureka";

/// Who answers.
pub trait Source: Send + Sync + 'static {
    /// Asks once.
    fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answer, Status>>;
}

/// An answer and, when it is a remembered one, its age.
struct Found {
    answer: Arc<Answer>,
    age: Option<Duration>,
}

/// The source and the memory of its answers.
#[derive(Clone)]
pub struct Forwarder(Arc<Inner>);

struct Inner {
    source: Box<dyn Source>,
    memory: Mutex<Memory>,
    blocking: Semaphore,
    /// The last answer took longer than [`HEDGE`], or did not come.
    slow: AtomicBool,
    /// A read finds out whether the source is still slow.
    probing: AtomicBool,
}

impl Forwarder {
    /// With an empty memory.
    pub fn new(source: impl Source) -> Forwarder {
        Forwarder(Arc::new(Inner {
            source: Box::new(source),
            memory: Mutex::default(),
            blocking: Semaphore::new(BLOCKING),
            slow: AtomicBool::new(false),
            probing: AtomicBool::new(false),
        }))
    }

    /// Passes a request on, and its answer back; a blocking query is answered when its wait is over at the latest.
    ///
    /// # Errors
    /// When the control plane is away and there is no answer to be remembered, or too many wait.
    pub async fn pass(&self, head: &request::Parts, query: &Query, body: Bytes) -> Result<Answered, Refused> {
        let mut question = Question {
            method: head.method.as_str().to_owned(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            body,
            headers: HEADERS.iter().filter_map(|name| Some(((*name).to_owned(), header(head, name)?))).collect(),
        };
        if head.method != Method::GET {
            let answer = self.once(question, PATIENCE).await.map_err(|()| away(head.uri.path()))?;
            return Ok(answered(&answer, None));
        }
        let key = [question.path.clone(), without(&question.query, &["index", "wait", "hash"])].into_iter();
        let key: Key = key.chain(HEADERS.map(|name| header(head, name).unwrap_or_default())).collect();
        let block = query.block().map_err(Refused::bad)?;
        question.query = without(&question.query, &["index", "wait"]);
        let found = match block {
            None => self.read_known(&key, question, query).await,
            Some(block) => self.block(&key, question, block, query).await,
        };
        found.map(|found| answered(&found.answer, found.age))
    }

    async fn block(
        &self,
        key: &Key,
        question: Question,
        (index, wait): (u64, Duration),
        query: &Query,
    ) -> Result<Found, Refused> {
        let _permit = self.0.blocking.try_acquire().map_err(|_| {
            let text = format!("{BLOCKING} blocking queries wait already");
            Refused::new(StatusCode::TOO_MANY_REQUESTS, text)
        })?;
        let end = Instant::now() + wait;
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let between = if question.query.is_empty() { "" } else { "&" };
            let text = format!("{}{between}index={index}&wait={}ms", question.query, left.as_millis());
            // Clients give up a sixteenth after their wait: an answer that says nothing new comes before that.
            let limit = left + (wait / 20).clamp(Duration::from_millis(20), PATIENCE);
            let found = self.read(key, Question { query: text, ..question.clone() }, limit, query).await?;
            let known = found.age.is_some() && found.answer.headers.get("x-consul-index") == Some(&index.to_string());
            if !known || Instant::now() + RETRY >= end {
                if known {
                    tokio::time::sleep_until(end).await;
                }
                return Ok(found);
            }
            // The client has what we remember: it waits for news as if nothing were amiss.
            let pause = RETRY.mul_f64(rand::rng().random_range(1.0..=2.0));
            tokio::time::sleep_until(end.min(Instant::now() + pause)).await;
        }
    }

    /// A read that does not block. What is known already is not waited for long: after [`HEDGE`] it is the answer, and while the
    /// source is slow at once.
    async fn read_known(&self, key: &Key, question: Question, query: &Query) -> Result<Found, Refused> {
        if query.has("consistent") || self.0.remembered(key).is_none() {
            return self.read(key, question, PATIENCE, query).await;
        }
        let path = question.path.clone();
        if !self.0.slow.load(Ordering::Relaxed) {
            let asking = tokio::spawn(self.clone().learn(key.clone(), question));
            // It goes on, and is remembered when it comes.
            match tokio::time::timeout(HEDGE, asking).await {
                Ok(Ok(Some(answer))) => return Ok(Found { answer, age: None }),
                Ok(_) => {}
                Err(_) => self.0.slow.store(true, Ordering::Relaxed),
            }
        } else if !self.0.probing.swap(true, Ordering::Relaxed) {
            let (this, key) = (self.clone(), key.clone());
            tokio::spawn(async move {
                this.clone().learn(key, question).await;
                this.0.probing.store(false, Ordering::Relaxed);
            });
        }
        // It may have been forgotten meanwhile.
        self.0.remembered(key).ok_or_else(|| away(&path))
    }

    /// Asks, and remembers the answer. `None`: there is none.
    async fn learn(self, key: Key, question: Question) -> Option<Arc<Answer>> {
        let (asked, path) = (Instant::now(), question.path.clone());
        let answer = Arc::new(self.once(question, PATIENCE).await.ok()?);
        self.0.slow.store(asked.elapsed() > HEDGE, Ordering::Relaxed);
        self.0.remember(&key, &path, &answer);
        Some(answer)
    }

    async fn read(&self, key: &Key, question: Question, limit: Duration, query: &Query) -> Result<Found, Refused> {
        let path = question.path.clone();
        match self.once(question, limit).await {
            Ok(answer) => {
                let answer = Arc::new(answer);
                self.0.remember(key, &path, &answer);
                Ok(Found { answer, age: None })
            }
            Err(()) if query.has("consistent") => Err(away(&path)),
            Err(()) => self.0.remembered(key).ok_or_else(|| away(&path)),
        }
    }

    async fn once(&self, question: Question, limit: Duration) -> Result<Answer, ()> {
        let path = question.path.clone();
        let failure = match tokio::time::timeout(limit, self.0.source.ask(question)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::debug!(path, "the control plane does not answer: {failure}");
        Err(())
    }
}

impl Inner {
    fn remember(&self, key: &Key, path: &str, answer: &Arc<Answer>) {
        match answer.status {
            200 => self.memory().put(key, answer),
            // That there is no such key is an answer too.
            404 if path.starts_with("/v1/kv/") => self.memory().put(key, answer),
            // What went wrong there says nothing against what is remembered.
            500.. => {}
            _ => self.memory().remove(key),
        }
    }

    fn remembered(&self, key: &Key) -> Option<Found> {
        let (answer, age) = self.memory().get(key)?;
        Some(Found { answer, age: Some(age) })
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Consul's words; clients of Eureka try another server, where they know one.
fn away(path: &str) -> Refused {
    if path.starts_with(EUREKA) {
        let text = "the control plane does not answer, and has not answered this before";
        return Refused::new(StatusCode::SERVICE_UNAVAILABLE, text);
    }
    Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "No cluster leader")
}

fn header(head: &request::Parts, name: &str) -> Option<String> {
    head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn answered(answer: &Answer, age: Option<Duration>) -> Answered {
    let mut response = Response::new(answer.body.clone());
    let status = u16::try_from(answer.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    *response.status_mut() = status.unwrap_or(StatusCode::BAD_GATEWAY);
    for (name, value) in &answer.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    if let Some(age) = age {
        answer::set(&mut response, "x-cache", "HIT");
        answer::set(&mut response, "age", &age.as_secs().to_string());
        answer::set(&mut response, "x-consul-knownleader", "false");
        answer::set(&mut response, "x-consul-lastcontact", &age.as_millis().to_string());
    }
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use http::Request;

    use super::memory::{BYTES, ENTRIES, LARGEST};
    use super::*;

    /// Answers with index 7 while it is up, and as many bytes as the path's end says; waits when asked to.
    #[derive(Default)]
    struct Fake {
        away: AtomicBool,
        /// Answers come after ten seconds.
        hangs: AtomicBool,
        status: AtomicUsize,
        asked: Mutex<Vec<Question>>,
    }

    impl Source for Arc<Fake> {
        fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answer, Status>> {
            Box::pin(async move {
                self.asked.lock().unwrap().push(question.clone());
                if self.away.load(Ordering::Relaxed) {
                    return Err(Status::unavailable("away"));
                }
                if self.hangs.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_secs(10)).await;
                }
                let query = Query::parse(&question.query);
                if let Some((7, wait)) = query.block().unwrap() {
                    tokio::time::sleep(wait).await;
                }
                let length = question.path.rsplit('/').next().and_then(|n| n.parse().ok()).unwrap_or(1);
                Ok(Answer {
                    status: u32::try_from(self.status.load(Ordering::Relaxed)).unwrap(),
                    headers: [("x-consul-index".to_owned(), "7".to_owned())].into(),
                    body: vec![b'x'; length].into(),
                })
            })
        }
    }

    fn forwarder() -> (Arc<Fake>, Forwarder) {
        let fake = Arc::new(Fake { status: AtomicUsize::new(200), ..Default::default() });
        (fake.clone(), Forwarder::new(fake))
    }

    impl Forwarder {
        async fn request(&self, method: &str, uri: &str, token: &str) -> Result<Answered, Refused> {
            let request = Request::builder().method(method).uri(uri).header("x-consul-token", token);
            let (head, ()) = request.header("cookie", "no").body(()).unwrap().into_parts();
            self.pass(&head, &Query::parse(head.uri.query().unwrap_or_default()), Bytes::from("body")).await
        }

        async fn get(&self, uri: &str) -> Result<Answered, Refused> {
            self.request("GET", uri, "").await
        }
    }

    fn age(answered: Result<Answered, Refused>) -> Option<String> {
        answered.unwrap().headers().get("age").map(|age| age.to_str().unwrap().to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_control_plane_is_away_the_last_answer_serves() {
        let (fake, forwarder) = forwarder();
        assert_eq!(age(forwarder.get("/v1/health/service/a?passing&index=3&wait=1s").await), None);
        assert_eq!(fake.asked.lock().unwrap()[0].query, "passing&index=3&wait=1000ms");
        fake.away.store(true, Ordering::Relaxed);
        tokio::time::advance(Duration::from_secs(3)).await;
        let kept = forwarder.get("/v1/health/service/a?passing").await;
        assert_eq!(kept.as_ref().unwrap().headers()["x-cache"], "HIT");
        assert_eq!(kept.as_ref().unwrap().headers()["x-consul-index"], "7");
        assert_eq!(age(kept), Some("3".into()));
        for other in ["/v1/health/service/b?passing", "/v1/health/service/a", "/v1/health/service/a?passing&consistent"]
        {
            let refused = forwarder.get(other).await.unwrap_err();
            assert_eq!((refused.status.as_u16(), refused.text.as_str()), (500, "No cluster leader"), "{other}");
        }
        assert!(forwarder.request("GET", "/v1/health/service/a?passing", "other").await.is_err(), "another token");
        // One who knows the remembered answer waits as long as it would have; one who does not has it at once.
        let start = Instant::now();
        forwarder.get("/v1/health/service/a?passing&index=6&wait=30s").await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        forwarder.get("/v1/health/service/a?passing&index=7&wait=30s").await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(30));
    }

    #[tokio::test]
    async fn each_format_is_remembered_for_those_who_take_it() {
        let (fake, forwarder) = forwarder();
        let ask = async |accept: &str| {
            let request = Request::get("/eureka/apps").header("accept", accept);
            let (head, ()) = request.body(()).unwrap().into_parts();
            forwarder.pass(&head, &Query::default(), Bytes::new()).await
        };
        ask("application/json").await.unwrap();
        fake.away.store(true, Ordering::Relaxed);
        assert_eq!(age(ask("application/json").await), Some("0".into()));
        assert_eq!(ask("application/xml").await.unwrap_err().status, 503);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_is_not_waited_for_while_the_control_plane_hangs() {
        let (fake, forwarder) = forwarder();
        assert_eq!(age(forwarder.get("/v1/catalog/services").await), None);
        fake.hangs.store(true, Ordering::Relaxed);
        let took = async |uri: &str| {
            let start = Instant::now();
            let answered = forwarder.get(uri).await;
            (start.elapsed(), answered)
        };
        let (elapsed, answered) = took("/v1/catalog/services").await;
        assert_eq!(elapsed, HEDGE);
        let headers = answered.unwrap().headers().clone();
        assert_eq!(
            (headers["x-consul-knownleader"].as_bytes(), headers["x-consul-lastcontact"].as_bytes()),
            (&b"false"[..], &b"500"[..])
        );
        for _ in 0..50 {
            let (elapsed, answered) = took("/v1/catalog/services").await;
            assert_eq!((elapsed, age(answered)), (Duration::ZERO, Some("0".to_owned())));
        }
        tokio::task::yield_now().await;
        assert_eq!(fake.asked.lock().unwrap().len(), 3, "one looks whether it is back");
        // What has never been answered is waited for.
        assert_eq!(took("/v1/catalog/nodes").await.0, PATIENCE);
        let consistent = took("/v1/catalog/services?consistent").await;
        assert!(consistent.0 == PATIENCE && consistent.1.is_err());
        fake.hangs.store(false, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(10)).await;
        forwarder.get("/v1/catalog/services").await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(age(forwarder.get("/v1/catalog/services").await), None, "it is back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_blocking_query_goes_on_when_the_control_plane_is_back() {
        let (fake, forwarder) = forwarder();
        forwarder.get("/v1/catalog/services").await.unwrap();
        fake.away.store(true, Ordering::Relaxed);
        let start = Instant::now();
        let back = async {
            tokio::time::sleep(Duration::from_millis(10_500)).await;
            fake.away.store(false, Ordering::Relaxed);
        };
        let (answered, ()) = tokio::join!(forwarder.get("/v1/catalog/services?index=7&wait=30s"), back);
        assert_eq!((age(answered), start.elapsed()), (None, Duration::from_secs(30)));
        // One to two seconds lie between its tries.
        let last = fake.asked.lock().unwrap().last().unwrap().query.clone();
        let left = last.strip_prefix("index=7&wait=").and_then(|left| left.strip_suffix("ms")).unwrap();
        assert!((17_500..=19_500).contains(&left.parse::<u64>().unwrap()), "{last}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_is_held_and_not_exceeded_by_a_sixteenth() {
        let (_, forwarder) = forwarder();
        for wait in [Duration::from_secs(1), Duration::from_secs(300)] {
            let start = Instant::now();
            assert_eq!(age(forwarder.get(&format!("/v1/a?index=7&wait={}s", wait.as_secs())).await), None);
            assert!(start.elapsed() >= wait && start.elapsed() <= wait + wait / 16, "{:?}", start.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_may_wait_and_no_more() {
        let (_, forwarder) = forwarder();
        let waiting = futures::future::join_all((0..BLOCKING).map(|_| forwarder.get("/v1/a?index=7&wait=10s")));
        let one_more = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            (forwarder.get("/v1/a?index=7&wait=10s").await.unwrap_err().status, forwarder.get("/v1/a").await.is_ok())
        };
        let (waited, one_more) = tokio::join!(waiting, one_more);
        assert!(waited.iter().all(Result::is_ok));
        assert_eq!(one_more, (StatusCode::TOO_MANY_REQUESTS, true));
    }

    #[tokio::test]
    async fn writes_go_through_or_fail_and_are_never_remembered() {
        let (fake, forwarder) = forwarder();
        assert_eq!(forwarder.request("PUT", "/v1/kv/a?cas=1", "secret").await.unwrap().status(), 200);
        {
            let asked = fake.asked.lock().unwrap();
            assert_eq!(
                (asked[0].method.as_str(), asked[0].query.as_str(), &asked[0].body[..]),
                ("PUT", "cas=1", &b"body"[..])
            );
            assert_eq!(asked[0].headers, [("x-consul-token".to_owned(), "secret".to_owned())].into());
        }
        fake.away.store(true, Ordering::Relaxed);
        for method in ["PUT", "DELETE", "GET"] {
            let refused = forwarder.request(method, "/v1/kv/a?cas=1", "secret").await.unwrap_err();
            assert_eq!(refused.text, "No cluster leader", "{method}");
        }
    }

    #[tokio::test]
    async fn only_answers_are_remembered() {
        for (path, status, kept) in [
            ("/v1/kv/a", 200, true),
            ("/v1/kv/a", 404, true),
            ("/v1/catalog/services", 404, false),
            ("/v1/catalog/services", 403, false),
            ("/v1/catalog/services", 500, true),
        ] {
            let (fake, forwarder) = forwarder();
            forwarder.get(path).await.unwrap();
            fake.status.store(status, Ordering::Relaxed);
            assert_eq!(usize::from(forwarder.get(path).await.unwrap().status().as_u16()), status);
            fake.away.store(true, Ordering::Relaxed);
            assert_eq!(forwarder.get(path).await.is_ok(), kept, "{path} {status}");
        }
    }

    #[tokio::test]
    async fn the_memory_is_bounded() {
        let (fake, forwarder) = forwarder();
        for n in 0..2 * ENTRIES {
            forwarder.get(&format!("/v1/health/service/{n}?n={n}")).await.unwrap();
        }
        assert_eq!(forwarder.0.memory().kept.len(), ENTRIES);
        for n in 0..2 * BYTES / LARGEST {
            forwarder.get(&format!("/v1/a/{}?n={n}", LARGEST - 1000)).await.unwrap();
        }
        let (counted, bytes) = {
            let memory = forwarder.0.memory();
            (memory.kept.values().map(|kept| kept.bytes).sum::<usize>(), memory.bytes)
        };
        assert!(counted == bytes && bytes <= BYTES && bytes > BYTES / 2, "{bytes}");
        forwarder.get(&format!("/v1/a/{LARGEST}")).await.unwrap();
        fake.away.store(true, Ordering::Relaxed);
        assert!(forwarder.get(&format!("/v1/a/{LARGEST}")).await.is_err(), "too large");
    }
}
