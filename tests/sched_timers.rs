//! Timers and thread groups: nothing early, nothing after a cancel, nothing lost, a million of them.
#![cfg(not(loom))]

mod sched_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use partyline::sched::{
    Cancel, Clockwork, GroupId, Groups, LeftOver, Options, Pool, Source, Task, TimerCall, TimerId, Timers, Why,
};
use sched_support::{Events, Gate, HUNG, options, until};

fn timers<T>() -> Timers<T> {
    Timers::new(4, || ())
}

fn due<T>(timers: &Timers<T>, now: u64) -> Vec<TimerId> {
    let mut out = Vec::new();
    timers.expire(now, |id, _| out.push(id));
    out
}

#[test]
fn a_one_shot_is_due_once_and_then_gone() {
    let timers = timers();
    let id = timers.start_at(10, 0, 'a');
    assert_eq!(due(&timers, 9), []);
    assert_eq!(due(&timers, 10), [id]);
    let mut ran = None;
    assert!(timers.fire(id, |value| ran = Some(*value)));
    assert_eq!(ran, Some('a'));
    assert!(!timers.fire(id, |_| panic!("twice")));
    assert_eq!(timers.cancel(id), Cancel::Gone);
    assert!(timers.is_empty());
}

#[test]
fn a_cancel_between_due_and_running_prevents_it() {
    let timers = timers();
    let (armed, handed_out) = (timers.start_at(50, 0, ()), timers.start_at(5, 0, ()));
    assert_eq!(due(&timers, 5), [handed_out]);
    assert_eq!(timers.cancel(handed_out), Cancel::Prevented);
    assert!(!timers.fire(handed_out, |_| panic!("was cancelled")));
    assert_eq!(timers.cancel(armed), Cancel::Prevented);
    assert_eq!(timers.cancel(armed), Cancel::Gone);
    assert_eq!(due(&timers, 100), []);
    assert_eq!(timers.cancel(TimerId(0)), Cancel::Gone);
    assert_eq!(timers.cancel(TimerId(u64::MAX)), Cancel::Gone);
}

#[test]
fn a_periodic_timer_keeps_its_grid_and_skips_what_it_missed() {
    let timers = timers();
    let id = timers.start_at(10, 10, ());
    for now in [10, 20] {
        assert_eq!(due(&timers, now), [id]);
        assert_eq!(due(&timers, now + 5), [], "not due again while the call waits");
        assert!(timers.fire(id, |_| ()));
    }
    assert_eq!(due(&timers, 30), [id]);
    assert_eq!(due(&timers, 57), []);
    assert!(timers.fire(id, |_| ()));
    assert_eq!(timers.skipped.get(), 2);
    assert_eq!(due(&timers, 59), []);
    assert_eq!(due(&timers, 60), [id]);
    timers.fire(id, |_| assert_eq!(timers.cancel_and_wait(id), Cancel::Running, "its own thread does not wait"));
    assert_eq!(due(&timers, 1000), []);
    assert!(timers.is_empty());
}

#[test]
fn cancel_waits_for_a_callback_that_runs() {
    let timers = Arc::new(timers());
    let id = timers.start_at(1, 1, ());
    assert_eq!(due(&timers, 1), [id]);
    let gate = Gate::new();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            timers.fire(id, |_| {
                gate.pass();
                ended.store(true, Ordering::SeqCst);
            })
        });
        until("it runs", || gate.inside() == 1);
        assert_eq!(timers.cancel(id), Cancel::Running);
        let waiter = scope.spawn(|| {
            // Gone if the gate was quicker.
            assert_ne!(timers.cancel_and_wait(id), Cancel::Prevented);
            ended.load(Ordering::SeqCst)
        });
        gate.open();
        assert!(waiter.join().unwrap(), "came back before the callback had ended");
    });
    assert_eq!(due(&timers, 1000), []);
    assert_eq!(timers.cancel(id), Cancel::Gone);
}

#[test]
fn a_callback_that_panics_is_over_all_the_same() {
    let timers = timers();
    let (once, again) = (timers.start_at(1, 0, ()), timers.start_at(1, 1, ()));
    due(&timers, 1);
    for id in [once, again] {
        let call = std::panic::AssertUnwindSafe(|| timers.fire(id, |_| panic!("a callback that fails")));
        assert!(std::panic::catch_unwind(call).is_err());
    }
    assert_eq!(timers.cancel(once), Cancel::Gone);
    assert_eq!(due(&timers, 2), [again]);
}

#[test]
fn an_earlier_timer_wakes_who_sleeps_and_only_then() {
    let wakes = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&wakes);
    let timers = Timers::new(2, move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let woken = || wakes.load(Ordering::SeqCst);
    assert_eq!(timers.sleep_until(), None);
    timers.start_at(100, 0, ());
    assert_eq!(woken(), 1);
    timers.start_at(50, 0, ());
    assert_eq!(woken(), 1, "one wake is enough");
    assert_eq!(timers.sleep_until(), Some(50));
    timers.start_at(50, 0, ());
    timers.start_at(51, 0, ());
    assert_eq!(woken(), 1, "not earlier");
    timers.start_at(49, 0, ());
    assert_eq!(woken(), 2);
    timers.awake();
    timers.start_at(1, 0, ());
    assert_eq!(woken(), 2);
}

#[test]
fn a_million_live_timers() {
    let timers = timers();
    let ids: Vec<TimerId> = (0..1_000_000u64).map(|n| timers.start_at(1 + n * 7919 % 60_000, 0, n)).collect();
    assert_eq!(timers.len(), 1_000_000);
    for id in ids.iter().step_by(2) {
        assert_eq!(timers.cancel(*id), Cancel::Prevented);
    }
    let mut fired = 0u64;
    let mut now = 0;
    while let Some(next) = timers.next() {
        assert!(next > now);
        now = next;
        let ready = due(&timers, now);
        for id in ready {
            assert!(timers.fire(id, |n| {
                assert_eq!((*n % 2, 1 + *n * 7919 % 60_000), (1, now));
                fired += 1;
            }));
        }
    }
    assert_eq!((fired, timers.len()), (500_000, 0));
}

struct House {
    events: Arc<Events>,
    pool: Arc<Pool>,
    groups: Arc<Groups>,
    clock: Arc<Clockwork>,
}

fn house(pool: Options) -> House {
    let events = Events::new();
    let source: Arc<dyn Source> = Arc::clone(&events) as Arc<dyn Source>;
    let pool = Arc::new(Pool::new(pool, Some(Arc::clone(&source))).unwrap());
    let groups = Arc::new(Groups::new());
    let clock = Clockwork::new(&groups, &source);
    pool.set_clock(Arc::clone(&clock) as Arc<_>).unwrap();
    for id in [GroupId::IO, GroupId::WORKER] {
        assert!(groups.set(id, Arc::clone(&pool)));
    }
    pool.start().unwrap();
    House { events, pool, groups, clock }
}

#[test]
fn the_leader_keeps_the_timers_and_their_callbacks_run_on_their_group() {
    let house = house(options("time", 2, 4));
    let own = house.groups.define(options("own", 1, 1)).unwrap();
    until("it waits for ever", || house.events.has_waiter());
    let began = Instant::now();
    let (tell, told) = mpsc::channel();
    for (group, delay) in [(GroupId::WORKER, 20), (own, 10), (own, 30)] {
        let tell = tell.clone();
        let delay = Duration::from_millis(delay);
        let call = move || {
            let thread = std::thread::current().name().unwrap_or("").to_owned();
            tell.send((delay, thread)).unwrap();
        };
        house.clock.start(group, delay, None, TimerCall::Mut(Box::new(call)));
    }
    let mut seen: Vec<_> = (0..3).map(|_| told.recv_timeout(HUNG).unwrap()).collect();
    seen.sort();
    assert!(began.elapsed() >= Duration::from_millis(30), "early");
    let names: Vec<&str> = seen.iter().map(|(_, thread)| &thread[..7]).collect();
    assert_eq!(names, ["pl-own-", "pl-time", "pl-own-"]);
    until("all are gone", || house.clock.is_empty());
    // A period, and its end: after a cancel that waited, no more calls.
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let call = TimerCall::Mut(Box::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    let id = house.clock.start(GroupId::IO, Duration::ZERO, Some(Duration::from_millis(1)), call);
    until("ten calls", || calls.load(Ordering::SeqCst) >= 10);
    assert_ne!(house.clock.cancel_and_wait(id), Cancel::Gone);
    let after = calls.load(Ordering::SeqCst);
    assert_eq!(Arc::strong_count(&calls), 1, "the callback is let go with its timer");
    assert_eq!(calls.load(Ordering::SeqCst), after);
    assert_eq!(house.groups.stop(HUNG), LeftOver::default());
}

#[test]
fn timers_go_on_while_every_wait_ends_in_a_promotion() {
    let house = house(options("busy", 2, 4));
    let fired = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&fired);
    house.clock.start(
        GroupId::WORKER,
        Duration::from_millis(5),
        None,
        TimerCall::Mut(Box::new(move || flag.store(true, Ordering::SeqCst))),
    );
    let end = Instant::now() + HUNG;
    while !fired.load(Ordering::SeqCst) {
        assert!(Instant::now() < end, "never fired");
        let (tell, told) = mpsc::channel();
        house.events.push(move |leader| {
            leader.promote();
            tell.send(()).unwrap();
        });
        told.recv_timeout(HUNG).unwrap();
    }
}

#[test]
fn a_timer_whose_group_is_full_comes_later_and_one_whose_group_is_gone_never() {
    let house = house(options("full", 2, 2));
    let narrow = house.groups.define(Options { queue_limit: 1, ..options("narrow", 1, 1) }).unwrap();
    let gate = Gate::new();
    for n in 1..=2 {
        let gate = Arc::clone(&gate);
        house.groups.post(narrow, Task::once(move || gate.pass())).unwrap();
        if n == 1 {
            until("it is blocked", || gate_inside(&house, narrow));
        }
    }
    fn gate_inside(house: &House, group: GroupId) -> bool {
        house.groups.pool(group).unwrap().figures().queued == 0
    }
    let (tell, told) = mpsc::channel();
    let call = TimerCall::Mut(Box::new(move || tell.send(()).unwrap()));
    house.clock.start(narrow, Duration::ZERO, None, call);
    let deferred = |house: &House| {
        let mut text = partyline::observe::Text::new();
        house.clock.metrics(&mut text);
        !text.finish().contains("deferred_total 0\n")
    };
    until("put off", || deferred(&house));
    assert!(told.try_recv().is_err());
    gate.open();
    told.recv_timeout(HUNG).unwrap();
    house.clock.start(GroupId(60), Duration::ZERO, None, TimerCall::Call(|_, _| panic!("no such group"), 0, 0));
    until("ended", || house.clock.is_empty());
}

#[test]
fn a_group_of_one_thread_keeps_each_posters_order() {
    let groups = Groups::new();
    let group = groups.define(options("order", 1, 1)).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for poster in 0..3 {
            let (groups, seen) = (&groups, &seen);
            scope.spawn(move || {
                for n in 0..1000 {
                    let seen = Arc::clone(seen);
                    groups.post(group, Task::once(move || seen.lock().push((poster, n)))).unwrap();
                }
            });
        }
    });
    assert_eq!(groups.stop(HUNG), LeftOver::default());
    let seen = seen.lock();
    assert_eq!(seen.len(), 3000);
    for poster in 0..3 {
        let own: Vec<i32> = seen.iter().filter(|(p, _)| *p == poster).map(|(_, n)| *n).collect();
        assert!(own.is_sorted());
    }
}

#[test]
fn groups_are_named_once_found_again_and_refuse_plainly() {
    let groups = Groups::new();
    let id = groups.define(options("mine", 0, 1)).unwrap();
    assert_eq!(groups.find("mine"), Some(id));
    assert_eq!(groups.find("yours"), None);
    assert!(groups.define(options("mine", 1, 1)).is_err());
    let refused = groups.post(GroupId(63), Task::once(|| ())).unwrap_err();
    assert_eq!(refused.why, Why::Unknown);
    assert_eq!(groups.post(GroupId(64), Task::once(|| ())).unwrap_err().why, Why::Unknown);
    // A group without standing threads starts one for its first task.
    assert_eq!(groups.pool(id).unwrap().figures().threads, 0);
    let (tell, told) = mpsc::channel();
    groups.post(id, Task::once(move || tell.send(()).unwrap())).unwrap();
    told.recv_timeout(HUNG).unwrap();
    let other = Arc::new(Pool::new(options("other", 1, 1), None).unwrap());
    assert!(!groups.set(id, Arc::clone(&other)), "taken");
    assert!(!groups.set(GroupId(64), other), "out of range");
    groups.stop(HUNG);
    assert_eq!(groups.post(id, Task::once(|| ())).unwrap_err().why, Why::Stopped);
}

#[test]
fn a_house_lets_go_of_everything() {
    let house = house(options("leak", 2, 2));
    let held = Arc::new(());
    let inside = Arc::clone(&held);
    let call = TimerCall::Mut(Box::new(move || {
        let _ = &inside;
    }));
    house.clock.start(GroupId::IO, Duration::from_secs(3600), None, call);
    house.groups.stop(HUNG);
    let events = Arc::clone(&house.events);
    let pool = Arc::downgrade(&house.pool);
    drop(house);
    assert_eq!(Arc::strong_count(&held), 1);
    assert_eq!(Arc::strong_count(&events), 1);
    assert!(pool.upgrade().is_none());
}
