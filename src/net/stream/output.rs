//! The writing side of a connection. Order is kept by one flag: who sets `writing` writes, outside the lock, and goes
//! on with what others have added meanwhile; so no thread waits for another's system call, and what several threads
//! send in a rush leaves in few calls.
//!
//! A peer that asks faster than it reads the answers is not read from while half of the bound waits for it (THROTTLED):
//! its own window fills, and it has to read. What is sent to it of our own accord can still reach the bound; then, or
//! when it reads nothing for long, it is disconnected.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::conn::Conn;
use super::events::CloseReason;
use super::table::flag;
use crate::net::sys::polling;

/// How many times the bound may wait for a peer when it is answers that it has asked for.
const OWED: usize = 16;

#[derive(Default)]
pub(super) struct Output {
    /// Waits to be written, from `start` on.
    queue: Vec<u8>,
    start: usize,
    /// Bytes taken and not written yet, the writer's own included.
    pending: usize,
    writing: bool,
    /// The socket became writable while somebody wrote.
    retry: bool,
    pub(super) connecting: bool,
    /// Why to close once nothing waits any more and nobody still owes an answer.
    pub(super) close_when_done: Option<CloseReason>,
}

/// What could not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendFailed {
    /// The connection is closed or closing.
    Closed,
    /// The peer reads too slowly; the connection is being closed.
    Full,
}

/// The writer's own bytes: borrowed for the first, owned for what was queued.
pub(super) enum Chunk<'a> {
    Given(&'a [u8]),
    Queued(Vec<u8>, usize),
}

impl Chunk<'_> {
    fn rest(&self) -> &[u8] {
        match self {
            Chunk::Given(bytes) => bytes,
            Chunk::Queued(bytes, start) => &bytes[*start..],
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Chunk::Given(bytes) => *bytes = &bytes[count..],
            Chunk::Queued(_, start) => *start += count,
        }
    }
}

impl Conn {
    /// Sends `bytes` after everything sent before. What the system does not take at once waits, up to the limit; a peer
    /// that lets more pile up is disconnected. Never blocks.
    pub fn send(&self, bytes: &[u8]) -> Result<(), SendFailed> {
        self.send_counted(bytes, 1)
    }

    /// As [`Conn::send`] for `messages` messages in one piece.
    pub(in crate::net) fn send_counted(&self, bytes: &[u8], messages: u32) -> Result<(), SendFailed> {
        let result = self.send_bytes(bytes, messages);
        match result {
            Ok(()) => self.streams().counters.sent.add(u64::from(messages)),
            Err(_) => self.streams().counters.unsent.add(u64::from(messages)),
        }
        if result == Err(SendFailed::Full) {
            self.close(CloseReason::SlowReader);
        }
        result
    }

    /// `messages` is how many answers these bytes are; keep-alives are none.
    pub(super) fn send_bytes(&self, bytes: &[u8], messages: u32) -> Result<(), SendFailed> {
        if bytes.is_empty() {
            return Ok(());
        }
        let slot = self.slot();
        {
            let mut output = slot.output.lock();
            if slot.reason.load(Ordering::SeqCst) != 0 {
                return Err(SendFailed::Closed);
            }
            let owed = slot.unanswered.load(Ordering::SeqCst) > 0 && messages > 0;
            if owed {
                // Answers may outnumber requests (1xx); what matters is that it comes to 0.
                let _ = slot
                    .unanswered
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| Some(n.saturating_sub(messages)));
            }
            // What is owed for requests that were read before reading stopped is taken: a peer that reads everything
            // in the end must not lose its connection for having asked fast.
            let bound = self.streams().options.outbound.saturating_mul(if owed { OWED } else { 1 });
            if output.pending >= bound {
                return Err(SendFailed::Full);
            }
            let idle = output.is_idle();
            let secure = self.is_secure();
            if secure {
                let sealed = self.seal_into(bytes, &mut output.queue, bound)?;
                output.pending += sealed;
            } else {
                output.pending += bytes.len();
            }
            if output.pending > self.streams().options.outbound / 2 {
                slot.flags.fetch_or(flag::THROTTLED, Ordering::SeqCst);
            }
            if !idle {
                if !secure {
                    output.queue.extend_from_slice(bytes);
                }
                return Ok(());
            }
            output.writing = true;
            if secure {
                let chunk = output.take();
                drop(output);
                self.write_out(chunk);
                return Ok(());
            }
        }
        self.write_out(Chunk::Given(bytes));
        Ok(())
    }

    /// Reading goes on. Whoever of this and [`Conn::hold_reading`] is second sees what the first has done.
    fn end_throttle(&self) {
        let flags = &self.slot().flags;
        if flags.load(Ordering::SeqCst) & flag::THROTTLED != 0 {
            flags.fetch_and(!flag::THROTTLED, Ordering::SeqCst);
            self.release_reading();
        }
    }

    /// Keeps in mind that the socket was readable.
    pub(super) fn hold_reading(&self) {
        let before = self.slot().flags.fetch_or(flag::HELD, Ordering::SeqCst);
        if before & flag::THROTTLED == 0 {
            self.release_reading();
        }
    }

    fn release_reading(&self) {
        let flags = &self.slot().flags;
        if flags.fetch_and(!flag::HELD, Ordering::SeqCst) & flag::HELD != 0 {
            self.restart_message_clock();
            flags.fetch_or(flag::READABLE, Ordering::SeqCst);
            self.mark();
        }
    }

    /// The socket takes data again (or is connected at last).
    pub(super) fn writable(&self) {
        let chunk = {
            let mut output = self.slot().output.lock();
            if output.writing {
                output.retry = true;
                return;
            }
            if output.connecting || (output.queue.is_empty() && output.close_when_done.is_none()) {
                return;
            }
            output.writing = true;
            output.take()
        };
        self.write_out(chunk);
    }

    /// Closes when what waits has been written and what was asked has been answered.
    pub(super) fn close_when_done(&self, reason: CloseReason) {
        self.slot().output.lock().close_when_done.get_or_insert(reason);
        self.writable();
    }

    /// Writes until all is out or the system takes no more. Called with `writing` set by the caller, without the lock.
    pub(super) fn write_out(&self, mut chunk: Chunk<'_>) {
        let slot = self.slot();
        let mut failed = None;
        loop {
            let mut written = 0;
            let mut blocked = false;
            while !chunk.rest().is_empty() {
                let result = match &*slot.stream.read() {
                    Some(stream) => polling::write(stream, chunk.rest()),
                    None => Err(io::ErrorKind::NotConnected.into()),
                };
                match result {
                    Ok(count) => {
                        written += count;
                        chunk.advance(count);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        blocked = true;
                        break;
                    }
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
            if written > 0 {
                self.streams().counters.sent_bytes.add(written as u64);
                if self.streams().events.is_some() {
                    slot.wrote.fetch_add(written, Ordering::SeqCst);
                    self.leave_news(flag::WROTE);
                }
            }
            let mut output = slot.output.lock();
            // A connection that was finished meanwhile has started from 0.
            output.pending = output.pending.saturating_sub(written);
            if failed.is_some() {
                output.writing = false;
                break;
            }
            // With the lock held, as it was set: so the flag and the figure agree.
            if written > 0 && output.pending <= self.streams().options.outbound / 4 {
                self.end_throttle();
            }
            if blocked {
                if std::mem::take(&mut output.retry) {
                    continue;
                }
                output.writing = false;
                if slot.reason.load(Ordering::SeqCst) != 0 {
                    return;
                }
                output.put_back(chunk);
                drop(output);
                if written > 0 || slot.write_due.load(Ordering::SeqCst) == 0 {
                    let due = self.streams().wheel.due(Instant::now(), self.streams().options.write_limit);
                    slot.write_due.store(due, Ordering::SeqCst);
                    self.watch(due);
                }
                return;
            }
            if output.queue.is_empty() {
                output.writing = false;
                output.retry = false;
                slot.write_due.store(0, Ordering::SeqCst);
                let close = output.close_when_done.filter(|_| slot.unanswered.load(Ordering::SeqCst) == 0);
                drop(output);
                if let Some(reason) = close {
                    self.close(reason);
                }
                return;
            }
            chunk = output.take();
        }
        if let Some(error) = failed {
            // Watchers hear of it before they hear of the end.
            slot.failure.store(error.raw_os_error().unwrap_or(0), Ordering::SeqCst);
            self.close(CloseReason::Reset);
        }
    }
}

impl Output {
    /// Nobody writes, and nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        !self.writing && !self.connecting && self.queue.is_empty()
    }

    /// Bytes taken and not written yet.
    pub(super) fn unsent(&self) -> usize {
        self.pending
    }

    /// Lets `fill` add bytes; what the caller has to write if nobody else does.
    pub(super) fn queue_for_records(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> Option<Chunk<'static>> {
        let (idle, before) = (self.is_idle(), self.queue.len());
        fill(&mut self.queue);
        self.pending += self.queue.len() - before;
        if !idle || self.queue.is_empty() {
            return None;
        }
        self.writing = true;
        Some(self.take())
    }

    fn take<'a>(&mut self) -> Chunk<'a> {
        Chunk::Queued(std::mem::take(&mut self.queue), std::mem::take(&mut self.start))
    }

    /// What the writer has left goes before what others have added.
    fn put_back(&mut self, chunk: Chunk<'_>) {
        debug_assert_eq!(self.start, 0);
        let added = std::mem::take(&mut self.queue);
        match chunk {
            Chunk::Given(rest) => {
                self.queue.reserve(rest.len() + added.len());
                self.queue.extend_from_slice(rest);
            }
            Chunk::Queued(bytes, start) => {
                self.queue = bytes;
                self.start = start;
                // The written part is let go once it is the larger one: each byte is moved at most once more.
                if start > self.queue.len() / 2 {
                    self.queue.drain(..start);
                    self.start = 0;
                }
            }
        }
        self.queue.extend_from_slice(&added);
    }
}
