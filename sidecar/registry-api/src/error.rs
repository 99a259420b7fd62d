//! Errors of the API, with the status and text that Consul's clients expect.

use http::StatusCode;

/// An error response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The response's status.
    pub status: StatusCode,
    /// The response's body.
    pub text: String,
}

impl ApiError {
    /// An error.
    pub fn new(status: StatusCode, text: impl Into<String>) -> ApiError {
        ApiError { status, text: text.into() }
    }

    /// An error of the client: status 400.
    pub fn bad_request(text: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, text)
    }

    /// An unknown service.
    pub fn unknown_service(id: &str) -> ApiError {
        let text = format!("Unknown service ID {id:?}. Ensure that the service ID is passed, not the service name.");
        ApiError::new(StatusCode::NOT_FOUND, text)
    }

    /// An unknown check.
    pub fn unknown_check(id: &str) -> ApiError {
        let text = format!("Unknown check ID {id:?}. Ensure that the check ID is passed, not the check name.");
        ApiError::new(StatusCode::NOT_FOUND, text)
    }

    /// An error of the control plane, in its words: 403 if the identity lacks the right, 400 otherwise.
    pub fn upstream(text: String) -> ApiError {
        let forbidden = text.contains("may not register");
        ApiError::new(if forbidden { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST }, text)
    }
}
