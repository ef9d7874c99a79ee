//! What all of an engine's threads share: sockets, chain, registrar, figures; how a message is put on a thread, and how
//! an answer gets out. The ways of a message stand beside it: `intake` (the leader's reading), `backlog` (what waits behind
//! the calls of a batch) and `walk` (the chain).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Figures;
use super::backlog::Backlog;
use super::bindings::Bindings;
use super::config::Config;
use super::count::Count;
use super::exchange::{Exchange, Kept, Origin, Out};
use super::plugin::{Chain, Link, Plugin, Policy};
use crate::net::{
    Limiter, Reactor, Ready, RecvBatch, SendBatch, SendFailed, StreamReader, Streams, TcpAcceptor, Transport,
    UdpListener,
};
use crate::observe::{Counter, Histogram, Text};
use crate::sched::{Bounds, Next, Permit, Policy as StrandPolicy, Pool, StrandSet, Task};
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
    pub tags: Tags,
    pub keys: KeyHasher,
    pub count: Count,
    pub streams: Arc<Streams>,
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
    pub born: Instant,
    pub limiter: Option<Limiter>,
}

/// What an engine listens on.
pub(super) struct Sockets {
    pub udp: Vec<Arc<UdpListener>>,
    pub tcp: Vec<Arc<TcpAcceptor>>,
    pub streams: Arc<Streams>,
}

/// Why [`Core::send_stream`] has failed.
pub(super) enum NotSent {
    Unconnected(std::io::Error),
    NoTls,
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
            let born = Instant::now();
            let limiter = config.rates.is_limited().then(|| Limiter::new(&config.rates.options(), born));
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
    pub fn send_stream(&self, transport: Transport, peer: SocketAddr, bytes: &[u8]) -> Result<(), NotSent> {
        let conn = match transport {
            Transport::Tls => self.streams.find_over(transport, peer, None).ok_or(NotSent::NoTls)?,
            _ => self.streams.connect(peer, None).map_err(NotSent::Unconnected)?,
        };
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

    pub(super) fn submit(&self, kept: Kept, permit: Option<Permit<Kept>>) {
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
    pub(super) fn release_quietly(&self, mut permit: Permit<Kept>) {
        while let Next::Run(kept) | Next::Yield(kept) = permit.next() {
            self.with_kept(kept, |exchange| exchange.refuse());
        }
    }

    pub(super) fn run_kept(&self, kept: Kept, permit: Option<Permit<Kept>>) {
        let mut permit = permit;
        self.with_kept(kept, |exchange| {
            exchange.alone = true;
            self.walk(exchange, permit.take());
        });
        self.run_local();
    }

    /// Runs `body` on a kept message and sends its answers.
    pub(super) fn with_kept(&self, kept: Kept, body: impl FnOnce(&mut Exchange<'_>)) {
        self.with_batch(|out| self.with_kept_out(kept, Out::Mine(out), None, body));
    }

    pub(super) fn with_kept_out(
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
