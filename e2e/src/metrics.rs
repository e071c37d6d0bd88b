//! Reading what the product says: the external metrics API, and the components' own Prometheus metrics through
//! the API server's proxy, so that it works on every kind of cluster.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use http::Request;
use k8s_metrics::QuantityExt;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::api::resource::Quantity};
use kube::{Api, Client, api::ListParams};
use serde::Deserialize;

use crate::PRODUCT;

/// An external metrics API answer, as far as tests look at it.
#[derive(Clone, Debug, Deserialize)]
pub struct MetricList {
    /// `ExternalMetricValueList`.
    pub kind: String,
    /// `external.metrics.k8s.io/v1beta1`.
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    /// One aggregated item, unless grouped.
    pub items: Vec<MetricItem>,
}

/// One value.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricItem {
    /// As asked.
    pub metric_name: String,
    /// What the value stands for.
    #[serde(default)]
    pub metric_labels: BTreeMap<String, String>,
    /// RFC 3339.
    pub timestamp: String,
    /// Seconds.
    pub window: Option<i64>,
    /// In the metric's unit.
    pub value: Quantity,
}

/// GET of any path; an error keeps the API's status.
pub async fn get_raw(client: &Client, path: &str) -> Result<String, kube::Error> {
    let request = Request::get(path).body(Vec::new());
    client
        .request_text(request.map_err(kube::Error::HttpError)?)
        .await
}

/// Asks for an external metric. The selector is written as in `kubectl -l`.
pub async fn external(
    client: &Client,
    namespace: &str,
    metric: &str,
    selector: &str,
) -> Result<MetricList, kube::Error> {
    let text = get_raw(client, &external_path(namespace, metric, selector)).await?;
    serde_json::from_str(&text).map_err(kube::Error::SerdeError)
}

/// The path of an external metric.
pub fn external_path(namespace: &str, metric: &str, selector: &str) -> String {
    let mut encoded = String::new();
    for byte in selector.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}?labelSelector={encoded}"
    )
}

/// The one value of an aggregated external metric.
pub async fn value(
    client: &Client,
    namespace: &str,
    metric: &str,
    selector: &str,
) -> anyhow::Result<f64> {
    let list = external(client, namespace, metric, selector).await;
    let list = list.with_context(|| format!("{metric} of {selector}"))?;
    match list.items.as_slice() {
        [item] => quantity(&item.value),
        items => bail!(
            "{metric} of {selector} has {} items instead of one",
            items.len()
        ),
    }
}

/// The number that a quantity means, with every suffix that the API may write.
pub fn quantity(quantity: &Quantity) -> anyhow::Result<f64> {
    for (suffix, factor) in [
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
    ] {
        if let Some(number) = quantity.0.strip_suffix(suffix) {
            return Ok(number.parse::<f64>()? * factor);
        }
    }
    Ok(quantity.to_f64()?)
}

/// Requests a second of a Deployment, over a window such as `3s`.
pub async fn request_rate(
    client: &Client,
    namespace: &str,
    deployment: &str,
    window: &str,
) -> anyhow::Result<f64> {
    let selector = format!("ebpfscaler.io/deployment={deployment},ebpfscaler.io/window={window}");
    value(client, namespace, "requests_per_second", &selector).await
}

/// One sample of a Prometheus text page.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name with its labels, as written.
    pub series: String,
    /// Its value.
    pub value: f64,
}

/// The product's pods of a component that run and are not on their way out.
pub async fn component_pods(client: &Client, component: &str) -> anyhow::Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), PRODUCT);
    let selector =
        format!("app.kubernetes.io/name=ebpf-scaler,app.kubernetes.io/component={component}");
    let pods = pods.list(&ListParams::default().labels(&selector)).await?;
    let running = |pod: &Pod| {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
    };
    Ok(pods.items.into_iter().filter(running).collect())
}

/// The metrics page of one of the product's pods.
pub async fn scrape(client: &Client, pod: &str) -> anyhow::Result<Vec<Sample>> {
    let path = format!("/api/v1/namespaces/{PRODUCT}/pods/{pod}:8080/proxy/metrics");
    let page = get_raw(client, &path).await;
    Ok(parse(&page.with_context(|| {
        format!("cannot read the metrics of {pod}")
    })?))
}

/// Sums the series of a metric whose labels contain all of the given `name="value"` texts.
pub fn sum(samples: &[Sample], name: &str, labels: &[&str]) -> Option<f64> {
    let of_name = |sample: &&Sample| {
        let rest = sample.series.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
    };
    let mut found = samples
        .iter()
        .filter(of_name)
        .filter(|sample| labels.iter().all(|label| sample.series.contains(label)))
        .peekable();
    found.peek()?;
    Some(found.map(|sample| sample.value).sum())
}

/// Requests counted for a workload, by each apiserver replica's pod. A workload that a replica has not seen is 0.
pub async fn counted(
    client: &Client,
    namespace: &str,
    workload: &str,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let labels = [
        format!("namespace=\"{namespace}\""),
        format!("workload=\"{workload}\""),
    ];
    let labels = [labels[0].as_str(), labels[1].as_str()];
    let mut counts = BTreeMap::new();
    for pod in component_pods(client, "apiserver").await? {
        let name = pod.metadata.name.unwrap_or_default();
        let samples = scrape(client, &name).await?;
        let count = sum(
            &samples,
            "ebpf_scaler_apiserver_workload_requests_total",
            &labels,
        );
        counts.insert(name, count.unwrap_or(0.0) as u64);
    }
    Ok(counts)
}

/// Requests counted since an earlier look, by a replica that saw all of that time.
pub fn counted_since(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> Option<u64> {
    let differences = now
        .iter()
        .filter_map(|(pod, count)| count.checked_sub(*before.get(pod)?));
    differences.max()
}

/// The samples of a page.
#[must_use]
pub fn parse(page: &str) -> Vec<Sample> {
    page.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            // Label values may contain spaces, the value does not; we write no timestamps.
            let (series, value) = line.rsplit_once(' ')?;
            Some(Sample {
                series: series.to_owned(),
                value: value.parse().ok()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_and_summed() {
        let page =
            "# TYPE a counter\na{ns=\"x\",w=\"y z\"} 3\na{ns=\"x\",w=\"q\"} 4.5\na_total 9\nb 1\n";
        let samples = parse(page);
        assert_eq!(sum(&samples, "a", &["ns=\"x\""]), Some(7.5));
        assert_eq!(sum(&samples, "a", &["w=\"y z\""]), Some(3.0));
        assert_eq!(sum(&samples, "a", &["ns=\"other\""]), None);
        assert_eq!(sum(&samples, "b", &[]), Some(1.0));
    }

    #[test]
    fn a_replica_that_saw_it_all_is_believed() {
        let counts =
            |list: &[(&str, u64)]| list.iter().map(|&(pod, n)| (pod.to_owned(), n)).collect();
        let before = counts(&[("a", 10), ("gone", 5)]);
        let now = counts(&[("a", 110), ("new", 400)]);
        assert_eq!(counted_since(&before, &now), Some(100));
        assert_eq!(counted_since(&before, &counts(&[("new", 400)])), None);
    }

    #[test]
    fn quantities_are_numbers() {
        for (text, number) in [
            ("83", 83.0),
            ("1500m", 1.5),
            ("2k", 2000.0),
            ("3Ki", 3072.0),
        ] {
            assert_eq!(
                quantity(&Quantity(text.to_owned())).ok(),
                Some(number),
                "{text}"
            );
        }
    }

    #[test]
    fn selectors_are_encoded() {
        let path = external_path("shop", "m", "tier in (a,b)");
        assert!(
            path.ends_with("/namespaces/shop/m?labelSelector=tier%20in%20%28a%2Cb%29"),
            "{path}"
        );
    }
}
