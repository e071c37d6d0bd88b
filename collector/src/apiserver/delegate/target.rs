//! What a `--delegate` says: of which group another provider is, and where. Connects to nothing.

use std::fmt;
use std::str::FromStr;

use axum::http::Uri;

use crate::apiserver::{custom, external};

/// Of `GROUP=URL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The API group
    pub group: &'static str,
    /// Its versions that we serve
    pub versions: &'static [&'static str],
    /// Where the other provider is
    pub url: Uri,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.url)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (group, url) = text.split_once('=').ok_or(
            "say of which group and where: external.metrics.k8s.io=https://SERVICE.NAMESPACE.svc",
        )?;
        let (group, versions): (_, &[_]) = match group {
            external::GROUP => (external::GROUP, &[external::VERSION]),
            custom::GROUP => (custom::GROUP, &custom::VERSIONS),
            _ => {
                let (one, other) = (external::GROUP, custom::GROUP);
                return Err(format!("{group:?} has no delegate; {one} and {other} can"));
            }
        };
        let url: Uri = url.parse().map_err(|e| format!("{url:?} is no URL: {e}"))?;
        if url.scheme_str() != Some("https") {
            // Our token goes there.
            return Err(format!("{url} has to begin with https://"));
        }
        if url.host().is_none_or(str::is_empty) || url.path() != "/" || url.query().is_some() {
            return Err(format!(
                "{url} has to be a host, and a port if it is not 443"
            ));
        }
        Ok(Self {
            group,
            versions,
            url,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delegate_is_a_group_and_a_host_over_tls() {
        let keda = "external.metrics.k8s.io=https://keda-metrics-apiserver.keda.svc";
        let target: Target = keda.parse().unwrap();
        assert_eq!(target.group, "external.metrics.k8s.io");
        assert_eq!(target.versions, ["v1beta1"]);
        let port: Target = "custom.metrics.k8s.io=https://a.b.svc:6443"
            .parse()
            .unwrap();
        assert_eq!(port.to_string(), "https://a.b.svc:6443/");
        assert_eq!(port.versions, ["v1beta2", "v1beta1"]);
        for wrong in [
            "https://a.b.svc",
            "metrics.k8s.io=https://a.b.svc",
            "external.metrics.k8s.io=http://a.b.svc",
            "external.metrics.k8s.io=a.b.svc",
            "external.metrics.k8s.io=https://a.b.svc/apis",
            "external.metrics.k8s.io=https://a.b.svc/?x",
            "external.metrics.k8s.io=",
        ] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
