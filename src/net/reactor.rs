//! The event source that the leader waits on: mio's poll, a waker, and the marks.
//!
//! mio is edge-triggered: the system speaks once per arrival, so what was announced and not read has to be remembered
//! here. A handle that may still be readable carries a *mark*; [`Reactor::wait`] hands out marks before it sleeps, and
//! with marks in hand it looks at the poll without waiting, so that a busy socket does not starve the others.
//!
//! Why nothing is lost between a leader that goes to sleep and a thread that sets a mark or wakes: `doorbell.rs`. A mark
//! set while nobody sleeps costs no system call.
//!
//! Events handed out and not handled (the leader gave leadership away first) go back by [`Ready::give_back`], which
//! dropping a [`Ready`] or waiting with it again does as well.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mio::{Interest, Token};
use parking_lot::{Mutex, RwLock};

use super::doorbell::Doorbell;
use super::stream::{StreamReady, Streams, TcpAcceptor, is_stream, news};
use super::sys::Backend;
use super::sys::polling::{self, Events, Poll, Registry, Waker};
use super::udp::UdpListener;
use crate::observe::{Counter, Text};

/// The waker's token; no handle gets it.
const WAKER: Token = Token(usize::MAX);
/// Events taken from the system in one call.
const EVENTS: usize = 256;

/// A handle on which something may be done.
pub enum Event {
    /// A free handle: others may be reading it too.
    Udp(Arc<UdpListener>),
    /// Connections may wait; a free handle as well.
    Accept(Arc<TcpAcceptor>),
    /// A bound handle: nobody else gets this connection before this is handled or dropped.
    Stream(StreamReady),
}

/// What the reactor itself waits for; connections are in [`Streams`].
enum Listener {
    Udp(Arc<UdpListener>),
    Accept(Arc<TcpAcceptor>),
}

impl Listener {
    fn mark(&self) -> &Mark {
        match self {
            Listener::Udp(listener) => &listener.mark,
            Listener::Accept(acceptor) => &acceptor.mark,
        }
    }

    fn event(&self) -> Event {
        match self {
            Listener::Udp(listener) => Event::Udp(Arc::clone(listener)),
            Listener::Accept(acceptor) => Event::Accept(Arc::clone(acceptor)),
        }
    }
}

/// What one wait brought. Kept by the leader and used again.
#[derive(Default)]
pub struct Ready {
    events: Vec<Event>,
    woken: bool,
}

impl Ready {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next event to be handled.
    pub fn pop(&mut self) -> Option<Event> {
        self.events.pop()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether [`Reactor::wake`] was called since the wait before.
    pub fn woken(&self) -> bool {
        self.woken
    }

    /// Puts what was not popped before the next leader. To be done before leadership is given away.
    pub fn give_back(&mut self) {
        for event in self.events.drain(..) {
            match event {
                Event::Udp(listener) => listener.mark.set(),
                Event::Accept(acceptor) => acceptor.mark.set(),
                // Marks itself.
                Event::Stream(ready) => drop(ready),
            }
        }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// A handle's 'maybe readable' flag. Does nothing until the handle is registered.
#[derive(Default)]
pub(super) struct Mark {
    set: AtomicBool,
    home: Option<(Arc<Signal>, Token)>,
}

impl Mark {
    pub(super) fn set(&self) {
        if let Some((signal, token)) = &self.home {
            // Once in the queue is enough; the flag falls when the leader takes it out, before anybody reads.
            if !self.set.swap(true, Ordering::SeqCst) {
                signal.push(*token);
            }
        }
    }

    fn clear(&self) {
        self.set.store(false, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }
}

/// What markers and wakers share with the sleeper.
pub(super) struct Signal {
    waker: Waker,
    bell: Doorbell,
    marked: Mutex<Vec<Token>>,
    marks: Counter,
    wakes: Counter,
}

impl Signal {
    /// Puts a handle before the next leader. Its own flag keeps it from being pushed twice.
    pub(super) fn push(&self, token: Token) {
        self.marked.lock().push(token);
        self.marks.inc();
        if self.bell.left() {
            self.interrupt();
        }
    }

    fn interrupt(&self) {
        self.wakes.inc();
        if let Err(error) = self.waker.wake() {
            // eventfd's counter cannot run over here, and the descriptor lives as long as self.
            tracing::error!(%error, "the waker failed");
        }
    }
}

/// What the leader alone uses.
struct Sleeper {
    poll: Poll,
    events: Events,
    // Swapped with the queue, so that neither allocates once both have grown.
    marked: Vec<Token>,
}

/// See the module. All methods may be called from any thread; only one at a time gets through [`Reactor::wait`].
pub struct Reactor {
    sleeper: Mutex<Sleeper>,
    registry: Registry,
    signal: Arc<Signal>,
    // Index is token. Slots are not used again: listeners are few, and a stale event must not find a new one.
    listeners: RwLock<Vec<Option<Listener>>>,
    streams: OnceLock<Arc<Streams>>,
    waits: Counter,
}

impl Reactor {
    pub fn new() -> io::Result<Reactor> {
        Self::with_backend(Backend::System)
    }

    /// As [`Reactor::new`], with the way of waiting named.
    pub fn with_backend(backend: Backend) -> io::Result<Reactor> {
        let poll = polling::poll(backend)?;
        let registry = poll.registry().try_clone()?;
        let waker = Waker::new(&registry, WAKER)?;
        Ok(Reactor {
            sleeper: Mutex::new(Sleeper { poll, events: Events::with_capacity(EVENTS), marked: Vec::new() }),
            registry,
            signal: Arc::new(Signal {
                waker,
                bell: Doorbell::new(),
                marked: Mutex::new(Vec::new()),
                marks: Counter::new(),
                wakes: Counter::new(),
            }),
            listeners: RwLock::new(Vec::new()),
            streams: OnceLock::new(),
            waits: Counter::new(),
        })
    }

    /// Waits for the listener from now on; what has arrived already is reported too.
    pub fn add_udp(&self, mut listener: UdpListener) -> io::Result<Arc<UdpListener>> {
        let mut listeners = self.listeners.write();
        let token = Token(listeners.len());
        let (socket, mark) = listener.parts_mut();
        mark.home = Some((Arc::clone(&self.signal), token));
        self.registry.register(socket, token, Interest::READABLE)?;
        let listener = Arc::new(listener);
        listeners.push(Some(Listener::Udp(Arc::clone(&listener))));
        Ok(listener)
    }

    /// Reports the listener no more. Its socket closes when the last [`Arc`] is gone; answers can be sent until then.
    pub fn remove_udp(&self, listener: &Arc<UdpListener>) {
        for slot in self.listeners.write().iter_mut() {
            if matches!(slot, Some(Listener::Udp(known)) if Arc::ptr_eq(known, listener)) {
                *slot = None;
            }
        }
    }

    /// Accepts connections from now on: [`Event::Accept`] says when.
    pub fn add_tcp(&self, mut acceptor: TcpAcceptor) -> io::Result<Arc<TcpAcceptor>> {
        let mut listeners = self.listeners.write();
        let token = Token(listeners.len());
        let (socket, mark) = acceptor.parts_mut();
        mark.home = Some((Arc::clone(&self.signal), token));
        self.registry.register(socket, token, Interest::READABLE)?;
        let acceptor = Arc::new(acceptor);
        listeners.push(Some(Listener::Accept(Arc::clone(&acceptor))));
        Ok(acceptor)
    }

    /// Accepts no more; the socket closes when the last [`Arc`] is gone.
    pub fn remove_tcp(&self, acceptor: &Arc<TcpAcceptor>) {
        for slot in self.listeners.write().iter_mut() {
            if matches!(slot, Some(Listener::Accept(known)) if Arc::ptr_eq(known, acceptor)) {
                *slot = None;
            }
        }
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(super) fn signal(&self) -> Arc<Signal> {
        Arc::clone(&self.signal)
    }

    pub(super) fn attach(&self, streams: Arc<Streams>) -> io::Result<()> {
        let twice = |_| io::Error::new(io::ErrorKind::AlreadyExists, "the reactor has its stream connections already");
        self.streams.set(streams).map_err(twice)
    }

    /// Waits until a handle is ready, [`Reactor::wake`] is called, or `timeout` has passed (`None`: without limit);
    /// fills `ready`, whose unhandled events are handed out again. For the leader.
    pub fn wait(&self, ready: &mut Ready, timeout: Option<Duration>) -> io::Result<()> {
        ready.give_back();
        let signal = &*self.signal;
        let sleeper = &mut *self.sleeper.lock();
        self.waits.inc();

        let busy = signal.bell.lie_down() || !signal.marked.lock().is_empty();
        let timeout = if busy { Some(Duration::ZERO) } else { timeout };
        let result = sleeper.poll.poll(&mut sleeper.events, timeout);
        ready.woken = signal.bell.get_up();
        match result {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Err(_) => sleeper.events.clear(),
            Ok(()) => {}
        }

        // Marks taken out fall before anybody reads: one set from now on is a new one.
        sleeper.marked.clear();
        std::mem::swap(&mut sleeper.marked, &mut *signal.marked.lock());
        let listeners = self.listeners.read();
        let find = |token: Token| listeners.get(token.0).and_then(Option::as_ref);
        // Events are popped from the end. New ones go to the front and marks keep their order, which makes a leader
        // that handles one event per wait and gives the others back go round all of them.
        let streams = self.streams.get();
        for event in sleeper.events.iter() {
            let token = event.token();
            if token == WAKER {
                continue;
            }
            if is_stream(token) {
                let handed = streams.and_then(|streams| streams.ready(token, stream_news(event)));
                ready.events.extend(handed.map(Event::Stream));
            } else if let Some(listener) = find(token) {
                // Listeners with a mark come with the marks.
                if !listener.mark().is_set() {
                    ready.events.push(listener.event());
                }
            }
        }
        for &token in &sleeper.marked {
            if is_stream(token) {
                let handed = streams.and_then(|streams| streams.marked(token));
                ready.events.extend(handed.map(Event::Stream));
            } else if let Some(listener) = find(token) {
                listener.mark().clear();
                ready.events.push(listener.event());
            }
        }
        Ok(())
    }

    /// Makes the current wait, or the next one, return at once and say [`Ready::woken`]. Calls between two waits count
    /// as one; a call while nobody waits costs no system call.
    pub fn wake(&self) {
        if self.signal.bell.ring() {
            self.signal.interrupt();
        }
    }

    /// Operations that a completion port has in flight; 0 where there is no port.
    pub fn operations(&self) -> usize {
        polling::operations(&self.registry).map_or(0, |(in_flight, _)| in_flight)
    }

    pub fn metrics(&self, out: &mut Text) {
        if let Some((in_flight, reused)) = polling::operations(&self.registry) {
            let help = "Operations that the completion port has in flight.";
            out.gauge("partyline_reactor_operations", help, &[], in_flight as f64);
            let help = "Connections accepted on a socket that was used before.";
            out.counter("partyline_reactor_reused_sockets_total", help, &[], reused);
        }
        out.counter("partyline_reactor_waits_total", "Calls of the system's poll.", &[], self.waits.get());
        let help = "Handles put before the next leader because they were not read to the end.";
        out.counter("partyline_reactor_marks_total", help, &[], self.signal.marks.get());
        let help = "Sleeping leaders woken by a mark, a posted event or a stop.";
        out.counter("partyline_reactor_wakes_total", help, &[], self.signal.wakes.get());
    }
}

fn stream_news(event: &polling::Event) -> u32 {
    let mut bits = 0;
    if event.is_readable() || event.is_read_closed() || event.is_error() {
        bits |= news::READABLE;
    }
    if event.is_writable() || event.is_write_closed() || event.is_error() {
        bits |= news::WRITABLE;
    }
    if event.is_read_closed() || event.is_write_closed() || event.is_error() {
        bits |= news::HUNG_UP;
    }
    bits
}
