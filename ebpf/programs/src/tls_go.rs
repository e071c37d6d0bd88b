//! Requests inside Go's crypto/tls. Go calls by rules of its own and moves stacks, so that return addresses must be left
//! alone: where Read returns is probed at each of its return instructions, and of what begins the first instruction behind
//! the look at the stack, which begins anew if it has to grow. What is found goes the way of other libraries' plain text,
//! see `tls`.
//!
//! Hooks: uprobes of crypto/tls.(*Conn).Read, Write, serverHandshake, clientHandshake and Close. Only for x86-64, where
//! user space has made sure that the functions take arguments in registers.

use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::{map, uprobe};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::ProbeContext;
use ebpf_scaler_common::tls::{CALLS as MAX_CALLS, Call, SessionKey};

use crate::atomic::get;
use crate::tls::{accepted, finish, forget, key_of, mine, moved};

/// Calls under way, by process and goroutine: that may go on in another thread.
#[map]
static TLS_GO_CALLS: LruHashMap<SessionKey, Call> = LruHashMap::with_max_entries(MAX_CALLS, 0);

/// Where a register lies among those of the interrupted process, in words.
mod register {
    /// R14: the goroutine.
    pub const GOROUTINE: usize = 1;
    /// RBX: the second argument, of a slice its address.
    pub const SECOND: usize = 5;
    /// RCX: the third argument, of a slice its length.
    pub const THIRD: usize = 11;
    /// RAX: the first argument, and the first result.
    pub const FIRST: usize = 10;
}

#[inline(always)]
fn read<const REGISTER: usize>(ctx: &ProbeContext) -> u64 {
    // SAFETY: within the registers, which the kernel gives as they are.
    unsafe { core::ptr::read_volatile(ctx.regs.cast::<u64>().add(REGISTER)) }
}

/// Read begins.
#[uprobe]
pub fn tls_go_call(ctx: ProbeContext) -> u32 {
    if mine().is_none() {
        return 0;
    }
    let goroutine = key_of(read::<{ register::GOROUTINE }>(&ctx));
    let call = Call {
        ssl: read::<{ register::FIRST }>(&ctx),
        buffer: read::<{ register::SECOND }>(&ctx),
        length_at: 0,
        // SAFETY: a helper call.
        begun: unsafe { bpf_ktime_get_ns() },
    };
    let _ = TLS_GO_CALLS.insert(goroutine, call, 0);
    0
}

/// Read returns.
#[uprobe]
pub fn tls_go_read(ctx: ProbeContext) -> u32 {
    // SAFETY: the state is the current call's.
    unsafe { end(&ctx) };
    0
}

/// Write begins, and will write all. When it returns, another goroutine may have closed the connection, which the client
/// that has read its answer has left.
#[uprobe]
pub fn tls_go_write(ctx: ProbeContext) -> u32 {
    // SAFETY: helper calls; who writes is alone, or what it writes means nothing.
    unsafe {
        let call = Call {
            ssl: read::<{ register::FIRST }>(&ctx),
            buffer: read::<{ register::SECOND }>(&ctx),
            length_at: 0,
            begun: bpf_ktime_get_ns(),
        };
        let process = bpf_get_current_pid_tgid() >> 32;
        if let Some(length) = moved(read::<{ register::THIRD }>(&ctx) as i64) {
            finish::<true>(process, &call, length);
        }
    }
    0
}

/// A server's session begins, perhaps where another's was.
#[uprobe]
pub fn tls_go_accept(ctx: ProbeContext) -> u32 {
    accepted(&key_of(read::<{ register::FIRST }>(&ctx)));
    0
}

/// A session ends, or a client's begins where perhaps a server's was.
#[uprobe]
pub fn tls_go_free(ctx: ProbeContext) -> u32 {
    forget(&key_of(read::<{ register::FIRST }>(&ctx)));
    0
}

#[inline(always)]
unsafe fn end(ctx: &ProbeContext) -> Option<()> {
    // SAFETY: a helper call, and the map's element.
    unsafe {
        let goroutine = key_of(read::<{ register::GOROUTINE }>(ctx));
        let found = TLS_GO_CALLS.get_ptr(goroutine)?;
        let call = Call {
            ssl: get!(found.ssl),
            buffer: get!(found.buffer),
            length_at: 0,
            begun: get!(found.begun),
        };
        let _ = TLS_GO_CALLS.remove(goroutine);
        let length = moved(read::<{ register::FIRST }>(ctx) as i64)?;
        let process = bpf_get_current_pid_tgid() >> 32;
        finish::<false>(process, &call, length)
    }
}
