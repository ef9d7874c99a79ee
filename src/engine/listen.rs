//! An engine's addresses: what it listens on, with which certificates, who watches its connections, and sending of its own
//! accord.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Engine;
use super::core::NotSent;
use crate::ffi::{Code, Error};
use crate::net::{
    BindError, CustomFramer, ReplyTo, SendFailed, StreamEvents, TcpAcceptor, TcpOptions, TlsFiles, TlsServer,
    Transport, UdpListener, UdpOptions, UdpRoute,
};

/// Who watches the engine's connections.
#[derive(Default)]
pub struct Watchers {
    pub events: Option<Arc<dyn StreamEvents>>,
    /// In place of SIP's framing.
    pub framer: Option<Arc<dyn CustomFramer>>,
}

impl Engine {
    /// Takes an address of the form "udp:127.0.0.1:5060", "tcp:127.0.0.1:5060" or "tls:127.0.0.1:5061".
    pub fn listen(&self, address: &str) -> Result<SocketAddr, Error> {
        let Address { transport, addr: address, domain } = parse_address(address)?;
        if domain.is_some() {
            return Err(Error::new(Code::Config, "a domain stands in an address to send to, not in one to listen on"));
        }
        self.setup(|setup| match transport {
            Transport::Udp => {
                let options = UdpOptions {
                    recv_buffer: setup.config.udp_receive_buffer,
                    send_buffer: setup.config.udp_send_buffer,
                    sockets: setup.config.udp_sockets,
                    multicast: groups_for(&setup.config.udp_multicast, address),
                    multicast_interface: setup.config.udp_multicast_interface,
                    ..UdpOptions::default()
                };
                let bound = UdpListener::bind(address, &options).map_err(bind_error)?;
                let local = bound[0].local_addr();
                setup.udp.extend(bound);
                Ok(local)
            }
            Transport::Tcp | Transport::Tls => {
                let tls = match transport {
                    Transport::Tls => Some(self.certificates(&setup.config.tls)?),
                    _ => None,
                };
                let options = TcpOptions { backlog: setup.config.tcp_backlog, tls, ..TcpOptions::default() };
                let bound = TcpAcceptor::bind(address, &options).map_err(bind_error)?;
                let local = bound.local_addr();
                setup.tcp.push(bound);
                Ok(local)
            }
        })
    }

    /// The certificates of all TLS addresses, read for the first one.
    fn certificates(&self, files: &TlsFiles) -> Result<Arc<TlsServer>, Error> {
        let mut tls = self.tls.lock();
        if let Some(server) = &*tls {
            return Ok(Arc::clone(server));
        }
        if files.certificate.as_os_str().is_empty() || files.key.as_os_str().is_empty() {
            return Err(Error::new(Code::Config, "an address of TLS needs the options tls.certificate and tls.key"));
        }
        let server = TlsServer::open(files.clone()).map_err(|e| Error::new(Code::Config, e.to_string()))?;
        *tls = Some(Arc::clone(&server));
        Ok(server)
    }

    /// Reads the certificate files again: those of its TLS addresses, and those for connections that it opens.
    pub fn reload_certificates(&self) -> Result<(), Error> {
        let server = self.tls.lock().clone();
        let running = self.running().ok();
        let client = running.as_ref().map(|running| &running.core.tls_client).filter(|client| client.is_prepared());
        let again = || server.as_ref().map_or(Ok(()), |server| server.reload());
        let done = match (client, &server) {
            (Some(client), _) => client.reload_with(again),
            (None, Some(_)) => again(),
            (None, None) => return Err(Error::new(Code::State, "the engine has no certificates: no address of TLS")),
        };
        done.map_err(|e| Error::new(Code::Config, e.to_string()))
    }

    pub fn watch(&self, watchers: Watchers) -> Result<(), Error> {
        self.setup(|setup| {
            if setup.watchers.events.is_some() || setup.watchers.framer.is_some() {
                return Err(Error::new(Code::State, "somebody watches the engine's connections already"));
            }
            setup.watchers = watchers;
            Ok(())
        })
    }

    /// Sends bytes from the first listener, or over a connection.
    pub fn send(&self, address: &str, bytes: &[u8]) -> Result<(), Error> {
        match parse_address(address)? {
            Address { transport: Transport::Udp, addr, .. } => self.send_datagram(addr, bytes),
            Address { transport, addr, domain } => self.send_stream(transport, addr, domain, bytes),
        }
    }

    /// The listener that datagrams to `peer` leave from.
    pub fn datagram_listener(&self, peer: SocketAddr) -> Result<Arc<UdpListener>, Error> {
        let running = self.running()?;
        let family = running.core.listeners.iter().find(|l| l.local_addr().is_ipv4() == peer.is_ipv4());
        family
            .cloned()
            .ok_or_else(|| Error::new(Code::NotFound, format!("no listener has the address family of {peer}")))
    }

    /// Sends one datagram.
    pub fn send_datagram(&self, peer: SocketAddr, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() || bytes.len() > 65_507 {
            return Err(Error::invalid(format!("{} bytes do not make a datagram", bytes.len())));
        }
        let listener = self.datagram_listener(peer)?;
        let to = ReplyTo::Udp { listener, route: UdpRoute { peer, local: None } };
        let sent = self.running()?.core.with_batch(|out| {
            out.push(&to, |arena| arena.extend_from_slice(bytes));
            out.flush()
        });
        if sent.dropped > 0 {
            return Err(Error::new(Code::Io, format!("the datagram to {peer} could not be sent")));
        }
        Ok(())
    }

    fn send_stream(
        &self,
        transport: Transport,
        peer: SocketAddr,
        domain: Option<&str>,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let running = self.running()?;
        let most = running.core.config.streams.outbound;
        if bytes.is_empty() || bytes.len() > most {
            return Err(Error::invalid(format!("{} bytes: 1 to {most} can be sent (tcp.outbound)", bytes.len())));
        }
        running.core.send_stream(transport, peer, domain, bytes).map_err(|why| match why {
            NotSent::Unconnected(e) => Error::new(Code::Io, format!("no connection to {peer}: {e}")),
            NotSent::Failed(why) => not_sent(peer, why),
        })
    }
}

/// A failed send as an error.
pub fn not_sent(peer: SocketAddr, why: SendFailed) -> Error {
    match why {
        SendFailed::Full => Error::new(Code::Full, format!("{peer} reads too slowly, its connection is being closed")),
        SendFailed::Closed => Error::new(Code::Io, format!("the connection to {peer} has closed")),
    }
}

/// The groups of the address's family: a socket can join no others.
fn groups_for(groups: &[IpAddr], address: SocketAddr) -> Vec<IpAddr> {
    // A socket bound to one address gets no multicast; only wildcards join.
    if !address.ip().is_unspecified() {
        return Vec::new();
    }
    groups.iter().filter(|group| group.is_ipv4() == address.is_ipv4()).copied().collect()
}

struct Address<'a> {
    transport: Transport,
    addr: SocketAddr,
    /// Whom the certificate has to name.
    domain: Option<&'a str>,
}

/// "udp:127.0.0.1:5060", "tcp:[::1]:5060", "tls:127.0.0.1:5061", "tls:192.0.2.1:5061;domain=example.org".
fn parse_address(text: &str) -> Result<Address<'_>, Error> {
    let split = text.split_once(':').and_then(|(name, rest)| {
        let transport = match name {
            "udp" => Transport::Udp,
            "tcp" => Transport::Tcp,
            "tls" => Transport::Tls,
            _ => return None,
        };
        let (addr, domain) = match rest.split_once(";domain=") {
            Some((addr, domain)) if transport == Transport::Tls && !domain.is_empty() => (addr, Some(domain)),
            Some(_) => return None,
            None => (rest, None),
        };
        Some(Address { transport, addr: addr.parse().ok()?, domain })
    });
    split.ok_or_else(|| {
        Error::new(
            Code::Config,
            format!(
                "\"{}\" is not an address such as udp:127.0.0.1:5060, tcp:[::1]:5060, tls:127.0.0.1:5061 or \
                 tls:192.0.2.1:5061;domain=example.org",
                text.escape_default()
            ),
        )
    })
}

fn bind_error(error: BindError) -> Error {
    Error::new(Code::Address, error.to_string())
}
