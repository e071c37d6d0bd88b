//! The wire protocol between agents, API server replicas and operators, generated from
//! `proto/collector.proto`, which documents it. No behaviour lives here.
#![allow(
    missing_docs,
    reason = "generated; the .proto file has the documentation"
)]
#![allow(clippy::allow_attributes_without_reason, reason = "generated")]

tonic::include_proto!("ebpfscaler.v1alpha1");

/// Audience of the tokens that agents and operators present.
pub const TOKEN_AUDIENCE: &str = "ebpf-scaler-collector";

/// The port on which API server replicas listen for `Report` and `Watch`.
pub const PORT: u16 = 9443;
