//! Waiting for handles: mio's readiness model (epoll, kqueue). On Windows `windows/` has the same names over a
//! completion port.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};

pub use mio::event::Event;
pub use mio::net::{TcpListener, TcpStream, UdpSocket};
pub use mio::{Events, Poll, Registry, Waker};
use socket2::{Domain, Protocol, Socket, Type};

use super::Backend;

/// There is one way to wait here.
pub fn poll(_: Backend) -> io::Result<Poll> {
    Poll::new()
}

/// What is there, without waiting.
pub fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    stream.read(buffer)
}

/// As much as goes, without waiting.
pub fn write(mut stream: &TcpStream, data: &[u8]) -> io::Result<usize> {
    stream.write(data)
}

/// What a completion port has in hand; there is none here.
pub fn operations(_: &Registry) -> Option<(usize, u64)> {
    None
}

/// A socket that is being connected: writable once that is decided. Its local address comes with it.
pub fn connect(peer: SocketAddr, local: Option<IpAddr>) -> io::Result<(TcpStream, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(peer), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(ip) = local {
        socket.bind(&SocketAddr::new(ip, 0).into())?;
    }
    match socket.connect(&peer.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let bound = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    Ok((TcpStream::from_std(socket.into()), bound))
}
