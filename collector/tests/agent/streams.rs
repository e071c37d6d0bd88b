//! Snapshots, reconnects, several replicas, rotated credentials, slow replicas, demand.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ebpf_scaler_collector::agent::probes::Family;
use ebpf_scaler_collector::agent::store::Store;
use ebpf_scaler_proto::{self as proto, ReportRequest, Want};

use crate::replica::{Ca, Replica};
use crate::reporter::{Reporter, any_port, batch};
use crate::{PATIENCE, until};

#[tokio::test]
async fn a_replica_gets_the_last_minute_then_everything_then_what_comes() {
    let ca = Ca::new();
    let replica = Replica::default();
    let (address, _kill) = replica.serve(any_port(), &ca).await;
    let store = Store::default();
    store.publish(batch(1, &[("idle", 3), ("busy", 1)], &[]));
    for count in 2..=90 {
        store.publish(batch(count, &[("busy", count)], &[]));
    }
    store.publish(batch(91, &[], &[]));
    let agent = Reporter::start_with(store, &[address], &ca);
    until("connected", || replica.streams() == 1).await;
    until("current", || replica.last(|s| s.requests("idle").is_some())).await;
    replica.last(|stream| {
        assert_eq!(stream.token, "Bearer first");
        let hello = stream.messages[0].hello.clone().unwrap();
        assert_eq!((hello.node.as_str(), hello.agent_epoch), ("node-1", 7));
        assert!(stream.messages[1..].iter().all(|m| m.hello.is_none()));
        let replayed: Vec<&ReportRequest> = stream.messages.iter().filter(|m| m.replay).collect();
        // Oldest first, a minute of them, and the first has what was idle since before.
        assert!(replayed.is_sorted_by_key(|m| m.monotonic_micros));
        assert!((60..=62).contains(&replayed.len()), "{}", replayed.len());
        assert!(replayed[0].samples.iter().any(|s| s.pod_uid == "idle"));
        assert!(replayed[1..].iter().all(|m| m.samples.len() == 1));
        assert_eq!(
            (stream.requests("idle"), stream.requests("busy")),
            (Some(3), Some(90))
        );
    });
    agent.store.publish(batch(92, &[("busy", 91)], &["idle"]));
    until("live", || replica.last(|s| s.requests("busy") == Some(91))).await;
    replica.last(|s| assert_eq!(s.messages.last().unwrap().gone, ["idle"]));
}

#[tokio::test]
async fn every_replica_gets_everything_and_a_restarted_one_gets_it_again() {
    let ca = Ca::new();
    let (one, two) = (Replica::default(), Replica::default());
    let (first, _kill) = one.serve(any_port(), &ca).await;
    let (second, kill) = two.serve(any_port(), &ca).await;
    let mut agent = Reporter::start(&[first, second], &ca);
    until("both", || one.streams() == 1 && two.streams() == 1).await;
    agent.second(&[("a", 10)]);
    for replica in [&one, &two] {
        until("a batch", || replica.last(|s| s.requests("a") == Some(10))).await;
    }
    kill.cancel();
    agent.second(&[("a", 20), ("b", 1)]);
    agent.second(&[("a", 30)]);
    two.serve(second, &ca).await;
    until("again", || two.streams() == 2).await;
    until("caught up", || two.last(|s| s.requests("b") == Some(1))).await;
    two.last(|s| {
        assert!(s.messages[0].hello.is_some() && s.messages[0].replay);
        assert_eq!(s.requests("a"), Some(30));
    });
    assert_eq!(one.streams(), 1, "the other one's stream never ended");
    assert_eq!(one.last(|s| s.requests("a")), Some(30));
}

#[tokio::test]
async fn a_rotated_ca_and_token_are_taken_up_without_a_restart() {
    let (old, new) = (Ca::new(), Ca::new());
    let replica = Replica::default();
    let (address, _kill) = replica.serve(any_port(), &new).await;
    let agent = Reporter::start(&[address], &old);
    until("refused", || {
        agent.metric("ebpf_scaler_agent_report_disconnects_total{reason=\"connect\"}") >= 1
    })
    .await;
    assert_eq!(
        replica.streams(),
        0,
        "another CA's certificate was believed"
    );
    std::fs::write(agent.dir.path().join("token"), "second").unwrap();
    // Both CAs, as during a rotation with overlap.
    let bundle = format!("{}{}", old.0.pem(), new.0.pem());
    std::fs::write(agent.dir.path().join("ca.crt"), bundle).unwrap();
    until("connected", || replica.streams() == 1).await;
    assert_eq!(replica.last(|s| s.token.clone()), "Bearer second");
    // When the old CA is taken away, the stream is renewed on the new bundle.
    std::fs::write(agent.dir.path().join("ca.crt"), new.0.pem()).unwrap();
    until("renewed", || replica.streams() == 2).await;
}

#[tokio::test]
async fn a_slow_replica_skips_batches_and_still_ends_with_the_right_totals() {
    let ca = Ca::new();
    let replica = Replica::default();
    let (address, _kill) = replica.serve(any_port(), &ca).await;
    let mut agent = Reporter::start(&[address], &ca);
    until("connected", || replica.streams() == 1).await;
    replica.stalled.store(true, Ordering::SeqCst);
    // Batches so large that flow control stops the stream long before the last.
    let names: Vec<String> = (0..2000).map(|i| format!("pod-{i:032}")).collect();
    agent.second(&[("once", 5)]);
    for count in 1..=60 {
        let pods: Vec<(&str, u64)> = names.iter().map(|n| (n.as_str(), count)).collect();
        agent.second(&pods);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    agent.publish(&[], &["once"]);
    replica.stalled.store(false, Ordering::SeqCst);
    until("caught up", || {
        replica.last(|s| names.iter().all(|n| s.requests(n) == Some(60)))
    })
    .await;
    until("told who is gone", || {
        replica.last(|s| s.messages.iter().any(|m| m.gone == ["once"]))
    })
    .await;
    assert!(agent.metric("ebpf_scaler_agent_report_batches_dropped_total") > 0);
    assert_eq!(replica.streams(), 1, "slowness alone ends no stream");
    replica.last(|s| assert!(s.messages.len() < 200, "{}", s.messages.len()));
}

#[tokio::test]
async fn a_want_reaches_the_loop_with_its_replica_and_its_end() {
    let ca = Ca::new();
    let replica = Replica::default();
    let families = vec![proto::Family::Runqueue as i32, 77];
    *replica.want.lock().unwrap() = Some(Want {
        divide: Vec::new(),
        families,
        ttl_seconds: 600,
        tls_pods: vec!["one".to_owned()],
    });
    let (address, _kill) = replica.serve(any_port(), &ca).await;
    let mut agent = Reporter::start(&[address], &ca);
    let wanted = tokio::time::timeout(PATIENCE, agent.wanted.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(wanted.replica, address);
    // A family that this agent does not know yet is left out.
    assert_eq!(wanted.families, [Family::RunQueue]);
    assert_eq!(wanted.ttl, Duration::from_secs(600));
    assert_eq!(wanted.tls_pods, ["one"]);
}
