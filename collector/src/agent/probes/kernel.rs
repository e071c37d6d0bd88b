//! Loads the BPF object and attaches its programs. The one place that knows aya, and the names in the object.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use aya::maps::{HashMap, Map, MapData, Queue};
use aya::programs::{BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType};
use aya::{Btf, Ebpf, EbpfLoader, VerifierLogLevel};
use ebpf_scaler_common::record::{
    Control, Cost, Culprits, MAX_SHARD_BITS, PARTS, PORT_WORDS, PROGRAMS, QUARANTINE, STATS, STEPS,
    SlotRecord, TOTAL_STEPS,
};

use super::memory::Shared;
use super::tls::{self, Kind, Tls};
use super::{Options, ProbeError, btf, release};

/// The object's bytes, aligned as its reader needs them.
#[cfg(bpf_object)]
fn object() -> Result<&'static [u8], ProbeError> {
    Ok(aya::include_bytes_aligned!(env!(
        "EBPF_SCALER_BPF_OBJECT_PATH"
    )))
}

#[cfg(not(bpf_object))]
fn object() -> Result<&'static [u8], ProbeError> {
    Err(ProbeError::NoObject)
}

/// The programs of the run queue, and the trace points they are named after.
const RUN_QUEUE: [&str; 3] = ["sched_wakeup", "sched_wakeup_new", "sched_switch"];
/// Cgroups that can be assigned, per slot: the pod's, its containers', and some below.
const CGROUPS_PER_POD: u32 = 16;

/// The object in the kernel.
#[derive(Debug)]
pub struct Kernel {
    ebpf: Ebpf,
    btf: Result<Btf, String>,
    run_queue_loaded: bool,
    /// Where the running kernel marks threads that a CPU limit takes off, if it does.
    pub throttled: Option<u64>,
    run_queue_links: Vec<(&'static str, aya::programs::tp_btf::BtfTracePointLinkId)>,
    /// Why sockets that go are not noticed, if so.
    pub no_destroy: Option<String>,
    tls: Tls,
    /// The maps.
    pub maps: Maps,
}

/// The maps that user space uses.
pub struct Maps {
    /// What is counted: of each slot as many records as there are shards.
    pub slots: Shared<SlotRecord>,
    /// See [`shard_bits`].
    shard_bits: u32,
    /// A bit per slot that changed.
    pub dirty: Shared<u64>,
    /// What the programs are told, and the live socket storages.
    pub control: Shared<Control>,
    /// Behind whom a slot's threads waited.
    pub culprits: Shared<Culprits>,
    /// What the programs cost, by samples.
    pub costs: Shared<Cost>,
    /// What went wrong.
    pub statistics: Shared<u64>,
    /// Cgroup id to slot.
    pub cgroups: HashMap<MapData, u64, u64>,
    /// Unknown cgroup id to provisional slot.
    pub quarantine: HashMap<MapData, u64, u64>,
    /// A local port of a slot to the slot that counts for it.
    pub ports: HashMap<MapData, u64, u64>,
    /// Provisional slots that the kernel can take.
    pub free_slots: Queue<MapData, u64>,
}

/// How many steps the programs take at a time. Linux 6.1 walks through more than the million instructions that it
/// allows for the first (6.18: a sixth of a million).
const STEPS_TRIED: [u32; 3] = [STEPS, STEPS / 3, FEWEST_STEPS];
const FEWEST_STEPS: u32 = STEPS / 6;
/// On older kernels the first is not even tried: to be refused takes a second or two there.
const ALL_STEPS_SINCE: (u32, u32) = (6, 2);
/// How the acts begin that the verifier can refuse.
pub const LOAD_PROGRAM: &str = "load the program";
/// What is kept of a verifier's log: its end tells why.
const LOG_LINES: usize = 6;

/// An error with the act that failed.
pub fn failed(act: impl Into<String>, error: &(dyn std::error::Error + 'static)) -> ProbeError {
    let (mut reason, mut forbidden) = (shorten(&error.to_string()), false);
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            forbidden |= error.raw_os_error() == Some(libc::EPERM);
        }
        cause = error.source();
        if let Some(cause) = cause {
            reason = format!("{reason}: {}", shorten(&cause.to_string()));
        }
    }
    if forbidden {
        reason += " (needed: CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN)";
    }
    ProbeError::Kernel {
        act: act.into(),
        reason,
    }
}

/// The first line and the last few.
fn shorten(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    match lines.split_first() {
        Some((first, rest)) if rest.len() > LOG_LINES => {
            let end = rest.get(rest.len() - LOG_LINES..).unwrap_or_default();
            format!("{first} ... {}", end.join("; "))
        }
        _ => lines.join("; "),
    }
}

impl Kernel {
    /// Loads everything and attaches requests and network.
    pub fn load(options: &Options) -> Result<Kernel, ProbeError> {
        let refused = |error: &ProbeError| matches!(error, ProbeError::Kernel { act, .. } if act.starts_with(LOAD_PROGRAM));
        let passed_over = usize::from(release::too_old(ALL_STEPS_SINCE).is_some());
        for steps in STEPS_TRIED.into_iter().skip(passed_over) {
            match Kernel::load_with(options, steps, VerifierLogLevel::DISABLE) {
                Err(error) if refused(&error) => {}
                done => return done,
            }
        }
        // Only now with the verifier's log: with it a refusal takes half a minute.
        Kernel::load_with(options, FEWEST_STEPS, VerifierLogLevel::DEBUG)
    }

    fn load_with(
        options: &Options,
        steps: u32,
        log: VerifierLogLevel,
    ) -> Result<Kernel, ProbeError> {
        let directory = File::open(&options.cgroup)
            .map_err(|e| failed(format!("open the cgroup {}", options.cgroup.display()), &e))?;
        let slots = options.max_pods + PARTS + QUARANTINE;
        // Since Linux 6.18. Without it, waits because of a CPU limit are told by who ran meanwhile, like others.
        let throttled = btf::offset("task_struct", "throttled");
        let shard_bits = shard_bits();
        let mut ebpf = load_object(options.tls, log, (slots, shard_bits), steps, throttled)?;
        let tls = Tls::new(
            take(&mut ebpf, "TLS_SESSIONS")?,
            take(&mut ebpf, "TLS_HTTP2S")?,
        );
        let maps = Maps::take(&mut ebpf, (slots, shard_bits), options)?;
        let btf = Btf::from_sys_fs().map_err(|e| format!("the kernel's BTF can not be read: {e}"));
        let mut kernel = Kernel {
            ebpf,
            btf,
            run_queue_loaded: false,
            throttled,
            run_queue_links: Vec::new(),
            no_destroy: None,
            tls,
            maps,
        };
        kernel.set_ancestor(&options.cgroup, &directory)?;
        // Before the others, so that no state is made whose end goes unnoticed.
        kernel.no_destroy = kernel.watch_sockets().err();
        for (name, direction) in [
            ("egress", CgroupSkbAttachType::Egress),
            ("ingress", CgroupSkbAttachType::Ingress),
        ] {
            kernel.attach_packets(name, direction, directory.as_fd())?;
        }
        Ok(kernel)
    }

    /// The programs tell our pods from the rest of the machine by their ancestor.
    fn set_ancestor(&self, path: &Path, directory: &File) -> Result<(), ProbeError> {
        let metadata = directory
            .metadata()
            .map_err(|e| failed(format!("stat {}", path.display()), &e))?;
        self.maps.control.store(
            0,
            std::mem::offset_of!(Control, ancestor_id),
            metadata.ino(),
        );
        Ok(())
    }

    fn watch_sockets(&mut self) -> Result<(), String> {
        self.load_trace_point("tcp_destroy_sock")?;
        let program = self.trace_point("tcp_destroy_sock")?;
        program
            .attach()
            .map_err(|e| failed("attach tcp_destroy_sock", &e).to_string())?;
        Ok(())
    }

    fn attach_packets(
        &mut self,
        name: &str,
        direction: CgroupSkbAttachType,
        cgroup: BorrowedFd<'_>,
    ) -> Result<(), ProbeError> {
        let missing = || ProbeError::Kernel {
            act: format!("find the program {name}"),
            reason: "not in the object".into(),
        };
        let program: &mut CgroupSkb = self
            .ebpf
            .program_mut(name)
            .ok_or_else(missing)?
            .try_into()
            .map_err(|_| missing())?;
        program
            .load()
            .map_err(|e| failed(format!("{LOAD_PROGRAM} {name}"), &e))?;
        // Other modes are flags that links do not take; links allow several programs anyway.
        program
            .attach(cgroup, direction, CgroupAttachMode::Single)
            .map_err(|e| failed(format!("attach the program {name} to the cgroup"), &e))?;
        Ok(())
    }

    fn trace_point(&mut self, name: &str) -> Result<&mut BtfTracePoint, String> {
        trace_point(&mut self.ebpf, name)
    }

    fn load_trace_point(&mut self, name: &str) -> Result<(), String> {
        let btf = self.btf.as_ref().map_err(Clone::clone)?;
        load_trace_point(&mut self.ebpf, btf, name)
    }

    /// Why the verifier refuses a trace point's program: asked again with its log, which costs much, on maps of their
    /// own. None if it is not refused then.
    fn refusal(&self, name: &str) -> Option<String> {
        let btf = self.btf.as_ref().ok()?;
        let mut ebpf = self.object_with_log()?;
        load_trace_point(&mut ebpf, btf, name).err()
    }

    /// The object once more, on the smallest maps, whose refusals come with the verifier's log.
    fn object_with_log(&self) -> Option<Ebpf> {
        let (log, slots) = (VerifierLogLevel::DEBUG, QUARANTINE + PARTS + 1);
        load_object(false, log, (slots, 0), FEWEST_STEPS, self.throttled).ok()
    }

    /// Loads the programs of TLS libraries without attaching them; if that fails it says why, as for the run queue's,
    /// and everything else goes on.
    pub fn load_tls(&mut self, kind: Kind) -> Result<(), String> {
        if let Some(known) = self.tls.loaded(kind) {
            return known.clone();
        }
        let loaded = tls::load(&mut self.ebpf, kind).map_err(|reason| {
            let mut with_log = self.object_with_log();
            let said = with_log.as_mut().and_then(|e| tls::load(e, kind).err());
            said.unwrap_or(reason)
        });
        *self.tls.loaded(kind) = Some(loaded.clone());
        loaded
    }

    /// Loads the run queue's programs without attaching them, to know early whether they can be had.
    pub fn load_run_queue(&mut self) -> Result<(), String> {
        if !self.run_queue_loaded {
            for name in RUN_QUEUE {
                if let Err(reason) = self.load_trace_point(name) {
                    return Err(self.refusal(name).unwrap_or(reason));
                }
            }
            self.run_queue_loaded = true;
        }
        Ok(())
    }

    /// Attaches the run queue's programs, all or none.
    pub fn attach_run_queue(&mut self) -> Result<(), String> {
        self.load_run_queue()?;
        if self.run_queue_attached() {
            return Ok(());
        }
        // Waits that began when nobody looked are not to be believed.
        self.maps.control.store(
            0,
            std::mem::offset_of!(Control, runqueue_since),
            monotonic_nanos(),
        );
        for name in RUN_QUEUE {
            match self.trace_point(name)?.attach() {
                Ok(link) => self.run_queue_links.push((name, link)),
                Err(e) => {
                    self.detach_run_queue();
                    return Err(failed(format!("attach {name}"), &e).to_string());
                }
            }
        }
        Ok(())
    }

    /// Detaches the run queue's programs.
    pub fn detach_run_queue(&mut self) {
        for (name, link) in std::mem::take(&mut self.run_queue_links) {
            if let Ok(program) = self.trace_point(name) {
                let _ = program.detach(link);
            }
        }
    }

    /// Whether the run queue is measured.
    pub fn run_queue_attached(&self) -> bool {
        !self.run_queue_links.is_empty()
    }

    /// The uprobes, the object that their programs are in, and its maps.
    pub fn tls(&mut self) -> (&mut Tls, &mut Ebpf, &Maps) {
        (&mut self.tls, &mut self.ebpf, &self.maps)
    }

    /// What became of the uprobes.
    pub fn tls_statistics(&self) -> &Tls {
        &self.tls
    }
}

fn trace_point<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint, String> {
    ebpf.program_mut(name)
        .ok_or_else(|| format!("no program {name} in the object"))?
        .try_into()
        .map_err(|_| format!("{name} is not a trace point's program"))
}

fn load_trace_point(ebpf: &mut Ebpf, btf: &Btf, name: &str) -> Result<(), String> {
    trace_point(ebpf, name)?
        .load(name, btf)
        .map_err(|e| failed(format!("{LOAD_PROGRAM} {name}"), &e).to_string())
}

/// How many records a slot has, as a power of two: one for each CPU, up to a bound on the memory that it takes.
fn shard_bits() -> u32 {
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
    cpus.max(1).ilog2().min(MAX_SHARD_BITS)
}

/// Nanoseconds as the programs' clock counts them.
fn monotonic_nanos() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn load_object(
    tls: bool,
    log: VerifierLogLevel,
    (slots, shard_bits): (u32, u32),
    steps: u32,
    throttled: Option<u64>,
) -> Result<Ebpf, ProbeError> {
    let mut loader = EbpfLoader::new();
    if !tls {
        // What is never used takes no room.
        for map in [
            "TLS_SESSIONS",
            "TLS_HTTP2S",
            "TLS_CALLS",
            "TLS_GO_CALLS",
            "TLS_WINDOWS",
        ] {
            loader.map_max_entries(map, 1);
        }
    }
    loader
        .verifier_log_level(log)
        .override_global("TASK_THROTTLED", &throttled.unwrap_or(0), true)
        .allow_unsupported_maps()
        .override_global("STEPS", &steps, true)
        .override_global("TURNS", &(TOTAL_STEPS / steps), true)
        .override_global(
            "ORDERED_STORES",
            &u32::from(cfg!(target_arch = "x86_64")),
            true,
        )
        .override_global("SHARD_BITS", &shard_bits, true)
        .map_max_entries("SLOTS", slots << shard_bits)
        .map_max_entries("CULPRITS", slots)
        .map_max_entries("DIRTY", slots.div_ceil(64))
        .map_max_entries("CGROUPS", (slots - PARTS) * CGROUPS_PER_POD)
        .load(object()?)
        .map_err(|e| failed("load the BPF object", &e))
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps")
            .field("slots", &self.slots.elements())
            .finish_non_exhaustive()
    }
}

impl Maps {
    /// Where the records of a slot lie.
    pub fn records(&self, slot: u32) -> std::ops::Range<u32> {
        let first = slot.saturating_mul(1 << self.shard_bits);
        first..first.saturating_add(1 << self.shard_bits)
    }

    fn take(
        ebpf: &mut Ebpf,
        (slots, shard_bits): (u32, u32),
        options: &Options,
    ) -> Result<Maps, ProbeError> {
        let ports: Shared<u64> = share(ebpf, "EXCLUDED_PORTS", PORT_WORDS)?;
        for port in &options.excluded_ports {
            let word = u32::from(port >> 6);
            ports.store(word, 0, ports.word(word, 0) | 1 << (port & 63));
        }
        Ok(Maps {
            slots: share(ebpf, "SLOTS", slots << shard_bits)?,
            shard_bits,
            dirty: share(ebpf, "DIRTY", slots.div_ceil(64))?,
            control: share(ebpf, "CONTROL", 1)?,
            culprits: share(ebpf, "CULPRITS", slots)?,
            costs: share(ebpf, "COSTS", PROGRAMS)?,
            statistics: share(ebpf, "STATISTICS", STATS)?,
            cgroups: take(ebpf, "CGROUPS")?,
            quarantine: take(ebpf, "QUARANTINE")?,
            ports: take(ebpf, "PORTS")?,
            free_slots: take(ebpf, "FREE_SLOTS")?,
        })
    }
}

fn take<T>(ebpf: &mut Ebpf, name: &str) -> Result<T, ProbeError>
where
    T: TryFrom<Map>,
    T::Error: std::error::Error + 'static,
{
    let map = ebpf.take_map(name).ok_or_else(|| ProbeError::Kernel {
        act: format!("find the map {name}"),
        reason: "not in the object".into(),
    })?;
    map.try_into()
        .map_err(|e| failed(format!("use the map {name}"), &e))
}

fn share<T>(ebpf: &Ebpf, name: &str, elements: u32) -> Result<Shared<T>, ProbeError> {
    let Some(Map::Array(map)) = ebpf.map(name) else {
        return Err(ProbeError::Kernel {
            act: format!("find the map {name}"),
            reason: "not in the object".into(),
        });
    };
    Shared::new(map.fd().as_fd(), elements)
        .map_err(|e| failed(format!("share the memory of the map {name}"), &e))
}
