//! Requests in flight, found in two ways that must agree: starts less ends, and Little's law over the latencies. Needs
//! root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ebpf_scaler_measure::series::{Sample, Series};
use kernel::http::{GET, OK, Pair, one_pod};
use kernel::{Pod, World, eventually};

const CONNECTIONS: u64 = 8;
const LONGEST: Duration = Duration::from_millis(60);

fn sample(world: &World, pod: &Pod) -> Sample {
    Sample {
        counters: world.counters(pod),
        ..Sample::default()
    }
}

#[test]
fn starts_less_ends_and_littles_law_agree_also_when_connections_die() {
    let (world, pod, listener) = one_pod(80);
    let stop = AtomicBool::new(false);
    // Microseconds that requests with an answer really took, seen from outside.
    let truth = AtomicU64::new(0);
    let (series, span) = thread::scope(|scope| {
        for n in 0..CONNECTIONS {
            let (listener, stop, truth) = (&listener, &stop, &truth);
            let pair = Pair::new(listener);
            scope.spawn(move || {
                let mut pair = pair;
                let mut turn = n;
                while !stop.load(Ordering::SeqCst) {
                    turn += 1;
                    let begun = Instant::now();
                    pair.ask(GET);
                    thread::sleep(LONGEST / (1 + (turn % 6) as u32));
                    pair.answer(OK);
                    truth.fetch_add(begun.elapsed().as_micros() as u64, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(n));
                }
            });
        }
        let begun = Instant::now();
        let at = |time: Instant| time.duration_since(begun).as_micros() as u64 + 1;
        let mut series = Series::from_reading(&sample(&world, &pod), 0, 0);
        let first = truth.load(Ordering::SeqCst);
        let mut before = 0;
        while begun.elapsed() < Duration::from_secs(3) {
            thread::sleep(Duration::from_millis(20));
            let now = at(Instant::now());
            series.push(&sample(&world, &pod), before, now);
            before = now;
        }
        let spent = truth.load(Ordering::SeqCst) - first;
        stop.store(true, Ordering::SeqCst);
        (series, (before, spent))
    });
    let (end, spent) = span;
    let both = series.added(end, end, 0).concurrency().unwrap();
    let real = spent as f64 / end as f64;
    eprintln!("{both:?}, really {real:.2}; {}", world.troubles());
    // What a loaded machine adds to the longest sleep is in both.
    let longest = 4 * LONGEST.as_micros() as u64;
    assert!(
        both.agrees(CONNECTIONS as f64, longest, end, 0.1),
        "{both:?}"
    );
    let edges = 2.0 * CONNECTIONS as f64 * longest as f64 / end as f64;
    assert!(
        (both.by_latency - real).abs() < edges + real * 0.1,
        "{both:?}, really {real}"
    );
    assert_eq!(world.counters(&pod).requests_in_flight, 0);
}

#[test]
fn what_dies_with_its_socket_leaves_the_level_and_never_enters_littles_law() {
    let (world, pod, listener) = one_pod(80);
    let before = world.counters(&pod).request_latency_sum_micros;
    for round in 1..=10u64 {
        let mut pairs: Vec<Pair> = (0..CONNECTIONS).map(|_| Pair::new(&listener)).collect();
        for (n, pair) in pairs.iter_mut().enumerate() {
            // One, or several pipelined, or one beyond those that are timed; one of them half.
            pair.ask(GET.repeat(1 + n * 6));
            pair.ask(&GET[..30]);
        }
        let asked = (0..CONNECTIONS).map(|n| 1 + n * 6).sum::<u64>();
        assert_eq!(
            world.counters(&pod).requests_in_flight,
            asked,
            "{}",
            world.troubles()
        );
        drop(pairs);
        assert!(
            eventually(Duration::from_secs(10), || world
                .counters(&pod)
                .requests_in_flight
                == 0),
            "{}",
            world.troubles()
        );
        let c = world.counters(&pod);
        assert_eq!(
            (c.requests, c.requests_aborted),
            (asked * round, asked * round)
        );
    }
    assert_eq!(world.counters(&pod).request_latency_sum_micros, before);
}
