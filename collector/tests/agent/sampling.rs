//! The loop on directories of a temporary tree and a scripted kernel.

use std::collections::BTreeSet;
use std::time::Duration;

use ebpf_scaler_collector::agent::cgroup::Kubepods;
use ebpf_scaler_collector::agent::probes::Family;
use ebpf_scaler_collector::agent::report::Wanted;
use ebpf_scaler_collector::agent::sampler::{self, Sampler};
use ebpf_scaler_collector::agent::tls::Allowed;
use ebpf_scaler_collector::agent::{metrics, store};
use ebpf_scaler_proto::{self as proto, ReportRequest};
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::PATIENCE;
use crate::kernel::FakeKernel;
use crate::reporter::any_port;

#[tokio::test]
async fn the_loop_follows_directories_demand_and_its_end() {
    let uid = "7a0bd1f5-3c65-4a25-9d1c-0a1b2c3d4e5f";
    let kubepods = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new(8);
    let store = store::Store::default();
    let mut registry = Registry::default();
    let (metrics, _) = metrics::register(&mut registry);
    let options = sampler::Options {
        kubepods: Kubepods {
            dir: kubepods.path().into(),
            cpu_v1: None,
        },
        interval: Duration::from_millis(50),
        max_pods: 8,
        first_epoch: 500,
        families: BTreeSet::from([Family::Requests]),
        tls: Allowed::Never,
    };
    let (sampler, watcher) = Sampler::new(kernel.clone(), options, store.clone(), metrics);
    let (wants, wanted) = mpsc::channel(1);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(sampler.run(watcher.unwrap(), wanted, shutdown.clone()));
    let (_, mut batches) = store.subscribe();
    let mut next = async |holds: &dyn Fn(&ReportRequest) -> bool| loop {
        let batch = tokio::time::timeout(PATIENCE, batches.recv())
            .await
            .unwrap()
            .unwrap();
        if holds(&batch) {
            break batch;
        }
    };

    // Idle, the time still goes on.
    let (a, b) = (next(&|_| true).await, next(&|_| true).await);
    assert!(a.monotonic_micros < b.monotonic_micros && b.samples.is_empty());

    let container = kubepods
        .path()
        .join(format!("burstable/pod{uid}/0123456789abcdef"));
    std::fs::create_dir_all(&container).unwrap();
    let new = next(&|b| !b.samples.is_empty()).await;
    assert_eq!(
        (new.samples[0].pod_uid.as_str(), new.samples[0].epoch),
        (uid, 500)
    );
    let id = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&container).unwrap());
    kernel.serve(id, 4);
    let counted = next(&|b| !b.samples.is_empty()).await;
    assert_eq!(counted.samples[0].counters.unwrap().requests, 4);

    assert_eq!(kernel.wanted(), BTreeSet::from([Family::Requests]));
    kernel.break_family(Family::RunQueue);
    let families = vec![Family::Network, Family::RunQueue];
    let replica = any_port();
    wants
        .send(Wanted {
            replica,
            families,
            divide: std::collections::HashMap::new(),
            tls_pods: vec![uid.to_owned()],
            ttl: Duration::from_secs(60),
        })
        .await
        .unwrap();
    let active = [
        proto::Family::Requests as i32,
        proto::Family::Network as i32,
    ];
    let told = next(&|b| b.families == active).await;
    assert_eq!(kernel.tls(), 0, "asked for, but never allowed");
    let degraded = told.hello.clone().unwrap().degraded;
    assert_eq!(degraded[0].family, proto::Family::Runqueue as i32);
    assert_eq!(store.subscribe().0.degraded, degraded);

    std::fs::remove_dir(&container).unwrap();
    std::fs::remove_dir(container.parent().unwrap()).unwrap();
    next(&|b| b.gone == [uid]).await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
