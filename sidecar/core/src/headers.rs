//! Header operations of routes and destinations on requests and responses, in Envoy's order: within one level remove,
//! then set, then add.
//!
//! Values may hold Envoy's `%VAR%` formatters ([`template`]).

mod refusal;
mod request_line;
mod start_time;
mod template;
mod tls;

use http::{HeaderMap, HeaderName, HeaderValue};

pub use template::{Context, ProxyContext, ResponseContext, Side, Template};
pub use tls::{Certificate, Peer, Tls};

/// The operations of one level (route or destination).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeaderOps {
    /// On the request, before it is sent upstream.
    pub request: HeaderChange,
    /// On the response, before it is sent downstream.
    pub response: HeaderChange,
}

/// Operations on one message.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeaderChange {
    /// Removed first.
    pub remove: Vec<HeaderName>,
    /// Set second, replacing all values.
    pub set: Vec<(HeaderName, Template)>,
    /// Added last, to the existing values.
    pub add: Vec<(HeaderName, Template)>,
}

impl HeaderChange {
    /// Whether there are no operations.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Changes a request's headers.
    pub fn apply_to_request(&self, headers: &mut HeaderMap, context: &Context<'_>) {
        self.apply(headers, |template, headers| template.render(headers, context, None));
    }

    /// Changes a response's headers. `request`: the request's headers as sent upstream; may be empty unless
    /// [`HeaderChange::reads_request_headers`].
    pub fn apply_to_response(
        &self,
        headers: &mut HeaderMap,
        request: &HeaderMap,
        context: &Context<'_>,
        response_context: &ResponseContext<'_>,
    ) {
        self.apply(headers, |template, headers| template.render(request, context, Some((response_context, headers))));
    }

    /// Whether a value has `%REQ(name)%`: the sidecar then keeps the request's headers for the response.
    pub fn reads_request_headers(&self) -> bool {
        let mut templates = self.set.iter().chain(&self.add);
        templates.any(|(_, template)| template.reads_request_headers())
    }

    /// Merges this level with `later`: the removals of both, then all sets, then all adds.
    pub(crate) fn merged(&self, later: &HeaderChange) -> HeaderChange {
        HeaderChange {
            remove: self.remove.iter().chain(&later.remove).cloned().collect(),
            set: self.set.iter().chain(&later.set).cloned().collect(),
            add: self.add.iter().chain(&later.add).cloned().collect(),
        }
    }

    fn apply(&self, headers: &mut HeaderMap, render: impl Fn(&Template, &HeaderMap) -> Option<HeaderValue>) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, template) in &self.set {
            if let Some(value) = render(template, headers) {
                headers.insert(name, value);
            }
        }
        for (name, template) in &self.add {
            if let Some(value) = render(template, headers) {
                headers.append(name, value);
            }
        }
    }
}

impl HeaderOps {
    /// See [`HeaderChange::merged`].
    pub(crate) fn merged(&self, later: &HeaderOps) -> HeaderOps {
        HeaderOps { request: self.request.merged(&later.request), response: self.response.merged(&later.response) }
    }
}

#[cfg(test)]
mod tests {
    use super::template::tests::{context, response_context};
    use super::*;

    fn pair(name: &'static str, value: &str) -> (HeaderName, Template) {
        (HeaderName::from_static(name), Template::parse(value, Side::Response).unwrap())
    }

    #[test]
    fn operations_are_applied_as_remove_set_add() {
        let change = HeaderChange {
            remove: vec![HeaderName::from_static("a")],
            set: vec![pair("b", "set"), pair("a", "back")],
            add: vec![pair("b", "added"), pair("c", "added")],
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [("a", "1"), ("b", "1"), ("b", "2"), ("c", "1")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        change.apply_to_request(&mut headers, &context());
        let all = |name| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((all("a"), all("b"), all("c")), (vec!["back"], vec!["set", "added"], vec!["1", "added"]));
    }

    #[test]
    fn response_values_read_request_headers() {
        let change = HeaderChange { set: vec![pair("x", "%REQ(x-user)%")], ..HeaderChange::default() };
        assert!(change.reads_request_headers());
        let (mut response, mut request) = (HeaderMap::new(), HeaderMap::new());
        request.insert("x-user", HeaderValue::from_static("bob"));
        change.apply_to_response(&mut response, &request, &context(), &response_context());
        assert_eq!(response["x"], "bob");
    }

    #[test]
    fn a_merged_level_applies_the_later_set_last() {
        let route = HeaderChange { set: vec![pair("a", "route")], ..HeaderChange::default() };
        let remove = vec![HeaderName::from_static("a")];
        let destination = HeaderChange { set: vec![pair("a", "destination")], remove, ..HeaderChange::default() };
        let mut headers = HeaderMap::new();
        route.merged(&destination).apply_to_request(&mut headers, &context());
        assert_eq!(headers["a"], "destination");
    }
}
