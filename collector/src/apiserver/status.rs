//! Errors as Kubernetes clients expect them: a Status object with the matching HTTP code.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
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
    /// Seconds after which to ask again: client-go, and with it the HPA controller, then does so by itself, up to ten
    /// times
    pub retry_after: Option<u32>,
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
            406 => "NotAcceptable",
            410 => "Expired",
            413 => "RequestEntityTooLarge",
            422 => "Invalid",
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "InternalError",
        };
        Self {
            code,
            reason,
            message: message.into(),
            cause: None,
            // Who is sent away for being one too many should know when to come back.
            retry_after: (code == 429).then_some(1),
        }
    }

    /// To be asked again after a second: what is missing will be there soon, whoever asks.
    pub fn passing(mut self) -> Self {
        self.retry_after = Some(1);
        self
    }

    /// With our own word for the case.
    pub fn because(mut self, cause: &'static str) -> Self {
        self.cause = Some(cause);
        self
    }
}

impl Failure {
    /// The Status object.
    pub fn status(&self) -> serde_json::Value {
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
            body["details"]["causes"] =
                json!([{"reason": cause, "message": body["message"].clone()}]);
        }
        if let Some(seconds) = self.retry_after {
            body["details"]["retryAfterSeconds"] = seconds.into();
        }
        body
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = self.status();
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json_response(&body);
        *response.status_mut() = code;
        if let Some(seconds) = self.retry_after {
            let headers = response.headers_mut();
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;

    async fn status(failure: Failure) -> (Status, axum::http::HeaderMap) {
        let response = failure.into_response();
        let headers = response.headers().clone();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (serde_json::from_slice(&body).unwrap(), headers)
    }

    #[tokio::test]
    async fn every_code_has_the_reason_that_clients_look_for() {
        // The reasons of apimachinery's pkg/apis/meta/v1/types.go, by which errors.IsNotFound and so on decide.
        for (code, reason) in [
            (400, "BadRequest"),
            (401, "Unauthorized"),
            (403, "Forbidden"),
            (404, "NotFound"),
            (405, "MethodNotAllowed"),
            (406, "NotAcceptable"),
            (410, "Expired"),
            (413, "RequestEntityTooLarge"),
            (422, "Invalid"),
            (429, "TooManyRequests"),
            (500, "InternalError"),
            (503, "ServiceUnavailable"),
            (504, "Timeout"),
        ] {
            let (status, headers) = status(Failure::new(code, "why")).await;
            assert_eq!(status.reason.as_deref(), Some(reason));
            assert_eq!(status.code, Some(code.into()));
            assert_eq!(status.status.as_deref(), Some("Failure"));
            assert_eq!(status.message.as_deref(), Some("why"));
            assert_eq!(headers[CONTENT_TYPE], "application/json");
        }
    }

    #[tokio::test]
    async fn who_comes_too_early_is_told_when_to_come_back() {
        let (too_many, headers) = status(Failure::new(429, "why")).await;
        assert_eq!(headers[RETRY_AFTER], "1");
        assert_eq!(too_many.details.unwrap().retry_after_seconds, Some(1));
        let (_, headers) = status(Failure::new(503, "why").passing()).await;
        assert_eq!(headers[RETRY_AFTER], "1");
        // A client would ask ten times for what does not get better within seconds.
        let (_, headers) = status(Failure::new(503, "why")).await;
        assert!(!headers.contains_key(RETRY_AFTER));
    }

    #[tokio::test]
    async fn details_say_the_case_in_one_word() {
        let (status, _) = status(Failure::new(404, "none").because("NoPods")).await;
        let causes = status.details.unwrap().causes.unwrap();
        assert_eq!(causes[0].reason.as_deref(), Some("NoPods"));
    }
}
