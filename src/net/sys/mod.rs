//! The contract with the operating system: all that `net` needs of it and that `std`, `mio` and `socket2` do not give.
//!
//! One file per system implements [`Os`]: `linux.rs` with `recvmmsg`/`sendmmsg` and IP_PKTINFO, `windows/` over a
//! completion port, `portable.rs` with `recv_from`/`send_to` for everything else. The portable one is compiled everywhere,
//! so that tests run both and compare them. `polling` has the names by which sockets are waited for: mio's, or on Windows
//! the port under the same names.
//!
//! Sockets handed in are non-blocking; no function here waits, except [`Os::wait_writable`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use polling::UdpSocket;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(windows))]
pub mod polling;
#[cfg(windows)]
#[path = "windows/mod.rs"]
pub mod polling;
mod portable;

#[cfg(target_os = "linux")]
pub use linux::Linux;
pub use portable::Portable;

#[cfg(target_os = "linux")]
pub type Native = Linux;
#[cfg(windows)]
pub type Native = polling::Windows;
#[cfg(not(any(target_os = "linux", windows)))]
pub type Native = Portable;

/// How the leader waits for sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// The system's best: epoll or kqueue; on Windows a completion port.
    #[default]
    System,
    /// mio's readiness model. The same but on Windows, where it is there to be compared.
    Readiness,
}

/// One received datagram, in its slot of the batch.
pub struct Datagram<'a> {
    /// The payload; may be changed in place (the parser writes terminators into it).
    pub data: &'a mut [u8],
    pub peer: SocketAddr,
    /// The address of ours that was asked, when the system told it (wildcard sockets on Linux); the answer is to leave
    /// from it. `None`: the socket's own address is the only one, or unknown.
    pub local: Option<IpAddr>,
    /// The datagram was longer than its slot; the rest is lost.
    pub truncated: bool,
}

/// What one receive call brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Slots filled, in order of arrival.
    pub count: usize,
    /// Bytes of payload in them.
    pub bytes: u64,
    /// How many were longer than their slot.
    pub truncated: u64,
    /// The system said that nothing more is there. Only then will the (edge-triggered) reactor report the next arrival.
    pub drained: bool,
}

/// One datagram to be sent: a range of the arena, and where it goes.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing {
    pub start: u32,
    pub len: u32,
    /// Which of the sender's sockets; the sender's business.
    pub socket: u32,
    pub to: SocketAddr,
    /// Source address to be used, of the same family as `to`; `None` leaves it to the socket.
    pub from: Option<IpAddr>,
}

/// Buffers for one batch of received datagrams.
pub trait RecvSlots: Send {
    /// `slots` buffers of `slot_len` bytes (both at least 1). Memory is touched only when a datagram lands in it.
    fn new(slots: usize, slot_len: usize) -> Self;

    /// Fills slots from the first on, at most all of them.
    ///
    /// Post: `count` slots hold datagrams; `drained` is false when the slots ran out first or an error cut the
    /// call short. `WouldBlock` is not an error: it is no datagrams and `drained: true`. An error concerns this call alone;
    /// the socket may be read again.
    fn recv(&mut self, socket: &UdpSocket) -> io::Result<Received>;

    /// The datagrams of the last [`RecvSlots::recv`].
    fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>>;
}

/// Headers for one batch of datagrams to be sent.
pub trait SendSlots: Send {
    fn new(slots: usize) -> Self;

    /// Sends a prefix of `batch`, which is not empty and not longer than `slots`; the ranges lie within `arena`.
    ///
    /// Post: `Ok(n)`: the first n (at least 1) were taken by the system. `Err`: none was, and the error belongs to the
    /// first of them (or, for `ConnectionRefused`, to an earlier datagram of this socket). No SIGPIPE.
    fn send(&mut self, socket: &UdpSocket, arena: &[u8], batch: &[Outgoing]) -> io::Result<usize>;
}

/// One operating system.
pub trait Os: 'static {
    type Recv: RecvSlots;
    type Send: SendSlots;

    /// Asks for the local address of each datagram received. `Ok(false)`: this system cannot tell it.
    fn enable_pktinfo(socket: &socket2::Socket, ipv6: bool) -> io::Result<bool>;

    /// Lets several sockets share one port, with the system spreading datagrams over them by source. Called before
    /// bind. `Unsupported` where the system cannot.
    fn share_port(socket: &socket2::Socket) -> io::Result<()>;

    /// The socket gets multicast of the groups that it joined itself, not of those that anybody on the machine joined.
    fn own_groups_only(socket: &socket2::Socket) -> io::Result<()>;

    /// Datagrams that the system threw away because the socket's receive buffer was full; `None` where it does not say.
    fn receive_drops(socket: &UdpSocket) -> Option<u64>;

    /// Waits until the socket takes data again, at most `limit`. May return early.
    fn wait_writable(socket: &UdpSocket, limit: Duration);
}
