//! Who is asking: a verified front proxy's word, a client certificate, or a bearer token. Headers that claim
//! an identity mean nothing without the front proxy's certificate.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::http::HeaderMap;
use k8s_openapi::api::core::v1::ConfigMap;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::tls::{self, ClientCa};

/// A user as Kubernetes knows one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct User {
    /// Name
    pub name: String,
    /// UID, if it has one
    pub uid: String,
    /// Groups; `system:authenticated` is among them
    pub groups: Vec<String>,
    /// What the authenticator adds
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    fn authenticated(mut self) -> Self {
        let everybody = "system:authenticated";
        if self.name != "system:anonymous" && !self.groups.iter().any(|g| g == everybody) {
            self.groups.push(everybody.to_owned());
        }
        self
    }

    /// From the parts that a TokenReview gives.
    pub fn new(
        name: String,
        uid: String,
        groups: Vec<String>,
        extra: BTreeMap<String, Vec<String>>,
    ) -> Self {
        Self {
            name,
            uid,
            groups,
            extra,
        }
        .authenticated()
    }
}

/// The certificates that the client of a connection has shown and whose key it has.
#[derive(Clone, Debug, Default)]
pub struct Peer(pub Arc<[CertificateDer<'static>]>);

/// What kube-system/extension-apiserver-authentication says of how to trust clients.
#[derive(Debug)]
pub struct Trust {
    proxy_ca: ClientCa,
    client_ca: Option<ClientCa>,
    username_headers: Vec<String>,
    uid_headers: Vec<String>,
    group_headers: Vec<String>,
    extra_prefixes: Vec<String>,
    allowed_names: Vec<String>,
}

/// Why the ConfigMap can not be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A key is missing.
    #[error("it has no {0}; was kube-apiserver started with the aggregation layer's flags?")]
    Missing(&'static str),
    /// Not a JSON array of strings.
    #[error("{key} is not a JSON array of strings: {source}")]
    NotAList {
        /// The key
        key: &'static str,
        /// What the parser says
        source: serde_json::Error,
    },
    /// A CA that can not be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
}

impl Trust {
    /// Reads the ConfigMap.
    pub fn read(config: &ConfigMap) -> Result<Self, TrustError> {
        let data = config.data.as_ref();
        let text = |key: &str| data.and_then(|d| d.get(key)).filter(|t| !t.is_empty());
        let list = |key: &'static str, default: &[&str]| match text(key) {
            Some(json) => serde_json::from_str::<Vec<String>>(json)
                .map_err(|source| TrustError::NotAList { key, source }),
            None => Ok(default.iter().map(|s| (*s).to_owned()).collect()),
        };
        let proxy_ca = text("requestheader-client-ca-file")
            .ok_or(TrustError::Missing("requestheader-client-ca-file"))?;
        Ok(Self {
            proxy_ca: ClientCa::from_pem("requestheader-client-ca-file", proxy_ca.as_bytes())?,
            client_ca: text("client-ca-file")
                .map(|pem| ClientCa::from_pem("client-ca-file", pem.as_bytes()))
                .transpose()?,
            username_headers: list("requestheader-username-headers", &["X-Remote-User"])?,
            uid_headers: list("requestheader-uid-headers", &["X-Remote-Uid"])?,
            group_headers: list("requestheader-group-headers", &["X-Remote-Group"])?,
            extra_prefixes: list("requestheader-extra-headers-prefix", &["X-Remote-Extra-"])?,
            allowed_names: list("requestheader-allowed-names", &[])?,
        })
    }

    /// The user of a request by certificates and headers, as k8s.io/apiserver's request-header and x509
    /// authenticators find it; `None` if neither speaks for anybody.
    pub fn user(&self, peer: &Peer, headers: &HeaderMap) -> Option<User> {
        let leaf = peer.0.first()?;
        if self.proxy_ca.verify(&peer.0).is_ok() && self.is_allowed(leaf) {
            return self.proxied(headers);
        }
        self.client_ca.as_ref()?.verify(&peer.0).ok()?;
        let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization();
        let groups = groups.filter_map(|o| o.as_str().ok().map(str::to_owned));
        Some(User::new(
            name,
            String::new(),
            groups.collect(),
            BTreeMap::new(),
        ))
    }

    /// An empty list of names allows every certificate of the proxy's CA.
    fn is_allowed(&self, leaf: &CertificateDer<'_>) -> bool {
        if self.allowed_names.is_empty() {
            return true;
        }
        let Ok((_, certificate)) = X509Certificate::from_der(leaf) else {
            return false;
        };
        let mut names = certificate.subject().iter_common_name();
        names.any(|cn| {
            cn.as_str()
                .is_ok_and(|cn| self.allowed_names.iter().any(|a| a == cn))
        })
    }

    fn proxied(&self, headers: &HeaderMap) -> Option<User> {
        let values = |names: &[String]| -> Vec<String> {
            let all = names.iter().flat_map(|name| headers.get_all(name.as_str()));
            let text = all.filter_map(|v| v.to_str().ok().map(str::to_owned));
            text.filter(|v| !v.is_empty()).collect()
        };
        let first = |names: &[String]| values(names).into_iter().next();
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in headers {
            let prefixed = self.extra_prefixes.iter().find_map(|prefix| {
                let prefix = prefix.to_ascii_lowercase();
                name.as_str().strip_prefix(prefix.as_str())
            });
            if let (Some(key), Ok(value)) = (prefixed, value.to_str()) {
                let key = percent_decode(key);
                extra.entry(key).or_default().push(value.to_owned());
            }
        }
        Some(User::new(
            first(&self.username_headers)?,
            first(&self.uid_headers).unwrap_or_default(),
            values(&self.group_headers),
            extra,
        ))
    }
}

/// Header names can not carry every byte of an extra key, so the proxy escapes them.
pub fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(decoded) if byte == b'%' => {
                bytes.push(decoded);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

/// The trust as it is now; `None` until the ConfigMap was read.
pub type LiveTrust = Arc<ArcSwapOption<Trust>>;
