//! Listeners, datagram batches, stream connections (TCP, TLS) and the reactor they are waited for on.
//!
//! Promises to the rooms above:
//! - One call of [`RecvBatch::recv`] and one of [`SendBatch::flush`] cost one system call for up to [`BATCH`] datagrams
//!   (on Linux), no allocation, and no lock.
//! - Nothing readable is forgotten: the reactor is edge-triggered, so whoever stops reading before the socket said
//!   'would block' leaves a mark, and [`Reactor::wait`] hands marks out before it sleeps (see `reactor.rs`).
//! - An answer leaves from the address that was asked, over the socket or connection that the request came on.
//! - One peer's trouble stays its own: a datagram that cannot be sent is counted by reason and the rest of the batch
//!   goes out; a stream peer that is slow, silent or talks nonsense loses its own connection only.
//! - No callback is called under a lock of this room.
//!
//! Unsafe code lives in `sys/` only, behind the contract in `sys/mod.rs`.
#![deny(unsafe_code)]

mod doorbell;
mod error;
mod framer;
mod limit;
mod reactor;
mod reply;
mod send;
mod stream;
#[allow(unsafe_code)]
mod sys;
mod udp;

pub use error::{BindError, Transport};
pub use framer::{FrameError, FramerLimits, SipFramer, Step};
pub use limit::{Exceeded, LimitOptions, Limiter, Rate};
pub use reactor::{Event, Reactor, Ready};
pub use reply::{ReplyTo, UdpRoute};
pub use send::{SendBatch, Sent};
pub use stream::{
    CloseReason, Conn, ConnId, CustomFramer, Ends, Framing, SendFailed, StreamEvents, StreamFigures, StreamMessage,
    StreamOptions, StreamReader, StreamReady, Streams, Taken, TcpAcceptor, TcpOptions, TlsClient, TlsClientOptions,
    TlsFiles, TlsServer, Verify,
};
pub use sys::{Backend, Datagram, Os, Portable};
pub use udp::{RecvBatch, UdpFigures, UdpListener, UdpOptions};

/// The way to the operating system that this build uses by default: batches of system calls on Linux, else
/// [`Portable`].
pub type Native = sys::Native;

/// Datagrams read or written in one go. A leader may handle this many before it has to give leadership away.
pub const BATCH: usize = 64;
