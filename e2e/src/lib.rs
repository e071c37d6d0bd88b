//! What the tests on a real cluster, the demo and the benches share: talking to a cluster, applying objects,
//! waiting with useful messages, generating load. It never starts or stops a cluster.

pub mod availability;
pub mod client;
pub mod diagnose;
pub mod load;
pub mod metrics;
pub mod objects;
pub mod process;
pub mod product;
pub mod replicas;
pub mod story;
pub mod truth;
pub mod wait;

use std::time::{SystemTime, UNIX_EPOCH};

/// The namespace that the product is installed in.
pub const PRODUCT: &str = "ebpf-scaler";

/// Wall clock in microseconds since 1970. Cluster nodes on the same kernel have the same.
pub fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}
