//! The life of a pod's slot, told on a scripted kernel: claims, epochs, departures, and that nothing counted
//! is ever lost or counted twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ebpf_scaler_collector::agent::pods::{Changes, LINGER, Pods, QUARANTINE};
use ebpf_scaler_proto::PodSample;
use proptest::prelude::*;

use crate::kernel::FakeKernel;

const SECOND: Duration = Duration::from_secs(1);

struct Story {
    kernel: FakeKernel,
    pods: Pods,
    now: Instant,
}

impl Story {
    fn new(slots: usize) -> Self {
        Self {
            kernel: FakeKernel::new(slots),
            pods: Pods::new(1000),
            now: Instant::now(),
        }
    }

    fn added(&mut self, uid: &str, cgroup_id: u64) {
        let path = format!("{uid}/{cgroup_id}");
        self.pods
            .added(&mut self.kernel, uid, &path, cgroup_id, self.now);
    }

    fn removed(&mut self, cgroup_id: u64, is_pod_dir: bool) {
        self.pods
            .removed(&mut self.kernel, cgroup_id, is_pod_dir, self.now);
    }

    fn read(&mut self) -> Changes {
        self.pods.read(&mut self.kernel, self.now)
    }

    fn read_after(&mut self, wait: Duration) -> Changes {
        self.now += wait;
        self.read()
    }
}

fn requests(sample: &PodSample) -> (&str, u64) {
    (&sample.pod_uid, sample.counters.unwrap().requests)
}

fn all(changes: &Changes) -> Vec<(&str, u64)> {
    changes.samples.iter().map(requests).collect()
}

#[test]
fn a_new_pod_is_a_true_zero_and_an_idle_one_costs_nothing() {
    let mut story = Story::new(4);
    story.added("a", 1);
    assert_eq!(all(&story.read()), [("a", 0)]);
    assert_eq!(story.read(), Changes::default());
}

#[test]
fn those_behind_whom_a_pod_waits_are_named_as_long_as_it_does() {
    let mut story = Story::new(4);
    story.added("a", 1);
    story.added("a", 2);
    story.added("b", 3);
    story.read();
    story.kernel.wait_behind(1, Some(3), 2_500_000_000);
    story.kernel.wait_behind(1, None, 10_000_000_000);
    // A cgroup of the same pod is nobody else.
    story.kernel.wait_behind(1, Some(2), 10_000_000_000);
    assert_eq!(
        story.read_after(SECOND),
        Changes::default(),
        "not each time"
    );
    let changes = story.read_after(4 * SECOND);
    assert_eq!(all(&changes), [("a", 0)]);
    let named = |changes: &Changes| -> Vec<(String, f64)> {
        let preemptors = changes.samples[0].preemptors.iter();
        preemptors
            .map(|p| (p.pod_uid.clone(), p.waiting_threads))
            .collect()
    };
    let expected = [(String::new(), 2.0), ("b".to_owned(), 0.5)];
    assert_eq!(named(&changes), expected);
    story.kernel.serve(1, 1);
    assert_eq!(
        named(&story.read_after(SECOND)),
        expected,
        "until ranked anew"
    );
    let changes = story.read_after(4 * SECOND);
    assert_eq!(all(&changes), [("a", 1)]);
    assert_eq!(named(&changes), []);
}

#[test]
fn all_cgroups_of_a_pod_count_together() {
    let mut story = Story::new(4);
    story.added("a", 1);
    story.added("a", 2);
    story.added("b", 3);
    story.read();
    story.kernel.serve(1, 10);
    story.kernel.serve(2, 5);
    let changes = story.read();
    assert_eq!(all(&changes), [("a", 15)]);
    let latency = changes.samples[0].request_latency.clone().unwrap();
    assert_eq!((latency.index, latency.count), (vec![5], vec![15]));
    assert_eq!(story.kernel.slots_taken(), 2);
}

#[test]
fn what_a_pod_did_before_its_path_was_known_is_its_own() {
    let mut story = Story::new(4);
    story.kernel.serve(1, 7);
    assert_eq!(story.read(), Changes::default());
    story.added("a", 1);
    assert_eq!(all(&story.read()), [("a", 7)]);
    // The provisional slot simply became the pod's.
    assert_eq!(story.kernel.slots_taken(), 1);
    story.kernel.serve(1, 1);
    assert_eq!(all(&story.read()), [("a", 8)]);
}

#[test]
fn a_second_containers_provisional_counts_join_the_pods_and_free_their_slot() {
    let mut story = Story::new(4);
    story.added("a", 1);
    story.kernel.serve(1, 10);
    story.kernel.serve(2, 4);
    assert_eq!(all(&story.read()), [("a", 10)]);
    story.added("a", 2);
    assert_eq!(all(&story.read()), [("a", 14)]);
    story.kernel.serve(2, 1);
    assert_eq!(all(&story.read()), [("a", 15)]);
    assert_eq!(story.kernel.slots_taken(), 2);
    story.read_after(LINGER);
    assert_eq!(story.kernel.slots_taken(), 1);
    story.kernel.serve(1, 1);
    assert_eq!(all(&story.read()), [("a", 16)]);
    assert_eq!(story.pods.facts().claimed, 1);
}

#[test]
fn an_id_that_no_path_explains_is_forgotten() {
    let mut story = Story::new(4);
    story.kernel.serve(9, 3);
    story.read();
    story.read_after(QUARANTINE - SECOND);
    assert_eq!(story.kernel.slots_taken(), 1);
    story.read_after(SECOND);
    assert_eq!(story.kernel.slots_taken(), 0);
    assert_eq!(story.pods.facts().forgotten, 1);
}

#[test]
fn a_refused_cgroup_counts_nothing_twice_and_is_claimed_when_there_is_room() {
    let mut story = Story::new(4);
    story.added("a", 1);
    story.kernel.set_full(true);
    story.added("a", 2);
    story.kernel.serve(2, 5);
    for _ in 0..10 {
        // It counts provisionally, and is asked for again and again; none of it is the pod's yet.
        let changes = story.read_after(LINGER / 2);
        assert!(
            changes.samples.iter().all(|s| requests(s) == ("a", 0)),
            "{changes:?}"
        );
    }
    assert_eq!(story.pods.facts().refused, 1, "told once");
    story.kernel.set_full(false);
    assert_eq!(all(&story.read()), [("a", 5)]);
    story.kernel.serve(2, 1);
    assert_eq!(all(&story.read()), [("a", 6)]);
    story.read_after(LINGER);
    assert_eq!(all(&story.read()), [("a", 6)]);
    assert_eq!(story.kernel.slots_taken(), 1);

    // Its first cgroup is refused: the provisional slot is not the pod's, and is forgotten in the end.
    story.kernel.set_full(true);
    story.kernel.serve(3, 4);
    story.added("b", 3);
    assert_eq!(all(&story.read()), [("b", 0)]);
    assert_eq!(story.kernel.slots_taken(), 3);
    story.read_after(QUARANTINE);
    assert_eq!(story.kernel.slots_taken(), 2);
    assert_eq!(story.pods.facts().forgotten, 1);
}

#[test]
fn a_pod_that_ends_reports_its_last_reading_and_frees_its_slot_later() {
    let mut story = Story::new(1);
    story.added("a", 1);
    story.added("a", 2);
    story.read();
    story.kernel.serve(2, 9);
    story.removed(2, false);
    story.removed(1, true);
    let changes = story.read();
    assert_eq!(all(&changes), [("a", 9)]);
    assert_eq!(changes.gone, ["a"]);
    assert_eq!(story.kernel.slots_taken(), 1);
    assert_eq!(story.read_after(LINGER), Changes::default());
    assert_eq!(story.kernel.slots_taken(), 0);
    assert_eq!(story.kernel.assigned(), 0);

    // The slot's next tenant inherits neither numbers nor epoch.
    let old = changes.samples[0].epoch;
    story.added("b", 3);
    let changes = story.read();
    assert_eq!(all(&changes), [("b", 0)]);
    assert!(changes.samples[0].epoch > old);
}

#[test]
fn a_container_that_restarts_does_not_end_its_pod() {
    let mut story = Story::new(1);
    story.added("a", 1);
    story.added("a", 2);
    story.kernel.serve(2, 5);
    story.removed(2, false);
    let changes = story.read();
    assert_eq!((all(&changes), changes.gone.len()), (vec![("a", 5)], 0));
    story.added("a", 3);
    story.kernel.serve(3, 5);
    assert_eq!(all(&story.read()), [("a", 10)]);
}

#[test]
fn a_static_pod_that_comes_back_under_its_uid_is_a_new_epoch_and_not_gone() {
    let mut story = Story::new(2);
    story.added("a", 1);
    story.kernel.serve(1, 5);
    let first = story.read().samples[0].epoch;
    story.kernel.serve(1, 1);
    story.removed(1, true);
    story.added("a", 2);
    let changes = story.read();
    assert_eq!(all(&changes), [("a", 6), ("a", 0)]);
    assert_eq!(changes.samples[0].epoch, first);
    assert!(changes.samples[1].epoch > first);
    assert!(changes.gone.is_empty());
}

#[test]
fn without_a_slot_a_pod_is_silent_not_zero_until_one_is_free() {
    let mut story = Story::new(1);
    story.added("a", 1);
    story.added("b", 2);
    assert_eq!(all(&story.read()), [("a", 0)]);
    assert_eq!(story.pods.facts().unmeasured, 1);
    story.removed(1, true);
    assert_eq!(story.read().gone, ["a"]);
    story.read_after(LINGER);
    assert_eq!(all(&story.read()), [("b", 0)]);
    assert_eq!(story.pods.facts().unmeasured, 0);
    story.kernel.serve(2, 3);
    assert_eq!(all(&story.read()), [("b", 3)]);
}

#[test]
fn a_silent_pod_that_ends_was_never_there() {
    let mut story = Story::new(1);
    story.added("a", 1);
    story.added("b", 2);
    story.read();
    story.removed(2, true);
    assert_eq!(story.read(), Changes::default());
}

#[test]
fn the_gauge_is_of_now_and_throttling_joins_the_counters() {
    let mut story = Story::new(2);
    let uid = story.pods.added(&mut story.kernel, "a", "a", 1, story.now);
    story.kernel.set_in_flight(1, 3);
    story.pods.throttled(&uid, 250);
    let counters = story.read().samples[0].counters.unwrap();
    assert_eq!(
        (counters.requests_in_flight, counters.cpu_throttled_micros),
        (3, 250)
    );
    story.kernel.set_in_flight(1, 0);
    assert_eq!(
        story.read().samples[0].counters.unwrap().requests_in_flight,
        0
    );
}

/// What may happen on a node, in any order.
#[derive(Clone, Debug)]
enum Event {
    Serve(u64, u64),
    Appear(u64),
    Vanish(u64),
    EndPod(u64),
    Read(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..12_u64, 1..5_u64).prop_map(|(c, n)| Event::Serve(c, n)),
        3 => (0..12_u64).prop_map(Event::Appear),
        1 => (0..12_u64).prop_map(Event::Vanish),
        1 => (0..4_u64).prop_map(Event::EndPod),
        3 => (0..2500_u64).prop_map(Event::Read),
    ]
}

proptest! {
    /// Cgroup `c` belongs to pod `c % 4`. Whatever happens in which order, the newest sample of each epoch
    /// adds up to exactly what was served, less what nobody claimed or came too late.
    #[test]
    fn nothing_is_lost_or_counted_twice(events in prop::collection::vec(event(), 0..120)) {
        let mut story = Story::new(64);
        let mut live: BTreeSet<u64> = BTreeSet::new();
        // A cgroup id is never used again.
        let mut generation = [0_u64; 12];
        let mut newest: BTreeMap<(String, u64), u64> = BTreeMap::new();
        let (mut served, mut reported_gone) = (0, Vec::new());
        let id = |generation: &[u64; 12], c: u64| generation[c as usize] * 100 + c;
        let take = |changes: Changes, newest: &mut BTreeMap<_, _>, gone: &mut Vec<String>| {
            for sample in changes.samples {
                let (uid, count) = requests(&sample);
                let before = newest.insert((uid.to_owned(), sample.epoch), count);
                assert!(before.is_none_or(|b| b <= count), "a counter went down");
            }
            gone.extend(changes.gone);
        };
        for event in events {
            match event {
                // Only what is claimed in time is compared, so serve what has appeared or will in the end.
                Event::Serve(c, n) => {
                    story.kernel.serve(id(&generation, c), n);
                    served += n;
                }
                Event::Appear(c) => {
                    story.added(&format!("{}", c % 4), id(&generation, c));
                    live.insert(c);
                }
                Event::Vanish(c) if live.contains(&c) => {
                    let last = live.iter().filter(|l| **l % 4 == c % 4).count() == 1;
                    story.removed(id(&generation, c), last);
                    live.remove(&c);
                    generation[c as usize] += 1;
                }
                Event::EndPod(p) => {
                    let mine: Vec<u64> = live.iter().copied().filter(|c| c % 4 == p).collect();
                    for (i, c) in mine.iter().enumerate() {
                        story.removed(id(&generation, *c), i + 1 == mine.len());
                        live.remove(c);
                        generation[*c as usize] += 1;
                    }
                }
                Event::Vanish(_) => {}
                Event::Read(millis) => {
                    // Never so long that quarantine ends before the test claims.
                    let changes = story.read_after(Duration::from_millis(millis / 25));
                    take(changes, &mut newest, &mut reported_gone);
                }
            }
        }
        for c in 0..12 {
            story.added(&format!("{}", c % 4), id(&generation, c));
        }
        let changes = story.read();
        take(changes, &mut newest, &mut reported_gone);
        // A cgroup that vanished while quarantined cannot happen above: it was live, so it was assigned.
        prop_assert_eq!(newest.values().sum::<u64>() + story.kernel.lost(), served);
        prop_assert_eq!(story.kernel.lost(), 0);
        story.read_after(LINGER);
        story.read_after(LINGER);
        prop_assert_eq!(story.kernel.slots_taken(), 4);
    }
}
