//! Cache of the last response with the whole registry, by namespace and format.
//!
//! Every client fetches it, some of them again every half minute whether it changed or not; as text it is one or two
//! kilobytes for each instance.

use std::collections::HashMap;

use weft_registry_api::eureka::documents::Format;
use weft_registry_api::reply::Reply;

use super::Stamp;

/// Bounds of cached responses, in number and bytes; each is as large as the visible part of the registry.
const MAX: usize = 16;
const MAX_BYTES: usize = 64 << 20;

/// Responses of one state.
#[derive(Default)]
pub(super) struct Cache {
    stamp: Stamp,
    answers: HashMap<(String, Format), Reply>,
}

impl Cache {
    /// The response, if nothing has changed since.
    pub(super) fn answer(&self, stamp: Stamp, namespace: &str, format: Format) -> Option<Reply> {
        let key = (namespace.to_owned(), format);
        self.answers.get(&key).filter(|_| self.stamp == stamp).cloned()
    }

    /// Stores one, and drops those of earlier states.
    pub(super) fn keep(&mut self, stamp: Stamp, namespace: &str, format: Format, reply: &Reply) {
        if stamp > self.stamp {
            self.answers.clear();
            self.stamp = stamp;
        }
        let bytes = self.answers.values().map(|kept| kept.body().len()).sum::<usize>() + reply.body().len();
        if stamp == self.stamp && self.answers.len() < MAX && bytes <= MAX_BYTES {
            self.answers.insert((namespace.to_owned(), format), reply.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn the_cache_is_bounded_and_drops_old_states() {
        let mut given = Cache::default();
        let answer = |text: &'static str| Reply::new(Bytes::from_static(text.as_bytes()));
        let body = |given: &Cache, stamp, format| given.answer(stamp, "a", format).map(|a| a.into_body());
        given.keep((2, 1), "a", Format::Json, &answer("new"));
        given.keep((1, 1), "a", Format::Xml, &answer("late"));
        assert_eq!(body(&given, (2, 1), Format::Json), Some("new".into()));
        assert_eq!(body(&given, (2, 1), Format::Xml), None);
        assert_eq!(body(&given, (2, 2), Format::Json), None, "a check of a node has changed");
        given.keep((2, 2), "a", Format::Xml, &answer("xml"));
        assert_eq!(body(&given, (2, 2), Format::Json), None);
        for n in 0..2 * MAX {
            given.keep((2, 2), &n.to_string(), Format::Json, &answer("x"));
        }
        assert_eq!(given.answers.len(), MAX);
        for namespace in ["a", "b"] {
            given.keep((3, 3), namespace, Format::Xml, &Reply::new(vec![0; MAX_BYTES / 2 + 1].into()));
        }
        assert_eq!(given.answers.len(), 1);
    }
}
