//! Cross-origin requests of browsers (Envoy's CORS filter, `source/extensions/filters/http/cors`): preflights are
//! answered locally, and responses to other cross-origin requests get the CORS headers.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
};
use http::{HeaderMap, HeaderValue, Method};

use crate::request::RequestView;
use crate::string_match::StringMatch;

/// The CORS policy of a route.
#[derive(Debug, Clone)]
pub struct Cors {
    /// Allowed origins; one that matches `*` matches every origin.
    pub origins: Vec<StringMatch>,
    /// `access-control-allow-methods`
    pub methods: Option<HeaderValue>,
    /// `access-control-allow-headers`
    pub headers: Option<HeaderValue>,
    /// `access-control-expose-headers`
    pub exposed: Option<HeaderValue>,
    /// `access-control-max-age`
    pub max_age: Option<HeaderValue>,
    /// `access-control-allow-credentials`
    pub credentials: bool,
    /// Answer preflights with what they ask for where the policy has `*`.
    pub reflects_wildcards: bool,
    /// Answer preflights of other origins locally instead of forwarding them.
    pub answers_unmatched_preflights: bool,
}

/// Classification of a request by its origin.
#[derive(Debug, PartialEq, Eq)]
pub enum CrossOrigin {
    /// Not a cross-origin request of an allowed origin.
    No,
    /// A request whose response the origin may read.
    Request(HeaderValue),
    /// A preflight, to be answered locally with the headers of [`Cors::preflight`].
    Preflight(HeaderValue),
    /// A preflight of an origin that is not allowed, to be answered locally without CORS headers.
    UnmatchedPreflight,
}

impl Cors {
    /// Classifies a request.
    pub fn classify(&self, request: &RequestView<'_>) -> CrossOrigin {
        let Some(origin) = request.headers.get(ORIGIN).filter(|origin| !origin.is_empty()) else {
            return CrossOrigin::No;
        };
        let requested_method = request.headers.get(ACCESS_CONTROL_REQUEST_METHOD);
        let preflight = request.method == Method::OPTIONS
            && requested_method.is_some_and(|requested_method| !requested_method.is_empty());
        let allowed = |one: &StringMatch| one.matches(b"*") || one.matches(origin.as_bytes());
        match (self.origins.iter().any(allowed), preflight) {
            (true, true) => CrossOrigin::Preflight(origin.clone()),
            (true, false) => CrossOrigin::Request(origin.clone()),
            (false, true) if self.answers_unmatched_preflights => CrossOrigin::UnmatchedPreflight,
            (false, _) => CrossOrigin::No,
        }
    }

    /// Adds the headers of the response to a preflight.
    pub fn preflight(&self, origin: HeaderValue, request: &RequestView<'_>, answer: &mut HeaderMap) {
        self.allow(origin, answer);
        let asked = |value: &Option<HeaderValue>, name| match value {
            Some(any) if self.reflects_wildcards && any == "*" => request.headers.get(name).cloned(),
            value => value.clone(),
        };
        let all = [
            (ACCESS_CONTROL_ALLOW_METHODS, asked(&self.methods, ACCESS_CONTROL_REQUEST_METHOD)),
            (ACCESS_CONTROL_ALLOW_HEADERS, asked(&self.headers, ACCESS_CONTROL_REQUEST_HEADERS)),
            (ACCESS_CONTROL_EXPOSE_HEADERS, self.exposed.clone()),
            (ACCESS_CONTROL_MAX_AGE, self.max_age.clone()),
        ];
        for (name, value) in all {
            answer.extend(value.map(|value| (name, value)));
        }
    }

    /// Adds the headers to the response to an actual request, replacing the upstream's.
    pub fn actual(&self, origin: HeaderValue, answer: &mut HeaderMap) {
        self.allow(origin, answer);
        if let Some(exposed) = &self.exposed {
            answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
        }
    }

    fn allow(&self, origin: HeaderValue, answer: &mut HeaderMap) {
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::tests::view;

    fn cors(origin: StringMatch) -> Cors {
        Cors {
            origins: vec![origin],
            methods: Some(HeaderValue::from_static("GET,POST")),
            headers: None,
            exposed: Some(HeaderValue::from_static("x-a")),
            max_age: Some(HeaderValue::from_static("60")),
            credentials: true,
            answers_unmatched_preflights: false,
            reflects_wildcards: false,
        }
    }

    #[test]
    fn requests_are_classified_by_origin_and_method() {
        let exact = || StringMatch::Exact("https://a.example".into());
        let headers = |origin: &'static str, method: &'static str| -> HeaderMap {
            let all = [(ORIGIN, origin), (ACCESS_CONTROL_REQUEST_METHOD, method)].into_iter();
            all.filter(|(_, value)| !value.is_empty())
                .map(|(name, value)| (name, HeaderValue::from_static(value)))
                .collect()
        };
        let allowed_origin = || HeaderValue::from_static("https://a.example");
        let answering = || Cors { answers_unmatched_preflights: true, ..cors(exact()) };
        for (policy, method, headers, want) in [
            (cors(exact()), Method::GET, headers("", ""), CrossOrigin::No),
            (cors(exact()), Method::GET, headers("https://a.example", ""), CrossOrigin::Request(allowed_origin())),
            (cors(exact()), Method::GET, headers("https://b.example", ""), CrossOrigin::No),
            (cors(exact()), Method::OPTIONS, headers("https://a.example", ""), CrossOrigin::Request(allowed_origin())),
            (
                cors(exact()),
                Method::OPTIONS,
                headers("https://a.example", "PUT"),
                CrossOrigin::Preflight(allowed_origin()),
            ),
            (cors(exact()), Method::OPTIONS, headers("https://b.example", "PUT"), CrossOrigin::No),
            (answering(), Method::OPTIONS, headers("https://b.example", "PUT"), CrossOrigin::UnmatchedPreflight),
            (answering(), Method::GET, headers("https://b.example", ""), CrossOrigin::No),
            (
                cors(StringMatch::Exact("*".into())),
                Method::GET,
                headers("https://a.example", ""),
                CrossOrigin::Request(allowed_origin()),
            ),
            (
                cors(StringMatch::Prefix("https://a".into())),
                Method::GET,
                headers("https://a.example", ""),
                CrossOrigin::Request(allowed_origin()),
            ),
        ] {
            let request = RequestView { method: &method, ..view("/", "h", &headers) };
            assert_eq!(policy.classify(&request), want, "{method} {headers:?}");
        }
    }

    #[test]
    fn responses_carry_the_cors_headers_of_the_policy() {
        let policy = cors(StringMatch::Any);
        let origin = || HeaderValue::from_static("https://a.example");
        let mut answer = HeaderMap::new();
        let none = HeaderMap::new();
        policy.preflight(origin(), &view("/", "h", &none), &mut answer);
        assert_eq!(answer.len(), 5);
        assert!(answer[ACCESS_CONTROL_ALLOW_METHODS] == "GET,POST" && answer[ACCESS_CONTROL_MAX_AGE] == "60");
        // With credentials browsers take a `*` for a method or header of that name.
        let any = || Some(HeaderValue::from_static("*"));
        let asked = HeaderMap::from_iter([
            (ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("PUT")),
            (ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static("x-a,x-b")),
        ]);
        for (reflects_wildcards, wanted) in [(true, ["PUT", "x-a,x-b"]), (false, ["*", "*"])] {
            let policy = Cors { methods: any(), headers: any(), reflects_wildcards, ..cors(StringMatch::Any) };
            let mut answer = HeaderMap::new();
            policy.preflight(origin(), &view("/", "h", &asked), &mut answer);
            let found = [&answer[ACCESS_CONTROL_ALLOW_METHODS], &answer[ACCESS_CONTROL_ALLOW_HEADERS]];
            assert_eq!(found, wanted);
        }
        let mut answer = HeaderMap::from_iter([(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"))]);
        policy.actual(origin(), &mut answer);
        assert_eq!((answer.len(), answer.get_all(ACCESS_CONTROL_ALLOW_ORIGIN).iter().count()), (3, 1));
        assert!(
            answer[ACCESS_CONTROL_ALLOW_ORIGIN] == "https://a.example"
                && answer[ACCESS_CONTROL_EXPOSE_HEADERS] == "x-a"
        );
    }
}
