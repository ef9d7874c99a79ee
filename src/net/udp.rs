//! UDP listeners, and the batches that read them.
//!
//! A UDP socket is a *free* handle: any number of threads may read it at the same time, each into a batch of its own.
//! What keeps a datagram from being stranded is one rule, kept by [`RecvBatch::recv`] itself: a read that ended before
//! the socket said 'would block' marks the listener for the next leader (`reactor.rs`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, Protocol, Socket, Type};

use super::BATCH;
use super::error::{BindError, Transport};
use super::reactor::Mark;
use super::reply::{ReplyTo, UdpRoute};
use super::sys::{Datagram, Native, Os, RecvSlots, polling};
use crate::observe::{Counter, Text};

/// Longest payload of a UDP datagram over IP, rounded up; nothing that arrives is longer than its slot.
const SLOT: usize = 65_536;

/// Reads of one listener that may fail in a row before it is left to the next arrival; without a bound, an error that
/// stays would keep the leader spinning.
const ERRORS_IN_A_ROW: u32 = 16;

/// How a UDP port is opened.
#[derive(Debug, Clone)]
pub struct UdpOptions {
    /// Receive buffer asked for, in bytes (SO_RCVBUF). The system may give less without saying so (on Linux
    /// `net.core.rmem_max`); what is too much for it is dropped and counted (`partyline_udp_receive_drops_total`).
    /// Default 4 MiB; 0 leaves the system's default.
    pub recv_buffer: usize,
    /// Send buffer asked for, in bytes (SO_SNDBUF). Default 1 MiB; 0 leaves the system's default.
    pub send_buffer: usize,
    /// Sockets that share the port (SO_REUSEPORT): the system spreads peers over them, which pays where more than one
    /// core does nothing but read. Default 1. More than one only on systems that have SO_REUSEPORT.
    pub sockets: usize,
    /// An IPv6 wildcard takes IPv6 only, so that an IPv4 wildcard can have the same port. Default true.
    pub v6_only: bool,
    /// Multicast groups to join, e.g. 224.0.1.75 (sip.mcast.net, RFC 3261 section 10.2.6); only with a wildcard
    /// address, for a socket bound to another one gets no multicast. Default none.
    pub multicast: Vec<IpAddr>,
    /// Index of the interface on which the groups are joined. Default 0: the system chooses by route.
    pub multicast_interface: u32,
}

impl Default for UdpOptions {
    fn default() -> Self {
        UdpOptions {
            recv_buffer: 4 << 20,
            send_buffer: 1 << 20,
            sockets: 1,
            v6_only: true,
            multicast: Vec::new(),
            multicast_interface: 0,
        }
    }
}

/// Why a datagram could not be sent; the labels of `partyline_udp_send_errors_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError {
    /// The send buffer stayed full.
    BufferFull,
    /// Longer than a datagram can be.
    TooLong,
    /// No route to the host or its network.
    Unreachable,
    /// A firewall rule or a missing permission.
    Denied,
    Other,
}

impl SendError {
    const ALL: [(SendError, &'static str); 5] = [
        (SendError::BufferFull, "buffer_full"),
        (SendError::TooLong, "too_long"),
        (SendError::Unreachable, "unreachable"),
        (SendError::Denied, "denied"),
        (SendError::Other, "other"),
    ];

    pub(super) fn of(error: &io::Error) -> SendError {
        match error.kind() {
            io::ErrorKind::WouldBlock => SendError::BufferFull,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => {
                SendError::Unreachable
            }
            io::ErrorKind::PermissionDenied => SendError::Denied,
            _ if is_too_long(error) => SendError::TooLong,
            _ => SendError::Other,
        }
    }
}

#[cfg(unix)]
fn is_too_long(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

#[cfg(not(unix))]
fn is_too_long(error: &io::Error) -> bool {
    const WSAEMSGSIZE: i32 = 10040;
    error.raw_os_error() == Some(WSAEMSGSIZE)
}

/// What one listener has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UdpFigures {
    pub received: u64,
    pub sent: u64,
    pub send_errors: u64,
}

/// Figures of one listener; added to once per batch.
#[derive(Default)]
pub(super) struct UdpCounters {
    received: Counter,
    received_bytes: Counter,
    receive_batches: Counter,
    receive_errors: Counter,
    truncated: Counter,
    pub(super) sent: Counter,
    pub(super) sent_bytes: Counter,
    pub(super) send_batches: Counter,
    send_errors: [Counter; SendError::ALL.len()],
}

impl UdpCounters {
    pub(super) fn send_error(&self, kind: SendError) {
        self.send_errors[kind as usize].inc();
    }
}

/// One UDP socket that serves a port. Opened here, then given to [`super::Reactor::add_udp`], which shares it.
pub struct UdpListener {
    socket: polling::UdpSocket,
    local: SocketAddr,
    pktinfo: bool,
    pub(super) mark: Mark,
    errors_in_a_row: AtomicU32,
    pub(super) counters: UdpCounters,
}

impl UdpListener {
    /// Opens `options.sockets` sockets on `addr` (port 0: one free port for all of them).
    ///
    /// A port that anybody has is refused, also when its owner set SO_REUSEPORT: with sharing allowed the kernel would
    /// give half of the traffic to each, so a plain bind is tried first.
    pub fn bind(addr: SocketAddr, options: &UdpOptions) -> Result<Vec<UdpListener>, BindError> {
        Self::bind_on::<Native>(addr, options)
    }

    /// As [`UdpListener::bind`], with the system's file named.
    pub fn bind_on<O: Os>(addr: SocketAddr, options: &UdpOptions) -> Result<Vec<UdpListener>, BindError> {
        let count = options.sockets.max(1);
        let mut addr = addr;
        if count > 1 {
            let probe = open::<O>(addr, options, false)?;
            // Port 0: the kernel chose; the others join it.
            addr = local_of(&probe, addr)?;
        }
        (0..count).map(|_| Self::open_one::<O>(addr, options, count > 1)).collect()
    }

    fn open_one<O: Os>(addr: SocketAddr, options: &UdpOptions, shared: bool) -> Result<UdpListener, BindError> {
        let failed = |step: &str| {
            let step = step.to_owned();
            move |source| BindError { transport: Transport::Udp, addr, step, source }
        };
        let socket = open::<O>(addr, options, shared)?;
        let local = local_of(&socket, addr)?;
        // A socket with one address of its own answers from it anyway, and pays nothing for being told.
        let pktinfo = addr.ip().is_unspecified()
            && O::enable_pktinfo(&socket, addr.is_ipv6()).map_err(failed("ask for packet information"))?;
        if !options.multicast.is_empty() {
            if !addr.ip().is_unspecified() {
                let wrong = io::Error::new(io::ErrorKind::InvalidInput, "multicast needs a wildcard address");
                return Err(failed("join multicast groups")(wrong));
            }
            O::own_groups_only(&socket).map_err(failed("set IP_MULTICAST_ALL"))?;
        }
        let interface = options.multicast_interface;
        for group in &options.multicast {
            match group {
                IpAddr::V4(group) => {
                    socket.join_multicast_v4_n(group, &socket2::InterfaceIndexOrAddress::Index(interface))
                }
                IpAddr::V6(group) => socket.join_multicast_v6(group, interface),
            }
            .map_err(failed(&format!("join multicast group {group}")))?;
        }
        socket.set_nonblocking(true).map_err(failed("set non-blocking"))?;
        Ok(UdpListener {
            socket: polling::UdpSocket::from_std(socket.into()),
            local,
            pktinfo,
            mark: Mark::default(),
            errors_in_a_row: AtomicU32::new(0),
            counters: UdpCounters::default(),
        })
    }

    /// The address bound to, with the port that the system chose if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Whether datagrams say which address of ours was asked.
    pub fn tells_local_address(&self) -> bool {
        self.pktinfo
    }

    /// The receive buffer that the system gave, in bytes.
    pub fn recv_buffer(&self) -> io::Result<usize> {
        buffer_sizes(self).map(|sizes| sizes.0)
    }

    /// The send buffer that the system gave, in bytes.
    pub fn send_buffer(&self) -> io::Result<usize> {
        buffer_sizes(self).map(|sizes| sizes.1)
    }

    /// Puts the listener before the next leader again, as if it had become readable.
    pub fn mark_readable(&self) {
        self.mark.set();
    }

    pub(super) fn socket(&self) -> &polling::UdpSocket {
        &self.socket
    }

    pub(super) fn parts_mut(&mut self) -> (&mut polling::UdpSocket, &mut Mark) {
        (&mut self.socket, &mut self.mark)
    }

    pub fn figures(&self) -> UdpFigures {
        UdpFigures {
            received: self.counters.received.get(),
            sent: self.counters.sent.get(),
            send_errors: self.counters.send_errors.iter().map(Counter::get).sum(),
        }
    }

    /// Writes the figures of `listeners`, labelled with the address that each serves.
    pub fn metrics(listeners: &[Arc<UdpListener>], out: &mut Text) {
        type Read = fn(&UdpListener) -> u64;
        let families: [(&str, &str, Read); 8] = [
            ("partyline_udp_received_total", "Datagrams received.", |l| l.counters.received.get()),
            ("partyline_udp_received_bytes_total", "Payload bytes received.", |l| l.counters.received_bytes.get()),
            ("partyline_udp_receive_batches_total", "Receive calls that brought something.", |l| {
                l.counters.receive_batches.get()
            }),
            ("partyline_udp_receive_errors_total", "Receive calls that failed.", |l| l.counters.receive_errors.get()),
            ("partyline_udp_truncated_total", "Datagrams longer than their slot.", |l| l.counters.truncated.get()),
            ("partyline_udp_sent_total", "Datagrams sent.", |l| l.counters.sent.get()),
            ("partyline_udp_sent_bytes_total", "Payload bytes sent.", |l| l.counters.sent_bytes.get()),
            ("partyline_udp_send_batches_total", "Batches sent.", |l| l.counters.send_batches.get()),
        ];
        let labels: Vec<String> =
            listeners.iter().enumerate().map(|(i, l)| format!("{}#{i}", l.local_addr())).collect();
        for (name, help, read) in families {
            for (listener, label) in listeners.iter().zip(&labels) {
                out.counter(name, help, &[("listener", label)], read(listener));
            }
        }
        for (listener, label) in listeners.iter().zip(&labels) {
            for ((_, reason), counter) in SendError::ALL.iter().zip(&listener.counters.send_errors) {
                let labels = [("listener", label.as_str()), ("reason", reason)];
                out.counter("partyline_udp_send_errors_total", "Datagrams not sent.", &labels, counter.get());
            }
        }
        for (listener, label) in listeners.iter().zip(&labels) {
            if let Some(drops) = Native::receive_drops(&listener.socket) {
                let help = "Datagrams that the system dropped because the receive buffer was full.";
                out.counter("partyline_udp_receive_drops_total", help, &[("listener", label)], drops);
            }
        }
    }
}

fn open<O: Os>(addr: SocketAddr, options: &UdpOptions, shared: bool) -> Result<Socket, BindError> {
    let failed =
        |step: &'static str| move |source| BindError { transport: Transport::Udp, addr, step: step.to_owned(), source };
    let socket =
        Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP)).map_err(failed("open a socket"))?;
    if addr.is_ipv6() {
        socket.set_only_v6(options.v6_only).map_err(failed("set IPV6_V6ONLY"))?;
    }
    if options.recv_buffer > 0 {
        socket.set_recv_buffer_size(options.recv_buffer).map_err(failed("set SO_RCVBUF"))?;
    }
    if options.send_buffer > 0 {
        socket.set_send_buffer_size(options.send_buffer).map_err(failed("set SO_SNDBUF"))?;
    }
    if shared {
        O::share_port(&socket).map_err(failed("set SO_REUSEPORT"))?;
    }
    socket.bind(&addr.into()).map_err(failed("bind"))?;
    Ok(socket)
}

fn local_of(socket: &Socket, addr: SocketAddr) -> Result<SocketAddr, BindError> {
    let step = "read the local address".to_owned();
    match socket.local_addr().map(|local| local.as_socket()) {
        Ok(Some(local)) => Ok(local),
        Ok(None) => Err(BindError { transport: Transport::Udp, addr, step, source: io::ErrorKind::InvalidData.into() }),
        Err(source) => Err(BindError { transport: Transport::Udp, addr, step, source }),
    }
}

#[cfg(unix)]
fn buffer_sizes(listener: &UdpListener) -> io::Result<(usize, usize)> {
    use std::os::fd::AsFd;
    let fd = listener.socket.as_fd();
    let socket = socket2::SockRef::from(&fd);
    Ok((socket.recv_buffer_size()?, socket.send_buffer_size()?))
}

#[cfg(windows)]
fn buffer_sizes(listener: &UdpListener) -> io::Result<(usize, usize)> {
    use std::os::windows::io::AsSocket;
    let fd = listener.socket.as_socket();
    let socket = socket2::SockRef::from(&fd);
    Ok((socket.recv_buffer_size()?, socket.send_buffer_size()?))
}

/// Buffers for [`BATCH`] datagrams, allocated once and used again and again: one per thread that reads.
pub struct RecvBatch<O: Os = Native> {
    slots: O::Recv,
    drained: bool,
}

impl RecvBatch {
    /// [`BATCH`] slots that hold any datagram. About 4 MiB of address space; only what datagrams touched is memory.
    pub fn new() -> Self {
        Self::on()
    }
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl<O: Os> RecvBatch<O> {
    /// As [`RecvBatch::new`], with the system's file named.
    pub fn on() -> Self {
        Self::with_slots(BATCH, SLOT)
    }

    /// `slots` slots of `slot_len` bytes; a longer datagram is cut and says so.
    pub fn with_slots(slots: usize, slot_len: usize) -> Self {
        RecvBatch { slots: O::Recv::new(slots, slot_len), drained: true }
    }

    /// Reads what is there, at most one batch; the datagrams of the last read are forgotten. Returns how many came;
    /// 0 is normal (another thread was faster). Never waits.
    ///
    /// If more may be there, the listener has been marked in its reactor before this returns, so leadership may be
    /// given away at any time afterwards.
    pub fn recv(&mut self, listener: &UdpListener) -> io::Result<usize> {
        let counters = &listener.counters;
        match self.slots.recv(&listener.socket) {
            Ok(received) => {
                self.drained = received.drained;
                if !received.drained {
                    listener.mark.set();
                }
                if received.count > 0 {
                    if listener.errors_in_a_row.load(Ordering::Relaxed) != 0 {
                        listener.errors_in_a_row.store(0, Ordering::Relaxed);
                    }
                    counters.received.add(received.count as u64);
                    counters.received_bytes.add(received.bytes);
                    counters.receive_batches.inc();
                    if received.truncated > 0 {
                        counters.truncated.add(received.truncated);
                    }
                }
                Ok(received.count)
            }
            Err(error) => {
                counters.receive_errors.inc();
                if listener.errors_in_a_row.fetch_add(1, Ordering::Relaxed) < ERRORS_IN_A_ROW {
                    listener.mark.set();
                }
                Err(error)
            }
        }
    }

    /// Whether the last read emptied the socket.
    pub fn drained(&self) -> bool {
        self.drained
    }

    /// The datagrams of the last read, in order of arrival.
    pub fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        self.slots.datagrams()
    }
}

impl Datagram<'_> {
    /// Where the answer goes, for [`super::SendBatch::push_udp`].
    pub fn route(&self) -> UdpRoute {
        UdpRoute { peer: self.peer, local: self.local }
    }

    /// Where the answer goes, to be kept until it is known. `listener` is the one that was read.
    pub fn reply_to(&self, listener: &Arc<UdpListener>) -> ReplyTo {
        ReplyTo::Udp { listener: Arc::clone(listener), route: self.route() }
    }
}
