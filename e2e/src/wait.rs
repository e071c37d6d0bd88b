//! Waiting for a condition with a deadline. What fails at the end is the condition's own last message.

use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(250);

/// Asks until the answer is `Ok`, at most for `limit`. An error means "not yet"; the last one is reported.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut condition: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        match condition().await {
            Ok(value) => return Ok(value),
            Err(error) if begun.elapsed() > limit => {
                return Err(error).with_context(|| format!("waited {limit:?} in vain: {what}"));
            }
            Err(_) => sleep(INTERVAL).await,
        }
    }
}

/// Asks over and over for `time` and fails with the first answer that is not `Ok`.
pub async fn always(
    what: &str,
    time: Duration,
    mut condition: impl AsyncFnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        let after = begun.elapsed().as_secs_f64();
        let told = || format!("no longer true after {after:.1} s: {what}");
        condition().await.with_context(told)?;
        sleep(INTERVAL).await;
    }
    Ok(())
}
