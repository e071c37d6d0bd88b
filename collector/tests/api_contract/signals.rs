//! signals.ebpfscaler.io, as kubectl, client-go and kube-rs use it.

use std::time::Duration;

use axum::http::StatusCode;
use ebpf_scaler_crds::signals::{PodSignals, WorkloadSignals};
use ebpf_scaler_proto as proto;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use super::world::*;

mod watch;

const SHOP: &str = "/apis/signals.ebpfscaler.io/v1alpha1/namespaces/shop";
const ALL: &str = "/apis/signals.ebpfscaler.io/v1alpha1";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
const WAIT: Duration = Duration::from_secs(20);

/// Two pods of web on one node with 40 requests/s each, whose threads wait behind a pod of another namespace,
/// and a Job's pod of the same name.
async fn shop() -> (World, Agent) {
    let world = World::with(
        |cluster| {
            cluster.pod("web-1", "n1", |_| {});
            cluster.pod("web-2", "n1", |pod| pod["metadata"]["labels"]["tier"] = json!("gold"));
            cluster.pod("web-3", "n1", |pod| {
                pod["metadata"]["ownerReferences"] = json!([{
                    "apiVersion": "batch/v1", "kind": "Job", "name": "web", "uid": "u", "controller": true,
                }]);
            });
            cluster.pod("batch-7", "n1", |pod| {
                pod["metadata"]["namespace"] = json!("jobs");
                pod["metadata"]["ownerReferences"] = json!([]);
            });
        },
        &[],
    )
    .await;
    let mut agent = world.agent("n1").await.with_run_queue();
    for tick in 0..=44 {
        agent.send(samples(tick * 10)).await;
    }
    agent.stay();
    let url = format!("{SHOP}/podsignals/web-1");
    eventually("the agent's reports are in", || async {
        let pod = world.get(&world.proxy("kubectl"), &url).await;
        pod.body["signals"]["requestsPerSecond"] == "40"
    })
    .await;
    (world, agent)
}

fn samples(requests: u64) -> Vec<proto::PodSample> {
    let mut samples: Vec<_> = ["web-1", "web-2"].map(|pod| sample(pod, requests)).into();
    for sample in &mut samples {
        let counters = sample.counters.as_mut().unwrap();
        counters.receive_bytes = requests * 1000;
        counters.transmit_bytes = requests * 100_000;
        counters.runqueue_waits = requests;
        counters.runqueue_wait_nanos = requests * 25_000_000;
        counters.runqueue_wait_self_nanos = requests * 5_000_000;
        counters.runqueue_wait_other_pods_nanos = requests * 20_000_000;
        sample.runqueue_latency = Some(proto::Histogram {
            index: vec![ebpf_scaler_common::histogram::index(25_000) as u32],
            count: vec![requests],
        });
        sample.preemptors = vec![proto::Preemptor {
            pod_uid: "uid-batch-7".into(),
            waiting_threads: 0.8,
        }];
    }
    samples.push(sample("web-3", 0));
    samples.push(sample("batch-7", 0));
    samples
}

/// As kubectl prints a table: columns of priority 0, or all.
fn print(table: &Value, wide: bool) -> String {
    let columns = table["columnDefinitions"].as_array().unwrap();
    let shown: Vec<_> = (0..columns.len())
        .filter(|i| wide || columns[*i]["priority"] == 0)
        .collect();
    let text = |cell: &Value| {
        cell.as_str()
            .map_or_else(|| cell.to_string(), str::to_owned)
    };
    let mut lines = vec![
        shown
            .iter()
            .map(|i| text(&columns[*i]["name"]).to_uppercase())
            .collect::<Vec<_>>(),
    ];
    for row in table["rows"].as_array().unwrap() {
        lines.push(shown.iter().map(|i| text(&row["cells"][*i])).collect());
    }
    let width = |i: usize| lines.iter().map(|l| l[i].len()).max().unwrap();
    let widths: Vec<_> = (0..shown.len()).map(width).collect();
    let pad = |line: &Vec<String>| {
        let cells = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    lines.iter().map(pad).collect::<Vec<_>>().join("\n")
}

async fn table(world: &World, path: &str) -> Value {
    let kubectl = world.proxy("kubectl").with("accept", TABLE);
    let reply = world.get(&kubectl, path).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
    assert_eq!(reply.headers["content-type"], "application/json");
    assert_eq!(reply.body["kind"], "Table");
    assert_eq!(reply.body["apiVersion"], "meta.k8s.io/v1");
    reply.body
}

/// The table of a path once it prints like this: on a busy machine reports may be late for a moment.
async fn prints(world: &World, path: &str, expected: &str) -> Value {
    let deadline = std::time::Instant::now() + WAIT;
    loop {
        let table = table(world, path).await;
        let printed = print(&table, false);
        if printed == expected {
            return table;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{printed}\ninstead of\n{expected}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn kubectl_prints_a_table() {
    let (world, _agent) = shop().await;
    let workloads = prints(
        &world,
        &format!("{SHOP}/workloadsignals?limit=500"),
        "\
NAME      KIND         PODS   REQ/S   IN-FLIGHT   ERR/S   P99      RUNQ-P99   RUNQ-CAUSE      RX          TX          COVERAGE   AGE
web       Deployment   2      80      0           0       1.02ms   26.6ms     OtherPods 80%   78.1KiB/s   7.63MiB/s   100%       0s
web.job   Job          1      0       0           0       -        -          -               0B/s        0B/s        100%       0s",
    )
    .await;
    let pods = prints(
        &world,
        &format!("{SHOP}/podsignals"),
        "\
NAME    NODE   READY   REQ/S   IN-FLIGHT   ERR/S   P99      RUNQ-P99   RUNQ-CAUSE      RX          TX          COVERAGE   AGE
web-1   n1     True    40      0           0       1.02ms   26.6ms     OtherPods 80%   39.1KiB/s   3.81MiB/s   live       0s
web-2   n1     True    40      0           0       1.02ms   26.6ms     OtherPods 80%   39.1KiB/s   3.81MiB/s   live       0s
web-3   n1     True    0       0           0       -        -          -               0B/s        0B/s        live       0s",
    )
    .await;
    let wide = print(&pods, true);
    assert!(wide.contains("PREEMPTOR"), "{wide}");
    assert!(wide.contains("jobs/batch-7   Deployment/web"), "{wide}");
    let row = &workloads["rows"][1]["object"];
    assert_eq!(row["kind"], "PartialObjectMetadata");
    assert_eq!(row["metadata"]["name"], "web.job");
    let whole = table(
        &world,
        &format!("{SHOP}/workloadsignals/web?includeObject=Object"),
    )
    .await;
    assert_eq!(whole["rows"][0]["object"]["kind"], "WorkloadSignals");
    let none = table(
        &world,
        &format!("{SHOP}/workloadsignals/web?includeObject=None"),
    )
    .await;
    assert_eq!(none["rows"][0].get("object"), None);
    // In all namespaces kubectl takes the namespace from the object.
    let all = table(&world, &format!("{ALL}/podsignals")).await;
    let namespaces: Vec<_> = all["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["object"]["metadata"]["namespace"].as_str().unwrap())
        .collect();
    assert_eq!(namespaces, ["jobs", "shop", "shop", "shop"]);
}

#[tokio::test]
async fn clients_read_the_objects_as_types() {
    let (world, _agent) = shop().await;
    let client = world.client("alice");
    let workloads: Api<WorkloadSignals> = Api::namespaced(client.clone(), "shop");
    let web = workloads.get("web").await.unwrap();
    assert_eq!(web.workload.kind, "Deployment");
    assert_eq!(web.window_seconds, 30);
    assert_eq!(web.signals.get("requests_per_second"), Some(80.0));
    let p99 = web.signals.request_latency_p99_microseconds.unwrap();
    assert!((p99 - 1000).abs() <= 125, "{p99}");
    assert_eq!(
        (web.coverage.expected_pods, web.coverage.covered_pods),
        (2, 2)
    );
    // web-2 has a label more than web-1.
    let labels: Vec<_> = web.metadata.labels.unwrap().into_keys().collect();
    assert_eq!(labels, ["app", "pod-template-hash"]);
    let timestamp: jiff::Timestamp = web.timestamp.unwrap().parse().unwrap();
    let age = jiff::Timestamp::now().duration_since(timestamp).as_secs();
    assert!((0..5).contains(&age), "{age}");
    let queue = web.runqueue.unwrap();
    assert_eq!(
        (queue.causes[0].cause.as_str(), queue.causes[0].percent),
        ("OtherPods", 80)
    );
    let by = &queue.preemptors[0];
    assert_eq!(
        (by.kind.as_str(), by.pod.as_deref()),
        ("Pod", Some("batch-7"))
    );
    assert_eq!(by.waiting_threads.get(), 1.6);
    // Nobody connected, so no round-trip time was taken.
    let missing: Vec<_> = web
        .missing
        .iter()
        .map(|m| (m.reason.as_str(), m.signals.join(",")))
        .collect();
    assert_eq!(
        missing,
        [(
            "NoEvents",
            "tcpRttP50Microseconds,tcpRttP99Microseconds".to_owned()
        )]
    );

    let pods: Api<PodSignals> = Api::all(client);
    for (labels, fields, found) in [
        ("", "", vec!["batch-7", "web-1", "web-2", "web-3"]),
        ("tier=gold", "", vec!["web-2"]),
        ("ebpfscaler.io/deployment=web", "", vec!["web-1", "web-2"]),
        ("ebpfscaler.io/node in (n2)", "", vec![]),
        ("ebpfscaler.io/job", "", vec!["web-3"]),
        ("", "metadata.namespace=jobs", vec!["batch-7"]),
        (
            "app",
            "metadata.name!=web-1,metadata.namespace!=jobs",
            vec!["web-2", "web-3"],
        ),
    ] {
        let params = ListParams::default().labels(labels).fields(fields).limit(1);
        let list = pods.list(&params).await.unwrap();
        let names: Vec<_> = list
            .items
            .iter()
            .map(|p| p.metadata.name.clone().unwrap())
            .collect();
        assert_eq!(names, found, "{labels} {fields}");
        assert_eq!(list.metadata.continue_, None);
        assert!(
            list.metadata
                .resource_version
                .is_some_and(|v| v.parse::<u64>().is_ok())
        );
    }
    let window = ListParams::default().fields("window=3s");
    let list = pods.list(&window).await.unwrap();
    assert!(list.items.iter().all(|pod| pod.window_seconds == 3));
}

#[tokio::test]
async fn figures_are_those_of_the_metrics_api() {
    let (world, _agent) = shop().await;
    let client = world.client("alice");
    let workloads: Api<WorkloadSignals> = Api::namespaced(client, "shop");
    let web = workloads.get("web").await.unwrap();
    let mut compared = 0;
    for metric in ebpf_scaler_measure::Metric::ALL {
        let reply = world
            .metric(metric.as_str(), "ebpfscaler.io%2Fdeployment%3Dweb")
            .await;
        let text = reply.body["items"][0]["value"].as_str().unwrap().to_owned();
        let quantity: ebpf_scaler_crds::Quantity = text.parse().unwrap();
        match web.signals.get(metric.as_str()) {
            Some(value) => assert_eq!(value, quantity.get(), "{metric}"),
            // What had no event is 0 there.
            None => assert_eq!(quantity.get(), 0.0, "{metric}"),
        }
        compared += 1;
    }
    assert_eq!(compared, ebpf_scaler_measure::Metric::ALL.len());
}

#[tokio::test]
async fn what_is_wrong_is_said_in_a_status() {
    let (world, _agent) = shop().await;
    let user = world.proxy("kubectl");
    let metadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    for (method, path, accept, code, reason, says) in [
        (
            "GET",
            format!("{SHOP}/workloadsignals/db"),
            "",
            404,
            "NotFound",
            "workloadsignals.signals.ebpfscaler.io \"db\" not found",
        ),
        (
            "GET",
            format!("{SHOP}/workload"),
            "",
            404,
            "NotFound",
            "could not find the requested resource",
        ),
        (
            "GET",
            format!("{SHOP}/podsignals"),
            metadata,
            406,
            "NotAcceptable",
            "application/json",
        ),
        (
            "GET",
            format!("{SHOP}/podsignals"),
            "application/yaml",
            406,
            "NotAcceptable",
            "application/json",
        ),
        (
            "GET",
            format!("{SHOP}/podsignals?continue=x"),
            "",
            400,
            "BadRequest",
            "continue",
        ),
        (
            "GET",
            format!("{SHOP}/podsignals?fieldSelector=spec.nodeName%3Dn1"),
            "",
            400,
            "BadRequest",
            "field label not supported",
        ),
        (
            "GET",
            format!("{SHOP}/workloadsignals?labelSelector=ebpfscaler.io%2Fport%3D80"),
            "",
            400,
            "BadRequest",
            "port",
        ),
        (
            "DELETE",
            format!("{SHOP}/workloadsignals/web"),
            "",
            405,
            "MethodNotAllowed",
            "only GET",
        ),
        (
            "POST",
            format!("{SHOP}/workloadsignals"),
            "",
            405,
            "MethodNotAllowed",
            "only GET",
        ),
    ] {
        let identity = if accept.is_empty() {
            user.clone()
        } else {
            user.clone().with("accept", accept)
        };
        let reply = world.request(method, &identity, &path).await.unwrap();
        assert_eq!(reply.status.as_u16(), code, "{path}: {}", reply.body);
        assert_eq!(reply.body["kind"], "Status", "{path}");
        assert_eq!(reply.body["reason"], reason, "{path}");
        let message = reply.body["message"].as_str().unwrap();
        assert!(message.contains(says), "{path}: {message}");
    }
}

#[tokio::test]
async fn who_may_see_one_namespace_sees_that_one_and_no_names_of_others() {
    let (world, _agent) = shop().await;
    world.cluster.confine("bob", "shop");
    let bob = world.proxy("bob");
    let web = world
        .get(&bob, &format!("{SHOP}/workloadsignals/web"))
        .await;
    assert_eq!(web.status, StatusCode::OK);
    let by = &web.body["runqueue"]["preemptors"][0];
    assert_eq!(by, &json!({"type": "HiddenPod", "waitingThreads": "1600m"}));
    let kubectl = bob.clone().with("accept", TABLE);
    let wide = world
        .get(&kubectl, &format!("{SHOP}/workloadsignals"))
        .await;
    let text = wide.body.to_string();
    assert!(
        text.contains("<hidden>") && !text.contains("batch-7"),
        "{text}"
    );
    for (path, says) in [
        (
            format!("{ALL}/workloadsignals"),
            "workloadsignals.signals.ebpfscaler.io is forbidden: User \"bob\" cannot list resource \"workloadsignals\" in API group \"signals.ebpfscaler.io\" at the cluster scope",
        ),
        (
            format!("{ALL}/namespaces/jobs/podsignals/batch-7"),
            "podsignals.signals.ebpfscaler.io \"batch-7\" is forbidden: User \"bob\" cannot get resource \"podsignals\" in API group \"signals.ebpfscaler.io\" in the namespace \"jobs\"",
        ),
        (
            format!("{ALL}/namespaces/jobs/podsignals?watch=1&fieldSelector=metadata.name%3Dx"),
            "cannot watch resource \"podsignals\"",
        ),
    ] {
        let reply = world.get(&bob, &path).await;
        assert_eq!(reply.status, StatusCode::FORBIDDEN, "{path}");
        let message = reply.body["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
    }
    let asked = world.cluster.access_reviews();
    let asked: Vec<_> = asked
        .iter()
        .map(|spec| &spec["resourceAttributes"])
        .collect();
    let watch = json!({
        "verb": "watch", "group": "signals.ebpfscaler.io", "version": "v1alpha1",
        "resource": "podsignals", "namespace": "jobs", "name": "x",
    });
    assert!(asked.contains(&&watch), "{asked:?}");
    let nobody = world
        .get(&Identity::default(), &format!("{SHOP}/podsignals"))
        .await;
    assert_eq!(nobody.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn kubectl_finds_and_explains_the_resources() {
    let (world, _agent) = shop().await;
    let user = world.proxy("kubectl");
    let list = world.get(&user, ALL).await.body;
    let resources = list["resources"].as_array().unwrap();
    assert_eq!(
        resources[0],
        json!({
            "name": "workloadsignals", "singularName": "workloadsignals", "shortNames": ["wsig"],
            "namespaced": true, "kind": "WorkloadSignals", "verbs": ["get", "list", "watch"],
        })
    );
    assert_eq!(resources[1]["name"], "podsignals");
    let spec = world
        .get(&user, "/openapi/v3/apis/signals.ebpfscaler.io/v1alpha1")
        .await
        .body;
    // What `kubectl explain` looks up.
    let path = &spec["paths"][format!("{ALL}/workloadsignals")]["get"];
    let gvk =
        json!({"group": "signals.ebpfscaler.io", "version": "v1alpha1", "kind": "WorkloadSignals"});
    assert_eq!(path["x-kubernetes-group-version-kind"], gvk);
    let schemas = spec["components"]["schemas"].as_object().unwrap();
    let of_kind = |s: &&Value| s["x-kubernetes-group-version-kind"] == json!([gvk]);
    let schema = schemas.values().find(of_kind).unwrap();
    let p99 = &schema["properties"]["signals"]["properties"]["requestLatencyP99Microseconds"];
    assert_eq!(p99["type"], "integer");
    assert!(
        p99["description"]
            .as_str()
            .unwrap()
            .contains("microseconds"),
        "{p99}"
    );
    assert!(!spec.to_string().contains("$defs"), "{spec}");
}
