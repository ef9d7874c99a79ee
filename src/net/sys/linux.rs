//! Linux: `recvmmsg`, `sendmmsg`, IP_PKTINFO, SO_MEMINFO.
//!
//! What points to what: `headers[i]` (one `mmsghdr` per slot) points to `slots[i]`, which holds the peer's address, the
//! control buffer and the iovec; a receive slot's iovec points into `memory`. All three are allocated once and never
//! move; only what the kernel overwrites (`msg_namelen`, `msg_controllen`, `msg_flags`) is reset between calls.
//!
//! # Safety
//! The arrays are owned through raw pointers ([`Fixed`]), so that the pointers stored in them stay valid while Rust
//! looks at the contents between calls. Every pointer that the kernel gets lies in an array owned by the same value,
//! which is borrowed mutably for the whole call.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::ptr;
use std::time::Duration;

use libc::{c_int, c_void, socklen_t};
use mio::net::UdpSocket;

use super::{Datagram, Os, Outgoing, Received, RecvSlots, SendSlots};

/// See the module.
pub struct Linux;

/// Room for one `in6_pktinfo` (40 bytes with its header) and for what a later kernel may add in front of it.
const CONTROL: usize = 64;

/// Slots are 65,536 bytes apart, and the first bytes of each message are what is looked at: without a stagger they
/// would all compete for the same few sets of the first-level cache. An odd number of cache lines visits every set.
const STAGGER: usize = 9 * 64;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

#[repr(C)]
#[derive(Clone, Copy)]
struct Slot {
    iov: libc::iovec,
    // sockaddr_in6 is the longest address that a UDP socket over IP has; sockaddr_in is a prefix of the same memory.
    name: libc::sockaddr_in6,
    control: Control,
}

/// An array with a stable address, owned through a raw pointer.
struct Fixed<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: Fixed owns its elements like a Box<[T]> does.
unsafe impl<T: Send> Send for Fixed<T> {}

impl<T: Clone> Fixed<T> {
    fn new(items: Vec<T>) -> Self {
        let boxed = items.into_boxed_slice();
        let len = boxed.len();
        Fixed { start: Box::into_raw(boxed).cast::<T>(), len }
    }
}

impl<T> Fixed<T> {
    fn as_slice(&self) -> &[T] {
        // SAFETY: start and len come from a boxed slice that lives as long as self; borrowed with self.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    fn as_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and self is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl<T> Drop for Fixed<T> {
    fn drop(&mut self) {
        // SAFETY: start and len are what Box::into_raw gave; dropped once.
        drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(self.start, self.len)) });
    }
}

fn zeroed_slot() -> Slot {
    // SAFETY: Slot is plain C data; all zeroes is a value of it.
    unsafe { mem::zeroed() }
}

fn zeroed_header() -> libc::mmsghdr {
    // SAFETY: mmsghdr is plain C data; all zeroes is a value of it.
    unsafe { mem::zeroed() }
}

/// The headers and slots of one direction.
struct Messages {
    headers: Fixed<libc::mmsghdr>,
    slots: Fixed<Slot>,
}

// SAFETY: the raw pointers in headers and slots lead only into memory that the same owner (Slots, Sender) holds, or
// are rewritten before each use.
unsafe impl Send for Messages {}

impl Messages {
    fn new(count: usize) -> Self {
        let mut messages = Messages {
            headers: Fixed::new(vec![zeroed_header(); count]),
            slots: Fixed::new(vec![zeroed_slot(); count]),
        };
        let first = messages.slots.start;
        for (i, header) in messages.headers.as_mut().iter_mut().enumerate() {
            // SAFETY: i is below the number of slots.
            let slot = unsafe { first.add(i) };
            // SAFETY: slot points to a live Slot; only addresses of its fields are taken.
            unsafe {
                header.msg_hdr.msg_iov = &raw mut (*slot).iov;
                header.msg_hdr.msg_iovlen = 1;
                header.msg_hdr.msg_name = (&raw mut (*slot).name).cast::<c_void>();
                header.msg_hdr.msg_control = (&raw mut (*slot).control).cast::<c_void>();
            }
        }
        messages
    }
}

/// Receive slots: `memory` has one staggered stretch per slot.
pub struct Slots {
    messages: Messages,
    memory: Fixed<u8>,
    stride: usize,
    slot_len: usize,
    filled: usize,
}

impl Slots {
    /// What the kernel writes into a header, back to what it reads from it.
    fn reset(&mut self, count: usize) {
        for header in &mut self.messages.headers.as_mut()[..count] {
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in6>() as socklen_t;
            header.msg_hdr.msg_controllen = CONTROL as _;
            header.msg_hdr.msg_flags = 0;
        }
    }
}

impl Slots {
    fn account(&self, drained: bool) -> Received {
        let mut received = Received { count: self.filled, bytes: 0, truncated: 0, drained };
        for header in &self.messages.headers.as_slice()[..self.filled] {
            received.bytes += u64::from(header.msg_len).min(self.slot_len as u64);
            received.truncated += u64::from(header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0);
        }
        received
    }
}

impl RecvSlots for Slots {
    fn new(slots: usize, slot_len: usize) -> Self {
        let stride = slot_len.next_multiple_of(64) + STAGGER;
        // A zeroed allocation of this size comes as fresh pages from the kernel: untouched ones cost nothing.
        let memory = Fixed::new(vec![0u8; slots * stride]);
        let mut messages = Messages::new(slots);
        for (i, slot) in messages.slots.as_mut().iter_mut().enumerate() {
            // SAFETY: i * stride + slot_len lies within memory.
            slot.iov.iov_base = unsafe { memory.start.add(i * stride) }.cast::<c_void>();
            slot.iov.iov_len = slot_len;
        }
        let mut this = Slots { messages, memory, stride, slot_len, filled: 0 };
        this.reset(slots);
        this
    }

    fn recv(&mut self, socket: &UdpSocket) -> io::Result<Received> {
        self.reset(self.filled);
        self.filled = 0;
        let slots = self.messages.headers.len;
        loop {
            // SAFETY: `slots` headers lie at this address, and each points to its slot and its stretch of memory with
            // the true lengths (module head); self is borrowed mutably during the call.
            let got = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    self.messages.headers.start,
                    slots as u32,
                    libc::MSG_DONTWAIT as _,
                    ptr::null_mut(),
                )
            };
            if got >= 0 {
                self.filled = got as usize;
                // Fewer than asked for: the kernel met EAGAIN on the next one. (Another error there would be kept in
                // the socket and come with the next call; UDP sockets have none that is not an arrival as well.)
                return Ok(self.account(self.filled < slots));
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Ok(self.account(true)),
                _ => return Err(error),
            }
        }
    }

    fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        let limit = self.slot_len;
        let headers = &self.messages.headers.as_slice()[..self.filled];
        let slots = self.messages.slots.as_slice();
        self.memory.as_mut().chunks_exact_mut(self.stride).zip(headers.iter().zip(slots)).filter_map(
            move |(memory, (header, slot))| {
                let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
                Some(Datagram {
                    data: &mut memory[..(header.msg_len as usize).min(limit)],
                    peer: read_addr(&slot.name, header.msg_hdr.msg_namelen)?,
                    local: local_address(header),
                    truncated,
                })
            },
        )
    }
}

/// `None` for a family that is not IP (cannot happen on our sockets, and is skipped rather than trusted).
fn read_addr(name: &libc::sockaddr_in6, len: socklen_t) -> Option<SocketAddr> {
    let len = len as usize;
    if c_int::from(name.sin6_family) == libc::AF_INET && len >= size_of::<libc::sockaddr_in>() {
        // SAFETY: the kernel wrote a sockaddr_in here (family and length say so), which is shorter than sockaddr_in6
        // and needs no stricter alignment.
        let v4 = unsafe { &*ptr::from_ref(name).cast::<libc::sockaddr_in>() };
        let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
        Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(v4.sin_port))))
    } else if c_int::from(name.sin6_family) == libc::AF_INET6 && len >= size_of::<libc::sockaddr_in6>() {
        let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
        let port = u16::from_be(name.sin6_port);
        Some(SocketAddr::V6(SocketAddrV6::new(ip, port, name.sin6_flowinfo, name.sin6_scope_id)))
    } else {
        None
    }
}

/// Returns the length of what was written.
fn write_addr(name: &mut libc::sockaddr_in6, addr: &SocketAddr) -> socklen_t {
    match addr {
        SocketAddr::V4(v4) => {
            // SAFETY: sockaddr_in is shorter than sockaddr_in6, needs no stricter alignment, and both are plain data.
            let out = unsafe { &mut *ptr::from_mut(name).cast::<libc::sockaddr_in>() };
            *out = libc::sockaddr_in {
                sin_family: libc::AF_INET as _,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                sin_zero: [0; 8],
            };
            size_of::<libc::sockaddr_in>() as socklen_t
        }
        SocketAddr::V6(v6) => {
            *name = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as _,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            size_of::<libc::sockaddr_in6>() as socklen_t
        }
    }
}

/// The address to answer from, out of IP_PKTINFO or IPV6_PKTINFO.
fn local_address(header: &libc::mmsghdr) -> Option<IpAddr> {
    if header.msg_hdr.msg_controllen == 0 {
        return None;
    }
    // SAFETY: the kernel filled msg_control with msg_controllen bytes of control messages; the header is not changed.
    let mut cmsg = unsafe { libc::CMSG_FIRSTHDR(&header.msg_hdr) };
    while !cmsg.is_null() {
        // SAFETY: not null, so a whole cmsghdr lies within the control buffer, which is aligned for it.
        let head = unsafe { &*cmsg };
        // SAFETY: as above; CMSG_DATA is the address behind it.
        let data = unsafe { libc::CMSG_DATA(cmsg) };
        if (head.cmsg_level, head.cmsg_type) == (libc::IPPROTO_IP, libc::IP_PKTINFO) {
            // SAFETY: level and type say that an in_pktinfo follows; it may be unaligned.
            let info = unsafe { ptr::read_unaligned(data.cast::<libc::in_pktinfo>()) };
            // ipi_addr is what the packet was sent to (perhaps a multicast group), ipi_spec_dst the address of ours.
            return Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr))));
        }
        if (head.cmsg_level, head.cmsg_type) == (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) {
            // SAFETY: level and type say that an in6_pktinfo follows; it may be unaligned.
            let info = unsafe { ptr::read_unaligned(data.cast::<libc::in6_pktinfo>()) };
            let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
            // A multicast address cannot be a source; the kernel chooses one.
            return if ip.is_multicast() { None } else { Some(IpAddr::V6(ip)) };
        }
        // SAFETY: cmsg came from this header.
        cmsg = unsafe { libc::CMSG_NXTHDR(&header.msg_hdr, cmsg) };
    }
    None
}

/// Writes the source address as a control message; returns its length.
fn write_source(header: &mut libc::msghdr, from: &IpAddr) -> usize {
    fn put<T>(header: &mut libc::msghdr, level: c_int, kind: c_int, info: T) -> usize {
        const { assert!(size_of::<T>() + 16 <= CONTROL) };
        // SAFETY: pure arithmetic.
        let (space, len) =
            unsafe { (libc::CMSG_SPACE(size_of::<T>() as u32) as usize, libc::CMSG_LEN(size_of::<T>() as u32)) };
        header.msg_controllen = space as _;
        // SAFETY: msg_control points to CONTROL aligned bytes, and space is no more than that (asserted above).
        unsafe {
            let cmsg = libc::CMSG_FIRSTHDR(header);
            (*cmsg).cmsg_level = level;
            (*cmsg).cmsg_type = kind;
            (*cmsg).cmsg_len = len as _;
            ptr::write_unaligned(libc::CMSG_DATA(cmsg).cast::<T>(), info);
        }
        space
    }
    match from {
        IpAddr::V4(ip) => {
            let info = libc::in_pktinfo {
                // No interface: the route decides, only the source address is fixed.
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(*ip).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            put(header, libc::IPPROTO_IP, libc::IP_PKTINFO, info)
        }
        IpAddr::V6(ip) => {
            let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: 0 };
            put(header, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
        }
    }
}

/// Send headers; they are pointed at the arena anew for each call.
pub struct Sender {
    messages: Messages,
}

impl SendSlots for Sender {
    fn new(slots: usize) -> Self {
        Sender { messages: Messages::new(slots) }
    }

    fn send(&mut self, socket: &UdpSocket, arena: &[u8], batch: &[Outgoing]) -> io::Result<usize> {
        let headers = self.messages.headers.as_mut();
        let slots = self.messages.slots.as_mut();
        let count = batch.len().min(headers.len());
        for ((header, slot), out) in headers.iter_mut().zip(slots).zip(batch) {
            let data = &arena[out.start as usize..out.start as usize + out.len as usize];
            // sendmmsg only reads through the iovec.
            slot.iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast::<c_void>(), iov_len: data.len() };
            header.msg_hdr.msg_namelen = write_addr(&mut slot.name, &out.to);
            header.msg_hdr.msg_controllen = match &out.from {
                Some(ip) => write_source(&mut header.msg_hdr, ip) as _,
                None => 0,
            };
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        loop {
            // SAFETY: `count` headers lie at this address; each points to its slot, and the iovec to a range of arena,
            // which is borrowed for the call.
            let sent =
                unsafe { libc::sendmmsg(socket.as_raw_fd(), self.messages.headers.start, count as u32, flags as _) };
            if sent > 0 {
                return Ok(sent as usize);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

fn set_option(fd: c_int, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: value is a c_int on the stack, and its length is given.
    let result = unsafe {
        libc::setsockopt(fd, level, name, (&raw const value).cast::<c_void>(), size_of::<c_int>() as socklen_t)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Os for Linux {
    type Recv = Slots;
    type Send = Sender;

    fn enable_pktinfo(socket: &socket2::Socket, ipv6: bool) -> io::Result<bool> {
        let (level, name) =
            if ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO) } else { (libc::IPPROTO_IP, libc::IP_PKTINFO) };
        set_option(socket.as_raw_fd(), level, name, 1)?;
        Ok(true)
    }

    fn share_port(socket: &socket2::Socket) -> io::Result<()> {
        socket.set_reuse_port(true)
    }

    fn own_groups_only(socket: &socket2::Socket) -> io::Result<()> {
        if socket.domain()? == socket2::Domain::IPV6 {
            socket.set_multicast_all_v6(false)
        } else {
            socket.set_multicast_all_v4(false)
        }
    }

    fn receive_drops(socket: &UdpSocket) -> Option<u64> {
        // From linux/sock_diag.h: SK_MEMINFO_VARS values, of which SK_MEMINFO_DROPS is the last.
        const VARS: usize = 9;
        const DROPS: usize = 8;
        const SO_MEMINFO: c_int = 55;
        let mut info = [0u32; VARS];
        let mut len = size_of_val(&info) as socklen_t;
        // SAFETY: info has len bytes.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_MEMINFO,
                (&raw mut info).cast::<c_void>(),
                &raw mut len,
            )
        };
        (result == 0 && len as usize >= size_of_val(&info)).then(|| u64::from(info[DROPS]))
    }

    fn wait_writable(socket: &UdpSocket, limit: Duration) {
        let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        let millis = c_int::try_from(limit.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: one pollfd on the stack. The result does not matter: the caller tries again either way.
        unsafe { libc::poll(&raw mut poll, 1, millis) };
    }
}
