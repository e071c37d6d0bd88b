//! What a thread of a test may do, as a pod's security context would have it.

pub const CAP_NET_ADMIN: u64 = 12;
pub const CAP_SYS_PTRACE: u64 = 19;
pub const CAP_SYS_ADMIN: u64 = 21;
pub const CAP_PERFMON: u64 = 38;
pub const CAP_BPF: u64 = 39;

/// Drops all other capabilities of this thread.
pub fn keep(capabilities: &[u64]) {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let set: u64 = capabilities.iter().map(|capability| 1 << capability).sum();
    let (low, high) = (set as u32, (set >> 32) as u32);
    // Effective, permitted, inheritable; the low words, then the high ones.
    let sets = [low, low, 0, high, high, 0];
    // SAFETY: both structures are as capset(2) says.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    assert_eq!(set, 0);
}
