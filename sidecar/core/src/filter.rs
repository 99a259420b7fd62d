//! HTTP filters of a route: decisions about a request before it is forwarded, redirected or answered.
//!
//! A filter is a compiled configuration with a pure function. [`apply`] runs a route's filters in order; the proxy
//! carries out their [`Effect`], and `weftctl route` reports it. Header operations are not a filter: they belong to a
//! destination and run for each attempt, in Envoy's router.

pub mod cors;
pub mod fault;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use crate::reply::Reason;
use crate::request::RequestView;
use cors::{Cors, CrossOrigin};
use fault::Fault;

/// One filter of a route.
#[derive(Debug, Clone)]
pub enum Filter {
    /// Cross-origin requests of browsers.
    Cors(Arc<Cors>),
    /// Injected delays and aborts.
    Fault(Fault),
}

/// The result of a route's filters for one request.
#[derive(Debug, Default)]
pub struct Effect {
    /// Wait so long before anything else happens to the request.
    pub delay: Option<Duration>,
    /// The request ends here, after the delay.
    pub end: Option<End>,
    /// The response may be read by this origin, whether it is the upstream's or a local reply.
    pub grant: Option<Grant>,
}

/// The end of a request at a filter.
#[derive(Debug, PartialEq)]
pub enum End {
    /// The filter responds: 200 with these headers and no body.
    Respond(HeaderMap),
    /// A local reply with its reason, on behalf of the route's policy.
    Refuse(Reason),
}

/// An origin that may read a response.
#[derive(Debug)]
pub struct Grant {
    cors: Arc<Cors>,
    origin: HeaderValue,
}

impl Grant {
    /// The origin.
    pub fn origin(&self) -> &HeaderValue {
        &self.origin
    }
}

impl Effect {
    /// Edits the headers of a response that does not come from a filter.
    pub fn edit_response(self, headers: &mut HeaderMap) {
        if let Some(grant) = self.grant {
            grant.cors.actual(grant.origin, headers);
        }
    }
}

/// Runs the filters in order, until one ends the request. `None`: they have no effect. `random`: a new number for each
/// draw.
pub fn apply(filters: &[Filter], request: &RequestView<'_>, mut random: impl FnMut() -> u64) -> Option<Box<Effect>> {
    let mut effect: Option<Box<Effect>> = None;
    for filter in filters {
        match filter {
            Filter::Cors(cors) => {
                let mut headers = HeaderMap::new();
                match cors.classify(request) {
                    CrossOrigin::No => continue,
                    CrossOrigin::Request(origin) => {
                        effect.get_or_insert_default().grant = Some(Grant { cors: cors.clone(), origin });
                        continue;
                    }
                    CrossOrigin::Preflight(origin) => cors.preflight(origin, request, &mut headers),
                    CrossOrigin::UnmatchedPreflight => {}
                }
                effect.get_or_insert_default().end = Some(End::Respond(headers));
            }
            Filter::Fault(fault) => {
                if let Some(delay) = fault.delay(random()) {
                    effect.get_or_insert_default().delay = Some(delay);
                }
                if let Some(abort) = fault.abort(random()) {
                    effect.get_or_insert_default().end = Some(End::Refuse(Reason::Fault(abort)));
                }
            }
        }
        if effect.as_ref().is_some_and(|effect| effect.end.is_some()) {
            break;
        }
    }
    effect
}

#[cfg(test)]
mod tests {
    use http::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
    use http::{Method, StatusCode};

    use super::fault::Share;
    use super::*;
    use crate::reply::Abort;
    use crate::request::tests::view;
    use crate::string_match::StringMatch;

    fn filters() -> Vec<Filter> {
        let cors = Cors {
            origins: vec![StringMatch::Exact("https://a.example".into())],
            methods: None,
            headers: None,
            exposed: None,
            max_age: None,
            credentials: false,
            answers_unmatched_preflights: true,
            reflects_wildcards: false,
        };
        let abort = Some((Share::percent(50.0), Abort::Http(StatusCode::IM_A_TEAPOT)));
        let fault = Fault { delay: Some((Share::percent(50.0), Duration::from_secs(1))), abort };
        vec![Filter::Cors(Arc::new(cors)), Filter::Fault(fault)]
    }

    fn headers(origin: &'static str) -> HeaderMap {
        let all = [(ORIGIN, origin), (ACCESS_CONTROL_REQUEST_METHOD, "PUT")];
        all.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn filters_run_in_order_until_one_ends_the_request() {
        let (filters, allowed, none) = (filters(), headers("https://a.example"), HeaderMap::new());
        let hit = || 0;
        let miss = || 999_999;
        let request = view("/", "h", &none);
        assert!(apply(&filters, &request, miss).is_none());
        let both = apply(&filters, &request, hit).unwrap();
        assert_eq!(both.delay, Some(Duration::from_secs(1)));
        assert!(matches!(both.end, Some(End::Refuse(Reason::Fault(Abort::Http(StatusCode::IM_A_TEAPOT))))));
        // A preflight is answered before a fault is drawn.
        let preflight = RequestView { method: &Method::OPTIONS, ..view("/", "h", &allowed) };
        let answered = apply(&filters, &preflight, || panic!("no draw")).unwrap();
        assert!(matches!(&answered.end, Some(End::Respond(headers)) if headers.len() == 1), "{answered:?}");
        let other = headers("https://b.example");
        let unmatched = RequestView { method: &Method::OPTIONS, ..view("/", "h", &other) };
        assert_eq!(apply(&filters, &unmatched, hit).unwrap().end, Some(End::Respond(HeaderMap::new())));
    }

    #[test]
    fn a_local_reply_of_a_later_filter_keeps_the_grant() {
        let allowed = headers("https://a.example");
        let aborted = apply(&filters(), &view("/", "h", &allowed), || 0).unwrap();
        assert!(aborted.end.is_some());
        let mut response = HeaderMap::new();
        aborted.edit_response(&mut response);
        assert_eq!(response[http::header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://a.example");
    }
}
