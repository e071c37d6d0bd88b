//! A scripted API server: each scenario says which requests must come, in which order, and what is
//! answered. A request that is not expected fails the test, as does one that never comes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may panic")]

use http::{Request, Response};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tower_test::mock;

/// The server's end.
pub(crate) struct Server {
    handle: mock::Handle<Request<Body>, Response<Body>>,
}

/// A client and the server that it talks to.
pub(crate) fn server() -> (Client, Server) {
    let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
    (Client::new(service, "default"), Server { handle })
}

/// A request as it came.
pub(crate) struct Asked {
    pub method: String,
    pub uri: String,
    pub body: Value,
    pub content_type: String,
}

impl Server {
    /// Waits a second for a request, which must be this one, and answers it.
    pub(crate) async fn expect(
        &mut self,
        method: &str,
        uri: &str,
        status: u16,
        answer: Value,
    ) -> Asked {
        let next = tokio::time::timeout(
            std::time::Duration::from_secs(1),
            self.handle.next_request(),
        );
        let Ok(Some((request, send))) = next.await else {
            panic!("{method} {uri} never came");
        };
        let (parts, body) = request.into_parts();
        let bytes = body.collect_bytes().await.unwrap();
        let asked = Asked {
            method: parts.method.to_string(),
            uri: parts.uri.to_string(),
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
            content_type: parts
                .headers
                .get("content-type")
                .map(|v| v.to_str().unwrap().to_owned())
                .unwrap_or_default(),
        };
        assert_eq!((asked.method.as_str(), asked.uri.as_str()), (method, uri));
        let response = Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .body(Body::from(serde_json::to_vec(&answer).unwrap()))
            .unwrap();
        send.send_response(response);
        asked
    }
}

/// What the API server says when it refuses.
pub(crate) fn refusal(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("refused: {reason}"), "reason": reason, "code": code})
}

/// A scale subresource.
pub(crate) fn scale(replicas: i32, version: &str) -> Value {
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": "web", "namespace": "shop", "resourceVersion": version},
        "spec": {"replicas": replicas}, "status": {"replicas": replicas, "selector": "app=web"}})
}

mod scaling {
    use std::time::Duration;

    use super::*;
    use crate::{
        apply::{Applier, Target, TargetKey, Written},
        leader::Leadership,
    };

    const SCALE: &str =
        "/apis/apps/v1/namespaces/shop/deployments/web/scale?&fieldManager=ebpf-scaler-operator";
    const READ: &str = "/apis/apps/v1/namespaces/shop/deployments/web/scale";

    fn web() -> TargetKey {
        TargetKey {
            namespace: "shop".into(),
            api_version: "apps/v1".into(),
            kind: "Deployment".into(),
            name: "web".into(),
        }
    }

    fn seen(spec: i32, version: &str) -> Target {
        Target {
            spec,
            status: spec,
            ready: Some(spec),
            selector: "app=web".into(),
            version: version.into(),
        }
    }

    fn applier(client: Client, leadership: Leadership) -> Applier {
        Applier::new(client, leadership, Duration::from_secs(1))
    }

    #[tokio::test]
    async fn replicas_are_written_over_what_was_seen() {
        let (client, mut server) = server();
        let applier = applier(client, Leadership::always());
        let write = tokio::spawn(async move { applier.scale(&web(), &seen(2, "7"), 6).await });
        let asked = server.expect("PATCH", SCALE, 200, scale(6, "8")).await;
        assert_eq!(asked.content_type, "application/merge-patch+json");
        assert_eq!(
            asked.body,
            json!({"metadata": {"resourceVersion": "7"}, "spec": {"replicas": 6}})
        );
        let Written::Accepted(now) = write.await.unwrap() else {
            panic!("not accepted")
        };
        assert_eq!((now.spec, now.version.as_str()), (6, "8"));
    }

    #[tokio::test]
    async fn a_new_version_with_the_same_replicas_is_written_over_at_once() {
        let (client, mut server) = server();
        let applier = applier(client, Leadership::always());
        let write = tokio::spawn(async move { applier.scale(&web(), &seen(2, "7"), 6).await });
        server
            .expect("PATCH", SCALE, 409, refusal(409, "Conflict"))
            .await;
        server.expect("GET", READ, 200, scale(2, "9")).await;
        let asked = server.expect("PATCH", SCALE, 200, scale(6, "10")).await;
        assert_eq!(asked.body["metadata"]["resourceVersion"], "9");
        assert!(matches!(write.await.unwrap(), Written::Accepted(_)));
    }

    #[tokio::test]
    async fn a_foreign_change_is_not_overwritten() {
        let (client, mut server) = server();
        let applier = applier(client, Leadership::always());
        let write = tokio::spawn(async move { applier.scale(&web(), &seen(2, "7"), 6).await });
        server
            .expect("PATCH", SCALE, 409, refusal(409, "Conflict"))
            .await;
        server.expect("GET", READ, 200, scale(4, "9")).await;
        let Written::Foreign(now) = write.await.unwrap() else {
            panic!("overwritten")
        };
        assert_eq!(now.spec, 4);
    }

    #[tokio::test]
    async fn a_refusal_is_told_and_who_does_not_lead_writes_nothing() {
        let (client, mut server) = server();
        let refused = applier(client.clone(), Leadership::always());
        let write = tokio::spawn(async move { refused.scale(&web(), &seen(2, "7"), 6).await });
        server
            .expect("PATCH", SCALE, 403, refusal(403, "Forbidden"))
            .await;
        assert!(matches!(write.await.unwrap(), Written::Failed(e) if e.contains("Forbidden")));
        let standby = applier(client, Leadership::never());
        let written = standby.scale(&web(), &seen(2, "7"), 6).await;
        assert!(matches!(written, Written::NotLeading));
        assert!(standby.status("shop", "web", json!({})).await.is_err());
    }

    #[tokio::test]
    async fn a_kind_of_somebody_elses_is_found_by_discovery_once() {
        let (client, mut server) = server();
        let applier = applier(client, Leadership::always());
        let key = TargetKey {
            api_version: "example.com/v1".into(),
            kind: "Game".into(),
            ..web()
        };
        let read = tokio::spawn(async move {
            let first = applier.read(&key).await;
            (first, applier.read(&key).await)
        });
        let resources = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "example.com/v1",
            "resources": [{"name": "games", "singularName": "game", "namespaced": true, "kind": "Game", "verbs": ["get"]}]});
        server
            .expect("GET", "/apis/example.com/v1", 200, resources)
            .await;
        let uri = "/apis/example.com/v1/namespaces/shop/games/web/scale";
        server.expect("GET", uri, 200, scale(3, "1")).await;
        server
            .expect("GET", uri, 404, refusal(404, "NotFound"))
            .await;
        let (first, second) = read.await.unwrap();
        assert_eq!(first.unwrap().selector, "app=web");
        assert!(second.unwrap_err().contains("NotFound"));
    }

    #[tokio::test]
    async fn a_status_is_merged_into_the_subresource() {
        let (client, mut server) = server();
        let applier = applier(client, Leadership::always());
        let write = tokio::spawn(async move {
            applier
                .status("shop", "web", json!({"desiredReplicas": 6}))
                .await
        });
        let uri = "/apis/ebpfscaler.io/v1alpha1/namespaces/shop/ebpfscalers/web/status?&fieldManager=ebpf-scaler-operator";
        let asked = server
            .expect("PATCH", uri, 404, refusal(404, "NotFound"))
            .await;
        assert_eq!(asked.content_type, "application/merge-patch+json");
        assert_eq!(asked.body["status"], json!({"desiredReplicas": 6}));
        // It was deleted meanwhile, which is no error.
        write.await.unwrap().unwrap();
    }
}

mod election {
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::leader::{self, Config};

    fn config() -> Config {
        Config {
            namespace: "ebpf-scaler".into(),
            name: "ebpf-scaler-operator".into(),
            identity: "b".into(),
            duration: Duration::from_secs(3),
            renew_deadline: Duration::from_millis(600),
            retry: Duration::from_millis(200),
        }
    }

    fn lease(holder: &str, version: &str) -> Value {
        json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
            "metadata": {"name": "ebpf-scaler-operator", "namespace": "ebpf-scaler", "resourceVersion": version},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 3}})
    }

    const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/ebpf-scaler/leases";
    const LEASE: &str =
        "/apis/coordination.k8s.io/v1/namespaces/ebpf-scaler/leases/ebpf-scaler-operator";

    #[tokio::test]
    async fn a_free_lease_is_taken_renewed_and_given_up() {
        let (client, mut server) = server();
        let stop = CancellationToken::new();
        let (mut leadership, task) = leader::spawn(client, config(), stop.clone());
        server
            .expect("GET", LEASE, 404, refusal(404, "NotFound"))
            .await;
        assert!(!leadership.holds());
        let asked = server
            .expect("POST", &format!("{LEASES}?"), 201, lease("b", "1"))
            .await;
        assert_eq!(asked.body["spec"]["holderIdentity"], "b");
        leadership.wait_for(true).await;
        assert!(leadership.holds());
        let renewal = server
            .expect("PUT", &format!("{LEASE}?"), 200, lease("b", "2"))
            .await;
        assert_eq!(renewal.body["metadata"]["resourceVersion"], "1");
        stop.cancel();
        let release = server
            .expect("PUT", &format!("{LEASE}?"), 200, lease("", "3"))
            .await;
        assert_eq!(release.body["spec"]["holderIdentity"], "");
        assert!(
            !leadership.holds(),
            "stopped writing before it was given up"
        );
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_leader_that_cannot_renew_stops_writing_before_its_lease_ends() {
        let (client, mut server) = server();
        let stop = CancellationToken::new();
        let begun = std::time::Instant::now();
        let (mut leadership, _task) = leader::spawn(client, config(), stop.clone());
        server.expect("GET", LEASE, 200, lease("", "1")).await;
        server
            .expect("PUT", &format!("{LEASE}?"), 200, lease("b", "2"))
            .await;
        leadership.wait_for(true).await;
        // Nobody answers any more.
        leadership.wait_for(false).await;
        assert!(!leadership.holds());
        assert!(
            begun.elapsed() < Duration::from_millis(1500),
            "{:?}",
            begun.elapsed()
        );
    }
}

mod certificates {
    use std::sync::Arc;

    use super::*;
    use crate::{
        certs::{
            Certs,
            plan::Lifetimes,
            store::{Names, Store},
        },
        leader::Leadership,
        metrics::Metrics,
    };

    const NOW: i64 = 1_800_000_000;

    fn names() -> Names {
        Names {
            namespace: "ebpf-scaler".into(),
            ca_secret: "ebpf-scaler-ca".into(),
            tls_secret: "ebpf-scaler-apiserver-tls".into(),
            bundle: "ebpf-scaler-ca-bundle".into(),
            api_service: "v1beta1.external.metrics.k8s.io".into(),
            service: "ebpf-scaler-apiserver".into(),
            dns_names: vec!["ebpf-scaler-report.ebpf-scaler.svc".into()],
        }
    }

    fn api_service(namespace: &str, name: &str, bundle: Option<&Value>) -> Value {
        let mut object = json!({"kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
            "metadata": {"name": "v1beta1.external.metrics.k8s.io", "resourceVersion": "5"},
            "spec": {"group": "external.metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
                "service": {"namespace": namespace, "name": name}}});
        if let Some(bundle) = bundle {
            object["spec"]["caBundle"] = bundle.clone();
        }
        object
    }

    const CORE: &str = "/api/v1/namespaces/ebpf-scaler";
    const SERVICE: &str =
        "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.external.metrics.k8s.io";

    /// One reading of all four objects, whose requests come together and in this order.
    async fn reading(
        server: &mut Server,
        ca: &Value,
        tls: &Value,
        bundle: &Value,
        service: &Value,
    ) {
        for (uri, object) in [
            (format!("{CORE}/secrets/ebpf-scaler-ca"), ca),
            (format!("{CORE}/secrets/ebpf-scaler-apiserver-tls"), tls),
            (format!("{CORE}/configmaps/ebpf-scaler-ca-bundle"), bundle),
            (SERVICE.to_owned(), service),
        ] {
            let (status, body) = if object.is_null() {
                (404, refusal(404, "NotFound"))
            } else {
                (200, object.clone())
            };
            server.expect("GET", &uri, status, body).await;
        }
    }

    fn stored(asked: &Asked) -> Value {
        let mut object = asked.body.clone();
        object["metadata"]["resourceVersion"] = json!("1");
        object
    }

    async fn settle(ours: bool) -> Vec<String> {
        let (client, mut server) = server();
        let (bundle, reader) = tokio::sync::watch::channel(None);
        let certs = Certs {
            names: names(),
            lifetimes: Lifetimes {
                ca: 365 * 86_400,
                leaf: 30 * 86_400,
                propagation: 300,
            },
            manage: true,
            metrics: Arc::new(Metrics::new()),
            bundle,
        };
        let store = Store::new(client, names());
        let run = tokio::spawn(async move {
            certs
                .round(&store, &Leadership::always(), NOW)
                .await
                .unwrap();
        });
        let null = Value::Null;
        let owner = if ours { "ebpf-scaler" } else { "keda" };
        let service = api_service(owner, "ebpf-scaler-apiserver", None);
        let mut log = Vec::new();
        reading(&mut server, &null, &null, &null, &service).await;
        let secrets = format!("{CORE}/secrets?");
        let asked = server
            .expect("POST", &secrets, 201, json!({"metadata": {}}))
            .await;
        log.push(format!(
            "{} {}",
            asked.method, asked.body["metadata"]["name"]
        ));
        let ca = stored(&asked);
        reading(&mut server, &ca, &null, &null, &service).await;
        let asked = server
            .expect(
                "POST",
                &format!("{CORE}/configmaps?"),
                201,
                json!({"metadata": {}}),
            )
            .await;
        log.push(format!(
            "{} {}",
            asked.method, asked.body["metadata"]["name"]
        ));
        let bundle = stored(&asked);
        let mut patched = service.clone();
        if ours {
            let asked = server
                .expect("PATCH", &format!("{SERVICE}?"), 200, service.clone())
                .await;
            log.push(format!("{} {}", asked.method, asked.uri));
            assert_eq!(asked.body["metadata"]["resourceVersion"], "5");
            patched = api_service(
                owner,
                "ebpf-scaler-apiserver",
                Some(&asked.body["spec"]["caBundle"]),
            );
        }
        let asked = server
            .expect("POST", &secrets, 201, json!({"metadata": {}}))
            .await;
        assert_eq!(asked.body["type"], "kubernetes.io/tls");
        log.push(format!(
            "{} {}",
            asked.method, asked.body["metadata"]["name"]
        ));
        let tls = stored(&asked);
        // Everything is there and fits: nothing more is written.
        reading(&mut server, &ca, &tls, &bundle, &patched).await;
        run.await.unwrap();
        let published = bundle["data"]["ca.crt"].as_str().unwrap();
        assert_eq!(reader.borrow().as_deref(), Some(published));
        log
    }

    #[tokio::test]
    async fn everything_is_created_in_the_order_in_which_it_is_needed() {
        assert_eq!(
            settle(true).await,
            [
                "POST \"ebpf-scaler-ca\"",
                "POST \"ebpf-scaler-ca-bundle\"",
                &format!("PATCH {SERVICE}?"),
                "POST \"ebpf-scaler-apiserver-tls\"",
            ]
        );
    }

    #[tokio::test]
    async fn another_providers_api_service_is_never_written() {
        assert_eq!(
            settle(false).await,
            [
                "POST \"ebpf-scaler-ca\"",
                "POST \"ebpf-scaler-ca-bundle\"",
                "POST \"ebpf-scaler-apiserver-tls\"",
            ]
        );
    }
}
