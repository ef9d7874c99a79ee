//! A counted handle on a connection, and how a connection ends.
//!
//! The end comes once: whoever sets `reason` first decides why and shuts the socket down, so that a blocked peer learns
//! of it; the one who holds BUSY unregisters and closes it. If that is somebody handling a message they do it when they
//! are done, else the closer takes BUSY and does it. BUSY then stays, so nobody does it again.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Streams;
use super::events::CloseReason;
use super::table::{ConnId, Ends, Pin, Slot, flag};
use crate::net::error::Transport;
use crate::net::reply::ReplyTo;
use crate::net::sys::polling;

/// A connection, held: its object is not used for another one while this exists, though it may be closed. Cheap to
/// clone, usable from any thread.
pub struct Conn {
    streams: Arc<Streams>,
    pin: Pin,
}

impl Clone for Conn {
    fn clone(&self) -> Self {
        Conn { streams: Arc::clone(&self.streams), pin: self.streams.table.pin_again(&self.pin) }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.streams.table.unpin(&self.pin.slot);
    }
}

impl Conn {
    pub(super) fn new(streams: Arc<Streams>, pin: Pin) -> Conn {
        Conn { streams, pin }
    }

    pub(super) fn slot(&self) -> &Slot {
        &self.pin.slot
    }

    pub(super) fn streams(&self) -> &Arc<Streams> {
        &self.streams
    }

    pub fn id(&self) -> ConnId {
        ConnId { index: self.pin.slot.index, generation: self.pin.generation }
    }

    /// Also after it was closed.
    pub fn ends(&self) -> Ends {
        let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        self.pin.slot.ends.read().unwrap_or(Ends {
            peer: nowhere,
            local: nowhere,
            incoming: false,
            transport: Transport::Tcp,
        })
    }

    pub fn peer(&self) -> SocketAddr {
        self.ends().peer
    }

    pub fn local(&self) -> SocketAddr {
        self.ends().local
    }

    pub fn is_open(&self) -> bool {
        self.pin.slot.reason.load(Ordering::SeqCst) == 0
    }

    /// The way back over this connection. `reopen`: where to connect to when it is closed by then (RFC 3261 section
    /// 18.2.2: the source address with the port of Via's sent-by).
    pub fn reply_to(&self, reopen: Option<SocketAddr>) -> ReplyTo {
        ReplyTo::Stream { streams: Arc::clone(&self.streams), id: self.id(), reopen }
    }

    /// Closes the connection; what waits to be sent is lost. From any thread, as often as one likes.
    pub fn disconnect(&self) {
        self.close(CloseReason::Local);
    }

    pub(super) fn close(&self, reason: CloseReason) {
        let slot = self.slot();
        if slot.reason.compare_exchange(0, reason as u8, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return;
        }
        if self.is_secure() {
            self.say_goodbye();
        }
        if let Some(stream) = &*slot.stream.read() {
            // It fails when the peer was first: then it is shut down already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.finish_if_free();
    }

    /// For who has just set `reason` or let go of BUSY. Where somebody watches, this thread may be anyone's, or lead, and
    /// the watcher may block: the connection ends with the next [`super::StreamReady`].
    pub(super) fn finish_if_free(&self) {
        let slot = self.slot();
        if self.streams.events.is_some() {
            if slot.reason.load(Ordering::SeqCst) != 0 {
                self.mark();
            }
            return;
        }
        let closing = slot.reason.load(Ordering::SeqCst) != 0;
        if closing && slot.flags.fetch_or(flag::BUSY, Ordering::SeqCst) & flag::BUSY == 0 {
            self.finish();
        }
    }

    /// The one unregister and the one close. With BUSY held, which is kept.
    pub(super) fn finish(&self) {
        let slot = self.slot();
        let ends = self.ends();
        let stream = slot.stream.write().take();
        let Some(mut stream) = stream else { return };
        self.tell();
        let failure = slot.failure.swap(0, Ordering::SeqCst);
        if failure != 0 {
            self.report(&io::Error::from_raw_os_error(failure));
        }
        if let Err(error) = self.streams.registry.deregister(&mut stream) {
            tracing::debug!(%error, "a connection was not registered");
        }
        drop(stream);
        self.streams.table.unpublish(&ends, slot.index);
        self.streams.table.dismiss(ends.peer.ip());
        let input = std::mem::take(&mut *slot.input.lock());
        if let Some(ring) = input.ring {
            self.streams.rings.put(ring);
        }
        *slot.output.lock() = super::output::Output::default();
        *slot.tls.lock() = None;
        slot.domain.store(0, Ordering::SeqCst);
        let reason = CloseReason::of(slot.reason.load(Ordering::SeqCst));
        self.streams.counters.closed[reason as usize - 1].inc();
        // A descriptor is free again.
        self.streams.resume_accepting();
        if let Some(events) = &self.streams.events {
            events.disconnected(self, reason);
        }
        // The table's own pin; self holds another.
        self.streams.table.unpin(slot);
    }

    /// With BUSY held.
    pub(super) fn report(&self, error: &io::Error) {
        if let Some(events) = &self.streams.events {
            events.error(self, error);
        }
    }

    /// Tells the watchers what has happened elsewhere. With BUSY held.
    pub(super) fn tell(&self) {
        let Some(events) = &self.streams.events else { return };
        let slot = self.slot();
        let news = slot.flags.fetch_and(!(flag::NEW | flag::WROTE), Ordering::SeqCst);
        if news & flag::NEW != 0 {
            events.connected(self);
        }
        if news & flag::WROTE != 0 {
            let bytes = slot.wrote.swap(0, Ordering::SeqCst);
            if bytes > 0 {
                events.sent(self, bytes);
            }
        }
    }

    /// Leaves something to [`Conn::tell`]: for who has BUSY, else for the next leader.
    pub(super) fn leave_news(&self, what: u32) {
        if self.slot().flags.fetch_or(what, Ordering::SeqCst) & flag::BUSY == 0 {
            self.mark();
        }
    }

    /// A number that a watcher has left with the connection; 0 at first.
    pub fn tag(&self) -> usize {
        self.slot().tag.load(Ordering::SeqCst)
    }

    pub fn set_tag(&self, tag: usize) {
        self.slot().tag.store(tag, Ordering::SeqCst);
    }

    /// Takes what the peer has sent from the system and throws it away: a connection that is closed with unread input is
    /// reset, and what is still on the way to the peer is lost with it.
    pub(super) fn discard_input(&self) {
        let mut waste = [0; 4096];
        if let Some(stream) = &*self.slot().stream.read() {
            for _ in 0..256 {
                if !polling::read(stream, &mut waste).is_ok_and(|count| count > 0) {
                    break;
                }
            }
        }
    }

    /// Has the connection looked at when `due` has come.
    pub(super) fn watch(&self, due: u64) {
        self.streams.wheel.ensure(self.id(), &self.slot().queued, due);
    }
}
