//! A message in hand: what a plugin may ask of it, and the ways in which it ends.
//!
//! ```text
//! datagram, or message of a stream ──▶ Exchange (borrows buffer, batch, way back) ──▶ answered into the batch
//!                  │ keep()
//!                  ▼
//!               Kept (owns the bytes; on a strand, in a ticket, waiting for the database) ──▶ Exchange again
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::ffi::{Code, Error};
use crate::net::{Conn, Ends, ReplyTo, SendBatch, Transport, UdpListener, UdpRoute};
use crate::sched::{Class, Lane, Leader};
use crate::sip::{HeaderName, Message, Method, Response, Uri};

use super::backlog::Backlog;
use super::core::Core;
use super::count::Dropped;

/// Where a message came from, borrowed while it is in a batch.
#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    Udp(&'a Arc<UdpListener>, UdpRoute),
    Stream(&'a Conn, &'a Ends),
    Kept(&'a Back),
}

/// Where a kept message came from: a connection may be gone by the time it is asked about.
#[derive(Clone)]
pub(super) struct Back {
    to: ReplyTo,
    transport: Transport,
    source: SocketAddr,
    local: SocketAddr,
}

impl Origin<'_> {
    fn source(&self) -> SocketAddr {
        match self {
            Origin::Udp(_, route) => route.peer,
            Origin::Stream(_, ends) => ends.peer,
            Origin::Kept(back) => back.source,
        }
    }

    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Origin::Stream(..) | Origin::Kept(Back { to: ReplyTo::Stream { .. }, .. }))
    }

    /// The transport as the table of bindings has it, and the address of ours that was asked.
    pub(super) fn socket(&self) -> (&'static [u8], SocketAddr) {
        match self {
            Origin::Udp(listener, route) => (b"udp:", local_of(listener, route)),
            Origin::Stream(_, ends) => (prefix(ends.transport), ends.local),
            Origin::Kept(back) => (prefix(back.transport), back.local),
        }
    }

    pub(super) fn transport(&self) -> Transport {
        match self {
            Origin::Udp(..) => Transport::Udp,
            Origin::Stream(_, ends) => ends.transport,
            Origin::Kept(back) => back.transport,
        }
    }

    pub(super) fn keep(&self, message: &Message<'_>) -> Back {
        match *self {
            Origin::Udp(listener, route) => Back {
                to: ReplyTo::Udp { listener: Arc::clone(listener), route },
                transport: Transport::Udp,
                source: route.peer,
                local: local_of(listener, &route),
            },
            Origin::Stream(conn, ends) => {
                // A TLS connection that is gone has to be opened again by its peer.
                let again = if ends.transport == Transport::Tcp { reopen(message, ends.peer) } else { None };
                Back { to: conn.reply_to(again), transport: ends.transport, source: ends.peer, local: ends.local }
            }
            Origin::Kept(back) => back.clone(),
        }
    }

    /// The way to where an answer to `request` goes (RFC 3261 section 18.2.2, RFC 3581): an unreadable Via leaves the
    /// source. A stream's answers go over the connection.
    pub(super) fn answer_peer(&self, request: &Message<'_>) -> SocketAddr {
        let source = self.source();
        if self.is_stream() {
            return source;
        }
        request.via().map_or(source, |via| via.reply_to(source))
    }

    /// The same, to be kept with a rendered answer.
    pub(super) fn answer_to(&self, request: &Message<'_>) -> ReplyTo {
        let mut to = self.keep(request).to;
        if let ReplyTo::Udp { route, .. } = &mut to {
            route.peer = self.answer_peer(request);
        }
        to
    }

    pub(super) fn push(&self, out: &mut SendBatch, peer: SocketAddr, render: impl FnOnce(&mut Vec<u8>)) {
        match self {
            Origin::Udp(listener, route) => out.push_udp(listener, &UdpRoute { peer, ..*route }, render),
            Origin::Stream(conn, _) => out.push_conn(conn, render),
            Origin::Kept(Back { to: ReplyTo::Udp { listener, route }, .. }) => {
                out.push_udp(listener, &UdpRoute { peer, ..*route }, render);
            }
            Origin::Kept(back) => out.push(&back.to, render),
        }
    }
}

/// The transport as the table of bindings has it.
fn prefix(transport: Transport) -> &'static [u8] {
    match transport {
        Transport::Udp => b"udp:",
        Transport::Tcp => b"tcp:",
        Transport::Tls => b"tls:",
    }
}

fn local_of(listener: &UdpListener, route: &UdpRoute) -> SocketAddr {
    let mut local = listener.local_addr();
    if let Some(ip) = route.local {
        local.set_ip(ip);
    }
    local
}

/// Where to connect to when the connection is gone before the answer: the source address with the port of sent-by (RFC
/// 3261 section 18.2.2). Not the address of sent-by or maddr: the sender has not shown that those are its own.
fn reopen(message: &Message<'_>, source: SocketAddr) -> Option<SocketAddr> {
    let port = message.via().ok()?.port_or_default();
    (port != 0).then(|| SocketAddr::new(source.ip(), port))
}

/// Where answers are collected.
pub(super) enum Out<'a> {
    /// The caller's own batch.
    Mine(&'a mut SendBatch),
    /// The batch of a thread whose plugin calls may block: another thread can send what is in it meanwhile. The lock is
    /// held while one answer is rendered.
    Rescuable(&'a Mutex<SendBatch>),
}

impl Out<'_> {
    pub(super) fn with(&mut self, push: impl FnOnce(&mut SendBatch)) {
        match self {
            Out::Mine(batch) => push(batch),
            Out::Rescuable(batch) => push(&mut batch.lock()),
        }
    }
}

/// A message on its way through the chain.
pub struct Exchange<'a> {
    pub(super) engine: &'a Arc<Core>,
    pub(super) message: &'a Message<'a>,
    pub(super) origin: Origin<'a>,
    pub(super) out: Out<'a>,
    /// The chain's link that it is at.
    pub(super) step: usize,
    /// How often it has come back from the database.
    pub(super) rounds: u8,
    /// The registrar has let its sender in: not asked again when the message comes back, for credentials count once.
    pub(super) admitted: Option<Admitted>,
    /// A final answer was given.
    pub(super) answered: bool,
    /// Somebody else owns the rest of its way.
    pub(super) handed_on: bool,
    /// Under overload: goes before others where it has to wait.
    pub(super) lane: Lane,
    /// It is on a thread of its own, with no batch behind it.
    pub(super) alone: bool,
    /// The batch that waits behind it.
    pub(super) backlog: Option<&'a Arc<Backlog>>,
    /// The thread leads while it makes the call, if the call is short.
    pub(super) leader: Option<&'a Leader<'a>>,
}

/// Which of a message's URIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UriOf {
    Request,
    To,
    From,
}

/// A URI's parts; empty where absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UriParts<'a> {
    pub scheme: &'a [u8],
    pub user: &'a [u8],
    pub host: &'a [u8],
    pub port: u16,
}

/// A message that waits: its bytes, the way back, and where in the chain it goes on.
pub struct Kept {
    pub(super) bytes: Vec<u8>,
    pub(super) back: Back,
    pub(super) step: usize,
    pub(super) rounds: u8,
    pub(super) admitted: Option<Admitted>,
    pub(super) lane: Lane,
}

/// How the registrar has let a sender in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admitted {
    Once,
    /// This very request was let in before: it only asks.
    Again,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(
        engine: &'a Arc<Core>,
        message: &'a Message<'a>,
        origin: Origin<'a>,
        out: Out<'a>,
        step: usize,
    ) -> Self {
        Exchange {
            engine,
            message,
            origin,
            out,
            step,
            rounds: 0,
            admitted: None,
            answered: false,
            handed_on: false,
            lane: Lane::Normal,
            alone: false,
            backlog: None,
            leader: None,
        }
    }

    /// `None` for a response.
    pub fn method(&self) -> Option<&'a [u8]> {
        self.message.is_request().then(|| self.message.method().as_bytes())
    }

    pub fn uri(&self) -> Option<&'a [u8]> {
        self.message.is_request().then(|| self.message.uri())
    }

    /// The value of line number `index` of the header `name`.
    pub fn header(&self, name: &[u8], index: usize) -> Option<&'a [u8]> {
        self.message.by_name(name).nth(index)
    }

    /// One of the message's URIs taken apart.
    pub fn uri_parts(&self, which: UriOf) -> Option<UriParts<'a>> {
        let raw = match which {
            UriOf::Request => self.uri()?,
            UriOf::To => self.message.to().ok()?.uri,
            UriOf::From => self.message.from().ok()?.uri,
        };
        match Uri::parse(raw) {
            Ok(uri) => Some(UriParts {
                scheme: raw.split(|b| *b == b':').next().unwrap_or(b""),
                user: uri.user.unwrap_or(b""),
                host: uri.host,
                port: uri.port.unwrap_or(0),
            }),
            // Another scheme is a good URI too (RFC 3261 section 8.2.2.1 wants 416 for it, not 400).
            Err(_) => {
                let colon = raw.iter().position(|b| *b == b':')?;
                let scheme = &raw[..colon];
                let good =
                    scheme.first().is_some_and(u8::is_ascii_alphabetic) && !scheme[..].eq_ignore_ascii_case(b"sip");
                let good = good && !scheme.eq_ignore_ascii_case(b"sips");
                good.then_some(UriParts { scheme, user: b"", host: b"", port: 0 })
            }
        }
    }

    pub fn body(&self) -> &'a [u8] {
        self.message.body()
    }

    pub fn raw(&self) -> &'a [u8] {
        self.message.raw()
    }

    pub fn source(&self) -> SocketAddr {
        self.origin.source()
    }

    /// Answers the request. `headers` are whole lines; the body's type has to be among them.
    pub fn reply(&mut self, status: u16, reason: Option<&str>, headers: &[u8], body: &[u8]) -> Result<(), Error> {
        if !self.message.is_request() {
            return Err(Error::invalid("a response cannot be answered"));
        }
        if self.answered || self.handed_on {
            return Err(Error::new(Code::State, "the message has its final answer already"));
        }
        if self.message.method() == Method::Ack {
            return Err(Error::invalid("an ACK is never answered (RFC 3261 section 17)"));
        }
        let complete = headers.is_empty() || headers.ends_with(b"\r\n");
        if !complete || headers.windows(4).any(|four| four == b"\r\n\r\n") || headers.starts_with(b"\r\n") {
            return Err(Error::invalid("headers must be lines that each end in CRLF, with no empty line between them"));
        }
        if reason.is_some_and(|r| r.bytes().any(|b| b.is_ascii_control())) {
            return Err(Error::invalid("the reason phrase holds a control character"));
        }
        if body.len() > 60_000 {
            return Err(Error::invalid(format!("a body of {} bytes does not fit into an answer", body.len())));
        }
        self.render(status, reason, &mut |response| {
            response.lines(headers);
            body
        })?;
        if status >= 200 {
            self.answered = true;
            self.engine.count.answered.inc();
        }
        Ok(())
    }

    /// Refuses the request because a bound is reached: 503 with Retry-After; what cannot be answered is dropped.
    pub(super) fn refuse(&mut self) {
        if !self.message.is_request() || self.message.method() == Method::Ack {
            // It cannot be refused; dropping it is all there is.
            return self.engine.count.drop(Dropped::Overload);
        }
        self.engine.count.overload.inc();
        let line = format!("Retry-After: {}\r\n", self.engine.config.retry_after);
        // It fails only for what was answered before, and then nothing is owed.
        let _ = self.reply(503, None, line.as_bytes(), b"");
    }

    /// Renders an answer into the batch; `fill` adds lines and returns the body.
    pub(super) fn render<'b>(
        &mut self,
        status: u16,
        reason: Option<&str>,
        fill: &mut dyn FnMut(&mut Response<'_>) -> &'b [u8],
    ) -> Result<(), Error> {
        let (message, engine, source) = (self.message, self.engine, self.origin.source());
        let peer = self.origin.answer_peer(message);
        let mut fitted = false;
        let origin = self.origin;
        let mut render = |arena: &mut Vec<u8>| {
            fitted = into_vec(arena, message.raw().len() + 1024, |room| {
                let mut response = match reason {
                    Some(reason) => {
                        Response::with_reason(room, message, status, reason.as_bytes(), Some(source), &engine.tags)
                    }
                    None => Response::new(room, message, status, Some(source), &engine.tags),
                };
                if !engine.config.server.is_empty() {
                    response.header(HeaderName::Server, engine.config.server.as_bytes());
                }
                let body = fill(&mut response);
                if body.is_empty() { response.finish() } else { response.finish_with(body) }.map(|bytes| bytes.len())
            });
        };
        self.out.with(|out| origin.push(out, peer, &mut render));
        if fitted {
            Ok(())
        } else {
            Err(Error::invalid("the answer does not fit into a datagram, or one of its lines holds a line end"))
        }
    }

    /// Owns the message, to go on at `step`.
    pub(super) fn keep(&self, step: usize) -> Kept {
        Kept {
            bytes: self.message.raw().to_vec(),
            back: self.origin.keep(self.message),
            step,
            rounds: self.rounds,
            admitted: self.admitted,
            lane: self.lane,
        }
    }

    /// What ends or goes on with something: a response, ACK, CANCEL, a request within a dialog.
    pub(super) fn class(&self) -> Class {
        let goes_on = !self.message.is_request()
            || matches!(self.message.method(), Method::Ack | Method::Cancel)
            || self.message.to().is_ok_and(|to| to.tag().is_some());
        if goes_on { Class::Urgent } else { Class::New }
    }

    /// Takes the message out of the chain for a plugin that finishes it later.
    pub fn defer(&mut self) -> Result<Arc<super::Ticket>, Error> {
        if self.answered || self.handed_on {
            return Err(Error::new(Code::State, "the message has its final answer already"));
        }
        let limit = self.engine.config.deferred_limit as i64;
        if self.engine.count.deferred.get() >= limit {
            return Err(Error::new(Code::Full, format!("{limit} messages are deferred, the option deferred_limit")));
        }
        self.handed_on = true;
        let ticket = Arc::new(super::Ticket::new(self.engine, self.keep(self.step)));
        self.engine.remember(self.step, &ticket);
        Ok(ticket)
    }

    /// The key of the strand that keeps messages of one call, or of one user, in order.
    pub(super) fn strand_key(&self, policy: super::Policy) -> u64 {
        match policy {
            super::Policy::KeyedByCallId => self.engine.keys.hash(self.message.call_id()),
            super::Policy::KeyedByAor => {
                let uri = if self.message.method() == Method::Register {
                    self.message.to().and_then(|to| to.parsed_uri())
                } else {
                    self.message.request_uri()
                };
                match uri.and_then(|uri| crate::sip::AorKey::new(&uri)) {
                    Ok(key) => self.engine.keys.hash(key.as_bytes()),
                    // What names nobody is kept in order by its call.
                    Err(_) => self.engine.keys.hash(self.message.call_id()),
                }
            }
            super::Policy::Serial | super::Policy::Parallel => 0,
        }
    }
}

/// Lets `render` write into room at the end of `arena`; on failure once more into as much as a datagram holds. True when
/// something was written.
pub(super) fn into_vec(arena: &mut Vec<u8>, room: usize, mut render: impl FnMut(&mut [u8]) -> Option<usize>) -> bool {
    const LARGEST: usize = 65_507;
    let start = arena.len();
    for room in [room.min(LARGEST), LARGEST] {
        arena.resize(start + room, 0);
        if let Some(written) = render(&mut arena[start..]) {
            arena.truncate(start + written);
            return true;
        }
    }
    arena.truncate(start);
    false
}

/// A message that a plugin finishes later, from any thread.
pub struct Ticket {
    engine: Arc<Core>,
    /// What its owner knows it by; 0: not said yet.
    name: AtomicUsize,
    state: Mutex<TicketState>,
}

struct TicketState {
    kept: Option<Kept>,
    answered: bool,
}

impl Ticket {
    fn new(engine: &Arc<Core>, kept: Kept) -> Self {
        engine.count.deferred.add(1);
        Ticket {
            engine: Arc::clone(engine),
            name: AtomicUsize::new(0),
            state: Mutex::new(TicketState { kept: Some(kept), answered: false }),
        }
    }

    /// Runs `body` on the message; what it answers is sent before this returns.
    pub fn with<R>(&self, body: impl FnOnce(&mut Exchange<'_>) -> Result<R, Error>) -> Result<R, Error> {
        let mut state = self.state.lock();
        let TicketState { kept, answered } = &mut *state;
        let kept = kept.as_mut().ok_or_else(|| Error::invalid("the message was finished already"))?;
        let Kept { bytes, back, step, rounds, admitted, lane } = kept;
        // It was parsed when it came; it is the same bytes.
        let message = Message::parse(bytes).map_err(|e| Error::invalid(e.text()))?;
        self.engine.with_batch(|out| {
            let mut exchange = Exchange {
                rounds: *rounds,
                admitted: *admitted,
                answered: *answered,
                lane: *lane,
                alone: true,
                ..Exchange::new(&self.engine, &message, Origin::Kept(back), Out::Mine(out), *step)
            };
            let result = body(&mut exchange);
            *answered = exchange.answered;
            result
        })
    }

    /// For [`super::Handler::revoked`].
    pub fn set_name(&self, name: usize) {
        self.name.store(name, Ordering::Release);
    }

    /// Takes the message from its owner, unless it is finished; with the owner's name for it.
    pub(super) fn revoke(&self) -> Option<(Kept, usize)> {
        let mut state = self.state.lock();
        if state.answered {
            return None;
        }
        let kept = state.kept.take()?;
        self.engine.count.deferred.add(-1);
        Some((kept, self.name.load(Ordering::Acquire)))
    }

    pub(super) fn is_finished(&self) -> bool {
        self.state.lock().kept.is_none()
    }

    /// Ends the deferral: goes on behind the plugin that deferred it, or ends.
    pub fn resume(&self, verdict: super::Verdict) -> Result<(), Error> {
        let kept = self.state.lock().kept.take();
        let mut kept = kept.ok_or_else(|| Error::invalid("the message was finished already"))?;
        self.engine.count.deferred.add(-1);
        if verdict == super::Verdict::Next {
            kept.step += 1;
            self.engine.go_on(kept);
        }
        Ok(())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.state.get_mut().kept.is_some() {
            self.engine.count.deferred.add(-1);
        }
    }
}
