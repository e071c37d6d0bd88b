//! The connection to another provider: our credentials, its CA, and what counts as an answer of a Kubernetes API.
//! What comes back is bounded and passed on as it is, or is an error that says whose fault it is.

use arc_swap::ArcSwapOption;
use axum::body::Body;
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderName, RETRY_AFTER, USER_AGENT, WARNING,
};
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::ConfigExt;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use tower::{BoxError, ServiceBuilder};

use super::{HOP, Settings, Target};
use crate::apiserver::api::Caller;
use crate::apiserver::status::Failure;

/// Bytes of an answer: values of tens of thousands of objects, and discovery of as many metrics.
const MAX_ANSWER: usize = 8 * 1024 * 1024;
/// A connection that is not there after this long will not be.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(3);
/// What is passed on of a question...
const ASKED: [HeaderName; 1] = [ACCEPT];
/// ... and of an answer.
const ANSWERED: [HeaderName; 4] = [CONTENT_TYPE, WARNING, RETRY_AFTER, CACHE_CONTROL];
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// How a question ended, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a value
    Answered,
    /// With an error of the question, as a name that it does not have
    Refused,
    /// With an error of its own
    Failed,
    /// It could not be reached
    Unavailable,
    /// It took too long
    Timeout,
    /// It does not let us
    Forbidden,
    /// Its answer is none of a Kubernetes API, or too large
    Garbage,
    /// Too many were on their way
    Busy,
    /// It would have come back to us
    Loop,
}

impl Outcome {
    /// As a label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Forbidden => "forbidden",
            Self::Garbage => "garbage",
            Self::Busy => "busy",
            Self::Loop => "loop",
        }
    }
}

/// Why there is no answer to pass on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is nobody, or nobody whom we may believe.
    #[error("can not be reached: {0}")]
    Unavailable(String),
    /// It knows us, or does not, and does not let us.
    #[error(
        "does not let us ask ({0}); our service account needs the right that docs/coexist.md names"
    )]
    Forbidden(u16),
    /// What it says is no answer.
    #[error("has not answered as a Kubernetes API does: {0}")]
    Garbage(String),
}

impl Error {
    /// For the metrics.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Unavailable(_) => Outcome::Unavailable,
            Self::Forbidden(_) => Outcome::Forbidden,
            Self::Garbage(_) => Outcome::Garbage,
        }
    }

    /// For the client. None of these is the client's fault, so none is a 4xx.
    pub fn failure(&self, target: &Target) -> Failure {
        let (code, cause) = match self {
            Self::Unavailable(_) => (503, "DelegateUnavailable"),
            Self::Forbidden(_) => (502, "DelegateForbidden"),
            Self::Garbage(_) => (502, "DelegateGarbage"),
        };
        let message = format!("the other provider of {}, {target}, {self}", target.group);
        Failure::new(code, message).because(cause)
    }
}

/// The client, renewed when the CA changes.
#[derive(Default)]
pub struct Link {
    client: ArcSwapOption<Client>,
}

impl Link {
    /// From now on whom these CAs have signed is believed.
    pub fn renew(&self, target: &Target, settings: &Settings, ca: &[u8]) -> Result<(), String> {
        let roots = CertificateDer::pem_slice_iter(ca)
            .map(|certificate| certificate.map(|der| der.to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| e.to_string())?;
        if roots.is_empty() {
            return Err("it holds no certificate".into());
        }
        let mut config = kube::Config::new(target.url.clone());
        config.root_cert = Some(roots);
        // The token is bound to our pod and renewed by the kubelet; the client reads it again.
        config.auth_info.token_file = Some(settings.token_file.display().to_string());
        let client = client(&config).map_err(|e| chain(&e))?;
        self.client.store(Some(client.into()));
        Ok(())
    }

    /// Asks what the caller asks.
    pub async fn ask(
        &self,
        target: &Target,
        caller: &Caller,
    ) -> Result<(Outcome, Response), Error> {
        let path = caller.uri.path_and_query().map_or("/", |p| p.as_str());
        let (status, headers, body) = self.get(target, path, &caller.headers).await?;
        let outcome = match status.as_u16() {
            200 => Outcome::Answered,
            400..=499 => Outcome::Refused,
            500..=599 => Outcome::Failed,
            code => return Err(Error::Garbage(format!("status {code}"))),
        };
        check(&headers, &body)?;
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        for name in ANSWERED {
            for value in headers.get_all(&name) {
                response.headers_mut().append(name.clone(), value.clone());
            }
        }
        Ok((outcome, response))
    }

    /// Asks for a path; also an error of the other provider is an answer, unless it is about ourselves.
    pub async fn get(
        &self,
        target: &Target,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(StatusCode, HeaderMap, Bytes), Error> {
        let Some(client) = self.client.load_full() else {
            return Err(Error::Unavailable(
                "there is no CA bundle to verify it with".into(),
            ));
        };
        let mut request = Request::get(path)
            .header(HOP, HeaderValue::from_static("1"))
            .header(
                USER_AGENT,
                concat!("ebpf-scaler/", env!("CARGO_PKG_VERSION")),
            );
        for name in ASKED {
            for value in headers.get_all(&name) {
                request = request.header(name.clone(), value.clone());
            }
        }
        let request = request.body(kube::client::Body::empty());
        let request = request.map_err(|e| Error::Garbage(e.to_string()))?;
        tracing::debug!(%target, path, "asking another provider");
        let response = client.send(request).await;
        let response = response.map_err(|e| Error::Unavailable(chain(&e)))?;
        let (parts, body) = response.into_parts();
        if [401, 403].contains(&parts.status.as_u16()) {
            return Err(Error::Forbidden(parts.status.as_u16()));
        }
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|e| match e.downcast_ref::<LengthLimitError>() {
            Some(_) => Error::Garbage(format!("more than {MAX_ANSWER} bytes")),
            None => Error::Unavailable(format!("the answer broke off: {e}")),
        })?;
        Ok((parts.status, parts.headers, body.to_bytes()))
    }
}

/// Without the layers of kube's own client that try again (an HPA does by itself) and that log every failure.
fn client(config: &kube::Config) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    let tls = config.rustls_https_connector_with_connector(tcp)?;
    let http = legacy::Client::builder(TokioExecutor::new()).build(tls);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, "default"))
}

/// Whether it is an object of a Kubernetes API, without looking at more of it than that.
fn check(headers: &HeaderMap, body: &[u8]) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Object {
        kind: String,
    }
    let media = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let media = media.unwrap_or_default().split(';').next();
    match media.unwrap_or_default().trim() {
        "application/json" => match serde_json::from_slice::<Object>(body) {
            Ok(object) if !object.kind.is_empty() => Ok(()),
            Ok(_) => Err(Error::Garbage("JSON without a kind".into())),
            Err(e) => Err(Error::Garbage(format!("no JSON object with a kind: {e}"))),
        },
        PROTOBUF if body.starts_with(b"k8s\0") => Ok(()),
        other => {
            let begin: String = String::from_utf8_lossy(body).chars().take(64).collect();
            Err(Error::Garbage(format!("{other:?}: {begin:?}")))
        }
    }
}

/// An error with what is behind it: the first words are seldom the cause.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(media: &str, body: &[u8]) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, media.parse().unwrap());
        check(&headers, body).is_ok()
    }

    #[test]
    fn only_objects_of_a_kubernetes_api_are_passed_on() {
        let json = "application/json";
        assert!(checked(json, br#"{"kind":"Status","code":404}"#));
        assert!(checked(
            "application/json; charset=utf-8",
            br#"{"kind":"X"}"#
        ));
        assert!(checked(PROTOBUF, b"k8s\0\x0a\x01"));
        for (media, body) in [
            (json, &b""[..]),
            (json, b"{}"),
            (json, b"[]"),
            (json, br#"{"kind":""}"#),
            (json, br#"{"kind":"X""#),
            (json, b"\xff\xfe"),
            (PROTOBUF, b"{}"),
            ("text/html", b"<html>"),
            ("text/plain", b"404 page not found"),
        ] {
            assert!(!checked(media, body), "{media} {body:?}");
        }
        assert!(check(&HeaderMap::new(), b"{}").is_err());
    }
}
