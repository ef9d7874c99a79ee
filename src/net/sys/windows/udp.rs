//! UDP over the port: several receives outstanding per socket, what has come in a queue, sends that end on their own.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mio::Token;
use parking_lot::Mutex;
use windows_sys::Win32::Foundation::{ERROR_MORE_DATA, ERROR_PORT_UNREACHABLE};
use windows_sys::Win32::Networking::WinSock::{
    SIO_UDP_CONNRESET, SOCKADDR_STORAGE, WSAECONNRESET, WSAEMSGSIZE, WSAENETRESET, WSAIoctl, WSARecvFrom, WSASendTo,
};

use super::Close;
use super::op::{DATAGRAM, Op, Task};
use super::port::{Closed, Found, Port, raw};

/// Receives that the system has at a time.
const RECEIVES: usize = 32;
/// Datagrams that may be on their way out; the next one gets 'would block'.
const SENDS: usize = 1024;

/// A UDP socket on a port.
pub struct Udp {
    socket: std::net::UdpSocket,
    port: Arc<Port>,
    token: Token,
    arrived: Mutex<VecDeque<Box<Op>>>,
    receiving: AtomicUsize,
    sending: AtomicUsize,
    closed: Closed,
}

impl Udp {
    pub fn start(socket: std::net::UdpSocket, port: &Arc<Port>, token: Token) -> io::Result<Arc<Udp>> {
        port.associate(raw(&socket) as _)?;
        let (off, mut bytes) = (0u32, 0u32);
        // A peer's 'port unreachable' is not to fail receives from others. Wine does not know this and needs it not.
        // SAFETY: one u32 in, nothing out.
        unsafe {
            WSAIoctl(
                raw(&socket),
                SIO_UDP_CONNRESET,
                (&raw const off).cast(),
                size_of::<u32>() as u32,
                null_mut(),
                0,
                &mut bytes,
                null_mut(),
                None,
            )
        };
        let udp = Arc::new(Udp {
            socket,
            port: Arc::clone(port),
            token,
            arrived: Mutex::new(VecDeque::with_capacity(RECEIVES)),
            receiving: AtomicUsize::new(0),
            sending: AtomicUsize::new(0),
            closed: Closed::not_yet(port),
        });
        udp.top_up();
        Ok(udp)
    }

    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    pub fn socket(&self) -> &std::net::UdpSocket {
        &self.socket
    }

    /// Has the system receive into as many buffers as it should.
    fn top_up(self: &Arc<Self>) {
        while !self.closed.is_set() && self.receiving.fetch_add(1, Ordering::SeqCst) < RECEIVES {
            let mut op = self.port.ops.take(DATAGRAM);
            op.task = Task::UdpRecv(Arc::clone(self));
            op.address_len = size_of::<SOCKADDR_STORAGE>() as i32;
            op.flags = 0;
            let socket = raw(&self.socket);
            let started = self.port.start(op, |op| {
                let buffer = op.wsabuf(DATAGRAM);
                let (address, len) = ((&raw mut op.address).cast(), &raw mut op.address_len);
                // SAFETY: all that the system writes to lies in the operation, which it has until it ends.
                unsafe {
                    WSARecvFrom(socket, &buffer, 1, null_mut(), &mut op.flags, address, len, &mut op.overlapped, None)
                }
            });
            if started.is_err() {
                // It ends through the port, where `received` counts it off and has it tried again.
                return;
            }
        }
        self.receiving.fetch_sub(1, Ordering::SeqCst);
    }

    pub fn received(self: Arc<Self>, mut op: Box<Op>, outcome: io::Result<usize>, found: &mut dyn FnMut(Found)) {
        self.receiving.fetch_sub(1, Ordering::SeqCst);
        let len = match outcome {
            Ok(len) => len,
            Err(error) => match error.raw_os_error().unwrap_or(0) {
                // Longer than the buffer, which is full.
                code if code == ERROR_MORE_DATA as i32 || code == WSAEMSGSIZE => DATAGRAM,
                // An earlier datagram of ours found nobody.
                WSAECONNRESET | WSAENETRESET => return self.again(op, found),
                code if code == ERROR_PORT_UNREACHABLE as i32 => return self.again(op, found),
                // What else there is may stay for a while: no memory, no network. Closed: it was called back.
                _ => {
                    if !self.closed.is_set() {
                        self.port.retry(self.token);
                    }
                    return self.port.ops.give(op);
                }
            },
        };
        if self.closed.is_set() {
            return self.port.ops.give(op);
        }
        op.len = len;
        if op.peer().is_none() {
            return self.again(op, found);
        }
        self.arrived.lock().push_back(op);
        found(Found { token: self.token, readable: true, writable: false });
    }

    /// A receive that brought nothing: another one takes its place when the socket is read.
    fn again(&self, op: Box<Op>, found: &mut dyn FnMut(Found)) {
        self.port.ops.give(op);
        found(Found { token: self.token, readable: true, writable: false });
    }

    /// Moves what has come to `taken`, at most `most`, in order of arrival. True: nothing is left.
    pub fn take(self: &Arc<Self>, taken: &mut Vec<Box<Op>>, most: usize) -> bool {
        let mut arrived = self.arrived.lock();
        let count = arrived.len().min(most);
        taken.extend(arrived.drain(..count));
        let drained = arrived.is_empty();
        drop(arrived);
        self.top_up();
        drained
    }

    pub fn recv_from(self: &Arc<Self>, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            let mut one = Vec::with_capacity(1);
            self.take(&mut one, 1);
            let Some(op) = one.pop() else { return Err(io::ErrorKind::WouldBlock.into()) };
            let (len, peer) = (op.len.min(buffer.len()), op.peer());
            buffer[..len].copy_from_slice(&op.buffer[..len]);
            self.port.ops.give(op);
            if let Some(peer) = peer {
                return Ok((len, peer));
            }
        }
    }

    pub fn send_to(self: &Arc<Self>, data: &[u8], to: SocketAddr) -> io::Result<usize> {
        if data.len() > DATAGRAM {
            return Err(io::Error::from_raw_os_error(WSAEMSGSIZE));
        }
        if self.sending.fetch_add(1, Ordering::SeqCst) >= SENDS {
            self.sending.fetch_sub(1, Ordering::SeqCst);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut op = self.port.ops.take(data.len());
        op.buffer[..data.len()].copy_from_slice(data);
        // In the operation: the system may read it after this call.
        op.set_address(to);
        op.task = Task::UdpSend(Arc::clone(self));
        let socket = raw(&self.socket);
        self.port.start(op, |op| {
            let buffer = op.wsabuf(data.len());
            let (address, len) = ((&raw const op.address).cast(), op.address_len);
            // SAFETY: buffer and address lie in the operation, which the system has until it ends.
            unsafe { WSASendTo(socket, &buffer, 1, null_mut(), 0, address, len, &mut op.overlapped, None) }
        })?;
        Ok(data.len())
    }

    pub fn sent(&self, outcome: io::Result<usize>) {
        self.sending.fetch_sub(1, Ordering::SeqCst);
        if outcome.is_err() {
            self.port.send_errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Udp {
    fn drop(&mut self) {
        for op in self.arrived.get_mut().drain(..) {
            self.port.ops.give(op);
        }
    }
}

impl Close for Udp {
    /// The owner lets go: what is in flight is called back, and the socket closes with the last of it.
    fn close(self: &Arc<Self>) {
        self.closed.close();
        self.port.cancel(raw(&self.socket) as _);
        self.port.reap(|| self.receiving.load(Ordering::SeqCst) == 0 && self.sending.load(Ordering::SeqCst) == 0);
    }
}
