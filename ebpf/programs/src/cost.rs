//! What the programs cost, by their own clock: one run in [`SAMPLED`] of each program on each CPU is timed. Never more, for
//! reading the clock is dear beside what the programs do.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use ebpf_scaler_common::record::{Cost, PROGRAMS, Program, SAMPLED};

use crate::atomic::{self, get, set};

/// On this CPU, of a program.
#[repr(C)]
struct Meter {
    /// Runs until the next that is timed.
    left: u64,
    /// When the run began that is being timed, or 0. Here and not in a variable: what a program does would be verified
    /// twice, for runs that are timed and for others.
    begun: u64,
}

#[map]
static METERS: PerCpuArray<Meter> = PerCpuArray::with_max_entries(PROGRAMS, 0);
/// What was timed, per program.
#[map]
static COSTS: Array<Cost> = Array::with_max_entries(PROGRAMS, BPF_F_MMAPABLE);

/// A run of a program.
pub struct Run {
    program: Program,
    meter: *mut Meter,
}

/// A run begins. One that interrupts a run of the same program on the same CPU may end its timing early. None never
/// happens: the caller returns, so that nothing is verified twice.
#[inline(always)]
pub fn begin(program: Program) -> Option<Run> {
    let meter = METERS.get_ptr_mut(program as u32)?;
    // SAFETY: the map's element.
    unsafe {
        let left = get!(meter.left);
        if left != 0 {
            set!(meter.left, left - 1);
        } else {
            set!(meter.left, SAMPLED - 1);
            set!(meter.begun, bpf_ktime_get_ns());
        }
    }
    Some(Run { program, meter })
}

/// A run ends.
#[inline(always)]
pub fn end(run: Run) {
    let Run { program, meter } = run;
    // SAFETY: the maps' elements.
    unsafe {
        let begun = get!(meter.begun);
        if begun == 0 {
            return;
        }
        let nanos = bpf_ktime_get_ns().wrapping_sub(begun);
        set!(meter.begun, 0);
        if let Some(cost) = COSTS.get_ptr_mut(program as u32) {
            atomic::add(&raw mut (*cost).runs, 1);
            atomic::add(&raw mut (*cost).nanos, nanos);
        }
    }
}
