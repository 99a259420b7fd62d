//! A cache of the control plane's last answers; the oldest is evicted first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_proto::v1::Answer;

/// Maximum number of cached answers.
pub(super) const ENTRIES: usize = 256;
/// Maximum size of all cached answers in bytes.
pub(super) const BYTES: usize = 16 << 20;
/// Maximum size of a cached answer in bytes.
pub(super) const LARGEST: usize = 4 << 20;

/// Identity of a read: path, query and the forwarded headers.
pub(super) type Key = Vec<String>;

pub(super) struct CachedAnswer {
    at: Instant,
    answer: Arc<Answer>,
    pub(super) bytes: usize,
}

/// The cached answers.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) answers: HashMap<Key, CachedAnswer>,
    pub(super) bytes: usize,
}

impl Memory {
    /// An answer and its age.
    pub(super) fn get(&self, key: &Key) -> Option<(Arc<Answer>, Duration)> {
        self.answers.get(key).map(|cached| (cached.answer.clone(), cached.at.elapsed()))
    }

    /// Stores an answer, replacing an earlier one.
    pub(super) fn put(&mut self, key: &Key, answer: &Arc<Answer>) {
        self.remove(key);
        let texts = key.iter().chain(answer.headers.keys()).chain(answer.headers.values()).map(String::len);
        let bytes = texts.sum::<usize>() + answer.body.len();
        if bytes > LARGEST {
            return;
        }
        while self.answers.len() >= ENTRIES || self.bytes + bytes > BYTES {
            let oldest = self.answers.iter().min_by_key(|(_, cached)| cached.at).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            self.remove(&oldest);
        }
        self.bytes += bytes;
        self.answers.insert(key.clone(), CachedAnswer { at: Instant::now(), answer: answer.clone(), bytes });
    }

    /// Removes an answer.
    pub(super) fn remove(&mut self, key: &Key) {
        if let Some(gone) = self.answers.remove(key) {
            self.bytes -= gone.bytes;
        }
    }
}
