//! A pool of threads that takes turns in waiting for events (leader/followers) and runs what is submitted to it.
//!
//! With a [`Source`] one thread leads: it is inside [`Source::lead`], and nobody else is until it promotes. There is
//! always a leader or a thread about to lead while fewer than `max` threads are there; at `max` the thread that leads
//! keeps leading ([`Leader::promote`] says false) and what may block is to be submitted or refused. Tasks never run on
//! the leader, with one exception: it is the only thread and no other can be started.
//! Without a source nobody leads and all threads run tasks (an executor for a thread group).
//!
//! Threads are named `pl-<name>-<n>`, get no signals, and end when they had nothing to do for `keep_alive` and more
//! than `min` are there.

use std::any::Any;
use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::crew::{Attend, Crew, Errand, Figures, Lane, Limits, Order, Promotion};
use super::task::Task;
use crate::ffi::thread::{block_signals, pin_to};
use crate::observe::{Counter, Text};

#[derive(Debug, Clone)]
pub struct Options {
    /// Part of the threads' names and the label of the metrics. Linux cuts thread names at 15 bytes.
    pub name: String,
    /// Threads that are always there; at least 1 for a pool with a source.
    pub min: usize,
    pub max: usize,
    /// How many threads are started at once when the pool grows.
    pub batch: usize,
    /// How long a thread beyond `min` may have nothing to do before it ends.
    pub keep_alive: Duration,
    /// Tasks that may wait; one more is refused.
    pub queue_limit: usize,
    /// How long a call that the leader makes itself ([`Leader::lend`]) may take before another thread leads; zero: a leader
    /// makes no such calls.
    pub takeover: Duration,
    /// Processors to keep the threads on, in turn.
    pub pin: Option<Vec<usize>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            name: "pool".into(),
            min: 2,
            max: 64,
            batch: 2,
            keep_alive: Duration::from_secs(30),
            queue_limit: 65_536,
            takeover: Duration::from_millis(1),
            pin: None,
        }
    }
}

/// Where events come from: a reactor, a clock, a queue of someone else's.
pub trait Source: Send + Sync + 'static {
    /// Called by the leader, with no lock held. Waits for events at most `timeout` (`None`: for ever), handles a bounded
    /// batch of them and returns; timers and the pool's stop wait for that return. Before anything that may block it
    /// calls [`Leader::promote`], and then leaves the source alone: another thread is in it. Or it calls
    /// [`Leader::lend`], for what is mostly short: then another thread comes only if it is not.
    fn lead(&self, leader: &mut Leader<'_>, timeout: Option<Duration>);

    /// Makes `lead` return soon. From any thread, never blocks, may be called often. It sticks: after a call while
    /// nobody waits, the next wait returns at once.
    fn wake(&self);
}

/// Timers that the leader keeps.
pub trait Clock: Send + Sync + 'static {
    /// The leader is about to wait: hand out what is due (nothing that blocks is called here) and say how long the
    /// leader may wait. Until `awake`, a deadline earlier than that wakes the source.
    fn turn(&self) -> Option<Duration>;
    /// The leader does not wait any more, and will call `turn` before it waits again.
    fn awake(&self);
}

/// What [`Pool::stop`] could not finish.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOver {
    /// Tasks that were queued and never begun; they were dropped.
    pub tasks: usize,
    /// Threads that have not come back from what they run. They end when they do.
    pub threads: usize,
}

/// A pool of threads; see the module. Dropping it stops it without waiting.
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    crew: Crew<Task>,
    source: Option<Arc<dyn Source>>,
    clock: OnceLock<Arc<dyn Clock>>,
    names: AtomicUsize,
    handles: Mutex<Vec<JoinHandle<()>>>,
    panics: Counter,
}

thread_local! {
    /// The address of the pool that this thread belongs to, 0 for none.
    static MEMBER: Cell<usize> = const { Cell::new(0) };
}

impl Pool {
    /// A pool that has not started any thread yet; tasks can be submitted already.
    pub fn new(options: Options, source: Option<Arc<dyn Source>>) -> io::Result<Self> {
        let wrong = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        if options.max == 0 || options.min > options.max || options.batch == 0 {
            return wrong("a pool needs max >= 1, min <= max and batch >= 1");
        }
        if options.min == 0 && source.is_some() {
            return wrong("a pool with an event source needs min >= 1: somebody has to lead");
        }
        let limits = Limits {
            min: options.min,
            max: options.max,
            batch: options.batch,
            queue: options.queue_limit,
            leads: source.is_some(),
            takeover: options.takeover,
        };
        Ok(Pool {
            inner: Arc::new(Inner {
                options,
                crew: Crew::new(limits),
                source,
                clock: OnceLock::new(),
                names: AtomicUsize::new(0),
                handles: Mutex::new(Vec::new()),
                panics: Counter::new(),
            }),
        })
    }

    /// Gives the pool's leader timers to keep. Once, before `start`, and only for a pool with a source.
    pub fn set_clock(&self, clock: Arc<dyn Clock>) -> io::Result<()> {
        if self.inner.source.is_none() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a pool without a source has no leader to keep time",
            ));
        }
        let taken = io::Error::new(io::ErrorKind::AlreadyExists, "the pool keeps another clock already");
        self.inner.clock.set(clock).map_err(|_| taken)
    }

    /// Starts `min` threads. An error when not even that many can be had; the pool is then stopped.
    pub fn start(&self) -> io::Result<()> {
        let errand = self.inner.crew.open();
        let wanted = errand.start;
        let started = self.inner.errand(errand);
        if started < wanted {
            self.inner.crew.stop();
            self.inner.wake();
            return Err(io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!("only {started} of {wanted} threads of pool {} could be started", self.inner.options.name),
            ));
        }
        Ok(())
    }

    /// Queues a task for the next free thread; `Err` gives it back when `queue_limit` wait or the pool is stopped.
    pub fn submit(&self, task: Task) -> Result<(), Task> {
        self.submit_in(Lane::Normal, task)
    }

    pub fn submit_in(&self, lane: Lane, task: Task) -> Result<(), Task> {
        let errand = self.inner.crew.submit(task, lane)?;
        self.inner.errand(errand);
        Ok(())
    }

    /// Wakes the leader, if there is a source.
    pub fn wake(&self) {
        self.inner.wake();
    }

    /// True on a thread of this pool.
    pub fn is_member(&self) -> bool {
        MEMBER.get() == Arc::as_ptr(&self.inner) as usize
    }

    pub fn is_stopping(&self) -> bool {
        self.inner.crew.is_stopping()
    }

    /// Refuses new tasks, lets the queue and what runs come to an end within `limit`, and tells what did not. The source
    /// is not led any more from the start of this call. On a thread of the pool it does not wait for that thread.
    pub fn stop(&self, limit: Duration) -> LeftOver {
        let inner = &self.inner;
        inner.crew.stop();
        inner.wake();
        let own = usize::from(self.is_member());
        let threads = inner.crew.wait_gone(own, limit).saturating_sub(own);
        let tasks = inner.crew.abandon();
        let left = LeftOver { tasks: tasks.len(), threads };
        drop(tasks);
        if threads == 0 && own == 0 {
            for handle in inner.handles.lock().drain(..) {
                // A thread of ours catches what it runs; the handle has no error to tell.
                let _ = handle.join();
            }
        }
        left
    }

    pub fn name(&self) -> &str {
        &self.inner.options.name
    }

    pub fn figures(&self) -> Figures {
        self.inner.crew.figures()
    }

    /// How often a task, or the source, has panicked.
    pub fn panics(&self) -> u64 {
        self.inner.panics.get()
    }

    /// One family's samples of several pools have to stand together, so all pools are written by one call.
    pub fn metrics<'p>(pools: impl Iterator<Item = &'p Pool>, out: &mut Text) {
        type Read = fn(&Figures) -> u64;
        let read: Vec<(&str, Figures, u64)> = pools.map(|p| (p.name(), p.figures(), p.panics())).collect();
        let gauges: [(&str, &str, Read); 3] = [
            ("partyline_pool_threads", "Threads of the pool.", |f| f.threads as u64),
            ("partyline_pool_idle", "Threads that are parked.", |f| f.idle as u64),
            ("partyline_pool_queued", "Tasks that wait for a thread.", |f| f.queued as u64),
        ];
        for (name, help, of) in gauges {
            for (pool, figures, _) in &read {
                out.gauge(name, help, &[("pool", pool)], of(figures) as f64);
            }
        }
        let counters: [(&str, &str, Read); 8] = [
            ("partyline_pool_promotions_total", "Times leadership was given away.", |f| f.promotions),
            ("partyline_pool_takeovers_total", "Times leadership was taken from a call that took long.", |f| {
                f.takeovers
            }),
            ("partyline_pool_full_total", "Times nobody was there to lead and no thread allowed.", |f| f.full),
            ("partyline_pool_tasks_total", "Tasks begun.", |f| f.taken),
            ("partyline_pool_refused_total", "Tasks refused because the queue was full or stopped.", |f| f.refused),
            ("partyline_pool_started_total", "Threads started.", |f| f.started),
            ("partyline_pool_start_failed_total", "Threads that the system refused.", |f| f.start_failed),
            ("partyline_pool_ended_idle_total", "Threads that ended because they were idle.", |f| f.ended_idle),
        ];
        for (name, help, of) in counters {
            for (pool, figures, _) in &read {
                out.counter(name, help, &[("pool", pool)], of(figures));
            }
        }
        for (pool, _, panics) in &read {
            out.counter(
                "partyline_pool_panics_total",
                "Panics caught in tasks and sources.",
                &[("pool", pool)],
                *panics,
            );
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.inner.crew.stop();
        self.inner.wake();
        drop(self.inner.crew.abandon());
    }
}

impl Inner {
    fn wake(&self) {
        if let Some(source) = &self.source {
            source.wake();
        }
    }

    /// Does what the crew asked for; how many threads were started.
    fn errand(self: &Arc<Self>, mut errand: Errand) -> usize {
        let mut started = 0;
        loop {
            if errand.wake {
                self.wake();
            }
            if errand.start == 0 {
                return started;
            }
            let mut next = Errand::default();
            for _ in 0..errand.start {
                let ok = self.spawn();
                started += usize::from(ok);
                let more = self.crew.started(ok);
                next.start += more.start;
                next.wake |= more.wake;
            }
            errand = next;
        }
    }

    fn spawn(self: &Arc<Self>) -> bool {
        let n = self.names.fetch_add(1, Ordering::Relaxed);
        let inner = Arc::clone(self);
        let _blocked = block_signals();
        let name = format!("pl-{}-{n}", self.options.name);
        match std::thread::Builder::new().name(name).spawn(move || inner.work(n)) {
            Ok(handle) => {
                let mut handles = self.handles.lock();
                handles.retain(|h| !h.is_finished());
                handles.push(handle);
                true
            }
            Err(error) => {
                tracing::warn!(pool = self.options.name, %error, "cannot start a thread");
                false
            }
        }
    }

    fn work(self: Arc<Self>, n: usize) {
        MEMBER.set(Arc::as_ptr(&self) as usize);
        let cpu = self.options.pin.as_ref().filter(|cpus| !cpus.is_empty()).map(|cpus| cpus[n % cpus.len()]);
        if let Some(cpu) = cpu {
            if !pin_to(cpu) {
                tracing::warn!(pool = self.options.name, cpu, "cannot keep a thread on this processor");
            }
        }
        let seat = self.crew.enter();
        loop {
            let (order, errand) = self.crew.next(seat, self.options.keep_alive);
            self.errand(errand);
            match order {
                Order::Lead => self.lead(),
                Order::Work(task) => self.run(task),
                Order::Leave => return,
            }
        }
    }

    /// Leads until leadership is given away or taken.
    fn lead(self: &Arc<Self>) {
        let Some(source) = &self.source else { return };
        let clock = self.clock.get();
        loop {
            if self.crew.wanted() {
                if let Attend::Resign(task) = self.crew.attend() {
                    if let Some(task) = task {
                        self.run(task);
                    }
                    return;
                }
            }
            let timeout = clock.and_then(|clock| clock.turn());
            let mut leader = Leader { pool: self, leads: true, since: None, loan: Cell::new(None) };
            let end = catch_unwind(AssertUnwindSafe(|| source.lead(&mut leader, timeout)));
            let leads = leader.reclaim();
            if let Err(panic) = end {
                self.panicked("source", &*panic);
            }
            if !leads {
                return;
            }
            if let Some(clock) = clock {
                clock.awake();
            }
        }
    }

    fn run(&self, task: Task) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task.run())) {
            self.panicked("task", &*panic);
        }
    }

    fn panicked(&self, what: &str, panic: &(dyn Any + Send)) {
        self.panics.inc();
        let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        tracing::error!(pool = self.options.name, what, text = text.unwrap_or("(no text)"), "panic caught");
    }
}

/// The thread that leads, as its [`Source`] sees it.
pub struct Leader<'p> {
    pool: &'p Arc<Inner>,
    leads: bool,
    since: Option<Instant>,
    loan: Cell<Option<Loan>>,
}

/// Calls that the leader makes itself.
#[derive(Clone, Copy)]
struct Loan {
    began: Instant,
    /// `None`: leadership was taken.
    token: Option<u64>,
}

impl Leader<'_> {
    /// Gives leadership away: to the follower parked last, or to a thread that is started now. True when another
    /// thread leads or is about to; false when nobody is idle and `max` threads are there (or the system gives no more):
    /// then the caller leads on, and hands on by [`Pool::submit`], or refuses, what may block.
    pub fn promote(&mut self) -> bool {
        if !self.reclaim() {
            return true;
        }
        // Threads that are reserved and still to be started; the new leader must not wait for them.
        let mut owed = 0;
        loop {
            match self.pool.crew.promote() {
                Promotion::Handed => {
                    self.leads = false;
                    break;
                }
                Promotion::Start(n) => owed += n,
                Promotion::Full if owed == 0 => break,
                Promotion::Full => {}
            }
            owed -= 1;
            let ok = self.pool.spawn();
            let more = self.pool.crew.started(ok);
            owed += more.start;
            if more.wake {
                self.pool.wake();
            }
            if !ok {
                for _ in 0..owed {
                    self.pool.errand(self.pool.crew.started(false));
                }
                return false;
            }
        }
        self.pool.errand(Errand { start: owed, wake: false });
        !self.leads
    }

    /// From now on this thread makes calls that may block, one or a few, mostly short; a follower watches, and leads when
    /// one of them takes longer than [`Options::takeover`]. False: the pool does not do this, promote instead. What
    /// belongs to the source's events must be given back before, for another thread may come into it at any moment.
    pub fn lend(&mut self) -> bool {
        if !self.leads {
            return true;
        }
        let now = Instant::now();
        let Some((token, errand)) = self.pool.crew.lend(now) else { return false };
        self.loan.set(Some(Loan { began: now, token: Some(token) }));
        self.pool.errand(errand);
        true
    }

    /// While lent: the next call begins. Its time counts anew, unless all calls together have taken too long already.
    pub fn renew(&self, now: Instant) {
        let Some(loan) = self.loan.get() else { return };
        let Some(token) = loan.token else { return };
        if now.saturating_duration_since(loan.began) < self.pool.crew.takeover_bound() {
            self.loan.set(Some(Loan { token: self.pool.crew.renew(token, now), ..loan }));
        }
    }

    /// Calls are being made, and leadership has not been taken from them so far.
    pub fn is_lent(&self) -> bool {
        self.loan.get().and_then(|loan| loan.token).is_some_and(|token| self.pool.crew.is_lent(token))
    }

    /// The calls have ended. True if this thread leads still.
    pub fn reclaim(&mut self) -> bool {
        if let Some(loan) = self.loan.take() {
            self.leads = loan.token.is_some_and(|token| self.pool.crew.reclaim(token));
        }
        self.leads
    }

    /// Stops leading although nobody is there to take over: the first thread that has finished its work will lead. For
    /// work that cannot be queued when [`Leader::promote`] said false; until then the source is left alone.
    pub fn abdicate(&mut self) {
        if self.reclaim() {
            self.pool.crew.abdicate();
            self.leads = false;
        }
    }

    pub fn is_leader(&self) -> bool {
        self.leads
    }

    /// The wait is over and events are at hand. Notes the time for [`Leader::overrun`]; timers that are started from
    /// here on need no wake-up.
    pub fn events_came(&mut self) {
        self.since = Some(Instant::now());
        if let Some(clock) = self.pool.clock.get() {
            clock.awake();
        }
    }

    /// True when more than `bound` has passed since the events came: time to promote before going on.
    pub fn overrun(&self, bound: Duration) -> bool {
        self.since.is_some_and(|since| since.elapsed() > bound)
    }
}
