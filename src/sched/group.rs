//! Thread groups: pools by id, to which any thread can post a task.
//!
//! Order: the tasks of a group are begun in the order in which they were posted, those of one poster and those of all.
//! In a group of one thread they also end in that order; in a larger one they run side by side. Posting never blocks:
//! beyond the group's queue limit the task comes back.
//!
//! Timers belong to a group too: [`Clockwork`] is the [`Clock`] of the pool that leads, and posts what is due to the
//! timer's group, so that a timer's callback runs where its owner wants it and never on the leader.

use std::io;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::pool::{Clock, LeftOver, Options, Pool, Source};
use super::task::{Run, Task};
use super::timers::{Cancel, TimerId, Timers};
use crate::observe::{Counter, Text};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The threads that wait for input and output.
    pub const IO: GroupId = GroupId(0);
    /// The threads that run plugins. May be the same pool as `IO`.
    pub const WORKER: GroupId = GroupId(1);
    /// One thread for what has time.
    pub const LOG: GroupId = GroupId(2);
    const FIRST_DEFINED: u32 = 3;
}

/// Groups that can exist.
const GROUPS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Too much waits already; later it may be taken.
    Full,
    /// The group is being stopped.
    Stopped,
    Unknown,
}

/// A task that was not taken.
#[derive(Debug)]
pub struct Refused {
    pub task: Task,
    pub why: Why,
}

pub struct Groups {
    pools: [OnceLock<Arc<Pool>>; GROUPS],
    /// Held while a group is defined, so that a name or an id is given once.
    defining: Mutex<()>,
}

impl Default for Groups {
    fn default() -> Self {
        Self::new()
    }
}

impl Groups {
    pub fn new() -> Self {
        Groups { pools: [const { OnceLock::new() }; GROUPS], defining: Mutex::new(()) }
    }

    /// Makes an existing pool a group, under one of the fixed ids; false when the id is taken or out of range.
    pub fn set(&self, id: GroupId, pool: Arc<Pool>) -> bool {
        let _defining = self.defining.lock();
        self.pools.get(id.0 as usize).is_some_and(|slot| slot.set(pool).is_ok())
    }

    /// Starts a pool of threads as a new group. Its name must be new.
    pub fn define(&self, options: Options) -> io::Result<GroupId> {
        let _defining = self.defining.lock();
        if self.find(&options.name).is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("group {} exists", options.name)));
        }
        let first = GroupId::FIRST_DEFINED as usize;
        let free = (first..GROUPS).find(|i| self.pools[*i].get().is_none());
        let free = free.ok_or_else(|| io::Error::other("no more thread groups"))?;
        let pool = Arc::new(Pool::new(options, None)?);
        pool.start()?;
        let set = self.pools[free].set(pool).is_ok();
        debug_assert!(set, "the slot was free under the lock");
        Ok(GroupId(free as u32))
    }

    pub fn find(&self, name: &str) -> Option<GroupId> {
        let at = self.pools.iter().position(|slot| slot.get().is_some_and(|pool| pool.name() == name))?;
        Some(GroupId(at as u32))
    }

    pub fn pool(&self, id: GroupId) -> Option<&Arc<Pool>> {
        self.pools.get(id.0 as usize)?.get()
    }

    /// Posts a task to a group, from any thread. Never blocks.
    pub fn post(&self, id: GroupId, task: Task) -> Result<(), Refused> {
        match self.pool(id) {
            Some(pool) => pool.submit(task).map_err(|task| {
                let why = if pool.is_stopping() { Why::Stopped } else { Why::Full };
                Refused { task, why }
            }),
            None => Err(Refused { task, why: Why::Unknown }),
        }
    }

    /// Stops every group, each as [`Pool::stop`] does, within `limit` for all of them.
    pub fn stop(&self, limit: Duration) -> LeftOver {
        let end = Instant::now() + limit;
        let mut left = LeftOver::default();
        for pool in self.distinct() {
            let one = pool.stop(end.saturating_duration_since(Instant::now()));
            left.tasks += one.tasks;
            left.threads += one.threads;
        }
        left
    }

    pub fn metrics(&self, out: &mut Text) {
        Pool::metrics(self.distinct(), out);
    }

    fn distinct(&self) -> impl Iterator<Item = &Pool> {
        let pools = move |upto: usize| self.pools[..upto].iter().filter_map(OnceLock::get);
        let first = move |i: usize, pool: &Arc<Pool>| !pools(i).any(|other| Arc::ptr_eq(other, pool));
        let slots = self.pools.iter().enumerate();
        slots.filter_map(move |(i, slot)| slot.get().filter(|pool| first(i, pool)).map(|pool| &**pool))
    }
}

/// A call that a timer makes, once or again and again.
pub enum TimerCall {
    Shared(Arc<dyn Run>, u64),
    Call(fn(usize, usize), usize, usize),
    Mut(Box<dyn FnMut() + Send>),
}

impl TimerCall {
    fn run(&mut self) {
        match self {
            TimerCall::Shared(run, word) => Arc::clone(run).run(*word),
            TimerCall::Call(f, a, b) => f(*a, *b),
            TimerCall::Mut(f) => f(),
        }
    }
}

struct Timed {
    group: GroupId,
    call: TimerCall,
}

/// How long a timer waits whose group's queue is full, in ticks.
const RETRY: u64 = 5;

/// The timers of all groups, kept by the pool that leads.
pub struct Clockwork {
    timers: Timers<Timed>,
    /// Weak: the groups hold the pool that holds this.
    groups: Weak<Groups>,
    me: Weak<Clockwork>,
    due: Mutex<Vec<(TimerId, GroupId)>>,
    deferred: Counter,
    lost: Counter,
}

impl Clockwork {
    /// To be given to the pool that leads `source`, by [`Pool::set_clock`].
    pub fn new(groups: &Arc<Groups>, source: &Arc<dyn Source>) -> Arc<Self> {
        let source = Arc::downgrade(source);
        let wake = move || {
            if let Some(source) = source.upgrade() {
                source.wake();
            }
        };
        Arc::new_cyclic(|me| Clockwork {
            timers: Timers::new(8, wake),
            groups: Arc::downgrade(groups),
            me: me.clone(),
            due: Mutex::new(Vec::new()),
            deferred: Counter::new(),
            lost: Counter::new(),
        })
    }

    /// Starts a timer whose callback runs on `group`, from any thread.
    pub fn start(&self, group: GroupId, delay: Duration, period: Option<Duration>, call: TimerCall) -> TimerId {
        self.timers.start(delay, period, Timed { group, call })
    }

    pub fn cancel(&self, id: TimerId) -> Cancel {
        self.timers.cancel(id)
    }

    pub fn cancel_and_wait(&self, id: TimerId) -> Cancel {
        self.timers.cancel_and_wait(id)
    }

    pub fn len(&self) -> usize {
        self.timers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.timers.is_empty()
    }

    pub fn metrics(&self, out: &mut Text) {
        out.gauge("partyline_timers", "Timers that exist.", &[], self.len() as f64);
        let counters = [
            ("partyline_timers_fired_total", "Timer callbacks begun.", &self.timers.fired),
            ("partyline_timers_skipped_total", "Periods that ended while the call still ran.", &self.timers.skipped),
            ("partyline_timers_deferred_total", "Timers put off because their group's queue was full.", &self.deferred),
            ("partyline_timers_lost_total", "Timers ended because their group is not there.", &self.lost),
        ];
        for (name, help, counter) in counters {
            out.counter(name, help, &[], counter.get());
        }
    }

    fn hand_out(&self, now: u64) {
        let (Some(groups), Some(me)) = (self.groups.upgrade(), self.me.upgrade()) else { return };
        let mut due = self.due.lock();
        self.timers.expire(now, |id, timed| due.push((id, timed.group)));
        for (id, group) in due.drain(..) {
            match groups.post(group, Task::shared(&me, id.0)) {
                Ok(()) => {}
                Err(Refused { why: Why::Full, .. }) => {
                    self.deferred.inc();
                    self.timers.defer(id, RETRY);
                }
                Err(Refused { why: Why::Unknown | Why::Stopped, .. }) => {
                    self.lost.inc();
                    self.timers.cancel(id);
                }
            }
        }
    }
}

impl Run for Clockwork {
    fn run(self: Arc<Self>, word: u64) {
        self.timers.fire(TimerId(word), |timed| timed.call.run());
    }
}

impl Clock for Clockwork {
    fn turn(&self) -> Option<Duration> {
        self.timers.awake();
        if let Some(next) = self.timers.next() {
            let now = self.timers.now();
            if next <= now {
                self.hand_out(now);
            }
        }
        self.timers.sleep_until().map(|tick| self.timers.until(tick))
    }

    fn awake(&self) {
        self.timers.awake();
    }
}
