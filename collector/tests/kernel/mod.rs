//! A pod as the programs see it: a cgroup, sockets made inside it, and a pair of network namespaces joined by
//! veth, so that traffic really comes from outside. Needs root; what it makes it removes.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod agent;
pub mod http;
pub mod raw;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ebpf_scaler_collector::agent::probes::{Counters, Options, Probes, Reading, Slot};

/// The pod's addresses and the client's.
pub const SERVER: &str = "10.77.0.1";
pub const CLIENT: &str = "10.77.0.2";
pub const SERVER6: &str = "fd77::1";
/// A port that the worlds exclude.
pub const EXCLUDED: u16 = 9090;

static WORLDS: AtomicU32 = AtomicU32::new(0);

/// One test's pods, namespaces and programs.
pub struct World {
    pub name: String,
    pub root: PathBuf,
    pub probes: Probes,
    pod_cgroups: Vec<PathBuf>,
}

/// A pod's cgroup with its slot.
pub struct Pod {
    pub cgroup: PathBuf,
    pub id: u64,
    pub slot: Slot,
    namespace: String,
}

/// Whether the long variants were asked for: `cargo xtask test kernel --long`.
pub fn long() -> bool {
    std::env::var_os("EBPF_SCALER_TEST_LONG").is_some()
}

pub fn sh(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Where cgroup v2 is mounted: not always at /sys/fs/cgroup.
pub fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .expect("cgroup v2 is mounted");
    PathBuf::from(mount.split(' ').nth(4).unwrap())
}

/// Namespaces joined by veth: NAME-s with the pods, NAME-c with the clients.
fn namespaces(name: &str) {
    sh(&format!(
        "ip netns add {name}-s && ip netns add {name}-c &&
         ip link add s0 netns {name}-s type veth peer name c0 netns {name}-c &&
         ip -n {name}-s addr add {SERVER}/24 dev s0 && ip -n {name}-c addr add {CLIENT}/24 dev c0 &&
         ip -n {name}-s addr add {SERVER6}/64 dev s0 nodad && ip -n {name}-c addr add fd77::2/64 dev c0 nodad &&
         ip -n {name}-s link set lo up && ip -n {name}-c link set lo up &&
         ip -n {name}-s link set s0 up && ip -n {name}-c link set c0 up"
    ));
}

impl World {
    pub fn new() -> World {
        World::with(|_| {})
    }

    pub fn with(change: impl Fn(&mut Options)) -> World {
        // SAFETY: a system call without arguments.
        let user = unsafe { libc::geteuid() };
        assert_eq!(
            user, 0,
            "the kernel tests load BPF programs: run them as root"
        );
        let name = format!(
            "ebst{}-{}",
            std::process::id(),
            WORLDS.fetch_add(1, Ordering::Relaxed)
        );
        let root = cgroup2().join(&name);
        fs::create_dir(&root).unwrap();
        let mut options = Options {
            cgroup: root.clone(),
            excluded_ports: vec![EXCLUDED],
            max_pods: 16,
        };
        change(&mut options);
        let probes = Probes::load(&options).unwrap_or_else(|e| {
            let _ = fs::remove_dir(&root);
            panic!("{e}")
        });
        namespaces(&name);
        World {
            name,
            root,
            probes,
            pod_cgroups: Vec::new(),
        }
    }

    /// A cgroup below the attached one that nobody has assigned.
    pub fn cgroup(&mut self, name: &str) -> (PathBuf, u64) {
        let path = self.root.join(name);
        fs::create_dir(&path).unwrap();
        let id = fs::metadata(&path).unwrap().ino();
        self.pod_cgroups.push(path.clone());
        (path, id)
    }

    /// A cgroup at that path below the attached one, made level by level, which this world's own programs do not
    /// know: another agent's to find.
    pub fn nested(&mut self, path: &str) -> Pod {
        let (mut end, mut id) = (0, 0);
        for level in path.split('/') {
            end += level.len();
            if !self.root.join(&path[..end]).exists() {
                id = self.cgroup(&path[..end]).1;
            }
            end += 1;
        }
        Pod {
            cgroup: self.root.join(path),
            id,
            slot: Slot {
                index: u32::MAX,
                generation: 0,
            },
            namespace: format!("/run/netns/{}-s", self.name),
        }
    }

    /// Removes a cgroup whose processes have ended.
    pub fn remove(&self, path: &str) {
        let cgroup = self.root.join(path);
        assert!(
            eventually(Duration::from_secs(5), || fs::remove_dir(&cgroup).is_ok()),
            "{} is still in use",
            cgroup.display()
        );
    }

    /// A pod with a slot.
    pub fn pod(&mut self, name: &str) -> Pod {
        let slot = self.probes.allocate().expect("a free slot");
        let pod = self.unassigned(name, slot);
        self.probes.assign(pod.id, slot).unwrap();
        pod
    }

    /// A pod whose cgroup is not assigned to the slot.
    pub fn unassigned(&mut self, name: &str, slot: Slot) -> Pod {
        let (cgroup, id) = self.cgroup(name);
        Pod {
            cgroup,
            id,
            slot,
            namespace: format!("/run/netns/{}-s", self.name),
        }
    }

    /// Moves this thread to where the clients are.
    pub fn enter_client(&self) {
        enter(&format!("/run/netns/{}-c", self.name));
    }

    /// Moves this thread to where the pods are (not into their cgroups).
    pub fn enter_server(&self) {
        enter(&format!("/run/netns/{}-s", self.name));
    }

    pub fn read(&self, pod: &Pod) -> Reading {
        self.probes.read(pod.slot)
    }

    pub fn counters(&self, pod: &Pod) -> Counters {
        self.read(pod).counters
    }

    pub fn statistic(&self, name: &str) -> u64 {
        let all = self.probes.statistics().values;
        all.iter()
            .find(|(n, _)| *n == name)
            .unwrap_or_else(|| panic!("no statistic {name}"))
            .1
    }

    /// Statistics that are not zero, for messages.
    pub fn troubles(&self) -> String {
        let all = self.probes.statistics().values;
        all.iter()
            .filter(|(_, v)| *v != 0)
            .map(|(n, v)| format!("{n}={v} "))
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for end in ["s", "c"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &format!("{}-{end}", self.name)])
                .output();
        }
        for cgroup in self.pod_cgroups.iter().rev().chain([&self.root]) {
            // A test may have removed it itself.
            let gone = eventually(Duration::from_secs(5), || {
                fs::remove_dir(cgroup).is_ok() || !cgroup.exists()
            });
            if !gone && !std::thread::panicking() {
                panic!("{} is still in use", cgroup.display());
            }
        }
    }
}

pub fn enter(namespace: &str) {
    let file = File::open(namespace).unwrap();
    // SAFETY: the descriptor is open; only this thread moves.
    let done = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// Polls until it holds; false if it does not in time.
pub fn eventually(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Pod {
    /// A listener of the pod; who accepts does not matter to the kernel.
    pub fn listen(&self, address: &str, port: u16) -> TcpListener {
        TcpListener::from(self.bound(libc::SOCK_STREAM, address, port))
    }

    pub fn udp(&self, address: &str, port: u16) -> UdpSocket {
        UdpSocket::from(self.bound(libc::SOCK_DGRAM, address, port))
    }

    fn bound(&self, kind: i32, address: &str, port: u16) -> OwnedFd {
        let address: SocketAddr = match address.parse().unwrap() {
            std::net::IpAddr::V4(ip) => SocketAddr::new(ip.into(), port),
            std::net::IpAddr::V6(ip) => SocketAddr::new(ip.into(), port),
        };
        self.inside(move || {
            let socket: OwnedFd = match kind {
                libc::SOCK_STREAM => TcpListener::bind(address)?.into(),
                _ => UdpSocket::bind(address)?.into(),
            };
            Ok(socket)
        })
    }

    /// A client of the pod.
    pub fn connect(&self, to: SocketAddr) -> TcpStream {
        TcpStream::from(self.inside(move || Ok(TcpStream::connect(to)?.into())))
    }

    /// Makes a socket in a process that belongs to the pod's cgroup and namespace, and brings it here.
    pub fn inside(
        &self,
        make: impl Fn() -> io::Result<OwnedFd> + Send + Sync + 'static,
    ) -> OwnedFd {
        let (here, there) = UnixDatagram::pair().unwrap();
        let mut command = self.command("true");
        // SAFETY: only system calls that are safe after fork.
        unsafe {
            command.pre_exec(move || {
                let socket = make()?;
                send_descriptor(there.as_raw_fd(), socket.as_raw_fd())
            });
        }
        assert!(command.status().unwrap().success());
        receive_descriptor(here.as_raw_fd()).unwrap()
    }

    /// A command that runs in the pod's cgroup and namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let procs = File::options()
            .write(true)
            .open(self.cgroup.join("cgroup.procs"))
            .unwrap();
        let namespace = File::open(&self.namespace).unwrap();
        // SAFETY: only system calls that are safe after fork.
        unsafe {
            command.pre_exec(move || {
                (&procs).write_all(b"0")?;
                match libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        command
    }
}

fn send_descriptor(over: RawFd, descriptor: RawFd) -> io::Result<()> {
    with_message(|message| {
        // SAFETY: the buffer has room for one descriptor.
        unsafe {
            let control = libc::CMSG_FIRSTHDR(message);
            (*control).cmsg_level = libc::SOL_SOCKET;
            (*control).cmsg_type = libc::SCM_RIGHTS;
            (*control).cmsg_len = libc::CMSG_LEN(4) as usize;
            libc::CMSG_DATA(control)
                .cast::<RawFd>()
                .write_unaligned(descriptor);
            libc::sendmsg(over, message, 0)
        }
    })
    .map(drop)
}

fn receive_descriptor(over: RawFd) -> io::Result<OwnedFd> {
    let mut descriptor = -1;
    with_message(|message| {
        // SAFETY: the kernel fills the buffer.
        unsafe {
            let received = libc::recvmsg(over, message, 0);
            if received > 0 {
                descriptor = libc::CMSG_DATA(libc::CMSG_FIRSTHDR(message))
                    .cast::<RawFd>()
                    .read_unaligned();
            }
            received
        }
    })?;
    // SAFETY: the kernel gave us this descriptor a moment ago.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn with_message(act: impl FnOnce(*mut libc::msghdr) -> isize) -> io::Result<isize> {
    let mut byte = [0u8; 1];
    let mut control = [0u64; 8];
    let mut part = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    // SAFETY: all zero is a valid message header.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: arithmetic.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(4) } as usize;
    match act(&raw mut message) {
        -1 => Err(io::Error::last_os_error()),
        n => Ok(n),
    }
}

/// The path of a file below the cgroup.
pub fn in_cgroup(cgroup: &Path, file: &str) -> String {
    fs::read_to_string(cgroup.join(file)).unwrap()
}
