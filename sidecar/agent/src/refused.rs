//! Why a request was not done, in the words and with the status that Consul's clients know.

use http::StatusCode;

/// A refusal, as the client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The answer's status.
    pub status: StatusCode,
    /// The answer's body.
    pub text: String,
}

impl Refused {
    /// A refusal.
    pub fn new(status: StatusCode, text: impl Into<String>) -> Refused {
        Refused { status, text: text.into() }
    }

    /// The client's mistake.
    pub fn bad(text: impl Into<String>) -> Refused {
        Refused::new(StatusCode::BAD_REQUEST, text)
    }

    /// There is no such one.
    pub fn unknown_service(id: &str) -> Refused {
        let text = format!("Unknown service ID {id:?}. Ensure that the service ID is passed, not the service name.");
        Refused::new(StatusCode::NOT_FOUND, text)
    }

    /// There is no such one.
    pub fn unknown_check(id: &str) -> Refused {
        let text = format!("Unknown check ID {id:?}. Ensure that the check ID is passed, not the check name.");
        Refused::new(StatusCode::NOT_FOUND, text)
    }

    /// The control plane's words. Whom it knows and does not trust with this is forbidden, the rest is a mistake.
    pub fn upstream(text: String) -> Refused {
        let forbidden = text.contains("may not register");
        Refused::new(if forbidden { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST }, text)
    }
}
