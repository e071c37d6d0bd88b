//! Who may ask, and who only says so.

use std::time::Duration;

use ebpf_scaler_proto as proto;
use serde_json::json;
use tonic::Code;

use super::pki::Ca;
use super::world::*;

const PATH: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/requests_per_second";

/// 404 without pods: the identity was taken, the question understood.
const UNDERSTOOD: u16 = 404;

async fn code(world: &World, identity: &Identity) -> u16 {
    world.get(identity, PATH).await.status.as_u16()
}

#[tokio::test]
async fn the_front_proxy_speaks_for_users_and_nobody_else_does() {
    let world = World::new().await;
    assert_eq!(code(&world, &world.proxy("hpa")).await, UNDERSTOOD);

    let forged = Identity::default()
        .with("x-remote-user", "admin")
        .with("x-remote-group", "system:masters");
    assert_eq!(
        code(&world, &forged).await,
        401,
        "headers without a certificate"
    );

    let wrong_ca = Identity {
        certificate: Some(Ca::new("front-proxy").client("front-proxy-client", "")),
        ..forged.clone()
    };
    assert_eq!(
        code(&world, &wrong_ca).await,
        401,
        "a CA of the same name is not the CA"
    );

    let wrong_name = Identity {
        certificate: Some(world.proxy_ca.client("someone-else", "")),
        ..forged.clone()
    };
    assert_eq!(
        code(&world, &wrong_name).await,
        401,
        "a name that is not allowed"
    );

    let nobody = Identity {
        certificate: Some(world.proxy_ca.client("front-proxy-client", "")),
        headers: Vec::new(),
    };
    assert_eq!(
        code(&world, &nobody).await,
        401,
        "the proxy speaks for nobody"
    );

    // With a bearer token the forged headers are ignored, not believed.
    world
        .cluster
        .token("mine", &[], json!({"username": "ann", "groups": ["devs"]}));
    let token = Identity::token("mine").with("x-remote-user", "admin");
    assert_eq!(code(&world, &token).await, UNDERSTOOD);
    let asked = world.cluster.access_reviews().pop().unwrap();
    assert_eq!(asked["user"], "ann");
    assert_eq!(asked["groups"], json!(["devs", "system:authenticated"]));
}

#[tokio::test]
async fn a_client_certificate_of_the_cluster_is_a_user_and_its_headers_mean_nothing() {
    let world = World::new().await;
    let ann = Identity {
        certificate: Some(world.client_ca.client("ann", "devs")),
        headers: vec![("x-remote-user", "admin".into())],
    };
    assert_eq!(code(&world, &ann).await, UNDERSTOOD);
    let asked = world.cluster.access_reviews().pop().unwrap();
    assert_eq!(asked["user"], "ann");
    assert_eq!(asked["groups"], json!(["devs", "system:authenticated"]));
}

#[tokio::test]
async fn tokens_are_reviewed_and_others_refused() {
    let world = World::new().await;
    assert_eq!(code(&world, &Identity::token("unknown")).await, 401);
    assert_eq!(code(&world, &Identity::default()).await, 401);
    // A token for our streams is not one for the API.
    world.cluster.agent_token("agent", "n1");
    assert_eq!(code(&world, &Identity::token("agent")).await, 401);
}

#[tokio::test]
async fn access_is_asked_for_as_list_of_the_metric_and_remembered() {
    let world = World::new().await;
    let hpa = world
        .proxy("hpa")
        .with("x-remote-group", "system:serviceaccounts")
        .with("x-remote-group", "hpas")
        .with("x-remote-extra-acme.org%2fproject", "p1");
    for _ in 0..3 {
        assert_eq!(code(&world, &hpa).await, UNDERSTOOD);
    }
    let asked = world.cluster.access_reviews();
    assert_eq!(asked.len(), 1, "the answer is remembered");
    assert_eq!(
        asked[0]["resourceAttributes"],
        json!({
            "verb": "list", "group": "external.metrics.k8s.io", "version": "v1beta1",
            "resource": "requests_per_second", "namespace": "shop",
        })
    );
    assert_eq!(
        asked[0]["groups"],
        json!(["system:serviceaccounts", "hpas", "system:authenticated"])
    );
    assert_eq!(asked[0]["extra"], json!({"acme.org/project": ["p1"]}));

    world.cluster.deny("eve");
    let reply = world.get(&world.proxy("eve"), PATH).await;
    assert_eq!(reply.status, 403);
    assert_eq!(reply.body["reason"], "Forbidden");
    let message = reply.body["message"].as_str().unwrap();
    assert!(
        message.contains("User \"eve\" cannot list resource \"requests_per_second\""),
        "{message}"
    );
    // An unknown metric is no way around: who may not list it does not learn whether it is there.
    let other = PATH.replace("requests_per_second", "secret_metric");
    assert_eq!(world.get(&world.proxy("eve"), &other).await.status, 403);
    assert_eq!(world.get(&world.proxy("eve"), "/apis").await.status, 403);

    let root = world.proxy("eve").with("x-remote-group", "system:masters");
    assert_eq!(
        code(&world, &root).await,
        UNDERSTOOD,
        "masters are always allowed"
    );
}

#[tokio::test]
async fn health_needs_no_identity() {
    let world = World::new().await;
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(world.get(&Identity::default(), path).await.status, 200);
    }
    for path in ["/apis", "/apis/external.metrics.k8s.io/v1beta1"] {
        assert_eq!(world.get(&Identity::default(), path).await.status, 401);
    }
}

#[tokio::test]
async fn trust_and_the_serving_certificate_change_while_serving() {
    let mut world = World::new().await;
    let (old, new) = (world.proxy("hpa"), Ca::new("front-proxy-2"));
    trust(&world.cluster, &new, &world.client_ca);
    eventually("the old proxy is not believed", || async {
        code(&world, &old).await == 401
    })
    .await;
    world.proxy_ca = new.into();
    assert_eq!(code(&world, &world.proxy("hpa")).await, UNDERSTOOD);

    // A ConfigMap that can not be used changes nothing.
    world.cluster.apply(
        "ConfigMap",
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"requestheader-client-ca-file": "junk"},
            "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        }),
    );
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(code(&world, &world.proxy("hpa")).await, UNDERSTOOD);

    let ca = Ca::new("ebpf-scaler-2");
    serve_with(&world.cluster, &ca);
    world.serving_ca = ca.into();
    eventually("the new certificate", || async {
        world
            .request("GET", &Identity::default(), "/healthz")
            .await
            .is_ok()
    })
    .await;
    world.grpc().await;
}

#[tokio::test]
async fn only_agents_report_and_only_for_their_own_node() {
    let world = World::new().await;
    let cluster = &world.cluster;
    let user = "system:serviceaccount:ebpf-scaler:ebpf-scaler-agent";
    let audience = ["ebpf-scaler-collector"];
    cluster.agent_token("good", "n1");
    cluster.token(
        "wrong-audience",
        &["somebody-else"],
        json!({"username": user}),
    );
    cluster.token("api-audience", &[], json!({"username": user}));
    cluster.token("unbound", &audience, json!({"username": user}));
    cluster.token(
        "not-an-agent",
        &audience,
        json!({
            "username": "system:serviceaccount:shop:web",
            "extra": {"authentication.kubernetes.io/node-name": ["n1"]},
        }),
    );
    for (token, node, expected) in [
        ("unknown", "n1", Code::Unauthenticated),
        ("wrong-audience", "n1", Code::Unauthenticated),
        ("api-audience", "n1", Code::Unauthenticated),
        ("unbound", "n1", Code::PermissionDenied),
        ("not-an-agent", "n1", Code::PermissionDenied),
    ] {
        match Agent::connect(&world, token, node, 1).await {
            Err(status) => assert_eq!(status.code(), expected, "{token}"),
            Ok(_) => panic!("{token} was let in"),
        }
    }
    // A good token, but in another node's name.
    let mut liar = Agent::connect(&world, "good", "n2", 1).await.unwrap();
    let ended = loop {
        match liar.wants.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::PermissionDenied);
    assert!(
        ended.message().contains("bound to node n1, not to n2"),
        "{}",
        ended.message()
    );

    // Without hello nothing is taken.
    let mut rude = Agent::connect(&world, "good", "n1", 1).await.unwrap();
    rude.sender
        .send(proto::ReportRequest::default())
        .await
        .unwrap();
    assert!(rude.wants.message().await.unwrap().is_some());
}

#[tokio::test]
async fn a_token_that_has_ended_ends_what_was_opened_with_it() {
    let world = World::with(|_| {}, &["--token-review-period=200ms"]).await;
    let mut agent = world.agent("n1").await;
    let mut other = world.agent("n2").await;
    assert!(agent.wants.message().await.unwrap().is_some());
    world.cluster.revoke("agent-of-n1");
    let ended = loop {
        match agent.wants.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unauthenticated);
    // And it opens nothing else; who has a good one notices nothing.
    let again = Agent::connect(&world, "agent-of-n1", "n1", 1).await;
    assert_eq!(again.err().unwrap().code(), Code::Unauthenticated);
    other.report(&[]).await;
    assert!(other.wants.message().await.unwrap().is_some());
}

#[tokio::test]
async fn a_revoked_token_of_a_user_is_refused_once_the_memory_of_it_has_faded() {
    let world = World::new().await;
    let ann = json!({"username": "ann", "groups": ["devs"]});
    world.cluster.token("mine", &[], ann);
    let token = Identity::token("mine");
    assert_eq!(code(&world, &token).await, UNDERSTOOD);
    world.cluster.revoke("mine");
    // As in k8s.io/apiserver, for 10 s what was said holds.
    assert_eq!(code(&world, &token).await, UNDERSTOOD);
    eventually_within(Duration::from_secs(20), "refused", || async {
        code(&world, &token).await == 401
    })
    .await;
}

#[tokio::test]
async fn a_node_has_two_streams_and_a_user_eight() {
    let world = World::new().await;
    let mut first = world.agent("n1").await;
    let second = world.agent("n1").await;
    let third = world.agent("n1").await;
    let ended = loop {
        match first.wants.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Aborted);
    assert!(!second.sender.is_closed() && !third.sender.is_closed());

    let audience = ["ebpf-scaler-collector"];
    world
        .cluster
        .token("eve", &audience, json!({"username": "eve"}));
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(watch(&world, "eve").await.unwrap());
    }
    let refused = watch(&world, "eve").await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    held.pop();
    eventually("a place again", || async {
        watch(&world, "eve").await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn who_may_nothing_is_not_refused_for_ever() {
    let world = World::new().await;
    let audience = ["ebpf-scaler-collector"];
    world
        .cluster
        .token("eve", &audience, json!({"username": "eve"}));
    world.cluster.deny("eve");
    let (sender, mut answers) = watch(&world, "eve").await.unwrap();
    let subscribe = (0..200).map(|n| proto::Subscription {
        id: n.to_string(),
        namespace: format!("ns-{n}"),
        metric: "requests_per_second".into(),
        ..proto::Subscription::default()
    });
    let request = proto::WatchRequest {
        subscribe: subscribe.collect(),
        ..proto::WatchRequest::default()
    };
    sender.send(request).await.unwrap();
    let ended = loop {
        match answers.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::PermissionDenied);
    assert_eq!(world.cluster.access_reviews().len(), 101);
}

type Watching = (
    tokio::sync::mpsc::Sender<proto::WatchRequest>,
    tonic::Streaming<proto::WatchResponse>,
);

async fn watch(world: &World, token: &str) -> Result<Watching, tonic::Status> {
    let (sender, outbound) = tokio::sync::mpsc::channel(4);
    let outbound = tokio_stream::wrappers::ReceiverStream::new(outbound);
    let mut request = tonic::Request::new(outbound);
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let answers = world.grpc().await.watch(request).await?.into_inner();
    Ok((sender, answers))
}
