//! Stream connections (TCP, TLS): accepted, opened on demand, framed, answered, limited in time and number.
//!
//! Promises:
//! - A connection without an unfinished message and without unsent bytes holds no buffer; what it holds is its object,
//!   its place in the table and in the wheel, under 512 bytes ([`Streams::bytes_per_idle_connection`]).
//! - Messages of one connection are handed out in order, by one thread at a time; answers are written in the order in
//!   which they were sent, from whatever threads.
//! - Every limit is an option with a default, see [`StreamOptions`]; who breaks one loses the connection, with a
//!   [`CloseReason`].
//! - Each connection is unregistered and closed once (`conn.rs`).

mod accept;
mod conn;
mod events;
mod input;
mod output;
mod ring;
mod table;
mod tls;
mod tls_client;
mod wheel;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::{Interest, Token};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;

pub use accept::{TcpAcceptor, TcpOptions};
pub use conn::Conn;
pub use events::{CloseReason, CustomFramer, Framing, StreamEvents, StreamFigures, Taken};
pub use input::{StreamMessage, StreamReader, StreamReady};
pub use output::SendFailed;
pub use table::{ConnId, Ends};
pub use tls::{TlsFiles, TlsServer};
pub use tls_client::{TlsClient, TlsClientOptions, Verify};

pub(in crate::net) use table::is_stream;

use super::error::Transport;
use super::framer::{FramerLimits, SipFramer};
use super::reactor::{Reactor, Signal};
use super::sys::polling::{self, Registry};
use crate::observe::Text;
use events::StreamCounters;
use input::{Due, Input};
use ring::RingPool;
use table::{Full, Slot, Table, flag};
use tls::Tls;
use wheel::{TICK, Wheel};

/// Bits of readiness, as the reactor passes them on.
pub(in crate::net) mod news {
    pub use super::table::flag::{HUNG_UP, READABLE, WRITABLE};
}

/// Limits of stream connections. Times are kept to about 0.2 s.
#[derive(Clone)]
pub struct StreamOptions {
    /// What one message may be. See [`FramerLimits`].
    pub limits: FramerLimits,
    /// Framing for another protocol than SIP. Default none.
    pub framer: Option<Arc<dyn CustomFramer>>,
    /// Connections in all; 0: no limit. Default 100,000.
    pub connections: usize,
    /// Connections from one address; 0: no limit, the default, for whole offices sit behind one address.
    pub per_source: usize,
    /// Bytes that may wait for one peer to read them; from half of it on nothing more is read from that peer, and
    /// answers to what was read before may exceed it 16 times. Default 256 KiB.
    pub outbound: usize,
    /// How long opening a connection may take. Default 10 s.
    pub connect_limit: Duration,
    /// How long an accepted connection may say nothing. Default 30 s.
    pub first_bytes: Duration,
    /// How long a message may take from its first byte to its last. Default 10 s.
    pub message_limit: Duration,
    /// How long nothing at all may come. Default 3,900 s, longer than the usual registration.
    pub idle: Duration,
    /// How long a peer may read nothing while something waits for it. Default 10 s.
    pub write_limit: Duration,
    /// How long answers that are still owed may take when the peer has closed its side, or its stream broke. Default
    /// 5 s.
    pub linger: Duration,
    /// How long a TLS handshake may take. Default 10 s.
    pub handshake_limit: Duration,
    /// First size of a read buffer; one that holds a longer message grows. Default 8 KiB.
    pub buffer: usize,
    /// Read buffers kept for later. Default 256.
    pub buffers_kept: usize,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions {
            limits: FramerLimits::default(),
            framer: None,
            connections: 100_000,
            per_source: 0,
            outbound: 256 * 1024,
            connect_limit: Duration::from_secs(10),
            first_bytes: Duration::from_secs(30),
            message_limit: Duration::from_secs(10),
            idle: Duration::from_secs(3900),
            write_limit: Duration::from_secs(10),
            linger: Duration::from_secs(5),
            handshake_limit: Duration::from_secs(10),
            buffer: 8192,
            buffers_kept: 256,
        }
    }
}

/// When to look again at a connection whose time is up while this side is at work on it.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// All stream connections of one reactor.
pub struct Streams {
    options: StreamOptions,
    registry: Registry,
    signal: Arc<Signal>,
    table: Table,
    wheel: Wheel,
    rings: RingPool,
    events: Option<Arc<dyn StreamEvents>>,
    counters: StreamCounters,
    /// Acceptors that wait for descriptors, and until when.
    paused: Mutex<Vec<(Instant, Arc<TcpAcceptor>)>>,
    any_paused: AtomicBool,
    /// Held while one is looked for and opened, so that two threads do not open two.
    opening: Mutex<()>,
}

impl Streams {
    /// Connections that `reactor` waits for; once per reactor.
    pub fn new(
        reactor: &Reactor,
        options: StreamOptions,
        events: Option<Arc<dyn StreamEvents>>,
    ) -> io::Result<Arc<Streams>> {
        let streams = Arc::new(Streams {
            registry: reactor.registry().try_clone()?,
            signal: reactor.signal(),
            table: Table::new(),
            wheel: Wheel::new(Instant::now()),
            rings: RingPool::new(options.buffer, options.buffers_kept),
            options,
            events,
            counters: StreamCounters::default(),
            paused: Mutex::new(Vec::new()),
            any_paused: AtomicBool::new(false),
            opening: Mutex::new(()),
        });
        reactor.attach(Arc::clone(&streams))?;
        Ok(streams)
    }

    /// The connection of that number, if it is still open.
    pub fn get(self: &Arc<Self>, id: ConnId) -> Option<Conn> {
        let conn = Conn::new(Arc::clone(self), self.table.pin(id)?);
        conn.is_open().then_some(conn)
    }

    fn pinned(self: &Arc<Self>, token: Token) -> Option<Conn> {
        Some(Conn::new(Arc::clone(self), self.table.pin(ConnId::of_token(token))?))
    }

    /// An open TCP connection to `peer`, from `local` if that is given, whoever opened it.
    pub fn find(self: &Arc<Self>, peer: SocketAddr, local: Option<IpAddr>) -> Option<Conn> {
        self.find_over(Transport::Tcp, peer, local)
    }

    /// As [`Streams::find`], over TCP or over TLS. One that was opened for a domain is not found.
    pub fn find_over(self: &Arc<Self>, transport: Transport, peer: SocketAddr, local: Option<IpAddr>) -> Option<Conn> {
        self.find_for(transport, peer, local, None)
    }

    fn find_for(
        self: &Arc<Self>,
        transport: Transport,
        peer: SocketAddr,
        local: Option<IpAddr>,
        domain: Option<&str>,
    ) -> Option<Conn> {
        Some(Conn::new(Arc::clone(self), self.table.find(transport, peer, local, domain)?))
    }

    /// An open connection to `peer`, or a new one being opened: what is sent waits until it is there. Never blocks.
    pub fn connect(self: &Arc<Self>, peer: SocketAddr, local: Option<IpAddr>) -> io::Result<Conn> {
        self.open(Transport::Tcp, peer, local, None, || Ok(None))
    }

    /// As [`Streams::connect`], over TLS. The peer has to show a certificate for `domain`, without one for its address (see
    /// [`TlsClientOptions`]); if it does not, the connection is closed and what was sent is lost. Reads files when it is
    /// the client's first.
    pub fn connect_tls(
        self: &Arc<Self>,
        client: &TlsClient,
        peer: SocketAddr,
        domain: Option<&str>,
    ) -> io::Result<Conn> {
        self.open(Transport::Tls, peer, None, domain, || {
            let name = match domain {
                None => ServerName::from(peer.ip()),
                Some(domain) => ServerName::try_from(domain.to_owned())
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, format!("domain {domain}: {e}")))?,
            };
            client.session(name).map(Some)
        })
    }

    fn open(
        self: &Arc<Self>,
        transport: Transport,
        peer: SocketAddr,
        local: Option<IpAddr>,
        domain: Option<&str>,
        session: impl FnOnce() -> io::Result<Option<Box<Tls>>>,
    ) -> io::Result<Conn> {
        let _one_at_a_time = self.opening.lock();
        if let Some(conn) = self.find_for(transport, peer, local, domain) {
            return Ok(conn);
        }
        let tls = session()?;
        let (stream, bound) = polling::connect(peer, local)?;
        let ends = Ends { peer, local: bound, incoming: false, transport };
        self.adopt(stream, ends, tls, domain)?.ok_or_else(|| io::Error::other("too many stream connections"))
    }

    /// Takes a socket in: an object, a place in the table, the reactor's attention. `None`: a limit is reached.
    fn adopt(
        self: &Arc<Self>,
        mut stream: polling::TcpStream,
        ends: Ends,
        tls: Option<Box<Tls>>,
        domain: Option<&str>,
    ) -> io::Result<Option<Conn>> {
        match self.table.admit(ends.peer.ip(), self.options.connections, self.options.per_source) {
            Ok(()) => {}
            Err(full) => {
                match full {
                    Full::All => self.counters.refused_all.inc(),
                    Full::Source => self.counters.refused_source.inc(),
                }
                return Ok(None);
            }
        }
        let secure = tls.is_some();
        let mut flags = if secure { flag::SECURE | flag::SHAKING } else { 0 };
        if ends.incoming && self.events.is_some() {
            flags |= flag::NEW;
        }
        let conn = Conn::new(Arc::clone(self), self.table.take(ends, flags));
        let slot = conn.slot();
        *slot.tls.lock() = tls;
        slot.domain.store(self.table.mark_of(domain), Ordering::SeqCst);
        *slot.input.lock() = Input { framer: SipFramer::new(self.options.limits), ..Input::default() };
        slot.output.lock().connecting = !ends.incoming;
        // Registered once for both directions, edge-triggered: nothing is ever re-armed.
        let registered =
            self.registry.register(&mut stream, conn.id().token(), Interest::READABLE | Interest::WRITABLE);
        if let Err(error) = registered {
            drop(stream);
            *slot.tls.lock() = None;
            slot.domain.store(0, Ordering::SeqCst);
            self.table.dismiss(ends.peer.ip());
            self.table.unpin(slot);
            return Err(error);
        }
        *slot.stream.write() = Some(stream);
        self.table.publish(&ends, slot.index);
        let now = Instant::now();
        if ends.incoming {
            self.counters.accepted.inc();
            if secure {
                conn.due(Due::Handshake, self.options.handshake_limit, now);
            } else {
                conn.due(Due::FirstBytes, self.options.first_bytes, now);
            }
        } else {
            self.counters.opened.inc();
            conn.due(Due::Connected, self.options.connect_limit, now);
        }
        // Lets go of BUSY, and has anything that came meanwhile handed out.
        drop(StreamReady::claimed(conn.clone()));
        Ok(Some(conn))
    }

    /// Closes what has exceeded a limit of time; lets paused acceptors go on. For the leader, after each wait.
    pub fn expire(self: &Arc<Self>, now: Instant) {
        let mut visits = Vec::new();
        self.wheel.visit(now, &mut visits);
        let tick = self.wheel.tick(now);
        for (at, id) in visits {
            let Some(pin) = self.table.pin(id) else { continue };
            let conn = Conn::new(Arc::clone(self), pin);
            let slot = conn.slot();
            // Else it stands, or stood, somewhere earlier.
            if slot.queued.compare_exchange(at, 0, Ordering::SeqCst, Ordering::SeqCst).is_err() || !conn.is_open() {
                continue;
            }
            let read = slot.read_due.load(Ordering::SeqCst);
            let write = slot.write_due.load(Ordering::SeqCst);
            // What the peer has sent may lie unread because we are at work, or hold reading back: not its fault. Who
            // reads it closes the connection if it is not enough.
            let unread = flag::BUSY | flag::MARKED | flag::READABLE | flag::THROTTLED;
            if read != 0 && read >> 3 <= tick && Due::is_peers(read) && slot.flags.load(Ordering::SeqCst) & unread != 0
            {
                conn.watch(self.wheel.due(now, LOOK_AGAIN));
            } else if read != 0 && read >> 3 <= tick {
                conn.close(Due::reason(read));
            } else if write != 0 && write <= tick {
                conn.close(CloseReason::SlowReader);
            } else if let Some(next) = [read >> 3, write].into_iter().filter(|due| *due != 0).min() {
                conn.watch(next);
            }
        }
        if self.any_paused.load(Ordering::SeqCst) {
            self.paused.lock().retain(|(until, acceptor)| {
                let waits = *until > now;
                if !waits {
                    acceptor.mark.set();
                }
                waits
            });
            let paused = self.paused.lock();
            self.any_paused.store(!paused.is_empty(), Ordering::SeqCst);
        }
    }

    /// How long the leader may wait before [`Streams::expire`] has something to do; `None`: as long as it likes.
    pub fn expire_interval(&self) -> Option<Duration> {
        (self.table.open_count() > 0 || self.any_paused.load(Ordering::SeqCst)).then_some(TICK)
    }

    /// A descriptor has become free.
    fn resume_accepting(&self) {
        if self.any_paused.swap(false, Ordering::SeqCst) {
            for (_, acceptor) in self.paused.lock().drain(..) {
                acceptor.mark.set();
            }
        }
    }

    fn pause_accepting(&self, acceptor: Arc<TcpAcceptor>, until: Instant) {
        self.counters.accept_pauses.inc();
        self.paused.lock().push((until, acceptor));
        self.any_paused.store(true, Ordering::SeqCst);
    }

    /// Closes every connection; watchers hear of it on this thread where no other is at work on one.
    pub fn close_all(self: &Arc<Self>) {
        for pin in self.table.pinned() {
            let conn = Conn::new(Arc::clone(self), pin);
            conn.discard_input();
            conn.close(CloseReason::Local);
            if conn.slot().flags.fetch_or(flag::BUSY, Ordering::SeqCst) & flag::BUSY == 0 {
                let mut ready = StreamReady::claimed(conn);
                ready.handle(&mut StreamReader::new(), |_| {});
            }
        }
    }

    /// Connections whose peers have not taken all that was sent to them. Linear in what is open: for a stop.
    pub fn unsent(&self) -> usize {
        let open = |pin: &table::Pin| pin.slot.reason.load(Ordering::SeqCst) == 0;
        let pins = self.table.pinned();
        let waits = |slot: &Slot| slot.output.lock().unsent() > 0 || slot.tls.lock().as_deref().is_some_and(Tls::waits);
        let count = pins.iter().filter(|pin| open(pin) && waits(&pin.slot)).count();
        for pin in pins {
            self.table.unpin(&pin.slot);
        }
        count
    }

    /// Connections that are open.
    pub fn open_count(&self) -> usize {
        self.table.open_count()
    }

    /// Connection objects that exist, in use or waiting to be used again.
    pub fn object_count(&self) -> usize {
        self.table.slot_count()
    }

    /// What an idle connection costs in this process: its object with the counters of its `Arc`, the pointer to it, its
    /// entry in the table of ends (at its emptiest), and two entries in the wheel.
    pub const fn bytes_per_idle_connection() -> usize {
        let ends = (size_of::<(SocketAddr, u32)>() + 1) * 16 / 7;
        size_of::<Slot>() + 2 * size_of::<usize>() + size_of::<usize>() + ends + 2 * size_of::<(u64, ConnId)>()
    }

    pub fn figures(&self) -> StreamFigures {
        self.counters.figures()
    }

    pub fn metrics(&self, out: &mut Text) {
        self.counters.metrics(self.table.open_count(), out);
    }
}

const _: () = assert!(Streams::bytes_per_idle_connection() <= 512);
// The reactor's bits and the slot's are the same ones.
const _: () = assert!(flag::READABLE | flag::WRITABLE | flag::HUNG_UP == 7);
