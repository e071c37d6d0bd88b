//! Network namespaces for pods and for their clients, and the wire between them. The host's own network is never
//! changed.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::sh;

/// The pods' address.
pub const SERVER: &str = "10.77.0.1";
/// The clients' address.
pub const CLIENT: &str = "10.77.0.2";
/// The pods' IPv6 address.
pub const SERVER6: &str = "fd77::1";

/// What joins the two namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// A veth pair, as between a pod and its node.
    Direct,
    /// Two veth pairs that end in a third namespace, where a [`crate::Relay`] carries the frames. Nothing arrives
    /// without one.
    Relayed,
}

/// NAME-s with the pods, NAME-c with the clients, and NAME-r with the middle of a relayed wire.
#[derive(Debug)]
pub struct Namespaces {
    name: String,
}

impl Namespaces {
    /// Makes them, with addresses, everything up.
    pub fn create(name: &str, wire: Wire) -> io::Result<Namespaces> {
        // From here on its end removes what there is of it.
        let namespaces = Namespaces {
            name: name.to_owned(),
        };
        sh(&format!("ip netns add {name}-s && ip netns add {name}-c"))?;
        match wire {
            Wire::Direct => sh(&format!(
                "ip link add s0 netns {name}-s type veth peer name c0 netns {name}-c"
            ))?,
            // Frames that really have the size and the checksums of a wire.
            Wire::Relayed => sh(&format!(
                "ip netns add {name}-r &&
                 for end in s c; do
                   ip link add ${{end}}0 netns {name}-$end type veth peer name r$end netns {name}-r &&
                   nsenter --net=/run/netns/{name}-$end ethtool -K ${{end}}0 tx off tso off gso off gro off >/dev/null &&
                   nsenter --net=/run/netns/{name}-r ethtool -K r$end tx off tso off gso off gro off >/dev/null &&
                   ip -n {name}-r link set r$end up || exit 1
                 done"
            ))?,
        }
        sh(&format!(
            "ip -n {name}-s addr add {SERVER}/24 dev s0 && ip -n {name}-c addr add {CLIENT}/24 dev c0 &&
             ip -n {name}-s addr add {SERVER6}/64 dev s0 nodad && ip -n {name}-c addr add fd77::2/64 dev c0 nodad &&
             ip -n {name}-s link set lo up && ip -n {name}-c link set lo up &&
             ip -n {name}-s link set s0 up && ip -n {name}-c link set c0 up"
        ))?;
        Ok(namespaces)
    }

    /// Where the pods are.
    pub fn server(&self) -> PathBuf {
        self.file('s')
    }

    /// Where the clients are.
    pub fn client(&self) -> PathBuf {
        self.file('c')
    }

    /// The middle of a relayed wire.
    pub fn relay(&self) -> PathBuf {
        self.file('r')
    }

    fn file(&self, end: char) -> PathBuf {
        format!("/run/netns/{}-{end}", self.name).into()
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for end in ['s', 'c', 'r'] {
            if self.file(end).exists() {
                let _ = Command::new("ip")
                    .args(["netns", "del", &format!("{}-{end}", self.name)])
                    .output();
            }
        }
    }
}

/// Moves the calling thread, and what it starts from then on, to a network namespace.
pub fn enter(namespace: &Path) -> io::Result<()> {
    let file = File::open(namespace)?;
    // SAFETY: the descriptor is open; only this thread moves.
    match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
