//! What a query gets.

use axum::http::StatusCode;
use k8s_metrics::external_metrics::ExternalMetric;
use k8s_metrics::external_metrics::v1beta1::ExternalMetricValueList;
use kube_quantity::ParsedQuantity;
use serde_json::{Value, json};

use super::world::*;

const GROUP: &str = "/apis/external.metrics.k8s.io/v1beta1";

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
            cluster.pod("web-2", "n1", |pod| {
                pod["metadata"]["labels"]["tier"] = json!("gold")
            });
        },
        &[],
    )
    .await;
    let mut agent = world.agent("n1").await;
    agent.steady(&["web-1", "web-2"], 10).await;
    agent.stay();
    eventually("an answer", || async {
        world.metric("requests_per_second", "").await.status == 200
    })
    .await;
    (world, agent)
}

fn value(reply: &Reply) -> f64 {
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
    let list: ExternalMetricValueList<RequestsPerSecond> =
        serde_json::from_value(reply.body.clone()).unwrap();
    assert_eq!(list.items.len(), 1);
    ParsedQuantity::try_from(&list.items[0].value)
        .unwrap()
        .to_bytes_f64()
        .unwrap()
}

#[tokio::test]
async fn an_hpa_reads_one_item_that_is_the_sum_over_the_pods() {
    let (world, _agent) = shop().await;
    let reply = world
        .metric(
            "requests_per_second",
            "app%3Dweb,ebpfscaler.io%2Fwindow%3D3s",
        )
        .await;
    assert_eq!(reply.headers["content-type"], "application/json");
    assert_eq!(value(&reply), 80.0);
    let item = &reply.body["items"][0];
    assert_eq!(item["metricName"], "requests_per_second");
    assert_eq!(item["window"], 3);
    assert_eq!(item["value"], "80");
    assert_eq!(
        item["metricLabels"],
        json!({"ebpfscaler.io/pods-expected": "2", "ebpfscaler.io/pods-covered": "2"})
    );
    let timestamp: jiff::Timestamp = item["timestamp"].as_str().unwrap().parse().unwrap();
    let age = jiff::Timestamp::now().duration_since(timestamp).as_secs();
    assert!((0..5).contains(&age), "{item}");
    assert_eq!(reply.body["kind"], "ExternalMetricValueList");
    assert_eq!(reply.body["apiVersion"], "external.metrics.k8s.io/v1beta1");
    assert_eq!(reply.body["metadata"], json!({}));
}

#[tokio::test]
async fn selectors_come_as_clients_write_them() {
    let (world, _agent) = shop().await;
    for (selector, expected) in [
        ("", 80.0),
        ("tier=gold", 40.0),
        // client-go's url.Values: spaces as plus.
        ("app+in+%28web%2Capi%29%2Ctier+notin+%28gold%29", 40.0),
        ("app%20in%20(web)", 80.0),
        ("%21tier", 40.0),
        ("ebpfscaler.io%2Fdeployment%3Dweb", 80.0),
        ("ebpfscaler.io%2Fpod%3Dweb-2", 40.0),
        (
            "ebpfscaler.io%2Fnode%3Dn1%2Cebpfscaler.io%2Fwindow%3D5m",
            80.0,
        ),
    ] {
        let reply = world.metric("requests_per_second", selector).await;
        assert_eq!(value(&reply), expected, "{selector}");
    }
    // Without the parameter: everything.
    let path = format!("{GROUP}/namespaces/shop/requests_per_second");
    assert_eq!(value(&world.get(&world.proxy("hpa"), &path).await), 80.0);
}

#[tokio::test]
async fn pods_can_have_items_of_their_own_and_latencies_are_whole_microseconds() {
    let (world, _agent) = shop().await;
    let reply = world
        .metric("requests_per_second", "ebpfscaler.io%2Fgroup-by%3Dpod")
        .await;
    let items = reply.body["items"].as_array().unwrap();
    let pods: Vec<_> = items
        .iter()
        .map(|i| (&i["metricLabels"]["pod"], &i["value"]))
        .collect();
    assert_eq!(
        pods,
        [
            (&json!("web-1"), &json!("40")),
            (&json!("web-2"), &json!("40"))
        ]
    );
    let reply = world
        .metric("request_latency_p99_microseconds", "app%3Dweb")
        .await;
    let text = reply.body["items"][0]["value"].as_str().unwrap();
    let micros: f64 = text.parse().unwrap();
    assert!((micros - 1000.0).abs() <= 125.0, "{text}");
}

#[tokio::test]
async fn what_can_not_be_answered_says_why_in_a_status() {
    let (world, _agent) = shop().await;
    let expect = |reply: &Reply, code: u16, reason: &str, says: &str| {
        assert_eq!(reply.status.as_u16(), code, "{}", reply.body);
        assert_eq!(reply.body["kind"], "Status");
        assert_eq!(reply.body["apiVersion"], "v1");
        assert_eq!(reply.body["status"], "Failure");
        assert_eq!(reply.body["reason"], reason);
        assert_eq!(reply.body["code"], code);
        let message = reply.body["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
    };
    for (metric, selector, code, reason, says) in [
        (
            "request_rate",
            "",
            404,
            "NotFound",
            "could not find the metric request_rate",
        ),
        (
            "requests_per_second",
            "a+b",
            400,
            "BadRequest",
            "unable to parse requirement: found 'b'",
        ),
        (
            "requests_per_second",
            "ebpfscaler.io%2Fwindow%3D7s",
            400,
            "BadRequest",
            "30s",
        ),
        (
            "requests_per_second",
            "ebpfscaler.io%2Fport%3Dhttp",
            400,
            "BadRequest",
            "ebpfscaler.io/port needs TCP or UDP ports",
        ),
        (
            "runqueue_waiting_threads",
            "ebpfscaler.io%2Fport%3D80",
            400,
            "BadRequest",
            "ebpfscaler.io/port can not narrow runqueue_waiting_threads: threads have no port",
        ),
        (
            "requests_per_second",
            "ebpfscaler.io%2Fprotocol%3Damqp",
            400,
            "BadRequest",
            "is not one of http1, http2, redis, postgresql",
        ),
        (
            "request_latency_p99_microseconds",
            "ebpfscaler.io%2Fprotocol%3Dredis",
            400,
            "BadRequest",
            "can not narrow request_latency_p99_microseconds",
        ),
        (
            "requests_per_second",
            "app%3Dnone",
            404,
            "NotFound",
            "no pod to measure in namespace shop",
        ),
        (
            "requests_per_second",
            "&watch=true",
            405,
            "MethodNotAllowed",
            "watch",
        ),
        (
            "requests_per_second",
            "&watch",
            405,
            "MethodNotAllowed",
            "watch",
        ),
        (
            "requests_per_second",
            "&fieldSelector=a%3Db",
            400,
            "BadRequest",
            "fields",
        ),
        (
            "requests_per_second",
            "&limit=many",
            400,
            "BadRequest",
            "limit",
        ),
        (
            "requests_per_second",
            "&continue=next",
            400,
            "BadRequest",
            "continue key is not valid",
        ),
        (
            "requests_per_second",
            "&sendInitialEvents=true",
            422,
            "Invalid",
            "sendInitialEvents is forbidden",
        ),
        ("%FF", "", 400, "BadRequest", "UTF-8"),
        (
            "runqueue_waiting_threads",
            "",
            503,
            "ServiceUnavailable",
            "node n1 does not measure runqueue yet",
        ),
    ] {
        let reply = world.metric(metric, selector).await;
        expect(&reply, code, reason, says);
    }
    assert_eq!(
        world
            .metric("requests_per_second", "&watch=false")
            .await
            .status,
        200
    );
    let hpa = world.proxy("hpa");
    let path = format!("{GROUP}/namespaces/shop/requests_per_second");
    let reply = world.request("POST", &hpa, &path).await.unwrap();
    expect(&reply, 405, "MethodNotAllowed", "POST");
    expect(
        &world.get(&hpa, "/api/v1/pods").await,
        404,
        "NotFound",
        "requested resource",
    );
}

#[tokio::test]
async fn a_silent_agent_is_declared_and_then_ends_the_answers() {
    let world = World::with(
        |cluster| {
            cluster.pod("web-1", "n1", |_| {});
            cluster.pod("web-2", "n2", |_| {});
        },
        &[],
    )
    .await;
    let (mut first, mut second) = (world.agent("n1").await, world.agent("n2").await);
    first.steady(&["web-1"], 10).await;
    second.steady(&["web-2"], 10).await;
    eventually("both", || async {
        let reply = world.metric("requests_per_second", "").await;
        reply.status == 200 && reply.body["items"][0]["value"] == "80"
    })
    .await;
    // The second falls silent; the first goes on in real time.
    let mut sent = 400;
    let mut declared = None;
    for _ in 0..12 {
        tokio::time::sleep(std::time::Duration::from_millis(250)).await;
        sent += 10;
        first.report(&[("web-1", sent)]).await;
        let reply = world.metric("requests_per_second", "").await;
        if reply.headers.contains_key("warning") {
            declared = Some(reply);
        }
    }
    let reply = declared.expect("the silence was declared");
    assert_eq!(value(&reply), 80.0);
    let labels = &reply.body["items"][0]["metricLabels"];
    assert_eq!(labels["ebpfscaler.io/silent-nodes"], "n2");
    assert_eq!(labels["ebpfscaler.io/pods-estimated"], "1");
    let warning = reply.headers["warning"].to_str().unwrap();
    assert!(
        warning.starts_with("299 - \"1 of 2 pods are measured now"),
        "{warning}"
    );
    // Both silent: below half coverage there is no answer.
    tokio::time::sleep(std::time::Duration::from_millis(1600)).await;
    let reply = world.metric("requests_per_second", "").await;
    assert_eq!(reply.status, 503);
    let message = reply.body["message"].as_str().unwrap();
    assert!(
        message.contains("node n1 is silent") && message.contains("node n2"),
        "{message}"
    );
    assert_eq!(reply.body["details"]["causes"][0]["reason"], "MissingPods");
}

#[tokio::test]
async fn people_get_a_table_and_clients_the_form_that_they_take() {
    let (world, _agent) = shop().await;
    let path = format!("{GROUP}/namespaces/shop/requests_per_second?labelSelector=app%3Dweb");
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
    let kubectl = world.proxy("ann").with("accept", table);
    let reply = world.get(&kubectl, &path).await;
    assert_eq!(reply.headers["content-type"], "application/json");
    assert_eq!(reply.body["kind"], "Table");
    assert_eq!(reply.body["apiVersion"], "meta.k8s.io/v1");
    let columns = reply.body["columnDefinitions"].as_array().unwrap();
    let shown = columns.iter().filter(|c| c["priority"] == 0);
    let shown: Vec<_> = shown.map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(shown, ["Metric", "Value", "Window", "Covered"]);
    let rows = reply.body["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 1);
    let cells = rows[0]["cells"].as_array().unwrap();
    assert_eq!(cells.len(), columns.len());
    assert_eq!(
        cells[..4],
        ["requests_per_second", "80", "30s", "2/2"].map(Value::from)
    );
    assert_eq!(rows[0]["object"]["metadata"]["namespace"], "shop");
    let whole = world
        .get(&kubectl, &format!("{path}&includeObject=Object"))
        .await;
    assert_eq!(whole.body["rows"][0]["object"]["value"], "80");

    let by_pod = format!("{path}%2Cebpfscaler.io%2Fgroup-by%3Dpod");
    let reply = world.get(&kubectl, &by_pod).await;
    let pods: Vec<_> = (0..2).map(|i| &reply.body["rows"][i]["cells"][4]).collect();
    assert_eq!(pods, ["web-1", "web-2"]);

    // As kube-controller-manager asks by default: anything will do.
    let manager = "application/vnd.kubernetes.protobuf, */*";
    let reply = world
        .get(&world.proxy("hpa").with("accept", manager), &path)
        .await;
    assert_eq!(value(&reply), 80.0);
    let proxy = world
        .proxy("hpa")
        .with("accept", "application/vnd.kubernetes.protobuf");
    let reply = world.get(&proxy, &path).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.body["reason"]),
        (406, &json!("NotAcceptable"))
    );
}

#[tokio::test]
async fn a_run_queue_query_switches_the_family_on_at_the_agents() {
    let (world, mut agent) = shop().await;
    let families = |want: &ebpf_scaler_proto::Want| want.families.clone();
    let first = agent.wants.message().await.unwrap().unwrap();
    assert_eq!(families(&first), [1, 2]);
    assert!(first.ttl_seconds >= 30);
    assert_eq!(
        world
            .metric("runqueue_latency_p99_microseconds", "")
            .await
            .status,
        503
    );
    let next = agent.wants.message().await.unwrap().unwrap();
    assert_eq!(families(&next), [1, 2, 3]);
    let mut agent = agent.with_run_queue();
    for _ in 0..8 {
        agent.report(&[("web-1", 400), ("web-2", 400)]).await;
    }
    eventually("the run queue", || async {
        let reply = world.metric("runqueue_latency_p99_microseconds", "").await;
        reply.status == 200 && reply.body["items"][0]["value"] == "0"
    })
    .await;
}

#[tokio::test]
async fn a_window_that_ended_badly_is_never_a_body_without_status() {
    let (world, _agent) = shop().await;
    let bomb = "a,".repeat(9000);
    let reply = world.metric("requests_per_second", &bomb).await;
    assert_eq!(reply.status, 400);
    assert_ne!(reply.body, Value::Null);
}
