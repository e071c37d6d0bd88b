use super::*;
use ebpf_scaler_common::histogram::index;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000;
const TICK: u64 = 250_000;

fn requests(n: u64) -> Sample {
    Sample {
        epoch: 1,
        counters: Counters {
            requests: n,
            ..Counters::default()
        },
        ..Sample::default()
    }
}

/// A pod with `rate` requests a tick, read each tick until `end`.
fn steady(rate: u64, end: u64) -> Series {
    let mut series = Series::from_reading(&requests(0), 0, 0);
    for tick in 1..=end / TICK {
        series.push(&requests(tick * rate), (tick - 1) * TICK, tick * TICK);
    }
    series
}

fn count(series: &Series, end: u64, window: u64) -> u64 {
    series
        .added(end, window, 0)
        .amounts
        .get(Total::Requests)
        .round() as u64
}

#[test]
fn a_steady_rate_reads_the_same_in_every_window() {
    let series = steady(25, 400 * SECOND);
    for window in [3, 10, 30, 60, 300] {
        let added = series.added(400 * SECOND, window * SECOND, 0);
        assert_eq!(added.covered, window * SECOND);
        assert_eq!(
            added.amounts.get(Total::Requests) as u64,
            100 * window,
            "{window} s"
        );
    }
}

/// Fifty pods with few requests each: whatever the edge cuts must neither be lost nor become a whole event.
#[test]
fn many_pods_with_few_events_add_up_to_the_truth_wherever_the_window_begins() {
    let ends = (0..20).map(|i| 10 * SECOND + i * 12_500);
    for window_end in ends {
        let sum: f64 = (0..50)
            .map(|_| {
                let mut series = Series::from_reading(&requests(0), 0, 0);
                for tick in 1..=48 {
                    series.push(&requests(tick), (tick - 1) * TICK, tick * TICK);
                }
                let added = series.added(window_end, SECOND, 0);
                added.amounts.get(Total::Requests)
            })
            .sum();
        assert!((sum - 200.0).abs() < 1e-6, "{sum} to {window_end}");
    }
}

#[test]
fn memory_stays_bounded_however_long_it_runs() {
    let series = steady(1, 3600 * SECOND);
    let points = series.points().count();
    assert!(points <= 43 + 52 + 51, "{points} points");
    // An agent that sends far too often gains nothing.
    let mut series = Series::from_reading(&requests(0), 0, 0);
    for i in 1..200_000u64 {
        series.push(&requests(i), (i - 1) * 1000, i * 1000);
    }
    assert!(series.points().count() <= 60 + 52 + 51);
    assert_eq!(count(&series, 199_999_000, 3 * SECOND), 3000);
}

/// What 100,000 pods of which 20 % are busy take is 20,000 times this, and has to leave room for the rest in 1 GiB.
#[test]
fn five_minutes_of_a_busy_pod_take_less_than_sixteen_kibibytes() {
    let mut series = Series::from_reading(&requests(0), 0, 0);
    let mut sample = requests(0);
    let mut latencies = std::collections::BTreeMap::new();
    for at in (TICK..=400 * SECOND).step_by(TICK as usize) {
        let noise = at / TICK * 31;
        let c = &mut sample.counters;
        c.requests += 25 + noise % 7;
        c.responses_2xx += 24 + noise % 7;
        c.responses_5xx += noise % 2;
        c.request_latency_sum_micros += 45_000 + noise % 4_000;
        c.requests_in_flight = noise % 4;
        c.receive_bytes += 18_000 + noise % 900;
        c.transmit_bytes += 110_000 + noise % 9_000;
        c.receive_packets += 80;
        c.transmit_packets += 130;
        c.connections_opened += noise % 3;
        c.cpu_throttled_micros += noise % 2_000;
        for n in 0..25 {
            *latencies
                .entry(60 + (noise + n * 7) as u32 % 12)
                .or_default() += 1;
        }
        sample.request_latency = Sparse::from_pairs(latencies.clone()).0;
        series.push(&sample, at - TICK, at);
    }
    let size = series.size();
    assert!(series.points().count() > 140);
    assert!(size < 16 << 10, "{size} bytes");
}

#[test]
fn an_idle_pod_is_a_true_zero_and_needs_no_readings() {
    let mut series = steady(25, 20 * SECOND);
    assert_eq!(count(&series, 50 * SECOND, 30 * SECOND), 0);
    assert_eq!(count(&series, 40 * SECOND, 30 * SECOND), 1000);
    series.push(&requests(2001), 100 * SECOND, 100 * SECOND + TICK);
    assert_eq!(count(&series, 100 * SECOND + TICK, 3 * SECOND), 1);
}

#[test]
fn a_gap_in_the_reports_spreads_its_events_and_never_jumps() {
    let mut series = steady(25, 20 * SECOND);
    // 20 s without a batch; the counters went on at 100/s.
    series.push(&requests(4000), 20 * SECOND, 40 * SECOND);
    assert_eq!(count(&series, 40 * SECOND, 3 * SECOND), 300);
    assert_eq!(count(&series, 40 * SECOND, 30 * SECOND), 3000);
}

#[test]
fn repeated_and_late_readings_change_nothing() {
    let mut series = steady(25, 20 * SECOND);
    let before = count(&series, 20 * SECOND, 10 * SECOND);
    series.push(&requests(2000), 20 * SECOND - TICK, 20 * SECOND);
    series.push(&requests(1500), 14 * SECOND, 15 * SECOND);
    assert_eq!(count(&series, 20 * SECOND, 10 * SECOND), before);
}

#[test]
fn a_newborn_did_nothing_before_it_was_there() {
    // 500 requests in its first quarter second: they count once, spread over no more than the window.
    let series = Series::from_birth(&requests(500), 0, 100 * SECOND, 100 * SECOND + TICK);
    let added = series.added(100 * SECOND + TICK, 30 * SECOND, 0);
    assert_eq!(added.amounts.get(Total::Requests) as u64, 500);
    assert_eq!(added.covered, 30 * SECOND);
}

#[test]
fn what_was_counted_before_we_looked_is_not_counted() {
    let mut series = Series::from_reading(&requests(1_000_000), 0, 10 * SECOND);
    assert_eq!(count(&series, 10 * SECOND, 30 * SECOND), 0);
    series.push(&requests(1_000_007), 10 * SECOND, 10 * SECOND + TICK);
    assert_eq!(count(&series, 10 * SECOND + TICK, 30 * SECOND), 7);
}

#[test]
fn in_flight_is_averaged_over_time_and_holds_between_readings() {
    let flight = |n| Sample {
        counters: Counters {
            requests_in_flight: n,
            ..Counters::default()
        },
        ..requests(0)
    };
    let mut series = Series::from_reading(&flight(0), 0, 0);
    series.push(&flight(10), 10 * SECOND - TICK, 10 * SECOND);
    series.push(&flight(0), 15 * SECOND - TICK, 15 * SECOND);
    let average = |end: u64, window: u64| {
        let added = series.added(end * SECOND, window * SECOND, 0);
        added.amounts.get(Total::InFlightMicros) / added.covered as f64
    };
    assert_eq!(average(20, 10), 5.0);
    assert_eq!(average(14, 3), 10.0);
    assert_eq!(average(30, 10), 0.0);
}

/// A pod with these requests (begin and end, microseconds), read every 250 ms until `end`.
fn served(requests: &[(u64, u64)], end: u64) -> Series {
    let mut series = Series::from_birth(&self::requests(0), 0, 0, 1);
    for at in (TICK..=end).step_by(TICK as usize) {
        let begun = requests.iter().filter(|r| r.0 <= at);
        let ended = requests.iter().filter(|r| r.1 <= at);
        let sample = Sample {
            counters: Counters {
                requests: begun.clone().count() as u64,
                requests_in_flight: (begun.count() - ended.clone().count()) as u64,
                request_latency_sum_micros: ended.map(|r| r.1 - r.0).sum(),
                ..Counters::default()
            },
            ..self::requests(0)
        };
        series.push(&sample, at - TICK, at);
    }
    series
}

#[test]
fn the_level_and_littles_law_agree_and_a_missed_end_shows() {
    let end = 40 * SECOND;
    let slow: Vec<_> = (0..4000)
        .map(|n| (n * 9_973, n * 9_973 + 300_000 + n * 7919 % 400_000))
        .collect();
    let added = served(&slow, end).added(end - SECOND, 30 * SECOND, 0);
    let both = added.concurrency().unwrap();
    // 100 a second, each half a second.
    assert!((both.by_latency - 50.0).abs() < 2.0, "{both:?}");
    assert!(both.agrees(70.0, 700_000, 30 * SECOND, 0.02), "{both:?}");
    // Ten answers that were missed stay in flight for ever: the level alone drifts.
    let missed: Vec<_> = slow
        .iter()
        .enumerate()
        .map(|(n, r)| if n % 400 == 0 { (r.0, u64::MAX) } else { *r })
        .collect();
    let both = served(&missed, end)
        .added(end - SECOND, 30 * SECOND, 0)
        .concurrency()
        .unwrap();
    assert!(!both.agrees(70.0, 700_000, 30 * SECOND, 0.02), "{both:?}");
    assert_eq!(Added::default().concurrency(), None);
}

#[test]
fn latencies_of_a_window_are_those_that_happened_in_it() {
    let with = |n: u64, micros: &[(u64, u64)]| Sample {
        request_latency: Sparse::from_pairs(micros.iter().map(|(m, c)| (index(*m) as u32, *c))).0,
        ..requests(n)
    };
    let mut series = Series::from_reading(&with(0, &[]), 0, 0);
    series.push(&with(100, &[(100, 100)]), SECOND, SECOND + TICK);
    series.push(
        &with(200, &[(100, 100), (90_000, 100)]),
        20 * SECOND,
        20 * SECOND + TICK,
    );
    let quantile = |window: u64| {
        let mut merged = Merged::default();
        let span = (21 * SECOND, window * SECOND, 0);
        series.merge(Distribution::RequestLatency, span, &mut merged);
        (merged.total(), merged.quantile(0.25))
    };
    let (events, q) = quantile(3);
    assert_eq!(events, 100);
    assert!(q.unwrap() > 80_000);
    let (events, q) = quantile(30);
    assert_eq!(events, 200);
    assert!(q.unwrap() < 110);
}

proptest! {
    /// Whatever is lost, late or repeated: the total over all that was seen is exact, no window is
    /// negative, and no shorter window holds more than a longer one.
    #[test]
    fn lost_late_and_repeated_readings_never_change_a_total(
        steps in prop::collection::vec((1u64..40, 0u64..100, 0u8..6), 1..200),
    ) {
        let mut series = Series::from_reading(&requests(0), 0, 0);
        let (mut at, mut total, mut heard, mut kept) = (0u64, 0u64, 0u64, 0u64);
        for (ticks, events, fate) in steps {
            at += ticks * TICK;
            total += events;
            match fate {
                0 => {} // lost
                1 => { // repeated
                    series.push(&requests(total), kept, at);
                    series.push(&requests(total), kept, at);
                    (heard, kept) = (total, at);
                }
                2 => series.push(&requests(heard / 2), kept.saturating_sub(TICK), kept), // late
                _ => {
                    series.push(&requests(total), kept, at);
                    (heard, kept) = (total, at);
                }
            }
            if at < 300 * SECOND {
                prop_assert_eq!(count(&series, kept, 300 * SECOND), heard);
            }
            let mut shorter = 0;
            for window in [3, 10, 30, 60, 300] {
                let n = count(&series, kept, window * SECOND);
                prop_assert!(n >= shorter && n <= heard, "{} {} {}", window, n, shorter);
                shorter = n;
            }
        }
    }
}
