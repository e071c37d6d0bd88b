//! Which form of an answer a client wants, by its Accept header, in the way of k8s.io/apiserver's content
//! negotiation. Everything is JSON; a form is a kind that the answer is turned into.

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;

use super::status::Failure;

/// A form in which something can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As it is
    Plain,
    /// meta.k8s.io/v1 Table, for people
    Table,
    /// apidiscovery.k8s.io/v2 APIGroupDiscoveryList
    Discovery,
    /// The same of v2beta1, which Kubernetes asks for up to 1.32 if there is no v2
    DiscoveryBeta,
}

impl Form {
    /// The value of `as`, `g` and `v` in the media type.
    const fn parameters(self) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            Self::Plain => None,
            Self::Table => Some(("Table", "meta.k8s.io", "v1")),
            Self::Discovery => Some(("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2")),
            Self::DiscoveryBeta => {
                Some(("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1"))
            }
        }
    }

    /// The Content-Type of an answer in this form. kube-apiserver looks for the whole of it in discovery;
    /// tables are plain JSON.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Plain | Self::Table => "application/json",
            Self::Discovery => {
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
            }
            Self::DiscoveryBeta => {
                "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
            }
        }
    }
}

/// The form among `offers` that the client likes best; a 406 if it takes none of them. Without an Accept
/// header it gets the plain one.
pub fn negotiate(headers: &HeaderMap, offers: &[Form]) -> Result<Form, Failure> {
    let lines = headers.get_all(ACCEPT).iter();
    let accept: Vec<_> = lines.filter_map(|v| v.to_str().ok()).collect();
    let accept = accept.join(",");
    if accept.trim().is_empty() {
        return Ok(Form::Plain);
    }
    let mut ranges: Vec<_> = accept.split(',').map(Range::parse).collect();
    // Stable: what is liked as well keeps its order.
    ranges.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    let found = ranges
        .iter()
        .filter(|range| range.quality > 0.0)
        .find_map(|range| offers.iter().find(|form| range.takes(**form)));
    found.copied().ok_or_else(|| {
        let types: Vec<_> = offers.iter().map(|form| form.content_type()).collect();
        let message = format!(
            "only the following media types are accepted: {}",
            types.join(", ")
        );
        Failure::new(406, message)
    })
}

/// One media range of an Accept header.
#[derive(Debug)]
struct Range<'a> {
    json: bool,
    kind: Option<&'a str>,
    group: &'a str,
    version: &'a str,
    quality: f64,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let mut range = Self {
            json: ["application/json", "application/*", "*/*"].contains(&media),
            kind: None,
            group: "meta.k8s.io",
            version: "v1",
            quality: 1.0,
        };
        for part in parts {
            match part.split_once('=') {
                Some(("as", kind)) => range.kind = Some(kind),
                Some(("g", group)) => range.group = group,
                Some(("v", version)) => range.version = version,
                Some(("q", quality)) => range.quality = quality.parse().unwrap_or(0.0),
                _ => {}
            }
        }
        range
    }

    fn takes(&self, form: Form) -> bool {
        let wanted = self.kind.map(|kind| (kind, self.group, self.version));
        self.json && wanted == form.parameters()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiated(accept: &str, offers: &[Form]) -> Result<Form, u16> {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(ACCEPT, accept.parse().unwrap());
        }
        negotiate(&headers, offers).map_err(|f| f.code)
    }

    #[test]
    fn clients_get_the_form_that_they_name_first() {
        use Form::{Discovery, DiscoveryBeta, Plain, Table};
        let table = [Plain, Table];
        let discovery = [Plain, Discovery, DiscoveryBeta];
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let aggregator = format!(
            "{},{}",
            Discovery.content_type(),
            DiscoveryBeta.content_type()
        );
        for (accept, offers, expected) in [
            ("", &table[..], Ok(Plain)),
            ("*/*", &table, Ok(Plain)),
            ("application/*;q=0.5", &table, Ok(Plain)),
            ("application/json; charset=utf-8", &table, Ok(Plain)),
            // kube-controller-manager.
            (
                "application/vnd.kubernetes.protobuf, */*",
                &table,
                Ok(Plain),
            ),
            (kubectl, &table, Ok(Table)),
            // Where there is no table, kubectl takes the plain one.
            (kubectl, &[Plain], Ok(Plain)),
            (
                "application/json,application/json;as=Table;v=v1",
                &table,
                Ok(Plain),
            ),
            (
                "application/json;q=0.1,application/json;as=Table",
                &table,
                Ok(Table),
            ),
            ("application/json;as=Table;g=example.com", &table, Err(406)),
            ("application/json;as=Table;q=0", &table, Err(406)),
            ("application/vnd.kubernetes.protobuf", &table, Err(406)),
            ("text/html", &table, Err(406)),
            (&aggregator, &discovery, Ok(Discovery)),
            (DiscoveryBeta.content_type(), &discovery, Ok(DiscoveryBeta)),
            ("application/json", &discovery, Ok(Plain)),
        ] {
            assert_eq!(negotiated(accept, offers), expected, "{accept}");
        }
    }
}
