//! The generator against the server on loopback: what one says it sent is what the other says it got.
#![expect(
    clippy::unwrap_used,
    reason = "in a test a failed set-up should stop it where it stands"
)]

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use ebpf_scaler_sample::{
    load::{self, generate},
    log::{Event, Line, Totals},
    proxy::Proxy,
    schedule::{Phase, Spacing},
    serve::Server,
};
use tokio::net::TcpListener;

async fn server() -> (Arc<Server>, String) {
    let server = Server::new(Duration::from_micros(20), 64);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(Arc::clone(&server).accept(listener));
    (server, url)
}

fn args(target: &[&str], phases: &[&str]) -> load::Args {
    load::Args {
        target: target.iter().map(|&url| url.to_owned()).collect(),
        phase: phases.iter().map(|phase| phase.parse().unwrap()).collect(),
        connections: 8,
        connection_max_age: Duration::from_millis(300),
        spacing: Spacing::Constant,
        seed: 1,
        body_bytes: 0,
        timeout: Duration::from_secs(5),
        interval: Duration::from_millis(100),
    }
}

async fn run(args: &load::Args) -> (Vec<Totals>, Vec<Line>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let copy = Arc::clone(&lines);
    let totals = generate(args, std::future::pending(), move |line| {
        copy.lock().unwrap().push(line);
    })
    .await
    .unwrap();
    let lines = lines.lock().unwrap().clone();
    (totals, lines)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_count_the_same() {
    let (server, url) = server().await;
    let args = args(&[&url], &["1s@50", "1s@400", "500ms@50"]);
    let wanted: u64 = args.phase.iter().map(Phase::requests).sum();

    let (totals, lines) = run(&args).await;

    assert_eq!(totals[0].sent, wanted);
    assert_eq!(totals[0].completed, wanted);
    assert_eq!((totals[0].failed, totals[0].unsent), (0, 0));
    assert_eq!(totals[0].sent_by_phase, [50, 400, 25]);
    assert_eq!(server.counters.requests.load(Ordering::Relaxed), wanted);
    let opened = server.counters.connections.load(Ordering::Relaxed);
    assert_eq!(totals[0].connections, opened);
    assert!(
        opened > 16,
        "connections are renewed by age, only {opened} were opened"
    );

    let phases: Vec<u64> = lines
        .iter()
        .filter_map(|line| match line {
            Line::Event(Event::Phase { unix_micros, .. }) => Some(*unix_micros),
            _ => None,
        })
        .collect();
    assert_eq!(phases.len(), 3, "each phase is announced once");
    let step = Duration::from_micros(phases[1] - phases[0]).as_secs_f64();
    assert!(step > 0.9, "the step came after {step} s");
    assert!(matches!(
        lines.last(),
        Some(Line::Event(Event::Totals { .. }))
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_targets_get_the_same_step_and_a_dead_one_is_not_hidden() {
    let (server, url) = server().await;
    let args = args(&[&url, "http://127.0.0.1:1/"], &["500ms@100"]);

    let (totals, _) = run(&args).await;

    assert_eq!((totals[0].sent, totals[0].failed), (50, 0));
    assert_eq!(server.counters.requests.load(Ordering::Relaxed), 50);
    assert_eq!(
        (totals[1].sent, totals[1].unsent, totals[1].failed),
        (0, 50, 50)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_server_does_not_slow_the_schedule() {
    let (server, url) = server().await;
    let mut args = args(&[&format!("{url}sleep?ms=400")], &["500ms@40"]);
    args.connections = 2;
    let begun = std::time::Instant::now();

    let (totals, _) = run(&args).await;

    assert_eq!(totals[0].scheduled, 20);
    assert_eq!(totals[0].completed, 20, "late ones are sent all the same");
    assert!(
        begun.elapsed() > Duration::from_millis(3900),
        "two at a time take 4 s"
    );
    assert_eq!(server.counters.requests.load(Ordering::Relaxed), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_server_loses_no_request() {
    let (server, url) = server().await;
    let mut args = args(&[&url], &["2s@200"]);
    args.connection_max_age = Duration::from_secs(60);
    let draining = Arc::clone(&server);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        draining.drain().await;
    });

    let (totals, _) = run(&args).await;

    assert_eq!(totals[0].completed, 400);
    assert_eq!(totals[0].failed, 0);
    assert!(totals[0].connections > 100, "each response asks to close");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_stopped_in_the_middle_still_counts_exactly() {
    let (server, url) = server().await;
    let args = args(&[&url], &["60s@100"]);
    let stop = tokio::time::sleep(Duration::from_secs(1));

    let totals = generate(&args, stop, |_| ()).await.unwrap();

    assert!((1..6000).contains(&totals[0].sent), "{totals:?}");
    let requests = server.counters.requests.load(Ordering::Relaxed);
    assert_eq!((totals[0].sent, totals[0].failed), (requests, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_forwards_each_request_once() {
    let (server, url) = server().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(Proxy::new(url.parse().unwrap()).accept(listener));

    let (totals, _) = run(&args(&[&front], &["500ms@100"])).await;

    assert_eq!((totals[0].completed, totals[0].error_responses), (50, 0));
    assert_eq!(server.counters.requests.load(Ordering::Relaxed), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_arrive_whole() {
    let (server, url) = server().await;
    let mut args = args(&[&format!("{url}sink")], &["500ms@20"]);
    args.body_bytes = 100_000;

    let (totals, _) = run(&args).await;

    assert_eq!(totals[0].completed, 10);
    assert_eq!(
        server.counters.body_bytes.load(Ordering::Relaxed),
        1_000_000
    );
}
