//! Copies of a request's body, for mirrors: each is sent at its own pace, and none holds up the request.
//!
//! Frames that a copy has not sent yet are kept, up to [`MOST`] a copy and within one budget of the whole proxy ([`BUDGET`]): a
//! mirror that keeps pace gets every body whole, however large, and slower mirrors cost a bounded amount of memory. A copy
//! for which there is no room is cut off, and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;

use super::{BodyError, BodyState};

/// Bytes that all copies of this proxy may be behind by.
pub const BUDGET: usize = 64 * 1024 * 1024;
/// Bytes that one copy may be behind by: one mirror that is stuck does not use up the budget of the others. An application on
/// the same machine sends 20 MB before a mirror has shaken hands.
const MOST: usize = BUDGET / 2;
/// Memory of a frame besides its bytes.
const FRAME: usize = 128;

static ALL: AtomicUsize = AtomicUsize::new(0);

/// Bytes by which one copy is behind.
type Behind = Arc<AtomicUsize>;

/// A part of the budget, held until it is dropped.
struct Share {
    bytes: usize,
    behind: Behind,
}

impl Share {
    /// `None`: there is no room.
    fn take(bytes: usize, behind: &Behind) -> Option<Share> {
        let all = ALL.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let own = behind.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Made first, so that its drop gives back a share that could not be added.
        let share = Share { bytes, behind: behind.clone() };
        (all <= BUDGET && own <= MOST).then_some(share)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        ALL.fetch_sub(self.bytes, Ordering::Relaxed);
        self.behind.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// An entry of a copy's queue.
enum Copied {
    Frame { frame: Frame<Bytes>, _share: Share },
    End,
}

/// The way to one copy.
struct Way {
    frames: mpsc::UnboundedSender<Copied>,
    behind: Behind,
    /// Counts it if it is cut off.
    cut: Counter,
}

/// The copies of one body.
#[derive(Default)]
pub(super) struct Copies(Vec<Way>);

impl Copies {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One more. `left`: bytes to come, where that is known; `cut`: counts it if it is cut off.
    pub(super) fn add(&mut self, left: Option<u64>, cut: Counter) -> BodyCopy {
        // Bounded by the budget, which each frame has its share of.
        let (sender, frames) = mpsc::unbounded_channel();
        self.0.push(Way { frames: sender, behind: Behind::default(), cut });
        BodyCopy { frames, left, state: Arc::default() }
    }

    /// Passes a frame on to those that have not been cut off.
    pub(super) fn frame(&mut self, frame: &Frame<Bytes>) {
        let length = FRAME + frame.data_ref().map_or(0, Bytes::len);
        self.0.retain(|way| {
            if way.frames.is_closed() {
                return false;
            }
            let Some(share) = Share::take(length, &way.behind) else {
                way.cut.inc();
                return false;
            };
            let again = match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) => Frame::data(data.clone()),
                (None, trailers) => Frame::trailers(trailers.cloned().unwrap_or_default()),
            };
            way.frames.send(Copied::Frame { frame: again, _share: share }).is_ok()
        });
    }

    /// The body has come whole.
    pub(super) fn end(&mut self) {
        for way in self.0.drain(..) {
            // A copy that has ended before needs no end.
            let _ = way.frames.send(Copied::End);
        }
    }
}

/// The frames of the downstream's body since the copy was made.
pub struct BodyCopy {
    frames: mpsc::UnboundedReceiver<Copied>,
    /// Bytes to come, where that is known.
    pub(super) left: Option<u64>,
    /// Whether all of it was sent.
    pub state: Arc<BodyState>,
}

impl BodyCopy {
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.state.is_done() {
            return Poll::Ready(None);
        }
        let frame = match ready!(self.frames.poll_recv(cx)) {
            None => return Poll::Ready(Some(Err(BodyError::LeftBehind))),
            Some(Copied::End) => {
                self.state.finish();
                return Poll::Ready(None);
            }
            Some(Copied::Frame { frame, .. }) => frame,
        };
        if let (Some(left), Some(data)) = (&mut self.left, frame.data_ref()) {
            *left = left.saturating_sub(data.len() as u64);
            // A sender of as much as was promised may not ask for the end.
            if *left == 0 {
                self.state.finish();
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    const PIECE: usize = 64 * 1024;

    fn piece() -> Frame<Bytes> {
        Frame::data(Bytes::from_static(&[7; PIECE]))
    }

    /// One test: the budget is that of the whole process.
    #[tokio::test]
    async fn a_copy_gets_the_body_whole_within_the_budget_and_is_cut_off_and_counted_beyond() {
        let (mut copies, cut) = (Copies::default(), Counter::default());
        let pieces = MOST / (PIECE + FRAME);
        let mut behind = copies.add(None, cut.clone());
        let mut received = 0;
        for _ in 0..5 {
            for _ in 0..pieces {
                copies.frame(&piece());
            }
            for _ in 0..pieces {
                received += poll_fn(|cx| behind.poll_frame(cx)).await.unwrap().unwrap().into_data().unwrap().len();
            }
        }
        copies.end();
        assert!(poll_fn(|cx| behind.poll_frame(cx)).await.is_none());
        assert_eq!((received, cut.get()), (5 * pieces * PIECE, 0));
        assert_eq!(ALL.load(Ordering::Relaxed), 0);

        let (mut stuck, mut quick) = (copies.add(None, cut.clone()), copies.add(None, cut.clone()));
        for _ in 0..2 * BUDGET / PIECE {
            copies.frame(&piece());
            poll_fn(|cx| quick.poll_frame(cx)).await.unwrap().unwrap();
        }
        assert_eq!(cut.get(), 1, "the one that did not keep pace");
        copies.end();
        assert!(poll_fn(|cx| quick.poll_frame(cx)).await.is_none());
        let mut last = poll_fn(|cx| stuck.poll_frame(cx)).await;
        while let Some(Ok(_)) = last {
            last = poll_fn(|cx| stuck.poll_frame(cx)).await;
        }
        assert!(matches!(last, Some(Err(BodyError::LeftBehind))));
        drop((stuck, quick));
        assert_eq!(ALL.load(Ordering::Relaxed), 0);
    }
}
