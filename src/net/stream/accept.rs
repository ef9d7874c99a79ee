//! The listening side of TCP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::Streams;
use super::table::Ends;
use super::tls::TlsServer;
use crate::net::BATCH;
use crate::net::error::{BindError, Transport};
use crate::net::reactor::Mark;
use crate::net::sys::polling;

/// How long accepting rests when descriptors have run out, unless a connection closes before.
const PAUSE: Duration = Duration::from_millis(100);

/// How a TCP port is opened.
#[derive(Debug, Clone)]
pub struct TcpOptions {
    /// Connections that may wait to be accepted. Default 1024 (the system may hold it lower).
    pub backlog: i32,
    /// An IPv6 wildcard takes IPv6 only. Default true.
    pub v6_only: bool,
    /// TLS is spoken, with these certificates. Default none.
    pub tls: Option<Arc<TlsServer>>,
}

impl Default for TcpOptions {
    fn default() -> Self {
        TcpOptions { backlog: 1024, v6_only: true, tls: None }
    }
}

/// A listening TCP socket. Opened here, then given to [`super::super::Reactor::add_tcp`].
pub struct TcpAcceptor {
    listener: polling::TcpListener,
    local: SocketAddr,
    tls: Option<Arc<TlsServer>>,
    pub(in crate::net) mark: Mark,
}

impl TcpAcceptor {
    pub fn bind(addr: SocketAddr, options: &TcpOptions) -> Result<TcpAcceptor, BindError> {
        let transport = if options.tls.is_some() { Transport::Tls } else { Transport::Tcp };
        let failed = |step: &'static str| move |source| BindError { transport, addr, step: step.to_owned(), source };
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))
            .map_err(failed("open a socket"))?;
        if addr.is_ipv6() {
            socket.set_only_v6(options.v6_only).map_err(failed("set IPV6_V6ONLY"))?;
        }
        // So that a restart does not wait for connections of the last run in TIME_WAIT. It does not let two servers
        // have the port: one that listens is refused here or in listen(), with SO_REUSEPORT of its own as well.
        #[cfg(unix)]
        socket.set_reuse_address(true).map_err(failed("set SO_REUSEADDR"))?;
        socket.bind(&addr.into()).map_err(failed("bind"))?;
        socket.listen(options.backlog).map_err(failed("listen"))?;
        socket.set_nonblocking(true).map_err(failed("set non-blocking"))?;
        let listener = polling::TcpListener::from_std(socket.into());
        let local = listener.local_addr().map_err(failed("read the local address"))?;
        Ok(TcpAcceptor { listener, local, tls: options.tls.clone(), mark: Mark::default() })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub(in crate::net) fn parts_mut(&mut self) -> (&mut polling::TcpListener, &mut Mark) {
        (&mut self.listener, &mut self.mark)
    }
}

impl Streams {
    /// Accepts what waits, at most [`BATCH`] connections; if more may wait, the acceptor goes to the next leader.
    /// Returns how many were let in. When descriptors run out, accepting rests: nothing spins, and what waits is
    /// accepted later.
    pub fn accept(self: &Arc<Self>, acceptor: &Arc<TcpAcceptor>) -> usize {
        let mut accepted = 0;
        for _ in 0..BATCH {
            let (stream, peer) = match acceptor.listener.accept() {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return accepted,
                Err(error) if is_exhausted(&error) => {
                    tracing::warn!(%error, listener = %acceptor.local, "accepting rests");
                    self.pause_accepting(Arc::clone(acceptor), Instant::now() + PAUSE);
                    return accepted;
                }
                // The peer has gone again before it was accepted (accept(2) passes network errors on).
                Err(_) => continue,
            };
            // A reset peer has no ends any more.
            let Ok(local) = stream.local_addr() else { continue };
            // Fails only for a connection that is gone; the first read finds out.
            let _ = stream.set_nodelay(true);
            let transport = if acceptor.tls.is_some() { Transport::Tls } else { Transport::Tcp };
            let tls = match acceptor.tls.as_ref().map(|server| server.session()).transpose() {
                Ok(session) => session,
                Err(error) => {
                    tracing::warn!(%error, %peer, "no TLS session");
                    continue;
                }
            };
            match self.adopt(stream, Ends { peer, local, incoming: true, transport }, tls, None) {
                Ok(Some(_)) => accepted += 1,
                // Over a limit: closed at once, which tells the peer more than silence.
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, %peer, "connection not taken in"),
            }
        }
        acceptor.mark.set();
        accepted
    }
}

#[cfg(unix)]
fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

#[cfg(not(unix))]
fn is_exhausted(error: &io::Error) -> bool {
    const WSAEMFILE: i32 = 10024;
    const WSAENOBUFS: i32 = 10055;
    matches!(error.raw_os_error(), Some(WSAEMFILE | WSAENOBUFS))
}
