//! Strands with real threads: never twice at once, in order, bounded, and nothing stuck after a panic or a hold.
#![cfg(not(loom))]

mod sched_support;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use partyline::sched::{Admit, Bounds, Lane, Next, Permit, Policy, Pool, StrandSet, Task};
use sched_support::{HUNG, options, until};

type Job = (u64, usize);
type Set = Arc<StrandSet<Job>>;

fn unused() -> Box<dyn Fn(Job, Permit<Job>) + Send + Sync> {
    Box::new(|job, _| panic!("{job:?} was not to be resumed"))
}

fn set(policy: Policy) -> Set {
    StrandSet::new(policy, Bounds::default(), unused())
}

/// Runs a job and all that follows it on its strand.
fn work(pool: &Arc<Pool>, mut job: Job, mut permit: Permit<Job>, call: &Arc<dyn Fn(Job) + Send + Sync>) {
    loop {
        call(job);
        match permit.next() {
            Next::Run(next) => job = next,
            Next::Yield(next) => {
                let (again, call) = (Arc::clone(pool), Arc::clone(call));
                let task = Task::once(move || work(&again, next, permit, &call));
                assert!(pool.submit(task).is_ok());
                return;
            }
            Next::Done => return,
        }
    }
}

/// What ran where: notices calls of one strand side by side, and keeps their order.
#[derive(Default)]
struct Witness {
    seen: Mutex<HashMap<u64, (usize, Vec<usize>)>>,
    most: AtomicUsize,
    now: AtomicUsize,
    doubled: AtomicUsize,
    done: AtomicUsize,
}

impl Witness {
    fn call(&self, (key, n): Job) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        {
            let mut seen = self.seen.lock();
            let strand = seen.entry(key).or_default();
            strand.0 += 1;
            self.doubled.fetch_add(strand.0 - 1, Ordering::SeqCst);
            strand.1.push(n);
        }
        std::thread::yield_now();
        self.seen.lock().get_mut(&key).unwrap().0 -= 1;
        self.now.fetch_sub(1, Ordering::SeqCst);
        self.done.fetch_add(1, Ordering::SeqCst);
    }
}

fn storm(policy: Policy, keys: u64) -> (Arc<Witness>, Set) {
    const POSTERS: usize = 3;
    const EACH: usize = 2000;
    let pool = Arc::new(Pool::new(options("strand", 4, 4), None).unwrap());
    pool.start().unwrap();
    let witness = Arc::new(Witness::default());
    let call: Arc<dyn Fn(Job) + Send + Sync> = {
        let witness = Arc::clone(&witness);
        Arc::new(move |job| witness.call(job))
    };
    let bounds = Bounds { per_strand: 1 << 20, total: 1 << 20, turn: 8 };
    let set = StrandSet::new(policy, bounds, unused());
    std::thread::scope(|scope| {
        for poster in 0..POSTERS {
            let (pool, call, set) = (&pool, &call, &set);
            scope.spawn(move || {
                for n in 0..EACH {
                    // Keys of one poster only, so that the order of arrival is known.
                    let key = poster as u64 * keys + n as u64 % keys;
                    match set.admit(key, (key, n)) {
                        Admit::Run(job, permit) => {
                            let (again, call) = (Arc::clone(pool), Arc::clone(call));
                            let task = Task::once(move || work(&again, job, permit, &call));
                            assert!(pool.submit(task).is_ok());
                        }
                        Admit::Queued => {}
                        Admit::Full(job) => panic!("{job:?} refused"),
                    }
                }
            });
        }
    });
    until("all done", || witness.done.load(Ordering::SeqCst) == POSTERS * EACH);
    until("all released", || set.running() == 0);
    assert_eq!((set.queued(), set.strands()), (0, 0));
    assert_eq!(set.admitted(), (POSTERS * EACH) as u64);
    assert_eq!(set.run_times().quantiles().count, (POSTERS * EACH) as u64);
    (witness, set)
}

fn in_order(witness: &Witness) -> bool {
    witness.seen.lock().values().all(|(_, order)| order.is_sorted())
}

#[test]
fn serial_never_runs_two() {
    let (witness, _) = storm(Policy::Serial, 5);
    assert_eq!(witness.most.load(Ordering::SeqCst), 1);
    assert!(in_order(&witness));
}

#[test]
fn keyed_never_runs_two_of_a_key_and_keeps_their_order() {
    let (witness, _) = storm(Policy::Keyed, 7);
    assert_eq!(witness.doubled.load(Ordering::SeqCst), 0);
    assert!(in_order(&witness));
}

#[test]
fn parallel_runs_no_more_than_its_cap() {
    let (witness, _) = storm(Policy::Parallel { cap: 2 }, 1);
    assert!(witness.most.load(Ordering::SeqCst) <= 2);
    storm(Policy::Parallel { cap: 0 }, 1);
}

fn run(set: &Set, key: u64, n: usize) -> Permit<Job> {
    match set.admit(key, (key, n)) {
        Admit::Run(job, permit) => {
            assert_eq!(job, (key, n));
            permit
        }
        _ => panic!("({key}, {n}) was to run"),
    }
}

fn queued(set: &Set, key: u64, n: usize) {
    assert!(matches!(set.admit(key, (key, n)), Admit::Queued), "({key}, {n}) was to wait");
}

fn next(permit: &mut Permit<Job>) -> Option<usize> {
    match permit.next() {
        Next::Run((_, n)) | Next::Yield((_, n)) => Some(n),
        Next::Done => None,
    }
}

#[test]
fn keyed_strands_are_apart_and_leave_nothing_behind() {
    let set = set(Policy::Keyed);
    let (mut a, mut b) = (run(&set, 1, 0), run(&set, 2, 0));
    queued(&set, 1, 1);
    queued(&set, 1, 2);
    queued(&set, 2, 1);
    assert_eq!((set.running(), set.queued(), set.strands()), (2, 3, 2));
    assert_eq!([next(&mut a), next(&mut a), next(&mut a), next(&mut a)], [Some(1), Some(2), None, None]);
    assert_eq!([next(&mut b), next(&mut b)], [Some(1), None]);
    assert_eq!((set.running(), set.queued(), set.strands()), (0, 0, 0));
    drop(run(&set, 1, 3));
}

#[test]
fn parallel_without_a_cap_runs_everything_at_once() {
    let set = set(Policy::Parallel { cap: 0 });
    let permits: Vec<_> = (0..100).map(|n| run(&set, 0, n)).collect();
    assert_eq!(set.running(), 100);
    drop(permits);
    assert_eq!((set.running(), set.strands()), (0, 0));
}

#[test]
fn bounds_hold_per_strand_and_in_all() {
    let bounds = Bounds { per_strand: 2, total: 3, turn: 64 };
    let set = StrandSet::new(Policy::Keyed, bounds, unused());
    let (mut a, mut b) = (run(&set, 1, 0), run(&set, 2, 0));
    queued(&set, 1, 1);
    queued(&set, 1, 2);
    assert!(matches!(set.admit(1, (1, 3)), Admit::Full((1, 3))), "its own bound");
    queued(&set, 2, 1);
    assert!(matches!(set.admit(2, (2, 2)), Admit::Full((2, 2))), "the bound of all");
    assert_eq!(next(&mut a), Some(1));
    queued(&set, 2, 2);
    assert_eq!(set.refused(), 2);
    while next(&mut a).is_some() || next(&mut b).is_some() {}
    assert_eq!((set.queued(), set.strands()), (0, 0));
}

#[test]
fn a_busy_strand_gives_the_thread_back_after_its_turn() {
    let bounds = Bounds { turn: 3, ..Bounds::default() };
    let set = StrandSet::new(Policy::Serial, bounds, unused());
    let mut permit = run(&set, 0, 0);
    for n in 1..=7 {
        queued(&set, 0, n);
    }
    let mut yields = Vec::new();
    loop {
        match permit.next() {
            Next::Run(_) => {}
            Next::Yield((_, n)) => yields.push(n),
            Next::Done => break,
        }
    }
    assert_eq!(yields, [3, 6]);
}

type Resumed = Arc<Mutex<Vec<(Job, Permit<Job>)>>>;

fn resuming(policy: Policy) -> (Set, Resumed) {
    let resumed: Resumed = Arc::default();
    let to = Arc::clone(&resumed);
    (StrandSet::new(policy, Bounds::default(), Box::new(move |job, permit| to.lock().push((job, permit)))), resumed)
}

#[test]
fn a_panic_hands_the_strand_on() {
    let (set, resumed) = resuming(Policy::Serial);
    let permit = run(&set, 0, 0);
    queued(&set, 0, 1);
    queued(&set, 0, 2);
    let died = catch_unwind(AssertUnwindSafe(move || {
        let _permit = permit;
        panic!("a callback that fails");
    }));
    assert!(died.is_err());
    let (job, mut permit) = resumed.lock().pop().expect("the next job was handed on");
    assert_eq!(job, (0, 1));
    queued(&set, 0, 3);
    assert_eq!([next(&mut permit), next(&mut permit), next(&mut permit)], [Some(2), Some(3), None]);
    assert!(resumed.lock().is_empty());
    assert_eq!((set.running(), set.queued()), (0, 0));
}

#[test]
fn while_held_new_jobs_wait_and_what_runs_comes_to_its_end() {
    let (set, resumed) = resuming(Policy::Keyed);
    let mut a = run(&set, 1, 0);
    queued(&set, 1, 1);
    set.hold();
    queued(&set, 2, 0);
    assert_eq!(set.wait_idle(Duration::ZERO), 1);
    assert_eq!(next(&mut a), None, "no next job while held");
    queued(&set, 1, 2);
    queued(&set, 2, 1);
    assert_eq!(set.wait_idle(HUNG), 0);
    set.release();
    let mut ready: Vec<_> = std::mem::take(&mut *resumed.lock());
    ready.sort_by_key(|(job, _)| *job);
    let jobs: Vec<Job> = ready.iter().map(|(job, _)| *job).collect();
    assert_eq!(jobs, [(1, 1), (2, 0)], "each strand goes on with its first");
    for (n, (_, permit)) in [2, 1].into_iter().zip(&mut ready) {
        assert_eq!([next(permit), next(permit)], [Some(n), None]);
    }
    assert_eq!((set.running(), set.queued(), set.strands()), (0, 0, 0));
}

#[test]
fn a_hold_is_waited_for_from_another_thread() {
    for policy in [Policy::Serial, Policy::Keyed, Policy::Parallel { cap: 0 }, Policy::Parallel { cap: 3 }] {
        let (set, resumed) = resuming(policy);
        let mut permit = run(&set, 9, 0);
        set.hold();
        std::thread::scope(|scope| {
            let idle = scope.spawn(|| set.wait_idle(HUNG));
            queued(&set, 9, 1);
            queued(&set, 9, 2);
            assert_eq!(next(&mut permit), None);
            assert_eq!(idle.join().unwrap(), 0);
        });
        set.release();
        let expected = if matches!(policy, Policy::Parallel { .. }) { 2 } else { 1 };
        assert_eq!(resumed.lock().len(), expected, "{policy:?}");
        while let Some((_, mut permit)) = { resumed.lock().pop() } {
            while next(&mut permit).is_some() {}
        }
        assert_eq!((set.running(), set.queued(), set.strands()), (0, 0, 0), "{policy:?}");
    }
}

#[test]
fn a_stop_takes_out_what_waits() {
    let set = set(Policy::Keyed);
    let mut a = run(&set, 1, 0);
    queued(&set, 1, 1);
    queued(&set, 1, 2);
    assert_eq!(set.drain(), [(1, 1), (1, 2)]);
    assert_eq!(next(&mut a), None);
    assert_eq!((set.running(), set.queued(), set.strands()), (0, 0, 0));
}

#[test]
fn urgent_jobs_of_a_busy_strand_begin_before_the_others() {
    let set = set(Policy::Serial);
    let mut permit = run(&set, 0, 0);
    for (lane, n) in [(Lane::Normal, 3), (Lane::High, 1), (Lane::Normal, 4), (Lane::High, 2)] {
        assert!(matches!(set.admit_in(lane, 0, (0, n)), Admit::Queued));
    }
    for n in 1..=4 {
        assert_eq!(next(&mut permit), Some(n));
    }
    assert_eq!(next(&mut permit), None);
}
