//! What a spec means, in the words of the engine and of the collector.

use super::*;

fn spec(json: serde_json::Value) -> EbpfScalerSpec {
    serde_json::from_value(json).unwrap()
}

#[test]
fn a_request_rate_asks_for_three_windows_of_the_targets_pods() {
    let spec = spec(serde_json::json!({
        "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "minReplicas": 2, "maxReplicas": 20,
        "metrics": [{"type": "RequestRate", "requestRate": {"target": {"averageValue": "100"}, "port": 8080}}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 15, "tolerance": "0.2"}},
        "fallback": {"after": "5m", "replicas": 6},
    }));
    let plan = plan(&spec, "shop", "ebpfscaler.io/deployment=web");
    assert_eq!(
        plan.queries,
        [Query {
            namespace: "shop".into(),
            metric: "requests_per_second".into(),
            selector: "ebpfscaler.io/deployment=web,ebpfscaler.io/port=8080".into(),
            windows: vec![30, 3, 1],
            tls: false,
        }]
    );
    assert_eq!(plan.policy.metrics[0].target, Target::Average(100.0));
    assert_eq!(plan.policy.metrics[0].name, "requests_per_second:8080");
    assert_eq!(plan.policy.down.stabilization, Duration::from_secs(15));
    assert_eq!(plan.policy.down.policies, Rules::scale_down().policies);
    assert_eq!(plan.policy.up, Rules::scale_up());
    assert_eq!(
        (plan.policy.tolerance_up, plan.policy.tolerance_down),
        (0.1, 0.2)
    );
    assert_eq!(plan.policy.fallback.unwrap().replicas, 6);
}

#[test]
fn ports_and_containers_go_into_the_selector_and_tell_metrics_apart() {
    let spec = spec(serde_json::json!({
        "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": 20,
        "metrics": [
            {"type": "RequestLatency", "requestLatency": {
                "percentile": "p99", "target": "50ms", "port": 8080, "container": "app"}},
            {"type": "RunQueueWaitingThreads", "runQueueWaitingThreads": {
                "target": {"averageValue": "1"}, "container": "app"}},
            {"type": "NetworkThroughput", "networkThroughput": {
                "direction": "Both", "target": {"averageValue": "1M"}, "port": 443}},
        ],
    }));
    let plan = plan(&spec, "shop", "app=web");
    let of = |i: usize| {
        let name = plan.policy.metrics[i].name.as_str();
        (name, plan.queries[i].selector.as_str())
    };
    assert_eq!(
        [of(0), of(1), of(2)],
        [
            (
                "request_latency_p99_microseconds[app]:8080",
                "app=web,ebpfscaler.io/port=8080,ebpfscaler.io/container=app"
            ),
            (
                "runqueue_waiting_threads[app]",
                "app=web,ebpfscaler.io/container=app"
            ),
            (
                "network_bytes_per_second:443",
                "app=web,ebpfscaler.io/port=443"
            ),
        ]
    );
}

#[test]
fn beside_a_latency_that_learns_its_load_and_what_waits_are_asked_for() {
    let spec = spec(serde_json::json!({
        "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": 20,
        "metrics": [
            {"type": "RunQueueLatency", "runQueueLatency": {"percentile": "p99", "target": "5ms"}},
            {"type": "RequestLatency", "requestLatency": {"percentile": "p99", "target": "50ms", "port": 8080,
                "container": "app", "strategy": "LearnedCapacity"}},
        ],
    }));
    let plan = plan(&spec, "shop", "app=web");
    let learning = &plan.policy.metrics[1];
    assert_eq!(
        learning.objective,
        Objective::LearnedLatency { share: 0.99 }
    );
    assert_eq!(learning.burst_window, Some(Duration::from_secs(3)));
    assert_eq!(plan.queries[1].windows, [30, 3]);
    let [beside] = plan.beside.as_slice() else {
        panic!("{:?}", plan.beside)
    };
    assert_eq!(beside.metric, 1);
    assert_eq!(beside.load.metric, "requests_per_second");
    assert_eq!(beside.load.selector, plan.queries[1].selector);
    assert_eq!(beside.load.windows, [30, 3, 1]);
    assert_eq!(beside.waiting.metric, "runqueue_waiting_threads");
    // Threads have no port.
    assert_eq!(
        beside.waiting.selector,
        "app=web,ebpfscaler.io/container=app"
    );
    assert_eq!(plan.asked().count(), 4);
}

#[test]
fn requests_inside_tls_are_asked_for_where_requests_are() {
    let mut spec = spec(serde_json::json!({
        "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": 20, "tlsRequests": "Probe",
        "metrics": [
            {"type": "RequestRate", "requestRate": {"target": {"averageValue": "100"}}},
            {"type": "RequestLatency", "requestLatency": {"percentile": "p99", "target": "50ms"}},
            {"type": "RunQueueLatency", "runQueueLatency": {"percentile": "p99", "target": "5ms"}},
        ],
    }));
    let asked = |spec: &EbpfScalerSpec| {
        let queries = plan(spec, "shop", "app=web").queries;
        queries.iter().map(|q| (q.tls, q.id())).collect::<Vec<_>>()
    };
    let with = asked(&spec);
    assert_eq!(
        with.iter().map(|q| q.0).collect::<Vec<_>>(),
        [true, true, false]
    );
    spec.tls_requests = TlsRequests::Ignore;
    let without = asked(&spec);
    assert!(without.iter().all(|q| !q.0));
    // Two scalers of the same pods get each its own answer.
    assert_ne!(with[0].1, without[0].1);
    assert_eq!(with[2].1, without[2].1);
}

#[test]
fn a_latency_is_a_value_in_microseconds_and_external_metrics_are_polled() {
    let spec = spec(serde_json::json!({
        "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": 20, "profile": "HPA",
        "metrics": [
            {"type": "RequestLatency", "requestLatency": {"percentile": "p99", "target": "50ms"}},
            {"type": "External", "external": {"metric": {"name": "queue_depth", "selector":
                {"matchLabels": {"queue": "jobs"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]}},
                "target": {"type": "Value", "value": "30"}}},
        ],
    }));
    let plan = plan(&spec, "shop", "app=web");
    assert_eq!(plan.policy.metrics[0].target, Target::Value(50_000.0));
    assert_eq!(plan.queries[0].metric, "request_latency_p99_microseconds");
    assert_eq!(plan.queries[0].windows, [30]);
    assert_eq!(plan.queries[1].selector, "queue=jobs,tier in (a,b)");
    assert!(!plan.queries[1].is_ours());
    assert_eq!(plan.policy.up, Rules::hpa_scale_up());
}
