//! POSIX and Linux.

use core::cell::UnsafeCell;
use core::ptr::null_mut;

/// Address space to ask for: it costs nothing but page tables of what is used.
pub const WANTED: usize = 64 << 30;
/// How many rounds of exit destructors may pass before a heap is handed over: glibc makes four, and other libraries'
/// destructors still allocate and free in them.
pub const EXIT_ROUNDS: u64 = 3;

/// A mutex for slow paths. pthread's, because it never allocates, may be held across `fork`, and is known to
/// ThreadSanitizer.
pub struct Lock(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: a pthread mutex is made to be shared.
unsafe impl Sync for Lock {}

#[allow(clippy::new_without_default, reason = "made in statics, which need a const fn")]
impl Lock {
    pub const fn new() -> Self {
        Lock(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER))
    }

    pub fn lock(&self) {
        // SAFETY: statically initialised, never destroyed, never moved (every Lock is a static).
        unsafe { libc::pthread_mutex_lock(self.0.get()) };
    }

    pub fn unlock(&self) {
        // SAFETY: as above; called by the thread that locked it.
        unsafe { libc::pthread_mutex_unlock(self.0.get()) };
    }
}

/// Address space without memory behind it.
pub fn reserve(bytes: usize) -> Option<usize> {
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory of anyone's.
    let at = unsafe {
        libc::mmap(
            null_mut(),
            bytes,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    (at != libc::MAP_FAILED).then_some(at as usize)
}

pub fn unreserve(at: usize, bytes: usize) {
    // SAFETY: callers pass a part of a reservation of theirs that nothing points into.
    unsafe { libc::munmap(at as *mut _, bytes) };
}

/// Makes a part of a reservation usable; its memory reads as zeros.
pub fn commit(at: usize, bytes: usize) -> bool {
    // SAFETY: callers pass a part of a reservation of theirs.
    unsafe { libc::mprotect(at as *mut _, bytes, libc::PROT_READ | libc::PROT_WRITE) == 0 }
}

/// Makes pages inaccessible (guard pages).
pub fn protect(at: usize, bytes: usize) -> bool {
    // SAFETY: callers pass committed memory of theirs that holds nothing.
    unsafe { libc::mprotect(at as *mut _, bytes, libc::PROT_NONE) == 0 }
}

/// Gives the memory back and keeps the address space: it reads as zeros when touched again.
pub fn purge(at: usize, bytes: usize) {
    // SAFETY: callers pass committed memory of theirs that holds nothing.
    unsafe { libc::madvise(at as *mut _, bytes, libc::MADV_DONTNEED) };
}

/// Milliseconds of a coarse monotonic clock: no system call.
pub fn now_ms() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the struct given.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// The soft limit on address space, if there is one.
pub fn address_space_limit() -> Option<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes the struct given.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) };
    (got == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur as usize)
}

/// A number that differs from process to process: the kernel's gift to every program, no system call.
pub fn seed() -> u64 {
    // SAFETY: AT_RANDOM is the address of 16 bytes, or 0.
    unsafe {
        let at = libc::getauxval(libc::AT_RANDOM) as *const u64;
        if at.is_null() {
            0x5bd1_e995_97f4_a7c1
        } else {
            at.read_unaligned() ^ at.add(1).read_unaligned().rotate_left(32)
        }
    }
}

unsafe extern "C" {
    fn secure_getenv(name: *const core::ffi::c_char) -> *const core::ffi::c_char;
}

/// The value of an environment variable, not in a setuid program.
pub fn env(name: &core::ffi::CStr) -> Option<&'static [u8]> {
    // SAFETY: the name is a C string; the answer is NULL or a C string in the environment, which the pool reads once,
    // at start.
    unsafe {
        let value = secure_getenv(name.as_ptr());
        if value.is_null() { None } else { Some(core::ffi::CStr::from_ptr(value).to_bytes()) }
    }
}

/// Calls `exits` with a thread's value, when it exits with one that is not null. None: the system has no key left.
pub fn on_thread_exit(exits: unsafe extern "C" fn(*mut libc::c_void)) -> Option<u32> {
    let mut key = 0;
    // SAFETY: writes the key; the destructor lives as long as the library, which is never unloaded.
    (unsafe { libc::pthread_key_create(&mut key, Some(exits)) } == 0).then_some(key)
}

/// Sets the calling thread's value. Where the system has no memory for it the thread's exit goes unnoticed, which costs
/// the memory of its heap and nothing else.
#[allow(clippy::not_unsafe_ptr_arg_deref, reason = "the value is kept, not looked at")]
pub fn set_exit_value(key: u32, value: *mut libc::c_void) {
    // SAFETY: the key is one of on_thread_exit's.
    unsafe { libc::pthread_setspecific(key, value) };
}

pub fn on_fork(before: unsafe extern "C" fn(), after: unsafe extern "C" fn()) {
    // SAFETY: the handlers live as long as the library.
    unsafe { libc::pthread_atfork(Some(before), Some(after), Some(after)) };
}

/// What libc's malloc leaves in errno when it gives NULL.
pub fn set_enomem() {
    // SAFETY: errno is this thread's.
    unsafe { *libc::__errno_location() = libc::ENOMEM };
}

/// Writes to stderr, in one call.
pub fn say(text: &[u8]) {
    // SAFETY: the buffer and its length belong together.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
}
