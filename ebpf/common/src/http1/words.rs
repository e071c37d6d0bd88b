//! Eight bytes at a time: what the machine compares, and how it finds the end of a line. Nothing here knows where
//! the machine stands.

use super::{WINDOW, Window};

macro_rules! get {
    ($p:ident . $field:ident) => {
        read_volatile(&raw const (*$p).$field)
    };
}
macro_rules! set {
    ($p:ident . $field:ident, $value:expr) => {
        write_volatile(&raw mut (*$p).$field, $value)
    };
}

pub(super) use {get, set};

pub(super) const FOLD: u64 = 0x2020_2020_2020_2020;
pub(super) const CONTENT_: u64 = u64::from_le_bytes(*b"content-");
pub(super) const LENGTH_: u64 = u64::from_le_bytes(*b"length:\0");
pub(super) const TRANSFER: u64 = u64::from_le_bytes(*b"transfer");
pub(super) const ENCODIN: u64 = u64::from_le_bytes(*b"-encodin");
pub(super) const G_COLON: u64 = u64::from_le_bytes(*b"g:\0\0\0\0\0\0");
pub(super) const USER_AGE: u64 = u64::from_le_bytes(*b"user-age");
pub(super) const NT_COLON: u64 = u64::from_le_bytes(*b"nt:\0\0\0\0\0");
pub(super) const KUBE_PRO: u64 = u64::from_le_bytes(*b"kube-pro");
pub(super) const BE_SLASH: u64 = u64::from_le_bytes(*b"be/\0\0\0\0\0");
pub(super) const SP_CHUNKED: u64 = u64::from_le_bytes(*b" chunked");
pub(super) const HTTP_1: u64 = u64::from_le_bytes(*b"HTTP/1.\0");
pub(super) const HEAD: u64 = u32::from_be_bytes(*b"HEAD") as u64;
pub(super) const CONNECT: u64 = u64::from_be_bytes(*b"\0CONNECT");
pub(super) const PRI: u64 = u64::from_be_bytes(*b"\0\0\0\0\0PRI");
pub(super) const LOW2: u64 = 0xffff;
pub(super) const LOW3: u64 = 0xff_ffff;
pub(super) const LOW7: u64 = 0x00ff_ffff_ffff_ffff;

pub(super) const fn le4(token: &[u8; 4]) -> u64 {
    u32::from_le_bytes(*token) as u64
}

/// Whether a segment that begins with these 8 bytes (little endian) may begin a request.
#[inline(always)]
pub const fn begins_request(a: u64) -> bool {
    const LOW5: u64 = 0xff_ffff_ffff;
    const LOW6: u64 = 0xffff_ffff_ffff;
    let four = a & 0xffff_ffff;
    four == le4(b"GET ")
        || four == le4(b"PUT ")
        || a & LOW5 == u64::from_le_bytes(*b"POST \0\0\0")
        || a & LOW5 == u64::from_le_bytes(*b"HEAD \0\0\0")
        || a & LOW6 == u64::from_le_bytes(*b"PATCH \0\0")
        || a & LOW7 == u64::from_le_bytes(*b"DELETE \0")
        || a == u64::from_le_bytes(*b"OPTIONS ")
        || a == u64::from_le_bytes(*b"CONNECT ")
        || a & LOW6 == u64::from_le_bytes(*b"TRACE \0\0")
}

/// Whether a segment that begins with these 8 bytes (little endian) begins a response.
#[inline(always)]
pub const fn begins_response(a: u64) -> bool {
    a & LOW7 == HTTP_1
}

/// The status code in the 8 bytes behind "HTTP/1.x", if they are a blank and three digits; else 0.
#[inline(always)]
pub const fn status_in(b: u64) -> u32 {
    let x = ((b >> 8) & 0xff).wrapping_sub(0x30);
    let y = ((b >> 16) & 0xff).wrapping_sub(0x30);
    let z = ((b >> 24) & 0xff).wrapping_sub(0x30);
    if b & 0xff != b' ' as u64 || x > 9 || y > 9 || z > 9 {
        return 0;
    }
    (x * 100 + y * 10 + z) as u32
}

pub(super) const LINE_END: u64 = b'\r' as u64 | ((b'\n' as u64) << 8);
pub(super) const HASH_SEED: u64 = 0xcbf2_9ce4_8422_2325;
pub(super) const HASH_CONTENT_LENGTH: u64 = hash_of(b"content-length");
pub(super) const HASH_TRANSFER_ENCODING: u64 = hash_of(b"transfer-encoding");
pub(super) const HASH_USER_AGENT: u64 = hash_of(b"user-agent");
pub(super) const HASH_CHUNKED: u64 = hash_of(b"chunked");

/// FNV-1a over the lower-cased byte.
#[inline(always)]
pub(super) const fn hash(state: u64, byte: u64) -> u64 {
    (state ^ (byte | 0x20)).wrapping_mul(0x0000_0100_0000_01b3)
}

pub(super) const fn hash_of(name: &[u8]) -> u64 {
    let (mut state, mut i) = (HASH_SEED, 0);
    while i < name.len() {
        state = hash(state, name[i] as u64);
        i += 1;
    }
    state
}

/// The place of the first LF in 8 bytes; 8 if there is none. Without trailing_zeros, which needs a table.
#[inline(always)]
pub(crate) const fn newline(a: u64) -> u32 {
    let x = a ^ 0x0a0a_0a0a_0a0a_0a0a;
    let mask = x.wrapping_sub(0x0101_0101_0101_0101) & !x & 0x8080_8080_8080_8080;
    if mask == 0 {
        return 8;
    }
    let lowest = (mask & mask.wrapping_neg()) >> 7;
    (lowest.wrapping_mul(0x0001_0203_0405_0607) >> 56) as u32
}

/// Eight bytes, `ahead` (at most 24) behind `pos`. The mask is for the verifier; the padding is for `ahead`.
#[inline(always)]
pub(crate) unsafe fn word(w: *mut Window, pos: u32, ahead: usize) -> u64 {
    let at = (pos & (WINDOW as u32 - 1)) as usize;
    // SAFETY: at most WINDOW - 1 + PAD bytes are read.
    unsafe { load((&raw const (*w).bytes).cast::<u8>().add(at).add(ahead)) }
}

#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn load(at: *const u8) -> u64 {
    let value: u64;
    // SAFETY: the caller's promise. The compiler would load byte by byte.
    unsafe {
        core::arch::asm!("{0} = *(u64 *)({1} + 0)", out(reg) value, in(reg) at, options(nostack, readonly))
    };
    value
}

#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
unsafe fn load(at: *const u8) -> u64 {
    // SAFETY: the caller's promise.
    u64::from_le(unsafe { at.cast::<u64>().read_unaligned() })
}
