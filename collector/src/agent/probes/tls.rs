//! The uprobes of TLS libraries: attached per file and function, taken off again, and the sessions that no library ends
//! cleared away. It knows files and offsets, not how they were found.

use std::collections::BTreeMap;
use std::fs;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use aya::programs::UProbe;
use aya::programs::uprobe::{UProbeLinkId, UProbeScope};
use ebpf_scaler_common::flow::in_flight;
use ebpf_scaler_common::http2::{self, Connection};
use ebpf_scaler_common::record::{Control, SlotRecord, Tally, generation_of, slot_of, wanted};
use ebpf_scaler_common::tls::{SESSIONS, Session, SessionKey};

use super::kernel::{self, LOAD_PROGRAM, Maps};
use super::{Probes, Slot};
use crate::agent::tls::{FileId, Function, Library};

/// Whose functions programs are for. Those that can not be had matter only where something runs that needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// OpenSSL and its kin
    OpenSsl,
    /// Go's crypto/tls
    Go,
}

impl Kind {
    pub const ALL: [Kind; 2] = [Kind::OpenSsl, Kind::Go];

    const fn programs(self) -> &'static [&'static str] {
        match self {
            Kind::OpenSsl => &[
                "tls_call",
                "tls_call_ex",
                "tls_read",
                "tls_write",
                "tls_accept",
                "tls_free",
            ],
            Kind::Go => &[
                "tls_go_call",
                "tls_go_read",
                "tls_go_write",
                "tls_go_accept",
                "tls_go_free",
            ],
        }
    }

    fn is_in(self, library: &Library) -> bool {
        let mut programs = library.functions.iter().flat_map(|(of, _)| programs(*of));
        programs.any(|name| self.programs().contains(name))
    }
}

/// Files that can be probed at once: some ten descriptors each.
pub const MAX_LIBRARIES: usize = 128;
/// From so many sessions on the longest idle ones are given up, down to so many.
const CROWDED: usize = SESSIONS as usize / 8 * 7;
const RELIEVED: usize = SESSIONS as usize / 8 * 6;
/// The inode of the first PID namespace (PROC_PID_INIT_INO): only there processes have the numbers that programs see.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
const KEY_WORDS: usize = size_of::<SessionKey>() / 8;
const SESSION_WORDS: usize = size_of::<Session>() / 8;
const HTTP2_WORDS: usize = size_of::<Connection>() / 8;

/// A map by session, of values that many words long.
type Sessions<const WORDS: usize> = HashMap<MapData, [u64; KEY_WORDS], [u64; WORDS]>;

/// Kernels since July 2025 ask for more than CAP_PERFMON (CVE-2025-38466), with some of which nothing else is refused.
const NEEDED: &str = " (needed: CAP_SYS_ADMIN, see config/tls)";

/// Whether it is a matter of rights.
fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let refused = error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
        if refused {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The programs at a function's start and where it returns.
fn programs(of: Function) -> &'static [&'static str] {
    match of {
        Function::Read => &["tls_call", "tls_read"],
        Function::ReadEx => &["tls_call_ex", "tls_read"],
        Function::Write => &["tls_call", "tls_write"],
        Function::WriteEx => &["tls_call_ex", "tls_write"],
        Function::Accept => &["tls_accept"],
        Function::Free => &["tls_free"],
        Function::GoRead => &["tls_go_call"],
        Function::GoReadReturn => &["tls_go_read"],
        Function::GoWrite => &["tls_go_write"],
        Function::GoAccept => &["tls_go_accept"],
        Function::GoFree => &["tls_go_free"],
    }
}

/// What is attached, and what became of it.
pub struct Tls {
    sessions: Sessions<SESSION_WORDS>,
    http2: Sessions<HTTP2_WORDS>,
    /// Whether the programs are in the kernel, or why not: asked once, for a refusal takes seconds.
    loaded: [Option<Result<(), String>>; Kind::ALL.len()],
    links: BTreeMap<FileId, Vec<(&'static str, UProbeLinkId)>>,
    live_sessions: u64,
    capped: u64,
    cleared: u64,
    evicted: u64,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("libraries", &self.links.keys())
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Nothing attached.
    pub fn new(sessions: Sessions<SESSION_WORDS>, http2: Sessions<HTTP2_WORDS>) -> Tls {
        Tls {
            sessions,
            http2,
            loaded: [const { None }; Kind::ALL.len()],
            links: BTreeMap::new(),
            live_sessions: 0,
            capped: 0,
            cleared: 0,
            evicted: 0,
        }
    }

    /// What became of loading these programs, if that was tried.
    pub fn loaded(&mut self, kind: Kind) -> &mut Option<Result<(), String>> {
        let [openssl, go] = &mut self.loaded;
        match kind {
            Kind::OpenSsl => openssl,
            Kind::Go => go,
        }
    }

    /// Probes a library's functions, all or none, by programs that are loaded. Once is enough, also of a file that has
    /// several paths.
    pub fn attach(&mut self, ebpf: &mut Ebpf, library: &Library) -> Result<(), String> {
        if self.links.contains_key(&library.id) {
            return Ok(());
        }
        if self.links.len() >= MAX_LIBRARIES {
            self.capped += 1;
            return Err(format!("{MAX_LIBRARIES} other files are probed already"));
        }
        // The very file that was looked into, whatever its path leads to by now.
        let path = format!("/proc/self/fd/{}", library.file.as_raw_fd());
        let mut links = Vec::new();
        for (function, offset) in &library.functions {
            for name in programs(*function) {
                let attached =
                    program(ebpf, name)?.attach(*offset, &path, UProbeScope::AllProcesses);
                match attached {
                    Ok(link) => links.push((*name, link)),
                    Err(error) => {
                        detach(ebpf, links);
                        let act = format!("probe {function:?} of {}", library.path);
                        let mut reason = kernel::failed(act, &error).to_string();
                        if is_refused(&error) {
                            reason += NEEDED;
                        }
                        return Err(reason);
                    }
                }
            }
        }
        self.links.insert(library.id, links);
        Ok(())
    }

    /// Takes the probes off a file.
    pub fn detach(&mut self, ebpf: &mut Ebpf, file: FileId) {
        if let Some(links) = self.links.remove(&file) {
            detach(ebpf, links);
        }
    }

    /// Takes all probes off. Sessions are not followed any more, so nothing of them stays in flight.
    pub fn detach_all(&mut self, ebpf: &mut Ebpf, maps: &Maps) {
        if self.links.is_empty() {
            return;
        }
        for (_, links) in std::mem::take(&mut self.links) {
            detach(ebpf, links);
        }
        let keys: Vec<_> = self.sessions.keys().flatten().collect();
        for key in keys {
            self.clear(key, maps);
        }
        self.live_sessions = 0;
    }

    /// Whether anything is probed.
    pub fn attached(&self) -> bool {
        !self.links.is_empty()
    }

    /// Clears away the sessions of processes and pods that are gone, and when it gets crowded those longest idle.
    pub fn clear_away(&mut self, maps: &Maps) {
        if self.links.is_empty() {
            return;
        }
        let first = fs::metadata("/proc/self/ns/pid").is_ok_and(|m| m.ino() == FIRST_PID_NAMESPACE);
        let mut alive = BTreeMap::new();
        let mut idle = Vec::new();
        let all: Vec<_> = self.sessions.iter().flatten().collect();
        for (key, words) in all {
            let [process, _] = key;
            let is_alive = !first
                || *alive
                    .entry(process)
                    .or_insert_with(|| fs::exists(format!("/proc/{process}")).unwrap_or(true));
            let session = session(&words);
            if is_alive && holder(&session, maps).is_some() {
                idle.push((session.used, key));
            } else {
                self.cleared += 1;
                self.clear(key, maps);
            }
        }
        if idle.len() > CROWDED {
            idle.sort_unstable();
            for (_, key) in idle.drain(..idle.len() - RELIEVED) {
                self.evicted += 1;
                self.clear(key, maps);
            }
        }
        self.live_sessions = idle.len() as u64;
    }

    /// Forgets a session; what it had in flight ends without an answer.
    fn clear(&mut self, key: [u64; KEY_WORDS], maps: &Maps) {
        let Ok(words) = self.sessions.get(&key, 0) else {
            return;
        };
        if self.sessions.remove(&key).is_err() {
            return;
        }
        let session = session(&words);
        // SAFETY: a value of our own.
        let outstanding = unsafe { in_flight(&raw const session.flow) };
        let (mut aborted, mut ended) = (outstanding, outstanding);
        if let Ok(words) = self.http2.get(&key, 0) {
            let _ = self.http2.remove(&key);
            let c = words.as_ptr().cast_mut().cast::<Connection>();
            // SAFETY: as of a session's words, and both only read.
            unsafe {
                aborted += u64::from(http2::unanswered(c));
                ended += u64::from(http2::in_flight(c));
            }
        }
        let Some(record) = holder(&session, maps) else {
            return;
        };
        let tally = offset_of!(SlotRecord, tally);
        for (field, count) in [
            (offset_of!(Tally, requests_aborted), aborted),
            (offset_of!(Tally, ended_besides), ended),
        ] {
            if let Some(word) = maps.slots.words(record).get((tally + field) / 8) {
                word.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    /// Names and values for the statistics.
    pub fn statistics(&self) -> [(&'static str, u64); 6] {
        let probes = self.links.values().map(|links| links.len() as u64).sum();
        [
            ("live_tls_libraries", self.links.len() as u64),
            ("live_tls_probes", probes),
            ("live_tls_sessions", self.live_sessions),
            ("tls_libraries_capped", self.capped),
            ("tls_sessions_cleared", self.cleared),
            ("tls_sessions_evicted", self.evicted),
        ]
    }
}

/// Loads the programs of an object.
pub fn load(ebpf: &mut Ebpf, kind: Kind) -> Result<(), String> {
    for name in kind.programs() {
        let loaded = program(ebpf, name)?.load();
        loaded.map_err(|e| kernel::failed(format!("{LOAD_PROGRAM} {name}"), &e).to_string())?;
    }
    Ok(())
}

impl Probes {
    /// Counts requests inside TLS that pass through this library, of the pods that [`Probes::count_tls`] names.
    pub fn probe(&mut self, library: &Library) -> Result<(), String> {
        for kind in Kind::ALL {
            if kind.is_in(library) {
                self.kernel.load_tls(kind)?;
            }
        }
        let (tls, ebpf, _) = self.kernel.tls();
        tls.attach(ebpf, library)
    }

    /// Takes the probes off a library.
    pub fn spare(&mut self, library: FileId) {
        let (tls, ebpf, _) = self.kernel.tls();
        tls.detach(ebpf, library);
    }

    /// Clears away sessions of TLS that their processes left behind.
    pub fn clear_tls_sessions(&mut self) {
        let (tls, _, maps) = self.kernel.tls();
        tls.clear_away(maps);
    }

    /// Whether requests inside TLS are counted of every pod.
    pub fn count_tls_of_all(&mut self, all: bool) {
        let offset = offset_of!(Control, tls_of_all);
        self.kernel.maps.control.store(0, offset, u64::from(all));
    }

    /// Whether requests inside TLS are counted of this slot's pod, if they are not of all.
    pub fn count_tls(&mut self, slot: Slot, counted: bool) {
        if self.pool.is_current(slot) {
            let wanted = if counted { wanted::TLS } else { 0 };
            let offset = offset_of!(SlotRecord, wanted);
            let maps = &self.kernel.maps;
            for record in maps.records(slot.index) {
                maps.slots.store(record, offset, wanted);
            }
        }
    }
}

/// A record of the slot in which a session counts, if that is still the same pod's.
fn holder(session: &Session, maps: &Maps) -> Option<u32> {
    let (slot, generation) = (slot_of(session.flow.slot), generation_of(session.flow.slot));
    let record = maps.records(slot).start;
    let now = maps.slots.word(record, offset_of!(SlotRecord, generation)) as u32;
    (now == generation).then_some(record)
}

fn session(words: &[u64; SESSION_WORDS]) -> Session {
    // SAFETY: the same size and alignment; all fields are integers, for which every value is valid.
    unsafe { words.as_ptr().cast::<Session>().read() }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut UProbe, String> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| format!("no program {name} in the object"))?;
    program
        .try_into()
        .map_err(|_| format!("{name} is not a uprobe's program"))
}

fn detach(ebpf: &mut Ebpf, links: Vec<(&'static str, UProbeLinkId)>) {
    for (name, link) in links {
        if let Ok(program) = program(ebpf, name) {
            let _ = program.detach(link);
        }
    }
}
