//! The sample workloads that the demo, the benches and the tests run: a web server, a load generator that counts
//! exactly, and sources of CPU contention and network traffic. Nothing here is part of the product.

pub mod client;
pub mod load;
pub mod log;
pub mod proxy;
pub mod schedule;
pub mod serve;
pub mod spin;
pub mod stream;
pub mod work;

/// Completes when the process is asked to end. As PID 1 of a container it would otherwise not end at all.
pub async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
