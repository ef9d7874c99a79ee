//! Answers, collected and sent in one go.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::BATCH;
use super::reply::{ReplyTo, UdpRoute};
use super::stream::{Conn, ConnId, Streams};
use super::sys::{Native, Os, Outgoing, SendSlots};
use super::udp::{SendError, UdpListener};

/// Room that the arena starts with, and that it goes back to after an unusually large batch.
const ARENA: usize = BATCH * 1024;
const ARENA_KEPT: usize = 1 << 20;

/// Answers of so many bytes on connections are sent before more are added: a batch of requests can have large answers.
const STREAM_ARENA: usize = 128 * 1024;

/// What a full send buffer may cost one flush in all, before its datagrams are dropped: UDP promises nothing, the peer
/// sends again, and the thread has others to serve.
const FULL_RETRIES: u32 = 2;
const FULL_WAIT: Duration = Duration::from_millis(1);

/// What became of a flush. What a connection has taken counts as sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    pub sent: usize,
    /// Datagrams lost, each counted by reason in its listener's figures.
    pub dropped: usize,
}

/// Up to [`BATCH`] messages on their way out: one per thread that answers. What has not been flushed is sent when the
/// batch is dropped.
pub struct SendBatch<O: Os = Native> {
    slots: O::Send,
    arena: Vec<u8>,
    entries: Vec<Outgoing>,
    // The sockets of this batch (mostly one). A listener is held once per batch, not per message: its reference count
    // is a line that all cores would write.
    sockets: Vec<Arc<UdpListener>>,
    streams: Vec<StreamRun>,
    sent: Sent,
}

/// Neighbouring messages of the arena for one connection: they leave in one write.
struct StreamRun {
    to: Way,
    start: usize,
    end: usize,
    messages: u32,
}

enum Way {
    Held(Conn),
    Kept { streams: Arc<Streams>, id: ConnId, reopen: Option<std::net::SocketAddr> },
}

impl Way {
    fn id(&self) -> ConnId {
        match self {
            Way::Held(conn) => conn.id(),
            Way::Kept { id, .. } => *id,
        }
    }
}

impl SendBatch {
    pub fn new() -> Self {
        Self::on()
    }
}

impl Default for SendBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl<O: Os> SendBatch<O> {
    /// As [`SendBatch::new`], with the system's file named.
    pub fn on() -> Self {
        SendBatch {
            slots: O::Send::new(BATCH),
            arena: Vec::with_capacity(ARENA),
            entries: Vec::with_capacity(BATCH),
            sockets: Vec::with_capacity(4),
            streams: Vec::with_capacity(BATCH),
            sent: Sent::default(),
        }
    }

    /// Adds a message; `render` appends it to the buffer it is given (whose earlier contents are other messages).
    /// Nothing appended, nothing sent. A full batch is flushed first.
    pub fn push(&mut self, to: &ReplyTo, render: impl FnOnce(&mut Vec<u8>)) {
        match to {
            ReplyTo::Udp { listener, route } => self.push_udp(listener, route, render),
            ReplyTo::Stream { streams, id, reopen } => {
                self.push_run(*id, render, || Way::Kept { streams: Arc::clone(streams), id: *id, reopen: *reopen })
            }
        }
    }

    /// As [`SendBatch::push`], for an answer given while the connection is at hand.
    pub fn push_conn(&mut self, conn: &Conn, render: impl FnOnce(&mut Vec<u8>)) {
        self.push_run(conn.id(), render, || Way::Held(conn.clone()));
    }

    fn push_run(&mut self, id: ConnId, render: impl FnOnce(&mut Vec<u8>), way: impl FnOnce() -> Way) {
        if self.streams.len() == BATCH || self.arena.len() >= STREAM_ARENA {
            self.send_all();
        }
        let start = self.arena.len();
        render(&mut self.arena);
        let end = self.arena.len();
        if end <= start {
            return;
        }
        match self.streams.last_mut() {
            Some(run) if run.end == start && run.to.id() == id => {
                run.end = end;
                run.messages += 1;
            }
            _ => self.streams.push(StreamRun { to: way(), start, end, messages: 1 }),
        }
    }

    /// As [`SendBatch::push`], without a [`ReplyTo`]: the way for an answer given at once.
    pub fn push_udp(&mut self, listener: &Arc<UdpListener>, route: &UdpRoute, render: impl FnOnce(&mut Vec<u8>)) {
        if self.entries.len() == BATCH {
            self.send_all();
        }
        let start = self.arena.len();
        render(&mut self.arena);
        // A render that shortened the buffer has destroyed other messages; theirs are cut, memory stays safe.
        let len = self.arena.len().saturating_sub(start);
        if len == 0 {
            return;
        }
        let socket = self.socket_index(listener);
        self.entries.push(Outgoing {
            start: start as u32,
            len: len as u32,
            socket,
            to: route.peer,
            from: if listener.tells_local_address() { route.local } else { None },
        });
    }

    /// Messages waiting.
    pub fn len(&self) -> usize {
        self.entries.len() + self.streams.iter().map(|run| run.messages as usize).sum::<usize>()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.streams.is_empty()
    }

    /// Sends all that waits; one system call per socket where all goes well. A datagram that cannot be sent is dropped
    /// and counted, the others go out. May wait at most 2 ms, and only for a full send buffer.
    ///
    /// Returns what was sent and dropped since the last flush (a full batch flushes by itself).
    pub fn flush(&mut self) -> Sent {
        self.send_all();
        std::mem::take(&mut self.sent)
    }

    fn socket_index(&mut self, listener: &Arc<UdpListener>) -> u32 {
        // From the end: the last one used is the likeliest.
        match self.sockets.iter().rposition(|known| Arc::ptr_eq(known, listener)) {
            Some(index) => index as u32,
            None => {
                self.sockets.push(Arc::clone(listener));
                (self.sockets.len() - 1) as u32
            }
        }
    }

    fn send_all(&mut self) {
        if !self.entries.is_empty() {
            if self.sockets.len() > 1 {
                // By socket, and within it in the order of pushing.
                self.entries.sort_unstable_by_key(|entry| (entry.socket, entry.start));
            }
            let entries = std::mem::take(&mut self.entries);
            let mut retries = FULL_RETRIES;
            for group in entries.chunk_by(|a, b| a.socket == b.socket) {
                let index = group[0].socket as usize;
                self.send_group(index, group, &mut retries);
            }
            self.entries = entries;
            self.entries.clear();
        }
        self.sockets.clear();
        self.send_streams();
        self.arena.clear();
        if self.arena.capacity() > ARENA_KEPT {
            self.arena.shrink_to(ARENA);
        }
    }

    fn send_streams(&mut self) {
        for run in self.streams.drain(..) {
            let conn = match run.to {
                Way::Held(conn) => Some(conn),
                Way::Kept { streams, id, reopen } => streams.get(id).or_else(|| {
                    let peer = reopen?;
                    streams.connect(peer, None).inspect_err(|error| tracing::debug!(%peer, %error, "no way back")).ok()
                }),
            };
            let messages = run.messages as usize;
            match conn.map(|conn| conn.send_counted(&self.arena[run.start..run.end], run.messages)) {
                Some(Ok(())) => self.sent.sent += messages,
                _ => self.sent.dropped += messages,
            }
        }
    }

    fn send_group(&mut self, index: usize, group: &[Outgoing], retries: &mut u32) {
        let listener = &self.sockets[index];
        let mut rest = group;
        let (mut sent, mut bytes) = (0, 0);
        let mut refused_again = false;
        while let Some(first) = rest.first() {
            match self.slots.send(listener.socket(), &self.arena, rest) {
                Ok(count) => {
                    sent += count;
                    bytes += rest[..count].iter().map(|entry| u64::from(entry.len)).sum::<u64>();
                    rest = &rest[count..];
                    refused_again = false;
                }
                // An ICMP error about an earlier datagram: this one has not been tried.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && !refused_again => {
                    refused_again = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && *retries > 0 => {
                    *retries -= 1;
                    O::wait_writable(listener.socket(), FULL_WAIT);
                }
                Err(error) => {
                    tracing::debug!(to = %first.to, len = first.len, %error, "datagram not sent");
                    listener.counters.send_error(SendError::of(&error));
                    self.sent.dropped += 1;
                    rest = &rest[1..];
                    refused_again = false;
                }
            }
        }
        if sent > 0 {
            listener.counters.sent.add(sent as u64);
            listener.counters.sent_bytes.add(bytes);
            listener.counters.send_batches.inc();
            self.sent.sent += sent;
        }
    }
}

impl<O: Os> Drop for SendBatch<O> {
    fn drop(&mut self) {
        self.send_all();
    }
}
