//! The locks and atomics of the cores that loom checks (`crew`, `strand`, `timers`): parking_lot's and the standard
//! library's in a normal build, loom's under `--cfg loom`. Time does not pass under loom: a wait with a limit waits
//! without one there, so a model has to end by itself.

#[cfg(not(loom))]
mod real {
    pub use parking_lot::{Condvar, Mutex, MutexGuard};
    pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
    pub use std::thread::ThreadId;
    use std::time::Duration;

    pub fn thread_id() -> ThreadId {
        std::thread::current().id()
    }

    /// Waits to be notified, at most `limit`; true when the limit ended the wait.
    pub fn wait<T>(condvar: &Condvar, guard: &mut MutexGuard<'_, T>, limit: Option<Duration>) -> bool {
        match limit {
            Some(limit) => condvar.wait_for(guard, limit).timed_out(),
            None => {
                condvar.wait(guard);
                false
            }
        }
    }
}

#[cfg(loom)]
mod model {
    pub use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
    pub use loom::thread::ThreadId;
    use std::ops::{Deref, DerefMut};
    use std::time::Duration;

    pub fn thread_id() -> ThreadId {
        loom::thread::current().id()
    }

    /// loom's mutex with parking_lot's face (no poisoning).
    pub struct Mutex<T>(loom::sync::Mutex<T>);
    pub struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);
    pub struct Condvar(loom::sync::Condvar);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Mutex(loom::sync::Mutex::new(value))
        }
        pub fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().expect("loom mutexes are not poisoned")))
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0.as_ref().expect("held")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("held")
        }
    }

    impl Condvar {
        #[allow(clippy::new_without_default)]
        pub fn new() -> Self {
            Condvar(loom::sync::Condvar::new())
        }
        pub fn notify_one(&self) {
            self.0.notify_one();
        }
        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    pub fn wait<T>(condvar: &Condvar, guard: &mut MutexGuard<'_, T>, _limit: Option<Duration>) -> bool {
        let held = guard.0.take().expect("held");
        guard.0 = Some(condvar.0.wait(held).expect("loom mutexes are not poisoned"));
        false
    }
}

#[cfg(loom)]
pub use model::*;
#[cfg(not(loom))]
pub use real::*;

/// A small number of the calling thread's own, for spreading threads over shards.
pub fn own_number() -> usize {
    use std::cell::Cell;
    static THREADS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    OWN.with(|own| {
        if own.get() == usize::MAX {
            own.set(THREADS.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        }
        own.get()
    })
}
