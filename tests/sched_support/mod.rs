//! What the tests of `sched` share: a gate to block tasks at, a wait for a condition, and an event source without sockets.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use partyline::sched::{Leader, Options, Source};

/// How long anything may take before the test is called hung.
pub const HUNG: Duration = Duration::from_secs(60);

/// Waits until something holds that no condition variable tells of.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + HUNG;
    while !holds() {
        assert!(Instant::now() < end, "never came: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Closed at first; `pass` blocks until it is opened.
#[derive(Default)]
pub struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
    pub inside: AtomicUsize,
    pub passed: AtomicUsize,
}

impl Gate {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn pass(&self) {
        self.inside.fetch_add(1, Ordering::SeqCst);
        let mut open = self.open.lock();
        while !*open {
            assert!(!self.opened.wait_for(&mut open, HUNG).timed_out(), "nobody opened the gate");
        }
        drop(open);
        self.passed.fetch_add(1, Ordering::SeqCst);
    }

    pub fn open(&self) {
        *self.open.lock() = true;
        self.opened.notify_all();
    }

    pub fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }

    pub fn passed(&self) -> usize {
        self.passed.load(Ordering::SeqCst)
    }
}

pub type Event = Box<dyn FnOnce(&mut Leader<'_>) + Send>;

/// A source of closures. It notices when two threads are in it at a time.
#[derive(Default)]
pub struct Events {
    queue: Mutex<(VecDeque<Event>, bool)>,
    some: Condvar,
    waiting: AtomicUsize,
    pub waits: AtomicUsize,
    pub intruders: AtomicUsize,
}

impl Events {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn push(&self, event: impl FnOnce(&mut Leader<'_>) + Send + 'static) {
        self.queue.lock().0.push_back(Box::new(event));
        self.some.notify_one();
    }

    pub fn has_waiter(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) == 1
    }
}

impl Source for Events {
    fn lead(&self, leader: &mut Leader<'_>, timeout: Option<Duration>) {
        let others = self.waiting.fetch_add(1, Ordering::SeqCst);
        self.intruders.fetch_add(others, Ordering::SeqCst);
        self.waits.fetch_add(1, Ordering::SeqCst);
        let end = timeout.map(|t| Instant::now() + t);
        let mut queue = self.queue.lock();
        let event = loop {
            if let Some(event) = queue.0.pop_front() {
                break Some(event);
            }
            if std::mem::take(&mut queue.1) {
                break None;
            }
            match end {
                None => self.some.wait(&mut queue),
                Some(end) => {
                    if self.some.wait_until(&mut queue, end).timed_out() {
                        break None;
                    }
                }
            }
        };
        drop(queue);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        if let Some(event) = event {
            leader.events_came();
            event(leader);
        }
    }

    fn wake(&self) {
        self.queue.lock().1 = true;
        self.some.notify_one();
    }
}

pub fn options(name: &str, min: usize, max: usize) -> Options {
    Options { name: name.into(), min, max, batch: 1, ..Options::default() }
}
