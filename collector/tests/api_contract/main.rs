//! The wire contract, held against the real server: what kube-apiserver, HPAs, agents and operators send
//! and what they rely on. No cluster and no root is needed: the Kubernetes API is a stub on loopback.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helper that can not go on has failed the test"
)]

mod attacks;
mod cluster;
mod custom;
mod delegate;
mod discovery;
mod identities;
mod narrow;
mod pki;
mod queries;
mod raw;
mod rotation;
mod signals;
mod starting;
mod streams;
mod upstream;
mod world;
