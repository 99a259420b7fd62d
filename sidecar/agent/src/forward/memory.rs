//! The last answers of the control plane, the oldest forgotten first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_proto::v1::Answer;

/// Answers that are remembered.
pub(super) const ENTRIES: usize = 256;
/// Bytes of them.
pub(super) const BYTES: usize = 16 << 20;
/// A larger answer is not remembered, bytes.
pub(super) const LARGEST: usize = 4 << 20;

/// What makes two reads the same: path, query and the headers that are passed on.
pub(super) type Key = Vec<String>;

pub(super) struct Kept {
    at: Instant,
    answer: Arc<Answer>,
    pub(super) bytes: usize,
}

/// The last answers.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) kept: HashMap<Key, Kept>,
    pub(super) bytes: usize,
}

impl Memory {
    /// An answer, and how old it is.
    pub(super) fn get(&self, key: &Key) -> Option<(Arc<Answer>, Duration)> {
        self.kept.get(key).map(|kept| (kept.answer.clone(), kept.at.elapsed()))
    }

    /// Remembers an answer, in the place of an earlier one.
    pub(super) fn put(&mut self, key: &Key, answer: &Arc<Answer>) {
        self.remove(key);
        let texts = key.iter().chain(answer.headers.keys()).chain(answer.headers.values()).map(String::len);
        let bytes = texts.sum::<usize>() + answer.body.len();
        if bytes > LARGEST {
            return;
        }
        while self.kept.len() >= ENTRIES || self.bytes + bytes > BYTES {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.at).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            self.remove(&oldest);
        }
        self.bytes += bytes;
        self.kept.insert(key.clone(), Kept { at: Instant::now(), answer: answer.clone(), bytes });
    }

    /// Forgets one.
    pub(super) fn remove(&mut self, key: &Key) {
        if let Some(gone) = self.kept.remove(key) {
            self.bytes -= gone.bytes;
        }
    }
}
