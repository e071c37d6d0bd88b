//! The BPF programs: requests and network in one cgroup_skb pass, the run queue in the scheduler's trace points,
//! requests inside TLS at the edge of the TLS libraries.
//! Nothing here loops without a bound, sends an event for a packet, or fails without counting it.
#![no_std]
#![no_main]
#![expect(
    internal_features,
    reason = "BPF's atomics are to be had by intrinsics only"
)]
#![feature(asm_experimental_arch, core_intrinsics)]

mod atomic;
mod cost;
mod exchange;
mod flows;
mod frames;
mod http2;
mod maps;
mod network;
mod occupants;
mod order;
mod packet;
mod requests;
mod responses;
mod runqueue;
mod scan;
mod slots;
mod text;
mod tls;
mod tls_go;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing panics: a panic would not verify.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
