//! The watchdog: names calls into foreign code that take longer than they may, while they are still running.
//!
//! A call takes a slot in a table for its duration: two stores and a compare-and-swap, no lock, no system call. A timer
//! scans the table ([`Watchdog::scan`]; as a [`Run`] it can be given to one) and reports each call that is over its
//! plugin's deadline once, and once more with the whole time when it has ended at last. It ends nothing: a thread cannot
//! be taken out of a C function safely.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use super::sync::own_number;
use super::task::Run;
use crate::ffi::thread::block_signals;
use crate::observe::{Counter, Text};

/// Calls that can be watched at a time; more are made all the same and counted.
const SLOTS: usize = 1024;

/// Names a plugin to the watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Watched(u16);

/// What is told of a call that is over its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overdue<'w> {
    pub plugin: &'w str,
    /// How long it has been running.
    pub elapsed: Duration,
    pub deadline: Duration,
    /// False while it runs (told once), true when it has ended.
    pub ended: bool,
}

struct Plugin {
    name: String,
    deadline: Duration,
    overdue: Counter,
    /// In nanoseconds.
    longest: AtomicU64,
}

/// `call`: 0 free, 1 being taken, else `sequence << 17 | plugin << 1 | reported` with a sequence that is never 0. As it
/// is different for each call of the slot, a compare-and-swap that succeeds met the call whose `since` was read.
#[repr(align(64))]
#[derive(Default)]
struct Slot {
    call: AtomicU64,
    /// Nanoseconds since the watchdog was made.
    since: AtomicU64,
    sequence: AtomicU64,
}

const FREE: u64 = 0;
const TAKING: u64 = 1;
const REPORTED: u64 = 1;
const SEQUENCE: u32 = 17;

pub struct Watchdog {
    slots: Box<[Slot]>,
    plugins: RwLock<Vec<Arc<Plugin>>>,
    origin: Instant,
    report: Box<dyn Fn(&Overdue<'_>) + Send + Sync>,
    unwatched: Counter,
}

/// A call that is being watched; its end ends the watch. Calls may be nested.
pub struct Watch<'w> {
    dog: &'w Watchdog,
    slot: Option<usize>,
}

impl Watchdog {
    /// `report` is called with no lock held (a panic of it is swallowed), by the thread that scans and by those whose overdue calls end.
    pub fn new(report: impl Fn(&Overdue<'_>) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Watchdog {
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            plugins: RwLock::new(Vec::new()),
            origin: Instant::now(),
            report: Box::new(report),
            unwatched: Counter::new(),
        })
    }

    /// One that writes its reports into the log.
    pub fn logging() -> Arc<Self> {
        Self::new(|call| {
            let (plugin, elapsed, deadline) = (call.plugin, call.elapsed, call.deadline);
            if call.ended {
                tracing::warn!(plugin, ?elapsed, ?deadline, "a call over its deadline has ended");
            } else {
                tracing::warn!(plugin, ?elapsed, ?deadline, "a call is over its deadline and still running");
            }
        })
    }

    /// Adds a plugin; `None` when there are 65,536 already.
    pub fn register(&self, name: &str, deadline: Duration) -> Option<Watched> {
        let mut plugins = self.plugins.write();
        let id = u16::try_from(plugins.len()).ok()?;
        let (overdue, longest) = (Counter::new(), AtomicU64::new(0));
        plugins.push(Arc::new(Plugin { name: name.to_owned(), deadline, overdue, longest }));
        Some(Watched(id))
    }

    /// A call begins. `now` is taken as given, for callers that have just read the clock.
    pub fn enter(&self, plugin: Watched, now: Instant) -> Watch<'_> {
        // Each thread has a slot of its own as long as there are fewer threads than slots; nested calls take others.
        let first = own_number();
        let slot = (0..SLOTS).map(|i| (first + i * 31) % SLOTS).find(|i| {
            let call = &self.slots[*i].call;
            call.load(Ordering::Relaxed) == FREE
                && call.compare_exchange(FREE, TAKING, Ordering::Acquire, Ordering::Relaxed).is_ok()
        });
        match slot {
            Some(at) => {
                let slot = &self.slots[at];
                let sequence = slot.sequence.load(Ordering::Relaxed) + 1;
                slot.sequence.store(sequence, Ordering::Relaxed);
                slot.since.store(self.nanos(now), Ordering::Relaxed);
                slot.call.store(sequence << SEQUENCE | u64::from(plugin.0) << 1, Ordering::Release);
            }
            None => self.unwatched.inc(),
        }
        Watch { dog: self, slot }
    }

    /// Reports what is overdue at `now` and has not been reported; how many calls that were.
    pub fn scan(&self, now: Instant) -> usize {
        let at = self.nanos(now);
        let mut found = 0;
        for slot in &self.slots {
            let call = slot.call.load(Ordering::Acquire);
            if call <= TAKING || call & REPORTED != 0 {
                continue;
            }
            let elapsed = Duration::from_nanos(at.saturating_sub(slot.since.load(Ordering::Relaxed)));
            let Some(plugin) = self.plugin(call) else { continue };
            if elapsed < plugin.deadline {
                continue;
            }
            // Lost when the call has ended meanwhile: then there is nothing to tell.
            if slot.call.compare_exchange(call, call | REPORTED, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                found += 1;
                plugin.overdue.inc();
                self.tell(&plugin, elapsed, false);
            }
        }
        found
    }

    /// How many calls of the plugin were found overdue, and the longest of those that have ended.
    pub fn overdue(&self, plugin: Watched) -> (u64, Duration) {
        let Some(plugin) = self.plugin(u64::from(plugin.0) << 1) else { return (0, Duration::ZERO) };
        (plugin.overdue.get(), Duration::from_nanos(plugin.longest.load(Ordering::Relaxed)))
    }

    pub fn metrics(&self, out: &mut Text) {
        let plugins = self.plugins.read().clone();
        for plugin in &plugins {
            let labels = [("plugin", plugin.name.as_str())];
            out.counter("partyline_calls_overdue_total", "Calls over their deadline.", &labels, plugin.overdue.get());
        }
        for plugin in &plugins {
            let labels = [("plugin", plugin.name.as_str())];
            let longest = plugin.longest.load(Ordering::Relaxed) as f64 / 1e9;
            out.gauge(
                "partyline_calls_overdue_longest_seconds",
                "The longest of them that has ended.",
                &labels,
                longest,
            );
        }
        out.counter("partyline_calls_unwatched_total", "Calls that found no slot.", &[], self.unwatched.get());
    }

    fn plugin(&self, call: u64) -> Option<Arc<Plugin>> {
        self.plugins.read().get((call >> 1) as u16 as usize).cloned()
    }

    fn tell(&self, plugin: &Plugin, elapsed: Duration, ended: bool) {
        let call = Overdue { plugin: &plugin.name, elapsed, deadline: plugin.deadline, ended };
        // A watch may end while its thread unwinds; a second panic out of there would abort the process.
        let _ = catch_unwind(AssertUnwindSafe(|| (self.report)(&call)));
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A thread of its own that scans, so that overdue calls are told even when every thread of the pools is in one. Ends when
/// it is dropped.
pub struct Patrol {
    ended: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Scans four times in the shortest deadline, at most a hundred times a second and at least once.
    pub fn patrol(self: &Arc<Self>) -> io::Result<Patrol> {
        let shortest = self.plugins.read().iter().map(|p| p.deadline).min().unwrap_or(Duration::MAX);
        let pause = (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
        let ended = Arc::new((Mutex::new(false), Condvar::new()));
        let (dog, told) = (Arc::clone(self), Arc::clone(&ended));
        let _blocked = block_signals();
        let thread = std::thread::Builder::new().name("pl-watchdog".into()).spawn(move || {
            let mut over = told.0.lock();
            while !*over {
                told.1.wait_for(&mut over, pause);
                MutexGuard::unlocked(&mut over, || dog.scan(Instant::now()));
            }
        })?;
        Ok(Patrol { ended, thread: Some(thread) })
    }
}

impl Drop for Patrol {
    fn drop(&mut self) {
        *self.ended.0.lock() = true;
        self.ended.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // It panics with nobody: reports are caught.
            let _ = thread.join();
        }
    }
}

impl Run for Watchdog {
    fn run(self: Arc<Self>, _: u64) {
        self.scan(Instant::now());
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let Some(at) = self.slot else { return };
        let slot = &self.dog.slots[at];
        let since = slot.since.load(Ordering::Relaxed);
        let call = slot.call.swap(FREE, Ordering::AcqRel);
        if call & REPORTED == 0 {
            return;
        }
        let elapsed = self.dog.nanos(Instant::now()).saturating_sub(since);
        if let Some(plugin) = self.dog.plugin(call) {
            plugin.longest.fetch_max(elapsed, Ordering::Relaxed);
            self.dog.tell(&plugin, Duration::from_nanos(elapsed), true);
        }
    }
}
