//! The tokens of requests, in the forms of Consul's clients.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode, header, request};
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;

use crate::clock::unix_now;
use crate::identity::token::{self, ApiClaims, Tokens};

/// The claims of a request's token; `None`: it has none.
///
/// # Errors
/// If it is not a token of this control plane, or has expired; in Consul's words, which do not distinguish the two.
pub fn claims(tokens: &Tokens, head: &request::Parts) -> Result<Option<Arc<ApiClaims>>, ApiError> {
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let Some(token) = given(&head.headers, &query) else { return Ok(None) };
    match tokens.verify_api(&token, unix_now()) {
        Ok(claims) => Ok(Some(Arc::new(claims))),
        Err(e) => {
            tracing::debug!("a token is refused: {e}");
            Err(ApiError::new(StatusCode::FORBIDDEN, "ACL not found"))
        }
    }
}

/// The token of a request: the query's, else the header's, else the bearer's, as in Consul; else the password of basic
/// authentication, which is the only form of Eureka's clients, if it looks like a token. An empty one counts as absent.
fn given(headers: &HeaderMap, query: &Query) -> Option<String> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = header(header::AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.trim().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    });
    let x_consul = header(header::HeaderName::from_static("x-consul-token"));
    let given = [query.value("token"), x_consul, bearer].into_iter().flatten().map(str::trim);
    given.map(str::to_owned).find(|token| !token.is_empty()).or_else(|| password(header(header::AUTHORIZATION)?))
}

/// A token in the form of a password (RFC 7617).
fn password(authorization: &str) -> Option<String> {
    let (scheme, credentials) = authorization.trim().split_once(' ')?;
    let decoded = STANDARD.decode(credentials.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let (_, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    password.starts_with(token::API).then(|| password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_from_query_headers_and_basic_authentication() {
        for (query, header, bearer, want) in [
            ("", "", "", None),
            ("token=q", "h", "Bearer b", Some("q")),
            ("token=", "h", "Bearer b", Some("h")),
            ("", " ", "bearer  b ", Some("b")),
            ("", "", "Basic dXNlcjpw", None),
            ("", "", "Basic dXNlcjp3ZWZ0YXBpMS5hLmI=", Some("weftapi1.a.b")),
            ("", "", "Bearer dXNlcjp3ZWZ0YXBpMS5hLmI=", Some("dXNlcjp3ZWZ0YXBpMS5hLmI=")),
            ("", "", "Bearer", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-consul-token", header.parse().unwrap());
            headers.insert("authorization", bearer.parse().unwrap());
            assert_eq!(given(&headers, &Query::parse(query)).as_deref(), want, "{query} {header} {bearer}");
        }
    }
}
