//! As much of a Kubernetes API as the role uses: objects to list and watch, TokenReviews and
//! SubjectAccessReviews, over plain HTTP on loopback.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;

#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    objects: Mutex<BTreeMap<(String, String), Value>>,
    version: Mutex<u64>,
    events: broadcast::Sender<(String, Value)>,
    tokens: Mutex<HashMap<String, (Vec<String>, Value)>>,
    denied: Mutex<Vec<String>>,
    confined: Mutex<HashMap<String, String>>,
    reviews: Mutex<Vec<Value>>,
    pending: Mutex<Pending>,
    /// Whether TokenReviews wait.
    held: tokio::sync::watch::Sender<bool>,
}

/// TokenReviews that are on their way.
#[derive(Default)]
struct Pending {
    now: usize,
    most: usize,
}

impl Cluster {
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            objects: Mutex::default(),
            version: Mutex::new(1),
            events: broadcast::Sender::new(1024),
            tokens: Mutex::default(),
            denied: Mutex::default(),
            confined: Mutex::default(),
            reviews: Mutex::default(),
            pending: Mutex::default(),
            held: tokio::sync::watch::Sender::new(false),
        }))
    }

    /// A client that asks this cluster.
    pub async fn client(&self) -> kube::Client {
        let router = Router::new()
            .route("/api/v1/pods", get(list::<Pods>))
            .route("/apis/apps/v1/replicasets", get(list::<ReplicaSets>))
            .route(
                "/api/v1/namespaces/{namespace}/secrets",
                get(list::<Secrets>),
            )
            .route(
                "/api/v1/namespaces/{namespace}/configmaps",
                get(list::<ConfigMaps>),
            )
            .route(
                "/apis/authentication.k8s.io/v1/tokenreviews",
                post(token_review),
            )
            .route(
                "/apis/authorization.k8s.io/v1/subjectaccessreviews",
                post(access_review),
            )
            .with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        kube::Client::try_from(kube::Config::new(uri.parse().unwrap())).unwrap()
    }

    pub fn apply(&self, kind: &str, mut object: Value) {
        let mut version = self.0.version.lock().unwrap();
        *version += 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let key = (kind.to_owned(), name);
        let before = self.0.objects.lock().unwrap().insert(key, object.clone());
        let event = if before.is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        let _ = self
            .0
            .events
            .send((kind.to_owned(), json!({"type": event, "object": object})));
    }

    pub fn delete(&self, kind: &str, name: &str) {
        let key = (kind.to_owned(), name.to_owned());
        let object = self.0.objects.lock().unwrap().remove(&key).unwrap();
        let event = json!({"type": "DELETED", "object": object});
        let _ = self.0.events.send((kind.to_owned(), event));
    }

    /// A token that reviews say yes to for these audiences (empty: the API server's own).
    pub fn token(&self, token: &str, audiences: &[&str], user: Value) {
        let audiences = audiences.iter().map(|a| (*a).to_owned()).collect();
        self.0
            .tokens
            .lock()
            .unwrap()
            .insert(token.to_owned(), (audiences, user));
    }

    /// From now on the token is nobody's.
    pub fn revoke(&self, token: &str) {
        self.0.tokens.lock().unwrap().remove(token);
    }

    /// Whether TokenReviews wait for an answer from now on; others do not.
    pub fn hold_token_reviews(&self, hold: bool) {
        self.0.held.send_replace(hold);
    }

    /// How many TokenReviews were on their way at once, at most.
    pub fn token_reviews_at_once(&self) -> usize {
        self.0.pending.lock().unwrap().most
    }

    async fn wait_while_held(&self) {
        {
            let mut pending = self.0.pending.lock().unwrap();
            pending.now += 1;
            pending.most = pending.most.max(pending.now);
        }
        let mut held = self.0.held.subscribe();
        let _ = held.wait_for(|held| !held).await;
        self.0.pending.lock().unwrap().now -= 1;
    }

    pub fn agent_token(&self, token: &str, node: &str) {
        self.token(
            token,
            &["ebpf-scaler-collector"],
            json!({
                "username": "system:serviceaccount:ebpf-scaler:ebpf-scaler-agent",
                "groups": ["system:serviceaccounts"],
                "extra": {"authentication.kubernetes.io/node-name": [node]},
            }),
        );
    }

    /// From now on this user may do nothing.
    pub fn deny(&self, user: &str) {
        self.0.denied.lock().unwrap().push(user.to_owned());
    }

    /// From now on this user may do something in one namespace only.
    pub fn confine(&self, user: &str, namespace: &str) {
        let mut confined = self.0.confined.lock().unwrap();
        confined.insert(user.to_owned(), namespace.to_owned());
    }

    /// The specs of all SubjectAccessReviews asked for.
    pub fn access_reviews(&self) -> Vec<Value> {
        self.0.reviews.lock().unwrap().clone()
    }

    pub fn pod(&self, name: &str, node: &str, change: impl FnOnce(&mut Value)) {
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": "shop",
                "uid": format!("uid-{name}"),
                "labels": {"app": "web", "pod-template-hash": "5f7"},
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5f7",
                    "uid": "uid-rs", "controller": true,
                }],
            },
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        });
        change(&mut pod);
        self.apply("Pod", pod);
    }
}

trait Kind {
    const NAME: &'static str;
    const VERSION: &'static str;
}

macro_rules! kinds {
    ($($type:ident = $name:literal, $version:literal;)+) => {
        $(struct $type; impl Kind for $type { const NAME: &'static str = $name; const VERSION: &'static str = $version; })+
    };
}

kinds! {
    Pods = "Pod", "v1";
    ReplicaSets = "ReplicaSet", "apps/v1";
    Secrets = "Secret", "v1";
    ConfigMaps = "ConfigMap", "v1";
}

async fn list<K: Kind>(
    State(cluster): State<Cluster>,
    Path(_path): Path<BTreeMap<String, String>>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    let wanted = query
        .get("fieldSelector")
        .and_then(|f| f.strip_prefix("metadata.name="))
        .map(str::to_owned);
    let picks = move |object: &Value| {
        wanted
            .as_ref()
            .is_none_or(|w| object["metadata"]["name"] == **w)
    };
    if query.contains_key("watch") {
        let events = BroadcastStream::new(cluster.0.events.subscribe());
        let lines = events.filter_map(move |event| {
            let (kind, event) = event.ok()?;
            let mine = kind == K::NAME && picks(&event["object"]);
            mine.then(|| Ok::<_, std::io::Error>(Bytes::from(format!("{event}\n"))))
        });
        return Response::new(Body::from_stream(lines));
    }
    let objects = cluster.0.objects.lock().unwrap();
    let items: Vec<_> = objects
        .iter()
        .filter(|((kind, _), object)| kind == K::NAME && picks(object))
        .map(|(_, object)| object.clone())
        .collect();
    let version = cluster.0.version.lock().unwrap().to_string();
    let body = json!({
        "apiVersion": K::VERSION,
        "kind": format!("{}List", K::NAME),
        "metadata": {"resourceVersion": version},
        "items": items,
    });
    Response::new(Body::from(body.to_string()))
}

async fn token_review(
    State(cluster): State<Cluster>,
    Json(mut review): Json<Value>,
) -> Json<Value> {
    cluster.wait_while_held().await;
    let token = review["spec"]["token"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let asked: Vec<String> =
        serde_json::from_value(review["spec"]["audiences"].clone()).unwrap_or_default();
    let tokens = cluster.0.tokens.lock().unwrap();
    review["status"] = match tokens.get(&token) {
        Some((audiences, user))
            if asked.iter().all(|a| audiences.contains(a))
                && asked.is_empty() == audiences.is_empty() =>
        {
            json!({"authenticated": true, "user": user, "audiences": asked})
        }
        _ => json!({"authenticated": false, "error": "no such token"}),
    };
    Json(review)
}

async fn access_review(
    State(cluster): State<Cluster>,
    Json(mut review): Json<Value>,
) -> Json<Value> {
    let user = review["spec"]["user"].as_str().unwrap_or_default();
    let denied = cluster.0.denied.lock().unwrap().iter().any(|d| d == user);
    let confined = cluster.0.confined.lock().unwrap().get(user).cloned();
    let asked = &review["spec"]["resourceAttributes"]["namespace"];
    let denied = denied || confined.is_some_and(|namespace| *asked != namespace.as_str());
    cluster
        .0
        .reviews
        .lock()
        .unwrap()
        .push(review["spec"].clone());
    review["status"] =
        json!({"allowed": !denied, "reason": if denied { "no RBAC policy matched" } else { "" }});
    Json(review)
}
