//! Any message of a control plane: it is compiled, or refused with the name of a field, and a compiled one routes
//! a request. The first byte selects the type of the message.
#![no_main]

use std::net::SocketAddr;

use http::{HeaderMap, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use weft_core::compile;
use weft_core::request::RequestView;
use weft_proto::v1;

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 3 {
        0 => {
            if let Ok(message) = v1::Service::decode(bytes) {
                service(&message);
            }
        }
        1 => {
            if let Ok(message) = v1::Endpoints::decode(bytes) {
                accepted(compile::endpoints(&message));
            }
        }
        _ => {
            if let Ok(message) = v1::Inbound::decode(bytes) {
                accepted(compile::inbound(&message));
            }
        }
    }
});

fn service(message: &v1::Service) {
    let Some(service) = accepted(compile::service(message)) else { return };
    let headers = HeaderMap::from_iter([(http::header::COOKIE, HeaderValue::from_static("session=1"))]);
    let request = RequestView {
        method: &Method::GET,
        path_and_query: "/a/b?c=d",
        authority: "order-service:8080",
        scheme: "http",
        headers: &headers,
        source: SocketAddr::from(([10, 0, 0, 1], 4000)),
        local: SocketAddr::from(([240, 240, 0, 1], 80)),
    };
    for port in &service.ports {
        let found = port.routes.find(&request);
        assert!(found.is_none_or(|route| route.matcher.unmet(&request).is_none()));
    }
}

/// A refusal names its field.
fn accepted<T>(result: Result<T, compile::CompileError>) -> Option<T> {
    result.inspect_err(|e| assert!(!e.field.is_empty() && !e.problem.is_empty(), "{e:?}")).ok()
}
