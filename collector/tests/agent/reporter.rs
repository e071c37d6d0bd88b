//! The agent's reporting half, fed by hand.

use std::net::SocketAddr;
use std::path::PathBuf;

use ebpf_scaler_collector::agent::metrics;
use ebpf_scaler_collector::agent::report::{self, Wanted};
use ebpf_scaler_collector::agent::store::Store;
use ebpf_scaler_proto::{self as proto, PodSample, ReportRequest};
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::NAME;
use crate::replica::Ca;

/// An agent's reporting half, fed by hand.
pub struct Reporter {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub wanted: mpsc::Receiver<Wanted>,
    shutdown: CancellationToken,
    pub seconds: u64,
    registry: Registry,
}

impl Reporter {
    pub fn start(addresses: &[SocketAddr], ca: &Ca) -> Self {
        Self::start_with(Store::default(), addresses, ca)
    }

    pub fn start_with(store: Store, addresses: &[SocketAddr], ca: &Ca) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files: [PathBuf; 2] = ["token", "ca.crt"].map(|f| dir.path().join(f));
        std::fs::write(&files[0], "first").unwrap();
        std::fs::write(&files[1], ca.0.pem()).unwrap();
        let (sender, wanted) = mpsc::channel(8);
        let shutdown = CancellationToken::new();
        let mut registry = Registry::default();
        let (_, metrics) = metrics::register(&mut registry);
        for address in addresses {
            let options = report::Options {
                node: "node-1".to_owned(),
                agent_epoch: 7,
                address: address.to_string(),
                server_name: NAME.to_owned(),
                token_file: files[0].clone(),
                ca_file: files[1].clone(),
            };
            let (store, sender) = (store.clone(), sender.clone());
            let (metrics, shutdown) = (metrics.clone(), shutdown.clone());
            tokio::spawn(async move {
                report::run(options, store, metrics, sender, shutdown)
                    .await
                    .unwrap();
            });
        }
        Self {
            dir,
            store,
            wanted,
            shutdown,
            seconds: 100,
            registry,
        }
    }

    /// A second passes; these are the counts of the pods that changed in it.
    pub fn second(&mut self, pods: &[(&str, u64)]) {
        self.seconds += 1;
        self.publish(pods, &[]);
    }

    pub fn publish(&self, pods: &[(&str, u64)], gone: &[&str]) {
        self.store.publish(batch(self.seconds, pods, gone));
    }

    pub fn metric(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        // A labelled counter appears with its first count.
        line.map_or(0, |value| value.parse().unwrap())
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub fn batch(second: u64, pods: &[(&str, u64)], gone: &[&str]) -> ReportRequest {
    let sample = |(uid, requests): &(&str, u64)| PodSample {
        pod_uid: (*uid).to_owned(),
        epoch: 1,
        counters: Some(proto::Counters {
            requests: *requests,
            ..Default::default()
        }),
        ..Default::default()
    };
    ReportRequest {
        monotonic_micros: second * 1_000_000,
        wall_unix_micros: second as i64 * 1_000_000,
        samples: pods.iter().map(sample).collect(),
        gone: gone.iter().map(|uid| (*uid).to_owned()).collect(),
        ..Default::default()
    }
}

pub fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}
