use super::*;
use crate::endpoint::tests::{endpoints, outlier};
use http::StatusCode;

/// An arbitrary instant. `Instant::now` is forbidden in this crate, but there is no other constructor.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

const OK: Outcome = status(200);

const fn status(code: u16) -> Outcome {
    let status = match StatusCode::from_u16(code) {
        Ok(status) => status,
        Err(_) => StatusCode::OK,
    };
    Outcome::Response { status, grpc_status: None, grpc: true, rate_limited: false }
}

fn detector(policy: OutlierDetection, count: usize) -> (Detector, Vec<Arc<Endpoint>>) {
    let endpoints = endpoints(&vec![1; count]);
    (Detector::new(policy, endpoints.clone(), None), endpoints)
}

/// The causes of the ejections that these outcomes trigger in sequence, for the first of ten endpoints.
fn causes(policy: OutlierDetection, outcomes: &[Outcome]) -> Vec<Option<EjectionCause>> {
    let (detector, endpoints) = detector(policy, 10);
    let record = |outcome| detector.record(&endpoints[0], outcome, now()).map(|ejection| ejection.cause);
    outcomes.iter().map(record).collect()
}

const BY_5XX: Option<EjectionCause> = Some(EjectionCause::Consecutive5xx);
const BY_GATEWAY: Option<EjectionCause> = Some(EjectionCause::ConsecutiveGatewayErrors);
const BY_LOCAL: Option<EjectionCause> = Some(EjectionCause::ConsecutiveLocalOriginFailures);

#[test]
fn consecutive_errors_eject_an_endpoint() {
    let policy = || outlier(3, 10);
    let grpc = Outcome::Response { status: StatusCode::OK, grpc_status: Some(14), grpc: true, rate_limited: false };
    for (outcomes, last) in [
        (vec![status(500), status(501), status(503)], BY_5XX),
        (vec![status(500), status(500), OK, status(500), status(500)], None),
        (vec![status(500), status(500), status(404), status(500)], None),
        (vec![Outcome::ConnectFailure, Outcome::ConnectTimeout, Outcome::Timeout], BY_5XX),
        (vec![Outcome::Reset { request_started: true }, grpc, grpc], BY_5XX),
        (vec![Outcome::Overflow, Outcome::Cancelled, Outcome::NoHealthyUpstream], None),
        (vec![status(500), status(500), Outcome::Overflow, status(500)], BY_5XX),
    ] {
        let causes = causes(policy(), &outcomes);
        assert_eq!(causes.last().copied().flatten(), last, "{outcomes:?}");
        assert!(causes[..causes.len() - 1].iter().all(Option::is_none), "{outcomes:?}");
    }
}

#[test]
fn gateway_errors_are_counted_separately() {
    let policy =
        || OutlierDetection { consecutive_gateway_errors: Some(2), consecutive_5xx: Some(4), ..outlier(4, 10) };
    assert_eq!(causes(policy(), &[status(502), status(504)]), [None, BY_GATEWAY]);
    // A 500 clears the gateway counter and counts as 5xx.
    assert_eq!(causes(policy(), &[status(502), status(500), status(503), status(500)]), [None, None, None, BY_5XX]);
}

#[test]
fn local_origin_failures_are_counted_separately_if_split() {
    let policy = || OutlierDetection {
        split_external_local_origin_errors: true,
        consecutive_local_origin_failures: Some(2),
        ..outlier(2, 10)
    };
    assert_eq!(causes(policy(), &[Outcome::Timeout, Outcome::ConnectFailure]), [None, BY_LOCAL]);
    // A failure after the connection was established.
    assert_eq!(causes(policy(), &[Outcome::ConnectFailure, Outcome::Timeout, Outcome::RemoteReset]), [None; 3]);
    // Any response, even an error, shows that connecting works.
    let mixed = [Outcome::ConnectFailure, status(500), Outcome::ConnectFailure, status(500)];
    assert_eq!(causes(policy(), &mixed), [None, None, None, BY_5XX]);
}

#[test]
fn zero_disables_a_counter() {
    let policy = OutlierDetection { consecutive_5xx: None, ..outlier(1, 100) };
    assert_eq!(causes(policy, &[status(500); 20]), [None; 20]);
}

#[test]
fn max_ejection_percent_is_never_exceeded() {
    for (count, percent, ejected) in
        [(9, 10, 0), (10, 10, 1), (19, 10, 1), (20, 10, 2), (3, 50, 1), (2, 50, 1), (1, 100, 1)]
    {
        let (detector, endpoints) = detector(outlier(1, percent), count);
        let ejections = endpoints.iter().filter(|e| detector.record(e, &status(500), now()).is_some()).count();
        assert_eq!(ejections, ejected, "{percent} % of {count}");
        assert_eq!(endpoints.iter().filter(|e| e.is_ejected()).count(), ejected);
    }
}

#[test]
fn a_refused_ejection_resets_the_counter() {
    let (detector, endpoints) = detector(outlier(2, 50), 2);
    let start = now();
    let fail = |host: usize| detector.record(&endpoints[host], &status(500), start).is_some();
    assert_eq!([fail(0), fail(0)], [false, true]);
    assert_eq!([fail(1), fail(1)], [false, false]);
    assert!(detector.tick(start + Duration::from_secs(30)));
    assert_eq!([fail(1), fail(1)], [false, true]);
}

#[test]
fn ejection_time_grows_and_decays() {
    let (detector, endpoints) = detector(outlier(1, 100), 1);
    let mut at = now();
    let eject = |at| detector.record(&endpoints[0], &status(500), at).unwrap();
    let mut seconds = Vec::new();
    for _ in 0..12 {
        let ejection = eject(at);
        seconds.push(ejection.duration.as_secs());
        assert!(!detector.tick(at + ejection.duration - Duration::from_nanos(1)));
        assert!(endpoints[0].is_ejected());
        at += ejection.duration;
        assert!(detector.tick(at));
        assert!(!endpoints[0].is_ejected());
    }
    assert_eq!(seconds, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]);
    // Eleven in a row, minus nine healthy intervals; this is the third.
    for _ in 0..9 {
        assert!(!detector.tick(at));
    }
    assert_eq!(eject(at).multiplier, 3);
}

#[test]
fn a_base_time_above_the_maximum_is_kept() {
    let policy = OutlierDetection { base_ejection_time: Duration::from_secs(1000), ..outlier(1, 100) };
    let (detector, endpoints) = detector(policy, 1);
    assert_eq!(detector.record(&endpoints[0], &status(500), now()).unwrap().duration, Duration::from_secs(1000));
}

#[test]
fn counters_are_cleared_when_an_ejection_ends() {
    let policy = OutlierDetection { consecutive_gateway_errors: Some(3), ..outlier(2, 100) };
    let (detector, endpoints) = detector(policy, 1);
    let start = now();
    let fail = |at| detector.record(&endpoints[0], &status(503), at);
    assert!(fail(start).is_none() && fail(start).is_some());
    // Requests that were in flight still fail, without effect.
    assert!(fail(start).is_none() && fail(start).is_none());
    let back = start + Duration::from_secs(30);
    assert!(detector.tick(back));
    assert!(fail(back).is_none() && fail(back).is_some());
}

#[test]
fn counters_and_lock_are_shared_with_the_next_snapshot() {
    let (old, endpoints) = detector(outlier(2, 50), 2);
    let new = Detector::new(outlier(2, 50), endpoints.clone(), Some(&old));
    let start = now();
    assert!(old.record(&endpoints[0], &status(500), start).is_none());
    assert!(new.record(&endpoints[0], &status(500), start).is_some());
    assert!(old.record(&endpoints[1], &status(500), start).is_none());
    assert!(old.record(&endpoints[1], &status(500), start).is_none());
    // A removed endpoint does not count.
    let one = Detector::new(outlier(1, 100), endpoints[..1].to_vec(), Some(&new));
    assert!(one.record(&endpoints[1], &status(500), start).is_none());
}

#[test]
fn concurrent_callers_eject_exactly_once() {
    let (detector, endpoints) = detector(outlier(100, 30), 10);
    let start = now();
    let ejections = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for endpoint in &endpoints {
                    for _ in 0..25 {
                        if detector.record(endpoint, &status(500), start).is_some() {
                            ejections.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    // Exactly 100 errors each, so that each endpoint crossed its threshold once; three of ten may be ejected.
    assert_eq!(ejections.into_inner(), 3);
    assert_eq!(endpoints.iter().filter(|e| e.is_ejected()).count(), 3);
    assert!(endpoints.iter().all(|e| e.state.ejection.consecutive_5xx.load(Ordering::Relaxed) == 0));
}

#[test]
fn error_codes_of_the_policy_define_errors() {
    let codes = [429, 503].map(|code| StatusCode::from_u16(code).unwrap()).to_vec();
    let policy = OutlierDetection { error_codes: codes, ..outlier(2, 100) };
    let answer = |code: u16| Outcome::response(StatusCode::from_u16(code).unwrap(), &http::HeaderMap::new(), false);
    for (outcomes, ejected) in [
        (vec![answer(429), answer(503)], true),
        (vec![answer(500), answer(500), answer(502)], false),
        (vec![answer(429), answer(500), answer(429)], false),
        (vec![Outcome::ConnectFailure, answer(429)], true),
    ] {
        let hosts = endpoints(&[1, 1]);
        let detector = Detector::new(policy.clone(), hosts.clone(), None);
        let ejections = outcomes.iter().filter_map(|outcome| detector.record(&hosts[0], outcome, now())).count();
        assert_eq!(ejections > 0, ejected, "{outcomes:?}");
    }
}
