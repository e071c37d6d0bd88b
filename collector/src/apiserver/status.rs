//! Errors as Kubernetes clients expect them: a Status object with the matching HTTP code.

use axum::http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// A failure to answer with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// HTTP status
    pub code: u16,
    /// metav1.StatusReason
    pub reason: &'static str,
    /// For people: what is wrong, and with what
    pub message: String,
    /// Our own word for the case, in details.causes
    pub cause: Option<&'static str>,
}

impl Failure {
    /// A failure whose reason is the usual one of its code.
    pub fn new(code: u16, message: impl Into<String>) -> Self {
        let reason = match code {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            405 => "MethodNotAllowed",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "InternalError",
        };
        Self {
            code,
            reason,
            message: message.into(),
            cause: None,
        }
    }

    /// With our own word for the case.
    pub fn because(mut self, cause: &'static str) -> Self {
        self.cause = Some(cause);
        self
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let Some(cause) = self.cause {
            body["details"] =
                json!({"causes": [{"reason": cause, "message": body["message"].clone()}]});
        }
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json_response(&body);
        *response.status_mut() = code;
        response
    }
}

/// A JSON body with the content type that Kubernetes clients check.
pub fn json_response(body: &serde_json::Value) -> Response {
    let mut response = body.to_string().into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
