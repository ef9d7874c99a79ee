//! Models of the cores of `sched` under loom: every interleaving within the preemption bound. A lost wake-up shows as a
//! deadlock, which loom reports.
//!
//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --test sched_loom`
#![cfg(loom)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread::{self, JoinHandle};
use partyline::sched::crew::{Attend, Crew, Errand, Limits, Order, Promotion};
use partyline::sched::{Admit, Bounds, Cancel, Lane, Next, Permit, Policy, StrandSet, Timers};

const NEVER: Duration = Duration::from_secs(3600);

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Counts up; waiting for a count blocks as far as loom is concerned.
struct Count(Mutex<usize>, Condvar);

impl Count {
    fn new() -> Self {
        Count(Mutex::new(0), Condvar::new())
    }
    fn add(&self) {
        *self.0.lock().unwrap() += 1;
        self.1.notify_all();
    }
    fn wait(&self, n: usize) {
        let mut count = self.0.lock().unwrap();
        while *count < n {
            count = self.1.wait(count).unwrap();
        }
    }
    fn get(&self) -> usize {
        *self.0.lock().unwrap()
    }
}

/// What the models run: `First` ends only after `Second` has begun, so the two need two threads. `Plain` and `First` may
/// block, as far as the leader knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Job {
    Plain,
    First,
    Second,
}

struct World {
    /// The leader makes calls itself; else it promotes before.
    lazy: bool,
    crew: Crew<Job>,
    /// Events of the source, the last one first, and whether somebody was woken.
    source: Mutex<(Vec<Job>, bool)>,
    some: Condvar,
    in_source: AtomicBool,
    seconds: Count,
    done: Count,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl World {
    fn new(min: usize, max: usize, leads: bool, events: Vec<Job>) -> Arc<Self> {
        Self::with(min, max, leads, events, false)
    }

    fn with(min: usize, max: usize, leads: bool, events: Vec<Job>, lazy: bool) -> Arc<Self> {
        let takeover = Duration::from_millis(u64::from(lazy));
        Arc::new(World {
            lazy,
            crew: Crew::new(Limits { min, max, batch: 1, queue: 8, leads, takeover }),
            source: Mutex::new((events, false)),
            some: Condvar::new(),
            in_source: AtomicBool::new(false),
            seconds: Count::new(),
            done: Count::new(),
            threads: Mutex::new(Vec::new()),
        })
    }

    fn open(self: &Arc<Self>) {
        self.errand(self.crew.open());
    }

    fn submit(self: &Arc<Self>, job: Job) {
        let errand = self.crew.submit(job, Lane::Normal).expect("room");
        self.errand(errand);
    }

    fn errand(self: &Arc<Self>, errand: Errand) {
        if errand.wake {
            self.wake();
        }
        for _ in 0..errand.start {
            self.start();
        }
    }

    fn start(self: &Arc<Self>) {
        let world = Arc::clone(self);
        let handle = thread::spawn(move || world.work());
        self.threads.lock().unwrap().push(handle);
        let more = self.crew.started(true);
        self.errand(more);
    }

    fn wake(&self) {
        self.source.lock().unwrap().1 = true;
        self.some.notify_one();
    }

    fn work(self: &Arc<Self>) {
        let seat = self.crew.enter();
        loop {
            let (order, errand) = self.crew.next(seat, NEVER);
            self.errand(errand);
            match order {
                Order::Lead => self.lead(),
                Order::Work(job) => self.run(job),
                Order::Leave => return,
            }
        }
    }

    fn lead(self: &Arc<Self>) {
        loop {
            if self.crew.wanted() {
                if let Attend::Resign(job) = self.crew.attend() {
                    if let Some(job) = job {
                        self.run(job);
                    }
                    return;
                }
            }
            let Some(event) = self.wait() else { continue };
            if self.lazy {
                let (token, errand) = self.crew.lend(Instant::now()).expect("this crew lends");
                self.errand(errand);
                self.run(event);
                if !self.crew.reclaim(token) {
                    return;
                }
                continue;
            }
            if event == Job::Second {
                // Cannot block: the leader handles it itself.
                self.run(event);
                continue;
            }
            loop {
                match self.crew.promote() {
                    Promotion::Handed => return self.run(event),
                    Promotion::Start(n) => (0..n).for_each(|_| self.start()),
                    Promotion::Full => break,
                }
            }
            // At the maximum what may block is queued.
            self.submit(event);
        }
    }

    fn wait(&self) -> Option<Job> {
        assert!(!self.in_source.swap(true, Ordering::AcqRel), "two leaders");
        let mut source = self.source.lock().unwrap();
        let event = loop {
            if let Some(event) = source.0.pop() {
                break Some(event);
            }
            if std::mem::take(&mut source.1) {
                break None;
            }
            source = self.some.wait(source).unwrap();
        };
        self.in_source.store(false, Ordering::Release);
        event
    }

    fn run(&self, job: Job) {
        match job {
            Job::Plain => {}
            Job::First => self.seconds.wait(1),
            Job::Second => self.seconds.add(),
        }
        self.done.add();
    }

    /// Waits for what is to be done, and only then stops: a stop would cover up a lost wake-up.
    fn end(self: &Arc<Self>, done: usize) {
        self.done.wait(done);
        self.crew.stop();
        self.wake();
        assert_eq!(self.crew.wait_gone(0, NEVER), 0);
        for handle in std::mem::take(&mut *self.threads.lock().unwrap()) {
            handle.join().unwrap();
        }
        assert_eq!(self.done.get(), done, "each once");
    }
}

#[test]
fn an_event_that_blocks_has_a_leader_behind_it_who_was_started() {
    check(2, || {
        let world = World::new(1, 2, true, vec![Job::Second, Job::First]);
        world.open();
        world.end(2);
    });
}

#[test]
fn an_event_that_blocks_has_a_leader_behind_it_who_was_parked_or_coming() {
    check(2, || {
        let world = World::new(2, 2, true, vec![Job::Second, Job::First]);
        world.open();
        world.end(2);
    });
}

#[test]
fn at_the_maximum_the_leader_goes_on_and_queued_events_are_run() {
    check(2, || {
        let world = World::new(2, 2, true, vec![Job::Plain, Job::Second, Job::First]);
        world.open();
        world.end(3);
    });
}

#[test]
fn a_task_finds_the_parked_thread() {
    check(3, || {
        let world = World::new(1, 1, false, vec![]);
        world.open();
        world.submit(Job::Plain);
        world.submit(Job::Plain);
        world.end(2);
    });
}

#[test]
fn a_task_behind_one_that_blocks_finds_the_second_thread() {
    check(2, || {
        let world = World::new(2, 2, false, vec![]);
        world.open();
        world.submit(Job::First);
        world.submit(Job::Second);
        world.end(2);
    });
}

#[test]
fn a_task_behind_one_that_blocks_makes_the_pool_grow() {
    check(2, || {
        let world = World::new(1, 2, false, vec![]);
        world.open();
        world.submit(Job::First);
        world.submit(Job::Second);
        world.end(2);
    });
}

#[test]
fn the_only_thread_is_called_away_from_the_source_for_a_task() {
    check(3, || {
        let world = World::new(1, 1, true, vec![Job::Plain]);
        world.open();
        world.submit(Job::Plain);
        world.end(2);
    });
}

#[test]
fn a_pool_with_a_source_grows_for_tasks() {
    check(2, || {
        let world = World::new(1, 3, true, vec![]);
        world.open();
        world.submit(Job::First);
        world.submit(Job::Second);
        world.end(2);
    });
}

#[test]
fn a_start_that_fails_leaves_no_task_behind() {
    check(3, || {
        let world = World::new(1, 2, true, vec![]);
        world.open();
        let errand = world.crew.submit(Job::Plain, Lane::Normal).expect("room");
        for _ in 0..errand.start {
            let more = world.crew.started(false);
            world.errand(more);
        }
        world.end(1);
    });
}

#[test]
fn leadership_is_taken_from_a_call_that_blocks_by_the_parked_thread() {
    check(3, || {
        let world = World::with(2, 2, true, vec![Job::Second, Job::First], true);
        world.open();
        world.end(2);
    });
}

#[test]
fn a_sentinel_is_started_where_nobody_is_parked() {
    check(2, || {
        let world = World::with(1, 2, true, vec![Job::Second, Job::First], true);
        world.open();
        world.end(2);
    });
}

#[test]
fn the_sentinel_that_is_called_away_for_a_task_leaves_another_watch() {
    check(2, || {
        // The task blocks until the second event is handled, and so does the first event.
        let world = World::with(2, 3, true, vec![Job::Second, Job::First], true);
        world.open();
        world.submit(Job::First);
        world.end(3);
    });
}

#[test]
fn one_call_after_another_and_a_sentinel_that_goes_off_duty_in_between() {
    check(2, || {
        let world = World::with(2, 2, true, vec![Job::Second, Job::First, Job::Plain], true);
        world.open();
        world.end(3);
    });
}

#[test]
fn stop_meets_a_thread_that_is_about_to_park() {
    check(3, || {
        let world = World::new(2, 2, true, vec![]);
        world.open();
        world.end(0);
    });
}

type Set = Arc<StrandSet<usize>>;

struct Strands {
    set: Set,
    inside: AtomicUsize,
    frozen: AtomicBool,
    order: Mutex<Vec<usize>>,
}

impl Strands {
    fn new(policy: Policy) -> Arc<Self> {
        Arc::new_cyclic(|me: &std::sync::Weak<Strands>| {
            let me = me.clone();
            let resume = move |job, permit| me.upgrade().expect("in use").work(job, permit);
            Strands {
                set: StrandSet::new(policy, Bounds::default(), Box::new(resume)),
                inside: AtomicUsize::new(0),
                frozen: AtomicBool::new(false),
                order: Mutex::new(Vec::new()),
            }
        })
    }

    fn admit(&self, job: usize) {
        match self.set.admit(1, job) {
            Admit::Run(job, permit) => self.work(job, permit),
            Admit::Queued => {}
            Admit::Full(_) => panic!("room for all"),
        }
    }

    fn work(&self, mut job: usize, mut permit: Permit<usize>) {
        loop {
            assert_eq!(self.inside.fetch_add(1, Ordering::AcqRel), 0, "two at once");
            assert!(!self.frozen.load(Ordering::Acquire), "begun while held and idle");
            self.order.lock().unwrap().push(job);
            self.inside.fetch_sub(1, Ordering::AcqRel);
            match permit.next() {
                Next::Run(next) | Next::Yield(next) => job = next,
                Next::Done => return,
            }
        }
    }

    /// All done, each once, each poster's (its tens) in order, nothing left.
    fn check(&self, jobs: usize) {
        let order = self.order.lock().unwrap();
        assert_eq!(order.len(), jobs, "{order:?}");
        for poster in 0..3 {
            assert!(order.iter().filter(|j| **j / 10 == poster).is_sorted(), "{order:?}");
        }
        assert_eq!((self.set.running(), self.set.queued(), self.set.strands()), (0, 0, 0));
    }
}

#[test]
fn a_strand_runs_one_at_a_time_in_order_and_forgets_none() {
    for policy in [Policy::Serial, Policy::Keyed] {
        check(3, move || {
            let strands = Strands::new(policy);
            let other = Arc::clone(&strands);
            let poster = thread::spawn(move || {
                other.admit(10);
                other.admit(11);
            });
            strands.admit(20);
            strands.admit(21);
            poster.join().unwrap();
            strands.check(4);
        });
    }
}

#[test]
fn a_permit_that_is_dropped_hands_its_strand_on() {
    check(3, || {
        let strands = Strands::new(Policy::Serial);
        let Admit::Run(_, permit) = strands.set.admit(1, 0) else { panic!("free") };
        let other = Arc::clone(&strands);
        let poster = thread::spawn(move || {
            other.admit(10);
            other.admit(11);
        });
        drop(permit);
        poster.join().unwrap();
        strands.check(2);
    });
}

#[test]
fn a_held_strand_is_idle_until_its_release_and_then_goes_on() {
    check(3, || {
        let strands = Strands::new(Policy::Keyed);
        let other = Arc::clone(&strands);
        let poster = thread::spawn(move || {
            other.admit(10);
            other.admit(11);
        });
        strands.set.hold();
        assert_eq!(strands.set.wait_idle(NEVER), 0);
        strands.frozen.store(true, Ordering::Release);
        assert_eq!(strands.inside.load(Ordering::Acquire), 0);
        thread::yield_now();
        strands.frozen.store(false, Ordering::Release);
        strands.set.release();
        poster.join().unwrap();
        strands.check(2);
    });
}

#[test]
fn a_cancelled_timer_has_run_or_never_will() {
    for period in [0, 1] {
        check(3, move || {
            let timers = Arc::new(Timers::new(1, || ()));
            let runs = Arc::new(AtomicUsize::new(0));
            let id = timers.start_at(1, period, Arc::clone(&runs));
            let other = Arc::clone(&timers);
            let leader = thread::spawn(move || {
                let mut due = Vec::new();
                other.expire(1, |id, _| due.push(id));
                for id in due {
                    other.fire(id, |runs| assert_eq!(runs.fetch_add(1, Ordering::AcqRel), 0));
                }
            });
            let answer = timers.cancel(id);
            let at_cancel = runs.load(Ordering::Acquire);
            leader.join().unwrap();
            let runs = runs.load(Ordering::Acquire);
            match answer {
                Cancel::Prevented => assert_eq!(runs, at_cancel),
                Cancel::Running => assert_eq!(runs, 1),
                Cancel::Gone => assert_eq!((at_cancel, runs, period), (1, 1, 0)),
            }
            assert!(timers.is_empty());
        });
    }
}

#[test]
fn after_a_cancel_that_waited_what_the_callback_uses_can_go() {
    for period in [0, 1] {
        check(3, move || {
            let timers = Arc::new(Timers::new(1, || ()));
            let freed = Arc::new(AtomicBool::new(false));
            let id = timers.start_at(1, period, Arc::clone(&freed));
            let other = Arc::clone(&timers);
            let leader = thread::spawn(move || {
                for now in 1..=2 {
                    let mut due = Vec::new();
                    other.expire(now, |id, _| due.push(id));
                    for id in due {
                        other.fire(id, |freed| {
                            assert!(!freed.load(Ordering::Acquire), "after its end");
                            thread::yield_now();
                            assert!(!freed.load(Ordering::Acquire), "ended while it ran");
                        });
                    }
                }
            });
            timers.cancel_and_wait(id);
            freed.store(true, Ordering::Release);
            leader.join().unwrap();
            assert!(timers.is_empty());
        });
    }
}

#[test]
fn a_sleeper_hears_of_an_earlier_timer() {
    check(3, || {
        let woken = Arc::new(Count::new());
        let wake = Arc::clone(&woken);
        let timers = Arc::new(Timers::new(1, move || wake.add()));
        timers.start_at(100, 0, ());
        let other = Arc::clone(&timers);
        let starter = thread::spawn(move || {
            other.start_at(5, 0, ());
        });
        // As the leader does it: whoever sees a late deadline sleeps until it is woken.
        if timers.sleep_until() != Some(5) {
            woken.wait(1);
            timers.awake();
            assert_eq!(timers.sleep_until(), Some(5));
        }
        starter.join().unwrap();
    });
}
