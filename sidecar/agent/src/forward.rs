//! Forwarding of requests to the control plane, with a cache of its answers for times when it is unavailable.
//!
//! An agent that fails during every restart of the control plane would take down the applications that depend on it;
//! the last answer, marked with its age, corresponds to Consul's own agent cache. Writes and reads with `consistent`
//! are never answered from the cache.

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
use weft_registry_api::error::ApiError;
use weft_registry_api::query::{Query, without};
use weft_registry_api::reply::{self, Reply};

use memory::{Key, Memory};

/// Concurrent blocking queries: each is a stream of the single connection to the control plane, which allows 200.
const BLOCKING: usize = 128;
/// Maximum wait for an answer beyond the query's own wait.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum wait for an answer if an earlier one is cached.
const HEDGE: Duration = Duration::from_millis(500);
/// Pause between attempts of a blocking query while the control plane is unavailable: from this to twice as long, so
/// that waiting queries do not all reconnect at once.
const RETRY: Duration = Duration::from_secs(1);
/// Request headers that are forwarded.
const HEADERS: [&str; 3] = ["x-consul-token", "authorization", "accept"];
/// Prefix of Eureka's paths.
const EUREKA: &str = "/eureka";

/// Answers requests for the rest of the mesh.
pub trait Source: Send + Sync + 'static {
    /// Sends one request.
    fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answer, Status>>;
}

/// An answer and, if it was cached, its age.
struct TimedAnswer {
    answer: Arc<Answer>,
    age: Option<Duration>,
}

/// The source and the cache of its answers.
#[derive(Clone)]
pub struct Forwarder(Arc<Inner>);

struct Inner {
    source: Box<dyn Source>,
    memory: Mutex<Memory>,
    blocking: Semaphore,
    /// Whether the last answer took longer than [`HEDGE`], or did not arrive.
    slow: AtomicBool,
    /// Whether a read is checking if the source is still slow.
    probing: AtomicBool,
}

impl Forwarder {
    /// Starts with an empty cache.
    pub fn new(source: impl Source) -> Forwarder {
        Forwarder(Arc::new(Inner {
            source: Box::new(source),
            memory: Mutex::default(),
            blocking: Semaphore::new(BLOCKING),
            slow: AtomicBool::new(false),
            probing: AtomicBool::new(false),
        }))
    }

    /// Forwards a request and returns its answer; a blocking query returns when its wait is over at the latest.
    ///
    /// # Errors
    /// If the control plane is unavailable and no cached answer exists, or too many queries wait.
    pub async fn pass(&self, head: &request::Parts, query: &Query, body: Bytes) -> Result<Reply, ApiError> {
        let mut question = Question {
            method: head.method.as_str().to_owned(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            body,
            headers: HEADERS.iter().filter_map(|name| Some(((*name).to_owned(), header(head, name)?))).collect(),
        };
        if head.method != Method::GET {
            let answer = self.once(question, PATIENCE).await.map_err(|()| unavailable(head.uri.path()))?;
            return Ok(response(&answer, None));
        }
        let key = [question.path.clone(), without(&question.query, &["index", "wait", "hash"])].into_iter();
        let key: Key = key.chain(HEADERS.map(|name| header(head, name).unwrap_or_default())).collect();
        let block = query.block().map_err(ApiError::bad_request)?;
        question.query = without(&question.query, &["index", "wait"]);
        let found = match block {
            None => self.read_known(&key, question, query).await,
            Some(block) => self.block(&key, question, block, query).await,
        };
        found.map(|found| response(&found.answer, found.age))
    }

    async fn block(
        &self,
        key: &Key,
        question: Question,
        (index, wait): (u64, Duration),
        query: &Query,
    ) -> Result<TimedAnswer, ApiError> {
        let _permit = self.0.blocking.try_acquire().map_err(|_| {
            let text = format!("{BLOCKING} blocking queries are waiting already");
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, text)
        })?;
        let end = Instant::now() + wait;
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let between = if question.query.is_empty() { "" } else { "&" };
            let text = format!("{}{between}index={index}&wait={}ms", question.query, left.as_millis());
            // Clients give up a sixteenth after their wait: an answer without news must arrive before.
            let limit = left + (wait / 20).clamp(Duration::from_millis(20), PATIENCE);
            let found = self.read(key, Question { query: text, ..question.clone() }, limit, query).await?;
            let known = found.age.is_some() && found.answer.headers.get("x-consul-index") == Some(&index.to_string());
            if !known || Instant::now() + RETRY >= end {
                if known {
                    tokio::time::sleep_until(end).await;
                }
                return Ok(found);
            }
            // The client already has the cached answer: it waits for news as usual.
            let pause = RETRY.mul_f64(rand::rng().random_range(1.0..=2.0));
            tokio::time::sleep_until(end.min(Instant::now() + pause)).await;
        }
    }

    /// A read that does not block. If an answer is cached, it is used after [`HEDGE`], or at once while the source is
    /// slow.
    async fn read_known(&self, key: &Key, question: Question, query: &Query) -> Result<TimedAnswer, ApiError> {
        if query.has("consistent") || self.0.remembered(key).is_none() {
            return self.read(key, question, PATIENCE, query).await;
        }
        let path = question.path.clone();
        if !self.0.slow.load(Ordering::Relaxed) {
            let asking = tokio::spawn(self.clone().learn(key.clone(), question));
            // The request continues, and its answer is cached when it arrives.
            match tokio::time::timeout(HEDGE, asking).await {
                Ok(Ok(Some(answer))) => return Ok(TimedAnswer { answer, age: None }),
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
        // It may have been evicted in the meantime.
        self.0.remembered(key).ok_or_else(|| unavailable(&path))
    }

    /// Sends a request and caches its answer. `None`: there was none.
    async fn learn(self, key: Key, question: Question) -> Option<Arc<Answer>> {
        let (start, path) = (Instant::now(), question.path.clone());
        let answer = Arc::new(self.once(question, PATIENCE).await.ok()?);
        self.0.slow.store(start.elapsed() > HEDGE, Ordering::Relaxed);
        self.0.remember(&key, &path, &answer);
        Some(answer)
    }

    async fn read(
        &self,
        key: &Key,
        question: Question,
        limit: Duration,
        query: &Query,
    ) -> Result<TimedAnswer, ApiError> {
        let path = question.path.clone();
        match self.once(question, limit).await {
            Ok(answer) => {
                let answer = Arc::new(answer);
                self.0.remember(key, &path, &answer);
                Ok(TimedAnswer { answer, age: None })
            }
            Err(()) if query.has("consistent") => Err(unavailable(&path)),
            Err(()) => self.0.remembered(key).ok_or_else(|| unavailable(&path)),
        }
    }

    async fn once(&self, question: Question, limit: Duration) -> Result<Answer, ()> {
        let path = question.path.clone();
        let failure = match tokio::time::timeout(limit, self.0.source.ask(question)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => "no answer within the timeout".to_owned(),
        };
        tracing::debug!(path, "no answer from the control plane: {failure}");
        Err(())
    }
}

impl Inner {
    fn remember(&self, key: &Key, path: &str, answer: &Arc<Answer>) {
        match answer.status {
            200 => self.memory().put(key, answer),
            // The absence of a key is an answer too.
            404 if path.starts_with("/v1/kv/") => self.memory().put(key, answer),
            // A server error does not invalidate the cached answer.
            500.. => {}
            _ => self.memory().remove(key),
        }
    }

    fn remembered(&self, key: &Key) -> Option<TimedAnswer> {
        let (answer, age) = self.memory().get(key)?;
        Some(TimedAnswer { answer, age: Some(age) })
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error in Consul's words; clients of Eureka then try another server, if they know one.
fn unavailable(path: &str) -> ApiError {
    if path.starts_with(EUREKA) {
        let text = "the control plane is unavailable, and no earlier answer is cached";
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text);
    }
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "No cluster leader")
}

fn header(head: &request::Parts, name: &str) -> Option<String> {
    head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn response(answer: &Answer, age: Option<Duration>) -> Reply {
    let mut response = Response::new(answer.body.clone());
    let status = u16::try_from(answer.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    *response.status_mut() = status.unwrap_or(StatusCode::BAD_GATEWAY);
    for (name, value) in &answer.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    if let Some(age) = age {
        reply::set(&mut response, "x-cache", "HIT");
        reply::set(&mut response, "age", &age.as_secs().to_string());
        reply::set(&mut response, "x-consul-knownleader", "false");
        reply::set(&mut response, "x-consul-lastcontact", &age.as_millis().to_string());
    }
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use http::Request;

    use super::memory::{BYTES, ENTRIES, LARGEST};
    use super::*;

    /// Answers with index 7 while it is available, with as many bytes as the path's last segment; waits on request.
    #[derive(Default)]
    struct Fake {
        unavailable: AtomicBool,
        /// Delays answers by ten seconds.
        hangs: AtomicBool,
        status: AtomicUsize,
        questions: Mutex<Vec<Question>>,
    }

    impl Source for Arc<Fake> {
        fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answer, Status>> {
            Box::pin(async move {
                self.questions.lock().unwrap().push(question.clone());
                if self.unavailable.load(Ordering::Relaxed) {
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
        async fn request(&self, method: &str, uri: &str, token: &str) -> Result<Reply, ApiError> {
            let request = Request::builder().method(method).uri(uri).header("x-consul-token", token);
            let (head, ()) = request.header("cookie", "no").body(()).unwrap().into_parts();
            self.pass(&head, &Query::parse(head.uri.query().unwrap_or_default()), Bytes::from("body")).await
        }

        async fn get(&self, uri: &str) -> Result<Reply, ApiError> {
            self.request("GET", uri, "").await
        }
    }

    fn age(reply: Result<Reply, ApiError>) -> Option<String> {
        reply.unwrap().headers().get("age").map(|age| age.to_str().unwrap().to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn cached_answers_are_used_while_the_control_plane_is_unavailable() {
        let (fake, forwarder) = forwarder();
        assert_eq!(age(forwarder.get("/v1/health/service/a?passing&index=3&wait=1s").await), None);
        assert_eq!(fake.questions.lock().unwrap()[0].query, "passing&index=3&wait=1000ms");
        fake.unavailable.store(true, Ordering::Relaxed);
        tokio::time::advance(Duration::from_secs(3)).await;
        let cached = forwarder.get("/v1/health/service/a?passing").await;
        assert_eq!(cached.as_ref().unwrap().headers()["x-cache"], "HIT");
        assert_eq!(cached.as_ref().unwrap().headers()["x-consul-index"], "7");
        assert_eq!(age(cached), Some("3".into()));
        for other in ["/v1/health/service/b?passing", "/v1/health/service/a", "/v1/health/service/a?passing&consistent"]
        {
            let error = forwarder.get(other).await.unwrap_err();
            assert_eq!((error.status.as_u16(), error.text.as_str()), (500, "No cluster leader"), "{other}");
        }
        assert!(forwarder.request("GET", "/v1/health/service/a?passing", "other").await.is_err(), "another token");
        // A client with the cached index waits as usual; another one is answered at once.
        let start = Instant::now();
        forwarder.get("/v1/health/service/a?passing&index=6&wait=30s").await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        forwarder.get("/v1/health/service/a?passing&index=7&wait=30s").await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(30));
    }

    #[tokio::test]
    async fn answers_are_cached_per_format() {
        let (fake, forwarder) = forwarder();
        let ask = async |accept: &str| {
            let request = Request::get("/eureka/apps").header("accept", accept);
            let (head, ()) = request.body(()).unwrap().into_parts();
            forwarder.pass(&head, &Query::default(), Bytes::new()).await
        };
        ask("application/json").await.unwrap();
        fake.unavailable.store(true, Ordering::Relaxed);
        assert_eq!(age(ask("application/json").await), Some("0".into()));
        assert_eq!(ask("application/xml").await.unwrap_err().status, 503);
    }

    #[tokio::test(start_paused = true)]
    async fn cached_reads_do_not_wait_while_the_control_plane_hangs() {
        let (fake, forwarder) = forwarder();
        assert_eq!(age(forwarder.get("/v1/catalog/services").await), None);
        fake.hangs.store(true, Ordering::Relaxed);
        let took = async |uri: &str| {
            let start = Instant::now();
            let reply = forwarder.get(uri).await;
            (start.elapsed(), reply)
        };
        let (elapsed, reply) = took("/v1/catalog/services").await;
        assert_eq!(elapsed, HEDGE);
        let headers = reply.unwrap().headers().clone();
        assert_eq!(
            (headers["x-consul-knownleader"].as_bytes(), headers["x-consul-lastcontact"].as_bytes()),
            (&b"false"[..], &b"500"[..])
        );
        for _ in 0..50 {
            let (elapsed, reply) = took("/v1/catalog/services").await;
            assert_eq!((elapsed, age(reply)), (Duration::ZERO, Some("0".to_owned())));
        }
        tokio::task::yield_now().await;
        assert_eq!(fake.questions.lock().unwrap().len(), 3, "one read checks whether it has recovered");
        // A read without a cached answer waits.
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
    async fn a_blocking_query_resumes_when_the_control_plane_is_back() {
        let (fake, forwarder) = forwarder();
        forwarder.get("/v1/catalog/services").await.unwrap();
        fake.unavailable.store(true, Ordering::Relaxed);
        let start = Instant::now();
        let back = async {
            tokio::time::sleep(Duration::from_millis(10_500)).await;
            fake.unavailable.store(false, Ordering::Relaxed);
        };
        let (reply, ()) = tokio::join!(forwarder.get("/v1/catalog/services?index=7&wait=30s"), back);
        assert_eq!((age(reply), start.elapsed()), (None, Duration::from_secs(30)));
        // Its attempts are one to two seconds apart.
        let last = fake.questions.lock().unwrap().last().unwrap().query.clone();
        let left = last.strip_prefix("index=7&wait=").and_then(|left| left.strip_suffix("ms")).unwrap();
        assert!((17_500..=19_500).contains(&left.parse::<u64>().unwrap()), "{last}");
    }

    #[tokio::test(start_paused = true)]
    async fn blocking_queries_end_within_a_sixteenth_after_their_wait() {
        let (_, forwarder) = forwarder();
        for wait in [Duration::from_secs(1), Duration::from_secs(300)] {
            let start = Instant::now();
            assert_eq!(age(forwarder.get(&format!("/v1/a?index=7&wait={}s", wait.as_secs())).await), None);
            assert!(start.elapsed() >= wait && start.elapsed() <= wait + wait / 16, "{:?}", start.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_blocking_queries_is_limited() {
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
    async fn writes_are_never_answered_from_the_cache() {
        let (fake, forwarder) = forwarder();
        assert_eq!(forwarder.request("PUT", "/v1/kv/a?cas=1", "secret").await.unwrap().status(), 200);
        {
            let questions = fake.questions.lock().unwrap();
            assert_eq!(
                (questions[0].method.as_str(), questions[0].query.as_str(), &questions[0].body[..]),
                ("PUT", "cas=1", &b"body"[..])
            );
            assert_eq!(questions[0].headers, [("x-consul-token".to_owned(), "secret".to_owned())].into());
        }
        fake.unavailable.store(true, Ordering::Relaxed);
        for method in ["PUT", "DELETE", "GET"] {
            let error = forwarder.request(method, "/v1/kv/a?cas=1", "secret").await.unwrap_err();
            assert_eq!(error.text, "No cluster leader", "{method}");
        }
    }

    #[tokio::test]
    async fn errors_are_not_cached() {
        for (path, status, cached) in [
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
            fake.unavailable.store(true, Ordering::Relaxed);
            assert_eq!(forwarder.get(path).await.is_ok(), cached, "{path} {status}");
        }
    }

    #[tokio::test]
    async fn the_cache_is_bounded() {
        let (fake, forwarder) = forwarder();
        for n in 0..2 * ENTRIES {
            forwarder.get(&format!("/v1/health/service/{n}?n={n}")).await.unwrap();
        }
        assert_eq!(forwarder.0.memory().answers.len(), ENTRIES);
        for n in 0..2 * BYTES / LARGEST {
            forwarder.get(&format!("/v1/a/{}?n={n}", LARGEST - 1000)).await.unwrap();
        }
        let (counted, bytes) = {
            let memory = forwarder.0.memory();
            (memory.answers.values().map(|cached| cached.bytes).sum::<usize>(), memory.bytes)
        };
        assert!(counted == bytes && bytes <= BYTES && bytes > BYTES / 2, "{bytes}");
        forwarder.get(&format!("/v1/a/{LARGEST}")).await.unwrap();
        fake.unavailable.store(true, Ordering::Relaxed);
        assert!(forwarder.get(&format!("/v1/a/{LARGEST}")).await.is_err(), "too large");
    }
}
