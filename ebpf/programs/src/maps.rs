//! Every map, each with a bound. User space resizes SLOTS, DIRTY and CGROUPS when it loads the object.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, Queue};
use ebpf_scaler_common::flow::{Flow, FlowKey};
use ebpf_scaler_common::http1::Window;
use ebpf_scaler_common::http2::Connection;
use ebpf_scaler_common::record::{
    Control, PARTS, PORT_WORDS, QUARANTINE as QUARANTINE_SLOTS, STATS, SlotRecord, Stat,
};

use crate::atomic;

/// What is counted: of each slot as many records as it has shards, see `slots`.
#[map]
pub static SLOTS: Array<SlotRecord> = Array::with_max_entries(1024, BPF_F_MMAPABLE);
/// A bit per slot that changed since user space looked.
#[map]
pub static DIRTY: Array<u64> = Array::with_max_entries(64, BPF_F_MMAPABLE);
/// See [`Control`].
#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// See [`Stat`].
#[map]
pub static STATISTICS: Array<u64> = Array::with_max_entries(STATS, BPF_F_MMAPABLE);
/// A bit per excluded TCP port.
#[map]
pub static EXCLUDED_PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, BPF_F_MMAPABLE);
/// Cgroup id to slot and generation, by user space.
#[map]
pub static CGROUPS: HashMap<u64, u64> = HashMap::with_max_entries(8192, 0);
/// Cgroup id to provisional slot and generation, by the programs.
#[map]
pub static QUARANTINE: HashMap<u64, u64> = HashMap::with_max_entries(QUARANTINE_SLOTS, 0);
/// Provisional slots that are free, filled by user space.
#[map]
pub static FREE_SLOTS: Queue<u64> = Queue::with_max_entries(QUARANTINE_SLOTS, 0);
/// A local port of a slot to the slot and generation that count for it, see `record::port_key`; by user space.
#[map]
pub static PORTS: HashMap<u64, u64> = HashMap::with_max_entries(PARTS, 0);
/// What reached a listener before there was a connection.
#[map]
pub static PARKED: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(1024, 0);
/// State per TCP socket: lives and dies with it. Bounded by [`Control::max_flows`].
#[btf_map]
pub static FLOWS: SkStorage<Flow> = SkStorage::new();
/// More state per TCP socket that speaks HTTP/2. Bounded by [`Control::max_http2`].
#[btf_map]
pub static HTTP2S: SkStorage<Connection> = SkStorage::new();

/// What is too large for the stack.
#[repr(C)]
pub struct Scratch {
    /// Not 0 while a program uses it.
    pub taken: u64,
    /// A stretch of payload.
    pub window: Window,
    /// The initial value of a new flow: only fields that each maker writes are ever not zero.
    pub blank: Flow,
    /// A key.
    pub key: FlowKey,
}

/// Programs interrupt and preempt each other on a CPU, so each takes one of four that is free.
pub const SCRATCHES: u32 = 4;
/// The scratches.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(SCRATCHES, 0);

/// Counts what went wrong.
#[inline(always)]
pub fn count(stat: Stat) {
    count_by(stat, 1);
}

/// Counts several at once.
#[inline(always)]
pub fn count_by(stat: Stat, n: u64) {
    core::intrinsics::cold_path();
    if let Some(at) = STATISTICS.get_ptr_mut(stat as u32) {
        // SAFETY: the map's element.
        unsafe { atomic::add(at, n) };
    }
}

/// The control words.
#[inline(always)]
pub fn control() -> Option<*mut Control> {
    CONTROL.get_ptr_mut(0)
}
