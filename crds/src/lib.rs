//! The EbpfScaler resource: its types, the rules the API server enforces on it, and its manifest; and that of its
//! ScalingHistory. Never talks to a cluster.

use kube::{CustomResourceExt, Resource, core::schema::StructuralSchemaRewriter};
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Value, json};

pub mod duration;
pub mod quantity;
pub mod signals;
pub mod v1alpha1;

pub use duration::HumanDuration;
pub use quantity::Quantity;
pub use v1alpha1::{EbpfScaler, EbpfScalerSpec, EbpfScalerStatus, ScalingHistory};

use v1alpha1::{LoadSeries, ScalingDecision};

/// The definitions, by the names of their files under `crds/generated/`.
pub const MANIFESTS: [&str; 2] = ["ebpfscalers", "scalinghistories"];

/// The manifest as committed under `crds/generated/`, by its name of [`MANIFESTS`].
///
/// # Errors
/// When there is none of that name, or it does not serialize, which would be a bug in the schema.
pub fn manifest(name: &str) -> Result<String, String> {
    let definition = match name {
        "ebpfscalers" => definition()?,
        "scalinghistories" => history(),
        _ => return Err(format!("no definition {name}; there are {MANIFESTS:?}")),
    };
    let body = serde_saphyr::to_string(&definition).map_err(|e| e.to_string())?;
    Ok(format!(
        "# Generated from crds/src by `make generate`; do not edit.\n{body}"
    ))
}

/// The definition of ScalingHistory. The derive of custom resources wants a spec, which a record does not have.
#[must_use]
pub fn history() -> Value {
    let (group, kind) = (ScalingHistory::group(&()), ScalingHistory::kind(&()));
    let plural = ScalingHistory::plural(&());
    let column = |name: &str, path: &str, kind: &str, description: &str| json!({"name": name, "jsonPath": path, "type": kind, "description": description});
    let mut crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{group}"),
            "labels": {"app.kubernetes.io/name": "ebpf-scaler"},
        },
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural, "singular": "scalinghistory", "shortNames": ["scalehist"]},
            "scope": "Namespaced",
            "versions": [{
                "name": ScalingHistory::version(&()),
                "served": true,
                "storage": true,
                "additionalPrinterColumns": [
                    column("Last", ".decisions[0].time", "date", "time since the latest decision"),
                    column("From", ".decisions[0].from", "integer", "replicas before it"),
                    column("To", ".decisions[0].to", "integer", "replicas that it asked for"),
                    column("Outcome", ".decisions[0].outcome", "string", "what became of it"),
                    column("Reason", ".decisions[0].reason", "string", "why"),
                ],
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "description": "The latest decisions for the EbpfScaler of the same name, which owns it. Written by the operator only.",
                    "properties": {"decisions": {
                        "type": "array",
                        "description": "The newest first, as many as the operator's --history-entries.",
                        "x-kubernetes-list-type": "atomic",
                        "items": schema::<ScalingDecision>(),
                    }, "load": schema::<LoadSeries>()},
                }},
            }],
        },
    });
    tidy(&mut crd);
    crd
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

/// The schema of a part of a definition.
fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    let generator = settings.with_transform(StructuralSchemaRewriter);
    let mut schema = generator.into_generator().into_root_schema_for::<T>();
    schema.remove("title");
    schema.to_value()
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
