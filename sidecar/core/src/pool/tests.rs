use std::time::Duration;

use super::*;
use proptest::prelude::*;

const NOW: fn() -> Instant = || {
    // A fixed instant for the whole process, to which tests add durations.
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    #[allow(clippy::disallowed_methods)]
    *START.get_or_init(Instant::now)
};

fn pool(max_connections: u32, max_pending: u32) -> Pool<u32, u32, &'static str> {
    Pool::new(PoolLimits { max_connections, max_pending, max_streams: 100 })
}

fn full(limit: u32) -> Overflow {
    Overflow { field: "http1MaxPendingRequests", limit }
}

/// Recipient and grant of each wake.
fn woken(wakes: impl IntoIterator<Item = Wake<u32, u32, &'static str>>) -> Vec<(&'static str, Grant<u32, u32>)> {
    wakes.into_iter().map(|w| (w.wake, w.grant)).collect()
}

fn ticket(acquired: Result<Acquired<u32, u32>, Overflow>) -> (Ticket, Option<Unused<u32, u32>>) {
    match acquired {
        Ok(Acquired::Wait(ticket, victim)) => (ticket, victim),
        other => panic!("expected to wait, got {other:?}"),
    }
}

#[test]
fn requests_beyond_max_pending_are_refused() {
    let mut p = pool(1, 1);
    assert_eq!(p.acquire(1, 0, false, || "a"), Ok(Acquired::Dial));
    p.connected();
    ticket(p.acquire(1, 0, false, || "b"));
    assert_eq!(p.acquire(1, 0, false, || "c"), Err(full(1)));
    // The connection goes straight to the waiting request, not to a newcomer.
    let (wake, close) = p.release(1, 0, 7, NOW());
    assert_eq!((woken(wake), close), (vec![("b", Grant::Exclusive(7))], None));
    assert_eq!((p.open(), p.pending()), (1, 0));
    assert_eq!(p.release(1, 0, 7, NOW()), (None, None));
    assert_eq!(p.acquire(1, 0, false, || "d"), Ok(Acquired::Exclusive(7)));
}

#[test]
fn requests_waiting_for_a_failed_dial_fail_with_it() {
    let mut p = pool(10, 10);
    assert_eq!(p.acquire(1, 0, true, || "a"), Ok(Acquired::Dial));
    ticket(p.acquire(1, 0, true, || "b"));
    ticket(p.acquire(1, 0, true, || "c"));
    assert_eq!(p.acquire(2, 0, true, || "other"), Ok(Acquired::Dial));
    ticket(p.acquire(2, 0, true, || "d"));
    assert_eq!(p.fail_waiters(1), ["b", "c"]);
    assert_eq!(woken(p.dial_failed(1, true)), []);
    assert_eq!((p.open(), p.pending()), (1, 2), "the other endpoint's, and its waiter");
    // Another connection may have a stream for the waiting requests.
    let (_, wakes) = p.connected_shared(2, 7, 1, NOW());
    assert_eq!(woken(wakes).len(), 1, "no stream is left: it dials itself");
    ticket(p.acquire(2, 0, true, || "e"));
    assert!(p.fail_waiters(2).is_empty());
}

#[test]
fn a_request_is_pending_during_its_dial_as_in_envoy() {
    let mut p = pool(10, 1);
    assert_eq!(p.acquire(1, 0, false, || "a"), Ok(Acquired::Dial));
    assert_eq!(p.acquire(1, 0, false, || "b"), Err(full(1)));
    p.connected();
    assert_eq!(p.acquire(1, 0, false, || "b"), Ok(Acquired::Dial));
}

#[test]
fn an_idle_connection_to_another_endpoint_is_closed_at_the_limit() {
    let mut p = pool(1, 1);
    assert_eq!(p.acquire(1, 0, false, || "a"), Ok(Acquired::Dial));
    p.connected();
    p.release(1, 0, 7, NOW());
    let (_, victim) = ticket(p.acquire(2, 0, false, || "b"));
    assert_eq!(victim, Some(Unused::Exclusive(7)));
    // Its slot is free only after it was closed: the limit is never exceeded at the server.
    assert_eq!(p.open(), 1);
    assert_eq!(woken(p.closed()), [("b", Grant::Dial)]);
    assert_eq!((p.open(), p.pending()), (1, 1));
}

#[test]
fn a_released_connection_is_closed_for_a_request_waiting_for_another_endpoint() {
    let mut p = pool(1, 2);
    assert_eq!(p.acquire(1, 0, false, || "a"), Ok(Acquired::Dial));
    p.connected();
    assert_eq!(ticket(p.acquire(2, 0, false, || "b")).1, None);
    let (second, _) = ticket(p.acquire(1, 0, false, || "c"));
    assert_eq!(p.release(1, 0, 7, NOW()), (None, Some(7)), "first come, first served");
    assert!(p.cancel(second));
    assert_eq!(woken(p.closed()), [("b", Grant::Dial)]);
    assert!(!p.cancel(second));
    assert_eq!(p.dial_failed(2, false), []);
    assert_eq!((p.open(), p.pending()), (0, 0));
}

#[test]
fn requests_share_multiplexed_connections_and_wait_for_dials() {
    let mut p = pool(1, 10);
    assert_eq!(p.acquire(1, 0, true, || "a"), Ok(Acquired::Dial));
    ticket(p.acquire(1, 1, true, || "b"));
    ticket(p.acquire(1, 0, true, || "c"));
    let (id, wakes) = p.connected_shared(1, 9, 2, NOW());
    assert_eq!(woken(wakes), [("b", Grant::Stream(9, id))], "the peer allows two streams");
    assert_eq!(p.pending(), 1);
    let (wakes, _) = p.release_stream(1, id, NOW());
    assert_eq!(woken(wakes), [("c", Grant::Stream(9, id))]);
    p.release_stream(1, id, NOW());
    p.release_stream(1, id, NOW());
    assert_eq!(p.acquire(1, 0, true, || "d"), Ok(Acquired::Stream(9, id)));
    p.retire(1, id);
    p.release_stream(1, id, NOW());
    assert_eq!(ticket(p.acquire(1, 0, true, || "e")).1, None, "retired, but not yet closed");
    assert_eq!(woken(p.closed()), [("e", Grant::Dial)]);
}

#[test]
fn requests_do_not_wait_for_a_connection_with_a_single_stream() {
    let mut p: Pool<u32, u32, &'static str> =
        Pool::new(PoolLimits { max_connections: 2, max_pending: 10, max_streams: 1 });
    assert_eq!(p.acquire(1, 0, true, || "a"), Ok(Acquired::Dial));
    assert_eq!(p.acquire(1, 0, true, || "b"), Ok(Acquired::Dial), "both dial at once");
    ticket(p.acquire(1, 0, true, || "c"));
    let (id, wakes) = p.connected_shared(1, 9, 1, NOW());
    assert_eq!(woken(wakes), [], "the limit is reached");
    p.retire(1, id);
    assert_eq!(woken(p.closed()), [("c", Grant::Dial)]);
}

#[test]
fn idle_connections_are_swept_and_those_of_a_removed_endpoint_drained() {
    let mut p = pool(10, 10);
    for (endpoint, connection) in [(1, 11), (2, 22)] {
        p.acquire(endpoint, 0, false, || "").unwrap();
        p.connected();
        p.release(endpoint, 0, connection, NOW() + Duration::from_secs(endpoint));
    }
    assert_eq!(p.sweep(NOW() + Duration::from_secs(11), Duration::from_secs(10), |_| true), [Unused::Exclusive(11)]);
    assert_eq!(p.set_live([1]), [Unused::Exclusive(22)]);
    p.acquire(2, 0, false, || "").unwrap();
    p.connected();
    assert_eq!(p.release(2, 0, 23, NOW()), (None, Some(23)), "returned after its endpoint was removed");
    assert_eq!(p.sweep(NOW() + Duration::from_secs(99), Duration::ZERO, |_| true), []);
}

#[test]
fn tcp_never_waits() {
    let mut p = pool(1, 10);
    assert_eq!(p.acquire_tcp(), Ok(()));
    assert_eq!(p.acquire_tcp(), Err(Overflow { field: "maxConnections", limit: 1 }));
    p.closed();
    assert_eq!(p.acquire_tcp(), Ok(()));
}

/// State of a simulated request.
#[derive(Debug)]
enum Holds {
    Dialing(u64, bool),
    Exclusive(u64, u32),
    Stream(u64, SharedId),
    Waiting(Ticket, u64, bool),
}

proptest! {
    /// The limits hold at all times, and all counts return to zero at the end.
    #[test]
    fn limits_hold_and_counts_return_to_zero(
        max_connections in 1u32..4, max_pending in 1u32..4, steps in proptest::collection::vec((0u8..6, 0u64..3), 0..200)
    ) {
        let mut p: Pool<u32, u32, u64> = Pool::new(PoolLimits { max_connections, max_pending, max_streams: 2 });
        let mut requests: HashMap<u64, Holds> = HashMap::new();
        let mut conns: HashMap<u32, u64> = HashMap::new(); // open connections -> endpoint
        let mut shared_ids: HashMap<u32, SharedId> = HashMap::new();
        let (mut next_request, mut next_conn) = (0u64, 100u32);
        let apply = |wakes: Vec<Wake<u32, u32, u64>>, requests: &mut HashMap<u64, Holds>| {
            for Wake { wake: request, grant, .. } in wakes {
                let Some(Holds::Waiting(_, endpoint, multiplex)) = requests.remove(&request) else { panic!("woken twice") };
                requests.insert(request, match grant {
                    Grant::Dial => Holds::Dialing(endpoint, multiplex),
                    Grant::Exclusive(c) => Holds::Exclusive(endpoint, c),
                    Grant::Stream(_, id) => Holds::Stream(endpoint, id),
                });
            }
        };
        let close = |p: &mut Pool<u32, u32, u64>, c: u32, conns: &mut HashMap<u32, u64>, requests: &mut HashMap<u64, Holds>| {
            conns.remove(&c);
            let wakes = p.closed();
            apply(wakes, requests);
        };
        let finish = |p: &mut Pool<u32, u32, u64>, request: u64, fail: bool, conns: &mut HashMap<u32, u64>,
                          shared_ids: &mut HashMap<u32, SharedId>, requests: &mut HashMap<u64, Holds>, next_conn: &mut u32| {
            match requests.remove(&request) {
                Some(Holds::Dialing(endpoint, multiplex)) if fail => {
                    let wakes = p.dial_failed(endpoint, multiplex);
                    apply(wakes, requests);
                }
                Some(Holds::Dialing(endpoint, true)) => {
                    *next_conn += 1;
                    conns.insert(*next_conn, endpoint);
                    let (id, wakes) = p.connected_shared(endpoint, *next_conn, 100, NOW());
                    shared_ids.insert(*next_conn, id);
                    requests.insert(request, Holds::Stream(endpoint, id));
                    apply(wakes, requests);
                }
                Some(Holds::Dialing(endpoint, false)) => {
                    *next_conn += 1;
                    conns.insert(*next_conn, endpoint);
                    p.connected();
                    requests.insert(request, Holds::Exclusive(endpoint, *next_conn));
                }
                Some(Holds::Exclusive(_, c)) if fail => close(p, c, conns, requests),
                Some(Holds::Exclusive(endpoint, c)) => {
                    let (wake, closing) = p.release(endpoint, 0, c, NOW());
                    apply(wake.into_iter().collect(), requests);
                    if let Some(c) = closing {
                        close(p, c, conns, requests);
                    }
                }
                Some(Holds::Stream(endpoint, id)) => {
                    let (wake, closing) = p.release_stream(endpoint, id, NOW());
                    apply(wake.into_iter().collect(), requests);
                    if let Some(c) = closing {
                        close(p, c, conns, requests);
                    }
                }
                Some(Holds::Waiting(ticket, ..)) => assert!(p.cancel(ticket)),
                None => {}
            }
        };
        for (step, endpoint) in steps {
            match step {
                0 | 1 => {
                    next_request += 1;
                    let multiplex = endpoint == 2;
                    match p.acquire(endpoint, 0, multiplex, || next_request) {
                        Ok(Acquired::Dial) => drop(requests.insert(next_request, Holds::Dialing(endpoint, multiplex))),
                        Ok(Acquired::Exclusive(c)) => {
                            prop_assert_eq!(conns.get(&c), Some(&endpoint), "an open connection to the right endpoint");
                            requests.insert(next_request, Holds::Exclusive(endpoint, c));
                        }
                        Ok(Acquired::Stream(_, id)) => drop(requests.insert(next_request, Holds::Stream(endpoint, id))),
                        Ok(Acquired::Wait(ticket, victim)) => {
                            requests.insert(next_request, Holds::Waiting(ticket, endpoint, multiplex));
                            if let Some(Unused::Exclusive(c) | Unused::Shared(c)) = victim {
                                close(&mut p, c, &mut conns, &mut requests);
                            }
                        }
                        Err(overflow) => prop_assert_eq!(overflow, full(max_pending)),
                    }
                }
                _ => {
                    let request = requests.keys().copied().min_by_key(|r| (r.wrapping_mul(endpoint + 7)) % 11);
                    if let Some(request) = request {
                        finish(&mut p, request, step == 5, &mut conns, &mut shared_ids, &mut requests, &mut next_conn);
                    }
                }
            }
            prop_assert!(p.open() <= max_connections);
            prop_assert!(p.pending() <= max_pending);
            let dialing = requests.values().filter(|h| matches!(h, Holds::Dialing(..))).count();
            prop_assert_eq!(p.open() as usize, conns.len() + dialing);
            // No request waits while there is room and no dial is in progress.
            let waiting = requests.values().filter(|h| matches!(h, Holds::Waiting(..))).count();
            prop_assert!(waiting == 0 || p.open() > 0, "a request waits although nothing is open");
        }
        while let Some(request) = requests.keys().copied().min() {
            finish(&mut p, request, false, &mut conns, &mut shared_ids, &mut requests, &mut next_conn);
        }
        prop_assert_eq!(p.pending(), 0);
        for Unused::Exclusive(c) | Unused::Shared(c) in p.sweep(NOW(), Duration::ZERO, |_| true) {
            close(&mut p, c, &mut conns, &mut requests);
        }
        prop_assert_eq!(p.open(), 0);
    }
}
