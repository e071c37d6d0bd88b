//! The BPF programs, one file per family. Nothing here loops without a bound or reports an event per packet.
#![no_std]
#![no_main]

use aya_ebpf::{macros::{cgroup_skb, map}, maps::Array, programs::SkBuffContext};

#[map]
static COUNT: Array<u64> = Array::with_max_entries(4, 1024);

#[cgroup_skb]
pub fn ingress(ctx: SkBuffContext) -> i32 {
    if let Some(c) = COUNT.get_ptr_mut(0) {
        unsafe { *c += ctx.len() as u64; }
    }
    1
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
