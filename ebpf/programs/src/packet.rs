//! Reads the IP and TCP headers of a packet at the cgroup hook, where its data begin with the IP header. Never
//! looks at the payload.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_skb_load_bytes};
use ebpf_scaler_common::flow::FlowKey;

use crate::atomic::set;

/// Protocol numbers of the IP header.
pub const TCP: u32 = 6;
const HOP_BY_HOP: u32 = 0;
const UDP: u32 = 17;
/// A flag of the TCP header.
pub const SYN: u32 = 2;
const ACK: u32 = 16;

const ETH_P_IP: u32 = 0x0800u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86ddu16.to_be() as u32;

/// What the headers say.
#[repr(C)]
pub struct Packet {
    /// The packet, with the IP header first.
    pub skb: *mut __sk_buff,
    /// Its socket.
    pub sk: *mut bpf_sock,
    /// The first 40 bytes: the IPv6 header, or IPv4's and TCP's.
    head: Words<10>,
    /// TCP's first 20 bytes, of a packet that has them.
    tcp: Words<5>,
    /// The IP header's protocol; 0xff for a later fragment.
    pub protocol: u32,
    v6: bool,
    /// Length of all headers.
    pub headers: u32,
    /// Length of the packet.
    pub len: u32,
    /// First sequence number of the payload.
    pub seq: u32,
    /// Acknowledged by this packet.
    pub ack: u32,
    /// TCP's flags.
    pub flags: u32,
    /// Whether the packet is on its way in.
    pub ingress: bool,
}

impl Packet {
    /// Reads the headers into `packet`; None if there is no socket or the packet is too short.
    #[inline(always)]
    pub fn read(
        packet: &mut MaybeUninit<Packet>,
        skb: *mut __sk_buff,
        ingress: bool,
    ) -> Option<&Packet> {
        // SAFETY: the context; each field is read once.
        let (sk, protocol, len) = unsafe {
            (
                core::ptr::read_volatile(&raw const (*skb).__bindgen_anon_2.sk),
                core::ptr::read_volatile(&raw const (*skb).protocol),
                core::ptr::read_volatile(&raw const (*skb).len),
            )
        };
        if sk.is_null() {
            return None;
        }
        let to = packet.as_mut_ptr();
        // SAFETY: every field but the words. One by one and volatile, or the compiler would call a function that fills
        // stretches of them with zeros byte by byte, for each packet.
        let packet = unsafe {
            set!(to.skb, skb);
            set!(to.sk, sk);
            set!(to.protocol, 0xff);
            set!(to.v6, protocol == ETH_P_IPV6);
            set!(to.headers, 0);
            set!(to.len, len);
            set!(to.seq, 0);
            set!(to.ack, 0);
            set!(to.flags, 0);
            set!(to.ingress, ingress);
            packet.assume_init_mut()
        };
        if packet.v6 {
            if !packet.load_head() {
                return None;
            }
            packet.read_v6()?;
        } else if protocol == ETH_P_IP {
            if !packet.load_head() && !packet.load_short() {
                return None;
            }
            packet.read_v4()?;
        } else {
            return None;
        }
        Some(packet)
    }

    /// The first 40 bytes, which mostly lie in the packet's linear part.
    #[inline(always)]
    fn load_head(&mut self) -> bool {
        let skb = self.skb;
        // SAFETY: the context, and 40 bytes that were just checked to be there.
        unsafe {
            let data = core::ptr::read_volatile(&raw const (*skb).data) as usize;
            let end = core::ptr::read_volatile(&raw const (*skb).data_end) as usize;
            if data + 40 > end {
                return load(skb, 0, &mut self.head);
            }
            let words = data as *const u32;
            let mut i = 0;
            while i < 10 {
                self.head.set(i, core::ptr::read_volatile(words.add(i)));
                i += 1;
            }
        }
        true
    }

    /// A packet without TCP can be shorter than 40 bytes: then IP's header alone.
    #[inline(always)]
    fn load_short(&mut self) -> bool {
        let mut ip = Words::<5>::new();
        if !load(self.skb, 0, &mut ip) {
            return false;
        }
        let mut i = 0;
        while i < 10 {
            self.head.set(i, if i < 5 { ip.at(i) } else { 0 });
            i += 1;
        }
        true
    }

    #[inline(always)]
    fn read_v4(&mut self) -> Option<()> {
        let first = u32::from_be(self.head.at(0));
        let ip = ((first >> 24) & 0xf) * 4;
        let fragment = u32::from_be(self.head.at(1)) & 0x1fff;
        self.protocol = if fragment == 0 {
            (u32::from_be(self.head.at(2)) >> 16) & 0xff
        } else {
            0xff
        };
        self.headers = ip;
        if self.protocol == TCP {
            if ip == 20 {
                let mut i = 0;
                while i < 5 {
                    self.tcp.set(i, self.head.at(5 + i));
                    i += 1;
                }
            } else if !load(self.skb, ip, &mut self.tcp) {
                return None;
            }
            self.read_tcp();
        } else if self.protocol == UDP {
            self.headers = ip + 8;
        }
        Some(())
    }

    #[inline(always)]
    fn read_v6(&mut self) -> Option<()> {
        self.protocol = (u32::from_be(self.head.at(1)) >> 8) & 0xff;
        self.headers = 40;
        if self.protocol == HOP_BY_HOP {
            // A jumbogram's option (BIG TCP).
            let mut option = Words::<2>::new();
            if !load(self.skb, 40, &mut option) {
                return None;
            }
            let option = u32::from_be(option.at(0));
            self.protocol = option >> 24;
            self.headers = 48 + ((option >> 16) & 0xff) * 8;
        }
        if self.protocol == TCP {
            if !load(self.skb, self.headers, &mut self.tcp) {
                return None;
            }
            self.read_tcp();
        } else if self.protocol == UDP {
            self.headers += 8;
        }
        Some(())
    }

    #[inline(always)]
    fn read_tcp(&mut self) {
        let word = u32::from_be(self.tcp.at(3));
        self.flags = (word >> 16) & 0xff;
        self.headers += (word >> 28) * 4;
        self.ack = u32::from_be(self.tcp.at(2));
        // A SYN takes the first sequence number.
        self.seq = u32::from_be(self.tcp.at(1)).wrapping_add(u32::from(self.flags & SYN != 0));
    }

    /// Whether the packet asks for a connection from here.
    #[inline(always)]
    pub fn connects(&self) -> bool {
        !self.ingress && self.flags & (SYN | ACK) == SYN
    }

    /// Bytes behind the headers.
    #[inline(always)]
    pub fn payload(&self) -> u32 {
        self.len.saturating_sub(self.headers)
    }

    /// When a packet of TCP on its way out is sent: TCP has just read the clock for it, and noted that with the packet. Read
    /// again it would cost a tenth of what a request costs here.
    #[inline(always)]
    pub fn sent_at(&self) -> u64 {
        let skb = self.skb;
        // SAFETY: the context, and a helper call.
        unsafe {
            let noted = core::ptr::read_volatile(&raw const (*skb).tstamp);
            if noted != 0 {
                noted
            } else {
                bpf_ktime_get_ns()
            }
        }
    }

    /// Packets and bytes on the wire: one packet here can be many there (GSO, GRO), each with its own headers.
    #[inline(always)]
    pub fn on_wire(&self) -> (u64, u64) {
        let skb = self.skb;
        // SAFETY: the context.
        let size = unsafe { core::ptr::read_volatile(&raw const (*skb).gso_size) };
        if size == 0 {
            return (1, self.len as u64);
        }
        // SAFETY: the context.
        let mut segments = unsafe { core::ptr::read_volatile(&raw const (*skb).gso_segs) };
        if segments == 0 {
            segments = self.payload().div_ceil(size);
        }
        if segments <= 1 {
            return (1, self.len as u64);
        }
        (
            segments as u64,
            self.len as u64 + (segments - 1) as u64 * self.headers as u64,
        )
    }

    /// Whether both ends are in the pod: the remote address is a loopback one, or the pod's own.
    #[inline(always)]
    pub fn inside(&self) -> bool {
        if self.v6 {
            let h = |i| self.head.at(i);
            let same = h(2) == h(6) && h(3) == h(7) && h(4) == h(8) && h(5) == h(9);
            let r = if self.ingress {
                [h(2), h(3), h(4), h(5)]
            } else {
                [h(6), h(7), h(8), h(9)]
            };
            return same || r[0] == 0 && r[1] == 0 && r[2] == 0 && r[3] == 1u32.to_be();
        }
        let remote = if self.ingress {
            self.head.at(3)
        } else {
            self.head.at(4)
        };
        self.head.at(3) == self.head.at(4) || u32::from_be(remote) >> 24 == 127
    }

    /// The TCP port at this end.
    #[inline(always)]
    pub fn local_port(&self) -> u32 {
        let ports = u32::from_be(self.tcp.at(0));
        if self.ingress {
            ports & 0xffff
        } else {
            ports >> 16
        }
    }

    /// The TCP or UDP port at this end; none for other protocols, and for later fragments.
    #[inline(always)]
    pub fn any_local_port(&self) -> Option<u32> {
        if self.protocol == TCP {
            return Some(self.local_port());
        }
        if self.protocol != UDP {
            return None;
        }
        let mut ports = Words::<1>::new();
        if !load(self.skb, self.headers - 8, &mut ports) {
            return None;
        }
        let ports = u32::from_be(ports.at(0));
        Some(if self.ingress {
            ports & 0xffff
        } else {
            ports >> 16
        })
    }

    /// Writes what identifies the connection, the same from packets in and out.
    ///
    /// # Safety
    /// `key` is valid.
    #[inline(always)]
    pub unsafe fn write_key(&self, key: *mut FlowKey, cgroup: u64) {
        let h = |i| self.head.at(i);
        let (from, to) = if self.v6 {
            ([h(2), h(3), h(4), h(5)], [h(6), h(7), h(8), h(9)])
        } else {
            ([h(3), 0, 0, 0], [h(4), 0, 0, 0])
        };
        let ports = u32::from_be(self.tcp.at(0));
        let swapped = ports.rotate_right(16);
        let (remote, local, ports) = if self.ingress {
            (from, to, ports)
        } else {
            (to, from, swapped)
        };
        // SAFETY: the caller's promise.
        unsafe {
            (*key).cgroup = cgroup;
            (*key).remote = remote;
            (*key).local = local;
            (*key).ports = ports as u64;
        }
    }
}

/// Words that are written before they are read, as the verifier sees to.
#[repr(C)]
struct Words<const N: usize>([MaybeUninit<u32>; N]);

impl<const N: usize> Words<N> {
    #[inline(always)]
    const fn new() -> Words<N> {
        Words([const { MaybeUninit::uninit() }; N])
    }

    #[inline(always)]
    fn set(&mut self, i: usize, word: u32) {
        self.0[i] = MaybeUninit::new(word);
    }

    #[inline(always)]
    fn at(&self, i: usize) -> u32 {
        // SAFETY: see above.
        unsafe { self.0[i].assume_init() }
    }
}

#[inline(always)]
fn load<const N: usize>(skb: *mut __sk_buff, offset: u32, to: &mut Words<N>) -> bool {
    // SAFETY: the length is that of the array.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, to.0.as_mut_ptr().cast(), (N * 4) as u32) == 0 }
}
