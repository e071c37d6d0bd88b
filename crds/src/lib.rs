//! The EbpfScaler resource: its types, the rules the API server enforces on it, and its manifest.
//! Never talks to a cluster.

use kube::CustomResourceExt;
use serde_json::Value;

pub mod duration;
pub mod quantity;
pub mod signals;
pub mod v1alpha1;

pub use duration::HumanDuration;
pub use quantity::Quantity;
pub use v1alpha1::{EbpfScaler, EbpfScalerSpec, EbpfScalerStatus};

/// The manifest as committed under `crds/generated/`.
///
/// # Errors
/// When the definition does not serialize, which would be a bug in the schema.
pub fn manifest() -> Result<String, String> {
    let body = serde_saphyr::to_string(&definition()?).map_err(|e| e.to_string())?;
    Ok(format!(
        "# Generated from crds/src by `make generate`; do not edit.\n{body}"
    ))
}

/// The custom resource definition as JSON.
///
/// # Errors
/// When the definition does not serialize, which would be a bug in the schema.
pub fn definition() -> Result<Value, String> {
    let mut crd = serde_json::to_value(EbpfScaler::crd()).map_err(|e| e.to_string())?;
    tidy(&mut crd);
    if let Some(metadata) = crd.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert(
            "labels".into(),
            serde_json::json!({"app.kubernetes.io/name": "ebpf-scaler"}),
        );
    }
    if let Some(schema) = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema") {
        schema["description"] =
            "Scales a workload on what its pods really do, as the kernel sees it.".into();
        schema["properties"]["spec"]["description"] =
            "What to scale, on what, and within which bounds.".into();
    }
    Ok(crd)
}

/// Takes out `nullable` (an explicit null would count as present in the rules' `has()`), and prints
/// whole bounds without a fraction.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("nullable").is_some_and(Value::is_boolean) {
                map.remove("nullable");
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        Value::Number(n) => {
            if let Some(f) = n.as_f64().filter(|f| n.is_f64() && f.fract() == 0.0) {
                // Bounds of the schema are small, so the cast is exact.
                *value = Value::from(f as i64);
            }
        }
        _ => {}
    }
}
