//! Programs that do nothing, of the kinds that ours are: what they seem to cost is what being run and being timed
//! costs. Written in the kernel's instructions, so that they need no toolchain and no relocation.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::Context;
use aya_obj::btf::{Btf, BtfKind};

/// How the names of these programs begin: short, because the kernel keeps 15 bytes of a name.
const PREFIX: &str = "e_";

// From include/uapi/linux/bpf.h.
const PROG_LOAD: libc::c_int = 5;
const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const LINK_CREATE: libc::c_int = 28;
const PROG_TYPE_CGROUP_SKB: u32 = 8;
const PROG_TYPE_TRACING: u32 = 26;
const CGROUP_INET_INGRESS: u32 = 0;
const CGROUP_INET_EGRESS: u32 = 1;
const TRACE_RAW_TP: u32 = 23;
/// `r0 = 1; exit`: let the packet pass.
const PASS: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
/// `r0 = 0; exit`.
const NOTHING: [u64; 2] = [0x0000_0000_0000_00b7, 0x95];

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u32; 4],
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info: [u32; 5],
    line_info: [u32; 3],
    attach_btf_id: u32,
}

/// An attached program; it goes with this value.
#[derive(Debug)]
pub struct Empty {
    _link: OwnedFd,
    _program: OwnedFd,
}

/// Whether a program of this name is one of these.
pub fn is_empty(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The name of the empty program that stands beside one of ours.
pub fn beside(name: &str) -> String {
    let mut name = format!("{PREFIX}{name}");
    name.truncate(15);
    name
}

/// Attached to packets of a cgroup, beside programs called `ingress` and `egress`.
pub fn packets(cgroup: &Path) -> anyhow::Result<[Empty; 2]> {
    let directory = File::open(cgroup).context("cannot open the cgroup")?;
    let attach = |name, kind| {
        let program = load(name, PROG_TYPE_CGROUP_SKB, kind, 0, &PASS)?;
        let mut attr = [program.as_raw_fd(), directory.as_raw_fd(), kind as i32, 0];
        let link = bpf(LINK_CREATE, &mut attr).context("cannot attach an empty program")?;
        anyhow::Ok(Empty {
            _link: link,
            _program: program,
        })
    };
    Ok([
        attach("ingress", CGROUP_INET_INGRESS)?,
        attach("egress", CGROUP_INET_EGRESS)?,
    ])
}

/// Attached to a trace point with BTF, beside the program of its name.
pub fn trace_point(name: &str) -> anyhow::Result<Empty> {
    let btf = Btf::from_sys_fs().context("cannot read the kernel's BTF")?;
    let id = btf
        .id_by_type_name_kind(&format!("btf_trace_{name}"), BtfKind::Typedef)
        .with_context(|| format!("no trace point {name}"))?;
    let program = load(name, PROG_TYPE_TRACING, TRACE_RAW_TP, id, &NOTHING)?;
    // The name is null: the program knows its trace point.
    let mut attr = [0, 0, program.as_raw_fd(), 0];
    let link = bpf(RAW_TRACEPOINT_OPEN, &mut attr).context("cannot attach an empty program")?;
    Ok(Empty {
        _link: link,
        _program: program,
    })
}

fn load(
    name: &str,
    kind: u32,
    attach: u32,
    btf_id: u32,
    instructions: &[u64; 2],
) -> anyhow::Result<OwnedFd> {
    const LICENSE: &CStr = c"GPL";
    let mut attr = ProgLoad {
        prog_type: kind,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        expected_attach_type: attach,
        attach_btf_id: btf_id,
        ..ProgLoad::default()
    };
    for (to, from) in attr.prog_name.iter_mut().zip(beside(name).bytes()) {
        *to = from;
    }
    bpf(PROG_LOAD, &mut attr).with_context(|| format!("cannot load an empty program for {name}"))
}

/// One of the system call's commands that give a descriptor.
fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes, with their size; what they point to lives as long.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    match i32::try_from(fd) {
        // SAFETY: a new descriptor.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn attributes_lie_where_the_kernel_looks_for_them() {
        assert_eq!(offset_of!(ProgLoad, prog_name), 48);
        assert_eq!(offset_of!(ProgLoad, expected_attach_type), 68);
        assert_eq!(offset_of!(ProgLoad, attach_btf_id), 108);
    }

    #[test]
    fn names_fit_and_are_known_again() {
        let name = beside("sched_wakeup_new");
        assert_eq!(name.len(), 15);
        assert!(is_empty(&name) && !is_empty("ingress"));
        assert_eq!(beside("sched_wakeup_ne"), name, "as the kernel cuts it");
        assert_ne!(beside("sched_wakeup"), name);
    }
}
