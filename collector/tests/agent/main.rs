//! The agent without a kernel and without a cluster: the life of a pod's slot on a scripted kernel, and its
//! streams against real gRPC servers over TLS on loopback.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helper that can not go on has failed the test"
)]

mod kernel;
mod parts;
mod pods;
mod replica;
mod reporter;
mod sampling;
mod streams;

use std::time::Duration;

/// What a replica's certificate says.
const NAME: &str = "ebpf-scaler-report.ebpf-scaler.svc";
/// What has not happened by then does not happen.
const PATIENCE: Duration = Duration::from_secs(20);

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}
