//! Writes objects, lists and events in the form that a request asked for.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Value, json};

use super::item::Resource;
use super::object::Writer;
use super::request::Wanted;
use super::snapshot::{Entry, Snapshot};
use super::table::{self, Cells, Include};
use crate::apiserver::hub::Hub;
use crate::apiserver::media::Form;
use crate::apiserver::status::json_response;

/// Knows for whom and how to write.
#[derive(Clone)]
pub struct Answerer {
    /// For the clock
    pub hub: Arc<Hub>,
    /// Of what
    pub resource: Resource,
    /// What was asked for
    pub wanted: Wanted,
    /// In which form
    pub form: Form,
    /// Whether pods of other namespaces may be named
    pub names_all: bool,
}

impl Answerer {
    /// A list of what was asked for.
    pub fn list(&self, snapshot: &Snapshot) -> Response {
        let entries = snapshot.entries.iter();
        let picked = entries.filter(|e| self.wanted.picks(&e.item));
        let body = match self.form {
            Form::Table => {
                let rows = picked.map(|e| self.row(e)).collect();
                self.table(snapshot.version, rows, true)
            }
            _ => json!({
                "kind": format!("{}List", self.resource.kind()),
                "apiVersion": ebpf_scaler_crds::signals::API_VERSION,
                "metadata": {"resourceVersion": snapshot.version.to_string()},
                "items": picked.map(|e| self.object(e)).collect::<Vec<_>>(),
            }),
        };
        json_response(&body)
    }

    /// One object.
    pub fn one(&self, entry: &Entry) -> Response {
        json_response(&self.event(entry, entry.item.version, true))
    }

    /// An object as the object of a watch's event.
    pub fn event(&self, entry: &Entry, version: u64, with_columns: bool) -> Value {
        match self.form {
            Form::Table => self.table(version, vec![self.row(entry)], with_columns),
            _ => {
                let mut object = self.object(entry);
                object["metadata"]["resourceVersion"] = json!(version.to_string());
                object
            }
        }
    }

    /// The object of a bookmark.
    pub fn bookmark(&self, version: u64, end_of_initial: bool) -> Value {
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if end_of_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        match self.form {
            Form::Table => {
                let mut table = self.table(version, Vec::new(), false);
                table["metadata"] = metadata;
                table
            }
            _ => json!({
                "kind": self.resource.kind(),
                "apiVersion": ebpf_scaler_crds::signals::API_VERSION,
                "metadata": metadata,
            }),
        }
    }

    fn object(&self, entry: &Entry) -> Value {
        let writer = Writer {
            window: self.wanted.window,
            names_all: self.names_all,
            clock: self.hub.clock,
        };
        writer.object(entry).unwrap_or_else(|error| {
            tracing::error!(%error, "can not write an object");
            Value::Null
        })
    }

    fn row(&self, entry: &Entry) -> Value {
        let how = Cells {
            now: self.hub.clock.now(),
            names_all: self.names_all,
        };
        let object = match self.wanted.include {
            Include::None => None,
            Include::Object => Some(self.object(entry)),
            Include::Metadata => Some(table::partial(&entry.item)),
        };
        table::row(entry, how, object)
    }

    fn table(&self, version: u64, rows: Vec<Value>, with_columns: bool) -> Value {
        table::table(
            self.resource,
            self.wanted.window,
            version,
            rows,
            with_columns,
        )
    }
}
