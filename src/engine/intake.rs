//! What the leader reads: batches of datagrams, messages of connections, and what of them is answered before anybody else
//! sees it.
//!
//! A connection belongs to the thread that reads it until its messages are answered or have their places on strands, so
//! that the order within it is kept; a plugin is never called before it has been let go of.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::backlog::LOOK;
use super::core::{Core, Desk};
use super::count::Dropped;
use super::exchange::{Exchange, Origin, Out};
use crate::net::{
    BATCH, Datagram, Ends, Event, Exceeded, FrameError, SendBatch, StreamMessage, StreamReady, UdpListener,
};
use crate::registrar::Spot;
use crate::sched::{Leader, Source, Verdict};
use crate::sip::{Message, ParseError, hint};

impl Core {
    /// Reads one batch and handles it; true if leadership was given away.
    pub(super) fn serve(
        &self,
        me: &Arc<Core>,
        desk: &mut Desk,
        listener: &Arc<UdpListener>,
        leader: &mut Leader<'_>,
    ) -> bool {
        let count = match desk.recv.recv(listener) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => {
                tracing::debug!(%error, listener = %listener.local_addr(), "a read failed");
                return false;
            }
        };
        if self.chain.is_empty() {
            if let Some(registrar) = self.registrar.as_ref().filter(|_| count > 3) {
                let (mut spots, mut known) = ([Spot::default(); BATCH], 0);
                for datagram in desk.recv.datagrams() {
                    if let Some(aor) = hint::register_aor(datagram.data, &mut [0; 128]) {
                        spots[known] = registrar.spot(aor);
                        known += 1;
                    }
                }
                registrar.expect(&spots[..known]);
            }
            for datagram in desk.recv.datagrams() {
                self.take_in(me, datagram, listener, &mut desk.send, |exchange| self.walk(exchange, None));
            }
            desk.send.flush();
            return false;
        }
        desk.ready.give_back();
        if count == 1 && !self.ordered && desk.lined == 0 {
            if !self.lend(leader, 1) && !leader.promote() {
                leader.abdicate();
            }
            let mut step = 0;
            for datagram in desk.recv.datagrams() {
                self.take_in(me, datagram, listener, &mut desk.send, |exchange| {
                    self.walk(exchange, None);
                    step = exchange.step;
                });
            }
            desk.send.flush();
            self.run_local();
            if !leader.reclaim() {
                self.promoted(step);
            }
            return true;
        }
        // Places on strands are taken in order of arrival, so before anybody else can read the next batch.
        let Desk { recv, send, backlog, .. } = desk;
        for datagram in recv.datagrams() {
            self.take_in(me, datagram, listener, send, |exchange| self.line_up(exchange, backlog));
        }
        // Refusals and 400s; mostly none.
        send.flush();
        self.work(desk, leader);
        true
    }

    /// Reads one connection; returns how many messages it had. Without plugins they are answered, else lined up.
    pub(super) fn serve_stream(&self, me: &Arc<Core>, desk: &mut Desk, mut ready: StreamReady) -> usize {
        let ends = ready.conn().ends();
        let open = self.open.load(Ordering::Relaxed);
        let Desk { reader, send, backlog, .. } = desk;
        let count = ready.handle(reader, |message| {
            self.take_in_stream(me, message, &ends, send, |exchange| {
                if !open {
                    exchange.refuse();
                } else if self.chain.is_empty() {
                    self.walk(exchange, None);
                } else {
                    self.line_up(exchange, backlog);
                }
            });
        });
        // Before the connection is let go of: another thread may answer its next request.
        send.flush();
        drop(ready);
        desk.lined += count;
        count
    }

    /// One datagram, from its bytes to its handling: answered here, put into the backlog, or dropped.
    pub(super) fn take_in(
        &self,
        me: &Arc<Core>,
        datagram: Datagram<'_>,
        listener: &Arc<UdpListener>,
        out: &mut SendBatch,
        handle: impl FnOnce(&mut Exchange<'_>),
    ) {
        if datagram.truncated || datagram.data.len() > self.config.max_message {
            return self.count.drop(Dropped::TooLong);
        }
        if !self.admits(datagram.peer.ip()) {
            return;
        }
        self.read_in(me, datagram.data, Origin::Udp(listener, datagram.route()), out, handle);
    }

    pub(super) fn take_in_stream(
        &self,
        me: &Arc<Core>,
        message: StreamMessage<'_>,
        ends: &Ends,
        out: &mut SendBatch,
        handle: impl FnOnce(&mut Exchange<'_>),
    ) {
        let origin = Origin::Stream(message.conn, ends);
        if !self.admits(ends.peer.ip()) {
            return message.conn.forgive();
        }
        match message.error {
            None => self.read_in(me, message.data, origin, out, handle),
            Some(error) => {
                let (status, reason) = match error {
                    FrameError::MessageTooLong => (513, None),
                    FrameError::NoLength => (400, Some("Missing Content-Length")),
                    FrameError::BadLength => (400, Some("Bad Content-Length")),
                    _ => (400, None),
                };
                if !self.answer_broken(me, message.data, origin, out, status, reason) {
                    // The connection closes behind its answer; there is none.
                    message.conn.disconnect();
                }
            }
        }
    }

    /// Whether the rate limits let a message of this source in; counts it if not.
    fn admits(&self, source: IpAddr) -> bool {
        let Some(limiter) = &self.limiter else { return true };
        match limiter.admit(source, Instant::now()) {
            Ok(()) => true,
            Err(Exceeded::Source) => {
                self.count.drop(Dropped::RateOfSource);
                false
            }
            Err(Exceeded::All) => {
                self.count.drop(Dropped::RateOfAll);
                false
            }
        }
    }

    pub(super) fn read_in(
        &self,
        me: &Arc<Core>,
        data: &mut [u8],
        origin: Origin<'_>,
        out: &mut SendBatch,
        handle: impl FnOnce(&mut Exchange<'_>),
    ) {
        match Message::parse(data) {
            Ok(message) => {
                let mut exchange = Exchange::new(me, &message, origin, Out::Mine(out), 0);
                if !self.overload.is_over() || self.judge(&mut exchange) {
                    handle(&mut exchange);
                }
            }
            Err(ParseError::KeepAlive) => self.count.drop(Dropped::KeepAlive),
            Err(error) => {
                self.answer_broken(me, data, origin, out, error.status(), Some(error.text()));
            }
        }
    }

    /// Under overload: false when the message was refused, else its lane is set.
    fn judge(&self, exchange: &mut Exchange<'_>) -> bool {
        match self.overload.admit(self.level(), exchange.class()) {
            Verdict::Admit(lane) => {
                exchange.lane = lane;
                true
            }
            Verdict::Refuse => {
                exchange.refuse();
                false
            }
        }
    }

    /// False if it cannot be answered; that is counted.
    pub(super) fn answer_broken(
        &self,
        me: &Arc<Core>,
        data: &mut [u8],
        origin: Origin<'_>,
        out: &mut SendBatch,
        status: u16,
        reason: Option<&str>,
    ) -> bool {
        let answered = Message::salvage(data).is_some_and(|message| {
            self.count.malformed.inc();
            Exchange::new(me, &message, origin, Out::Mine(out), 0).reply(status, reason, b"", b"").is_ok()
        });
        if !answered {
            self.count.drop(Dropped::Unanswerable);
        }
        answered
    }
}

impl Source for Core {
    fn lead(&self, leader: &mut Leader<'_>, timeout: Option<Duration>) {
        let Some(me) = self.me.upgrade() else { return };
        let mut desk = self.take_desk();
        // Said before it is looked whether there are backlogs: who adds one to an engine whose leader waits sees it.
        self.blind.store(true, Ordering::SeqCst);
        let backlogged = self.backlogged.load(Ordering::SeqCst) > 0;
        if backlogged {
            self.blind.store(false, Ordering::Relaxed);
        }
        // Said before it is looked whether there are connections: who opens the first one later sees it.
        self.timeless.store(true, Ordering::SeqCst);
        let interval = self.streams.expire_interval();
        if interval.is_some() {
            self.timeless.store(false, Ordering::Relaxed);
        }
        if backlogged {
            // Before the wait: this thread may lead because that call takes so long.
            self.rescue();
        }
        let look = if backlogged { Some(LOOK) } else { None };
        let timeout = [timeout, look, interval].into_iter().flatten().min();
        if let Err(error) = self.reactor.wait(&mut desk.ready, timeout) {
            tracing::error!(%error, "waiting for events failed");
        }
        self.timeless.store(false, Ordering::Relaxed);
        self.blind.store(false, Ordering::Relaxed);
        leader.events_came();
        self.overload.observe(self.level());
        if backlogged {
            self.rescue();
        }
        if interval.is_some() {
            self.streams.expire(Instant::now());
        }
        let mut taken = 0;
        while let Some(event) = desk.ready.pop() {
            match event {
                Event::Udp(listener) => {
                    if self.open.load(Ordering::Relaxed) && self.serve(&me, &mut desk, &listener, leader) {
                        break;
                    }
                }
                Event::Accept(acceptor) => {
                    if self.open.load(Ordering::Relaxed) {
                        self.streams.accept(&acceptor);
                    }
                }
                Event::Stream(ready) if ready.may_block() => {
                    // With leadership lent or given away, and with nothing behind it: what is left of the batch goes to
                    // the next leader, this connection too if messages of others are lined up already.
                    if desk.lined > 0 {
                        drop(ready);
                        break;
                    }
                    desk.ready.give_back();
                    if !leader.lend() && !leader.promote() {
                        leader.abdicate();
                    }
                    self.serve_stream(&me, &mut desk, ready);
                    leader.reclaim();
                    break;
                }
                Event::Stream(ready) => {
                    taken += self.serve_stream(&me, &mut desk, ready);
                    if taken >= BATCH {
                        break;
                    }
                }
            }
        }
        self.work(&mut desk, leader);
        // What a full batch has left over belongs to whoever leads next.
        desk.ready.give_back();
        self.desks.lock().push(desk);
    }

    fn wake(&self) {
        self.reactor.wake();
    }
}
