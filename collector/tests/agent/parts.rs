//! Ports and containers of a pod that are counted apart, told on a scripted kernel: they begin, end, come again with
//! their container, and the pod's own counts never notice.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use ebpf_scaler_collector::agent::demand::Division;
use ebpf_scaler_collector::agent::pods::{Changes, LINGER, Pods};
use ebpf_scaler_proto::PodSample;

use crate::kernel::FakeKernel;

const POD: &str = "7a0bd1f5-3c65-4a25-9d1c-0a1b2c3d4e5f";
const TICK: Duration = Duration::from_millis(250);
/// Cgroup ids.
const DIR: u64 = 1;
const APP: u64 = 2;
const PROXY: u64 = 3;

struct Story {
    kernel: FakeKernel,
    pods: Pods,
    now: Instant,
}

impl Story {
    /// A pod of two containers.
    fn new() -> Self {
        let mut story = Self::without_pod();
        for id in [DIR, APP, PROXY] {
            story.added(id);
        }
        assert_eq!(story.read().parts, []);
        story
    }

    fn without_pod() -> Self {
        Self {
            kernel: FakeKernel::new(32),
            pods: Pods::new(1),
            now: Instant::now(),
        }
    }

    fn added(&mut self, id: u64) {
        let path = match id {
            DIR => format!("burstable/pod{POD}"),
            _ => format!("burstable/pod{POD}/{}", container(id)),
        };
        self.pods.added(&mut self.kernel, POD, &path, id, self.now);
    }

    fn removed(&mut self, id: u64) {
        self.pods.removed(&mut self.kernel, id, id == DIR, self.now);
    }

    fn want(&mut self, ports: &[u16], containers: bool) {
        let ports = ports.iter().copied().collect();
        let division = Division { ports, containers };
        let wanted = HashMap::from([(POD.to_owned(), division)]);
        self.pods.want(&mut self.kernel, wanted, self.now);
    }

    fn read(&mut self) -> Changes {
        self.now += TICK;
        self.pods.read(&mut self.kernel, self.now)
    }
}

fn container(id: u64) -> String {
    format!("{id:064x}")
}

fn requests(sample: &PodSample) -> u64 {
    sample.counters.unwrap().requests
}

/// Requests by container's cgroup (0: none of its own) and port.
fn parts(changes: &Changes) -> BTreeMap<(u64, u32), u64> {
    let live = changes
        .parts
        .iter()
        .filter(|s| !s.part.as_ref().unwrap().ended);
    live.map(|sample| {
        let part = sample.part.as_ref().unwrap();
        let id = u64::from_str_radix(&part.container_id, 16).unwrap_or(0);
        ((id, part.port), requests(sample))
    })
    .collect()
}

#[test]
fn a_port_is_counted_apart_from_when_it_is_wanted() {
    let mut story = Story::new();
    story.kernel.serve_at(APP, 80, 10);
    assert_eq!(requests(&story.read().samples[0]), 10);
    story.want(&[80], false);
    story.kernel.serve_at(APP, 80, 1);
    let first = story.read();
    assert_eq!(parts(&first), BTreeMap::from([((0, 80), 0)]));
    assert!(!first.parts[0].part.as_ref().unwrap().from_birth);
    story.kernel.serve_at(APP, 80, 5);
    story.kernel.serve_at(APP, 81, 3);
    let changes = story.read();
    assert_eq!(parts(&changes), BTreeMap::from([((0, 80), 5)]));
    assert_eq!(requests(&changes.samples[0]), 19, "the pod is the sum");
    story.kernel.serve_at(APP, 81, 1);
    assert_eq!(story.read().parts, [], "it has not changed");
    assert_eq!(story.pods.facts().parts, 1);
}

#[test]
fn what_is_no_longer_wanted_says_so_and_its_counts_stay_the_pods() {
    let mut story = Story::new();
    story.want(&[80], false);
    story.read();
    story.kernel.serve_at(APP, 80, 5);
    story.read();
    story
        .pods
        .want(&mut story.kernel, HashMap::new(), story.now);
    story.kernel.serve_at(APP, 80, 1);
    let changes = story.read();
    let part = changes.parts[0].part.as_ref().unwrap();
    assert!(part.ended && !part.gone && part.port == 80);
    assert_eq!(requests(&changes.parts[0]), 5);
    assert_eq!(requests(&changes.samples[0]), 6);
    story.now += LINGER;
    story.read();
    story.kernel.serve_at(APP, 80, 1);
    let changes = story.read();
    assert_eq!((requests(&changes.samples[0]), changes.parts.len()), (7, 0));
    assert_eq!((story.kernel.slots_taken(), story.kernel.ports()), (1, 0));
}

#[test]
fn containers_and_ports_divide_a_pod_without_overlap() {
    let mut story = Story::new();
    story.want(&[80], false);
    story.read();
    story.kernel.serve_at(APP, 80, 2);
    story.read();
    story.want(&[80], true);
    story.read();
    story.kernel.serve_at(APP, 80, 10);
    story.kernel.serve_at(APP, 81, 20);
    story.kernel.serve_at(PROXY, 80, 30);
    story.kernel.serve_at(PROXY, 82, 40);
    story.kernel.serve_at(DIR, 80, 50);
    let changes = story.read();
    let expected = [
        ((0, 80), 52),
        ((APP, 0), 20),
        ((APP, 80), 10),
        ((PROXY, 0), 40),
        ((PROXY, 80), 30),
    ];
    assert_eq!(parts(&changes), BTreeMap::from(expected));
    assert_eq!(requests(&changes.samples[0]), 152);
    // Containers lapse, the port stays.
    story.want(&[80], false);
    story.read();
    story.kernel.serve_at(APP, 80, 1);
    let changes = story.read();
    assert_eq!(parts(&changes), BTreeMap::from([((0, 80), 53)]));
    assert_eq!(requests(&changes.samples[0]), 153);
}

#[test]
fn what_begins_while_it_is_wanted_is_whole_from_its_birth() {
    let mut story = Story::without_pod();
    story.want(&[80], true);
    story.added(DIR);
    story.added(APP);
    let changes = story.read();
    let is_whole = |changes: &Changes| {
        let mut parts = changes.parts.iter().filter_map(|s| s.part.as_ref());
        !changes.parts.is_empty() && parts.all(|part| part.from_birth || part.ended)
    };
    assert_eq!(parts(&changes).len(), 3, "{changes:?}");
    assert!(is_whole(&changes));
    // The container ends, and another run of it begins.
    story.kernel.serve_at(APP, 80, 7);
    story.read();
    story.removed(APP);
    story.added(PROXY);
    story.kernel.serve_new_at(PROXY, 80, 2);
    let changes = story.read();
    assert!(is_whole(&changes));
    let ended = changes
        .parts
        .iter()
        .filter(|s| s.part.as_ref().unwrap().ended);
    let ended: Vec<_> = ended.collect();
    assert!(ended.iter().all(|s| s.part.as_ref().unwrap().gone));
    assert_eq!(ended.into_iter().map(requests).sum::<u64>(), 7);
    assert_eq!(requests(&changes.samples[0]), 9);
    story.kernel.serve_at(PROXY, 80, 1);
    assert_eq!(parts(&story.read()), BTreeMap::from([((PROXY, 80), 3)]));
}

#[test]
fn a_pod_that_goes_takes_its_parts_with_it() {
    let mut story = Story::new();
    story.want(&[80, 81], true);
    story.read();
    story.kernel.serve_at(APP, 81, 4);
    for id in [APP, PROXY, DIR] {
        story.removed(id);
    }
    let changes = story.read();
    assert_eq!(requests(&changes.samples[0]), 4);
    assert_eq!(changes.gone, [POD]);
    let parts: Vec<_> = changes
        .parts
        .iter()
        .filter_map(|s| s.part.as_ref())
        .collect();
    assert!(!parts.is_empty() && parts.iter().all(|part| part.ended && part.gone));
    story.now += LINGER;
    story.read();
    assert_eq!((story.kernel.slots_taken(), story.kernel.ports()), (0, 0));
    assert_eq!(story.pods.facts().parts, 0);
}

#[test]
fn what_finds_no_room_is_not_counted_apart_at_all_and_tried_again() {
    let mut story = Story::new();
    // A port in the rest of the pod and in both containers takes three; there are two.
    story.want(&[], true);
    story.kernel.set_part_slots(2);
    story.want(&[80], true);
    let changes = story.read();
    assert_eq!(
        parts(&changes).keys().copied().collect::<Vec<_>>(),
        [(APP, 0), (PROXY, 0)]
    );
    assert_eq!((story.pods.facts().undivided, story.kernel.ports()), (1, 0));
    story.kernel.serve_at(APP, 80, 3);
    assert_eq!(parts(&story.read()), BTreeMap::from([((APP, 0), 3)]));
    story.kernel.set_part_slots(3);
    story.now += Duration::from_secs(1);
    story.read();
    assert_eq!((story.pods.facts().undivided, story.kernel.ports()), (0, 3));
    story.kernel.serve_at(APP, 80, 1);
    assert_eq!(parts(&story.read()), BTreeMap::from([((APP, 80), 1)]));
}

#[test]
fn requests_in_flight_keep_a_former_parts_slot() {
    let mut story = Story::new();
    story.want(&[], true);
    story.read();
    story.kernel.set_in_flight(APP, 2);
    story.read();
    let former = story.kernel.slots_taken();
    story.want(&[], false);
    story.now += LINGER;
    let changes = story.read();
    assert_eq!(changes.samples[0].counters.unwrap().requests_in_flight, 2);
    let ended = changes
        .parts
        .iter()
        .find(|s| s.part.as_ref().unwrap().container_id == container(APP));
    assert_eq!(
        ended.unwrap().counters.unwrap().requests_in_flight,
        0,
        "they are no longer its own"
    );
    story.now += LINGER;
    story.read();
    assert_eq!(
        story.kernel.slots_taken(),
        former - 1,
        "the other's is free"
    );
}
