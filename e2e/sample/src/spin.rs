//! CPU contention: threads that are always runnable. It does no other work and serves nothing.

use std::{thread, time::Duration};

use crate::{terminated, work::burn};

/// Flags of `sample spin`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Threads to keep busy
    #[arg(long, env = "SAMPLE_THREADS", default_value_t = 1)]
    threads: usize,
    /// Go idle after this time; without it, spin until told to stop
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
    /// Sleep this long after each millisecond of work
    #[arg(long, value_parser = humantime::parse_duration, default_value = "0s")]
    pause: Duration,
}

/// Spins until the process is told to end.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let begun = std::time::Instant::now();
    for index in 0..args.threads {
        let (limit, pause) = (args.time, args.pause);
        thread::Builder::new()
            .name(format!("spin-{index}"))
            .spawn(move || {
                while limit.is_none_or(|limit| begun.elapsed() < limit) {
                    burn(Duration::from_millis(1));
                    if !pause.is_zero() {
                        thread::sleep(pause);
                    }
                }
            })?;
    }
    terminated().await;
    Ok(())
}
