//! A replica that has just started, or has crashed and is back, is sent queries before it can answer them: whoever asks
//! waits or is told to ask again, and is never told something that is not so.

use std::sync::Arc;
use std::time::Duration;

use super::cluster::Cluster;
use super::pki::Ca;
use super::raw;
use super::world::*;

const PATH: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/requests_per_second";

/// A cluster with one pod, whose agent has not come yet, and the CAs of all.
fn cluster() -> (Cluster, [Arc<Ca>; 3]) {
    let cluster = Cluster::new();
    let cas = ["ebpf-scaler", "front-proxy", "kubernetes"].map(|name| Arc::new(Ca::new(name)));
    trust(&cluster, &cas[1], &cas[2]);
    cluster.pod("web-1", "n1", |_| {});
    (cluster, cas)
}

#[tokio::test]
async fn a_query_that_comes_too_early_is_put_off_until_the_answer_is_known() {
    let (cluster, cas) = cluster();
    serve_with(&cluster, &cas[0]);
    let world = World::starting(cluster, cas, &["--agents-timeout=1h"]).await;
    eventually("the front proxy and the pods are known", || async {
        let reason = world.running.readiness.reason();
        reason.is_some_and(|reason| reason.contains("agents"))
    })
    .await;
    // Without the pod's agent the answer would be that it is silent, which an HPA would hold against us.
    for path in [PATH, "/apis/external.metrics.k8s.io/v1beta1", "/openapi/v2"] {
        let reply = world.get(&world.proxy("hpa"), path).await;
        assert_eq!(reply.status, 503, "{path}: {}", reply.body);
        assert_eq!(reply.headers["retry-after"], "1");
        let message = reply.body["message"].as_str().unwrap();
        assert!(message.contains("waiting for the agents"), "{message}");
    }
    assert_eq!(world.get(&Identity::default(), "/livez").await.status, 200);

    let mut agent = world.agent("n1").await;
    agent.report(&[]).await;
    eventually("ready", || async { world.running.readiness.is_ready() }).await;
    let reply = world.get(&world.proxy("hpa"), PATH).await;
    assert!(!reply.headers.contains_key("retry-after"), "{}", reply.body);
    // Told to end, it still answers as long as it is asked.
    world.shutdown.cancel();
    eventually("not ready", || async {
        !world.running.readiness.is_ready()
    })
    .await;
    let path = "/apis/external.metrics.k8s.io/v1beta1";
    assert_eq!(world.get(&world.proxy("hpa"), path).await.status, 200);
}

#[tokio::test]
async fn who_connects_before_there_is_a_certificate_waits_for_it() {
    let (cluster, cas) = cluster();
    let serving_ca = cas[0].clone();
    let world = World::starting(cluster.clone(), cas, &[]).await;
    let versions = [&rustls::version::TLS13];
    for port in [world.running.api, world.running.report] {
        let connecting = raw::connect(&world, port, &versions, "h2");
        let early = tokio::time::timeout(Duration::from_millis(300), connecting).await;
        assert!(early.is_err(), "{early:?}");
    }
    let waiting = raw::connect(&world, world.running.api, &versions, "h2");
    let (connected, ()) = tokio::join!(waiting, async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        serve_with(&cluster, &serving_ca);
    });
    connected.unwrap();
}
