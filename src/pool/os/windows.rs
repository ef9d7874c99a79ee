//! Windows.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::null;

use windows_sys::Win32::System::LibraryLoader::GetModuleHandleW;
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_DECOMMIT, MEM_RELEASE, MEM_RESERVE, PAGE_NOACCESS, PAGE_READWRITE, VirtualAlloc, VirtualFree,
    VirtualProtect,
};
use windows_sys::Win32::System::Performance::QueryPerformanceCounter;
use windows_sys::Win32::System::SystemInformation::GetTickCount64;
use windows_sys::Win32::System::Threading::{
    AcquireSRWLockExclusive, FLS_OUT_OF_INDEXES, FlsAlloc, FlsSetValue, GetCurrentProcessId, ReleaseSRWLockExclusive,
    SRWLOCK, SRWLOCK_INIT,
};

/// Address space to ask for. Less than elsewhere, because the table of descriptors (a 256th of it) counts against what
/// the system has promised, used or not.
pub const WANTED: usize = 16 << 30;
/// A fiber-local value's callback runs once.
pub const EXIT_ROUNDS: u64 = 1;

/// A mutex for slow paths: never allocates.
pub struct Lock(UnsafeCell<SRWLOCK>);

// SAFETY: an SRW lock is made to be shared.
unsafe impl Sync for Lock {}

#[allow(clippy::new_without_default, reason = "made in statics, which need a const fn")]
impl Lock {
    pub const fn new() -> Self {
        Lock(UnsafeCell::new(SRWLOCK_INIT))
    }

    pub fn lock(&self) {
        // SAFETY: statically initialised, never moved (every Lock is a static).
        unsafe { AcquireSRWLockExclusive(self.0.get()) };
    }

    pub fn unlock(&self) {
        // SAFETY: as above; called by the thread that locked it.
        unsafe { ReleaseSRWLockExclusive(self.0.get()) };
    }
}

/// Address space without memory behind it.
pub fn reserve(bytes: usize) -> Option<usize> {
    // SAFETY: a reservation at an address of the system's choice touches no memory of anyone's.
    let at = unsafe { VirtualAlloc(null(), bytes, MEM_RESERVE, PAGE_NOACCESS) };
    (!at.is_null()).then_some(at as usize)
}

/// Gives a whole reservation back.
pub fn unreserve(at: usize, _bytes: usize) {
    // SAFETY: callers pass a reservation of theirs that nothing points into.
    unsafe { VirtualFree(at as *mut _, 0, MEM_RELEASE) };
}

/// Makes a part of a reservation usable; memory that was not committed reads as zeros.
pub fn commit(at: usize, bytes: usize) -> bool {
    let mut old = 0;
    // SAFETY: callers pass a part of a reservation of theirs. The second call undoes `protect`.
    unsafe {
        !VirtualAlloc(at as *const _, bytes, MEM_COMMIT, PAGE_READWRITE).is_null()
            && VirtualProtect(at as *const _, bytes, PAGE_READWRITE, &mut old) != 0
    }
}

/// Makes pages inaccessible (guard pages).
pub fn protect(at: usize, bytes: usize) -> bool {
    let mut old = 0;
    // SAFETY: callers pass committed memory of theirs that holds nothing.
    unsafe { VirtualProtect(at as *const _, bytes, PAGE_NOACCESS, &mut old) != 0 }
}

/// Gives the memory back and keeps the address space: it reads as zeros when touched again.
pub fn purge(at: usize, bytes: usize) {
    // SAFETY: callers pass committed memory of theirs that holds nothing.
    unsafe {
        if VirtualFree(at as *mut _, bytes, MEM_DECOMMIT) == 0 {
            // It spans what was committed in several calls and the system minds: it stays as it is, but empty.
            core::ptr::write_bytes(at as *mut u8, 0, bytes);
        } else if VirtualAlloc(at as *const _, bytes, MEM_COMMIT, PAGE_READWRITE).is_null() {
            // Somebody else took the promise in between. The heap's own records say that this can be touched.
            say(b"partyline: the system has no memory left to promise\n");
            libc::abort();
        }
    }
}

/// Milliseconds of a coarse monotonic clock: no system call.
pub fn now_ms() -> u64 {
    // SAFETY: no precondition.
    unsafe { GetTickCount64() }
}

/// Windows sets no limit on address space.
pub fn address_space_limit() -> Option<usize> {
    None
}

/// A number that differs from process to process.
pub fn seed() -> u64 {
    let mut ticks = 0i64;
    // SAFETY: the first writes its argument, the others have no precondition. Where the program was loaded is random.
    let (process, module) = unsafe {
        QueryPerformanceCounter(&mut ticks);
        (u64::from(GetCurrentProcessId()), GetModuleHandleW(null()) as u64)
    };
    (ticks as u64 ^ process.rotate_left(40) ^ module.rotate_left(20)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

unsafe extern "C" {
    fn getenv(name: *const c_char) -> *const c_char;
    fn _errno() -> *mut c_int;
    fn _write(fd: c_int, text: *const c_void, len: u32) -> c_int;
}

/// The value of an environment variable. There are no setuid programs here.
pub fn env(name: &CStr) -> Option<&'static [u8]> {
    // SAFETY: the name is a C string; the answer is NULL or a C string in the environment, which the pool reads once,
    // at start.
    unsafe {
        let value = getenv(name.as_ptr());
        if value.is_null() { None } else { Some(CStr::from_ptr(value).to_bytes()) }
    }
}

/// Calls `exits` with a thread's value, when it exits with one that is not null. None: the system has no slot left.
pub fn on_thread_exit(exits: unsafe extern "C" fn(*mut c_void)) -> Option<u32> {
    // SAFETY: x86-64 has one calling convention, so the types are the same but for their spelling; the callback lives as
    // long as the library.
    let slot = unsafe {
        let exits =
            core::mem::transmute::<unsafe extern "C" fn(*mut c_void), unsafe extern "system" fn(*const c_void)>(exits);
        FlsAlloc(Some(exits))
    };
    (slot != FLS_OUT_OF_INDEXES).then_some(slot)
}

/// Sets the calling thread's value. Where the system has no memory for it the thread's exit goes unnoticed, which costs
/// the memory of its heap and nothing else.
#[allow(clippy::not_unsafe_ptr_arg_deref, reason = "the value is kept, not looked at")]
pub fn set_exit_value(slot: u32, value: *mut c_void) {
    // SAFETY: the slot is one of on_thread_exit's.
    unsafe { FlsSetValue(slot, value) };
}

/// There is no fork.
pub fn on_fork(_before: unsafe extern "C" fn(), _after: unsafe extern "C" fn()) {}

/// What libc's malloc leaves in errno when it gives NULL.
pub fn set_enomem() {
    // SAFETY: errno is this thread's.
    unsafe { *_errno() = libc::ENOMEM };
}

/// Writes to stderr, in one call.
pub fn say(text: &[u8]) {
    // SAFETY: the buffer and its length belong together.
    unsafe { _write(2, text.as_ptr().cast(), text.len() as u32) };
}
