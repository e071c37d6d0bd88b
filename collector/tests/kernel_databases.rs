//! Databases and TLS servers under their own benchmarks, whose counts are the oracle: Redis, PostgreSQL, nginx with TLS. Needs
//! root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::process::Command;
use std::time::Duration;

use ebpf_scaler_collector::agent::probes::Counters;
use kernel::databases::Server;
use kernel::{Pod, SERVER, World, eventually};

/// A pod's counters, once nothing is in flight.
fn settled(world: &World, pod: &Pod) -> Counters {
    let quiet = || world.counters(pod).requests_in_flight == 0;
    assert!(
        eventually(Duration::from_secs(10), quiet),
        "{:?}, {}",
        world.counters(pod),
        world.troubles()
    );
    world.counters(pod)
}

fn latencies(world: &World, pod: &Pod) -> u64 {
    world.read(pod).request_latency.iter().sum()
}

/// A client that moves between CPUs can put its segments out of order, or send two at once. The counts hold even so, but the
/// place is lost, and found again.
fn no_place_was_lost_in_order(world: &World) {
    if in_order(world) {
        assert_eq!(world.statistic("request_desyncs"), 0);
    }
}

fn in_order(world: &World) -> bool {
    world.statistic("segments_out_of_order") + world.statistic("lost_races") == 0
}

#[test]
fn redis_benchmark_agrees_with_us() {
    let mut world = World::new();
    let pod = world.pod("pod");
    let server = Server::redis(&world, &pod, 6379);
    // Warm-up of a run: two CONFIG commands, each on a connection of its own.
    server.redis_benchmark(&["-t", "set", "-n", "1", "-c", "1"]);
    let warm = settled(&world, &pod);
    let extra = warm.requests - 1;
    assert!(extra <= 4, "{warm:?}");
    for (arguments, requests) in [
        (&["-t", "set,get,incr,mset,lpush,lrange_300"][..], 60_000),
        (&["-t", "ping_inline,ping_mbulk,get", "-P", "16"], 30_000),
        // More in flight than are timed, and values that fill many segments.
        (&["-t", "set,get", "-P", "100", "-d", "4000"], 20_000),
        (&["-t", "set,get", "--threads", "2", "-3"], 20_000),
    ] {
        let (before, timed) = (world.counters(&pod), latencies(&world, &pod));
        server.redis_benchmark(&[arguments, &["-n", "10000", "-c", "16"]].concat());
        let after = settled(&world, &pod);
        let counted = after.requests - before.requests;
        eprintln!("{arguments:?}: {counted}, {}", world.troubles());
        // LRANGE needs a list, which is filled by LPUSHes of their own; RESP3 is asked for on each connection.
        let more = counted.saturating_sub(requests);
        // Of a connection's first batch those that were in a segment that came too early are lost (docs/limits.md).
        let missed = if in_order(&world) { 0 } else { requests / 100 };
        let known = match arguments {
            [_, _, _, "2", "-3"] => 2 * 16 + 8,
            [_, tests] if tests.contains("lrange") => 10_000 + 8,
            _ => 8,
        };
        assert!(
            more <= known && counted + missed >= requests,
            "{arguments:?}: {counted} of {requests}, {}",
            world.troubles()
        );
        assert_eq!(
            after.requests_redis - before.requests_redis,
            counted,
            "all of them are Redis's"
        );
        assert_eq!(
            after.responses_2xx + after.responses_5xx,
            after.requests,
            "{after:?}, {}",
            world.troubles()
        );
        let timed = latencies(&world, &pod) - timed;
        assert!(timed > counted / 4, "{timed} of {counted} were timed");
    }
    let c = world.counters(&pod);
    assert_eq!((c.requests_aborted, c.tls_turns), (0, 0));
    no_place_was_lost_in_order(&world);
    assert_eq!(world.statistic("response_desyncs"), 0);
    assert!(!in_order(&world) || world.statistic("responses_unmatched") == 0);
}

/// What pgbench says of its run.
fn transactions(text: &str) -> u64 {
    let what = "number of transactions actually processed: ";
    let line = text.lines().find_map(|line| line.strip_prefix(what));
    let number = line.and_then(|rest| rest.split('/').next());
    number.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

#[test]
fn pgbench_agrees_with_us() {
    let mut world = World::new();
    let pod = world.pod("pod");
    let server = Server::postgresql(&world, &pod, 5432);
    // Tables, by COPY among others: requests, too, but of a number that is pgbench's own affair.
    server.pgbench(&["-i", "-q"]);
    settled(&world, &pod);
    for (mode, queries) in [
        (&["-S"][..], 1),
        (&["-S", "-M", "extended"], 1),
        (&["-S", "-M", "prepared"], 1),
        // A transaction of seven commands.
        (&["-M", "simple"], 7),
    ] {
        let (before, timed) = (world.counters(&pod), latencies(&world, &pod));
        let text = server.pgbench(&[mode, &["-n", "-c", "4", "-t", "500"]].concat());
        let done = transactions(&text);
        let after = settled(&world, &pod);
        let counted = after.requests - before.requests;
        eprintln!("{mode:?}: pgbench {done}, counted {counted}");
        // Before it begins it asks for the tables' sizes, and each connection prepares its statement.
        let more = counted - done * queries;
        assert!(
            counted >= done * queries && more <= 2 + 2 * 4,
            "{mode:?}: {counted} of {done} transactions, {}",
            world.troubles()
        );
        assert_eq!(
            after.requests_postgresql - before.requests_postgresql,
            counted
        );
        assert_eq!(after.responses_2xx - before.responses_2xx, counted);
        assert_eq!(latencies(&world, &pod) - timed, counted);
    }
    let c = world.counters(&pod);
    assert_eq!((c.requests_aborted, c.responses_5xx), (0, 0));
    no_place_was_lost_in_order(&world);
    assert_eq!(world.statistic("response_desyncs"), 0);
}

/// An estimate that is exact where a client asks, waits and asks again.
#[test]
fn turns_of_tls_are_the_requests_of_a_client_that_waits() {
    for (n, versions) in ["TLSv1.2", "TLSv1.3"].into_iter().enumerate() {
        let mut world = World::new();
        let pod = world.pod("pod");
        let _server = Server::https(&world, &pod, 443 + n as u16, versions);
        let before = world.counters(&pod);
        let output = Command::new("wrk")
            .args(["-t2", "-c16", "-d1s"])
            .arg(format!("https://{SERVER}:{}/", 443 + n))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let completed: u64 = text
            .lines()
            .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
            .unwrap_or_else(|| panic!("{text}"));
        let turns = || world.counters(&pod).tls_turns - before.tls_turns;
        eventually(Duration::from_secs(2), || turns() >= completed);
        let (turns, c) = (turns(), world.counters(&pod));
        eprintln!("{versions}: wrk {completed}, turns {turns}");
        // wrk leaves off with a request on each connection, and takes leave of each by an alert.
        assert!(
            (completed..=completed + 2 * 16).contains(&turns),
            "{versions}: wrk {completed}, turns {turns}, {}",
            world.troubles()
        );
        assert_eq!((c.requests, c.requests_in_flight), (0, 0));
    }
}
