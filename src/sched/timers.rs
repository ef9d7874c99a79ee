//! Timers that any thread may start and cancel: a few timing wheels, each under a lock of its own that is held for O(1).
//!
//! ```text
//!   start ─▶ armed ──expire──▶ due ──fire──▶ running ──▶ gone            (one-shot)
//!              │                │               │  └────▶ armed again     (periodic, on its own grid)
//!              └──── cancel ────┴─▶ gone        └─ cancel: runs to its end, then gone
//! ```
//! What `cancel` promises, whatever else goes on at that moment:
//! - [`Cancel::Prevented`]: the callback has not begun since the last time it ran, and will not begin any more.
//! - [`Cancel::Running`]: it is running now; it will not begin again. [`Timers::cancel_and_wait`] comes back when it has
//!   ended, except on the thread that runs it, which cannot wait for itself.
//! - [`Cancel::Gone`]: a one-shot that has run to its end, a timer that was cancelled before, or no timer at all.
//!
//! A timer never fires early, and at most one call of it runs at a time: a period that ends while the call is still
//! running or queued is skipped and counted.

use std::time::{Duration, Instant};

use super::sync::{AtomicU64, Condvar, Mutex, Ordering, ThreadId, fence, own_number, thread_id, wait};
use super::wheel::{Key, Wheel};
use crate::observe::Counter;

/// A tick is a millisecond.
pub const TICK: Duration = Duration::from_millis(1);

const SHARD_BITS: u32 = 4;
const INDEX_BITS: u32 = 32 - SHARD_BITS;
/// `next` of a shard in which nothing waits.
const NEVER: u64 = u64::MAX;
/// `asleep` while nobody waits for the time: no deadline is earlier.
const AWAKE: u64 = 0;

/// Names a timer for its life, never 0; the id of one that is gone is not given again for 2^32 uses of its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimerId(pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancel {
    Prevented,
    Running,
    Gone,
}

enum Phase {
    Armed,
    Due,
    Running(ThreadId),
}

struct Timer<T> {
    phase: Phase,
    /// Set while it runs: it is to go when it has ended.
    cancelled: bool,
    /// In ticks; 0 for a one-shot.
    period: u64,
    /// Out while it runs.
    value: Option<T>,
}

struct Shard<T> {
    wheel: Mutex<Wheel<Timer<T>>>,
    /// A running timer that was cancelled has ended.
    ended: Condvar,
    /// No timer of the wheel is due before this tick. Written under the lock, read without.
    next: AtomicU64,
}

pub struct Timers<T> {
    shards: Box<[Shard<T>]>,
    origin: Instant,
    /// The latest `expire`. A shard in which nothing was due has not heard of it.
    time: AtomicU64,
    /// The tick until which somebody sleeps; a start with an earlier deadline has to wake it.
    asleep: AtomicU64,
    wake: Box<dyn Fn() + Send + Sync>,
    pub fired: Counter,
    pub skipped: Counter,
}

impl<T> Timers<T> {
    /// At most 16 shards; `wake` wakes whoever sleeps until [`Timers::sleep_until`], and is called with no lock held.
    pub fn new(shards: usize, wake: impl Fn() + Send + Sync + 'static) -> Self {
        let shards = shards.clamp(1, 1 << SHARD_BITS).next_power_of_two();
        let shard = |_| Shard { wheel: Mutex::new(Wheel::new()), ended: Condvar::new(), next: AtomicU64::new(NEVER) };
        Timers {
            shards: (0..shards).map(shard).collect(),
            origin: Instant::now(),
            time: AtomicU64::new(0),
            asleep: AtomicU64::new(AWAKE),
            wake: Box::new(wake),
            fired: Counter::new(),
            skipped: Counter::new(),
        }
    }

    /// The ticks that have passed entirely.
    pub fn now(&self) -> u64 {
        ticks(self.origin.elapsed())
    }

    /// Starts a timer that becomes due after `delay` and then every `period` (at least a tick).
    pub fn start(&self, delay: Duration, period: Option<Duration>, value: T) -> TimerId {
        // Rounded up, for a timer must not fire early: the tick that contains the deadline has to be over.
        let deadline =
            ticks(self.origin.elapsed().saturating_add(delay).saturating_add(TICK - Duration::from_nanos(1)));
        let period = period.map_or(0, |p| ticks(p).max(1));
        self.start_at(deadline, period, value)
    }

    /// The same in ticks; a period of 0 makes a one-shot.
    pub fn start_at(&self, deadline: u64, period: u64, value: T) -> TimerId {
        let at = if self.shards.len() == 1 { 0 } else { own_number() & (self.shards.len() - 1) };
        let shard = &self.shards[at];
        let timer = Timer { phase: Phase::Armed, cancelled: false, period, value: Some(value) };
        let key = {
            let mut wheel = shard.wheel.lock();
            let key = wheel.start(deadline, timer);
            assert!(key.index < 1 << INDEX_BITS, "fewer than 2^28 timers in a shard");
            shard.lower_next(deadline);
            key
        };
        self.wake_before(deadline);
        TimerId(u64::from(key.generation) << 32 | u64::from(key.index) << SHARD_BITS | at as u64)
    }

    pub fn cancel(&self, id: TimerId) -> Cancel {
        self.end(id, false)
    }

    /// Like `cancel`; when the callback is running on another thread it waits until that has ended.
    pub fn cancel_and_wait(&self, id: TimerId) -> Cancel {
        self.end(id, true)
    }

    fn end(&self, id: TimerId, patient: bool) -> Cancel {
        let Some((shard, key)) = self.find(id) else { return Cancel::Gone };
        let mut wheel = shard.wheel.lock();
        let Some(timer) = wheel.get_mut(key) else { return Cancel::Gone };
        let Phase::Running(runner) = timer.phase else {
            let timer = wheel.remove(key);
            drop(wheel);
            // Only now, for dropping the value may run code of the user.
            drop(timer);
            return Cancel::Prevented;
        };
        timer.cancelled = true;
        if patient && runner != thread_id() {
            while wheel.get(key).is_some() {
                wait(&shard.ended, &mut wheel, None);
            }
        }
        Cancel::Running
    }

    /// Moves the time to `now` and shows each timer that has become due; whoever gets one calls [`Timers::fire`] or
    /// [`Timers::defer`] for it, now or later, here or on another thread. `due` is called under a lock: it only notes.
    pub fn expire(&self, now: u64, mut due: impl FnMut(TimerId, &T)) {
        self.time.store(now, Ordering::Relaxed);
        for (at, shard) in self.shards.iter().enumerate() {
            if shard.next.load(Ordering::Relaxed) > now {
                continue;
            }
            let mut wheel = shard.wheel.lock();
            wheel.advance(now, |key, timer| {
                timer.phase = Phase::Due;
                if let Some(value) = &timer.value {
                    let id = u64::from(key.generation) << 32 | u64::from(key.index) << SHARD_BITS | at as u64;
                    due(TimerId(id), value);
                }
            });
            shard.next.store(wheel.next().unwrap_or(NEVER), Ordering::Relaxed);
        }
    }

    /// Runs a timer that `expire` has shown, with no lock held; false when it was cancelled since.
    pub fn fire(&self, id: TimerId, call: impl FnOnce(&mut T)) -> bool {
        let Some((shard, key)) = self.find(id) else { return false };
        let value = {
            let mut wheel = shard.wheel.lock();
            match wheel.get_mut(key) {
                Some(timer) if matches!(timer.phase, Phase::Due) => {
                    timer.phase = Phase::Running(thread_id());
                    timer.value.take()
                }
                _ => None,
            }
        };
        let Some(value) = value else { return false };
        self.fired.inc();
        // Ends the run even if the callback panics: others may wait for it.
        let mut run = Run { timers: self, shard, key, value: Some(value) };
        if let Some(value) = &mut run.value {
            call(value);
        }
        true
    }

    /// A timer that `expire` has shown cannot be run now: it becomes due again after `delay` ticks.
    pub fn defer(&self, id: TimerId, delay: u64) {
        let Some((shard, key)) = self.find(id) else { return };
        let mut wheel = shard.wheel.lock();
        let deadline = self.time.load(Ordering::Relaxed) + delay.max(1);
        match wheel.get_mut(key) {
            Some(timer) if matches!(timer.phase, Phase::Due) => timer.phase = Phase::Armed,
            _ => return,
        }
        wheel.restart(key, deadline);
        shard.lower_next(deadline);
        drop(wheel);
        self.wake_before(deadline);
    }

    /// No timer is due before this tick.
    pub fn next(&self) -> Option<u64> {
        let next = self.shards.iter().map(|s| s.next.load(Ordering::Relaxed)).min();
        next.filter(|tick| *tick != NEVER)
    }

    /// To be called before waiting: until when, as far as timers go. From now until `awake`, the start of an earlier
    /// timer calls `wake`, once.
    pub fn sleep_until(&self) -> Option<u64> {
        let until = self.next().unwrap_or(NEVER);
        self.asleep.store(until.max(AWAKE + 1), Ordering::Relaxed);
        // Pairs with the fence in `wake_before`: either the second look sees the new timer's `next`, or whoever starts
        // it sees that somebody sleeps.
        fence(Ordering::SeqCst);
        self.next()
    }

    pub fn awake(&self) {
        self.asleep.store(AWAKE, Ordering::Relaxed);
    }

    /// How long that is from now.
    pub fn until(&self, tick: u64) -> Duration {
        Duration::from_millis(tick).saturating_sub(self.origin.elapsed())
    }

    /// Timers that exist.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.wheel.lock().len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn wake_before(&self, deadline: u64) {
        fence(Ordering::SeqCst);
        if deadline < self.asleep.load(Ordering::Relaxed) && self.asleep.swap(AWAKE, Ordering::Relaxed) > deadline {
            (self.wake)();
        }
    }

    fn find(&self, id: TimerId) -> Option<(&Shard<T>, Key)> {
        let shard = self.shards.get(id.0 as usize & ((1 << SHARD_BITS) - 1))?;
        let key = Key { index: (id.0 as u32) >> SHARD_BITS, generation: (id.0 >> 32) as u32 };
        Some((shard, key))
    }
}

impl<T> Shard<T> {
    /// With the lock held.
    fn lower_next(&self, deadline: u64) {
        if deadline < self.next.load(Ordering::Relaxed) {
            self.next.store(deadline, Ordering::Relaxed);
        }
    }
}

/// A timer that is running.
struct Run<'t, T> {
    timers: &'t Timers<T>,
    shard: &'t Shard<T>,
    key: Key,
    value: Option<T>,
}

impl<T> Drop for Run<'_, T> {
    fn drop(&mut self) {
        let mut wheel = self.shard.wheel.lock();
        let (deadline, now) = (wheel.deadline(self.key).unwrap_or(0), self.timers.time.load(Ordering::Relaxed));
        let Some(timer) = wheel.get_mut(self.key) else { return };
        if timer.cancelled || timer.period == 0 {
            let cancelled = timer.cancelled;
            wheel.remove(self.key);
            drop(wheel);
            if cancelled {
                self.shard.ended.notify_all();
            }
            // The value goes with `self`, after the lock.
            return;
        }
        let period = timer.period;
        timer.value = self.value.take();
        timer.phase = Phase::Armed;
        // On its own grid, not a period from now: a periodic timer does not drift.
        let missed = now.saturating_sub(deadline) / period;
        let deadline = deadline + (missed + 1) * period;
        wheel.restart(self.key, deadline);
        self.shard.lower_next(deadline);
        drop(wheel);
        self.timers.skipped.add(missed);
        self.timers.wake_before(deadline);
    }
}

fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2).min(u64::MAX / 2)
}
