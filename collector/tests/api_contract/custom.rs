//! Metrics of pods and of what owns them, as HPAs of type Pods and Object ask for them.

use ebpf_scaler_measure::Metric;
use k8s_metrics::custom_metrics::v1beta2::MetricValueList;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use serde_json::{Value, json};

use super::world::*;

const V2: &str = "/apis/custom.metrics.k8s.io/v1beta2";
const V1: &str = "/apis/custom.metrics.k8s.io/v1beta1";

/// Two nodes; three pods of Deployment web at 40 requests/s each, and one of StatefulSet db at 20.
async fn shop() -> (World, Vec<Agent>) {
    let world = World::with(
        |cluster| {
            cluster.pod("web-1", "n1", |_| {});
            cluster.pod("web-2", "n1", |pod| {
                pod["metadata"]["labels"]["tier"] = json!("gold")
            });
            cluster.pod("web-3", "n2", |_| {});
            cluster.pod("db-0", "n2", |pod| {
                pod["metadata"]["labels"] = json!({"app": "db"});
                let owner = &mut pod["metadata"]["ownerReferences"][0];
                owner["kind"] = json!("StatefulSet");
                owner["name"] = json!("db");
                owner["uid"] = json!("uid-db");
            });
        },
        &["--custom-metrics"],
    )
    .await;
    let (mut first, mut second) = (world.agent("n1").await, world.agent("n2").await);
    for tick in 0..=40 {
        let count = tick * 10;
        first.report(&[("web-1", count), ("web-2", count)]).await;
        second
            .report(&[("web-3", count), ("db-0", count / 2)])
            .await;
    }
    first.stay();
    second.stay();
    eventually("all pods", || async {
        let reply = of(&world, "pods/*/requests_per_second").await;
        reply.status == 200 && reply.body["items"].as_array().unwrap().len() == 4
    })
    .await;
    (world, vec![first, second])
}

/// Asks as the HPA controller does.
async fn of(world: &World, path: &str) -> Reply {
    world
        .get(&world.proxy("hpa"), &format!("{V2}/namespaces/shop/{path}"))
        .await
}

/// Names and values.
fn values(reply: &Reply) -> Vec<(String, String)> {
    assert_eq!(reply.status, 200, "{}", reply.body);
    let items = reply.body["items"].as_array().unwrap();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let pairs = items
        .iter()
        .map(|i| (text(&i["describedObject"]["name"]), text(&i["value"])));
    let mut pairs: Vec<_> = pairs.collect();
    pairs.sort();
    pairs
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    expected.iter().map(own).collect()
}

#[tokio::test]
async fn an_hpa_of_type_pods_gets_one_value_a_pod() {
    let (world, _agents) = shop().await;
    let path = "pods/*/requests_per_second?labelSelector=app%3Dweb&metricLabelSelector=ebpfscaler.io%2Fwindow%3D3s";
    let reply = of(&world, path).await;
    assert_eq!(
        values(&reply),
        pairs(&[("web-1", "40"), ("web-2", "40"), ("web-3", "40")])
    );
    assert_eq!(reply.body["kind"], "MetricValueList");
    assert_eq!(reply.body["apiVersion"], "custom.metrics.k8s.io/v1beta2");
    let item = &reply.body["items"][0];
    let timestamp: jiff::Timestamp = item["timestamp"].as_str().unwrap().parse().unwrap();
    let age = jiff::Timestamp::now().duration_since(timestamp).as_secs();
    assert!((0..5).contains(&age), "{item}");
    assert_eq!(
        item,
        &json!({
            "describedObject": {"kind": "Pod", "apiVersion": "v1", "namespace": "shop", "name": "web-1"},
            "metric": {
                "name": "requests_per_second",
                "selector": {"matchLabels": {"ebpfscaler.io/window": "3s"}},
            },
            "timestamp": item["timestamp"], "windowSeconds": 3, "value": "40",
        })
    );
    let list: MetricValueList<Pod> = serde_json::from_value(reply.body.clone()).unwrap();
    assert_eq!(
        list.items[0].described_object.name.as_deref(),
        Some("web-1")
    );
    // What the selector picks, and one by its name.
    let gold = of(
        &world,
        "pods/*/requests_per_second?labelSelector=tier+in+%28gold%29",
    )
    .await;
    assert_eq!(values(&gold), pairs(&[("web-2", "40")]));
    let one = of(&world, "pods/db-0/requests_per_second").await;
    assert_eq!(values(&one), pairs(&[("db-0", "20")]));
    assert_eq!(one.body["items"][0]["windowSeconds"], 30);
    assert_eq!(one.body["items"][0]["metric"]["selector"], Value::Null);
}

#[tokio::test]
async fn older_clients_get_the_older_form() {
    let (world, _agents) = shop().await;
    let path = format!(
        "{V1}/namespaces/shop/pods/web-1/requests_per_second?metricLabelSelector=ebpfscaler.io%2Fwindow%3D3s"
    );
    let reply = world.get(&world.proxy("hpa"), &path).await;
    assert_eq!(reply.body["apiVersion"], "custom.metrics.k8s.io/v1beta1");
    let item = &reply.body["items"][0];
    assert_eq!(item["metricName"], "requests_per_second");
    assert_eq!((&item["window"], &item["value"]), (&json!(3), &json!("40")));
    assert_eq!(
        item["selector"],
        json!({"matchLabels": {"ebpfscaler.io/window": "3s"}})
    );
    assert!(item.get("metric").is_none() && item.get("windowSeconds").is_none());
}

#[tokio::test]
async fn an_object_has_the_sum_over_its_pods_and_quantiles_of_all_of_them() {
    let (world, _agents) = shop().await;
    for (object, kind, version, value) in [
        ("deployments.apps/web", "Deployment", "apps/v1", "120"),
        ("replicasets.apps/web-5f7", "ReplicaSet", "apps/v1", "120"),
        ("statefulsets.apps/db", "StatefulSet", "apps/v1", "20"),
    ] {
        let reply = of(&world, &format!("{object}/requests_per_second")).await;
        let name = object.split_once('/').unwrap().1;
        assert_eq!(values(&reply), pairs(&[(name, value)]));
        let described = &reply.body["items"][0]["describedObject"];
        assert_eq!(
            described,
            &json!({"kind": kind, "apiVersion": version, "namespace": "shop", "name": name})
        );
    }
    let list: MetricValueList<Deployment> = serde_json::from_value(
        of(
            &world,
            "deployments.apps/web/request_latency_p99_microseconds",
        )
        .await
        .body,
    )
    .unwrap();
    let micros: f64 = list.items[0].value.0.parse().unwrap();
    assert!((micros - 1000.0).abs() <= 125.0, "{micros}");
    // Of the namespace itself there is a path of its own.
    let reply = of(&world, "metrics/requests_per_second").await;
    assert_eq!(values(&reply), pairs(&[("shop", "140")]));
    assert_eq!(
        reply.body["items"][0]["describedObject"]["kind"],
        "Namespace"
    );
}

#[tokio::test]
async fn a_pod_without_a_value_is_left_out_and_never_zero() {
    let (world, agents) = shop().await;
    // One that no agent sees, one that only starts, one that ends, one that has ended.
    world.cluster.pod("web-4", "n3", |_| {});
    world.cluster.pod("web-5", "n1", |pod| {
        pod["status"] = json!({"phase": "Pending"})
    });
    world.cluster.pod("web-2", "n1", |pod| {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    world.cluster.pod("web-6", "n1", |pod| {
        pod["status"] = json!({"phase": "Failed", "reason": "Evicted"});
    });
    let path = "pods/*/requests_per_second?labelSelector=app%3Dweb";
    eventually("the rest, with a warning", || async {
        let reply = of(&world, path).await;
        reply.headers.contains_key("warning") && values(&reply).len() == 2
    })
    .await;
    let reply = of(&world, path).await;
    assert_eq!(values(&reply), pairs(&[("web-1", "40"), ("web-3", "40")]));
    let warning = reply.headers["warning"].to_str().unwrap();
    assert!(
        warning.contains("2 of 3 pods") && warning.contains("n3"),
        "{warning}"
    );
    for (pod, code, says) in [
        ("web-4", 503, "no agent reports from node n3"),
        ("web-5", 404, "1 pending"),
        ("web-2", 404, "1 ended or ending"),
        ("web-6", 404, "1 ended or ending"),
        ("web-7", 404, "0 match"),
    ] {
        let reply = of(&world, &format!("pods/{pod}/requests_per_second")).await;
        let message = reply.body["message"].as_str().unwrap();
        assert_eq!(reply.status.as_u16(), code, "{pod}: {message}");
        assert!(message.contains(says), "{message}");
    }
    drop(agents);
}

#[tokio::test]
async fn below_half_coverage_pods_are_answered_for_and_objects_are_not() {
    let world = World::with(
        |cluster| {
            cluster.pod("web-1", "n1", |_| {});
            cluster.pod("web-2", "n2", |_| {});
            cluster.pod("web-3", "n3", |_| {});
        },
        &["--custom-metrics"],
    )
    .await;
    let silent = of(&world, "pods/*/requests_per_second").await;
    assert_eq!(
        silent.status, 503,
        "no value at all is no answer, not an empty list"
    );
    assert_eq!(silent.body["details"]["causes"][0]["reason"], "MissingPods");
    let mut agent = world.agent("n1").await;
    agent.steady(&["web-1"], 10).await;
    agent.stay();
    eventually("the one that is known", || async {
        let reply = of(&world, "pods/*/requests_per_second").await;
        reply.status == 200 && values(&reply) == pairs(&[("web-1", "40")])
    })
    .await;
    let object = of(&world, "deployments.apps/web/requests_per_second").await;
    assert_eq!(
        object.status, 503,
        "a sum over a third of the pods is not the sum"
    );
}

#[tokio::test]
async fn what_can_not_be_answered_says_why() {
    let (world, _agents) = shop().await;
    for (path, code, reason, says) in [
        (
            "pods/*/request_rate",
            404,
            "NotFound",
            "could not find the metric request_rate for pods",
        ),
        (
            "services/web/requests_per_second",
            404,
            "NotFound",
            "there are those of pods and deployments.apps",
        ),
        (
            "metrics/shop/requests_per_second",
            404,
            "NotFound",
            "there are those of pods and deployments.apps",
        ),
        (
            "pods/*/requests_per_second?labelSelector=ebpfscaler.io%2Fwindow%3D3s",
            400,
            "BadRequest",
            "belongs into metricLabelSelector",
        ),
        (
            "deployments.apps/nope/requests_per_second",
            404,
            "NotFound",
            "no pod to measure",
        ),
        (
            "deployments.apps/*/requests_per_second",
            400,
            "BadRequest",
            "name one of the deployments.apps",
        ),
        (
            "deployments.apps/web/requests_per_second?labelSelector=a%3Db",
            400,
            "BadRequest",
            "other objects are picked by name",
        ),
        (
            "pods/*/requests_per_second?labelSelector=a+b",
            400,
            "BadRequest",
            "found 'b'",
        ),
        (
            "pods/*/requests_per_second?metricLabelSelector=verb%3DGET",
            400,
            "BadRequest",
            "these metrics have no labels",
        ),
        (
            "pods/*/requests_per_second?metricLabelSelector=ebpfscaler.io%2Fwindow%3D7s",
            400,
            "BadRequest",
            "30s",
        ),
        (
            "pods/*/requests_per_second?labelSelector=ebpfscaler.io%2Fgroup-by%3Dpod",
            400,
            "BadRequest",
            "belongs into metricLabelSelector",
        ),
        (
            "pods/*/requests_per_second?watch=true",
            405,
            "MethodNotAllowed",
            "watch",
        ),
        (
            "pods/*/runqueue_waiting_threads",
            503,
            "ServiceUnavailable",
            "does not measure runqueue yet",
        ),
    ] {
        let reply = of(&world, path).await;
        let message = reply.body["message"].as_str().unwrap();
        assert_eq!(reply.status.as_u16(), code, "{path}: {message}");
        assert_eq!(reply.body["reason"], reason, "{path}");
        assert!(message.contains(says), "{path}: {message}");
    }
    let path = format!("{V2}/namespaces/shop/pods/*/requests_per_second");
    let post = world
        .request("POST", &world.proxy("hpa"), &path)
        .await
        .unwrap();
    assert_eq!(post.status, 405);
}

#[tokio::test]
async fn access_is_asked_for_as_kube_apiserver_sees_the_request() {
    let (world, _agents) = shop().await;
    let asked = |resource: &str, name: &str, subresource: &str| {
        let attributes = json!({
            "verb": "get", "group": "custom.metrics.k8s.io", "version": "v1beta2", "namespace": "shop",
            "resource": resource, "name": name, "subresource": subresource,
        });
        let all = world.cluster.access_reviews();
        all.iter()
            .any(|spec| spec["resourceAttributes"] == attributes)
    };
    assert!(asked("pods", "*", "requests_per_second"));
    of(&world, "deployments.apps/web/requests_per_second").await;
    assert!(asked("deployments.apps", "web", "requests_per_second"));
    of(&world, "metrics/requests_per_second").await;
    let all = world.cluster.access_reviews();
    let last = &all.last().unwrap()["resourceAttributes"];
    assert_eq!(
        (&last["resource"], &last["name"]),
        (&json!("metrics"), &json!("requests_per_second"))
    );
    assert!(last.get("subresource").is_none());

    world.cluster.deny("eve");
    for path in ["pods/*/requests_per_second", "pods/*/secret", "nothing/x/y"] {
        let path = format!("{V2}/namespaces/shop/{path}");
        assert_eq!(world.get(&Identity::default(), &path).await.status, 401);
        let reply = world.get(&world.proxy("eve"), &path).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.body["reason"]),
            (403, &json!("Forbidden")),
            "{path}"
        );
    }
    let path = format!("{V2}/namespaces/shop/pods/web-1/requests_per_second");
    let reply = world.get(&world.proxy("eve"), &path).await;
    let message = reply.body["message"].as_str().unwrap();
    assert!(
        message.contains("pods.custom.metrics.k8s.io \"web-1\" is forbidden: User \"eve\" cannot get resource \"pods/requests_per_second\""),
        "{message}"
    );
}

#[tokio::test]
async fn discovery_and_tables() {
    let (world, _agents) = shop().await;
    let proxy = world.proxy("system:kube-aggregator");
    for version in [V2, V1] {
        let reply = world.get(&proxy, version).await;
        let list: APIResourceList = serde_json::from_value(reply.body).unwrap();
        assert_eq!(list.resources.len(), 7 * Metric::ALL.len());
        let names: Vec<_> = list.resources.iter().map(|r| r.name.as_str()).collect();
        for name in [
            "pods/requests_per_second",
            "deployments.apps/tcp_rtt_p50_microseconds",
        ] {
            assert!(names.contains(&name), "{name}");
        }
        assert!(
            list.resources
                .iter()
                .all(|r| r.kind == "MetricValueList" && r.verbs == ["get"])
        );
    }
    // What an HPA's client decides by.
    let group = world.get(&proxy, "/apis/custom.metrics.k8s.io").await;
    assert_eq!(group.body["preferredVersion"]["version"], "v1beta2");
    assert_eq!(group.body["versions"].as_array().unwrap().len(), 2);
    let table = world
        .proxy("ann")
        .with("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let path = format!("{V2}/namespaces/shop/pods/*/requests_per_second?labelSelector=app%3Ddb");
    let reply = world.get(&table, &path).await;
    assert_eq!(reply.body["kind"], "Table");
    let cells = &reply.body["rows"][0]["cells"];
    assert_eq!(
        cells.as_array().unwrap()[..5],
        ["db-0", "Pod", "requests_per_second", "20", "30s"].map(Value::from)
    );
}
