//! What clients learn of us before they ask: groups, resources, OpenAPI.

use ebpf_scaler_measure::Metric;
use k8s_metrics::custom_metrics::v1beta2::MetricValueList;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, APIGroupList, APIResourceList};
use serde_json::{Value, json};

use super::world::*;

const GROUP: &str = "/apis/external.metrics.k8s.io/v1beta1";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const AGGREGATED_BETA: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

fn read<T: serde::de::DeserializeOwned>(reply: &Reply) -> T {
    assert_eq!(reply.status, 200, "{}", reply.body);
    serde_json::from_value(reply.body.clone()).unwrap()
}

#[tokio::test]
async fn every_metric_is_a_resource_by_its_real_name() {
    let world = World::new().await;
    let aggregator = world.proxy("system:kube-aggregator");
    let list: APIResourceList = read(&world.get(&aggregator, GROUP).await);
    assert_eq!(list.group_version, "external.metrics.k8s.io/v1beta1");
    let names: Vec<_> = list.resources.iter().map(|r| r.name.as_str()).collect();
    let metrics: Vec<_> = Metric::ALL.iter().map(|m| m.as_str()).collect();
    assert_eq!(names, metrics);
    for resource in &list.resources {
        assert!(resource.namespaced);
        assert_eq!(resource.kind, "ExternalMetricValueList");
        assert_eq!(
            resource.verbs,
            ["get"],
            "no more, or namespaces' deletion asks"
        );
    }
    let group: APIGroup = read(
        &world
            .get(&aggregator, "/apis/external.metrics.k8s.io")
            .await,
    );
    assert_eq!(group.preferred_version.as_ref().unwrap().version, "v1beta1");
    let groups: APIGroupList = read(&world.get(&aggregator, "/apis").await);
    let signals = "/apis/signals.ebpfscaler.io";
    let signals: APIGroup = read(&world.get(&aggregator, signals).await);
    assert_eq!(groups.groups, [group, signals]);
    // What is switched off is not there.
    for path in [
        "/apis/custom.metrics.k8s.io",
        "/apis/custom.metrics.k8s.io/v1beta2",
    ] {
        assert_eq!(world.get(&aggregator, path).await.status, 404);
    }
}

#[tokio::test]
async fn aggregated_discovery_has_a_tag_and_is_not_sent_again() {
    let world = World::with(|_| {}, &["--custom-metrics"]).await;
    let proxy = world.proxy("system:kube-aggregator");
    let both = format!("{AGGREGATED},{AGGREGATED_BETA}");
    for (accept, content_type, version) in [
        (both.as_str(), AGGREGATED, "v2"),
        (AGGREGATED_BETA, AGGREGATED_BETA, "v2beta1"),
    ] {
        let asks = proxy.clone().with("accept", accept);
        let first = world.get(&asks, "/apis").await;
        assert_eq!(first.headers["content-type"], content_type);
        assert_eq!(first.headers["vary"], "Accept");
        assert_eq!(first.body["kind"], "APIGroupDiscoveryList");
        assert_eq!(
            first.body["apiVersion"],
            format!("apidiscovery.k8s.io/{version}")
        );
        let tag = first.headers["etag"].to_str().unwrap();
        assert!(tag.starts_with('"') && tag.len() > 10, "{tag}");
        let again = world
            .get(&asks.clone().with("if-none-match", tag), "/apis")
            .await;
        assert_eq!(again.status, 304);
        assert_eq!(again.headers["etag"], tag);
        assert_eq!(again.body, Value::Null);
        let stale = world
            .get(&asks.with("if-none-match", "\"0\""), "/apis")
            .await;
        assert_eq!(
            (stale.status.as_u16(), stale.body),
            (200, first.body.clone())
        );

        let items = first.body["items"].as_array().unwrap();
        let names: Vec<_> = items.iter().map(|i| &i["metadata"]["name"]).collect();
        let expected = [
            "external.metrics.k8s.io",
            "custom.metrics.k8s.io",
            "signals.ebpfscaler.io",
        ];
        assert_eq!(names, expected);
        let external = &items[0]["versions"][0];
        assert_eq!(external["version"], "v1beta1");
        assert_eq!(external["freshness"], "Current");
        assert_eq!(
            external["resources"].as_array().unwrap().len(),
            Metric::ALL.len()
        );
        assert_eq!(
            external["resources"][0],
            json!({
                "resource": "requests_per_second", "scope": "Namespaced", "singularResource": "",
                "responseKind": {"group": "", "version": "", "kind": "ExternalMetricValueList"},
                "verbs": ["get"],
            })
        );
        // Subresources lie under their resources.
        let custom = &items[1]["versions"][0];
        let pods = &custom["resources"][0];
        assert_eq!(pods["resource"], "pods");
        assert_eq!(
            pods["subresources"].as_array().unwrap().len(),
            Metric::ALL.len()
        );
        assert_eq!(
            pods["subresources"][0]["subresource"],
            "requests_per_second"
        );
    }
    // Two replicas tell the same, so a client that meets both has the same tag.
    let beside = world.beside_with(&["--custom-metrics"]).await;
    let asks = proxy.with("accept", AGGREGATED);
    let tags = [
        world.get(&asks, "/apis").await,
        beside.get(&asks, "/apis").await,
    ];
    assert_eq!(tags[0].headers["etag"], tags[1].headers["etag"]);
}

/// Every `$ref` in a document.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").map(|r| r.as_str().unwrap().to_owned()));
            map.values().for_each(|v| references(v, found));
        }
        Value::Array(all) => all.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

#[tokio::test]
async fn openapi_of_both_versions_names_what_can_be_asked() {
    let world = World::with(|_| {}, &["--custom-metrics"]).await;
    let aggregator = world
        .proxy("system:aggregator")
        .with("accept", "application/json");
    let v2 = world.get(&aggregator, "/openapi/v2").await;
    assert_eq!(v2.status, 200);
    assert_eq!(v2.body["swagger"], "2.0");
    let path = format!("{GROUP}/namespaces/{{namespace}}/{{metric}}");
    let get = &v2.body["paths"][&path]["get"];
    let metric = get["parameters"].as_array().unwrap();
    let metric = metric.iter().find(|p| p["name"] == "metric").unwrap();
    assert_eq!(metric["enum"].as_array().unwrap().len(), Metric::ALL.len());
    assert_eq!(
        (&metric["in"], &metric["required"]),
        (&json!("path"), &json!(true))
    );
    let tag = v2.headers["etag"].to_str().unwrap();
    let known = aggregator.clone().with("if-none-match", tag);
    assert_eq!(world.get(&known, "/openapi/v2").await.status, 304);
    let mut all = Vec::new();
    references(&v2.body, &mut all);
    assert!(all.len() >= 6);
    for reference in all {
        let name = reference.strip_prefix("#/definitions/").unwrap();
        assert!(v2.body["definitions"][name].is_object(), "{name}");
    }

    let v3 = world.get(&aggregator, "/openapi/v3").await;
    let paths = v3.body["paths"].as_object().unwrap();
    let names: Vec<_> = paths.keys().collect();
    assert_eq!(
        names,
        [
            "apis/custom.metrics.k8s.io/v1beta1",
            "apis/custom.metrics.k8s.io/v1beta2",
            "apis/external.metrics.k8s.io/v1beta1",
            "apis/signals.ebpfscaler.io/v1alpha1"
        ]
    );
    let mut ids = Vec::new();
    for entry in paths.values() {
        let url = entry["serverRelativeURL"].as_str().unwrap();
        let spec = world.get(&aggregator, url).await;
        assert_eq!(spec.body["openapi"], "3.0.0", "{url}");
        assert_eq!(spec.headers["cache-control"], "public, immutable");
        let expires = spec.headers["expires"].to_str().unwrap();
        assert!(expires.ends_with(" GMT"), "{expires}");
        let (path, hash) = url.split_once("?hash=").unwrap();
        assert_eq!(spec.headers["etag"], format!("\"{hash}\""));
        let known = aggregator
            .clone()
            .with("if-none-match", &format!("\"{hash}\""));
        assert_eq!(world.get(&known, url).await.status, 304);
        // An old address leads to the present one; one without a hash is not to be kept for ever.
        let moved = world.get(&aggregator, &format!("{path}?hash=0")).await;
        assert_eq!(
            (moved.status.as_u16(), &moved.headers["location"]),
            (301, &url.parse().unwrap())
        );
        let plain = world.get(&aggregator, path).await;
        assert_eq!(
            (&plain.headers["cache-control"], plain.body),
            (&"public".parse().unwrap(), spec.body.clone())
        );
        let mut all = Vec::new();
        references(&spec.body, &mut all);
        for reference in all {
            let name = reference.strip_prefix("#/components/schemas/").unwrap();
            assert!(
                spec.body["components"]["schemas"][name].is_object(),
                "{name}"
            );
        }
        for operation in spec.body["paths"].as_object().unwrap().values() {
            ids.push(operation["get"]["operationId"].as_str().unwrap().to_owned());
        }
    }
    ids.sort();
    ids.dedup();
    assert_eq!(
        ids.len(),
        11,
        "every operation has a name of its own: {ids:?}"
    );
    // kube-apiserver asks for JSON; who takes protobuf only is told so.
    for (path, accept) in [
        (
            "/openapi/v2",
            "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
        ),
        (
            "/openapi/v3/apis/external.metrics.k8s.io/v1beta1",
            "application/com.github.proto-openapi.spec.v3@v1.0+protobuf",
        ),
    ] {
        let asks = world.proxy("ann").with("accept", accept);
        assert_eq!(world.get(&asks, path).await.status, 406);
    }
}

#[tokio::test]
async fn whoever_may_not_see_a_path_learns_nothing_of_it() {
    let world = World::new().await;
    let nobody = Identity::default();
    world.cluster.deny("eve");
    let eve = world.proxy("eve");
    for path in [
        "/apis",
        GROUP,
        "/version",
        "/openapi/v2",
        "/openapi/v3",
        "/apis/nowhere.example.com",
        "/secret",
    ] {
        for method in ["GET", "HEAD"] {
            let reply = world.request(method, &nobody, path).await.unwrap();
            assert_eq!(reply.status, 401, "{method} {path}");
            let reply = world.request(method, &eve, path).await.unwrap();
            assert_eq!(reply.status, 403, "{method} {path}");
        }
        let asked = world.cluster.access_reviews();
        let asked = asked
            .iter()
            .any(|spec| spec["nonResourceAttributes"] == json!({"verb": "get", "path": path}));
        assert!(asked, "{path}");
    }
    let ann = world.proxy("ann");
    assert_eq!(world.get(&ann, "/secret").await.status, 404);
    assert_eq!(
        world.request("DELETE", &ann, GROUP).await.unwrap().status,
        405
    );
}

#[tokio::test]
async fn a_kubernetes_client_finds_its_way() {
    let world = World::with(
        |cluster| cluster.pod("web-1", "n1", |_| {}),
        &["--custom-metrics"],
    )
    .await;
    let mut agent = world.agent("n1").await;
    agent.steady(&["web-1"], 10).await;
    agent.stay();
    let client = world.client("ann");
    let groups = client.list_api_groups_aggregated().await.unwrap();
    assert_eq!(groups.items.len(), 3);
    for (name, version) in [
        ("external.metrics.k8s.io", "v1beta1"),
        ("custom.metrics.k8s.io", "v1beta2"),
        ("signals.ebpfscaler.io", "v1alpha1"),
    ] {
        let group = kube::discovery::group(&client, name).await.unwrap();
        assert_eq!(group.preferred_version_or_latest(), version);
    }
    let get = |path: &str| {
        let request = axum::http::Request::get(path);
        client.request::<Value>(request.body(Vec::new()).unwrap())
    };
    let path = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/shop/pods/*/requests_per_second";
    eventually("a value", || async { get(path).await.is_ok() }).await;
    let list: MetricValueList<Pod> = serde_json::from_value(get(path).await.unwrap()).unwrap();
    assert_eq!(list.items[0].value.0, "40");
    let path = format!("{GROUP}/namespaces/shop/no_such_metric");
    match get(&path).await {
        Err(kube::Error::Api(status)) => {
            assert!(status.is_not_found(), "{status:?}");
            assert!(status.message.contains("requests_per_second"), "{status:?}");
        }
        other => panic!("{other:?}"),
    }
}
