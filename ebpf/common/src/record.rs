//! The layouts that both sides read and write: slots, control words and statistics. Plain integers only, no
//! behaviour beyond packing.

use core::mem::offset_of;

use crate::histogram::BUCKETS;

/// Provisional slots that wait for cgroups which nobody has assigned yet.
pub const QUARANTINE: u32 = 256;
/// Steps of the HTTP/1 machine in one turn of `bpf_loop`; user space may ask for fewer when it loads the programs.
pub const STEPS: u32 = 24;
/// Turns and steps a packet: enough for 64 KiB of the shortest messages that anyone sends.
pub const TOTAL_STEPS: u32 = 4096 * STEPS;
/// No slot.
pub const NO_SLOT: u32 = u32::MAX;
/// Words of the bitmap of excluded TCP ports.
pub const PORT_WORDS: u32 = 65536 / 64;

/// A slot and the generation that makes it this tenant's: what cgroups and sockets remember.
pub const fn slot_ref(slot: u32, generation: u32) -> u64 {
    ((generation as u64) << 32) | slot as u64
}

/// The slot of a [`slot_ref`].
pub const fn slot_of(slot_ref: u64) -> u32 {
    slot_ref as u32
}

/// The generation of a [`slot_ref`].
pub const fn generation_of(slot_ref: u64) -> u32 {
    (slot_ref >> 32) as u32
}

/// What the programs add to; see [`crate::Counters`] for the meaning of the common ones. What a packet without a request
/// needs comes first: with the record's generation it fills one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the fields are those of Counters")]
pub struct Tally {
    pub receive_bytes: u64,
    pub receive_packets: u64,
    pub transmit_bytes: u64,
    pub transmit_packets: u64,
    pub requests: u64,
    /// Requests that came into flight here without being counted here, less those that were counted and did not: what is
    /// added for each request is one word less so. Wraps below zero.
    pub begun_besides: u64,
    pub requests_probe: u64,
    // The next line: answers.
    pub request_latency_sum_micros: u64,
    /// Indexed by status / 100 - 1.
    pub responses: [u64; 5],
    /// Requests that are no longer in flight without an answer of a class from 2xx on, less such answers to requests that
    /// are still in flight, or never were. Wraps below zero.
    pub ended_besides: u64,
    pub tcp_retransmits: u64,
    // The next line: other protocols than HTTP/1, and connections.
    /// Those of `requests` that HTTP/2 brought; what no protocol's counter has is HTTP/1.
    pub requests_http2: u64,
    /// Those that RESP brought.
    pub requests_redis: u64,
    /// Those that PostgreSQL's protocol brought.
    pub requests_postgresql: u64,
    pub tls_turns: u64,
    pub connections_opened: u64,
    pub connections_closed: u64,
    pub requests_aborted: u64,
    pub requests_excluded_port: u64,
    // The next line: the scheduler. How long all waited is the sum of these, and how often that of the histogram.
    pub requests_loopback: u64,
    pub runqueue_wait_self_nanos: u64,
    pub runqueue_wait_other_pods_nanos: u64,
    pub runqueue_wait_system_nanos: u64,
    pub runqueue_wait_throttled_nanos: u64,
    pub runqueue_wait_idle_nanos: u64,
}

/// How many CPUs have records of a slot to themselves at most, as a power of two; of more, several share one.
pub const MAX_SHARD_BITS: u32 = 2;

/// One element of the map SLOTS: a slot's counters of some CPUs, of which a slot's are the sum. The other fields are the same
/// in all of a slot's.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct SlotRecord {
    /// Even: free. Odd: taken by the tenant of this generation.
    pub generation: u32,
    /// Of [`layout`]: which parts of it are counted apart.
    pub layout: u32,
    /// The counters.
    pub tally: Tally,
    /// For a part of a pod, a container or a port: slot and generation of the pod itself. Else zero.
    pub pod: u64,
    /// Of [`wanted`]: what is measured of this tenant beyond what is of all.
    pub wanted: u64,
    /// First byte in to first byte out.
    pub request_latency: [u64; BUCKETS],
    /// Waits for a CPU.
    pub runqueue_latency: [u64; BUCKETS],
    /// Smoothed round-trip times of TCP connections, by samples.
    pub tcp_rtt: [u64; BUCKETS],
}

const _: () = assert!(
    offset_of!(SlotRecord, tally.request_latency_sum_micros) == 64
        && offset_of!(SlotRecord, tally.requests_http2) == 128
        && offset_of!(SlotRecord, tally.requests_loopback) == 192
);

/// How a slot is divided: what [`SlotRecord::layout`] is made of.
pub mod layout {
    /// Changes with every division of the slot; sockets that remember another one look again whose they are.
    pub const VERSION: u32 = 0xffff;
    /// Some local ports of the slot have slots of their own, to be found in the map PORTS.
    pub const PORTS: u32 = 1 << 16;
}

/// Slots for parts of pods, beside those for pods.
pub const PARTS: u32 = 512;

/// The key of the map PORTS: a local port of a slot.
pub const fn port_key(slot: u32, port: u32) -> u64 {
    ((port as u64) << 32) | slot as u64
}

/// See [`SlotRecord::wanted`].
pub mod wanted {
    /// Requests inside TLS.
    pub const TLS: u64 = 1;
}

/// Who had a CPU, when it was no pod.
pub const SYSTEM: u64 = slot_ref(NO_SLOT, 0);
/// Who had a CPU, when nobody had.
pub const IDLE: u64 = slot_ref(NO_SLOT, 1);

/// Behind how many others a slot's waits are told apart; a power of two.
pub const CULPRITS_PER_SLOT: usize = 8;

/// Somebody behind whom a slot's threads waited since user space looked.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Culprit {
    /// Slot and generation, or [`SYSTEM`].
    pub who: u64,
    /// For how long, nanoseconds.
    pub nanos: u64,
    /// For how long behind others that came to this place and did not get it.
    pub rivals: u64,
}

/// One element of the map CULPRITS. The place of a culprit is its lowest bits; who shares it competes for it, and the
/// larger one wins. It ranks, it does not account: that is what the tally is for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Culprits {
    /// By the lowest bits of `who`.
    pub places: [Culprit; CULPRITS_PER_SLOT],
}

macro_rules! programs {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// The programs, each of which times some of its runs: the index into the map COSTS.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Program { $($(#[doc = $doc])+ $name,)+ }

        impl Program {
            /// Every program with its name in the object, in the order of the indices.
            pub const ALL: &[(Program, &str)] = &[$((Program::$name, $label),)+];
        }
    };
}

programs! {
    /// Packets to the pods' sockets.
    Ingress = "ingress",
    /// Packets from the pods' sockets.
    Egress = "egress",
    /// A TCP socket goes.
    Destroy = "tcp_destroy_sock",
    /// A task becomes runnable.
    Wakeup = "sched_wakeup",
    /// A new task becomes runnable.
    WakeupNew = "sched_wakeup_new",
    /// A CPU goes from one task to the next.
    Switch = "sched_switch",
}

/// Elements of the map COSTS.
pub const PROGRAMS: u32 = Program::ALL.len() as u32;
/// One run in so many is timed.
pub const SAMPLED: u64 = 1024;

/// What runs of a program took, of those that were timed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Runs.
    pub runs: u64,
    /// Their time, nanoseconds, the reading of the clock in it.
    pub nanos: u64,
}

/// The one element of the map CONTROL.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Control {
    /// Grows whenever an assignment changed, so that remembered misses are asked again.
    pub epoch: u64,
    /// Socket storages that live now.
    pub live_flows: u64,
    /// No more socket storages than this.
    pub max_flows: u64,
    /// The cgroup whose descendants are measured.
    pub ancestor_id: u64,
    /// Nanoseconds (CLOCK_MONOTONIC) when the run queue's programs were attached.
    pub runqueue_since: u64,
    /// Socket storages for HTTP/2 that live now.
    pub live_http2: u64,
    /// No more socket storages for HTTP/2 than this.
    pub max_http2: u64,
    /// Not 0: requests inside TLS are counted of all pods, whatever [`SlotRecord::wanted`] says.
    pub tls_of_all: u64,
}

macro_rules! stats {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// What went wrong or was given up, by kind: the index into the map STATISTICS.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Stat { $($(#[doc = $doc])+ $name,)+ }

        impl Stat {
            /// Every kind with its name for people and metrics, in the order of the indices.
            pub const ALL: &[(Stat, &str)] = &[$((Stat::$name, $label),)+];

            /// What is counted, in one sentence for people.
            pub const fn help(self) -> &'static str {
                match self { $(Stat::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

stats! {
    /// Packets of cgroups that have no slot, because the quarantine is full.
    UnknownCgroup = "unknown_cgroup_packets",
    /// Cgroups that found the quarantine full.
    QuarantineFull = "quarantine_full",
    /// Packets of sockets without state, because as many as allowed have it: counted by bytes only.
    FlowsFull = "socket_storage_capped",
    /// Packets of sockets without state, because the kernel had no memory for it: counted by bytes only.
    FlowsFailed = "socket_storage_failed",
    /// Packets of a socket that two CPUs handled at once, one of them too long for the other to wait.
    LostRace = "lost_races",
    /// Connections whose request framing was lost.
    RequestDesync = "request_desyncs",
    /// Connections whose request framing was found again at the start of a segment.
    RequestResync = "request_resyncs",
    /// Connections whose response framing was lost.
    ResponseDesync = "response_desyncs",
    /// Connections whose response framing was found again at the start of a segment.
    ResponseResync = "response_resyncs",
    /// Segments that came before their turn and wait for the missing bytes.
    OutOfOrder = "segments_out_of_order",
    /// Requests whose header section was longer than 16 KiB.
    Oversized = "headers_oversized",
    /// Requests beyond the 32 outstanding of a connection: counted, but not timed.
    PipelineFull = "pipeline_full",
    /// Responses that answer no request known of.
    Unmatched = "responses_unmatched",
    /// Connections that turned out to be HTTP/2.
    Http2 = "http2_connections",
    /// Packets not looked into because no scratch buffer was free.
    ScratchBusy = "scratch_busy",
    /// Packets whose bytes could not be read.
    LoadFailed = "load_failed",
    /// First payloads that reached a listener and wait for their connection.
    Parked = "listener_payloads",
    /// First payloads of `listener_payloads` that found their connection.
    Adopted = "listener_payloads_adopted",
    /// Waits for a CPU lost because three threads share a pair of places in the table.
    RunQueueCollision = "runqueue_collisions",
    /// HTTP/2 connections whose requests are not counted because as many as allowed are.
    Http2Full = "http2_storage_capped",
    /// HTTP/2 requests beyond the 256 in flight of a connection, or while its answers are not followed: counted, but not
    /// timed nor in flight.
    Http2StreamsFull = "http2_streams_untimed",
    /// HTTP/2 answers whose status is not told by the static table: in no class.
    Http2NoStatus = "http2_status_unknown",
    /// HTTP/2 requests whose frames were missed and of which only the streams' numbers tell: counted, but not timed.
    Http2Inferred = "http2_requests_inferred",
    /// Redis's and PostgreSQL's requests whose bytes were missed and of which only the answers tell: counted, but not timed.
    Inferred = "requests_inferred",
    /// Packets with more HTTP/2 frames than are walked.
    Http2Frames = "http2_frames_overflow",
    /// HTTP/2 connections whose first payload reached a listener: the requests in it are counted when a later one tells of
    /// them by its stream's number, but for the first.
    Http2Listener = "http2_listener_payloads",
    /// Times that a pod's thread ran without its wait for the CPU being known: not in the pod's waits. Those lost by
    /// `runqueue_collisions`, and what a kernel hides, see `runqueue_switches_unseen`.
    RunQueueUnknown = "runqueue_waits_unknown",
    /// Switches between threads that the kernel's trace point did not tell of: the thread that ran was not the one switched
    /// to last. A kernel can leave out threads that it hides.
    RunQueueUnseen = "runqueue_switches_unseen",
    /// Connections that turned out to speak RESP (Redis).
    Redis = "redis_connections",
    /// Connections that turned out to speak PostgreSQL's protocol.
    Postgresql = "postgresql_connections",
    /// Connections that turned out to be TLS.
    Tls = "tls_connections",
    /// TLS sessions older than the probes, or whose beginning they did not see, that were found to serve requests.
    TlsAdopted = "tls_sessions_adopted",
    /// Requests and TLS sessions that are not counted because as many sessions as allowed are followed.
    TlsSessionsFull = "tls_sessions_capped",
    /// Times that plain text in a process' memory could not be read.
    TlsLoadFailed = "tls_load_failed",
    /// Times that plain text was not looked into because no scratch buffer was free.
    TlsScratchBusy = "tls_scratch_busy",
    /// TLS sessions that turned out to be HTTP/2.
    TlsHttp2 = "tls_http2_sessions",
    /// TLS sessions of HTTP/2 whose requests are not counted because as many as allowed are.
    TlsHttp2Full = "tls_http2_capped",
}

/// Elements of the map STATISTICS, some of them spare.
pub const STATS: u32 = 64;
