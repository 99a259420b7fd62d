//! DNS forwarding on raw packets: message ids, and the match of a response to its query.
//!
//! Only header and question are parsed, so that record types unknown to this code pass unchanged. The sidecar forwards
//! to the application's name servers, the control plane to its recursors.

/// Length of a DNS header.
const HEADER: usize = 12;

/// Replaces the id of a packet (RFC 1035, 4.1.1) and returns the previous one; `None`: the packet is too short.
pub fn renumbered(packet: &[u8], number: [u8; 2]) -> Option<(Vec<u8>, [u8; 2])> {
    let own = *packet.first_chunk::<2>()?;
    let mut query = packet.to_vec();
    query[..2].copy_from_slice(&number);
    Some((query, own))
}

/// Whether a packet responds to a query: it has the same id and, if it repeats the question, the same question.
pub fn answers(answer: &[u8], query: &[u8]) -> bool {
    let (Some(head), Some(query_head)) = (answer.first_chunk::<HEADER>(), query.first_chunk::<HEADER>()) else {
        return false;
    };
    if head[..2] != query_head[..2] || head[2] & 0x80 == 0 {
        return false;
    }
    let Some(end) = question_end(query) else { return false };
    let repeats = head[4..6] != [0, 0];
    !repeats || answer.get(HEADER..end).is_some_and(|question| question.eq_ignore_ascii_case(&query[HEADER..end]))
}

/// Whether a response is a server failure rather than an answer, so that another server may succeed.
pub fn is_failure(answer: &[u8]) -> bool {
    // SERVFAIL, NOTIMP, REFUSED.
    matches!(answer.get(3).map(|b| b & 0xf), Some(2 | 4 | 5))
}

/// Whether a response is truncated (TC).
pub fn is_truncated(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|b| b & 0x02 != 0)
}

/// End of the question section of a query.
fn question_end(query: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1 + length;
        match length {
            0 => break,
            1..64 => {}
            // A compression pointer has no earlier name to refer to.
            _ => return None,
        }
    }
    // Type and class.
    (at + 4 <= query.len()).then_some(at + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_must_match_id_and_question() {
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01more";
        let answer = b"\x12\x34\x81\x80\0\x01\0\0\0\0\0\0\x01A\0\0\x01\0\x01";
        assert_eq!(question_end(query), Some(19));
        assert!(answers(answer, query));
        assert!(!answers(&query[..], query), "a query");
        assert!(!answers(&[b"\x12\x35", &answer[2..]].concat(), query), "another number");
        assert!(!answers(&[&answer[..13], b"b", &answer[14..]].concat(), query), "another name");
        assert!(!answers(&answer[..14], query), "cut off");
        // An error response may omit the question.
        let error = b"\x12\x34\x83\x82\0\0\0\0\0\0\0\0";
        assert!(answers(error, query));
        assert!(is_failure(error) && is_truncated(error));
        assert!(!is_failure(answer) && !is_truncated(answer));
        for n in 0..query.len() {
            question_end(&query[..n]);
        }
    }

    #[test]
    fn renumbering_returns_the_previous_id() {
        assert_eq!(renumbered(b"\x01\x02rest", [9, 8]), Some((b"\x09\x08rest".to_vec(), [1, 2])));
        assert_eq!(renumbered(b"\x01", [9, 8]), None);
    }
}
