//! Windows: a completion port under the names of mio's readiness model, or mio's own by option, so that both can be
//! compared.
//!
//! ```text
//!   Poll ── Port ── completions ──► Op::complete ──► queue of its socket, and a finding for the reactor
//!                                                        ▲
//!   UdpSocket, TcpStream, TcpListener ── read, write, accept, which take from there ('would block': nothing there)
//! ```
//! | file | holds |
//! |---|---|
//! | `port`, `op` | the port; operations and their pool |
//! | `udp`, `tcp`, `accept` | one socket of each kind |
//! | `extension` | AcceptEx, ConnectEx, DisconnectEx |
//!
//! A socket is plain until it is registered; then it belongs to mio or to the port.
#![allow(clippy::vec_box, reason = "the system knows operations by their addresses")]

mod accept;
mod extension;
mod op;
mod port;
mod tcp;
mod udp;

use std::io::{self, Read, Write};
use std::mem::{MaybeUninit, replace};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::ops::Deref;
use std::os::windows::io::{AsSocket, BorrowedSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::event::Source;
use mio::{Interest, Token};
use socket2::{Domain, MaybeUninitSlice, Protocol, SockRef, Socket, Type};

use super::{Backend, Datagram, Os, Portable, Received, RecvSlots, portable};
use extension::Extensions;
use op::{DATAGRAM, Op};
use port::{Found, Port};

/// How the leader waits.
pub fn poll(backend: Backend) -> io::Result<Poll> {
    Ok(match backend {
        Backend::System => Poll { registry: Registry(Way::Port(Port::new()?)), readiness: None },
        Backend::Readiness => {
            let poll = mio::Poll::new()?;
            let registry = Registry(Way::Readiness(poll.registry().try_clone()?));
            Poll { registry, readiness: Some((poll, mio::Events::with_capacity(256))) }
        }
    })
}

enum Way {
    Readiness(mio::Registry),
    Port(Arc<Port>),
}

/// Where sockets are registered.
pub struct Registry(Way);

/// Something that can be registered.
pub trait Register {
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()>;
    fn deregister(&mut self, registry: &Registry) -> io::Result<()>;
}

impl Registry {
    pub fn try_clone(&self) -> io::Result<Registry> {
        Ok(Registry(match &self.0 {
            Way::Readiness(registry) => Way::Readiness(registry.try_clone()?),
            Way::Port(port) => Way::Port(Arc::clone(port)),
        }))
    }

    pub fn register(&self, socket: &mut impl Register, token: Token, interest: Interest) -> io::Result<()> {
        socket.register(self, token, interest)
    }

    pub fn deregister(&self, socket: &mut impl Register) -> io::Result<()> {
        socket.deregister(self)
    }
}

/// Operations that the system has, and how often a used socket was accepted on; `None` with mio.
pub fn operations(registry: &Registry) -> Option<(usize, u64)> {
    match &registry.0 {
        Way::Readiness(_) => None,
        Way::Port(port) => Some((port.ops.in_flight(), port.reused.load(Ordering::Relaxed))),
    }
}

/// See [`poll`].
pub struct Poll {
    registry: Registry,
    readiness: Option<(mio::Poll, mio::Events)>,
}

impl Poll {
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub fn poll(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        events.list.clear();
        if let Some((poll, found)) = &mut self.readiness {
            poll.poll(found, timeout)?;
            events.list.extend(found.iter().map(|event| Event {
                token: event.token(),
                readable: event.is_readable() || event.is_read_closed() || event.is_error(),
                writable: event.is_writable() || event.is_write_closed() || event.is_error(),
                closed: event.is_read_closed() || event.is_write_closed() || event.is_error(),
            }));
        } else if let Way::Port(port) = &self.registry.0 {
            let list = &mut events.list;
            let mut take = |found: Found| {
                // A batch of completions of one socket is one event.
                match list.last_mut().filter(|last: &&mut Event| last.token == found.token) {
                    Some(last) => {
                        last.readable |= found.readable;
                        last.writable |= found.writable;
                    }
                    None => list.push(Event {
                        token: found.token,
                        readable: found.readable,
                        writable: found.writable,
                        closed: false,
                    }),
                }
            };
            port.wait(timeout, &mut take)?;
        }
        Ok(())
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        if let Way::Port(port) = &self.registry.0 {
            // Sockets that close from now on take their operations from the port themselves.
            port.attended.store(false, Ordering::SeqCst);
            // Those that closed before have been told that somebody waits here.
            port.reap(|| port.leaving.load(Ordering::SeqCst) == 0);
            port.cut_all();
            port.reap(|| port.leaving.load(Ordering::SeqCst) == 0);
        }
    }
}

/// What one wait brought.
pub struct Events {
    list: Vec<Event>,
}

impl Events {
    pub fn with_capacity(count: usize) -> Events {
        Events { list: Vec::with_capacity(count) }
    }

    pub fn clear(&mut self) {
        self.list.clear();
    }

    pub fn iter(&self) -> impl Iterator<Item = &Event> {
        self.list.iter()
    }
}

/// As mio's.
pub struct Event {
    token: Token,
    readable: bool,
    writable: bool,
    closed: bool,
}

impl Event {
    pub fn token(&self) -> Token {
        self.token
    }

    pub fn is_readable(&self) -> bool {
        self.readable
    }

    pub fn is_writable(&self) -> bool {
        self.writable
    }

    pub fn is_read_closed(&self) -> bool {
        self.closed
    }

    pub fn is_write_closed(&self) -> bool {
        self.closed
    }

    pub fn is_error(&self) -> bool {
        false
    }
}

/// Ends a wait from any thread.
pub struct Waker(WakeWay);

enum WakeWay {
    Readiness(mio::Waker),
    Port(Arc<Port>),
}

impl Waker {
    pub fn new(registry: &Registry, token: Token) -> io::Result<Waker> {
        Ok(Waker(match &registry.0 {
            Way::Readiness(registry) => WakeWay::Readiness(mio::Waker::new(registry, token)?),
            Way::Port(port) => WakeWay::Port(Arc::clone(port)),
        }))
    }

    pub fn wake(&self) -> io::Result<()> {
        match &self.0 {
            WakeWay::Readiness(waker) => waker.wake(),
            WakeWay::Port(port) => port.wake(),
        }
    }
}

/// A socket's object held by its owner: letting go of it closes the socket.
pub struct Owned<T: Close>(Arc<T>);

/// What the end of an owner does; operations in flight keep the object itself.
pub trait Close {
    fn close(self: &Arc<Self>);
}

impl<T: Close> Deref for Owned<T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        &self.0
    }
}

impl<T: Close> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A UDP socket; non-blocking, as everything here.
pub enum UdpSocket {
    Plain(std::net::UdpSocket),
    Readiness(mio::net::UdpSocket),
    Port(Owned<udp::Udp>),
    /// Between two of the others.
    Gone,
}

impl UdpSocket {
    pub fn from_std(socket: std::net::UdpSocket) -> UdpSocket {
        UdpSocket::Plain(socket)
    }

    pub fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        match self {
            UdpSocket::Plain(socket) => receive(socket, buffer),
            UdpSocket::Readiness(socket) => socket.try_io(|| receive(socket, buffer)),
            UdpSocket::Port(socket) => socket.recv_from(buffer),
            UdpSocket::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    pub fn send_to(&self, data: &[u8], to: SocketAddr) -> io::Result<usize> {
        match self {
            UdpSocket::Plain(socket) => socket.send_to(data, to),
            UdpSocket::Readiness(socket) => socket.send_to(data, to),
            UdpSocket::Port(socket) => socket.send_to(data, to),
            UdpSocket::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// A datagram that is longer than the buffer is cut, as on other systems. Winsock calls that an error, for which std's
/// functions drop what came and from whom.
fn receive(socket: &impl AsSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    let whole = buffer.len();
    // SAFETY: the same bytes; what the system writes there is initialised, and nothing else is written.
    let room = unsafe { &mut *(std::ptr::from_mut(buffer) as *mut [MaybeUninit<u8>]) };
    let (len, flags, peer) = SockRef::from(socket).recv_from_vectored(&mut [MaybeUninitSlice::new(room)])?;
    let len = if flags.is_truncated() { whole } else { len };
    Ok((len, peer.as_socket().ok_or(io::ErrorKind::InvalidData)?))
}

impl AsSocket for UdpSocket {
    fn as_socket(&self) -> BorrowedSocket<'_> {
        match self {
            UdpSocket::Plain(socket) => socket.as_socket(),
            UdpSocket::Readiness(socket) => socket.as_socket(),
            UdpSocket::Port(socket) => socket.socket().as_socket(),
            UdpSocket::Gone => unreachable!("a registration puts a socket in its place"),
        }
    }
}

impl Register for UdpSocket {
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        let UdpSocket::Plain(socket) = replace(self, UdpSocket::Gone) else {
            return Err(io::ErrorKind::AlreadyExists.into());
        };
        *self = match &registry.0 {
            Way::Readiness(registry) => {
                let mut socket = mio::net::UdpSocket::from_std(socket);
                socket.register(registry, token, interest)?;
                UdpSocket::Readiness(socket)
            }
            Way::Port(port) => UdpSocket::Port(Owned(udp::Udp::start(socket, port, token)?)),
        };
        Ok(())
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match (self, &registry.0) {
            (UdpSocket::Readiness(socket), Way::Readiness(registry)) => socket.deregister(registry),
            _ => Ok(()),
        }
    }
}

/// A TCP connection.
pub enum TcpStream {
    Plain(std::net::TcpStream, Option<SocketAddr>),
    Readiness(mio::net::TcpStream),
    Port(Owned<tcp::Tcp>),
    Gone,
}

/// A socket that is being connected, once it is registered; its local address comes with it.
pub fn connect(peer: SocketAddr, local: Option<IpAddr>) -> io::Result<(TcpStream, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(peer), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    // ConnectEx wants a bound one.
    let any = if peer.is_ipv6() { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    socket.bind(&SocketAddr::new(local.unwrap_or(any), 0).into())?;
    let bound = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    Ok((TcpStream::Plain(socket.into(), Some(peer)), bound))
}

/// What is there, without waiting.
pub fn read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    match stream {
        TcpStream::Plain(stream, _) => (&*stream).read(buffer),
        TcpStream::Readiness(stream) => (&*stream).read(buffer),
        TcpStream::Port(stream) => stream.read(buffer),
        TcpStream::Gone => Err(io::ErrorKind::NotConnected.into()),
    }
}

/// As much as goes, without waiting.
pub fn write(stream: &TcpStream, data: &[u8]) -> io::Result<usize> {
    match stream {
        TcpStream::Plain(stream, _) => (&*stream).write(data),
        TcpStream::Readiness(stream) => (&*stream).write(data),
        TcpStream::Port(stream) => stream.write(data),
        TcpStream::Gone => Err(io::ErrorKind::NotConnected.into()),
    }
}

impl TcpStream {
    fn std(&self) -> io::Result<&std::net::TcpStream> {
        match self {
            TcpStream::Plain(stream, _) => Ok(stream),
            TcpStream::Port(stream) => Ok(stream.socket()),
            TcpStream::Readiness(_) | TcpStream::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        match self {
            TcpStream::Readiness(stream) => stream.take_error(),
            TcpStream::Port(stream) => Ok(stream.take_error()),
            _ => self.std()?.take_error(),
        }
    }

    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match self {
            TcpStream::Readiness(stream) => stream.peer_addr(),
            _ => self.std()?.peer_addr(),
        }
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            TcpStream::Readiness(stream) => stream.local_addr(),
            _ => self.std()?.local_addr(),
        }
    }

    pub fn set_nodelay(&self, on: bool) -> io::Result<()> {
        match self {
            TcpStream::Readiness(stream) => stream.set_nodelay(on),
            _ => self.std()?.set_nodelay(on),
        }
    }

    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            TcpStream::Readiness(stream) => stream.shutdown(how),
            TcpStream::Port(stream) => stream.shutdown(how),
            _ => self.std()?.shutdown(how),
        }
    }
}

impl Register for TcpStream {
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        *self = match (replace(self, TcpStream::Gone), &registry.0) {
            (TcpStream::Plain(stream, connect_to), Way::Readiness(registry)) => {
                if let Some(peer) = connect_to {
                    match SockRef::from(&stream).connect(&peer.into()) {
                        Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                        _ => {}
                    }
                }
                let mut stream = mio::net::TcpStream::from_std(stream);
                stream.register(registry, token, interest)?;
                TcpStream::Readiness(stream)
            }
            (TcpStream::Readiness(mut stream), Way::Readiness(registry)) => {
                stream.register(registry, token, interest)?;
                TcpStream::Readiness(stream)
            }
            (TcpStream::Plain(stream, connect_to), Way::Port(port)) => {
                port.associate(port::raw(&stream) as _)?;
                Extensions::get()?;
                let stream = tcp::Tcp::new(stream, port, false);
                match connect_to {
                    // A refusal comes as an event: the operation is started, and ends, in any case.
                    Some(peer) => drop(stream.connect(token, peer)),
                    None => stream.begin(token),
                }
                TcpStream::Port(Owned(stream))
            }
            (TcpStream::Port(stream), Way::Port(_)) => {
                stream.begin(token);
                TcpStream::Port(stream)
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(())
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match (self, &registry.0) {
            (TcpStream::Readiness(stream), Way::Readiness(registry)) => stream.deregister(registry),
            _ => Ok(()),
        }
    }
}

/// A listening socket.
pub enum TcpListener {
    Plain(std::net::TcpListener),
    Readiness(mio::net::TcpListener),
    Port(Owned<accept::Listener>),
    Gone,
}

impl TcpListener {
    pub fn from_std(listener: std::net::TcpListener) -> TcpListener {
        TcpListener::Plain(listener)
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            TcpListener::Plain(listener) => listener.local_addr(),
            TcpListener::Readiness(listener) => listener.local_addr(),
            TcpListener::Port(listener) => Ok(listener.local_addr()),
            TcpListener::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match self {
            TcpListener::Plain(listener) => {
                let (stream, peer) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok((TcpStream::Plain(stream, None), peer))
            }
            TcpListener::Readiness(listener) => {
                listener.accept().map(|(stream, peer)| (TcpStream::Readiness(stream), peer))
            }
            TcpListener::Port(listener) => {
                listener.accept().map(|(stream, peer)| (TcpStream::Port(Owned(stream)), peer))
            }
            TcpListener::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Register for TcpListener {
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        let TcpListener::Plain(listener) = replace(self, TcpListener::Gone) else {
            return Err(io::ErrorKind::AlreadyExists.into());
        };
        *self = match &registry.0 {
            Way::Readiness(registry) => {
                let mut listener = mio::net::TcpListener::from_std(listener);
                listener.register(registry, token, interest)?;
                TcpListener::Readiness(listener)
            }
            Way::Port(port) => TcpListener::Port(Owned(accept::Listener::start(listener, port, token)?)),
        };
        Ok(())
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match (self, &registry.0) {
            (TcpListener::Readiness(listener), Way::Readiness(registry)) => listener.deregister(registry),
            _ => Ok(()),
        }
    }
}

/// The contract on Windows: what has come on a port is lent out where it lies; everything else as in `portable`.
pub struct Windows;

impl Os for Windows {
    type Recv = Slots;
    type Send = portable::Sender;

    fn enable_pktinfo(socket: &Socket, ipv6: bool) -> io::Result<bool> {
        Portable::enable_pktinfo(socket, ipv6)
    }

    fn share_port(socket: &Socket) -> io::Result<()> {
        Portable::share_port(socket)
    }

    fn own_groups_only(socket: &Socket) -> io::Result<()> {
        Portable::own_groups_only(socket)
    }

    fn receive_drops(socket: &UdpSocket) -> Option<u64> {
        Portable::receive_drops(socket)
    }

    fn wait_writable(socket: &UdpSocket, limit: Duration) {
        Portable::wait_writable(socket, limit);
    }
}

/// Datagrams of one batch: the port's own operations, or copies where the socket is not on a port.
pub struct Slots {
    copies: portable::Slots,
    taken: Vec<Box<Op>>,
    /// Where they came from. Not the socket, which is to close though these are lent out.
    from: Option<Arc<Port>>,
    slots: usize,
    slot_len: usize,
}

impl RecvSlots for Slots {
    fn new(slots: usize, slot_len: usize) -> Self {
        let copies = portable::Slots::new(slots, slot_len);
        Slots { copies, taken: Vec::with_capacity(slots), from: None, slots, slot_len }
    }

    fn recv(&mut self, socket: &UdpSocket) -> io::Result<Received> {
        self.give_back();
        let UdpSocket::Port(udp) = socket else { return self.copies.recv(socket) };
        self.copies.forget();
        self.from = Some(Arc::clone(udp.port()));
        let drained = udp.take(&mut self.taken, self.slots);
        let lens = self.taken.iter().map(|op| op.len);
        Ok(Received {
            count: self.taken.len(),
            bytes: lens.clone().map(|len| len.min(self.slot_len) as u64).sum(),
            truncated: lens.filter(|&len| len > self.slot_len || len >= DATAGRAM).count() as u64,
            drained,
        })
    }

    fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        let limit = self.slot_len;
        let lent = self.taken.iter_mut().filter_map(move |op| {
            let (len, peer) = (op.len, op.peer()?);
            let truncated = len > limit || len >= DATAGRAM;
            Some(Datagram { data: &mut op.buffer[..len.min(limit)], peer, local: None, truncated })
        });
        self.copies.datagrams().chain(lent)
    }
}

impl Slots {
    fn give_back(&mut self) {
        if let Some(port) = self.from.take() {
            self.taken.drain(..).for_each(|op| port.ops.give(op));
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        self.give_back();
    }
}
