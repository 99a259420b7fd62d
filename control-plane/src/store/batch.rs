//! Changes that belong together: one transaction if the store accepts it, else as few as possible.
//!
//! The embedded store accepts a whole apply or restore at once, all or nothing. etcd bounds the operations and the
//! bytes of a request; a larger batch is divided there, and one that fails halfway reports its progress.

use super::{Error, Op};

/// The bounds of one transaction of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Conditions, and operations.
    pub ops: usize,
    /// Bytes of all keys and values.
    pub bytes: usize,
}

/// A batch that was not done as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct Interrupted {
    /// Number of completed changes, from the first on.
    pub done: usize,
    /// Number of following changes with an unknown outcome.
    pub unknown: usize,
    /// Number of all changes.
    pub total: usize,
    /// The store's error.
    pub error: Error,
}

impl Interrupted {
    fn text(&self) -> String {
        let Interrupted { done, unknown, total, error } = self;
        match (*done, *unknown) {
            (0, 0) => format!("{error}; nothing was changed"),
            (0, _) if unknown == total => format!("{error}; it may have been done, and can be repeated"),
            (_, 0) => format!("{error}; the first {done} of {total} changes were made, the others were not"),
            (_, _) => format!(
                "{error}; the first {done} of {total} changes were made, the next {unknown} may have been, the others not"
            ),
        }
    }
}

/// Makes the changes of a batch, in as few transactions as the limits allow, each by `write`.
///
/// # Errors
/// If a transaction fails: its error, and the progress of the batch; later ones are not tried.
pub async fn write<F>(ops: Vec<Op>, limits: Limits, mut write: impl FnMut(Vec<Op>) -> F) -> Result<(), Interrupted>
where
    F: Future<Output = Result<(), Error>>,
{
    let (mut done, total) = (0, ops.len());
    for part in divide(ops, limits) {
        let size = part.len();
        write(part).await.map_err(|error| {
            let unknown = if matches!(error, Error::Unknown(_)) { size } else { 0 };
            Interrupted { done, unknown, total, error }
        })?;
        done += size;
    }
    Ok(())
}

/// Divides a batch into transactions, in order.
fn divide(ops: Vec<Op>, limits: Limits) -> Vec<Vec<Op>> {
    let mut parts: Vec<Vec<Op>> = Vec::new();
    let mut room = Limits { ops: 0, bytes: 0 };
    for op in ops {
        let size = size(&op);
        match parts.last_mut().filter(|_| room.ops > 0 && room.bytes >= size) {
            Some(part) => part.push(op),
            None => {
                parts.push(vec![op]);
                room = limits;
            }
        }
        // A change that is too large by itself is refused by the store, with its error.
        room = Limits { ops: room.ops.saturating_sub(1), bytes: room.bytes.saturating_sub(size) };
    }
    parts
}

fn size(op: &Op) -> usize {
    match op {
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Delete(_, key) => key.len(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::Table;

    proptest! {
        #[test]
        fn parts_keep_order_and_limits(sizes in prop::collection::vec(0..300_usize, 0..40)) {
            let limits = Limits { ops: 5, bytes: 500 };
            let numbered = sizes.iter().enumerate();
            let ops: Vec<Op> = numbered.map(|(n, size)| Op::put(Table::Kv, n.to_string(), vec![0; *size])).collect();
            let parts = divide(ops.clone(), limits);
            prop_assert_eq!(parts.concat(), ops);
            for part in &parts {
                prop_assert!(!part.is_empty() && part.len() <= 5 && part.iter().map(size).sum::<usize>() <= 500);
            }
            // The number of parts is minimal.
            for pair in parts.windows(2) {
                let with_next: usize = pair[0].iter().chain(&pair[1][..1]).map(size).sum();
                prop_assert!(pair[0].len() == 5 || with_next > 500);
            }
        }
    }

    #[test]
    fn an_interrupted_batch_reports_its_progress() {
        let text = |done, unknown| Interrupted { done, unknown, total: 9, error: Error::LeaseEnded }.to_string();
        assert!(text(0, 0).ends_with("nothing was changed"));
        assert!(text(0, 9).ends_with("it may have been done, and can be repeated"));
        assert!(text(5, 0).ends_with("the first 5 of 9 changes were made, the others were not"));
        assert!(text(5, 3).ends_with("the first 5 of 9 changes were made, the next 3 may have been, the others not"));
    }
}
