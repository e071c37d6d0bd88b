//! The committed manifest is the generated one, and its rules refuse what they should, with
//! messages that name the field. Runs the rules with kube's CEL; the e2e tests ask a real API server.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use ebpf_scaler_crds::{EbpfScaler, MANIFESTS, ScalingHistory, definition, history, manifest};
use kube::core::cel::Validator;
use serde_json::{Value, json};

fn scaler(change: impl FnOnce(&mut Value)) -> Value {
    let mut object = json!({
        "apiVersion": "ebpfscaler.io/v1alpha1", "kind": "EbpfScaler",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "minReplicas": 2, "maxReplicas": 20, "mode": "Enforce", "profile": "Default", "tlsRequests": "Probe",
            "metrics": [
                {"type": "RequestRate", "requestRate":
                    {"target": {"averageValue": "100"}, "stableWindow": "30s", "burstWindow": "3s"}},
                {"type": "External", "external": {"metric": {"name": "queue_depth"},
                    "target": {"type": "AverageValue", "averageValue": "30"}}},
            ],
        }
    });
    change(&mut object["spec"]);
    object
}

/// What the rules say to an object, one message a line.
fn refused(object: &Value) -> String {
    let crd = definition().unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    match Validator::new().validate(schema, object, None) {
        Ok(()) => String::new(),
        Err(errors) => errors.to_string(),
    }
}

#[test]
fn the_committed_manifests_are_the_generated_ones() {
    for name in MANIFESTS {
        let path = format!("{}/generated/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        let committed = std::fs::read_to_string(path).unwrap();
        assert_eq!(committed, manifest(name).unwrap(), "run `make generate`");
    }
    assert!(manifest("pods").unwrap_err().contains("scalinghistories"));
}

#[test]
fn a_history_is_accepted_and_survives_a_round_trip() {
    let object = json!({
        "metadata": {"name": "web", "namespace": "shop"},
        "decisions": [
            {"time": "2026-11-24T10:42:07.123456Z", "from": 2, "to": 6, "ready": 2, "outcome": "Applied",
             "reason": "BurstAboveTarget", "message": "…", "metrics": [
                {"name": "requests_per_second", "value": "612.5", "target": "100", "proposal": 6, "basis": "Burst",
                 "window": "3s", "coverage": "1"},
                {"name": "queue_depth", "target": "30", "basis": "Missing", "message": "no such metric"}]},
            {"time": "2026-11-24T10:40:00.000000Z", "from": 2, "to": 2, "ready": 2, "outcome": "Held",
             "reason": "NoMetrics", "message": "…", "error": "…"},
        ],
        "load": {"metric": "requests_per_second", "start": "2026-11-24T10:40:00Z", "stepSeconds": 300,
            "values": ["612.5", "", "80"]},
    });
    let schema = history()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    Validator::new().validate(&schema, &object, None).unwrap();
    let typed: ScalingHistory = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(serde_json::to_value(&typed).unwrap(), object);
}

#[test]
fn a_whole_object_is_accepted_and_survives_a_round_trip() {
    let object = scaler(|s| {
        s["behavior"] = json!({
            "scaleUp": {"policies": [{"type": "Percent", "value": 900, "periodSeconds": 15}]},
            "scaleDown": {"stabilizationWindowSeconds": 15, "selectPolicy": "Min", "tolerance": "0.2",
                "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}});
        s["fallback"] = json!({"after": "5m", "replicas": 6});
        s["metrics"] = json!([
            {"type": "RequestRate", "requestRate": {"target": {"averageValue": "100"}, "port": 8080, "stableWindow": "30s", "burstWindow": "3s"}},
            {"type": "RequestsInFlight", "requestsInFlight": {"target": {"averageValue": "10"}, "stableWindow": "60s", "burstWindow": "3s"}},
            {"type": "RequestLatency", "requestLatency": {"percentile": "p99", "target": "50ms", "port": 8080, "container": "app", "stableWindow": "30s", "strategy": "LearnedCapacity"}},
            {"type": "RunQueueLatency", "runQueueLatency": {"percentile": "p90", "target": "10ms", "stableWindow": "30s"}},
            {"type": "RunQueueWaitingThreads", "runQueueWaitingThreads": {"target": {"averageValue": "500m"}, "stableWindow": "30s", "burstWindow": "3s"}},
            {"type": "NetworkThroughput", "networkThroughput": {"direction": "Both", "target": {"averageValue": "10Mi"}, "stableWindow": "30s", "burstWindow": "3s"}},
            {"type": "External", "external": {"metric": {"name": "queue_depth", "selector": {"matchLabels": {"queue": "jobs"}}}, "target": {"type": "Value", "value": "30"}}},
        ]);
    });
    assert_eq!(refused(&object), "");
    let typed: EbpfScaler = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(serde_json::to_value(&typed).unwrap(), object);
}

#[test]
fn what_is_left_out_gets_its_default() {
    let typed: EbpfScaler = serde_json::from_value(json!({
        "apiVersion": "ebpfscaler.io/v1alpha1", "kind": "EbpfScaler", "metadata": {"name": "web"},
        "spec": {
            "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": 3,
            "metrics": [{"type": "RequestRate", "requestRate": {"target": {"averageValue": 100}}}],
        }
    }))
    .unwrap();
    insta::assert_json_snapshot!(typed.spec);
}

#[test]
fn each_wrong_object_is_refused_with_the_field_and_what_would_be_right() {
    let rate = |target: Value| json!({"type": "RequestRate", "requestRate": {"target": {"averageValue": target}, "stableWindow": "30s", "burstWindow": "3s"}});
    let learning = |window: &str| {
        json!({"type": "RequestLatency", "requestLatency": {"percentile": "p99", "target": "50ms",
        "stableWindow": window, "strategy": "LearnedCapacity"}})
    };
    let cases: Vec<(&str, Value)> = vec![
        (
            "spec.minReplicas must be at most spec.maxReplicas",
            scaler(|s| s["minReplicas"] = json!(30)),
        ),
        (
            "spec.metrics[].requestLatency.strategy can not be LearnedCapacity if spec.profile is HPA",
            scaler(|s| {
                s["profile"] = json!("HPA");
                s["metrics"] = json!([learning("30s")]);
            }),
        ),
        (
            "stableWindow must be 10s or longer if strategy is LearnedCapacity",
            scaler(|s| s["metrics"] = json!([learning("3s")])),
        ),
        (
            "runQueueLatency.strategy can not be set",
            scaler(|s| {
                s["metrics"] = json!([{"type": "RunQueueLatency", "runQueueLatency": {"percentile": "p99",
                    "target": "5ms", "stableWindow": "30s", "strategy": "BoundedSteps"}}]);
            }),
        ),
        (
            "requestRate must be set if type is RequestRate, and only then",
            scaler(|s| s["metrics"][0] = json!({"type": "RequestRate"})),
        ),
        (
            "external must be set if type is External, and only then",
            scaler(|s| s["metrics"][0]["external"] = s["metrics"][1]["external"].clone()),
        ),
        (
            "stableWindow must be longer than burstWindow",
            scaler(|s| s["metrics"][0]["requestRate"]["burstWindow"] = json!("30s")),
        ),
        (
            "target.averageValue must be a quantity above zero",
            scaler(|s| s["metrics"][0] = rate(json!("0"))),
        ),
        (
            "target.averageValue must be a quantity above zero",
            scaler(|s| s["metrics"][0] = rate(json!(0))),
        ),
        (
            "lists the same metric twice",
            scaler(|s| s["metrics"][1] = rate(json!("50"))),
        ),
        (
            "spec.fallback.replicas must be from spec.minReplicas to spec.maxReplicas",
            scaler(|s| s["fallback"] = json!({"after": "5m", "replicas": 21})),
        ),
        (
            "spec.fallback.after must be from 10s to 24h",
            scaler(|s| s["fallback"] = json!({"after": "1s", "replicas": 2})),
        ),
        (
            "policies must list at least one policy",
            scaler(|s| s["behavior"] = json!({"scaleUp": {"policies": []}})),
        ),
        (
            "tolerance must be a quantity from 0 to 10",
            scaler(|s| s["behavior"] = json!({"scaleUp": {"tolerance": "11"}})),
        ),
        (
            "target must be a duration above zero, such as 50ms",
            scaler(|s| {
                s["metrics"][0] = json!({"type": "RequestLatency", "requestLatency": {"percentile": "p99", "target": "0s", "stableWindow": "30s"}});
            }),
        ),
        (
            "runQueueLatency.port can not be set: threads have no port",
            scaler(|s| {
                s["metrics"][0] = json!({"type": "RunQueueLatency", "runQueueLatency": {"percentile": "p99", "target": "9ms", "port": 80, "stableWindow": "30s"}});
            }),
        ),
        (
            "target.value must be set if target.type is Value, and only then",
            scaler(|s| s["metrics"][1]["external"]["target"]["type"] = json!("Value")),
        ),
    ];
    for (message, object) in cases {
        let said = refused(&object);
        assert!(said.contains(message), "wanted {message:?}, got {said:?}");
    }
}

#[test]
fn another_port_container_percentile_or_name_is_another_metric() {
    let object = scaler(|s| {
        let mut app = s["metrics"][0].clone();
        app["requestRate"]["container"] = json!("app");
        s["metrics"].as_array_mut().unwrap().push(app);
        for container in ["app", "proxy"] {
            let waiting = json!({"type": "RunQueueWaitingThreads", "runQueueWaitingThreads": {
                "target": {"averageValue": "1"}, "container": container, "stableWindow": "30s", "burstWindow": "3s"}});
            s["metrics"].as_array_mut().unwrap().push(waiting);
        }
        let mut other = s["metrics"][0].clone();
        other["requestRate"]["port"] = json!(9000);
        s["metrics"].as_array_mut().unwrap().push(other);
        let mut external = s["metrics"][1].clone();
        external["external"]["metric"]["name"] = json!("other");
        s["metrics"].as_array_mut().unwrap().push(external);
    });
    assert_eq!(refused(&object), "");
}
