//! The reading side: from readiness to whole messages.
//!
//! A connection is a *bound* handle: while somebody handles it (BUSY), others leave what the system reports in its
//! flags, and whoever lets go of it looks at them. No system call arms or disarms anything.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Streams;
use super::conn::Conn;
use super::events::{CloseReason, Framing, Taken};
use super::ring::Ring;
use super::table::flag;
use super::tls::Pulled;
use crate::net::BATCH;
use crate::net::framer::{FrameError, SipFramer, Step};
use crate::net::sys::polling;

/// A scratch buffer that has grown beyond this is given back.
const SCRATCH_KEPT: usize = 128 * 1024;

/// What is due on the reading side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Connected = 1,
    FirstBytes,
    Message,
    Idle,
    /// The input has ended, answers may still go out.
    Linger,
    Handshake,
}

impl Due {
    pub(super) fn pack(self, tick: u64) -> u64 {
        tick << 3 | self as u64
    }

    /// Whether it is for the peer to send something.
    pub(super) fn is_peers(packed: u64) -> bool {
        let what = packed & 7;
        (Due::FirstBytes as u64..=Due::Idle as u64).contains(&what) || what == Due::Handshake as u64
    }

    pub(super) fn reason(packed: u64) -> CloseReason {
        match packed & 7 {
            1 => CloseReason::ConnectTimeout,
            2 => CloseReason::SilentTooLong,
            3 => CloseReason::MessageTooSlow,
            4 => CloseReason::Idle,
            6 => CloseReason::TlsTooSlow,
            _ => CloseReason::Peer,
        }
    }
}

#[derive(Default)]
pub(super) struct Input {
    /// Only while bytes of an unfinished message are in it.
    pub(super) ring: Option<Ring>,
    pub(super) framer: SipFramer,
    /// Nothing more is taken from this stream: it has ended, or cannot be followed.
    pub(super) ended: bool,
}

/// What a thread that reads connections keeps between them.
#[derive(Default)]
pub struct StreamReader {
    spare: Option<Ring>,
    scratch: Vec<u8>,
    /// TLS records.
    wire: Vec<u8>,
}

impl StreamReader {
    pub fn new() -> Self {
        Self::default()
    }
}

/// A message as it came over a connection.
pub struct StreamMessage<'a> {
    /// The whole message; may be changed in place.
    pub data: &'a mut [u8],
    pub conn: &'a Conn,
    /// Set when `data` is only a head whose length is wrong: it can be answered with 400 (513 for
    /// [`FrameError::MessageTooLong`]), and the connection closes after the answer.
    pub error: Option<FrameError>,
}

/// A connection on which something happened. Until it is handled or dropped nobody else gets it; dropped unhandled, it
/// goes to the next leader.
pub struct StreamReady {
    conn: Conn,
    handled: bool,
    /// Set while handling: still set in drop, the handler has panicked.
    torn: bool,
}

impl StreamReady {
    /// For who has just set BUSY.
    pub(super) fn claimed(conn: Conn) -> Self {
        StreamReady { conn, handled: false, torn: false }
    }

    /// Whether handling it, and dropping it afterwards, calls watchers, or makes a TLS handshake: a leader gives
    /// leadership away first.
    pub fn may_block(&self) -> bool {
        self.conn.streams().events.is_some() || self.conn.is_shaking()
    }

    pub fn conn(&self) -> &Conn {
        &self.conn
    }

    /// Writes what waits, reads what is there, and gives every whole message to `sink`, at most [`BATCH`] of them; what
    /// is left is put before the next leader. `sink` is called under no lock. Returns how many messages there were.
    ///
    /// The connection stays with the caller until this value is dropped: answers that are to leave in the order of the
    /// requests are sent (a [`crate::net::SendBatch`] flushed) before that.
    pub fn handle(&mut self, reader: &mut StreamReader, mut sink: impl FnMut(StreamMessage<'_>)) -> usize {
        let mut handled = 0;
        self.torn = true;
        self.handled = true;
        self.conn.tell();
        while handled < BATCH && self.conn.is_open() {
            // The peer's hang-up is kept: it holds until the end has been read.
            let news = self.conn.slot().flags.fetch_and(!(flag::READABLE | flag::WRITABLE), Ordering::SeqCst);
            if news & (flag::READABLE | flag::WRITABLE) == 0 {
                break;
            }
            if self.conn.slot().output.lock().connecting {
                if !self.finish_connect() {
                    break;
                }
            } else if news & flag::WRITABLE != 0 {
                self.conn.writable();
            }
            if news & flag::READABLE == 0 {
                continue;
            }
            if self.conn.slot().flags.load(Ordering::SeqCst) & flag::THROTTLED != 0 {
                self.conn.hold_reading();
            } else {
                handled += self.read(reader, news & flag::HUNG_UP != 0, BATCH - handled, &mut sink);
            }
        }
        self.torn = false;
        handled
    }

    /// Whether it is connected now.
    fn finish_connect(&self) -> bool {
        let slot = self.conn.slot();
        let outcome = match &*slot.stream.read() {
            Some(stream) => match stream.take_error() {
                Ok(Some(error)) | Err(error) => Err(error),
                Ok(None) => match stream.peer_addr() {
                    Ok(_) => stream.local_addr(),
                    // Woken before its time.
                    Err(_) => return false,
                },
            },
            None => return false,
        };
        match outcome {
            Ok(local) => {
                if let Some(ends) = &mut *slot.ends.write() {
                    ends.local = local;
                }
                slot.output.lock().connecting = false;
                if self.conn.is_shaking() {
                    let limit = self.conn.streams().options.handshake_limit;
                    self.conn.due(Due::Handshake, limit, Instant::now());
                } else {
                    self.conn.rest_idle(Instant::now());
                }
                if let Some(events) = &self.conn.streams().events {
                    events.connected(&self.conn);
                }
                if self.conn.is_shaking() {
                    self.conn.greet();
                }
                self.conn.writable();
                true
            }
            Err(error) => {
                self.conn.report(&error);
                self.conn.close(CloseReason::ConnectFailed);
                false
            }
        }
    }

    fn read(
        &self,
        reader: &mut StreamReader,
        hung_up: bool,
        budget: usize,
        sink: &mut impl FnMut(StreamMessage<'_>),
    ) -> usize {
        let slot = self.conn.slot();
        let streams = self.conn.streams();
        let mut input = std::mem::take(&mut *slot.input.lock());
        let mut ring = input.ring.take().or_else(|| reader.spare.take()).unwrap_or_else(|| streams.rings.get());
        let was_inside = !ring.is_empty();
        let (mut handled, mut drained, mut bytes) = (0, false, 0);
        loop {
            // First what is there: a batch that was cut may have left whole messages.
            if input.ended {
                ring.discard(ring.len());
            } else {
                handled += self.frame(&mut input, &mut ring, &mut reader.scratch, budget - handled, sink);
            }
            // Before 'drained': whole messages may be left in the ring.
            if handled >= budget {
                slot.flags.fetch_or(flag::READABLE, Ordering::SeqCst);
                break;
            }
            if drained || !self.conn.is_open() {
                break;
            }
            match self.pull(&mut ring, &mut reader.wire) {
                Ok(pulled) => {
                    bytes += pulled.bytes;
                    // Less than there was room for: that was all, and later bytes make a new event (epoll(7)). Not so
                    // after a hang-up, whose event has come already, nor where mio wants to see 'would block'.
                    drained = cfg!(target_os = "linux") && pulled.short && !hung_up;
                    if pulled.ended {
                        // What came before the end is still to be handled.
                        if !input.ended {
                            handled += self.frame(&mut input, &mut ring, &mut reader.scratch, budget - handled, sink);
                        }
                        if handled >= budget && !ring.is_empty() && !input.ended {
                            slot.flags.fetch_or(flag::READABLE, Ordering::SeqCst);
                        } else {
                            self.peer_ended(&mut input);
                        }
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.conn.report(&error);
                    let broken = error.kind() == io::ErrorKind::InvalidData && self.conn.is_secure();
                    let ends = self.conn.ends();
                    if broken && !ends.incoming {
                        // Of a certificate that is refused nobody else would hear.
                        tracing::warn!(peer = %ends.peer, %error, "TLS connection closed");
                    }
                    self.conn.close(if broken { CloseReason::Tls } else { CloseReason::Reset });
                    break;
                }
            }
        }
        if self.conn.is_shaking() && slot.read_due.load(Ordering::SeqCst) >> 3 <= streams.wheel.tick(Instant::now()) {
            // Here as well: see below.
            self.conn.close(CloseReason::TlsTooSlow);
        }
        if bytes > 0 {
            streams.counters.received_bytes.add(bytes as u64);
        }
        if !input.ended && self.conn.is_open() && (bytes > 0 || handled > 0) {
            if ring.is_empty() {
                self.conn.rest_idle(Instant::now());
            } else if !was_inside || handled > 0 {
                // The clock of a message runs from its first byte; it is not set back by the next ones.
                self.conn.due(Due::Message, streams.options.message_limit, Instant::now());
            } else if slot.read_due.load(Ordering::SeqCst) >> 3 <= streams.wheel.tick(Instant::now()) {
                // Here as well: a peer that sends a byte now and then is always at work when the leader looks.
                self.conn.close(CloseReason::MessageTooSlow);
            }
        }
        if reader.scratch.capacity() > SCRATCH_KEPT {
            reader.scratch = Vec::new();
        }
        if !ring.is_empty() && self.conn.is_open() {
            input.ring = Some(ring);
        } else {
            ring.discard(ring.len());
            if reader.spare.is_none() && streams.rings.is_plain(&ring) {
                reader.spare = Some(ring);
            } else {
                streams.rings.put(ring);
            }
        }
        *slot.input.lock() = input;
        handled
    }

    /// Reads what is there into the ring, through TLS where that is spoken.
    fn pull(&self, ring: &mut Ring, wire: &mut Vec<u8>) -> io::Result<Pulled> {
        let read = |room: &mut [u8]| match &*self.conn.slot().stream.read() {
            Some(stream) => polling::read(stream, room),
            None => Err(io::ErrorKind::WouldBlock.into()),
        };
        if self.conn.is_secure() {
            return self.conn.pull_tls(wire, read, |plain| ring.push(plain));
        }
        let space = ring.space();
        let room = space.len();
        let bytes = read(space)?;
        ring.filled(bytes);
        Ok(Pulled { bytes, short: bytes < room, ended: bytes == 0 })
    }

    /// Hands out whole messages; returns how many.
    fn frame(
        &self,
        input: &mut Input,
        ring: &mut Ring,
        scratch: &mut Vec<u8>,
        budget: usize,
        sink: &mut impl FnMut(StreamMessage<'_>),
    ) -> usize {
        let streams = self.conn.streams();
        let mut handled = 0;
        while handled < budget && self.conn.is_open() {
            let step = match &streams.options.framer {
                None => {
                    let fresh = ring.unscanned();
                    if fresh.is_empty() {
                        break;
                    }
                    let (used, step) = input.framer.step(fresh);
                    ring.scan(used);
                    step
                }
                Some(framer) => {
                    let len = ring.len();
                    if len == 0 {
                        break;
                    }
                    match framer.frame(&self.conn, ring.front(len, scratch)) {
                        Framing::Message(count) if (1..=len).contains(&count) => Step::Message { len: count },
                        Framing::More if len > streams.options.limits.message => {
                            Step::Broken { error: FrameError::MessageTooLong, head: 0 }
                        }
                        Framing::More => break,
                        _ => Step::Broken { error: FrameError::Refused, head: 0 },
                    }
                }
            };
            match step {
                Step::More => {}
                Step::Blank { len, pings } => {
                    ring.discard(len);
                    if pings > 0 {
                        streams.counters.pings.add(pings as u64);
                        let line_ends = [b'\r', b'\n'].repeat(pings);
                        // A peer that does not read its pongs is disconnected like any other slow reader.
                        if self.conn.send_bytes(&line_ends, 0) == Err(super::SendFailed::Full) {
                            self.conn.close(CloseReason::SlowReader);
                        }
                    }
                }
                Step::Message { len } => {
                    handled += 1;
                    self.deliver(ring, len, scratch, None, sink);
                }
                Step::Broken { error, head } => {
                    streams.counters.framing[error as usize].inc();
                    self.conn.report(&io::Error::new(io::ErrorKind::InvalidData, error.name()));
                    input.ended = true;
                    if head > 0 {
                        handled += 1;
                        self.deliver(ring, head, scratch, Some(error), sink);
                        self.linger(CloseReason::Framing);
                    } else {
                        self.conn.close(CloseReason::Framing);
                    }
                    ring.discard(ring.len());
                    break;
                }
            }
        }
        handled
    }

    fn deliver(
        &self,
        ring: &mut Ring,
        len: usize,
        scratch: &mut Vec<u8>,
        error: Option<FrameError>,
        sink: &mut impl FnMut(StreamMessage<'_>),
    ) {
        let streams = self.conn.streams();
        streams.counters.received.inc();
        let data = ring.front(len, scratch);
        // A response or an ACK is not answered. Counted first: the answer may come before the watcher returns.
        let owed = !data.starts_with(b"SIP/") && !data.starts_with(b"ACK ");
        if owed {
            self.conn.slot().unanswered.fetch_add(1, Ordering::SeqCst);
        }
        match streams.events.as_ref().map_or(Taken::Pass, |events| events.received(&self.conn, data)) {
            Taken::Pass => sink(StreamMessage { data, conn: &self.conn, error }),
            Taken::Done if owed => self.conn.forgive(),
            Taken::Done | Taken::Owed => {}
        }
        ring.discard(len);
    }

    /// The peer has closed its side. Answers that are still owed can reach it for a while.
    fn peer_ended(&self, input: &mut Input) {
        let owed = self.conn.slot().unanswered.load(Ordering::SeqCst) > 0;
        if !owed {
            self.conn.close(CloseReason::Peer);
        } else if !input.ended {
            input.ended = true;
            self.linger(CloseReason::Peer);
        }
    }

    fn linger(&self, reason: CloseReason) {
        self.conn.due(Due::Linger, self.conn.streams().options.linger, Instant::now());
        self.conn.close_when_done(reason);
    }
}

impl Drop for StreamReady {
    fn drop(&mut self) {
        if self.torn {
            self.conn.close(CloseReason::Local);
        }
        let slot = self.conn.slot();
        // Who gives it back unhandled may lead, or hold locks: watchers are not called then.
        let tells = self.handled || self.conn.streams().events.is_none();
        loop {
            if tells {
                self.conn.tell();
                if slot.reason.load(Ordering::SeqCst) != 0 {
                    self.conn.finish();
                    return;
                }
            }
            let flags = slot.flags.load(Ordering::SeqCst);
            if tells && flags & (flag::NEW | flag::WROTE) != 0 {
                continue;
            }
            let free = flags & !flag::BUSY;
            if slot.flags.compare_exchange(flags, free, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                self.conn.finish_if_free();
                if flags & (flag::READABLE | flag::WRITABLE | flag::NEW | flag::WROTE) != 0 {
                    self.conn.mark();
                }
                return;
            }
        }
    }
}

impl Conn {
    /// Nothing of a message is there: the long limit counts.
    pub(super) fn rest_idle(&self, now: Instant) {
        self.due(Due::Idle, self.streams().options.idle, now);
    }

    pub(super) fn due(&self, what: Due, after: std::time::Duration, now: Instant) {
        let tick = self.streams().wheel.due(now, after);
        self.slot().read_due.store(what.pack(tick), Ordering::SeqCst);
        self.watch(tick);
    }

    /// TLS is set up; who opened the connection is awaited to say something.
    pub(super) fn handshake_ended(&self) {
        if self.ends().incoming {
            self.due(Due::FirstBytes, self.streams().options.first_bytes, Instant::now());
        } else {
            self.rest_idle(Instant::now());
        }
    }

    /// A message will not be answered after all.
    pub fn forgive(&self) {
        let count = &self.slot().unanswered;
        let _ = count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| Some(n.saturating_sub(1)));
    }

    /// Reading was held back and goes on: that time does not count.
    pub(super) fn restart_message_clock(&self) {
        if self.slot().read_due.load(Ordering::SeqCst) & 7 == Due::Message as u64 {
            self.due(Due::Message, self.streams().options.message_limit, Instant::now());
        }
    }

    /// Puts the connection before the next leader.
    pub(super) fn mark(&self) {
        if self.slot().flags.fetch_or(flag::MARKED, Ordering::SeqCst) & flag::MARKED == 0 {
            self.streams().signal.push(self.id().token());
        }
    }
}

impl Streams {
    /// The system reports `news` for a connection: it is handed out, unless somebody has it already.
    pub(in crate::net) fn ready(self: &Arc<Self>, token: mio::Token, news: u32) -> Option<StreamReady> {
        let conn = self.pinned(token)?;
        let before = conn.slot().flags.fetch_or(news | flag::BUSY, Ordering::SeqCst);
        (before & flag::BUSY == 0).then(|| StreamReady::claimed(conn))
    }

    /// A mark is taken out of the queue.
    pub(in crate::net) fn marked(self: &Arc<Self>, token: mio::Token) -> Option<StreamReady> {
        let conn = self.pinned(token)?;
        conn.slot().flags.fetch_and(!flag::MARKED, Ordering::SeqCst);
        let before = conn.slot().flags.fetch_or(flag::BUSY, Ordering::SeqCst);
        (before & flag::BUSY == 0).then(|| StreamReady::claimed(conn))
    }
}
