//! The state machine of leadership (Schmidt, O'Ryan, Pyarali, Kircher, Buschmann: Leader/Followers, POSA2 2000):
//! who leads, who is parked, what waits to be run. It starts no thread and knows no event source; `pool` gives it both.
//! Everything stands under one lock that is held for a few list operations, never over a call of someone else's.
//!
//! ```text
//!   newcomer ──enter──▶ next() ──▶ Lead ────promote()──▶ (works as anybody else) ──▶ next()
//!                         │  ▲       ▲
//!                         │  │       └── called: Lead (leadership is in transit, nobody else can take it)
//!                         │  └────────── called: Look (a task waits; it may be gone on arrival)
//!                         ├──▶ Work(task) ──▶ next()
//!                         └──▶ parked on top of the stack of followers ──(idle too long, stop)──▶ Leave
//!                                     └── as the sentinel: Lead when the leader's call takes too long (`loan`)
//! ```
//!
//! Invariants, which the loom models in `tests/sched_loom.rs` check:
//! - Leadership is held, in transit to a called follower, or vacant; it becomes vacant only when a thread is sure to
//!   come by `next` soon, or when its holder says so (`abdicate`).
//! - A queued task has a thread on its way to it (`waking`, `coming`, `growing`), or every thread is busy and each looks
//!   into the queue when it has finished.
//! - While the leader makes a call itself ([`Crew::lend`]), one follower watches it, or a thread is on its way here that
//!   sees to it in `next`; only at the maximum, with every thread busy, nobody may. Then the first that comes by looks.
//! - At most one follower is on its way to the queue; on arrival it calls the next if there is more. So a burst of short
//!   tasks wakes few threads, and a task that blocks holds up nobody: the next was called before it ran.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::loan::{Loan, Sight};
use super::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering, wait};

/// In which order queued tasks are taken: every `High` one before any `Normal` one; first in, first out in a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    High,
    Normal,
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub min: usize,
    pub max: usize,
    pub batch: usize,
    pub queue: usize,
    /// False for a pool without an event source: then nobody leads.
    pub leads: bool,
    /// How long a call of the leader may take before leadership is taken away; zero: nothing is lent.
    pub takeover: Duration,
}

/// What a thread is to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Order<T> {
    Lead,
    Work(T),
    Leave,
}

/// What the caller has to do, outside the lock: start that many threads (each reported by [`Crew::started`]), and wake
/// the event source's waiter.
#[must_use]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Errand {
    pub start: usize,
    pub wake: bool,
}

impl Errand {
    fn and(self, other: Errand) -> Errand {
        Errand { start: self.start + other.start, wake: self.wake || other.wake }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Promotion {
    /// Another thread leads or is about to.
    Handed,
    /// Start these threads, then ask again; the caller leads on until then.
    Start(usize),
    /// Nobody is idle and no more threads are allowed: the caller leads on.
    Full,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Attend<T> {
    /// Lead on.
    Stay,
    /// Lead no longer: do this first, if anything, then ask `next`.
    Resign(Option<T>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    /// A thread that has its seat and has not asked for anything yet.
    Report,
    None,
    Lead,
    Look,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    pub threads: usize,
    pub idle: usize,
    pub queued: usize,
    pub leading: bool,
    pub promotions: u64,
    pub takeovers: u64,
    pub full: u64,
    pub taken: u64,
    pub refused: u64,
    pub started: u64,
    pub start_failed: u64,
    pub ended_idle: u64,
}

struct State<T> {
    /// Leadership is held or in transit.
    leader: bool,
    /// Parked threads; the last one is called first, for its caches are warm and those at the bottom can end.
    idle: Vec<usize>,
    calls: Box<[Call]>,
    free: Vec<usize>,
    high: VecDeque<T>,
    normal: VecDeque<T>,
    /// Alive, being started, or reserved to be started.
    threads: usize,
    /// Reserved, but it is not known yet whether they can be started.
    growing: usize,
    /// Started and not yet arrived. One may arrive before its start is reported, so this can be -1 for a moment.
    coming: isize,
    /// Followers called to look into the queue and not yet there.
    waking: usize,
    /// The parked thread that watches the leader's calls.
    sentinel: Option<usize>,
    open: bool,
    stopping: bool,
    figures: Figures,
}

pub struct Crew<T> {
    limits: Limits,
    state: Mutex<State<T>>,
    /// One per thread, so that exactly the follower that is meant wakes up.
    seats: Box<[Condvar]>,
    /// Somebody wants the leader to look up from the source: stop, or a task that only it can run.
    attention: AtomicBool,
    loan: Loan,
    empty: Condvar,
}

impl<T> Crew<T> {
    pub fn new(limits: Limits) -> Self {
        let max = limits.max;
        Crew {
            limits,
            state: Mutex::new(State {
                leader: false,
                idle: Vec::with_capacity(max),
                calls: vec![Call::None; max].into(),
                free: (0..max).rev().collect(),
                high: VecDeque::new(),
                normal: VecDeque::new(),
                threads: 0,
                growing: 0,
                coming: 0,
                waking: 0,
                sentinel: None,
                open: false,
                stopping: false,
                figures: Figures::default(),
            }),
            seats: (0..max).map(|_| Condvar::new()).collect(),
            attention: AtomicBool::new(false),
            loan: Loan::new(limits.takeover),
            empty: Condvar::new(),
        }
    }

    /// Reserves the minimum of threads. Before, tasks are queued and no thread is asked for.
    pub fn open(&self) -> Errand {
        let mut state = self.state.lock();
        state.open = true;
        let start = self.limits.min.saturating_sub(state.threads);
        if start == 0 {
            return self.call_helper(&mut state, true);
        }
        self.reserve(&mut state, start)
    }

    /// To be called once for each reserved thread: was it started?
    pub fn started(&self, ok: bool) -> Errand {
        let mut state = self.state.lock();
        state.growing -= 1;
        if ok {
            state.coming += 1;
            state.figures.started += 1;
        } else {
            state.threads -= 1;
            state.figures.start_failed += 1;
            self.empty.notify_all();
        }
        // Whoever found this start under way left the queue to it, and the newcomer may have come and be busy already.
        // After a failure no other start is tried: every refusal by the system would ask for the next one.
        let errand = self.call_helper(&mut state, ok);
        if ok { errand.and(self.watch(&mut state)) } else { errand }
    }

    /// A started thread reports for duty and gets its seat.
    pub fn enter(&self) -> usize {
        let mut state = self.state.lock();
        let seat = state.free.pop().expect("as many seats as threads");
        // It counts as coming until it asks what to do: in between it is neither parked nor at work, and a leader that
        // promotes just then would find the pool full.
        state.calls[seat] = Call::Report;
        seat
    }

    /// What the thread on `seat` does next. Blocks while there is nothing to do; a thread that was parked for longer
    /// than `keep_alive` leaves if more than the minimum are there.
    pub fn next(&self, seat: usize, keep_alive: Duration) -> (Order<T>, Errand) {
        let mut state = self.state.lock();
        if state.calls[seat] == Call::Report {
            state.calls[seat] = Call::None;
            state.coming -= 1;
        }
        loop {
            // Leadership before tasks: a queue is served by whoever comes by, a source without a leader by nobody.
            if self.limits.leads && !state.leader && !state.stopping {
                state.leader = true;
                let errand = self.call_helper(&mut state, true);
                return (Order::Lead, errand);
            }
            if self.limits.leads && !state.stopping && self.take_over(&mut state) {
                let errand = self.call_helper(&mut state, true);
                return (Order::Lead, errand);
            }
            if let Some(task) = state.pop() {
                // This thread may not come back soon, so somebody else has to watch.
                let errand = self.call_helper(&mut state, true).and(self.watch(&mut state));
                return (Order::Work(task), errand);
            }
            if state.stopping || self.park(&mut state, seat, keep_alive) {
                self.leave(&mut state, seat);
                return (Order::Leave, Errand::default());
            }
            if state.calls[seat] == Call::Lead {
                state.calls[seat] = Call::None;
                let errand = self.call_helper(&mut state, true);
                return (Order::Lead, errand);
            }
            state.calls[seat] = Call::None;
        }
    }

    /// Parks the thread as the first to be called; true when it is to leave.
    fn park(&self, state: &mut MutexGuard<'_, State<T>>, seat: usize, keep_alive: Duration) -> bool {
        state.idle.push(seat);
        // The loan's word when this thread looked last as the sentinel.
        let mut seen = None;
        loop {
            if state.sentinel.is_none() && self.loan.is_lent() && !state.stopping {
                self.appoint(state, Some(seat));
                seen = None;
            }
            // At the minimum nobody leaves, so nobody needs to wake up for it. When the pool has grown since, those
            // that it grew by are parked with a limit.
            let mut limit = (state.threads > self.limits.min).then_some(keep_alive);
            let on_duty = state.sentinel == Some(seat);
            if on_duty {
                match self.stand_watch(state, &mut seen) {
                    Some(next_look) => limit = Some(next_look),
                    None if state.calls[seat] == Call::Lead => return false,
                    None => continue,
                }
            }
            let timed_out = wait(&self.seats[seat], state, limit);
            match state.calls[seat] {
                Call::Lead => return false,
                Call::Look => {
                    state.waking -= 1;
                    return false;
                }
                Call::None | Call::Report => {}
            }
            // It may have become the sentinel in the moment in which its time was over: then it stays.
            let watches = on_duty || state.sentinel == Some(seat);
            let surplus = timed_out && !watches && state.threads > self.limits.min;
            if surplus || state.stopping {
                state.idle.retain(|s| *s != seat);
                if state.sentinel == Some(seat) {
                    self.appoint(state, None);
                }
                state.figures.ended_idle += u64::from(surplus && !state.stopping);
                return surplus && !state.stopping;
            }
        }
    }

    /// The sentinel's look at the leader's call. When to look again; `None`: it has called itself to lead, or is off duty.
    fn stand_watch(&self, state: &mut State<T>, seen: &mut Option<u64>) -> Option<Duration> {
        match self.loan.look() {
            Sight::Young(rest) => Some(rest),
            Sight::Overdue(token) => {
                if self.loan.end(token) {
                    state.figures.takeovers += 1;
                    let seat = state.sentinel.take()?;
                    self.loan.set_watched(false);
                    state.idle.retain(|s| *s != seat);
                    state.calls[seat] = Call::Lead;
                }
                None
            }
            Sight::Idle(word) => {
                // In a model time does not pass, so there is no second look to wait for.
                if *seen != Some(word) && !cfg!(loom) {
                    *seen = Some(word);
                    return Some(self.loan.bound());
                }
                let seat = state.sentinel;
                self.appoint(state, None);
                if self.loan.is_lent() {
                    // The leader began a call before it could see that nobody watches.
                    self.appoint(state, seat);
                    *seen = None;
                }
                None
            }
        }
    }

    fn appoint(&self, state: &mut State<T>, sentinel: Option<usize>) {
        state.sentinel = sentinel;
        self.loan.set_watched(sentinel.is_some());
    }

    /// Sees to it that somebody watches the leader's call, if it makes one.
    fn watch(&self, state: &mut State<T>) -> Errand {
        if !self.loan.is_lent() || state.sentinel.is_some() || state.stopping {
            return Errand::default();
        }
        if let Some(&seat) = state.idle.last() {
            self.appoint(state, Some(seat));
            self.seats[seat].notify_one();
            return Errand::default();
        }
        // Who is on the way parks, or comes by here again before it takes a task.
        if state.coming > 0 || state.waking > 0 || state.growing > 0 {
            return Errand::default();
        }
        match (self.limits.max - state.threads).min(self.limits.batch) {
            room if room > 0 && state.open => self.reserve(state, room),
            _ => Errand::default(),
        }
    }

    /// A thread that comes by takes leadership from a call that takes too long.
    fn take_over(&self, state: &mut State<T>) -> bool {
        let Sight::Overdue(token) = self.loan.look() else { return false };
        let taken = self.loan.end(token);
        state.figures.takeovers += u64::from(taken);
        taken
    }

    /// The leader makes calls itself from now on, and can lose leadership by that; the errand is to be done before the
    /// first of them. `None`: this pool does not lend. The token is for [`Crew::renew`] and [`Crew::reclaim`].
    pub fn lend(&self, now: Instant) -> Option<(u64, Errand)> {
        if !self.loan.is_possible() {
            return None;
        }
        let (token, watched) = self.loan.begin(now);
        if watched {
            return Some((token, Errand::default()));
        }
        Some((token, self.watch(&mut self.state.lock())))
    }

    /// The leader's next call begins: its time counts anew. `None`: it leads no longer.
    pub fn renew(&self, token: u64, now: Instant) -> Option<u64> {
        self.loan.renew(token, now)
    }

    /// The leader's calls have ended; false if another thread leads meanwhile.
    pub fn reclaim(&self, token: u64) -> bool {
        self.loan.end(token)
    }

    /// Whether the call of that token is still the leader's.
    pub fn is_lent(&self, token: u64) -> bool {
        self.loan.is(token)
    }

    pub fn takeover_bound(&self) -> Duration {
        self.loan.bound()
    }

    /// The parked thread to be called: the last one, but the sentinel only if it is the only one.
    fn call_idle(&self, state: &mut State<T>, call: Call) -> Option<usize> {
        let last = state.idle.len().checked_sub(1)?;
        let at = if last > 0 && state.sentinel == Some(state.idle[last]) { last - 1 } else { last };
        let seat = state.idle.remove(at);
        if state.sentinel == Some(seat) {
            self.appoint(state, None);
        }
        state.calls[seat] = call;
        Some(seat)
    }

    fn leave(&self, state: &mut State<T>, seat: usize) {
        state.free.push(seat);
        state.threads -= 1;
        if state.stopping {
            self.empty.notify_all();
        }
    }

    /// The leader wants to give leadership away: to the follower that was parked last, or to a thread that is on its
    /// way here.
    pub fn promote(&self) -> Promotion {
        let mut state = self.state.lock();
        if let Some(seat) = self.call_idle(&mut state, Call::Lead) {
            state.figures.promotions += 1;
            drop(state);
            self.seats[seat].notify_one();
            return Promotion::Handed;
        }
        // Those on their way take what is vacant first, and call the next for the queue.
        if state.coming > 0 || state.waking > 0 || state.stopping {
            state.leader = false;
            state.figures.promotions += 1;
            return Promotion::Handed;
        }
        let room = (self.limits.max - state.threads).min(self.limits.batch);
        if room == 0 {
            state.figures.full += 1;
            return Promotion::Full;
        }
        let errand = self.reserve(&mut state, room);
        Promotion::Start(errand.start)
    }

    /// The leader stops leading although nobody is there to take over: the first thread that has finished will.
    pub fn abdicate(&self) {
        self.state.lock().leader = false;
    }

    /// Something waits for the leader: it must not wait on the source, but call [`Crew::attend`].
    pub fn wanted(&self) -> bool {
        self.attention.load(Ordering::Acquire)
    }

    /// The leader looks up from the source.
    pub fn attend(&self) -> Attend<T> {
        let mut state = self.state.lock();
        if state.stopping {
            // `attention` stays set: whoever is called to lead from now on has to see it.
            state.leader = false;
            return Attend::Resign(state.pop());
        }
        self.attention.store(false, Ordering::Release);
        if !self.alone(&state) {
            return Attend::Stay;
        }
        match state.pop() {
            // What else is queued is seen to by `next`, which this thread asks after the task.
            Some(task) => {
                state.leader = false;
                Attend::Resign(Some(task))
            }
            None => Attend::Stay,
        }
    }

    /// Queues a task and sees to it that somebody comes for it; gives it back when the queue is full or stopped.
    pub fn submit(&self, task: T, lane: Lane) -> Result<Errand, T> {
        let mut state = self.state.lock();
        if state.stopping || state.waiting() >= self.limits.queue {
            state.figures.refused += 1;
            return Err(task);
        }
        match lane {
            Lane::High => state.high.push_back(task),
            Lane::Normal => state.normal.push_back(task),
        }
        Ok(self.call_helper(&mut state, true))
    }

    /// If tasks wait and nobody is on the way to them: calls a follower, or asks for threads, or for the leader.
    fn call_helper(&self, state: &mut State<T>, grow: bool) -> Errand {
        if state.waiting() == 0 || state.waking > 0 || state.coming > 0 || state.growing > 0 {
            return Errand::default();
        }
        if let Some(seat) = self.call_idle(state, Call::Look) {
            state.waking += 1;
            self.seats[seat].notify_one();
            // It may have been the sentinel; it sees to another when it is here.
            return Errand::default();
        }
        let room = (self.limits.max - state.threads).min(self.limits.batch);
        if grow && room > 0 && state.open && !state.stopping {
            return self.reserve(state, room);
        }
        if self.alone(state) {
            self.attention.store(true, Ordering::Release);
            return Errand { start: 0, wake: true };
        }
        Errand::default()
    }

    /// The only thread there is leads: what is queued would wait for ever.
    fn alone(&self, state: &State<T>) -> bool {
        self.limits.leads && state.leader && state.threads - state.growing == 1
    }

    fn reserve(&self, state: &mut State<T>, n: usize) -> Errand {
        state.threads += n;
        state.growing += n;
        Errand { start: n, wake: false }
    }

    /// Refuses new tasks and sends the threads home once the queue is empty. The caller wakes the source.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        state.stopping = true;
        self.attention.store(true, Ordering::Release);
        for seat in state.idle.iter() {
            self.seats[*seat].notify_one();
        }
    }

    pub fn is_stopping(&self) -> bool {
        self.state.lock().stopping
    }

    /// Takes out what no thread has begun.
    pub fn abandon(&self) -> Vec<T> {
        let mut state = self.state.lock();
        let mut left: Vec<T> = state.high.drain(..).collect();
        left.extend(state.normal.drain(..));
        left
    }

    /// Waits until at most `rest` threads are left, at most `limit`; how many are left.
    pub fn wait_gone(&self, rest: usize, limit: Duration) -> usize {
        #[cfg(not(loom))]
        let end = std::time::Instant::now() + limit;
        let mut state = self.state.lock();
        while state.threads > rest {
            #[cfg(not(loom))]
            let limit = end.saturating_duration_since(std::time::Instant::now());
            if wait(&self.empty, &mut state, Some(limit)) {
                break;
            }
        }
        state.threads
    }

    pub fn figures(&self) -> Figures {
        let state = self.state.lock();
        Figures {
            threads: state.threads - state.growing,
            idle: state.idle.len(),
            queued: state.waiting(),
            leading: state.leader,
            ..state.figures
        }
    }
}

impl<T> State<T> {
    fn waiting(&self) -> usize {
        self.high.len() + self.normal.len()
    }

    fn pop(&mut self) -> Option<T> {
        let task = self.high.pop_front().or_else(|| self.normal.pop_front())?;
        self.figures.taken += 1;
        Some(task)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_between_its_seat_and_its_first_order_can_be_promoted() {
        let limits = Limits { leads: true, min: 1, max: 2, batch: 1, queue: 1, takeover: Duration::ZERO };
        let crew: Crew<()> = Crew::new(limits);
        assert_eq!(crew.open().start, 1);
        let _ = crew.started(true);
        let first = crew.enter();
        assert!(matches!(crew.next(first, Duration::ZERO).0, Order::Lead));
        assert!(matches!(crew.promote(), Promotion::Start(1)));
        let second = crew.enter();
        let _ = crew.started(true);
        assert!(matches!(crew.promote(), Promotion::Handed));
        assert!(matches!(crew.next(second, Duration::ZERO).0, Order::Lead));
    }
}
