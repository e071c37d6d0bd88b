//! What a query gets.

use axum::http::StatusCode;
use k8s_metrics::external_metrics::ExternalMetric;
use k8s_metrics::external_metrics::v1beta1::ExternalMetricValueList;
use kube_quantity::ParsedQuantity;

use super::world::*;

struct RequestsPerSecond;

impl ExternalMetric for RequestsPerSecond {
    const KIND: &'static str = "ExternalMetricValue";
    const URL_PATH_SEGMENT: &'static str = "requests_per_second";
}

/// One node with two pods at 10 requests a tick each: 80 requests/s.
async fn shop() -> (World, Agent) {
    let world = World::with(
        |cluster| {
            cluster.pod("web-1", "n1", |_| {});
            cluster.pod("web-2", "n1", |_| {});
        },
        &[],
    )
    .await;
    let mut agent = world.agent("n1").await;
    agent.steady(&["web-1", "web-2"], 10).await;
    (world, agent)
}

#[tokio::test]
async fn an_hpa_reads_one_item_that_is_the_sum_over_the_pods() {
    let (world, _agent) = shop().await;
    eventually("an answer", || async {
        let reply = world
            .metric("requests_per_second", "app%3Dweb,ebpfscaler.io/window%3D3s")
            .await;
        reply.status == StatusCode::OK
    })
    .await;
    let reply = world
        .metric("requests_per_second", "app%3Dweb,ebpfscaler.io/window%3D3s")
        .await;
    assert_eq!(reply.headers["content-type"], "application/json");
    let list: ExternalMetricValueList<RequestsPerSecond> =
        serde_json::from_value(reply.body).unwrap();
    assert_eq!(list.items.len(), 1);
    let item = &list.items[0];
    assert_eq!(item.metric_name, "requests_per_second");
    assert_eq!(item.window_seconds, Some(3));
    let value = ParsedQuantity::try_from(&item.value)
        .unwrap()
        .to_bytes_f64()
        .unwrap();
    assert_eq!(value, 80.0);
}
