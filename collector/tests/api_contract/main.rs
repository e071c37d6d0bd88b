//! The wire contract, held against the real server: what kube-apiserver, HPAs, agents and operators send
//! and what they rely on. No cluster and no root is needed: the Kubernetes API is a stub on loopback.

mod cluster;
mod identities;
mod pki;
mod queries;
mod streams;
mod world;
