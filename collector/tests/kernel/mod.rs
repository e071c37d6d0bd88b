//! A pod as the programs see it: a cgroup and sockets made inside it, on a testbed where traffic really comes from
//! outside. Needs root; what it makes it removes.
#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]

pub mod agent;
pub mod capabilities;
pub mod databases;
pub mod go;
pub mod http;
pub mod http2;
pub mod limit;
pub mod load;
pub mod raw;
pub mod tls;
pub mod wire;

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ebpf_scaler_collector::agent::probes::{Counters, Options, Probes, Reading, Slot};
use ebpf_scaler_testbed as testbed;
pub use ebpf_scaler_testbed::{CLIENT, SERVER, SERVER6, enter, eventually, patience};
use ebpf_scaler_testbed::{Namespaces, Wire, place};

/// A port that the worlds exclude.
pub const EXCLUDED: u16 = 9090;

static WORLDS: AtomicU32 = AtomicU32::new(0);

/// One test's pods, namespaces and programs.
pub struct World {
    pub name: String,
    pub root: PathBuf,
    pub probes: Probes,
    namespaces: Namespaces,
    pod_cgroups: Vec<PathBuf>,
}

/// A pod's cgroup with its slot.
pub struct Pod {
    pub cgroup: PathBuf,
    pub id: u64,
    pub slot: Slot,
    namespace: PathBuf,
}

/// Whether the long variants were asked for: `cargo xtask test kernel --long`.
pub fn long() -> bool {
    std::env::var_os("EBPF_SCALER_TEST_LONG").is_some()
}

pub fn sh(command: &str) {
    testbed::sh(command).unwrap();
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
        let root = testbed::cgroup2().unwrap().join(&name);
        fs::create_dir(&root).unwrap();
        let mut options = Options {
            cgroup: root.clone(),
            excluded_ports: vec![EXCLUDED],
            max_pods: 16,
            tls: false,
        };
        change(&mut options);
        let probes = Probes::load(&options).unwrap_or_else(|e| {
            let _ = fs::remove_dir(&root);
            panic!("{e}")
        });
        let namespaces = Namespaces::create(&name, Wire::Direct).unwrap();
        World {
            name,
            root,
            probes,
            namespaces,
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
            namespace: self.namespaces.server(),
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
            namespace: self.namespaces.server(),
        }
    }

    /// Moves this thread to where the clients are.
    pub fn enter_client(&self) {
        enter(&self.namespaces.client()).unwrap();
    }

    /// Moves this thread to where the pods are (not into their cgroups).
    pub fn enter_server(&self) {
        enter(&self.namespaces.server()).unwrap();
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
            // A child that another test is just starting has a copy of a socket closed here, until it runs its program.
            let mut tries = 5_000;
            loop {
                let socket = match kind {
                    libc::SOCK_STREAM => TcpListener::bind(address).map(OwnedFd::from),
                    _ => UdpSocket::bind(address).map(OwnedFd::from),
                };
                match socket {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {
                        tries -= 1;
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    done => return done,
                }
            }
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
        place(&mut command, &self.cgroup, Some(&self.namespace)).unwrap();
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
