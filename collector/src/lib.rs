//! The collector: one binary, two roles. `agent` measures a node's pods with eBPF and has no Kubernetes
//! API rights; `apiserver` keeps windows over what agents report and serves the metrics APIs.

pub mod admin;
pub mod agent;
pub mod apiserver;
pub mod telemetry;
