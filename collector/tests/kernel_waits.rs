//! Waits for a CPU are exact: a thread's count and sum are the kernel's own (/proc/PID/schedstat), through thousands of
//! forks and threads and through migrations; and they are those of runqlat. Needs root, the BPF object and runqlat.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use ebpf_scaler_collector::agent::probes::{Counters, Family, histogram};
use kernel::load::{Load, alone, on_cpus, schedstat, unknown, want};
use kernel::{Pod, World, eventually};

/// Says to this binary's own test [`a_load_when_told_so`] what to do.
const LOAD: &str = "EBPF_SCALER_TEST_LOAD";

/// This binary again, in a pod, as a load that does its work when told and then waits, so that the kernel's account of
/// it can be read.
struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    /// Starts it; it has done nothing yet when this returns.
    fn start(pod: &Pod, load: &str) -> Program {
        let mut child = pod
            .command(std::env::current_exe().unwrap().to_str().unwrap())
            .args(["--exact", "a_load_when_told_so", "--nocapture"])
            .env(LOAD, load)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut program = Program {
            child,
            input,
            output: BufReader::new(output),
        };
        program.wait_for("ready");
        program
    }

    fn run(&mut self) {
        self.tell();
        self.wait_for("done");
    }

    fn tell(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while !line.ends_with(&format!("{word}\n")) {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "no {word}");
        }
    }

    /// Its tasks and those of its children, dead ones included as long as nobody has reaped them.
    fn tasks(&self) -> Vec<u32> {
        let id = self.child.id();
        let mut tasks: Vec<u32> = numbers(&format!("/proc/{id}/task"));
        tasks.extend(numbers("/proc").into_iter().filter(|process| {
            let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            let fields = stat.rsplit(") ").next().unwrap_or_default();
            fields.split(' ').nth(1) == Some(&id.to_string())
        }));
        tasks
    }

    /// Nanoseconds waited and time slices, of all its tasks, once they do not change any more.
    fn schedstat(&self) -> (u64, u64) {
        let read = || {
            let stats = self.tasks().into_iter().map(schedstat);
            stats.fold((0, 0), |sum, s| (sum.0 + s[1], sum.1 + s[2]))
        };
        let mut last = read();
        assert!(eventually(Duration::from_secs(20), || {
            std::thread::sleep(Duration::from_millis(100));
            let next = read();
            std::mem::replace(&mut last, next) == next
        }));
        last
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn numbers(directory: &str) -> Vec<u32> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Not a test but what [`Program`] runs; without its variable there is nothing to do.
#[test]
fn a_load_when_told_so() {
    let Ok(load) = std::env::var(LOAD) else {
        return;
    };
    let wait = || {
        let read = std::io::stdin().read(&mut [0]).unwrap();
        assert_eq!(read, 1);
    };
    println!("ready");
    wait();
    match load.as_str() {
        "threads" => threads(10_000),
        "forks" => forks(3_000),
        _ => turns(),
    }
    println!("done");
    wait();
}

/// Threads that are all alive at once, run a few times each, and then wait for ever.
fn threads(count: usize) {
    let all = Arc::new(Barrier::new(count + 1));
    for _ in 0..count {
        let all = all.clone();
        std::thread::Builder::new()
            .stack_size(32 * 1024)
            .spawn(move || {
                for _ in 0..3 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                all.wait();
                // All at once.
                std::thread::sleep(Duration::from_millis(1));
                loop {
                    std::thread::park();
                }
            })
            .unwrap();
    }
    all.wait();
}

/// Processes that end at once and that nobody reaps.
fn forks(count: usize) {
    for _ in 0..count {
        // SAFETY: the child calls nothing but _exit.
        unsafe {
            match libc::fork() {
                0 => libc::_exit(0),
                child => assert!(child > 0),
            }
        }
    }
}

/// Threads that compute and sleep by turns, for three seconds.
fn turns() {
    let end = std::time::Instant::now() + Duration::from_secs(3);
    let work = move || {
        while std::time::Instant::now() < end {
            let until = std::time::Instant::now() + Duration::from_micros(300);
            while std::time::Instant::now() < until {}
            std::thread::sleep(Duration::from_micros(200));
        }
    };
    let all: Vec<_> = (0..4).map(|_| std::thread::spawn(work)).collect();
    all.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Every wait of the program is in the counters, once, or told as not known. What began before it was looked at is
/// left out.
fn assert_exact(world: &World, before: (Counters, (u64, u64)), after: (Counters, (u64, u64))) {
    let (ours, stat) = (
        (
            after.0.runqueue_wait_nanos - before.0.runqueue_wait_nanos,
            after.0.runqueue_waits - before.0.runqueue_waits,
        ),
        (after.1.0 - before.1.0, after.1.1 - before.1.1),
    );
    // Three threads in two places of the table, of which the earlier one's wait is lost and counted as such.
    let collisions = world.statistic("runqueue_collisions");
    assert!(collisions <= stat.1 / 1000, "{collisions} of {stat:?}");
    let unknown = unknown(world, stat.1);
    // A thread that is preempted just before it would have slept waits, but has no time slice in schedstat.
    let more = 2 + stat.1 / 1000;
    assert!(
        ours.1 <= stat.1 + more && ours.1 + unknown + 2 >= stat.1,
        "{ours:?} {stat:?}, {unknown} not known, {collisions} collisions"
    );
    let ratio = ours.0 as f64 / stat.0 as f64;
    assert!((0.97..1.03).contains(&ratio), "{ours:?} {stat:?}");
}

fn run_exactly(load: &str, at_least: u64) {
    let _alone = alone();
    let mut world = World::new();
    let pod = world.pod("pod");
    want(&mut world, &[Family::RunQueue]);
    let mut program = Program::start(&pod, load);
    let before = (world.counters(&pod), program.schedstat());
    program.run();
    let stat = program.schedstat();
    let after = (world.counters(&pod), stat);
    assert!(stat.1 - before.1.1 >= at_least, "{stat:?}");
    assert_exact(&world, before, after);
    assert_eq!(world.statistic("quarantine_full"), 0);
    let reading = world.read(&pod);
    let all: u64 = reading.runqueue_latency.iter().sum();
    assert_eq!(all, reading.counters.runqueue_waits);
}

#[test]
fn ten_thousand_threads_are_counted_exactly() {
    run_exactly("threads", 40_000);
}

#[test]
fn a_fork_storm_is_counted_exactly() {
    run_exactly("forks", 3_000);
}

#[test]
fn a_thread_that_is_moved_between_cpus_waits_once() {
    let _alone = alone();
    let mut world = World::new();
    let pod = world.pod("pod");
    want(&mut world, &[Family::RunQueue]);
    let load = Load::spin(&pod, 3);
    std::thread::sleep(Duration::from_millis(200));
    load.pause();
    let before = (world.counters(&pod), load.schedstat());
    load.resume();
    let cpus = std::thread::available_parallelism().unwrap().get();
    for round in 0..200 {
        for (i, child) in load.0.iter().enumerate() {
            on_cpus(child.id(), &[(round + i) % cpus]);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    load.pause();
    let after = (world.counters(&pod), load.schedstat());
    let waited = after.0.runqueue_wait_nanos - before.0.runqueue_wait_nanos;
    let expected = after.1.0 - before.1.0;
    // The kernel adds up what a moved thread waited by the clocks of several run queues, which lag behind one another.
    assert!(
        (waited as f64 / expected as f64 - 1.0).abs() < 0.1,
        "waited {waited}, schedstat {expected}"
    );
    let waits = after.0.runqueue_waits - before.0.runqueue_waits;
    let slices = after.1.1 - before.1.1;
    assert!(slices >= 200, "{slices}");
    let unknown = unknown(&world, slices);
    assert!(
        waits <= slices + 2 && waits + unknown + 2 >= slices,
        "{waits} and {unknown} not known of {slices}"
    );
}

/// How many waits are at most this long, by a histogram of runqlat: ranges of microseconds and counts.
fn runqlat(text: &str) -> Vec<(u64, u64)> {
    let rows = text.lines().filter_map(|line| {
        let (range, rest) = line.split_once(':')?;
        let (_, high) = range.split_once("->")?;
        let count = rest.split_whitespace().next()?;
        Some((high.trim().parse().ok()?, count.parse().ok()?))
    });
    rows.collect()
}

/// Of values with their counts, lowest first.
fn quantile(counts: &[(u64, u64)], q: f64) -> u64 {
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    let mut left = (total as f64 * q).ceil() as u64;
    let found = counts.iter().find(|(_, count)| {
        let here = *count >= left;
        left = left.saturating_sub(*count);
        here
    });
    found.unwrap().0
}

#[test]
fn runqlat_says_the_same() {
    let _alone = alone();
    let mut world = World::new();
    let pod = world.pod("pod");
    want(&mut world, &[Family::RunQueue]);
    let mut program = Program::start(&pod, "turns");
    let before = world.read(&pod);
    let mut peer = Command::new("runqlat")
        .args(["-p", &program.child.id().to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("runqlat is installed (Debian: libbpf-tools)");
    let programs = || {
        let descriptors = fs::read_dir(format!("/proc/{}/fdinfo", peer.id())).unwrap();
        let links = descriptors.flatten().filter(|descriptor| {
            fs::read_to_string(descriptor.path()).is_ok_and(|text| text.contains("link_id:"))
        });
        links.count()
    };
    assert!(eventually(Duration::from_secs(20), || programs() == 3));
    program.run();
    let after = world.read(&pod);
    // SAFETY: a signal to our own child: it prints what it has and ends.
    unsafe { libc::kill(peer.id() as i32, libc::SIGINT) };
    let mut text = String::new();
    peer.stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    peer.wait().unwrap();
    let theirs = runqlat(&text);
    let total: u64 = theirs.iter().map(|(_, count)| count).sum();
    let ours: Vec<(u64, u64)> = std::iter::zip(after.runqueue_latency, before.runqueue_latency)
        .enumerate()
        .map(|(i, (after, before))| (histogram::midpoint(i), after - before))
        .collect();
    let waits: u64 = ours.iter().map(|(_, count)| count).sum();
    assert!(total > 1000, "{text}");
    assert!(
        (waits as f64 / total as f64 - 1.0).abs() < 0.03,
        "{waits} waits, runqlat {total}"
    );
    // Its buckets are powers of two; the same bucket or the next.
    for q in [0.5, 0.9, 0.99] {
        let (own, other) = (
            quantile(&ours, q).max(1).ilog2(),
            quantile(&theirs, q).max(1).ilog2(),
        );
        assert!(
            own.abs_diff(other) <= 1,
            "p{q}: 2^{own} us, 2^{other} us\n{text}"
        );
    }
}
