//! Requests inside TLS, from the plain text that passes between a process and its TLS library. Attached only to the
//! libraries of pods for which somebody asked, see the agent's `tls`; it never keeps any of the text.
//!
//! Hooks: uprobes of SSL_read, SSL_write and their _ex forms, SSL_set_accept_state and SSL_free, as OpenSSL and BoringSSL
//! have them. Cost: two traps into the kernel a call, which is far more than what is done here; see docs/tls.md.
//!
//! A session is known by its process and the address of its SSL. What it speaks is told by the same machines as for
//! packets; that it serves, by SSL_set_accept_state or, if that was not seen, by an answer to what looked like a request.
//! So what a client reads is never counted. Programs here can be preempted: nothing is shared by the CPU.

use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_user,
};
use aya_ebpf::macros::{map, uprobe, uretprobe};
use aya_ebpf::maps::{Array, HashMap, LruHashMap};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use ebpf_scaler_common::flow::{Flow, in_flight, rx_flag};
use ebpf_scaler_common::http1::phase;
use ebpf_scaler_common::http2::{self as connection, Connection, PREFACE_REST, role};
use ebpf_scaler_common::record::{Stat, wanted};
use ebpf_scaler_common::tls::{
    CALLS as MAX_CALLS, Call, HTTP2_SESSIONS, SESSIONS as MAX_SESSIONS, Session, SessionKey,
};

use crate::atomic::{self, get, set};
use crate::flows::version;
use crate::maps::{control, count};
use crate::slots::{Slot, is_below, known, resolve, tally};
use crate::{frames, text};

/// More than any call hands over; longer lengths are not believed.
const MAX_LENGTH: i64 = 1 << 30;
const NOEXIST: u64 = 1;

/// State per session; user space removes what no SSL_free ends.
#[map]
static TLS_SESSIONS: HashMap<SessionKey, Session> = HashMap::with_max_entries(MAX_SESSIONS, 0);
/// Calls under way, by thread.
#[map]
static TLS_CALLS: LruHashMap<u64, Call> = LruHashMap::with_max_entries(MAX_CALLS, 0);
/// More state per session that speaks HTTP/2.
#[map]
static TLS_HTTP2S: HashMap<SessionKey, Connection> = HashMap::with_max_entries(HTTP2_SESSIONS, 0);
/// The initial value of a session, all zero: nobody writes it.
#[map]
static TLS_BLANK: Array<Session> = Array::with_max_entries(1, 0);
/// The same of its state of HTTP/2.
#[map]
static TLS_HTTP2_BLANK: Array<Connection> = Array::with_max_entries(1, 0);

/// SSL_read or SSL_write begins.
#[uprobe]
pub fn tls_call(ctx: ProbeContext) -> u32 {
    begin(&ctx, 0);
    0
}

/// SSL_read_ex or SSL_write_ex begins: the fourth argument says where the length will be.
#[uprobe]
pub fn tls_call_ex(ctx: ProbeContext) -> u32 {
    begin(&ctx, ctx.arg(3).unwrap_or(0));
    0
}

/// One that reads returns.
#[uretprobe]
pub fn tls_read(ctx: RetProbeContext) -> u32 {
    // SAFETY: the state is the current call's.
    unsafe { end::<false>(&ctx) };
    0
}

/// One that writes returns.
#[uretprobe]
pub fn tls_write(ctx: RetProbeContext) -> u32 {
    // SAFETY: the state is the current call's.
    unsafe { end::<true>(&ctx) };
    0
}

/// SSL_set_accept_state: a server's session begins, perhaps where another's was.
#[uprobe]
pub fn tls_accept(ctx: ProbeContext) -> u32 {
    accepted(&key_of(ctx.arg(0).unwrap_or(0)));
    0
}

/// SSL_free: the session ends.
#[uprobe]
pub fn tls_free(ctx: ProbeContext) -> u32 {
    forget(&key_of(ctx.arg(0).unwrap_or(0)));
    0
}

/// A server's session begins.
#[inline(always)]
pub fn accepted(key: &SessionKey) {
    forget(key);
    if let Some(slot_ref) = mine()
        && let Some(session) = make(key, slot_ref)
    {
        // SAFETY: the map's element.
        unsafe { set!(session.flow.rx.phase, phase::START) };
    }
}

/// What is at that address in the current process.
#[inline(always)]
pub fn key_of(ssl: u64) -> SessionKey {
    // SAFETY: a helper call.
    let process = unsafe { bpf_get_current_pid_tgid() } >> 32;
    SessionKey { process, ssl }
}

/// Keeps what is known only now.
#[inline(always)]
fn begin(ctx: &ProbeContext, length_at: u64) {
    if mine().is_none() {
        return;
    }
    // SAFETY: helper calls.
    let (task, begun) = unsafe { (bpf_get_current_pid_tgid(), bpf_ktime_get_ns()) };
    let call = Call {
        ssl: ctx.arg(0).unwrap_or(0),
        buffer: ctx.arg(1).unwrap_or(0),
        length_at,
        begun,
    };
    let _ = TLS_CALLS.insert(task, call, 0);
}

/// The plain text is there: read, or handed over to be sent.
#[inline(always)]
unsafe fn end<const WRITE: bool>(ctx: &RetProbeContext) -> Option<()> {
    // SAFETY: helper calls, and the map's element. The call is removed, so a second probe of the same place finds none.
    unsafe {
        let task = bpf_get_current_pid_tgid();
        let found = TLS_CALLS.get_ptr(task)?;
        let call = Call {
            ssl: get!(found.ssl),
            buffer: get!(found.buffer),
            length_at: get!(found.length_at),
            begun: get!(found.begun),
        };
        let _ = TLS_CALLS.remove(task);
        let length = length(ctx, call.length_at)?;
        finish::<WRITE>(task >> 32, &call, length)
    }
}

/// Counts what a call has moved.
///
/// # Safety
/// No other call of the session that moves plain text the same way is under way.
#[inline(always)]
pub unsafe fn finish<const WRITE: bool>(process: u64, call: &Call, length: u32) -> Option<()> {
    let (buffer, begun) = (call.buffer, call.begun);
    let key = SessionKey {
        process,
        ssl: call.ssl,
    };
    // SAFETY: helper calls, and the maps' elements.
    unsafe {
        let session = match TLS_SESSIONS.get_ptr_mut(&key) {
            Some(session) => session,
            // An older one is worth its state when it is asked something.
            None if !WRITE && text::looks_like_request(buffer, length) => {
                let session = make(&key, mine()?)?;
                count(Stat::TlsAdopted);
                session
            }
            None => return None,
        };
        set!(session.used, begun);
        let slot = slot(&key, session)?;
        let flow = &raw mut (*session).flow;
        if get!(flow.rx_flags) & rx_flag::HTTP2 != 0 {
            let c = TLS_HTTP2S.get_ptr_mut(&key)?;
            frames::text::<WRITE>(buffer as *mut _, flow, c, slot, 0, length);
        } else if WRITE {
            text::answers(flow, slot, buffer, length, begun);
        } else {
            let rest = text::requests(flow, slot, buffer, length, bpf_ktime_get_ns());
            if rest < length {
                let c = make_http2(&key, flow)?;
                frames::text::<false>(buffer as *mut _, flow, c, slot, rest, length);
            }
        }
        slot.touch();
    }
    Some(())
}

/// How many bytes a call has moved, if any.
#[inline(always)]
fn length(ctx: &RetProbeContext, length_at: u64) -> Option<u32> {
    let returned: u64 = ctx.ret();
    // An int, of whose register the upper half means nothing.
    let returned = i64::from(returned as i32);
    if returned <= 0 {
        return None;
    }
    let mut length = returned as u64;
    if length_at != 0 {
        let to = (&raw mut length).cast();
        // SAFETY: the variable is that long.
        if unsafe { bpf_probe_read_user(to, 8, length_at as *const _) } != 0 {
            count(Stat::TlsLoadFailed);
            return None;
        }
    }
    moved(length as i64)
}

/// A length that can be believed.
#[inline(always)]
pub fn moved(length: i64) -> Option<u32> {
    (length > 0 && length < MAX_LENGTH).then_some(length as u32)
}

/// The slot of the current task, if requests inside TLS are wanted of it.
#[inline(always)]
pub fn mine() -> Option<u64> {
    let control = control()?;
    // SAFETY: helper calls, and the maps' elements.
    unsafe {
        let of_all = get!(control.tls_of_all) != 0;
        let cgroup = bpf_get_current_cgroup_id();
        if let Some(found) = known(cgroup) {
            let record = Slot::of(found)?.record;
            return (of_all || get!(record.wanted) & wanted::TLS != 0).then_some(found);
        }
        // A pod that nobody has told of yet; of the whole machine's cgroups only those below ours are pods.
        (of_all && is_below(get!(control.ancestor_id))).then(|| resolve(cgroup))?
    }
}

/// A new session's state, in that slot.
#[inline(always)]
fn make(key: &SessionKey, slot_ref: u64) -> Option<*mut Session> {
    let blank = TLS_BLANK.get(0)?;
    if TLS_SESSIONS.insert(key, blank, NOEXIST).is_err() {
        count(Stat::TlsSessionsFull);
        return None;
    }
    let session = TLS_SESSIONS.get_ptr_mut(key)?;
    // SAFETY: helper calls, and the map's element.
    unsafe {
        set!(session.flow.slot, slot_ref);
        set!(session.flow.kind, Slot::of(slot_ref).map_or(0, version));
        set!(session.cgroup, bpf_get_current_cgroup_id());
        set!(session.used, bpf_ktime_get_ns());
    }
    Some(session)
}

/// More state for a session whose first bytes, up to the blank behind PRI, say that it speaks HTTP/2.
#[inline(always)]
unsafe fn make_http2(key: &SessionKey, flow: *mut Flow) -> Option<*mut Connection> {
    // SAFETY: the maps' elements.
    unsafe {
        let blank = TLS_HTTP2_BLANK.get(0)?;
        if TLS_HTTP2S.insert(key, blank, 0).is_err() {
            set!(flow.rx_flags, get!(flow.rx_flags) & !rx_flag::HTTP2);
            count(Stat::TlsHttp2Full);
            return None;
        }
        let c = TLS_HTTP2S.get_ptr_mut(key)?;
        set!(c.rx_role, role::SERVER);
        set!(c.rx.phase, connection::phase::SETTINGS);
        set!(c.rx.skip, PREFACE_REST);
        set!(c.prefaced, 1);
        Some(c)
    }
}

/// The session's slot, after looking again if it belongs to somebody else by now, or is divided in another way.
#[inline(always)]
unsafe fn slot(key: &SessionKey, session: *mut Session) -> Option<Slot> {
    // SAFETY: the map's element.
    unsafe {
        let flow = &raw mut (*session).flow;
        let cached = get!(flow.slot);
        let old = Slot::of(cached);
        if let Some(slot) = old
            && version(slot) == get!(flow.kind)
        {
            return Some(slot);
        }
        let found = match (mine(), old) {
            (Some(found), _) => found,
            // It is not wanted any more, but what was begun is ended where it was.
            (None, Some(_)) => cached,
            (None, None) => return None,
        };
        let slot = Slot::of(found)?;
        if found != cached && atomic::replace(&raw mut (*flow).slot, cached, found) {
            // What is in flight here came from elsewhere.
            let mut waiting = in_flight(flow);
            if get!(flow.rx_flags) & rx_flag::HTTP2 != 0
                && let Some(c) = TLS_HTTP2S.get_ptr_mut(key)
            {
                waiting += connection::in_flight(c) as u64;
            }
            tally!(slot, begun_besides, waiting);
            if let Some(old) = old {
                tally!(old, ended_besides, waiting);
                old.touch();
            }
        }
        set!(flow.kind, version(slot));
        Some(slot)
    }
}

/// A session goes: requests without an answer will not get one.
#[inline(always)]
pub fn forget(key: &SessionKey) {
    let Some(session) = TLS_SESSIONS.get_ptr_mut(key) else {
        return;
    };
    // SAFETY: the map's element.
    unsafe {
        let flow = &raw mut (*session).flow;
        let outstanding = in_flight(flow);
        let (mut aborted, mut ended) = (outstanding, outstanding);
        if get!(flow.rx_flags) & rx_flag::HTTP2 != 0
            && let Some(c) = TLS_HTTP2S.get_ptr_mut(key)
        {
            aborted += connection::unanswered(c) as u64;
            ended += connection::in_flight(c) as u64;
            let _ = TLS_HTTP2S.remove(key);
        }
        if ended != 0
            && let Some(slot) = Slot::of(get!(flow.slot))
        {
            tally!(slot, requests_aborted, aborted);
            tally!(slot, ended_besides, ended);
            slot.touch();
        }
    }
    let _ = TLS_SESSIONS.remove(key);
}
