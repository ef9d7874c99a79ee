//! When a sleeper has to be woken through the system, and when a flag will do.
//!
//! The sleeper lies down, looks at what others may have left for it, and only then sleeps; others leave something, and
//! then look whether it lies. The fences order each side's write before its look (Dekker), so at least one of the two
//! sees the other: either the sleeper does not sleep, or it is woken, which the system does not forget. Nobody makes a
//! system call for a sleeper that is up. The model test (`--cfg loom`) goes through the interleavings.

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

pub(super) struct Doorbell {
    lies: AtomicBool,
    rung: AtomicBool,
}

impl Doorbell {
    pub(super) fn new() -> Self {
        Doorbell { lies: AtomicBool::new(false), rung: AtomicBool::new(false) }
    }

    /// For the sleeper, before it looks at what has been left for it and sleeps. Whether it was rung for already.
    pub(super) fn lie_down(&self) -> bool {
        self.lies.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.rung.load(Ordering::SeqCst)
    }

    /// For the sleeper, whatever has woken it, before it takes what has been left. Whether it was rung for.
    pub(super) fn get_up(&self) -> bool {
        self.lies.store(false, Ordering::SeqCst);
        self.rung.swap(false, Ordering::SeqCst)
    }

    /// Something has been left for the sleeper: whether it has to be woken.
    pub(super) fn left(&self) -> bool {
        fence(Ordering::SeqCst);
        self.lies.load(Ordering::SeqCst)
    }

    /// Rings: whether the sleeper has to be woken. Rings between two wakings count as one.
    pub(super) fn ring(&self) -> bool {
        !self.rung.swap(true, Ordering::SeqCst) && self.left()
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::{Arc, Condvar, Mutex};

    /// The system's side: a waker that is not forgotten, as eventfd's.
    struct House {
        bell: Doorbell,
        left: Mutex<u32>,
        woken: Mutex<bool>,
        wake: Condvar,
    }

    impl House {
        fn wake(&self) {
            *self.woken.lock().unwrap() = true;
            self.wake.notify_one();
        }

        fn sleep(&self) {
            let mut woken = self.woken.lock().unwrap();
            while !*woken {
                woken = self.wake.wait(woken).unwrap();
            }
            *woken = false;
        }
    }

    fn house() -> Arc<House> {
        Arc::new(House { bell: Doorbell::new(), left: Mutex::new(0), woken: Mutex::new(false), wake: Condvar::new() })
    }

    /// Three switches of threads at any places: a race between two needs no more (and all of them take hours).
    fn bounded() -> loom::model::Builder {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder
    }

    /// A lost wake-up is a deadlock, which loom reports.
    #[test]
    fn nothing_left_is_slept_through() {
        bounded().check(|| {
            let house = house();
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let house = Arc::clone(&house);
                    loom::thread::spawn(move || {
                        *house.left.lock().unwrap() += 1;
                        if house.bell.left() {
                            house.wake();
                        }
                    })
                })
                .collect();
            let mut taken = 0;
            while taken < 2 {
                let busy = house.bell.lie_down() || *house.left.lock().unwrap() > 0;
                if !busy {
                    house.sleep();
                }
                house.bell.get_up();
                taken += std::mem::take(&mut *house.left.lock().unwrap());
            }
            for other in others {
                other.join().unwrap();
            }
        });
    }

    #[test]
    fn no_ring_is_slept_through() {
        bounded().check(|| {
            let house = house();
            let posted = Arc::new(loom::sync::atomic::AtomicUsize::new(0));
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let (house, posted) = (Arc::clone(&house), Arc::clone(&posted));
                    loom::thread::spawn(move || {
                        posted.fetch_add(1, Ordering::SeqCst);
                        if house.bell.ring() {
                            house.wake();
                        }
                    })
                })
                .collect();
            let mut seen = 0;
            while seen < 2 {
                if !house.bell.lie_down() {
                    house.sleep();
                }
                // Only a sleeper that was rung for looks at what was posted.
                if house.bell.get_up() {
                    seen = posted.load(Ordering::SeqCst);
                }
            }
            for other in others {
                other.join().unwrap();
            }
        });
    }
}
