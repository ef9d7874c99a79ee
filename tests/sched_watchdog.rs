//! The watchdog: each call over its deadline is named once while it runs and once at its end; others are left alone.
#![cfg(not(loom))]

mod sched_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use partyline::sched::{Clockwork, GroupId, Groups, LeftOver, Pool, Run, Source, Task, TimerCall, Watchdog};
use sched_support::{Events, Gate, HUNG, options, until};

type Reports = Arc<Mutex<Vec<(String, u64, bool)>>>;

fn dog() -> (Arc<Watchdog>, Reports) {
    let reports = Reports::default();
    let to = Arc::clone(&reports);
    let dog = Watchdog::new(move |call| {
        // The end is told by the real clock, while these tests scan at times that they make up.
        assert!(call.ended || call.elapsed >= call.deadline);
        to.lock().push((call.plugin.to_owned(), call.elapsed.as_secs(), call.ended));
    });
    (dog, reports)
}

fn taken(reports: &Reports) -> Vec<(String, u64, bool)> {
    std::mem::take(&mut *reports.lock())
}

#[test]
fn a_call_over_its_deadline_is_named_once_and_again_when_it_ends() {
    let (dog, reports) = dog();
    let slow = dog.register("slow", Duration::from_secs(10)).unwrap();
    let patient = dog.register("patient", Duration::from_secs(100)).unwrap();
    let began = Instant::now();
    let first = dog.enter(slow, began);
    let nested = dog.enter(patient, began + Duration::from_secs(1));
    let at = |seconds| began + Duration::from_secs(seconds);
    assert_eq!(dog.scan(at(9)), 0);
    assert_eq!(dog.scan(at(11)), 1);
    assert_eq!(taken(&reports), [("slow".into(), 11, false)]);
    assert_eq!(dog.scan(at(12)), 0, "once");
    assert_eq!(dog.scan(at(102)), 1);
    assert_eq!(taken(&reports), [("patient".into(), 101, false)]);
    drop(nested);
    assert_eq!(dog.overdue(patient).0, 1);
    drop(first);
    assert_eq!(dog.scan(at(1000)), 0, "both have ended");
    // The next call in the same slot is a new one.
    let next = dog.enter(slow, at(1000));
    assert_eq!(dog.scan(at(1001)), 0);
    assert_eq!(dog.scan(at(1010)), 1);
    drop(next);
    assert_eq!(dog.overdue(slow).0, 2);
    let mut text = partyline::observe::Text::new();
    dog.metrics(&mut text);
    let text = text.finish();
    assert!(text.contains("partyline_calls_overdue_total{plugin=\"slow\"} 2\n"), "{text}");
}

#[test]
fn the_end_of_an_overdue_call_is_told_with_its_whole_time() {
    let ended = Arc::new(Mutex::new(None));
    let to = Arc::clone(&ended);
    let dog = Watchdog::new(move |call| {
        if call.ended {
            *to.lock() = Some(call.elapsed);
        }
    });
    let id = dog.register("late", Duration::from_nanos(1)).unwrap();
    let began = Instant::now();
    let call = dog.enter(id, began);
    until("overdue", || dog.scan(Instant::now()) == 1);
    drop(call);
    let told = ended.lock().take().expect("told");
    assert!(told <= began.elapsed());
    assert_eq!(dog.overdue(id), (1, told));
}

#[test]
fn more_calls_than_slots_are_made_all_the_same() {
    let (dog, _) = dog();
    let id = dog.register("many", Duration::from_secs(1)).unwrap();
    let now = Instant::now();
    let calls: Vec<_> = (0..1500).map(|_| dog.enter(id, now)).collect();
    assert_eq!(dog.scan(now + Duration::from_secs(2)), 1024);
    drop(calls);
    let mut text = partyline::observe::Text::new();
    dog.metrics(&mut text);
    assert!(text.finish().contains("partyline_calls_unwatched_total 476\n"));
    // All slots are free again.
    let calls: Vec<_> = (0..1024).map(|_| dog.enter(id, now)).collect();
    assert_eq!(dog.scan(now + Duration::from_secs(2)), 1024);
    drop(calls);
}

#[test]
fn calls_that_come_and_go_while_it_scans_are_never_mistaken() {
    let wrong = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&wrong);
    let dog = Watchdog::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let id = dog.register("quick", Duration::from_secs(3600)).unwrap();
    let long = dog.register("long", Duration::ZERO).unwrap();
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..50_000 {
                    drop(dog.enter(id, Instant::now()));
                }
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        while done.load(Ordering::SeqCst) < 2 {
            assert_eq!(dog.scan(Instant::now()), 0);
        }
    });
    assert_eq!(wrong.load(Ordering::SeqCst), 0);
    let call = dog.enter(long, Instant::now());
    assert_eq!(dog.scan(Instant::now()), 1);
    drop(call);
}

#[test]
fn a_timer_drives_it_while_the_call_blocks_its_thread() {
    let (dog, reports) = dog();
    let id = dog.register("stuck", Duration::from_millis(1)).unwrap();
    let events = Events::new();
    let source = Arc::clone(&events) as Arc<dyn Source>;
    let pool = Arc::new(Pool::new(options("dog", 2, 3), Some(Arc::clone(&source))).unwrap());
    let groups = Arc::new(Groups::new());
    let clock = Clockwork::new(&groups, &source);
    pool.set_clock(Arc::clone(&clock) as Arc<_>).unwrap();
    groups.set(GroupId::WORKER, Arc::clone(&pool));
    pool.start().unwrap();
    let scan = TimerCall::Shared(Arc::clone(&dog) as Arc<dyn Run>, 0);
    clock.start(GroupId::WORKER, Duration::from_millis(1), Some(Duration::from_millis(1)), scan);
    let gate = Gate::new();
    let (at, with) = (Arc::clone(&gate), Arc::clone(&dog));
    let stuck = Task::once(move || {
        let _call = with.enter(id, Instant::now());
        at.pass();
    });
    groups.post(GroupId::WORKER, stuck).unwrap();
    until("named", || !reports.lock().is_empty());
    gate.open();
    until("ended", || reports.lock().len() == 2);
    assert_eq!(groups.stop(HUNG), LeftOver::default());
    assert_eq!(reports.lock().iter().map(|r| r.2).collect::<Vec<_>>(), [false, true]);
}
