//! What all of an engine's threads share: sockets, chain, registrar, figures; how a message is put on a thread, and how
//! an answer gets out. The ways of a message stand beside it: `intake` (the leader's reading), `backlog` (what waits behind
//! the calls of a batch) and `walk` (the chain).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::backlog::Backlog;
use super::bindings::Bindings;
use super::config::Config;
use super::count::Count;
use super::exchange::{Exchange, Kept, Origin, Out, Ticket};
use super::plugin::{Chain, Link, Pace, Pass, Plugin, Policy};
use super::{Figures, PluginFigures};
use crate::ffi::Error;
use crate::net::{
    Limiter, Reactor, Ready, RecvBatch, SendBatch, SendFailed, StreamReader, Streams, TcpAcceptor, TlsClient,
    Transport, UdpListener,
};
use crate::observe::{Counter, Histogram, Text};
use crate::sched::{
    Bounds, Leader, Next, Overload, Policy as StrandPolicy, Pool, StrandSet, Task, Watchdog, Watermarks,
};
use crate::sip::{KeyHasher, Message, Tags};

/// What a thread needs to serve a batch; kept in a stack, so that the one used last is used next.
#[derive(Default)]
pub(super) struct Desk {
    pub ready: Ready,
    pub recv: RecvBatch,
    pub reader: StreamReader,
    pub send: SendBatch,
    pub backlog: Arc<Backlog>,
    /// Messages of connections that were lined up in the backlog since the last call of [`Core::work`].
    pub lined: usize,
}

/// See the module.
pub(super) struct Core {
    pub config: Config,
    pub listeners: Vec<Arc<UdpListener>>,
    pub registrar: Option<Arc<Bindings>>,
    pub overload: Overload,
    pub dog: Arc<Watchdog>,
    pub tags: Tags,
    pub keys: KeyHasher,
    pub count: Count,
    pub streams: Arc<Streams>,
    pub tls_client: TlsClient,
    pub acceptors: Mutex<Vec<Arc<TcpAcceptor>>>,
    pub me: Weak<Core>,
    pub reactor: Reactor,
    pub chain: Chain,
    /// Some plugin wants its messages in order.
    pub ordered: bool,
    pub pool: OnceLock<Weak<Pool>>,
    pub desks: Mutex<Vec<Desk>>,
    /// Batches that are being walked through the chain.
    pub backlogs: Mutex<Vec<Arc<Backlog>>>,
    pub backlogged: AtomicUsize,
    pub rescues: Counter,
    pub open: AtomicBool,
    /// The leader waits, or is about to, without a look at the connections' limits of time.
    pub timeless: AtomicBool,
    /// The leader waits, or is about to, without a look at the backlogs.
    pub blind: AtomicBool,
    pub born: Instant,
    pub limiter: Option<Limiter>,
    /// A plugin call that takes longer may be one that blocks.
    pub slow: Duration,
}

/// What an engine listens on.
pub(super) struct Sockets {
    pub udp: Vec<Arc<UdpListener>>,
    pub tcp: Vec<Arc<TcpAcceptor>>,
    pub streams: Arc<Streams>,
    pub tls_client: TlsClient,
}

/// Why [`Core::send_stream`] has failed.
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
            let dog = Watchdog::logging();
            for plugin in plugins {
                chain.insert(link(plugin, &config, &dog, me));
            }
            let born = Instant::now();
            let limiter = config.rates.is_limited().then(|| Limiter::new(&config.rates.options(), born));
            let limit = config.queue_limit;
            let high = config.overload_high.min(limit);
            let marks = Watermarks { low: config.overload_low.min(high), high, limit };
            let ordered = chain.links().iter().any(|l| l.plugin.policy != Policy::Parallel);
            let slow = if config.takeover.is_zero() { Duration::from_millis(1) } else { config.takeover };
            Core {
                slow,
                config,
                listeners: sockets.udp,
                registrar,
                overload: Overload::new(marks).expect("the marks are in order"),
                dog,
                tags: Tags::new(),
                keys: KeyHasher::default(),
                count: Count::default(),
                streams: sockets.streams,
                tls_client: sockets.tls_client,
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
                blind: AtomicBool::new(false),
                born,
                limiter,
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
        let strands: usize = self.chain.links().iter().map(|l| l.queued() + l.strands.running()).sum();
        let count = self.count.deferred.get() + self.count.waiting.get() + self.count.queued.get();
        usize::try_from(count).unwrap_or(0) + strands
    }

    pub fn drain_strands(&self) {
        for link in self.chain.links() {
            drop(link.strands.drain());
            drop(link.gate.as_ref().map(|gate| gate.drain()));
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

    /// Sends over an open connection to `peer`, or over a new one; `domain` is whom a certificate has to name.
    pub fn send_stream(
        &self,
        transport: Transport,
        peer: SocketAddr,
        domain: Option<&str>,
        bytes: &[u8],
    ) -> Result<(), NotSent> {
        let conn = match transport {
            Transport::Tls => self.streams.connect_tls(&self.tls_client, peer, domain),
            _ => self.streams.connect(peer, None),
        };
        let conn = conn.map_err(NotSent::Unconnected)?;
        let sent = conn.send(bytes);
        self.look_at_streams();
        sent.map_err(NotSent::Failed)
    }

    /// After something that may have opened a connection while the leader waits without looking at any.
    pub(super) fn look_at_streams(&self) {
        if self.timeless.load(Ordering::SeqCst) && self.streams.expire_interval().is_some() {
            self.reactor.wake();
        }
    }

    pub(super) fn take_desk(&self) -> Desk {
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

    pub(super) fn submit(&self, kept: Kept, pass: Option<Pass>) {
        let Some(core) = self.me.upgrade() else { return };
        let Some(pool) = self.pool.get().and_then(Weak::upgrade) else { return };
        self.count.queued.add(1);
        let lane = kept.lane;
        // A refused task is dropped with what it holds, so the message stays here until it is taken.
        let cell = Arc::new(Mutex::new(Some((kept, pass))));
        let inner = Arc::clone(&cell);
        let task = Task::once(move || {
            if let Some((kept, pass)) = inner.lock().take() {
                core.count.queued.add(-1);
                core.run_kept(kept, pass);
                core.run_local();
            }
        });
        if pool.submit_in(lane, task).is_err() {
            if let Some((kept, pass)) = cell.lock().take() {
                self.count.queued.add(-1);
                self.with_kept(kept, |exchange| exchange.refuse());
                if let Some(pass) = pass {
                    self.release_quietly(pass);
                }
            }
        }
    }

    /// The turn of a message that was refused goes to the next one, which is refused too if there is still no room.
    pub(super) fn release_quietly(&self, Pass { mut strand, gate }: Pass) {
        if let Some(mut gate) = gate {
            while let Next::Run((kept, strand)) | Next::Yield((kept, strand)) = gate.next() {
                self.with_kept(kept, |exchange| exchange.refuse());
                self.release_quietly(Pass { strand, gate: None });
            }
        }
        while let Next::Run(kept) | Next::Yield(kept) = strand.next() {
            self.with_kept(kept, |exchange| exchange.refuse());
        }
    }

    /// Walks a kept message on a thread that leads nobody's batch.
    pub(super) fn run_kept(&self, kept: Kept, pass: Option<Pass>) {
        self.with_kept(kept, |exchange| {
            exchange.alone = true;
            self.walk(exchange, pass);
        });
    }

    /// Another thread leads for the sake of a call of the plugin at `step`, or behind it.
    pub(super) fn promoted(&self, step: usize) {
        let links = self.chain.links();
        if let Some(link) = links.get(step).or(links.last()) {
            link.promotions.inc();
        }
    }

    /// How much waits: on strands and for threads.
    pub(super) fn level(&self) -> usize {
        let strands: usize = self.chain.links().iter().map(Link::queued).sum();
        strands + usize::try_from(self.count.queued.get()).unwrap_or(0)
    }

    /// For [`super::Handler::revoked`]: what was deferred goes to the new code when the plugin is loaded anew.
    pub(super) fn remember(&self, step: usize, ticket: &Arc<Ticket>) {
        let Some(link) = self.chain.links().get(step).filter(|link| link.plugin.handler.can_reload()) else { return };
        let mut tickets = link.tickets.lock();
        if tickets.len() == tickets.capacity() {
            // At most half of them are finished ones then, or the vector grows.
            tickets.retain(|ticket| ticket.upgrade().is_some_and(|ticket| !ticket.is_finished()));
            let live = tickets.len();
            tickets.reserve(live.max(64));
        }
        tickets.push(Arc::downgrade(ticket));
    }

    /// Runs `body` on a kept message and sends its answers.
    pub(super) fn with_kept(&self, kept: Kept, body: impl FnOnce(&mut Exchange<'_>)) {
        self.with_batch(|out| self.with_kept_out(kept, Out::Mine(out), None, None, body));
    }

    pub(super) fn with_kept_out(
        &self,
        mut kept: Kept,
        out: Out<'_>,
        backlog: Option<&Arc<Backlog>>,
        leader: Option<&Leader<'_>>,
        body: impl FnOnce(&mut Exchange<'_>),
    ) {
        let Some(me) = self.me.upgrade() else { return };
        // It was read once already; it is the same bytes.
        let Ok(message) = Message::parse(&mut kept.bytes) else { return };
        body(&mut Exchange {
            rounds: kept.rounds,
            admitted: kept.admitted,
            lane: kept.lane,
            backlog,
            leader,
            ..Exchange::new(&me, &message, Origin::Kept(&kept.back), out, kept.step)
        });
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
        for link in links {
            let labels = [("plugin", link.plugin.name.as_str())];
            let help = "Times leadership changed hands for a call of a plugin.";
            out.counter("partyline_plugin_promotions_total", help, &labels, link.promotions.get());
        }
        self.overload.observe(self.level());
        self.overload.metrics(out);
        self.dog.metrics(out);
        StrandSet::metrics(links.iter().map(|l| (l.plugin.name.as_str(), &*l.strands)), out);
        if let Some(registrar) = &self.registrar {
            registrar.metrics(out);
        }
    }

    pub fn plugin_figures(&self, name: &str) -> Result<PluginFigures, Error> {
        let link = self.link(name)?;
        let (overdue, longest) = self.dog.overdue(link.watched);
        let quantiles = |of: &Histogram| {
            let q = of.quantiles();
            [q.p50, q.p99].map(Duration::from_nanos)
        };
        Ok(PluginFigures {
            calls: link.calls.get(),
            running: link.strands.running() as u64,
            queued: link.queued() as u64,
            refused: link.refused.get(),
            overdue,
            longest,
            wait: quantiles(link.strands.wait_times()),
            run: quantiles(link.strands.run_times()),
            blocks: link.pace.blocks(),
            promotions: link.promotions.get(),
        })
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

fn link(plugin: Plugin, config: &Config, dog: &Watchdog, core: &Weak<Core>) -> Link {
    let policy = match plugin.policy {
        Policy::Serial => StrandPolicy::Serial,
        Policy::KeyedByCallId | Policy::KeyedByAor => StrandPolicy::Keyed,
        Policy::Parallel => StrandPolicy::Parallel { cap: plugin.concurrency },
    };
    let bounds = Bounds { per_strand: config.strand_limit, total: config.queue_limit, ..Bounds::default() };
    let gated = (policy == StrandPolicy::Keyed && plugin.concurrency > 0).then(|| {
        let core = core.clone();
        let resume = Box::new(move |(kept, strand), gate| {
            if let Some(core) = core.upgrade() {
                core.submit(kept, Some(Pass { strand, gate: Some(gate) }));
            }
        });
        let bounds = Bounds { per_strand: config.queue_limit, ..bounds };
        StrandSet::new(StrandPolicy::Parallel { cap: plugin.concurrency }, bounds, resume)
    });
    let core = core.clone();
    let resume = Box::new(move |kept, strand| {
        if let Some(core) = core.upgrade() {
            if let Some((kept, pass)) = core.through_gate(kept, strand) {
                core.submit(kept, Some(pass));
            }
        }
    });
    let deadline = match plugin.deadline_ms {
        0 => config.watchdog,
        ms => Duration::from_millis(ms.into()),
    };
    Link {
        strands: StrandSet::new(policy, bounds, resume),
        gate: gated,
        watched: dog.register(&plugin.name, deadline).expect("a chain has fewer than 65,536 plugins"),
        calls: Counter::new(),
        refused: Counter::new(),
        promotions: Counter::new(),
        pace: Pace::default(),
        tickets: Mutex::default(),
        reloading: Mutex::default(),
        plugin,
    }
}
