//! Load on the scheduler whose answer is known: processes of a pod that spin on one CPU. It never loads more than that.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ebpf_scaler_collector::agent::probes::Family;

use super::{Pod, World};

/// One at a time: they compete for the same CPU.
static CPU: Mutex<()> = Mutex::new(());

pub fn alone() -> MutexGuard<'static, ()> {
    CPU.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Processes of a pod, ended with the test.
pub struct Load(pub Vec<Child>);

impl Load {
    /// Spinning processes, pinned to the last CPU.
    pub fn spin(pod: &Pod, count: usize) -> Load {
        Load((0..count).map(|_| spinning(pod.command("sh"))).collect())
    }

    /// The same, of no pod.
    pub fn spin_outside(count: usize) -> Load {
        Load((0..count).map(|_| spinning(Command::new("sh"))).collect())
    }

    /// Stops the processes, so that what is under way ends and every account of them stands still.
    pub fn pause(&self) {
        for child in &self.0 {
            signal(child.id(), libc::SIGSTOP);
        }
        let still = || self.0.iter().all(|child| state(child.id()) == "T");
        assert!(super::eventually(Duration::from_secs(30), still));
    }

    /// Goes on after [`Load::pause`].
    pub fn resume(&self) {
        for child in &self.0 {
            signal(child.id(), libc::SIGCONT);
        }
    }

    /// Sums over the processes of the time that they waited, nanoseconds, and of their time slices.
    pub fn schedstat(&self) -> (u64, u64) {
        (self.sum(1), self.sum(2))
    }

    /// How long the processes have run together, nanoseconds.
    pub fn ran(&self) -> u64 {
        self.sum(0)
    }

    fn sum(&self, field: usize) -> u64 {
        self.0
            .iter()
            .map(|child| schedstat(child.id())[field])
            .sum()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn signal(task: u32, signal: i32) {
    // SAFETY: takes no pointers.
    let done = unsafe { libc::kill(task as i32, signal) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// A process's state, as proc(5) has it.
fn state(task: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{task}/stat")).unwrap();
    let (_, rest) = text.rsplit_once(") ").unwrap();
    rest.split(' ').next().unwrap().to_owned()
}

fn spinning(mut shell: Command) -> Child {
    let cpu = std::thread::available_parallelism().unwrap().get() - 1;
    pin(shell.args(["-c", "while :; do :; done"]), cpu)
        .spawn()
        .unwrap()
}

pub fn pin(command: &mut Command, cpu: usize) -> &mut Command {
    use std::os::unix::process::CommandExt;
    // SAFETY: one system call after fork.
    unsafe {
        command.pre_exec(move || {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
            Ok(())
        })
    }
}

/// Nanoseconds run, nanoseconds waited, time slices.
pub fn schedstat(pid: u32) -> Vec<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    text.split_whitespace()
        .map(|field| field.parse().unwrap())
        .collect()
}

/// Has exactly these families measured.
pub fn want(world: &mut World, families: &[Family]) {
    let failed = world
        .probes
        .set_wanted(&families.iter().copied().collect::<BTreeSet<_>>());
    assert_eq!(failed, [], "{:?}", world.probes.degraded());
}

/// Lets a task run on these CPUs only.
pub fn on_cpus(task: u32, cpus: &[usize]) {
    // SAFETY: all zero is an empty set, and the call reads nothing else.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for cpu in cpus {
            libc::CPU_SET(*cpu, &mut set);
        }
        let done = libc::sched_setaffinity(task as i32, size_of::<libc::cpu_set_t>(), &set);
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

/// Waits that are not known: only where three threads met in two places of the table, or where the kernel hides threads.
/// It then hides switches from them and, while they run, whom they or interrupts wake.
pub fn unknown(world: &World, slices: u64) -> u64 {
    let of = |name| world.statistic(name);
    let (unknown, unseen) = (of("runqueue_waits_unknown"), of("runqueue_switches_unseen"));
    let hidden = if unseen == 0 {
        0
    } else {
        unseen + slices / 100
    };
    assert!(
        unknown <= of("runqueue_collisions") + hidden,
        "{slices} time slices: {}",
        world.troubles()
    );
    unknown
}
