//! The sample workloads that the demo, the benches and the tests run: a web server, a load generator that counts
//! exactly, and sources of CPU contention and network traffic. Nothing here is part of the product.

#[cfg(feature = "programs")]
pub mod client;
#[cfg(feature = "programs")]
pub mod load;
pub mod log;
#[cfg(feature = "programs")]
pub mod proxy;
#[cfg(feature = "programs")]
pub mod schedule;
#[cfg(feature = "programs")]
pub mod serve;
#[cfg(feature = "programs")]
pub mod spin;
pub mod spread;
#[cfg(feature = "programs")]
pub mod stream;
#[cfg(feature = "programs")]
pub mod work;

/// Completes when the process is asked to end. As PID 1 of a container it would otherwise not end at all.
#[cfg(feature = "programs")]
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
