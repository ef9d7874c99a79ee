//! What a thread of ours asks of the operating system: to get no signals, and to stay on a processor.
//!
//! Signals are the program's business: its handlers must not run on a thread that it does not know, with a stack and
//! thread-locals that are not its own. Left open are those that a thread brings upon itself (SIGSEGV, SIGBUS, SIGFPE,
//! SIGILL, SIGTRAP, SIGSYS, SIGABRT): blocked, they would kill the process past the program's crash handler.

#[cfg(unix)]
mod sys {
    use std::mem::MaybeUninit;

    /// Restores the thread's signal mask when dropped.
    pub struct SignalsBlocked(libc::sigset_t);

    /// Blocks all signals that come from outside for the calling thread, until the guard is dropped. A thread inherits
    /// the mask of the one that starts it, so starting threads under this guard leaves no window.
    pub fn block_signals() -> SignalsBlocked {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut old = MaybeUninit::<libc::sigset_t>::uninit();
        let own = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS, libc::SIGABRT];
        // SAFETY: sigfillset initialises `all` before it is read; pthread_sigmask writes `old` (it can fail only for an
        // unknown `how`, and this one is known).
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            for signal in own {
                libc::sigdelset(all.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), old.as_mut_ptr());
            SignalsBlocked(old.assume_init())
        }
    }

    impl Drop for SignalsBlocked {
        fn drop(&mut self) {
            // SAFETY: the mask was filled in by pthread_sigmask; no old mask is asked for.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
        }
    }

    /// Keeps the calling thread on one processor; false when the system refuses or cannot.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub fn pin_to(cpu: usize) -> bool {
        if cpu >= libc::CPU_SETSIZE as usize {
            return false;
        }
        // SAFETY: cpu_set_t is a plain bit array for which zero is valid, and `cpu` is within it (checked above).
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) == 0
        }
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub fn pin_to(_cpu: usize) -> bool {
        false
    }
}

#[cfg(not(unix))]
mod sys {
    /// There are no signals to block.
    pub struct SignalsBlocked(());

    pub fn block_signals() -> SignalsBlocked {
        SignalsBlocked(())
    }

    pub fn pin_to(_cpu: usize) -> bool {
        false
    }
}

pub use sys::{SignalsBlocked, block_signals, pin_to};
