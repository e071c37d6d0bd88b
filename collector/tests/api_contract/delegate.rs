//! `--delegate`: metrics of another provider are served through us, and nothing that it does or fails to do reaches
//! our own metrics.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::pki::Ca;
use super::upstream::{Manner, Upstream, VALUES, names};
use super::world::*;

const EXTERNAL: &str = "external.metrics.k8s.io";
const CUSTOM: &str = "custom.metrics.k8s.io";
const V1: &str = "/apis/external.metrics.k8s.io/v1beta1";
const V2: &str = "/apis/custom.metrics.k8s.io/v1beta2";
const FOREIGN: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/s0-cron";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A pod of ours at 40 requests/s, and another provider of `group`.
async fn worlds(group: &str) -> (World, Agent, Upstream) {
    let upstream = Upstream::start().await;
    let mut flags = upstream.flags(group);
    flags.push("--custom-metrics".into());
    let (world, agent) = before(&flags).await;
    let up = format!("ebpf_scaler_apiserver_delegate_up{{group=\"{group}\"}}");
    eventually("the other provider is known", || async {
        world.own_metric(&up).await.as_deref() == Some("1")
    })
    .await;
    (world, agent, upstream)
}

async fn before(flags: &[String]) -> (World, Agent) {
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let world = World::with(|cluster| cluster.pod("web-1", "n1", |_| {}), &flags).await;
    let mut agent = world.agent("n1").await;
    agent.steady(&["web-1"], 10).await;
    agent.stay();
    eventually("a value of ours", || async { ours(&world).await == 200 }).await;
    (world, agent)
}

/// The status of a question for a metric of ours.
async fn ours(world: &World) -> u16 {
    let reply = world.metric("requests_per_second", "app%3Dweb").await;
    if reply.status == 200 {
        assert_eq!(reply.body["items"][0]["value"], "40");
    }
    reply.status.as_u16()
}

async fn foreign(world: &World) -> Reply {
    world.get(&world.proxy("hpa"), FOREIGN).await
}

fn cause(reply: &Reply) -> &str {
    assert_eq!(reply.body["kind"], "Status", "{}", reply.body);
    let cause = &reply.body["details"]["causes"][0]["reason"];
    cause.as_str().unwrap_or_default()
}

async fn outcome(world: &World, outcome: &str) -> Option<String> {
    let name = format!(
        "ebpf_scaler_apiserver_delegated_total{{group=\"{EXTERNAL}\",outcome=\"{outcome}\"}}"
    );
    world.own_metric(&name).await
}

#[tokio::test]
async fn a_foreign_name_is_answered_by_the_other_provider_word_for_word() {
    let (world, _agent, upstream) = worlds(EXTERNAL).await;
    let hpa = world
        .proxy("hpa")
        .with("x-remote-group", "hpas")
        .with("accept", "application/vnd.kubernetes.protobuf, */*");
    let selector = "labelSelector=a+in+%28b%2Cc%29";
    let text = world.text(&hpa, &format!("{FOREIGN}?{selector}")).await;
    assert_eq!(text, VALUES, "not one byte is another");
    let seen = upstream.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].uri, format!("{FOREIGN}?{selector}"));
    let headers = &seen[0].headers;
    assert_eq!(
        headers["authorization"], "Bearer our-token",
        "we ask as ourselves"
    );
    assert_eq!(
        headers["accept"],
        "application/vnd.kubernetes.protobuf, */*"
    );
    assert!(
        headers
            .keys()
            .all(|name| !name.as_str().starts_with("x-remote"))
    );
    // But first the user was asked about.
    let asked = world.cluster.access_reviews();
    let asked = asked
        .iter()
        .find(|spec| spec["user"] == "hpa" && spec["groups"][0] == "hpas");
    assert_eq!(
        asked.unwrap()["resourceAttributes"],
        json!({
            "verb": "list", "group": EXTERNAL, "version": "v1beta1",
            "resource": "s0-cron", "namespace": "shop",
        })
    );
    let reply = foreign(&world).await;
    assert_eq!(reply.headers["content-type"], "application/json");
    assert_eq!(reply.headers["warning"], "299 - \"careful\"");
    assert!(reply.headers.get("x-private").is_none());
    assert_eq!(outcome(&world, "answered").await.as_deref(), Some("2"));

    // Protobuf, which our own answers never are.
    let protobuf = "application/vnd.kubernetes.protobuf";
    upstream.set(Manner::Answer(200, protobuf, "k8s\0 and more"));
    assert_eq!(world.text(&hpa, FOREIGN).await, "k8s\0 and more");
    // An error of the question stays what it is.
    let status =
        r#"{"kind":"Status","status":"Failure","reason":"NotFound","code":404,"message":"theirs"}"#;
    upstream.set(Manner::Answer(404, "application/json", status));
    let reply = foreign(&world).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.body["message"]),
        (404, &json!("theirs"))
    );
    // What is ours they never see.
    let count = upstream.seen().len();
    assert_eq!(ours(&world).await, 200);
    assert_eq!(upstream.seen().len(), count);
}

#[tokio::test]
async fn who_may_not_ask_us_is_not_heard_there() {
    let (world, _agent, upstream) = worlds(EXTERNAL).await;
    world.cluster.deny("eve");
    let eve = world.proxy("eve");
    assert_eq!(world.get(&eve, FOREIGN).await.status, 403);
    assert_eq!(world.get(&Identity::default(), FOREIGN).await.status, 401);
    let hpa = world.proxy("hpa");
    for (path, code) in [
        // A right to one thing must not become a question for another.
        (format!("{V1}/namespaces/shop/..%2Fprivate%2Fs0-cron"), 400),
        (format!("{V1}/namespaces/shop/a%252fb"), 400),
        (format!("{V1}/namespaces/shop%2fx/s0-cron"), 400),
        (format!("{V1}/namespaces/%2e%2e/s0-cron"), 400),
        // Streams have no bound.
        (format!("{FOREIGN}?watch=true"), 405),
        (format!("{FOREIGN}/s0-cron"), 404),
    ] {
        assert_eq!(world.get(&hpa, &path).await.status, code, "{path}");
    }
    let posted = world.request("POST", &hpa, FOREIGN).await.unwrap();
    assert_eq!(posted.status, 405);
    // Nor is it asked again what it asks us.
    let again = hpa.with("x-ebpf-scaler-delegated", "1");
    assert_eq!(world.get(&again, FOREIGN).await.status, 404);
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn custom_metrics_of_others_and_of_other_objects_are_theirs() {
    let (world, _agent, upstream) = worlds(CUSTOM).await;
    let hpa = world.proxy("hpa");
    let shop = format!("{V2}/namespaces/shop");
    for path in [
        "pods/*/queue_length?labelSelector=app%3Dweb",
        "deployments.apps/*/queue_length",
        "services/web/requests_per_second",
        "metrics/queue_length",
    ] {
        let path = format!("{shop}/{path}");
        assert_eq!(world.get(&hpa, &path).await.status, 200, "{path}");
        assert_eq!(upstream.seen().last().unwrap().uri, path);
    }
    let path = "/apis/custom.metrics.k8s.io/v1beta1/nodes/n1/temperature";
    assert_eq!(world.get(&hpa, path).await.status, 200);
    assert_eq!(upstream.seen().last().unwrap().uri, path);
    let asked = world.cluster.access_reviews().pop().unwrap();
    assert_eq!(
        asked["resourceAttributes"],
        json!({
            "verb": "get", "group": CUSTOM, "version": "v1beta1",
            "resource": "nodes", "name": "n1", "subresource": "temperature",
        })
    );
    let count = upstream.seen().len();
    for (path, code) in [
        (format!("{shop}/pods/*/requests_per_second"), 200),
        (
            format!("{shop}/deployments.apps/*/requests_per_second"),
            400,
        ),
        // Kubernetes reads that as a list of `queue_length` in namespace shop.
        (format!("{V2}/namespaces/shop/queue_length"), 404),
        // External metrics have no delegate here.
        (FOREIGN.to_owned(), 404),
    ] {
        assert_eq!(world.get(&hpa, &path).await.status, code, "{path}");
    }
    assert_eq!(upstream.seen().len(), count);
}

#[tokio::test]
async fn discovery_has_the_names_of_both() {
    let (world, _agent, upstream) = worlds(EXTERNAL).await;
    let proxy = world.proxy("system:kube-aggregator");
    let told = |path: &'static str| async { world.get(&proxy, path).await };
    let resources = async || -> Vec<String> {
        let list = told(V1).await.body["resources"].clone();
        let names = list.as_array().unwrap().iter();
        let names = names.map(|r| {
            assert_eq!(
                r["verbs"],
                json!(["get"]),
                "others' verbs would draw in namespace deletion"
            );
            assert_eq!(r["kind"], "ExternalMetricValueList");
            r["name"].as_str().unwrap().to_owned()
        });
        names.collect()
    };
    let tag = async || {
        let asks = proxy.clone().with("accept", AGGREGATED);
        let reply = world.get(&asks, "/apis").await;
        (reply.headers["etag"].clone(), reply.body.to_string())
    };
    assert_eq!(resources().await.last().unwrap(), "externalmetrics");
    let before = tag().await;
    let ours = resources().await.len() - 1;

    // One of ours is ours, and the order is one that replicas agree on.
    upstream.has(names(&["z", "requests_per_second", "a"]));
    eventually("new names", || async {
        resources().await.len() == ours + 2
    })
    .await;
    assert_eq!(resources().await[ours..], ["a", "z"]);
    let after = tag().await;
    assert!(before.0 != after.0 && after.1.contains("\"resource\":\"z\""));
    let gauge = "ebpf_scaler_apiserver_delegate_metrics{group=\"external.metrics.k8s.io\"}";
    assert_eq!(world.own_metric(gauge).await.as_deref(), Some("3"));
    // Which other names there are is in discovery only.
    let spec = told("/openapi/v3/apis/external.metrics.k8s.io/v1beta1").await;
    let get = &spec.body["paths"][format!("{V1}/namespaces/{{namespace}}/{{metric}}")]["get"];
    assert!(get["parameters"].is_array() && !get.to_string().contains("\"enum\""));

    // Down, or talking nonsense: what it had stays, for it may be back at once.
    let up = "ebpf_scaler_apiserver_delegate_up{group=\"external.metrics.k8s.io\"}";
    for (manner, document) in [
        (Manner::Down, names(&["b"])),
        (Manner::Hang, json!({"kind": "Status", "code": 500})),
    ] {
        upstream.set(manner);
        upstream.has(document);
        eventually("told to be down", || async {
            world.own_metric(up).await.as_deref() == Some("0")
        })
        .await;
        assert_eq!(tag().await, after);
    }
    assert_eq!(world.get(&Identity::default(), "/readyz").await.status, 200);
    upstream.has(names(&["b"]));
    eventually("names again", || async {
        resources().await[ours..] == ["b"]
    })
    .await;
    // None at all is no error.
    upstream.has(json!({"kind": "APIResourceList", "resources": Value::Null}));
    eventually("no names", || async { resources().await.len() == ours }).await;
}

#[tokio::test]
async fn its_failures_are_told_apart_and_are_not_the_clients() {
    let (world, _agent, upstream) = worlds(EXTERNAL).await;
    let json = "application/json";
    let status = r#"{"kind":"Status","code":500,"message":"theirs"}"#;
    for (manner, code, because, counted) in [
        (Manner::Down, 503, "DelegateUnavailable", "unavailable"),
        (Manner::Break, 503, "DelegateUnavailable", "unavailable"),
        (Manner::Hang, 504, "DelegateTimeout", "timeout"),
        (Manner::Drip, 504, "DelegateTimeout", "timeout"),
        (Manner::Flood, 502, "DelegateGarbage", "garbage"),
        (
            Manner::Answer(200, json, "{"),
            502,
            "DelegateGarbage",
            "garbage",
        ),
        (
            Manner::Answer(200, "text/html", "<html>"),
            502,
            "DelegateGarbage",
            "garbage",
        ),
        (
            Manner::Answer(404, "text/plain", "no"),
            502,
            "DelegateGarbage",
            "garbage",
        ),
        (
            Manner::Answer(302, json, VALUES),
            502,
            "DelegateGarbage",
            "garbage",
        ),
        // Not the user is refused but we are: with a 401 it would look for another token.
        (
            Manner::Answer(401, json, status),
            502,
            "DelegateForbidden",
            "forbidden",
        ),
        (
            Manner::Answer(403, json, status),
            502,
            "DelegateForbidden",
            "forbidden",
        ),
    ] {
        let count = async || -> u64 {
            outcome(&world, counted)
                .await
                .map_or(0, |n| n.parse().unwrap())
        };
        let counted_before = count().await;
        upstream.set(manner);
        let began = Instant::now();
        let reply = foreign(&world).await;
        assert_eq!(
            (reply.status.as_u16(), cause(&reply)),
            (code, because),
            "{}",
            reply.body
        );
        assert!(began.elapsed() < Duration::from_secs(10));
        let message = reply.body["message"].as_str().unwrap();
        assert!(
            message.contains("https://127.0.0.1:"),
            "names who: {message}"
        );
        assert_eq!(count().await, counted_before + 1);
        assert_eq!(ours(&world).await, 200);
    }
    upstream.set(Manner::Answer(500, json, status));
    let reply = foreign(&world).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.body["message"]),
        (500, &json!("theirs"))
    );
    upstream.set(Manner::Answer(200, json, VALUES));
    assert_eq!(foreign(&world).await.status, 200);
}

#[tokio::test]
async fn one_that_hangs_uses_up_its_own_places_only() {
    let upstream = Upstream::start().await;
    let (world, _agent) = before(&upstream.patient_flags(EXTERNAL, "5m")).await;
    eventually("it is reached", || async {
        foreign(&world).await.status == 200
    })
    .await;
    let before = upstream.seen().len();
    upstream.set(Manner::Hang);
    let mut asks = tokio::task::JoinSet::new();
    let world = std::sync::Arc::new(world);
    for _ in 0..110 {
        let world = world.clone();
        asks.spawn(async move { foreign(&world).await });
    }
    let limit = Duration::from_secs(60);
    eventually_within(
        limit,
        "its places are taken and others are sent away",
        || async {
            upstream.seen().len() == before + 100
                && outcome(&world, "busy").await.as_deref() == Some("10")
        },
    )
    .await;
    for _ in 0..5 {
        assert_eq!(ours(&world).await, 200);
    }
    upstream.set(Manner::Answer(200, "application/json", VALUES));
    let mut codes = std::collections::BTreeMap::<u16, usize>::new();
    while let Some(reply) = asks.join_next().await {
        let reply = reply.unwrap();
        if reply.status == 429 {
            assert_eq!(reply.headers["retry-after"], "1");
        }
        *codes.entry(reply.status.as_u16()).or_default() += 1;
    }
    assert_eq!(
        codes.into_iter().collect::<Vec<_>>(),
        [(200, 100), (429, 10)]
    );
    // And the places come back.
    assert_eq!(foreign(&world).await.status, 200);
}

#[tokio::test]
async fn only_whom_the_ca_has_signed_gets_our_token() {
    let (world, _agent, upstream) = worlds(EXTERNAL).await;
    let new = Ca::new("other-provider");
    upstream.serve_with(&new);
    let before = upstream.seen().len();
    eventually("not believed", || async {
        let reply = foreign(&world).await;
        assert_eq!(
            (reply.status.as_u16(), cause(&reply)),
            (503, "DelegateUnavailable")
        );
        // Until then, that an open connection has ended.
        reply.body["message"]
            .as_str()
            .unwrap()
            .contains("certificate")
    })
    .await;
    assert_eq!(upstream.seen().len(), before);
    assert_eq!(ours(&world).await, 200);
    // Nonsense in the file changes nothing; the new CA is taken up while we run.
    upstream.trust("nonsense");
    upstream.trust(&new.pem);
    eventually("believed", || async { foreign(&world).await.status == 200 }).await;
}

#[tokio::test]
async fn we_start_and_serve_without_it() {
    let upstream = Upstream::start().await;
    std::fs::remove_file(upstream.files.path().join("ca.crt")).unwrap();
    let (world, _agent) = before(&upstream.flags(EXTERNAL)).await;
    let reply = foreign(&world).await;
    assert_eq!(
        (reply.status.as_u16(), cause(&reply)),
        (503, "DelegateUnavailable")
    );
    let aggregator = world.proxy("system:kube-aggregator");
    assert_eq!(world.get(&aggregator, V1).await.status, 200);
    let up = "ebpf_scaler_apiserver_delegate_up{group=\"external.metrics.k8s.io\"}";
    assert_eq!(world.own_metric(up).await.as_deref(), Some("0"));
}

#[tokio::test]
async fn flags_that_make_no_sense_are_refused_at_the_start() {
    for flags in [
        &["--delegate=custom.metrics.k8s.io=https://a.b.svc"][..],
        &[
            "--custom-metrics",
            "--delegate=external.metrics.k8s.io=https://a.b.svc,external.metrics.k8s.io=https://c.d.svc",
        ],
    ] {
        let refused = World::try_flags(flags).await;
        assert!(refused.contains("--delegate"), "{refused}");
    }
}
