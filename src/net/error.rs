//! Why a listener could not be opened, as one sentence that says what to do.

use std::fmt;
use std::io;
use std::net::SocketAddr;

/// The transports of RFC 3261 section 18 that this room speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    Udp,
    Tcp,
    /// TLS over TCP.
    Tls,
}

impl Transport {
    pub fn name(self) -> &'static str {
        match self {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
        }
    }
}

/// A listener that could not be opened.
#[derive(Debug)]
pub struct BindError {
    pub transport: Transport,
    pub addr: SocketAddr,
    /// What was being done when it failed: `bind`, `join multicast group 224.0.1.75`, ...
    pub step: String,
    pub source: io::Error,
}

impl BindError {
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, addr) = (self.transport.name(), self.addr);
        write!(f, "cannot listen on {name} {addr}: ")?;
        match self.source.kind() {
            io::ErrorKind::AddrInUse => {
                let flag = if self.transport == Transport::Udp { 'u' } else { 't' };
                write!(
                    f,
                    "the port is in use; stop the program that has it (ss -{flag}lpn 'sport = :{}' names it) or choose \
                     another port",
                    addr.port()
                )
            }
            io::ErrorKind::AddrNotAvailable => {
                write!(
                    f,
                    "no interface of this machine has that address; use one that `ip address` shows, or a wildcard"
                )
            }
            io::ErrorKind::PermissionDenied if addr.port() < 1024 && addr.port() != 0 => {
                write!(f, "not permitted; ports under 1024 need root or CAP_NET_BIND_SERVICE, or choose another port")
            }
            _ => write!(f, "{}: {}", self.step, self.source),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
