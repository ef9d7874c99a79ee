//! What a program can watch of its connections, and what is counted.

use std::io;

use super::conn::Conn;
use crate::net::framer::FrameError;
use crate::observe::{Counter, Text};

/// Why a connection came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CloseReason {
    /// The peer closed it.
    Peer = 1,
    /// The peer or the network broke it.
    Reset,
    /// It could not be opened.
    ConnectFailed,
    ConnectTimeout,
    /// Nothing came after it was opened.
    SilentTooLong,
    /// A message began and did not end in time.
    MessageTooSlow,
    /// Nothing moved for long.
    Idle,
    /// The peer did not read what was sent to it.
    SlowReader,
    /// The stream could not be followed.
    Framing,
    /// This program closed it.
    Local,
    /// The TLS handshake failed, or a record could not be read.
    Tls,
    /// The TLS handshake did not end in time.
    TlsTooSlow,
}

impl CloseReason {
    pub const ALL: [CloseReason; 12] = [
        CloseReason::Peer,
        CloseReason::Reset,
        CloseReason::ConnectFailed,
        CloseReason::ConnectTimeout,
        CloseReason::SilentTooLong,
        CloseReason::MessageTooSlow,
        CloseReason::Idle,
        CloseReason::SlowReader,
        CloseReason::Framing,
        CloseReason::Local,
        CloseReason::Tls,
        CloseReason::TlsTooSlow,
    ];

    pub fn name(self) -> &'static str {
        match self {
            CloseReason::Peer => "peer",
            CloseReason::Reset => "reset",
            CloseReason::ConnectFailed => "connect_failed",
            CloseReason::ConnectTimeout => "connect_timeout",
            CloseReason::SilentTooLong => "silent_too_long",
            CloseReason::MessageTooSlow => "message_too_slow",
            CloseReason::Idle => "idle",
            CloseReason::SlowReader => "slow_reader",
            CloseReason::Framing => "framing",
            CloseReason::Local => "local",
            CloseReason::Tls => "tls",
            CloseReason::TlsTooSlow => "tls_too_slow",
        }
    }

    pub(super) fn of(number: u8) -> CloseReason {
        Self::ALL.get(usize::from(number).wrapping_sub(1)).copied().unwrap_or(CloseReason::Local)
    }
}

/// What a watcher has done with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Nothing: it is handled as if nobody watched.
    Pass,
    /// All that there was to do.
    Done,
    /// It will be answered: the connection waits for that when its peer closes its side.
    Owed,
}

/// Callbacks for a program that watches its connections. They are called by whoever handles the connection, so one at
/// a time for each, in the order in which things happened, never under a lock of this room: what happens elsewhere (a
/// send or a close on another thread, a limit of time) waits for the next [`super::StreamReady`]. A callback may block
/// (see [`super::StreamReady::may_block`]), send, close, and keep a clone of the [`Conn`]. For one connection,
/// `connected` comes first, `disconnected` last and once.
pub trait StreamEvents: Send + Sync {
    fn connected(&self, _conn: &Conn) {}
    /// Also for a connection that could never be opened.
    fn disconnected(&self, _conn: &Conn, _reason: CloseReason) {}
    /// A system call failed, or the stream broke framing (`InvalidData`). `disconnected` follows where it is fatal.
    fn error(&self, _conn: &Conn, _error: &io::Error) {}
    /// A whole message, before it is handled.
    fn received(&self, _conn: &Conn, _message: &[u8]) -> Taken {
        Taken::Pass
    }
    /// The system took so many bytes since the last call.
    fn sent(&self, _conn: &Conn, _bytes: usize) {}
}

/// What a framer of the user's says of the bytes it sees, which begin where a message begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// More bytes are needed.
    More,
    /// The first so many bytes (not 0) are a message.
    Message(usize),
    /// Not a message: the connection is closed.
    Refused,
}

/// Takes the place of SIP's framing. Called under no lock, for one connection by one thread at a time.
pub trait CustomFramer: Send + Sync {
    fn frame(&self, conn: &Conn, data: &[u8]) -> Framing;
}

/// Figures of all stream connections.
#[derive(Default)]
pub(super) struct StreamCounters {
    pub accepted: Counter,
    pub opened: Counter,
    pub closed: [Counter; CloseReason::ALL.len()],
    pub refused_all: Counter,
    pub refused_source: Counter,
    pub accept_pauses: Counter,
    pub received: Counter,
    pub received_bytes: Counter,
    pub sent: Counter,
    pub sent_bytes: Counter,
    pub pings: Counter,
    pub unsent: Counter,
    pub framing: [Counter; FrameError::ALL.len()],
}

/// Counts over all stream connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamFigures {
    pub received: u64,
    pub sent: u64,
    /// Lost because their connection was gone or too slow.
    pub unsent: u64,
}

impl StreamCounters {
    pub fn figures(&self) -> StreamFigures {
        StreamFigures { received: self.received.get(), sent: self.sent.get(), unsent: self.unsent.get() }
    }

    pub fn metrics(&self, open: usize, out: &mut Text) {
        out.gauge("partyline_stream_open", "Stream connections.", &[], open as f64);
        let help = "Stream connections opened.";
        out.counter("partyline_stream_opened_total", help, &[("by", "peer")], self.accepted.get());
        out.counter("partyline_stream_opened_total", help, &[("by", "us")], self.opened.get());
        for (reason, counter) in CloseReason::ALL.iter().zip(&self.closed) {
            let help = "Stream connections closed.";
            out.counter("partyline_stream_closed_total", help, &[("reason", reason.name())], counter.get());
        }
        let help = "Connections closed at once because a limit was reached.";
        out.counter("partyline_stream_refused_total", help, &[("limit", "all")], self.refused_all.get());
        out.counter("partyline_stream_refused_total", help, &[("limit", "source")], self.refused_source.get());
        let help = "Times that accepting paused for want of descriptors or memory.";
        out.counter("partyline_stream_accept_pauses_total", help, &[], self.accept_pauses.get());
        out.counter("partyline_stream_received_total", "Messages received.", &[], self.received.get());
        out.counter("partyline_stream_received_bytes_total", "Bytes received.", &[], self.received_bytes.get());
        out.counter("partyline_stream_sent_total", "Messages taken to be sent.", &[], self.sent.get());
        out.counter("partyline_stream_sent_bytes_total", "Bytes that the system took.", &[], self.sent_bytes.get());
        out.counter("partyline_stream_pings_total", "Keep-alives answered.", &[], self.pings.get());
        let help = "Messages lost because their connection was gone or too slow.";
        out.counter("partyline_stream_unsent_total", help, &[], self.unsent.get());
        for (error, counter) in FrameError::ALL.iter().zip(&self.framing) {
            let help = "Streams that could not be followed.";
            out.counter("partyline_stream_framing_errors_total", help, &[("reason", error.name())], counter.get());
        }
    }
}
