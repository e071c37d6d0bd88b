//! The open-loop load generator: requests go out when they are due, whatever the server does, and each one is
//! counted exactly once. It never retries and never skips a request silently.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    client::{Connection, Failure, Target},
    log::{Event, Line, Progress, Totals},
    schedule::{Phase, Random, Spacing, due},
    terminated,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Flags of `sample load`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Where to send requests, for example http://web:8080/; each of several gets the whole schedule
    #[arg(long, required = true)]
    pub target: Vec<String>,
    /// DURATION@RATE, for example 20s@240; repeat it for a schedule of several phases
    #[arg(long, required = true)]
    pub phase: Vec<Phase>,
    /// Connections to each target; a request that finds all of them busy waits, and its wait counts as latency
    #[arg(long, default_value_t = 32)]
    pub connections: usize,
    /// Renew connections at about this age, so that new pods behind a Service get their share
    #[arg(long, value_parser = humantime::parse_duration, default_value = "5s")]
    pub connection_max_age: Duration,
    /// How requests are spaced within a phase
    #[arg(long, value_enum, default_value_t)]
    pub spacing: Spacing,
    /// Seed of the random spacing and of the connections' ages
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Send a POST with a body of this size instead of a GET
    #[arg(long, default_value_t = 0)]
    pub body_bytes: usize,
    /// Give a response up after this time
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s")]
    pub timeout: Duration,
    /// Time between two lines of progress
    #[arg(long, value_parser = humantime::parse_duration, default_value = "500ms")]
    pub interval: Duration,
}

/// Runs the schedule to its end, or until told to stop, and prints as [`crate::log`] says.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let stop = async {
        terminated().await;
    };
    generate(&args, stop, |line| match serde_json::to_string(&line) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("cannot print a line: {error}"),
    })
    .await?;
    Ok(())
}

/// Generates the load and returns the exact counts of each target.
pub async fn generate(
    args: &Args,
    stop: impl Future<Output = ()>,
    print: impl Fn(Line) + Send + Sync + 'static,
) -> anyhow::Result<Vec<Totals>> {
    let print: Arc<dyn Fn(Line) + Send + Sync> = Arc::new(print);
    let mut flows = Vec::new();
    for (index, url) in args.target.iter().enumerate() {
        let target = Target::resolve(url, args.body_bytes).await?;
        flows.push(Arc::new(Flow::new(index, target, args, Arc::clone(&print))));
    }
    let mut queues = Vec::new();
    let mut workers = JoinSet::new();
    for flow in &flows {
        // Unbounded, because the schedule must not wait; it is as long as the schedule at most.
        let (queue, jobs) = mpsc::unbounded_channel();
        let jobs = Arc::new(tokio::sync::Mutex::new(jobs));
        for worker in 0..args.connections.max(1) {
            let (flow, jobs) = (Arc::clone(flow), Arc::clone(&jobs));
            workers.spawn(work(flow, jobs, args.seed.wrapping_add(worker as u64)));
        }
        queues.push(queue);
    }
    let progress = tokio::spawn(report(flows.clone(), args.interval, Arc::clone(&print)));

    tokio::pin!(stop);
    let mut stopped = false;
    let begun = Instant::now();
    for job in due(&args.phase, args.spacing, args.seed) {
        let at = begun + job.at;
        if at > Instant::now() {
            tokio::select! {
                biased;
                () = &mut stop => stopped = true,
                () = sleep_until(at) => {}
            }
        }
        if stopped {
            break;
        }
        for (flow, queue) in flows.iter().zip(&queues) {
            flow.update(|counts| counts.scheduled += 1);
            // The receiver lives as long as the workers, which outlive this loop.
            let _ = queue.send(Job {
                due: at,
                phase: job.phase,
            });
        }
    }
    let end: Duration = args.phase.iter().map(|phase| phase.duration).sum();
    if !stopped {
        tokio::select! {
            biased;
            () = &mut stop => {}
            () = sleep_until(begun + end) => {}
        }
    }
    drop(queues);
    while workers.join_next().await.is_some() {}
    progress.abort();
    // It may be in the middle of a line; nothing comes after the totals.
    let _ = progress.await;

    let totals: Vec<Totals> = flows.iter().map(|flow| flow.totals()).collect();
    print(Line::Event(Event::Totals {
        targets: totals.clone(),
    }));
    Ok(totals)
}

#[derive(Clone, Copy)]
struct Job {
    due: Instant,
    phase: usize,
}

#[derive(Default)]
struct Counts {
    scheduled: u64,
    completed: u64,
    failed: u64,
    unsent: u64,
    error_responses: u64,
    connections: u64,
    sent_by_phase: Vec<u64>,
    phase: usize,
    /// Microseconds, of the interval that is not yet reported.
    latencies: Vec<u64>,
}

impl Counts {
    fn sent(&self) -> u64 {
        self.sent_by_phase.iter().sum()
    }
}

/// Everything about one target.
struct Flow {
    index: usize,
    target: Target,
    timeout: Duration,
    max_age: Duration,
    rates: Vec<f64>,
    phase_seen: Vec<AtomicBool>,
    counts: Mutex<Counts>,
    print: Arc<dyn Fn(Line) + Send + Sync>,
}

impl Flow {
    fn new(
        index: usize,
        target: Target,
        args: &Args,
        print: Arc<dyn Fn(Line) + Send + Sync>,
    ) -> Self {
        Self {
            index,
            target,
            timeout: args.timeout,
            max_age: args.connection_max_age,
            rates: args.phase.iter().map(|phase| phase.rate).collect(),
            phase_seen: args.phase.iter().map(|_| AtomicBool::new(false)).collect(),
            counts: Mutex::new(Counts {
                sent_by_phase: vec![0; args.phase.len()],
                ..Counts::default()
            }),
            print,
        }
    }

    fn update<T>(&self, change: impl FnOnce(&mut Counts) -> T) -> T {
        let mut counts = self
            .counts
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        change(&mut counts)
    }

    /// Announces the phase with its first request, just before it is written.
    fn announce(&self, phase: usize) {
        if !self.phase_seen[phase].swap(true, Ordering::Relaxed) {
            (self.print)(Line::Event(Event::Phase {
                index: phase,
                target: self.index,
                rate: self.rates[phase],
                unix_micros: unix_micros(),
            }));
        }
    }

    fn totals(&self) -> Totals {
        self.update(|counts| Totals {
            url: self.target.url.clone(),
            scheduled: counts.scheduled,
            sent: counts.sent(),
            completed: counts.completed,
            failed: counts.failed,
            unsent: counts.unsent,
            error_responses: counts.error_responses,
            connections: counts.connections,
            sent_by_phase: counts.sent_by_phase.clone(),
        })
    }
}

/// One connection at a time, taking whatever request is due next.
async fn work(
    flow: Arc<Flow>,
    jobs: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Job>>>,
    seed: u64,
) {
    let mut random = Random(seed);
    let mut connection = None;
    loop {
        let job = jobs.lock().await.recv().await;
        let Some(job) = job else { return };
        if connection
            .as_ref()
            .is_none_or(|(open, until): &(Connection, Instant)| {
                !open.is_open() || *until < Instant::now()
            })
        {
            connection = open(&flow, &mut random).await;
        }
        let keep = match connection.as_mut() {
            Some((open, _)) => exchange(&flow, open, job).await,
            None => {
                flow.update(|counts| {
                    counts.unsent += 1;
                    counts.failed += 1;
                });
                false
            }
        };
        if !keep {
            connection = None;
        }
    }
}

/// A new connection and when to give it up: within a half of the maximal age around it, or all of them would be
/// renewed at the same moment.
async fn open(flow: &Flow, random: &mut Random) -> Option<(Connection, Instant)> {
    let connection = timeout(CONNECT_TIMEOUT, Connection::open(&flow.target)).await;
    let connection = connection.ok()?.ok()?;
    flow.update(|counts| counts.connections += 1);
    let age = flow.max_age.mul_f64(0.75 + 0.5 * random.unit());
    Some((connection, Instant::now() + age))
}

/// Whether the connection can be used again.
async fn exchange(flow: &Flow, connection: &mut Connection, job: Job) -> bool {
    flow.announce(job.phase);
    let written = timeout(flow.timeout, connection.write(&flow.target.request)).await;
    if !matches!(written, Ok(Ok(()))) {
        flow.update(|counts| {
            counts.unsent += 1;
            counts.failed += 1;
        });
        return false;
    }
    flow.update(|counts| {
        counts.sent_by_phase[job.phase] += 1;
        counts.phase = counts.phase.max(job.phase);
    });
    let response = match timeout(flow.timeout, connection.read()).await {
        Ok(Ok(response)) => Some(response),
        Ok(Err(Failure::Unsent(_) | Failure::NoResponse(_))) | Err(_) => None,
    };
    let took = job.due.elapsed().as_micros();
    flow.update(|counts| match response {
        Some(response) => {
            counts.completed += 1;
            counts.error_responses += u64::from(response.status >= 400);
            counts
                .latencies
                .push(u64::try_from(took).unwrap_or(u64::MAX));
        }
        None => counts.failed += 1,
    });
    response.is_some_and(|response| response.keep_alive)
}

async fn report(flows: Vec<Arc<Flow>>, interval: Duration, print: Arc<dyn Fn(Line) + Send + Sync>) {
    let mut interval = tokio::time::interval(interval.max(Duration::from_millis(10)));
    interval.tick().await;
    let mut last = vec![(0_u64, Instant::now()); flows.len()];
    loop {
        interval.tick().await;
        for (flow, (last_sent, last_time)) in flows.iter().zip(&mut last) {
            let now = Instant::now();
            let seconds = (now - *last_time).as_secs_f64().max(1e-3);
            let mut progress = flow.update(|counts| {
                let mut latencies = std::mem::take(&mut counts.latencies);
                latencies.sort_unstable();
                Progress {
                    t: unix_micros() as f64 / 1e6,
                    target: flow.index,
                    phase: counts.phase,
                    sent: counts.sent(),
                    completed: counts.completed,
                    failed: counts.failed,
                    rate: 0.0,
                    p50_us: quantile(&latencies, 0.5),
                    p99_us: quantile(&latencies, 0.99),
                }
            });
            let rate = (progress.sent - *last_sent) as f64 / seconds;
            progress.rate = (rate * 10.0).round() / 10.0;
            (*last_sent, *last_time) = (progress.sent, now);
            print(Line::Progress(progress));
        }
    }
}

/// The nearest-rank quantile of sorted values.
fn quantile(sorted: &[u64], share: f64) -> u64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

fn unix_micros() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
