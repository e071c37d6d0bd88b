//! A wrong EbpfScaler is refused by the API server, with a message that names the field.

use anyhow::ensure;
use ebpf_scaler_e2e::{
    objects::{apply, request_rate, scaler},
    story,
};
use serde_json::{Value, json};

#[test]
fn wrong_resources_are_refused_by_field() -> story::Outcome {
    story::run("invalid", async |story| {
        let valid = || scaler(&story.namespace, "web", 2, 10, request_rate(50));
        for (field, change) in wrong() {
            let mut object = valid();
            for (pointer, value) in &change {
                set(&mut object, pointer, value.clone());
            }
            match apply(&story.client, &object).await {
                Ok(_) => anyhow::bail!("accepted although {field} is wrong: {change:?}"),
                Err(error) => {
                    let text = format!("{error:#}");
                    ensure!(
                        text.contains(field),
                        "the message does not name {field}: {text}"
                    );
                }
            }
        }
        story.apply(&valid()).await
    })
}

type Change = Vec<(&'static str, Value)>;

/// The field that the message must name, and what to change to make it wrong.
fn wrong() -> Vec<(&'static str, Change)> {
    vec![
        ("minReplicas", vec![("/spec/minReplicas", json!(11))]),
        ("maxReplicas", vec![("/spec/maxReplicas", json!(0))]),
        ("metrics", vec![("/spec/metrics", json!([]))]),
        (
            "requestRate",
            vec![("/spec/metrics/0", json!({"type": "RequestRate"}))],
        ),
        (
            "averageValue",
            vec![(
                "/spec/metrics/0/requestRate/target/averageValue",
                json!("0"),
            )],
        ),
        (
            "stableWindow",
            vec![("/spec/metrics/0/requestRate/stableWindow", json!("7s"))],
        ),
        ("mode", vec![("/spec/mode", json!("Sometimes"))]),
        (
            "fallback",
            vec![("/spec/fallback", json!({"after": "5m", "replicas": 30}))],
        ),
        (
            "stabilizationWindowSeconds",
            vec![(
                "/spec/behavior/scaleDown/stabilizationWindowSeconds",
                json!(7200),
            )],
        ),
        (
            "schedules",
            vec![(
                "/spec/schedules",
                json!([{"name": "a", "start": "0 8 * * *", "duration": "1h", "minReplicas": 11}]),
            )],
        ),
        (
            "spec.schedules[].start",
            vec![(
                "/spec/schedules",
                json!([{"name": "a", "start": "8 o'clock", "duration": "1h", "minReplicas": 3}]),
            )],
        ),
        ("replicas", vec![("/spec/pause", json!({"replicas": 0}))]),
        (
            "metrics",
            vec![(
                "/spec/metrics",
                json!([
                    {"type": "RequestRate", "requestRate": {"target": {"averageValue": "5"}}},
                    {"type": "RequestRate", "requestRate": {"target": {"averageValue": "6"}}},
                ]),
            )],
        ),
    ]
}

/// Sets a value, making the last step of the path if it is not there.
fn set(object: &mut Value, pointer: &str, value: Value) {
    if let Some(found) = object.pointer_mut(pointer) {
        *found = value;
    } else if let Some((parent, key)) = pointer.rsplit_once('/')
        && let Some(parent) = object.pointer_mut(parent)
    {
        parent[key] = value;
    }
}
