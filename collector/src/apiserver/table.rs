//! Lists as meta.k8s.io/v1 Tables, which kubectl prints as they are. Knows columns and cells, no metric.

use serde_json::{Value, json};

/// A column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its heading
    pub name: &'static str,
    /// JSON type of its cells: `string`, `integer` or `date`
    pub kind: &'static str,
    /// What is in it
    pub what: &'static str,
    /// Shown by `kubectl -o wide` only
    pub wide: bool,
}

/// A row: its cells and the object that it stands for.
#[derive(Clone, Debug)]
pub struct Row {
    /// One for each column
    pub cells: Vec<Value>,
    /// Namespace of the object
    pub namespace: String,
    /// Name of the object
    pub name: String,
    /// The object itself, with its kind and apiVersion
    pub object: Value,
}

/// A table. `include` is the request's `includeObject`: None, Object, or anything else for the metadata only.
pub fn table(columns: &[Column], rows: Vec<Row>, include: &str) -> Value {
    let columns = columns.iter().map(|column| {
        json!({
            "name": column.name,
            "type": column.kind,
            "format": if column.name == "Name" { "name" } else { "" },
            "description": column.what,
            "priority": i32::from(column.wide),
        })
    });
    let rows = rows.into_iter().map(|row| {
        let mut out = json!({"cells": row.cells});
        match include {
            "None" => {}
            "Object" => out["object"] = row.object,
            _ => {
                out["object"] = json!({
                    "kind": "PartialObjectMetadata",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": {"name": row.name, "namespace": row.namespace, "creationTimestamp": null},
                });
            }
        }
        out
    });
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": columns.collect::<Vec<_>>(),
        "rows": rows.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_carry_as_much_of_their_object_as_is_asked_for() {
        let column = Column {
            name: "Name",
            kind: "string",
            what: "the name",
            wide: false,
        };
        let row = || Row {
            cells: vec!["a".into()],
            namespace: "shop".into(),
            name: "a".into(),
            object: json!({"kind": "Thing"}),
        };
        let object = |include| table(&[column], vec![row()], include)["rows"][0]["object"].clone();
        assert_eq!(object("None"), Value::Null);
        assert_eq!(object("Object"), json!({"kind": "Thing"}));
        assert_eq!(object("")["kind"], "PartialObjectMetadata");
        assert_eq!(object("Metadata")["metadata"]["namespace"], "shop");
        let whole = table(&[column], vec![row()], "");
        assert_eq!(whole["columnDefinitions"][0]["format"], "name");
        assert_eq!(whole["rows"][0]["cells"], json!(["a"]));
    }
}
