//! Time that runnable threads wait for a CPU, per slot: histogram, sum, count. Attached only while wanted.
//!
//! Hooks: tp_btf sched_wakeup, sched_wakeup_new, sched_switch (its fourth argument, the state of the task switched
//! out, needs Linux 5.18). Cost: see docs/benchmarks.md. No kernel structure is read: a task is known by its
//! address, its state is an argument, its cgroup is the current one when it is switched out. One field is read
//! where the running kernel has it (task_struct.throttled, Linux 6.18): whether a CPU limit takes the task off.
//!
//! When a task begins to wait is kept in a table by the hash of its address; the wait itself, once it runs, in
//! a place of its CPU, until it is switched out and its cgroup is at hand. Then the wait is divided among those
//! who had this CPU during it, see `occupants`.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_ktime_get_ns,
};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::BtfTracePointContext;
use ebpf_scaler_common::histogram;
use ebpf_scaler_common::record::{Control, IDLE, Program, SYSTEM, Stat};

use crate::atomic::{self, get, set};
use crate::cost;
use crate::maps::{control, count};
use crate::occupants::{self, Occupants};
use crate::slots::{Slot, is_below, known, resolve, tally};

/// Threads that can wait at the same time, give or take collisions, which are noticed: 2 MiB, in pairs of places.
const PAIRS: u32 = 1 << 17;
/// In a place: nanoseconds above, a tag of the task below, in its last bit whether a CPU limit took the task off.
const TAG_BITS: u32 = 16;
const TAG_MASK: u64 = (1 << TAG_BITS) - 1 - THROTTLED;
const THROTTLED: u64 = 1;
const TIME_MASK: u64 = u64::MAX >> TAG_BITS;
/// Cgroups that a CPU remembers.
const CACHED: usize = 16;

/// Where in a task_struct `throttled` lies, by the running kernel's BTF; 0 if it has no such field. User space sets
/// it when it loads the object, so for the verifier it is a constant.
#[unsafe(no_mangle)]
static TASK_THROTTLED: u64 = 0;

#[map]
static WAITING: Array<[u64; 2]> = Array::with_max_entries(PAIRS, 0);

/// A cgroup that ran on this CPU.
#[repr(C)]
struct Cached {
    cgroup: u64,
    slot: u64,
    /// The slot of the pod, if the cgroup's own is a part of it.
    pod: u64,
    epoch: u64,
}

/// Whose a task is.
struct Whose {
    /// The slot that counts its waits, or SYSTEM.
    slot: u64,
    /// Its pod's, or SYSTEM.
    pod: u64,
}

/// What a CPU keeps; only used with interrupts off.
#[repr(C)]
struct Cpu {
    /// How the running task waited, as [`end`] says it.
    wait: u64,
    /// [`Control::runqueue_since`] when it was measured.
    since: u64,
    /// To turn pointers into numbers.
    tasks: [u64; 2],
    /// The CPU's idle task, once it was seen.
    idle: u64,
    cached: [Cached; CACHED],
    occupants: Occupants,
}

#[map]
static CPU: PerCpuArray<Cpu> = PerCpuArray::with_max_entries(1, 0);
/// The same for wakeups, which happen in the middle of anything.
#[map]
static WOKEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// A task becomes runnable.
#[btf_tracepoint(function = "sched_wakeup")]
pub fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    let Some(run) = cost::begin(Program::Wakeup) else {
        return 0;
    };
    wakeup(&ctx);
    cost::end(run);
    0
}

/// A new task becomes runnable.
#[btf_tracepoint(function = "sched_wakeup_new")]
pub fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    let Some(run) = cost::begin(Program::WakeupNew) else {
        return 0;
    };
    wakeup(&ctx);
    cost::end(run);
    0
}

#[inline(always)]
fn wakeup(ctx: &BtfTracePointContext) {
    let Some(number) = WOKEN.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the trace point's argument, by its address only; run with interrupts off.
    unsafe {
        // Through memory: the verifier lets no arithmetic be done on a pointer.
        core::ptr::write_volatile(number.cast::<*const u8>(), argument(ctx, 0));
        begin(core::ptr::read_volatile(number), bpf_ktime_get_ns(), 0);
    }
}

/// A CPU goes from one task to the next.
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let Some(run) = cost::begin(Program::Switch) else {
        return 0;
    };
    switch(&ctx);
    cost::end(run);
    0
}

#[inline(always)]
fn switch(ctx: &BtfTracePointContext) {
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the trace point's arguments, tasks by their addresses only; run with interrupts off.
    unsafe {
        let tasks = (&raw mut (*cpu).tasks).cast::<*const u8>();
        let expected = core::ptr::read_volatile(tasks.add(1).cast::<u64>());
        core::ptr::write_volatile(tasks, argument(ctx, 1));
        core::ptr::write_volatile(tasks.add(1), argument(ctx, 2));
        let preempted: u64 = number(ctx, 0);
        let state: u64 = number(ctx, 3);
        let now = bpf_ktime_get_ns();
        let (previous, next) = (
            core::ptr::read_volatile(tasks.cast::<u64>()),
            core::ptr::read_volatile(tasks.add(1).cast::<u64>()),
        );
        // The current task is the one that is switched out; the idle task waits for nothing.
        let Some(control) = control() else { return };
        let since = get!(control.runqueue_since);
        let seen = get!(cpu.since) == since;
        if seen && expected != previous {
            // Whoever ran in between was switched out without the trace point: the wait at hand is not this task's, and
            // when its own ended is not known.
            count(Stat::RunQueueUnseen);
            set!(cpu.wait, 0);
            end(previous, now, since);
        }
        let mut who = IDLE;
        if !is_idle(cpu, previous) {
            let whose = current(cpu, control);
            who = whose.pod;
            let wait = get!(cpu.wait);
            if seen {
                if wait != 0 {
                    credit(cpu, whose, wait);
                } else if who != SYSTEM {
                    count(Stat::RunQueueUnknown);
                }
            }
            if preempted as u8 != 0 || state as u32 == 0 {
                let throttled = throttled(ctx);
                begin(previous, now, throttled);
            }
        }
        occupants::ran(&raw mut (*cpu).occupants, who, now);
        set!(cpu.since, since);
        let wait = if next == get!(cpu.idle) {
            0
        } else {
            end(next, now, since)
        };
        set!(cpu.wait, wait);
    }
}

/// Whether the current task is this CPU's idle one, which is always the same.
#[inline(always)]
unsafe fn is_idle(cpu: *mut Cpu, current: u64) -> bool {
    // SAFETY: the map's element, and a helper call.
    unsafe {
        let idle = get!(cpu.idle);
        if idle != 0 {
            return current == idle;
        }
        let found = bpf_get_current_pid_tgid() as u32 == 0;
        if found {
            set!(cpu.idle, current);
        }
        found
    }
}

#[inline(always)]
unsafe fn argument(ctx: &BtfTracePointContext, n: usize) -> *const u8 {
    // SAFETY: the trace point has that argument.
    unsafe { core::ptr::read_volatile(ctx.as_ptr().cast::<*const u8>().add(n)) }
}

#[inline(always)]
unsafe fn number(ctx: &BtfTracePointContext, n: usize) -> u64 {
    // SAFETY: the trace point has that argument.
    unsafe { core::ptr::read_volatile(ctx.as_ptr().cast::<u64>().add(n)) }
}

/// [`THROTTLED`] if the task that is switched out has used up what its CPU limit lets it.
#[inline(always)]
unsafe fn throttled(ctx: &BtfTracePointContext) -> u64 {
    // SAFETY: a constant of the object; the kernel's own description of the task says that the field is there.
    unsafe {
        let offset = core::ptr::read_volatile(&raw const TASK_THROTTLED);
        if offset == 0 {
            return 0;
        }
        let field = argument(ctx, 1).add(offset as usize);
        u64::from(core::ptr::read_volatile(field) != 0) * THROTTLED
    }
}

/// A task's pair of places in the table, and its tag there. Mixed twice (SplitMix64's constants): tasks lie at regular
/// distances, and after one multiplication some of them would share place and tag, and lose each other's waits unseen.
#[inline(always)]
fn place(task: u64) -> (u32, u64) {
    let mut hash = (task >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash ^= hash >> 27;
    ((hash >> 47) as u32, (hash >> 20) & TAG_MASK)
}

/// The task begins to wait, or begins anew.
#[inline(always)]
unsafe fn begin(task: u64, now: u64, throttled: u64) {
    let (index, tag) = place(task);
    let Some(pair) = WAITING.get_ptr_mut(index) else {
        return;
    };
    // SAFETY: the map's element; one word each, so time and tag belong together.
    unsafe {
        let (first, second) = (pair.cast::<u64>(), pair.cast::<u64>().add(1));
        let (one, two) = (
            core::ptr::read_volatile(first),
            core::ptr::read_volatile(second),
        );
        let mut to = first;
        if two & TAG_MASK == tag && two != 0 {
            to = second;
        } else if one != 0 && one & TAG_MASK != tag {
            if two == 0 {
                to = second;
            } else {
                // What is written over is not found when its task comes to run.
                count(Stat::RunQueueCollision);
            }
        }
        core::ptr::write_volatile(to, (now << TAG_BITS) | tag | throttled);
    }
}

/// How long the task waited, plus one, above [`THROTTLED`]; 0 if that is not known. What began before `since` is from
/// an earlier time that the programs were attached.
#[inline(always)]
unsafe fn end(task: u64, now: u64, since: u64) -> u64 {
    let (index, tag) = place(task);
    let Some(pair) = WAITING.get_ptr_mut(index) else {
        return 0;
    };
    // SAFETY: the map's element.
    unsafe {
        let mut place = pair.cast::<u64>();
        let mut begun = core::ptr::read_volatile(place);
        if begun == 0 || begun & TAG_MASK != tag {
            place = place.add(1);
            begun = core::ptr::read_volatile(place);
            if begun == 0 || begun & TAG_MASK != tag {
                return 0;
            }
        }
        core::ptr::write_volatile(place, 0);
        let mut wait = now.wrapping_sub(begun >> TAG_BITS) & TIME_MASK;
        if wait > TIME_MASK / 2 {
            // The clock can be a little behind on another CPU: no time has passed.
            wait = 0;
        }
        if wait > now.wrapping_sub(since) {
            0
        } else {
            ((wait + 1) << 1) | (begun & THROTTLED)
        }
    }
}

/// Adds a wait, as [`end`] says it, to the slot of the current task.
#[inline(always)]
unsafe fn credit(cpu: *mut Cpu, whose: Whose, wait: u64) {
    if whose.slot == SYSTEM {
        return;
    }
    // SAFETY: the map's element.
    unsafe {
        let Some(slot) = Slot::of(whose.slot) else {
            return;
        };
        let nanos = (wait >> 1) - 1;
        let index = histogram::index(histogram::micros(nanos)) & 0xff;
        if index < histogram::BUCKETS {
            atomic::add(
                (&raw mut (*slot.record).runqueue_latency)
                    .cast::<u64>()
                    .add(index),
                1,
            );
        }
        if wait & THROTTLED != 0 {
            tally!(slot, runqueue_wait_throttled_nanos, nanos);
        } else {
            occupants::divide(&raw mut (*cpu).occupants, slot, whose.pod, nanos);
        }
        slot.touch();
    }
}

/// The slot of the current task's cgroup, from this CPU's cache if assignments have not changed since; SYSTEM if it
/// has none.
#[inline(always)]
unsafe fn current(cpu: *mut Cpu, control: *mut Control) -> Whose {
    // SAFETY: the map's elements.
    unsafe {
        let epoch = get!(control.epoch);
        let cgroup = bpf_get_current_cgroup_id();
        let entry = (&raw mut (*cpu).cached)
            .cast::<Cached>()
            .add((cgroup & (CACHED as u64 - 1)) as usize);
        if get!(entry.cgroup) == cgroup && get!(entry.epoch) == epoch {
            return Whose {
                slot: get!(entry.slot),
                pod: get!(entry.pod),
            };
        }
        let found = match known(cgroup) {
            Some(found) => found,
            // Of the whole machine's cgroups only those below ours are pods.
            None if is_below(get!(control.ancestor_id)) => resolve(cgroup).unwrap_or(SYSTEM),
            None => SYSTEM,
        };
        set!(entry.cgroup, cgroup);
        set!(entry.epoch, epoch);
        set!(entry.slot, found);
        let pod = Slot::of(found).map_or(found, |slot| slot.pod(found));
        set!(entry.pod, pod);
        Whose { slot: found, pod }
    }
}
