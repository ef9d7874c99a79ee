//! The registrar's side of an exchange: answers that wait for their commit, messages that wait for the database, and what
//! comes back from there.
//!
//! ```text
//! register() ── Answered ──▶ into the batch
//!            ── Durable ───▶ Held::Answer ─ submit ─▶ writer commits ─▶ Returns::committed: one batch, many answers
//!            ── Miss ──────▶ Held::Message ── load ─▶ cache is filled ▶ Returns::loaded: the message runs again
//! ```

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Figures;
use super::core::Core;
use super::exchange::{Admitted, Exchange, Kept, into_vec};
use super::plugin::Verdict;
use crate::ffi::{Code, Error};
use crate::net::{ReplyTo, Transport};
use crate::registrar::store::{Kind, NO_Q, StoreError};
use crate::registrar::{
    Auth, BindingView, Extra, Mode, Options, Outcome, Registrar, Registration, Rejection, Sink, SipReply, Ticket,
    system_clock,
};
use crate::sip::uri::Uri;
use crate::sip::{AorKey, Cursor, Message, Method, Response};

/// A registrar as engines use it.
pub type Bindings = Registrar<Held>;

/// A registrar's options; `mode` is write_through unless something else is set.
#[derive(Debug, Clone)]
pub struct RegistrarOptions(pub(super) Options);

impl Default for RegistrarOptions {
    fn default() -> Self {
        RegistrarOptions(Options { mode: Mode::WriteThrough, ..Options::default() })
    }
}

/// Times that one message may come back from the database before it is given up: rows that are pushed out of the cache
/// faster than their messages come by would keep it going round.
const ROUNDS: u8 = 4;

/// What waits in the registrar.
pub struct Held(What, Waiting);

enum What {
    /// A rendered answer, to be sent after the commit.
    Answer { to: ReplyTo, bytes: Vec<u8> },
    /// A message, to be run again.
    Message(Kept),
    /// A ticket whose answer another one carries.
    Nothing,
}

/// Counts what waits for the database, as long as it does.
struct Waiting(Arc<Core>);

impl Waiting {
    fn new(core: &Arc<Core>) -> Self {
        core.count.waiting.add(1);
        Waiting(Arc::clone(core))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.count.waiting.add(-1);
    }
}

/// Where held things come back.
struct Returns;

impl Sink<Held> for Returns {
    fn committed(&self, waiters: &mut Vec<Held>, result: Result<(), &StoreError>) {
        let Some(core) = waiters.first().map(|held| Arc::clone(&held.1.0)) else { return };
        if let Err(error) = result {
            tracing::warn!(waiting = waiters.len(), %error, "answers turned into 503");
        }
        core.with_batch(|out| {
            for Held(what, waiting) in waiters.drain(..) {
                let What::Answer { to, mut bytes } = what else { continue };
                let core = &waiting.0;
                match result {
                    Ok(()) => {
                        out.push(&to, |arena| arena.extend_from_slice(&bytes));
                        core.count.answered.inc();
                    }
                    Err(_) => out.push(&to, |arena| unavailable(core, &mut bytes, arena)),
                }
            }
        });
    }

    fn loaded(&self, waiters: &mut Vec<Held>, result: Result<(), &StoreError>) {
        if let Err(error) = result {
            tracing::warn!(waiting = waiters.len(), %error, "requests answered with 503");
        }
        for Held(what, waiting) in waiters.drain(..) {
            let What::Message(mut kept) = what else { continue };
            kept.rounds += 1;
            if result.is_ok() && kept.rounds <= ROUNDS {
                waiting.0.go_on(kept);
            } else {
                waiting.0.refuse(kept);
            }
        }
    }
}

/// Renders 503 in place of the 200 that was held: the 200 has all the headers that the 503 copies.
fn unavailable(core: &Core, answer: &mut [u8], arena: &mut Vec<u8>) {
    let room = answer.len() + 256;
    let Ok(message) = Message::parse(answer) else { return };
    core.count.overload.inc();
    into_vec(arena, room, |room| {
        let mut response = Response::new(room, &message, 503, None, &core.tags);
        response.number(crate::sip::HeaderName::RetryAfter, core.config.retry_after.into());
        response.finish().map(|bytes| bytes.len())
    });
}

/// Opens the store behind a URL.
pub fn open_registrar(options: RegistrarOptions, url: &str) -> Result<Arc<Bindings>, Error> {
    let mut options = options.0;
    if url == "memory:" {
        options.mode = Mode::Memory;
        options.url.clear();
    } else {
        url.clone_into(&mut options.url);
    }
    Registrar::open(options, Returns).map(Arc::new).map_err(store_error)
}

fn store_error(error: StoreError) -> Error {
    let code = match error.kind() {
        Kind::Config => Code::Config,
        Kind::Schema => Code::Schema,
        Kind::Closed => Code::State,
        _ => Code::Database,
    };
    Error::new(code, error.to_string())
}

/// A binding that a look-up found.
pub struct Found {
    pub contact: Vec<u8>,
    pub call_id: Vec<u8>,
    pub user_agent: Vec<u8>,
    pub received: Vec<u8>,
    pub path: Vec<u8>,
    /// 0 to 1000.
    pub q: u32,
    pub cseq: u32,
    /// In seconds from now.
    pub expires_in: u32,
}

/// The bindings of an address-of-record ("sip:alice@example.test"), best q first. May wait for the database.
pub fn lookup(registrar: &Bindings, aor: &str) -> Result<Vec<Found>, Error> {
    let wrong = || Error::invalid(format!("\"{}\" is not a SIP URI with a user", aor.escape_default()));
    let key = Uri::parse(aor.as_bytes()).and_then(|uri| AorKey::new(&uri)).map_err(|_| wrong())?;
    let now = system_clock();
    let mut found = Vec::new();
    registrar
        .lookup(registrar.key(&key).as_bytes(), now, |b: &BindingView<'_>| {
            found.push(Found {
                contact: b.contact.to_vec(),
                call_id: b.call_id.to_vec(),
                user_agent: b.user_agent.to_vec(),
                received: b.received.to_vec(),
                path: b.path.to_vec(),
                // RFC 3261 section 20.10 leaves a missing q to the server: the best.
                q: if b.q == NO_Q { 1000 } else { b.q.into() },
                cseq: b.cseq,
                expires_in: b.expires.saturating_sub(now),
            });
        })
        .map_err(store_error)?;
    Ok(found)
}

/// Waits until everything is written, at most `limit`; how many addresses-of-record are still to be written.
pub fn flush(registrar: &Bindings, limit: Duration) -> usize {
    let deadline = Instant::now() + limit;
    loop {
        let left = registrar.unwritten();
        if left == 0 || Instant::now() >= deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(super) fn add_figures(registrar: &Bindings, figures: &mut Figures) {
    let c = registrar.counters();
    figures.bindings = registrar.bindings() as u64;
    figures.cache_hits = c.hits.get();
    figures.cache_misses = c.misses.get();
    figures.selects = c.selects.get();
    figures.rows_written = c.upserts.get() + c.deletes.get();
    figures.commits = c.commits.get();
    figures.database_errors = c.retries.get() + c.outages.get() + c.refused.get();
}

impl Exchange<'_> {
    /// REGISTER by RFC 3261 section 10.3; see `partyline_registrar_handle`.
    pub fn register(&mut self, registrar: &Arc<Bindings>) -> Result<Verdict, Error> {
        if !self.message.is_request() || self.message.method() != Method::Register {
            return Ok(Verdict::Next);
        }
        if self.answered || self.handed_on {
            return Err(Error::new(Code::State, "the message has its final answer already"));
        }
        let registration = match Registration::read(self.message, registrar.options().use_domain) {
            Ok(registration) => registration,
            Err(rejection) => return self.reject(rejection),
        };
        let (mut received, mut socket) = ([0; ADDRESS], [0; ADDRESS]);
        let request = registration.request(self.received_uri(&mut received), self.socket(&mut socket));
        let request = if self.admitted == Some(Admitted::Again) { request.as_query() } else { request };
        let now = system_clock();
        let (message, engine, source) = (self.message, self.engine, self.source());
        // Decided and rendered in one step, under one lock. An answer that does not fit is decided again with all the
        // room that a datagram has: to the rules that is a retransmission, which changes nothing.
        for room in [message.raw().len() + 4096, 65_507] {
            let mut outcome = None;
            let mut held = Vec::new();
            let mut decide = |arena: &mut Vec<u8>| {
                let start = arena.len();
                arena.resize(start + room, 0);
                let mut reply = SipReply::new(&mut arena[start..], message, Some(source), &engine.tags);
                outcome = Some(registrar.register(&request, now, &mut reply));
                let written = reply.finish().map(|bytes| bytes.len());
                arena.truncate(start + written.unwrap_or(0));
                written.is_some()
            };
            let mut fitted = false;
            if registrar.options().mode == Mode::WriteThrough {
                fitted = decide(&mut held);
            } else {
                let (origin, peer) = (self.origin, self.answer_peer());
                self.out.with(|out| origin.push(out, peer, |arena| fitted = decide(arena)));
            }
            let outcome = outcome.ok_or_else(|| Error::invalid("the answer could not be begun"))?;
            if !fitted && !matches!(outcome, Outcome::Miss(_)) {
                if let Outcome::Durable(ticket) = outcome {
                    let _ = registrar.submit(ticket, Held(What::Nothing, Waiting::new(engine)));
                }
                continue;
            }
            return match outcome {
                Outcome::Answered(_) | Outcome::Rejected(_) => {
                    self.send_held(&held);
                    self.answered = true;
                    self.engine.count.answered.inc();
                    Ok(Verdict::Done)
                }
                Outcome::Durable(ticket) => {
                    self.hold(registrar, ticket, held);
                    Ok(Verdict::Done)
                }
                Outcome::Miss(ticket) => {
                    let waiter = Held(What::Message(self.keep(self.step)), Waiting::new(self.engine));
                    self.await_load(registrar.load(ticket, waiter).is_ok())
                }
            };
        }
        self.reply(500, Some("Answer Too Large"), b"", b"")?;
        Ok(Verdict::Done)
    }

    /// The registrar's check of the user; see `partyline_registrar_authorize`.
    pub fn authorize(&mut self, registrar: &Arc<Bindings>) -> Result<Verdict, Error> {
        if !self.message.is_request() || self.message.method() != Method::Register {
            return Ok(Verdict::Next);
        }
        if self.answered || self.handed_on {
            return Err(Error::new(Code::State, "the message has its final answer already"));
        }
        let key = match self.message.to().and_then(|to| to.parsed_uri()).and_then(|uri| AorKey::new(&uri)) {
            Ok(key) => registrar.key(&key),
            Err(error) => return self.reject(Rejection::BadRequest(error)),
        };
        let (message, engine, source) = (self.message, self.engine, self.source());
        let now = system_clock();
        let mut auth = None;
        let mut written = false;
        let (origin, peer) = (self.origin, self.answer_peer());
        self.out.with(|out| {
            origin.push(out, peer, |arena| {
                let start = arena.len();
                arena.resize(start + message.raw().len() + 1024, 0);
                let mut reply = SipReply::new(&mut arena[start..], message, Some(source), &engine.tags);
                auth = Some(registrar.authorize(message, key.as_bytes(), now, &mut reply));
                let length = reply.finish().map(|bytes| bytes.len());
                written = length.is_some();
                arena.truncate(start + length.unwrap_or(0));
            });
        });
        match auth {
            Some(Auth::Ok) => self.admitted = Some(Admitted::Once),
            Some(Auth::Again) => self.admitted = Some(Admitted::Again),
            Some(Auth::Challenge | Auth::Rejected(_)) if written => {
                self.answered = true;
                self.engine.count.answered.inc();
                return Ok(Verdict::Done);
            }
            Some(Auth::Challenge | Auth::Rejected(_)) => {
                // It did not fit beside a request this large.
                return self.reply(500, Some("Answer Too Large"), b"", b"").map(|()| Verdict::Done);
            }
            Some(Auth::Miss(ticket)) => {
                let waiter = Held(What::Message(self.keep(self.step)), Waiting::new(self.engine));
                let taken = registrar.load(ticket, waiter).is_ok();
                return self.await_load(taken);
            }
            None => return Err(Error::new(Code::Io, "the answer could not be begun")),
        }
        Ok(Verdict::Next)
    }

    /// What the engine does with a REGISTER that no plugin took.
    pub(super) fn authorize_and_register(&mut self, registrar: &Arc<Bindings>) -> Result<Verdict, Error> {
        if self.admitted.is_none() {
            let verdict = self.authorize(registrar)?;
            if verdict != Verdict::Next {
                return Ok(verdict);
            }
        }
        self.register(registrar)
    }

    fn reject(&mut self, rejection: Rejection) -> Result<Verdict, Error> {
        let (status, reason, extra) = rejection.answer();
        let line = match extra {
            Extra::None => String::new(),
            Extra::MinExpires(seconds) => format!("Min-Expires: {seconds}\r\n"),
            Extra::RetryAfter(seconds) => format!("Retry-After: {seconds}\r\n"),
        };
        self.reply(status, Some(reason), line.as_bytes(), b"")?;
        Ok(Verdict::Done)
    }

    fn answer_peer(&self) -> SocketAddr {
        self.origin.answer_peer(self.message)
    }

    fn send_held(&mut self, bytes: &[u8]) {
        let (origin, peer) = (self.origin, self.answer_peer());
        if !bytes.is_empty() {
            self.out.with(|out| origin.push(out, peer, |arena| arena.extend_from_slice(bytes)));
        }
    }

    /// The answer waits for its commit; it may be there already.
    fn hold(&mut self, registrar: &Arc<Bindings>, ticket: Ticket, mut bytes: Vec<u8>) {
        self.handed_on = true;
        bytes.shrink_to_fit();
        let to = self.origin.answer_to(self.message);
        let held = Held(What::Answer { to, bytes }, Waiting::new(self.engine));
        if let Some(Held(What::Answer { bytes, .. }, _)) = registrar.submit(ticket, held) {
            self.send_held(&bytes);
            self.engine.count.answered.inc();
        }
        registrar.kick();
    }

    fn await_load(&mut self, taken: bool) -> Result<Verdict, Error> {
        if taken {
            self.handed_on = true;
            return Ok(Verdict::Pending);
        }
        self.refuse();
        Ok(Verdict::Done)
    }

    /// The socket that the message came in on, as the table has it.
    fn socket<'b>(&self, buffer: &'b mut [u8; ADDRESS]) -> &'b [u8] {
        let (transport, local) = self.origin.socket();
        address(buffer, transport, local, b"")
    }

    /// Where a REGISTER came from, as a URI, if its first Contact says something else; else empty.
    fn received_uri<'b>(&self, buffer: &'b mut [u8; ADDRESS]) -> &'b [u8] {
        let source = self.source();
        let first = self.message.contacts().next();
        if let Some(Ok(crate::sip::Contact::Address(contact))) = first {
            let host = contact.uri.host;
            let host = host.strip_prefix(b"[").and_then(|h| h.strip_suffix(b"]")).unwrap_or(host);
            let host: Option<IpAddr> = std::str::from_utf8(host).ok().and_then(|h| h.parse().ok());
            if host != Some(source.ip()) || contact.uri.port_or_default() != source.port() {
                let transport: &[u8] = match self.origin.transport() {
                    Transport::Udp => b"",
                    Transport::Tcp => b";transport=tcp",
                    Transport::Tls => b";transport=tls",
                };
                return address(buffer, b"sip:", source, transport);
            }
        }
        b""
    }
}

/// Room for a URI of an IPv6 address with its transport.
const ADDRESS: usize = 80;

fn address<'b>(buffer: &'b mut [u8; ADDRESS], prefix: &[u8], address: SocketAddr, suffix: &[u8]) -> &'b [u8] {
    let mut out = Cursor::new(buffer);
    let v6 = address.is_ipv6();
    out.put(prefix).put(if v6 { b"[" } else { b"" }).put_ip(address.ip()).put(if v6 { b"]" } else { b"" });
    out.put(b":").put_number(address.port().into()).put(suffix);
    out.finish().map_or(b"", |bytes| bytes)
}
