//! Certificates and CAs change with overlap, as the operator and kube-apiserver change them, while queries and
//! reports go on. Not one may fail.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpStream;

use super::pki::{Ca, Leaf};
use super::raw::{self, Sender};
use super::world::*;

const PATH: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/requests_per_second";

/// What kube-apiserver knows: whom to believe (the APIService's caBundle), and its own certificate.
#[derive(Clone)]
struct Proxy {
    bundle: String,
    certificate: Leaf,
}

/// Clients that ask without a pause: over a connection for each query, and over one that is kept.
struct Load {
    proxy: Arc<Mutex<Proxy>>,
    asked: Arc<Mutex<(usize, Vec<String>)>>,
    tasks: tokio::task::JoinSet<()>,
}

impl Load {
    fn start(api: SocketAddr, proxy: Proxy) -> Self {
        let proxy = Arc::new(Mutex::new(proxy));
        let asked = Arc::new(Mutex::new((0, Vec::new())));
        let mut tasks = tokio::task::JoinSet::new();
        for keep in [false, true] {
            let (proxy, asked) = (proxy.clone(), asked.clone());
            tasks.spawn(async move {
                let mut kept = None;
                loop {
                    let now = proxy.lock().unwrap().clone();
                    let answered = ask(api, &now, &mut kept).await;
                    if !keep {
                        kept = None;
                    }
                    let failure = match answered {
                        Ok(200) => None,
                        other => Some(format!("kept {keep}: {other:?}")),
                    };
                    {
                        let mut asked = asked.lock().unwrap();
                        asked.0 += 1;
                        asked.1.extend(failure);
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        Self {
            proxy,
            asked,
            tasks,
        }
    }

    fn change(&self, change: impl FnOnce(&mut Proxy)) {
        change(&mut self.proxy.lock().unwrap());
    }

    /// Lets it ask a while under what has just changed.
    async fn go_on(&self) {
        let before = self.asked.lock().unwrap().0;
        eventually("more queries", || async {
            self.asked.lock().unwrap().0 >= before + 40
        })
        .await;
        let failed = self.asked.lock().unwrap().1.clone();
        assert!(failed.is_empty(), "{failed:?}");
    }
}

async fn ask(
    api: SocketAddr,
    proxy: &Proxy,
    kept: &mut Option<Sender>,
) -> Result<u16, Box<dyn std::error::Error + Send + Sync>> {
    let headers = [("x-remote-user", "hpa".to_owned())];
    if kept.is_none() {
        let versions = [&rustls::version::TLS13];
        let config = raw::config(&proxy.bundle, &versions, "h2", Some(&proxy.certificate));
        *kept = Some(raw::sender(TcpStream::connect(api).await?, config).await?);
    }
    let Some(sender) = kept else {
        return Err("not connected".into());
    };
    raw::get(sender, &headers, PATH).await
}

/// Waits until a client that knows only this is answered: nobody counts its failures.
async fn accepted(api: SocketAddr, bundle: &str, certificate: &Leaf) {
    let proxy = Proxy {
        bundle: bundle.to_owned(),
        certificate: certificate.clone(),
    };
    eventually("the change is seen", || async {
        matches!(ask(api, &proxy, &mut None).await, Ok(200))
    })
    .await;
}

#[tokio::test]
async fn not_one_query_fails_while_every_certificate_and_ca_is_replaced() {
    let world = World::with(|cluster| cluster.pod("web-1", "n1", |_| {}), &[]).await;
    let mut agent = world.agent("n1").await;
    agent.steady(&["web-1"], 10).await;
    agent.stay();
    let api = world.running.api;
    let old = Proxy {
        bundle: world.serving_ca.pem.clone(),
        certificate: world.proxy_ca.client("front-proxy-client", ""),
    };
    accepted(api, &old.bundle, &old.certificate).await;
    let load = Load::start(api, old.clone());
    load.go_on().await;

    // The serving certificate: another of the same CA, several times in a row.
    for _ in 0..5 {
        serve_with(&world.cluster, &world.serving_ca);
        load.go_on().await;
    }

    // Its CA: both are published, then the new one signs, then the old one is dropped.
    let next = Ca::new("ebpf-scaler-2");
    load.change(|proxy| proxy.bundle.push_str(&next.pem));
    load.go_on().await;
    serve_with(&world.cluster, &next);
    accepted(api, &next.pem, &old.certificate).await;
    load.go_on().await;
    load.change(|proxy| proxy.bundle = next.pem.clone());
    load.go_on().await;

    // The front proxy's CA: the same, by the ConfigMap.
    let proxy_ca = Ca::new("front-proxy-2");
    let both = format!("{}{}", world.proxy_ca.pem, proxy_ca.pem);
    let certificate = proxy_ca.client("front-proxy-client", "");
    trust_bundles(&world.cluster, &both, &world.client_ca.pem);
    accepted(api, &next.pem, &certificate).await;
    load.go_on().await;
    load.change(|proxy| proxy.certificate = certificate.clone());
    load.go_on().await;
    // What is connected shows the certificate of its handshake: kube-apiserver was restarted for the new one.
    let restarted = Load::start(
        api,
        Proxy {
            bundle: next.pem.clone(),
            certificate: certificate.clone(),
        },
    );
    drop(load);
    restarted.go_on().await;
    trust(&world.cluster, &proxy_ca, &world.client_ca);
    eventually("the old proxy is not believed", || async {
        let proxy = Proxy {
            bundle: next.pem.clone(),
            ..old.clone()
        };
        matches!(ask(api, &proxy, &mut None).await, Ok(401))
    })
    .await;
    restarted.go_on().await;
    assert!(restarted.tasks.len() == 2, "nobody gave up");

    // The agent's stream is the one from the beginning.
    assert!(!agent.sender.is_closed());
}
