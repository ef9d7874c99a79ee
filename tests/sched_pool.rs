//! The leader/follower pool with real threads: who leads, who runs, how it grows, shrinks and stops.
#![cfg(not(loom))]

mod sched_support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use parking_lot::Mutex;
use partyline::sched::{Lane, LeftOver, Options, Pool, Run, Source, Task};
use sched_support::{Events, Gate, HUNG, options, until};

fn started(options: Options, source: Option<&Arc<Events>>) -> Pool {
    let pool = Pool::new(options, source.map(|s| Arc::clone(s) as Arc<dyn Source>)).unwrap();
    pool.start().unwrap();
    pool
}

fn blocked_at(gate: &Arc<Gate>) -> Task {
    let gate = Arc::clone(gate);
    Task::once(move || gate.pass())
}

#[test]
fn the_follower_parked_last_is_called_first() {
    let pool = started(options("lifo", 3, 3), None);
    let mut ran_on = HashSet::new();
    for _ in 0..50 {
        until("all parked", || pool.figures().idle == 3);
        let (tell, told) = mpsc::channel();
        pool.submit(Task::once(move || tell.send(std::thread::current().id()).unwrap())).unwrap();
        ran_on.insert(told.recv_timeout(HUNG).unwrap());
    }
    assert_eq!(ran_on.len(), 1, "one warm thread does it all");
}

#[test]
fn grows_to_its_maximum_queues_beyond_and_shrinks_again() {
    let gate = Gate::new();
    let options = Options { batch: 2, keep_alive: Duration::from_millis(5), queue_limit: 3, ..options("grow", 1, 4) };
    let pool = started(options, None);
    // One by one: tasks that wait count against the limit, however short.
    for n in 1..=4 {
        pool.submit(blocked_at(&gate)).unwrap();
        until("another thread takes it", || gate.inside() == n);
    }
    for _ in 0..3 {
        pool.submit(blocked_at(&gate)).unwrap();
    }
    assert!(pool.submit(blocked_at(&gate)).is_err(), "the queue is bounded");
    let figures = pool.figures();
    assert_eq!((figures.threads, figures.queued, figures.refused), (4, 3, 1));
    assert_eq!(gate.inside(), 4);
    gate.open();
    until("all done", || gate.passed() == 7);
    until("back at the minimum", || pool.figures().threads == 1);
    assert_eq!(pool.figures().ended_idle, 3);
    // And it grows again.
    let (tell, told) = mpsc::channel();
    pool.submit(Task::once(move || tell.send(()).unwrap())).unwrap();
    told.recv_timeout(HUNG).unwrap();
}

#[test]
fn leadership_is_taken_from_a_lent_call_that_blocks_and_kept_by_one_that_does_not() {
    let events = Events::new();
    let pool = started(options("lent", 1, 4), Some(&events));
    let gate = Gate::new();
    for n in 1..=3 {
        let pass = Arc::clone(&gate);
        events.push(move |leader| {
            assert!(leader.lend());
            pass.pass();
            assert!(!leader.reclaim(), "another leads by now");
            assert!(leader.promote(), "so there is nothing to give away");
        });
        until("blocked, and another leads", || gate.inside() == n && events.has_waiter());
        assert_eq!(pool.figures().takeovers, n as u64);
    }
    gate.open();
    until("all passed", || gate.passed() == 3);
    // Whoever leads now makes short calls, one after another; each is seen to be served.
    let (tell, told) = mpsc::channel();
    for n in 0..1000 {
        let tell = tell.clone();
        events.push(move |leader| {
            assert!(leader.lend());
            tell.send(n).unwrap();
            leader.reclaim();
        });
        assert_eq!(told.recv_timeout(HUNG), Ok(n));
    }
    assert_eq!(events.intruders.load(Ordering::SeqCst), 0, "never two leaders");
    assert_eq!(pool.stop(HUNG), LeftOver::default());
}

#[test]
fn a_pool_without_a_bound_lends_nothing() {
    let events = Events::new();
    let pool = started(Options { takeover: Duration::ZERO, ..options("strict", 1, 2) }, Some(&events));
    let (tell, told) = mpsc::channel();
    events.push(move |leader| tell.send((leader.lend(), leader.promote())).unwrap());
    assert_eq!(told.recv_timeout(HUNG), Ok((false, true)));
    drop(pool);
}

#[test]
fn a_blocking_event_leaves_the_source_a_leader_until_the_maximum() {
    let events = Events::new();
    let pool = started(options("lead", 1, 4), Some(&events));
    let gate = Gate::new();
    for n in 1..=3 {
        let gate = Arc::clone(&gate);
        events.push(move |leader| {
            assert!(leader.promote());
            assert!(!leader.is_leader());
            assert!(leader.promote(), "asking again changes nothing");
            gate.pass();
        });
        until("blocked, and another leads", || gate_and_leader(&pool, n));
    }
    fn gate_and_leader(pool: &Pool, promotions: u64) -> bool {
        pool.figures().promotions == promotions
    }
    until("three are blocked", || gate.inside() == 3);
    // At the maximum: the last thread goes on leading, and what may block is queued.
    let (tell, told) = mpsc::channel();
    for _ in 0..2 {
        let tell = tell.clone();
        events.push(move |leader| tell.send((leader.promote(), leader.is_leader())).unwrap());
        assert_eq!(told.recv_timeout(HUNG).unwrap(), (false, true));
    }
    let (ran, runs) = mpsc::channel();
    pool.submit(Task::once(move || ran.send(()).unwrap())).unwrap();
    let tell_more = tell.clone();
    events.push(move |leader| tell_more.send((true, leader.is_leader())).unwrap());
    assert_eq!(told.recv_timeout(HUNG).unwrap(), (true, true));
    assert_eq!(pool.figures().queued, 1, "the leader does not leave the source for a task that others will take");
    assert!(runs.try_recv().is_err());
    gate.open();
    runs.recv_timeout(HUNG).unwrap();
    assert_eq!(events.intruders.load(Ordering::SeqCst), 0);
    assert_eq!(pool.stop(HUNG), LeftOver::default());
}

#[test]
fn a_leader_that_abdicates_is_followed_by_the_first_to_finish() {
    let events = Events::new();
    let pool = started(options("abdicate", 1, 2), Some(&events));
    let (first, second) = (Gate::new(), Gate::new());
    let gate = Arc::clone(&first);
    events.push(move |leader| {
        assert!(leader.promote());
        gate.pass();
    });
    until("one is blocked", || first.inside() == 1);
    let gate = Arc::clone(&second);
    events.push(move |leader| {
        assert!(!leader.promote());
        leader.abdicate();
        gate.pass();
    });
    until("both are blocked", || second.inside() == 1);
    let (tell, told) = mpsc::channel();
    events.push(move |leader| tell.send(leader.is_leader()).unwrap());
    assert!(told.try_recv().is_err());
    first.open();
    assert!(told.recv_timeout(HUNG).unwrap());
    second.open();
    assert_eq!(pool.stop(HUNG), LeftOver::default());
}

#[test]
fn the_only_thread_runs_tasks_between_its_waits() {
    let events = Events::new();
    let pool = Arc::new(started(options("alone", 1, 1), Some(&events)));
    let (tell, told) = mpsc::channel();
    for round in 0..200 {
        if round % 2 == 0 {
            // Waits for ever unless the submit wakes it.
            until("it leads", || events.has_waiter());
        }
        let tell = tell.clone();
        pool.submit(Task::once(move || tell.send(round).unwrap())).unwrap();
        assert_eq!(told.recv_timeout(HUNG).unwrap(), round);
    }
    // From inside the lead as well.
    let (again, tell_again) = (Arc::clone(&pool), tell.clone());
    events.push(move |leader| {
        assert!(!leader.promote());
        again.submit(Task::once(move || tell_again.send(1000).unwrap())).unwrap();
    });
    assert_eq!(told.recv_timeout(HUNG).unwrap(), 1000);
    until("it leads again", || events.has_waiter());
}

#[test]
fn every_event_is_handled_once_and_never_by_two_leaders() {
    let events = Events::new();
    let options = Options { batch: 2, keep_alive: Duration::from_millis(1), ..options("storm", 2, 6) };
    let pool = Arc::new(started(options, Some(&events)));
    let (handled, tasks) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    std::thread::scope(|scope| {
        for poster in 0..3 {
            let (events, handled, tasks, pool) = (&events, &handled, &tasks, &pool);
            scope.spawn(move || {
                for n in 0..4000 {
                    let (handled, tasks, pool) = (Arc::clone(handled), Arc::clone(tasks), Arc::clone(pool));
                    events.push(move |leader| {
                        if (n + poster) % 3 == 0 {
                            leader.promote();
                        }
                        if n % 5 == 0 {
                            let task = Task::once(move || {
                                tasks.fetch_add(1, Ordering::SeqCst);
                            });
                            pool.submit(task).unwrap();
                        }
                        handled.fetch_add(1, Ordering::SeqCst);
                    });
                }
            });
        }
    });
    until("all handled", || handled.load(Ordering::SeqCst) == 12_000 && tasks.load(Ordering::SeqCst) == 2400);
    assert_eq!(events.intruders.load(Ordering::SeqCst), 0);
    assert_eq!(pool.stop(HUNG), LeftOver::default());
    assert_eq!(pool.figures().threads, 0);
}

#[test]
fn stop_drains_what_was_queued_and_refuses_what_comes() {
    let events = Events::new();
    let pool = started(options("drain", 2, 2), Some(&events));
    let done = Arc::new(AtomicUsize::new(0));
    let gate = Gate::new();
    pool.submit(blocked_at(&gate)).unwrap();
    for _ in 0..100 {
        let done = Arc::clone(&done);
        pool.submit(Task::once(move || {
            done.fetch_add(1, Ordering::SeqCst);
        }))
        .unwrap();
    }
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| pool.stop(HUNG));
        until("refused", || pool.submit(Task::once(|| ())).is_err());
        gate.open();
        assert_eq!(stop.join().unwrap(), LeftOver::default());
    });
    assert_eq!(done.load(Ordering::SeqCst), 100);
    assert_eq!(pool.figures().threads, 0);
}

#[test]
fn stop_reports_what_did_not_end_in_time() {
    let gate = Gate::new();
    let pool = started(options("late", 2, 2), None);
    for _ in 0..2 {
        pool.submit(blocked_at(&gate)).unwrap();
    }
    until("both are blocked", || gate.inside() == 2);
    for _ in 0..3 {
        pool.submit(Task::once(|| ())).unwrap();
    }
    assert_eq!(pool.stop(Duration::from_millis(10)), LeftOver { tasks: 3, threads: 2 });
    gate.open();
    until("they end when they can", || pool.figures().threads == 0);
}

#[test]
fn stop_on_a_thread_of_the_pool_does_not_wait_for_itself() {
    let pool = Arc::new(started(options("self", 2, 2), None));
    let (tell, told) = mpsc::channel();
    let own = Arc::clone(&pool);
    pool.submit(Task::once(move || {
        assert!(own.is_member());
        tell.send(own.stop(HUNG)).unwrap();
    }))
    .unwrap();
    assert_eq!(told.recv_timeout(HUNG).unwrap(), LeftOver::default());
    assert!(!pool.is_member());
}

#[test]
fn a_panic_costs_neither_the_thread_nor_leadership() {
    let events = Events::new();
    let pool = started(options("panic", 1, 1), Some(&events));
    let (tell, told) = mpsc::channel();
    events.push(|_| panic!("an event that fails"));
    pool.submit(Task::once(|| panic!("a task that fails"))).unwrap();
    pool.submit(Task::once(move || tell.send(()).unwrap())).unwrap();
    told.recv_timeout(HUNG).unwrap();
    until("it leads again", || events.has_waiter());
    assert_eq!(pool.panics(), 2);
    assert_eq!(pool.figures().threads, 1);
}

#[test]
fn urgent_tasks_go_before_others_and_each_kind_in_its_order() {
    let pool = started(options("lanes", 1, 1), None);
    let gate = Gate::new();
    pool.submit(blocked_at(&gate)).unwrap();
    until("it is busy", || gate.inside() == 1);
    let order = Arc::new(Mutex::new(Vec::new()));
    for (lane, n) in [(Lane::Normal, 3), (Lane::High, 1), (Lane::Normal, 4), (Lane::High, 2)] {
        let order = Arc::clone(&order);
        pool.submit_in(lane, Task::once(move || order.lock().push(n))).unwrap();
    }
    gate.open();
    assert_eq!(pool.stop(HUNG), LeftOver::default());
    assert_eq!(*order.lock(), [1, 2, 3, 4]);
}

#[test]
fn a_shared_task_gets_its_word_and_is_let_go() {
    struct Sum(AtomicUsize);
    impl Run for Sum {
        fn run(self: Arc<Self>, word: u64) {
            self.0.fetch_add(word as usize, Ordering::SeqCst);
        }
    }
    let pool = started(options("word", 1, 1), None);
    let sum = Arc::new(Sum(AtomicUsize::new(0)));
    for word in 1..=10 {
        pool.submit(Task::shared(&sum, word)).unwrap();
    }
    assert_eq!(pool.stop(HUNG), LeftOver::default());
    assert_eq!(sum.0.load(Ordering::SeqCst), 55);
    assert_eq!(Arc::strong_count(&sum), 1);
}

#[cfg(target_os = "linux")]
#[test]
fn its_threads_have_a_name_and_get_no_signals_but_their_own_faults() {
    let pool = started(Options { pin: Some(vec![0]), ..options("sig", 1, 1) }, None);
    let (tell, told) = mpsc::channel();
    pool.submit(Task::once(move || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        tell.send((std::thread::current().name().map(str::to_owned), status)).unwrap();
    }))
    .unwrap();
    let (name, status) = told.recv_timeout(HUNG).unwrap();
    assert_eq!(name.as_deref(), Some("pl-sig-0"));
    let line = |key: &str| status.lines().find_map(|l| l.strip_prefix(key)).unwrap().trim().to_owned();
    assert_eq!(line("Name:"), "pl-sig-0");
    let blocked = u64::from_str_radix(&line("SigBlk:"), 16).unwrap();
    let bit = |signal: i32| blocked >> (signal - 1) & 1;
    for signal in
        [libc::SIGINT, libc::SIGTERM, libc::SIGPIPE, libc::SIGALRM, libc::SIGCHLD, libc::SIGUSR1, libc::SIGPROF]
    {
        assert_eq!(bit(signal), 1, "signal {signal}");
    }
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL] {
        assert_eq!(bit(signal), 0, "signal {signal}");
    }
    assert_eq!(line("Cpus_allowed_list:"), "0");
    let mine = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let mine = mine.lines().find_map(|l| l.strip_prefix("SigBlk:")).unwrap().trim().to_owned();
    assert_ne!(mine, line("SigBlk:"), "the starter's mask is as it was");
}

#[test]
fn wrong_options_are_refused() {
    for (min, max, batch) in [(0, 0, 1), (3, 2, 1), (1, 1, 0)] {
        assert!(Pool::new(Options { batch, ..options("wrong", min, max) }, None).is_err(), "{min} {max} {batch}");
    }
    let events: Arc<dyn Source> = Events::new();
    assert!(Pool::new(options("wrong", 0, 2), Some(events)).is_err());
}

#[test]
fn a_dropped_pool_ends_its_threads_and_drops_its_tasks() {
    let events = Events::new();
    let pool = started(options("drop", 2, 2), Some(&events));
    let gate = Gate::new();
    pool.submit(blocked_at(&gate)).unwrap();
    until("it is blocked", || gate.inside() == 1);
    let held = Arc::new(());
    let inside = Arc::clone(&held);
    pool.submit(Task::once(move || drop(inside))).unwrap();
    drop(pool);
    assert_eq!(Arc::strong_count(&held), 1);
    gate.open();
    until("the source is let go", || Arc::strong_count(&events) == 1);
}
