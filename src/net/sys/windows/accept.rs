//! Accepting by AcceptEx: sockets are made, or taken from those that were used before, ahead of the connections.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::windows::io::OwnedSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mio::Token;
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};
use windows_sys::Win32::Foundation::ERROR_NETNAME_DELETED;
use windows_sys::Win32::Networking::WinSock::{
    SO_UPDATE_ACCEPT_CONTEXT, SOCKADDR_STORAGE, SOL_SOCKET, WSAECONNRESET, setsockopt,
};

use super::Close;
use super::extension::Extensions;
use super::op::{PIECE, Task};
use super::port::{Closed, Found, Port, raw};
use super::tcp::Tcp;

/// Sockets that wait for a connection at a time.
const ACCEPTS: usize = 16;
/// What AcceptEx wants for an address.
const ADDRESS: u32 = size_of::<SOCKADDR_STORAGE>() as u32 + 16;

/// A socket made before its connection.
pub struct Premade {
    socket: OwnedSocket,
    used: bool,
}

/// A listening socket on a port.
pub struct Listener {
    /// Until its owner closes it; only the owner uses it.
    socket: Mutex<Option<std::net::TcpListener>>,
    local: SocketAddr,
    port: Arc<Port>,
    token: Token,
    domain: Domain,
    arrived: Mutex<VecDeque<io::Result<Premade>>>,
    accepting: AtomicUsize,
    closed: Closed,
}

impl Listener {
    pub fn start(socket: std::net::TcpListener, port: &Arc<Port>, token: Token) -> io::Result<Arc<Listener>> {
        port.associate(raw(&socket) as _)?;
        let local = socket.local_addr()?;
        let domain = Domain::for_address(local);
        let listener = Arc::new(Listener {
            socket: Mutex::new(Some(socket)),
            local,
            port: Arc::clone(port),
            token,
            domain,
            arrived: Mutex::new(VecDeque::new()),
            accepting: AtomicUsize::new(0),
            closed: Closed::not_yet(port),
        });
        listener.top_up()?;
        Ok(listener)
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn raw(&self) -> io::Result<usize> {
        self.socket.lock().as_ref().map(raw).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn top_up(self: &Arc<Self>) -> io::Result<()> {
        while !self.closed.is_set() && self.accepting.load(Ordering::SeqCst) < ACCEPTS {
            // A used socket is of the family that its first connection had.
            let used = if self.domain == Domain::IPV4 { self.port.take_used() } else { None };
            let premade = match used {
                Some(socket) => Premade { socket, used: true },
                None => {
                    let socket = Socket::new(self.domain, Type::STREAM, Some(Protocol::TCP))?;
                    Premade { socket: socket.into(), used: false }
                }
            };
            let accept = Extensions::get()?.accept;
            let (from, to, used) = (self.raw()?, raw(&premade.socket), premade.used);
            let mut op = self.port.ops.take(PIECE);
            op.task = Task::Accept(Arc::clone(self), premade);
            self.accepting.fetch_add(1, Ordering::SeqCst);
            let started = self.port.start(op, |op| {
                // SAFETY: the buffer, which has room for both addresses, lies in the operation; the new socket too, as
                // its task.
                let done = unsafe {
                    accept(
                        from,
                        to,
                        op.buffer.as_mut_ptr().cast(),
                        0,
                        ADDRESS,
                        ADDRESS,
                        &mut op.flags,
                        &mut op.overlapped,
                    )
                };
                if done != 0 { 0 } else { -1 }
            });
            match started {
                Err(error) if used => self.port.reuse_failed(&error),
                other => other?,
            }
        }
        Ok(())
    }

    pub fn arrived(self: Arc<Self>, premade: Premade, outcome: io::Result<usize>, found: &mut dyn FnMut(Found)) {
        self.accepting.fetch_sub(1, Ordering::SeqCst);
        if self.closed.is_set() {
            return;
        }
        match outcome {
            Ok(_) => self.arrived.lock().push_back(Ok(premade)),
            Err(error) if premade.used => self.port.reuse_failed(&error),
            // The peer has gone before it was accepted.
            Err(error) if is_peers(&error) => {}
            Err(error) => {
                self.arrived.lock().push_back(Err(error));
                return self.port.retry(self.token);
            }
        }
        found(Found { token: self.token, readable: true, writable: false });
    }

    pub fn accept(self: &Arc<Self>) -> io::Result<(Arc<Tcp>, SocketAddr)> {
        let arrived = self.arrived.lock().pop_front();
        let refilled = self.top_up();
        if refilled.is_err() {
            self.port.retry(self.token);
        }
        let premade = match arrived {
            Some(arrived) => arrived?,
            // Nothing is there, and nothing will come where no socket could be made.
            None => return Err(refilled.err().unwrap_or_else(|| io::ErrorKind::WouldBlock.into())),
        };
        let from = self.raw()?;
        // SAFETY: the value is the listener's number; makes getpeername and shutdown work on the new socket.
        let failed = unsafe {
            setsockopt(
                raw(&premade.socket),
                SOL_SOCKET,
                SO_UPDATE_ACCEPT_CONTEXT,
                (&raw const from).cast(),
                size_of::<usize>() as i32,
            )
        };
        if failed != 0 {
            return Err(io::Error::last_os_error());
        }
        if !premade.used {
            self.port.associate(raw(&premade.socket) as _)?;
        }
        let stream = std::net::TcpStream::from(premade.socket);
        stream.set_nonblocking(true)?;
        let peer = stream.peer_addr()?;
        Ok((Tcp::new(stream, &self.port, true), peer))
    }
}

fn is_peers(error: &io::Error) -> bool {
    let code = error.raw_os_error().unwrap_or(0);
    code == WSAECONNRESET || code == ERROR_NETNAME_DELETED as i32
}

impl Close for Listener {
    /// The owner lets go: nobody is let in from now on, and what is in flight is called back by the system.
    fn close(self: &Arc<Self>) {
        self.closed.close();
        self.arrived.lock().clear();
        drop(self.socket.lock().take());
        self.port.reap(|| self.accepting.load(Ordering::SeqCst) == 0);
    }
}
