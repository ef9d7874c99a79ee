//! Where an answer goes: kept with a message while a plugin or the database works on it, usable from any thread.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::stream::{ConnId, Streams};
use super::udp::UdpListener;

/// The two ends of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpRoute {
    /// Where the answer is sent. The source of the request, or what Via says where RFC 3261 section 18.2.2 and RFC 3581
    /// want that.
    pub peer: SocketAddr,
    /// The address of ours that was asked, and that answers; `None` leaves it to the socket.
    pub local: Option<IpAddr>,
}

/// The way back to a peer. Holds no thread, no lock and no buffer.
#[derive(Clone)]
pub enum ReplyTo {
    Udp {
        listener: Arc<UdpListener>,
        route: UdpRoute,
    },
    /// Over the connection that the request came on, else over another one to `reopen` (found or opened).
    Stream {
        streams: Arc<Streams>,
        id: ConnId,
        reopen: Option<SocketAddr>,
    },
}

impl ReplyTo {
    /// The peer, as far as it is known: a closed connection has none.
    pub fn peer(&self) -> Option<SocketAddr> {
        match self {
            ReplyTo::Udp { route, .. } => Some(route.peer),
            ReplyTo::Stream { streams, id, reopen } => streams.get(*id).map(|conn| conn.peer()).or(*reopen),
        }
    }
}
