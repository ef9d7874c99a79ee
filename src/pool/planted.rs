//! Errors on purpose. `scripts/sanitize.sh` runs each by its name and fails unless the sanitizer reports it: a run that
//! cannot fail proves nothing. They are ignored everywhere else.

use core::cell::UnsafeCell;

struct Shared(UnsafeCell<u64>);

// SAFETY: it is not: that is the error.
unsafe impl Sync for Shared {}

/// In `PARTYLINE_POOL=libc`, where AddressSanitizer sees each block.
#[test]
#[ignore = "an error on purpose, for scripts/sanitize.sh"]
fn overflow() {
    let block = super::malloc(24);
    // SAFETY: one byte past the end: that is the error.
    unsafe { core::hint::black_box(block).add(24).write_volatile(1) };
    // SAFETY: allocated above.
    unsafe { super::free(block) };
}

#[test]
#[ignore = "an error on purpose, for scripts/sanitize.sh"]
fn race() {
    static SHARED: Shared = Shared(UnsafeCell::new(0));
    let add = || {
        for _ in 0..10_000 {
            // SAFETY: two threads at once: that is the error.
            unsafe { *SHARED.0.get() += 1 };
            std::thread::yield_now();
        }
    };
    let other = std::thread::spawn(add);
    add();
    other.join().unwrap();
}

/// A block that the pool hands out again has to be seen as new by ThreadSanitizer: if the pool's own synchronisation
/// were not visible to it, the pool's tests would pass for the wrong reason or fail for none.
#[test]
#[ignore = "a race through a block of the pool on purpose, for scripts/sanitize.sh"]
fn race_in_a_block() {
    let block = super::malloc(64) as usize;
    let write = move |value: u8| {
        for _ in 0..10_000 {
            // SAFETY: the block lives until both threads have ended; that both write is the error.
            unsafe { (block as *mut u8).write_volatile(value) };
            std::thread::yield_now();
        }
    };
    let other = std::thread::spawn(move || write(1));
    write(2);
    other.join().unwrap();
    // SAFETY: allocated above.
    unsafe { super::free(block as *mut u8) };
}
