//! The leader/follower pool that runs partysip's loops.
//!
//! ```text
//!   leader: epoll ─┬─ a socket of a transport plugin ─▶ promote, then the plugin's receive hook until it is empty
//!                  ├─ a module's pipe (something wrote to it directly) ─▶ the same, with the module's function
//!                  └─ the next deadline ─▶ the turn is queued
//!   Turn::wake ────────────────────────────────────▶ the turn is queued, once, however often it is woken
//!   any thread: a turn (osip's and the requests' loops under the global lock), or a hook whose policy lets it run beside
//! ```
//! Promises: a turn runs on one thread at a time, and once more after every wake that came while it ran; a socket's
//! function runs on one thread at a time; a hook that blocks costs one thread and nothing else. Nothing is called under a
//! lock of this file but a socket's function under that socket's own.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicI64, AtomicU8, Ordering};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::counts::{COUNTS, bump};
use crate::pool::os;
use crate::sched::{Admit, Bounds, Leader, Next, Options, Permit, Policy, Pool, Source, StrandSet, Task};

/// Runs one turn; gives the time of the next, in microseconds of the monotonic clock, or -1.
pub type TurnFunction = unsafe extern "C" fn(*mut c_void) -> i64;
pub type ReadyFunction = unsafe extern "C" fn(*mut c_void, c_int);
pub type Hook = unsafe extern "C" fn(*mut c_void);

const NEVER: i64 = i64::MAX;
const IDLE: u8 = 0;
const QUEUED: u8 = 1;
const RUNNING: u8 = 2;
const AGAIN: u8 = 3;

pub fn now() -> i64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the struct.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut ts) };
    ts.tv_sec * 1_000_000 + ts.tv_nsec / 1000
}

/// A loop of partysip's, one turn at a time.
pub struct Turn {
    run: TurnFunction,
    arg: *mut c_void,
    state: AtomicU8,
    deadline: AtomicI64,
    /// Held while it runs, so that it can be waited for.
    running: Mutex<()>,
}

// SAFETY: the function is called on one thread at a time, and its argument is its own.
unsafe impl Send for Turn {}
// SAFETY: as above.
unsafe impl Sync for Turn {}

struct Watch {
    fd: c_int,
    ready: ReadyFunction,
    arg: *mut c_void,
    /// False once it has been taken off. Held while the function runs.
    live: Mutex<bool>,
}

// SAFETY: the function is called on one thread at a time, and its argument is its own.
unsafe impl Send for Watch {}
// SAFETY: as above.
unsafe impl Sync for Watch {}

/// Where the leader waits.
struct Epoll {
    fd: c_int,
    bell: c_int,
    watches: Mutex<Vec<Arc<Watch>>>,
    turns: Mutex<Vec<Arc<Turn>>>,
    /// Until when the leader waits; `NEVER` while it does not.
    armed: AtomicI64,
    crew: Mutex<std::sync::Weak<Crew>>,
}

/// A pool with its source.
pub struct Crew {
    pool: Pool,
    epoll: Arc<Epoll>,
}

static CREW: Mutex<(usize, Option<Arc<Crew>>)> = Mutex::new((0, None));

fn threads() -> usize {
    let text = os::env(c"PARTYLINE_THREADS").and_then(|value| core::str::from_utf8(value).ok());
    text.and_then(|text| text.parse().ok()).filter(|n| (2..=1024).contains(n)).unwrap_or(64)
}

/// Starts the pool, or counts one more user of it.
pub fn start() -> io::Result<Arc<Crew>> {
    let mut guard = CREW.lock();
    if let Some(crew) = &guard.1 {
        let crew = Arc::clone(crew);
        guard.0 += 1;
        return Ok(crew);
    }
    let epoll = Arc::new(Epoll::new()?);
    let options = Options { name: "psp".into(), min: 2, max: threads(), batch: 1, ..Options::default() };
    let pool = Pool::new(options, Some(Arc::clone(&epoll) as Arc<dyn Source>))?;
    let crew = Arc::new(Crew { pool, epoll });
    *crew.epoll.crew.lock() = Arc::downgrade(&crew);
    crew.pool.start()?;
    *guard = (1, Some(Arc::clone(&crew)));
    Ok(crew)
}

/// One user less; the last one ends the threads.
pub fn stop() {
    let last = {
        let mut guard = CREW.lock();
        guard.0 = guard.0.saturating_sub(1);
        if guard.0 == 0 { guard.1.take() } else { None }
    };
    if let Some(crew) = last {
        crew.pool.stop(Duration::from_secs(5));
    }
}

pub fn current() -> Option<Arc<Crew>> {
    CREW.lock().1.clone()
}

impl Epoll {
    fn new() -> io::Result<Epoll> {
        // SAFETY: makes descriptors.
        let (fd, bell) = unsafe {
            (libc::epoll_create1(libc::EPOLL_CLOEXEC), libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))
        };
        let epoll = Epoll {
            fd,
            bell,
            watches: Mutex::default(),
            turns: Mutex::default(),
            armed: AtomicI64::new(NEVER),
            crew: Mutex::default(),
        };
        if fd < 0 || bell < 0 {
            return Err(io::Error::last_os_error());
        }
        epoll.control(libc::EPOLL_CTL_ADD, bell, libc::EPOLLIN)?;
        Ok(epoll)
    }

    fn control(&self, what: c_int, fd: c_int, events: c_int) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: fd as u64 };
        // SAFETY: the event lives during the call.
        match unsafe { libc::epoll_ctl(self.fd, what, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn next_deadline(&self) -> i64 {
        self.turns.lock().iter().map(|turn| turn.deadline.load(Ordering::SeqCst)).min().unwrap_or(NEVER)
    }

    /// How long the leader may wait, in milliseconds; announced so that an earlier deadline wakes it.
    fn arm(&self, limit: Option<Duration>) -> c_int {
        let mut deadline = NEVER;
        loop {
            let next = self.next_deadline();
            if next == deadline {
                break;
            }
            deadline = next;
            self.armed.store(deadline, Ordering::SeqCst);
        }
        let own = if deadline == NEVER { i64::MAX } else { (deadline - now()).max(0).div_euclid(1000) + 1 };
        let own = if deadline != NEVER && deadline <= now() { 0 } else { own };
        let limit = limit.map_or(i64::MAX, |limit| i64::try_from(limit.as_millis()).unwrap_or(i64::MAX));
        match own.min(limit) {
            i64::MAX => -1,
            least => c_int::try_from(least).unwrap_or(c_int::MAX),
        }
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        // SAFETY: its own descriptors, used by nobody any more.
        unsafe {
            libc::close(self.bell);
            libc::close(self.fd);
        }
    }
}

impl Source for Epoll {
    fn lead(&self, leader: &mut Leader<'_>, timeout: Option<Duration>) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 8];
        let limit = self.arm(timeout);
        // SAFETY: the array is as long as is said.
        let count = unsafe { libc::epoll_wait(self.fd, events.as_mut_ptr(), events.len() as c_int, limit) };
        self.armed.store(NEVER, Ordering::SeqCst);
        leader.events_came();
        let crew = self.crew.lock().upgrade();
        let time = now();
        let due: Vec<_> =
            self.turns.lock().iter().filter(|turn| turn.deadline.load(Ordering::SeqCst) <= time).cloned().collect();
        for turn in due {
            turn.deadline.store(NEVER, Ordering::SeqCst);
            if let Some(crew) = &crew {
                crew.wake(&turn);
            }
        }
        let mut ready: Vec<Arc<Watch>> = Vec::new();
        for event in &events[..usize::try_from(count).unwrap_or(0)] {
            let fd = event.u64 as c_int;
            if fd == self.bell {
                let mut drained = 0u64;
                // SAFETY: reads eight bytes; empty is no harm.
                unsafe { libc::read(self.bell, (&raw mut drained).cast(), 8) };
            } else if let Some(watch) = self.watches.lock().iter().find(|watch| watch.fd == fd) {
                ready.push(Arc::clone(watch));
            }
        }
        if ready.is_empty() {
            return;
        }
        // Before anything that may block; where nobody can take over it is handled first, and nobody waits meanwhile.
        leader.promote();
        for watch in ready {
            let live = watch.live.lock();
            if !*live {
                continue;
            }
            // SAFETY: the contract of the module; it is live, and the lock keeps it so.
            unsafe { (watch.ready)(watch.arg, watch.fd) };
            // Disarmed since the event; a socket that still has something fires again.
            let _ = self.control(libc::EPOLL_CTL_MOD, watch.fd, libc::EPOLLIN | libc::EPOLLONESHOT);
        }
    }

    fn wake(&self) {
        let one = 1u64;
        // SAFETY: writes eight bytes; a full counter is awake already.
        unsafe { libc::write(self.bell, (&raw const one).cast(), 8) };
    }
}

impl Crew {
    pub fn turn(&self, run: TurnFunction, arg: *mut c_void) -> Arc<Turn> {
        let turn = Arc::new(Turn {
            run,
            arg,
            state: AtomicU8::new(IDLE),
            deadline: AtomicI64::new(NEVER),
            running: Mutex::new(()),
        });
        self.epoll.turns.lock().push(Arc::clone(&turn));
        turn
    }

    /// The turn will run (again) after this. Costs an atomic operation where it was woken already.
    pub fn wake(&self, turn: &Arc<Turn>) {
        let step = |state| match state {
            IDLE => Some(QUEUED),
            RUNNING => Some(AGAIN),
            _ => None,
        };
        if turn.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, step) == Ok(IDLE) {
            self.queue(Arc::clone(turn));
        }
    }

    fn queue(&self, turn: Arc<Turn>) {
        let epoll = Arc::clone(&self.epoll);
        let again = Arc::clone(&turn);
        if self.pool.submit(Task::once(move || epoll.run(turn))).is_err() {
            // The pool is being stopped, and nobody will run it.
            again.state.store(IDLE, Ordering::Release);
        }
    }

    /// Takes the turn off; when this returns it does not run, and never will.
    pub fn forget(&self, turn: &Arc<Turn>) {
        self.epoll.turns.lock().retain(|other| !Arc::ptr_eq(other, turn));
        // From here on wakes change nothing.
        let was = turn.state.swap(AGAIN, Ordering::AcqRel);
        if was == RUNNING || was == AGAIN {
            drop(turn.running.lock());
        }
    }

    /// Calls `ready` whenever `fd` can be read.
    pub fn watch(&self, fd: c_int, ready: ReadyFunction, arg: *mut c_void) -> io::Result<()> {
        self.epoll.watches.lock().push(Arc::new(Watch { fd, ready, arg, live: Mutex::new(true) }));
        self.epoll.control(libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN | libc::EPOLLONESHOT)
    }

    /// When this returns the function does not run, and never will. Not for that function itself.
    pub fn unwatch(&self, fd: c_int) {
        let gone = {
            let mut watches = self.epoll.watches.lock();
            watches.iter().position(|watch| watch.fd == fd).map(|at| watches.swap_remove(at))
        };
        if let Some(watch) = gone {
            let _ = self.epoll.control(libc::EPOLL_CTL_DEL, fd, 0);
            *watch.live.lock() = false;
        }
    }

    /// Runs a hook on its plugin's strand; false where the bound is reached.
    pub fn run_on(self: &Arc<Self>, strands: &Arc<Strands>, key: u64, hook: Hook, arg: *mut c_void) -> bool {
        match strands.0.admit(key, Job(hook, arg)) {
            Admit::Run(job, permit) => self.pool.submit(Task::once(move || drive(job, permit))).is_ok(),
            Admit::Queued => true,
            Admit::Full(_) => false,
        }
    }
}

impl Epoll {
    fn run(&self, turn: Arc<Turn>) {
        if turn.state.compare_exchange(QUEUED, RUNNING, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return;
        }
        let running = turn.running.lock();
        // A bound, so that a loop that always finds work does not keep what else the thread should do.
        for _ in 0..64 {
            // Whoever forgets it takes it off the list first, and then waits for `running`.
            if !self.known(&turn) {
                return;
            }
            bump(&COUNTS.turns);
            // SAFETY: the contract of the module; the turn was not forgotten, and `running` keeps it so.
            let next = unsafe { (turn.run)(turn.arg) };
            let next = if next < 0 { NEVER } else { next };
            turn.deadline.store(next, Ordering::SeqCst);
            if next < self.armed.load(Ordering::SeqCst) && self.armed.load(Ordering::SeqCst) != NEVER {
                self.wake();
            }
            if turn.state.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                // A leader that began to wait while the deadline was being stored has not seen it.
                if next != NEVER && next < self.armed.load(Ordering::SeqCst) {
                    self.wake();
                }
                return;
            }
            turn.state.store(RUNNING, Ordering::Release);
        }
        turn.state.store(QUEUED, Ordering::Release);
        drop(running);
        let crew = self.crew.lock().upgrade();
        if let Some(crew) = crew {
            crew.queue(turn);
        }
    }

    fn known(&self, turn: &Arc<Turn>) -> bool {
        self.turns.lock().iter().any(|other| Arc::ptr_eq(other, turn))
    }
}

struct Job(Hook, *mut c_void);

// SAFETY: the argument belongs to the hook that it is passed to.
unsafe impl Send for Job {}

/// The strands of one plugin.
pub struct Strands(Arc<StrandSet<Job>>);

impl Strands {
    pub fn new(keyed: bool) -> Arc<Strands> {
        let policy = if keyed { Policy::Keyed } else { Policy::Parallel { cap: 0 } };
        Arc::new(Strands(StrandSet::new(policy, Bounds::default(), Box::new(resume))))
    }
}

fn resume(job: Job, permit: Permit<Job>) {
    match current() {
        Some(crew) => drop(crew.pool.submit(Task::once(move || drive(job, permit)))),
        None => drive(job, permit),
    }
}

fn drive(job: Job, mut permit: Permit<Job>) {
    let mut job = job;
    loop {
        // SAFETY: the contract of the module.
        unsafe { (job.0)(job.1) };
        match permit.next() {
            Next::Done => return,
            Next::Run(next) => job = next,
            Next::Yield(next) => {
                resume(next, permit);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicUsize;
    use parking_lot::Condvar;

    struct Probe {
        inside: AtomicUsize,
        runs: AtomicUsize,
        asked: AtomicUsize,
        seen: Mutex<usize>,
        changed: Condvar,
    }

    fn probe() -> &'static Probe {
        Box::leak(Box::new(Probe {
            inside: AtomicUsize::new(0),
            runs: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
            seen: Mutex::new(0),
            changed: Condvar::new(),
        }))
    }

    unsafe extern "C" fn take_turn(arg: *mut c_void) -> i64 {
        // SAFETY: the probe is never freed.
        let probe = unsafe { &*arg.cast::<Probe>() };
        assert_eq!(probe.inside.fetch_add(1, Ordering::SeqCst), 0, "two turns at once");
        let asked = probe.asked.load(Ordering::SeqCst);
        probe.runs.fetch_add(1, Ordering::SeqCst);
        probe.inside.fetch_sub(1, Ordering::SeqCst);
        *probe.seen.lock() = asked;
        probe.changed.notify_all();
        -1
    }

    #[test]
    fn every_wake_is_followed_by_a_turn_and_none_runs_twice_at_once() {
        let crew = start().unwrap();
        let probe = probe();
        let turn = crew.turn(take_turn, core::ptr::from_ref(probe).cast_mut().cast());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        probe.asked.fetch_add(1, Ordering::SeqCst);
                        crew.wake(&turn);
                    }
                });
            }
        });
        let mut seen = probe.seen.lock();
        while *seen < 8000 {
            assert!(!probe.changed.wait_for(&mut seen, Duration::from_secs(20)).timed_out(), "a wake was lost: {seen}");
        }
        drop(seen);
        crew.forget(&turn);
        let runs = probe.runs.load(Ordering::SeqCst);
        crew.wake(&turn);
        assert!(runs <= 8000 && probe.runs.load(Ordering::SeqCst) == runs);
        stop();
    }

    unsafe extern "C" fn in_a_while(arg: *mut c_void) -> i64 {
        // SAFETY: the probe is never freed.
        let probe = unsafe { &*arg.cast::<Probe>() };
        let runs = probe.runs.fetch_add(1, Ordering::SeqCst);
        *probe.seen.lock() = runs + 1;
        probe.changed.notify_all();
        if runs < 3 { now() + 2000 } else { -1 }
    }

    #[test]
    fn a_deadline_brings_the_next_turn() {
        let crew = start().unwrap();
        let probe = probe();
        let turn = crew.turn(in_a_while, core::ptr::from_ref(probe).cast_mut().cast());
        crew.wake(&turn);
        let mut seen = probe.seen.lock();
        while *seen < 4 {
            assert!(!probe.changed.wait_for(&mut seen, Duration::from_secs(20)).timed_out(), "no turn: {seen}");
        }
        drop(seen);
        crew.forget(&turn);
        stop();
    }

    unsafe extern "C" fn count(arg: *mut c_void) {
        // SAFETY: the probe is never freed.
        let probe = unsafe { &*arg.cast::<Probe>() };
        assert_eq!(probe.inside.fetch_add(1, Ordering::SeqCst), 0, "two of one key at once");
        probe.inside.fetch_sub(1, Ordering::SeqCst);
        *probe.seen.lock() += 1;
        probe.changed.notify_all();
    }

    #[test]
    fn hooks_of_one_key_run_one_at_a_time() {
        let crew = start().unwrap();
        let strands = Strands::new(true);
        let probes: Vec<_> = (0..4).map(|_| probe()).collect();
        for i in 0..400 {
            let probe = probes[i % 4];
            assert!(crew.run_on(&strands, (i % 4) as u64, count, core::ptr::from_ref(probe).cast_mut().cast()));
        }
        for probe in probes {
            let mut seen = probe.seen.lock();
            while *seen < 100 {
                assert!(!probe.changed.wait_for(&mut seen, Duration::from_secs(20)).timed_out(), "{seen} of 100");
            }
        }
        stop();
    }
}
