//! What a message meets: the leader's reading of batches, and the walk through the chain.
//!
//! The thread that leads reads one batch: of datagrams, or of messages from connections. Without plugins it answers the batch from the registrar's cache and goes on
//! leading: nothing there can block. With plugins it gives leadership away first and then walks each message through the
//! chain.
//!
//! A plugin call may block, and then nothing may wait behind it but what its policy orders. So the rest of a batch, and the
//! answers collected so far, stand in a [`Backlog`] that others can reach; whoever leads looks at the backlogs, and when a
//! call has taken longer than [`SLOW`] it sends those answers and hands the rest to other threads. The plugin then counts
//! as one that blocks for [`SLOW_FOR`]: its messages leave the batch and become tasks of their own before the call.
//!
//! A connection belongs to the thread that reads it until its messages are answered or have their places on strands, so
//! that the order within it is kept; a plugin is never called before it has been let go of.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Figures;
use super::bindings::Bindings;
use super::config::Config;
use super::count::{Count, Dropped};
use super::exchange::{Exchange, Kept, Origin, Out};
use super::plugin::{Chain, Link, Plugin, Policy, Verdict};
use crate::net::{
    BATCH, Datagram, Ends, Event, FrameError, Reactor, Ready, RecvBatch, SendBatch, SendFailed, StreamMessage,
    StreamReader, StreamReady, Streams, TcpAcceptor, UdpListener,
};
use crate::observe::{Counter, Histogram, Text};
use crate::sched::{Admit, Bounds, Leader, Next, Permit, Policy as StrandPolicy, Pool, Source, StrandSet, Task};
use crate::sip::{KeyHasher, Message, Method, ParseError, Tags};

/// A plugin call that takes longer is taken for one that blocks.
const SLOW: Duration = Duration::from_millis(1);
/// How long a plugin is remembered as one that blocks.
const SLOW_FOR: Duration = Duration::from_secs(60);

/// How soon the leader looks at backlogs again.
const LOOK: Duration = Duration::from_millis(2);

/// What waits behind the calls of one batch.
#[derive(Default)]
pub(super) struct Backlog {
    rest: Mutex<VecDeque<(Kept, Option<Permit<Kept>>)>>,
    out: Mutex<SendBatch>,
    /// When the current call began, in microseconds of the engine's life; 0: no call.
    since: AtomicU64,
    /// The link that is called.
    link: AtomicUsize,
}

/// What a thread needs to serve a batch; kept in a stack, so that the one used last is used next.
#[derive(Default)]
struct Desk {
    ready: Ready,
    recv: RecvBatch,
    reader: StreamReader,
    send: SendBatch,
    backlog: Arc<Backlog>,
    /// Messages of connections that were lined up in the backlog since the last call of [`Core::work`].
    lined: usize,
}

/// See the module.
pub(super) struct Core {
    pub config: Config,
    pub listeners: Vec<Arc<UdpListener>>,
    pub registrar: Option<Arc<Bindings>>,
    pub tags: Tags,
    pub keys: KeyHasher,
    pub count: Count,
    pub streams: Arc<Streams>,
    acceptors: Mutex<Vec<Arc<TcpAcceptor>>>,
    me: Weak<Core>,
    reactor: Reactor,
    chain: Chain,
    /// Some plugin wants its messages in order.
    ordered: bool,
    pool: OnceLock<Weak<Pool>>,
    desks: Mutex<Vec<Desk>>,
    /// Batches that are being walked through the chain.
    backlogs: Mutex<Vec<Arc<Backlog>>>,
    backlogged: AtomicUsize,
    rescues: Counter,
    open: AtomicBool,
    /// The leader waits, or is about to, without a look at the connections' limits of time.
    timeless: AtomicBool,
    born: Instant,
}

/// What an engine listens on.
pub(super) struct Sockets {
    pub udp: Vec<Arc<UdpListener>>,
    pub tcp: Vec<Arc<TcpAcceptor>>,
    pub streams: Arc<Streams>,
}

/// Why [`Core::send_tcp`] has failed.
pub(super) enum NotSent {
    Unconnected(std::io::Error),
    Failed(SendFailed),
}

impl Core {
    pub fn new(
        config: Config,
        reactor: Reactor,
        sockets: Sockets,
        plugins: Vec<Plugin>,
        registrar: Option<Arc<Bindings>>,
    ) -> Arc<Core> {
        Arc::new_cyclic(|me: &Weak<Core>| {
            let mut chain = Chain::default();
            for plugin in plugins {
                chain.insert(link(plugin, &config, me));
            }
            let ordered = chain.links().iter().any(|l| l.plugin.policy != Policy::Parallel);
            Core {
                config,
                listeners: sockets.udp,
                registrar,
                tags: Tags::new(),
                keys: KeyHasher::default(),
                count: Count::default(),
                streams: sockets.streams,
                acceptors: Mutex::new(sockets.tcp),
                me: me.clone(),
                reactor,
                chain,
                ordered,
                pool: OnceLock::new(),
                desks: Mutex::new(Vec::new()),
                backlogs: Mutex::new(Vec::new()),
                backlogged: AtomicUsize::new(0),
                rescues: Counter::new(),
                open: AtomicBool::new(true),
                timeless: AtomicBool::new(false),
                born: Instant::now(),
            }
        })
    }

    pub fn set_pool(&self, pool: &Arc<Pool>) {
        let _ = self.pool.set(Arc::downgrade(pool));
    }

    /// Takes in nothing from now on: datagrams are not read, connections not accepted, and what comes over a connection
    /// is refused (it is read, for what is still to be written needs the same events).
    pub fn close(&self) {
        self.open.store(false, Ordering::SeqCst);
        for acceptor in self.acceptors.lock().drain(..) {
            self.reactor.remove_tcp(&acceptor);
        }
    }

    /// Closes what is still connected.
    pub fn disconnect(&self) {
        self.streams.close_all();
    }

    /// Messages that were taken in and have not ended: deferred, waiting for the database, on strands, being handled.
    pub fn in_hand(&self) -> usize {
        let strands: usize = self.chain.links().iter().map(|l| l.strands.queued() + l.strands.running()).sum();
        let count = self.count.deferred.get() + self.count.waiting.get();
        usize::try_from(count).unwrap_or(0) + strands
    }

    pub fn drain_strands(&self) {
        for link in self.chain.links() {
            drop(link.strands.drain());
        }
    }

    /// Runs `body` with a batch of its own and sends what it has put there.
    pub fn with_batch<R>(&self, body: impl FnOnce(&mut SendBatch) -> R) -> R {
        let mut desk = self.take_desk();
        let result = body(&mut desk.send);
        desk.send.flush();
        self.desks.lock().push(desk);
        self.look_at_streams();
        result
    }

    /// Sends over an open connection to `peer`, or over a new one.
    pub fn send_tcp(&self, peer: SocketAddr, bytes: &[u8]) -> Result<(), NotSent> {
        let conn = self.streams.connect(peer, None).map_err(NotSent::Unconnected)?;
        let sent = conn.send(bytes);
        self.look_at_streams();
        sent.map_err(NotSent::Failed)
    }

    /// After something that may have opened a connection while the leader waits without looking at any.
    fn look_at_streams(&self) {
        if self.timeless.load(Ordering::SeqCst) && self.streams.expire_interval().is_some() {
            self.reactor.wake();
        }
    }

    fn take_desk(&self) -> Desk {
        self.desks.lock().pop().unwrap_or_default()
    }

    /// Answers a kept message with 503.
    pub fn refuse(&self, kept: Kept) {
        self.with_kept(kept, |exchange| exchange.refuse());
    }

    /// A kept message goes on, on some thread of the pool.
    pub fn go_on(&self, kept: Kept) {
        self.submit(kept, None);
    }

    fn submit(&self, kept: Kept, permit: Option<Permit<Kept>>) {
        let Some(core) = self.me.upgrade() else { return };
        let Some(pool) = self.pool.get().and_then(Weak::upgrade) else { return };
        self.count.waiting.add(1);
        // A refused task is dropped with what it holds, so the message stays here until it is taken.
        let cell = Arc::new(Mutex::new(Some((kept, permit))));
        let inner = Arc::clone(&cell);
        let task = Task::once(move || {
            if let Some((kept, permit)) = inner.lock().take() {
                core.count.waiting.add(-1);
                core.run_kept(kept, permit);
            }
        });
        if pool.submit(task).is_err() {
            if let Some((kept, permit)) = cell.lock().take() {
                self.count.waiting.add(-1);
                self.with_kept(kept, |exchange| exchange.refuse());
                if let Some(permit) = permit {
                    self.release_quietly(permit);
                }
            }
        }
    }

    /// The strand of a message that was refused goes to the next one, which is refused too if there is still no room.
    fn release_quietly(&self, mut permit: Permit<Kept>) {
        while let Next::Run(kept) | Next::Yield(kept) = permit.next() {
            self.with_kept(kept, |exchange| exchange.refuse());
        }
    }

    fn run_kept(&self, kept: Kept, permit: Option<Permit<Kept>>) {
        let mut permit = permit;
        self.with_kept(kept, |exchange| {
            exchange.alone = true;
            self.walk(exchange, permit.take());
        });
        self.run_local();
    }

    /// Runs `body` on a kept message and sends its answers.
    fn with_kept(&self, kept: Kept, body: impl FnOnce(&mut Exchange<'_>)) {
        self.with_batch(|out| self.with_kept_out(kept, Out::Mine(out), None, body));
    }

    fn with_kept_out(
        &self,
        mut kept: Kept,
        out: Out<'_>,
        backlog: Option<&Arc<Backlog>>,
        body: impl FnOnce(&mut Exchange<'_>),
    ) {
        let Some(me) = self.me.upgrade() else { return };
        // It was read once already; it is the same bytes.
        let Ok(message) = Message::parse(&mut kept.bytes) else { return };
        body(&mut Exchange {
            rounds: kept.rounds,
            admitted: kept.admitted,
            backlog,
            ..Exchange::new(&me, &message, Origin::Kept(&kept.back), out, kept.step)
        });
    }

    /// Reads one batch and handles it; true if leadership was given away.
    fn serve(&self, me: &Arc<Core>, desk: &mut Desk, listener: &Arc<UdpListener>, leader: &mut Leader<'_>) -> bool {
        let count = match desk.recv.recv(listener) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => {
                tracing::debug!(%error, listener = %listener.local_addr(), "a read failed");
                return false;
            }
        };
        if self.chain.is_empty() {
            for datagram in desk.recv.datagrams() {
                self.take_in(me, datagram, listener, &mut desk.send, |exchange| self.walk(exchange, None));
            }
            desk.send.flush();
            return false;
        }
        desk.ready.give_back();
        if count == 1 && !self.ordered && desk.lined == 0 {
            if !leader.promote() {
                leader.abdicate();
            }
            for datagram in desk.recv.datagrams() {
                self.take_in(me, datagram, listener, &mut desk.send, |exchange| self.walk(exchange, None));
            }
            desk.send.flush();
            self.run_local();
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
    fn serve_stream(&self, me: &Arc<Core>, desk: &mut Desk, mut ready: StreamReady) -> usize {
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

    /// Puts a message into the backlog, with a place on its first plugin's strand; not one that has to wait there, or is
    /// refused.
    fn line_up(&self, exchange: &mut Exchange<'_>, backlog: &Backlog) {
        let first = self.chain.next(0, exchange.message.method());
        let permit = match first.filter(|(_, link)| link.plugin.policy != Policy::Parallel) {
            None => None,
            Some((step, link)) => {
                exchange.step = step;
                match self.enter(link, exchange) {
                    Some(permit) => Some(permit),
                    None => return,
                }
            }
        };
        backlog.rest.lock().push_back((exchange.keep(exchange.step), permit));
    }

    /// Gives leadership away and walks what was lined up.
    fn work(&self, desk: &mut Desk, leader: &mut Leader<'_>) {
        desk.lined = 0;
        if desk.backlog.rest.lock().is_empty() {
            return;
        }
        desk.ready.give_back();
        // Known before the next leader waits: it has to look after this batch.
        self.backlogs.lock().push(Arc::clone(&desk.backlog));
        self.backlogged.fetch_add(1, Ordering::SeqCst);
        if !leader.promote() {
            leader.abdicate();
        }
        self.work_off(&desk.backlog);
    }

    /// Walks what is in the backlog through the chain, with others' help if a call blocks.
    fn work_off(&self, backlog: &Arc<Backlog>) {
        loop {
            let Some((kept, permit)) = backlog.rest.lock().pop_front() else { break };
            self.with_kept_out(kept, Out::Rescuable(&backlog.out), Some(backlog), |exchange| {
                self.walk(exchange, permit)
            });
        }
        self.forget(backlog);
        backlog.out.lock().flush();
        self.run_local();
    }

    fn forget(&self, backlog: &Arc<Backlog>) {
        let mut backlogs = self.backlogs.lock();
        if let Some(place) = backlogs.iter().position(|other| Arc::ptr_eq(other, backlog)) {
            backlogs.swap_remove(place);
            self.backlogged.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The leader's look at the batches that are being walked: one whose call takes long is relieved of what waits behind
    /// that call.
    fn rescue(&self) {
        let now = self.micros();
        let slow = SLOW.as_micros() as u64;
        let stuck = |b: &Arc<Backlog>| {
            let since = b.since.load(Ordering::Acquire);
            since != 0 && now.saturating_sub(since) > slow
        };
        let found: Vec<Arc<Backlog>> = self.backlogs.lock().iter().filter(|b| stuck(b)).cloned().collect();
        for backlog in found {
            if let Some(link) = self.chain.links().get(backlog.link.load(Ordering::Relaxed)) {
                link.blocks_until(self.born.elapsed() + SLOW_FOR);
            }
            // The owner holds this lock only while it renders, never during a call.
            backlog.out.lock().flush();
            let rest: Vec<_> = backlog.rest.lock().drain(..).collect();
            if !rest.is_empty() {
                self.rescues.inc();
            }
            for (kept, permit) in rest {
                self.submit(kept, permit);
            }
            // Nothing waits behind it any more.
            self.forget(&backlog);
        }
    }

    fn micros(&self) -> u64 {
        self.born.elapsed().as_micros() as u64 + 1
    }

    fn take_in(
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
        self.read_in(me, datagram.data, Origin::Udp(listener, datagram.route()), out, handle);
    }

    fn take_in_stream(
        &self,
        me: &Arc<Core>,
        message: StreamMessage<'_>,
        ends: &Ends,
        out: &mut SendBatch,
        handle: impl FnOnce(&mut Exchange<'_>),
    ) {
        let origin = Origin::Stream(message.conn, ends);
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

    fn read_in(
        &self,
        me: &Arc<Core>,
        data: &mut [u8],
        origin: Origin<'_>,
        out: &mut SendBatch,
        handle: impl FnOnce(&mut Exchange<'_>),
    ) {
        match Message::parse(data) {
            Ok(message) => handle(&mut Exchange::new(me, &message, origin, Out::Mine(out), 0)),
            Err(ParseError::KeepAlive) => self.count.drop(Dropped::KeepAlive),
            Err(error) => {
                self.answer_broken(me, data, origin, out, error.status(), Some(error.text()));
            }
        }
    }

    /// False if it cannot be answered; that is counted.
    fn answer_broken(
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

    /// Walks a message through the chain from where it is.
    fn walk(&self, exchange: &mut Exchange<'_>, mut permit: Option<Permit<Kept>>) {
        let method = exchange.message.method();
        while let Some((step, link)) = self.chain.next(exchange.step, method) {
            exchange.step = step;
            let permit = match permit.take() {
                Some(permit) => permit,
                None => match self.enter(link, exchange) {
                    Some(permit) => permit,
                    None => return,
                },
            };
            if link.is_slow(self.born) && !exchange.alone {
                // Leave the batch: the call may block.
                self.submit(exchange.keep(step), Some(permit));
                return;
            }
            let verdict = self.call(step, link, exchange);
            self.release(permit, exchange.backlog);
            if verdict != Verdict::Next || exchange.answered || exchange.handed_on {
                return;
            }
            exchange.step += 1;
        }
        self.end(exchange);
    }

    /// The chain has ended and nobody has taken the message.
    fn end(&self, exchange: &mut Exchange<'_>) {
        if !exchange.message.is_request() {
            return self.count.drop(Dropped::Response);
        }
        match exchange.message.method() {
            Method::Ack => self.count.drop(Dropped::Ack),
            Method::Register if self.registrar.is_some() => {
                if let Some(registrar) = &self.registrar {
                    // Done or pending: either way it is the registrar's now; an error is a defect, answered with 500.
                    if exchange.authorize_and_register(registrar).is_err() {
                        let _ = exchange.reply(500, None, b"", b"");
                    }
                }
            }
            _ => {
                let _ = exchange.reply(501, None, b"", b"");
            }
        }
    }

    /// A place on the plugin's strand, or `None`: the message waits there, or was refused.
    fn enter(&self, link: &Link, exchange: &mut Exchange<'_>) -> Option<Permit<Kept>> {
        let key = exchange.strand_key(link.plugin.policy);
        if let Some(permit) = link.strands.try_enter(key) {
            return Some(permit);
        }
        match link.strands.admit(key, exchange.keep(exchange.step)) {
            // It became free in between.
            Admit::Run(_, permit) => Some(permit),
            Admit::Queued => {
                exchange.handed_on = true;
                None
            }
            Admit::Full(_) => {
                link.refused.inc();
                exchange.refuse();
                None
            }
        }
    }

    /// Gives the strand to its next message: run by this thread if nothing else waits for it, or by another.
    fn release(&self, mut permit: Permit<Kept>, backlog: Option<&Arc<Backlog>>) {
        match permit.next() {
            Next::Done => {}
            Next::Run(kept) if backlog.is_none_or(|b| b.rest.lock().is_empty()) => {
                LOCAL.with_borrow_mut(|local| local.push((kept, permit)))
            }
            Next::Run(kept) | Next::Yield(kept) => self.submit(kept, Some(permit)),
        }
    }

    /// Runs what strands gave to this thread.
    fn run_local(&self) {
        while let Some((kept, permit)) = LOCAL.with_borrow_mut(Vec::pop) {
            let mut permit = Some(permit);
            self.with_kept(kept, |exchange| {
                exchange.alone = true;
                self.walk(exchange, permit.take());
            });
        }
    }

    fn call(&self, step: usize, link: &Link, exchange: &mut Exchange<'_>) -> Verdict {
        link.calls.inc();
        let began = Instant::now();
        if let Some(backlog) = exchange.backlog {
            backlog.link.store(step, Ordering::Relaxed);
            backlog.since.store((began - self.born).as_micros() as u64 + 1, Ordering::Release);
        }
        let verdict = link.plugin.handler.call(exchange);
        if let Some(backlog) = exchange.backlog {
            backlog.since.store(0, Ordering::Release);
        }
        let took = began.elapsed();
        link.run.record(took.as_nanos() as u64);
        if took > SLOW {
            link.blocks_until(self.born.elapsed() + SLOW_FOR);
            if took > link.deadline {
                self.count.slow_calls.inc();
                tracing::warn!(plugin = link.plugin.name, ?took, deadline = ?link.deadline, "a plugin call took too long");
            }
        }
        verdict
    }

    pub fn metrics(&self, out: &mut Text) {
        self.count.metrics(out);
        let rescues = self.rescues.get();
        out.counter("partyline_rescues_total", "Batches taken away from behind a call that blocked.", &[], rescues);
        self.reactor.metrics(out);
        UdpListener::metrics(&self.listeners, out);
        self.streams.metrics(out);
        let links = self.chain.links();
        for link in links {
            let labels = [("plugin", link.plugin.name.as_str())];
            out.counter("partyline_plugin_calls_total", "Calls of a plugin.", &labels, link.calls.get());
        }
        for link in links {
            let labels = [("plugin", link.plugin.name.as_str())];
            out.counter(
                "partyline_plugin_refused_total",
                "Messages refused at a strand's bound.",
                &labels,
                link.refused.get(),
            );
        }
        StrandSet::metrics(links.iter().map(|l| (l.plugin.name.as_str(), &*l.strands)), out);
        if let Some(registrar) = &self.registrar {
            registrar.metrics(out);
        }
    }

    pub fn figures(&self) -> Figures {
        let mut f = Figures {
            answered: self.count.answered.get(),
            dropped: self.count.dropped(),
            malformed: self.count.malformed.get(),
            overload: self.count.overload.get(),
            deferred: self.count.deferred.get().max(0) as u64,
            plugin_calls: self.chain.links().iter().map(|l| l.calls.get()).sum(),
            ..Figures::default()
        };
        for listener in &self.listeners {
            let io = listener.figures();
            f.received += io.received;
            f.sent += io.sent;
            f.send_errors += io.send_errors;
        }
        let io = self.streams.figures();
        f.received += io.received;
        f.sent += io.sent;
        f.send_errors += io.unsent;
        if let Some(registrar) = &self.registrar {
            super::bindings::add_figures(registrar, &mut f);
        }
        f
    }
}

thread_local! {
    /// Messages whose strand this thread holds, to be run when it has finished its own.
    static LOCAL: RefCell<Vec<(Kept, Permit<Kept>)>> = const { RefCell::new(Vec::new()) };
}

impl Source for Core {
    fn lead(&self, leader: &mut Leader<'_>, timeout: Option<Duration>) {
        let Some(me) = self.me.upgrade() else { return };
        let mut desk = self.take_desk();
        let backlogged = self.backlogged.load(Ordering::SeqCst) > 0;
        // Said before it is looked whether there are connections: who opens the first one later sees it.
        self.timeless.store(true, Ordering::SeqCst);
        let interval = self.streams.expire_interval();
        if interval.is_some() {
            self.timeless.store(false, Ordering::Relaxed);
        }
        let look = if backlogged { Some(LOOK) } else { None };
        let timeout = [timeout, look, interval].into_iter().flatten().min();
        if let Err(error) = self.reactor.wait(&mut desk.ready, timeout) {
            tracing::error!(%error, "waiting for events failed");
        }
        self.timeless.store(false, Ordering::Relaxed);
        leader.events_came();
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

fn link(plugin: Plugin, config: &Config, core: &Weak<Core>) -> Link {
    let policy = match plugin.policy {
        Policy::Serial => StrandPolicy::Serial,
        Policy::KeyedByCallId | Policy::KeyedByAor => StrandPolicy::Keyed,
        Policy::Parallel => StrandPolicy::Parallel { cap: plugin.concurrency },
    };
    let bounds = Bounds { per_strand: config.strand_limit, total: config.queue_limit, ..Bounds::default() };
    let core = core.clone();
    let resume = Box::new(move |kept, permit| {
        if let Some(core) = core.upgrade() {
            core.submit(kept, Some(permit));
        }
    });
    let deadline = match plugin.deadline_ms {
        0 => config.watchdog,
        ms => Duration::from_millis(ms.into()),
    };
    Link {
        strands: StrandSet::new(policy, bounds, resume),
        deadline,
        calls: Counter::new(),
        refused: Counter::new(),
        run: Histogram::new(),
        slow_until: AtomicU64::new(0),
        plugin,
    }
}

impl Link {
    fn blocks_until(&self, until: Duration) {
        self.slow_until.store(until.as_millis() as u64, Ordering::Relaxed);
    }

    fn is_slow(&self, born: Instant) -> bool {
        let until = self.slow_until.load(Ordering::Relaxed);
        until != 0 && born.elapsed().as_millis() as u64 <= until
    }
}
