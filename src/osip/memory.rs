//! osip2's memory functions, in each form that osip2 has had, and the constructor that installs the pool.
//!
//! | era of osip2 | what reaches us |
//! |---|---|
//! | 2.0.0 to 2.0.5 | calls of `osip_malloc`, `osip_free` |
//! | 2.2.0 to 5.x | `osip_set_allocators`, called by the constructor |
//! | builds with DEBUG_MEM | calls of `_osip_malloc`, `_osip_realloc`, `_osip_free` |
//!
//! The constructor runs when the library is loaded: preloaded, linked before osip2, or linked into the program from
//! `libpartyline.a`. There nothing refers to it, so the linker has to be told: `-Wl,-u,partyline_constructor` (as
//! `partyline-static.pc` does).
//!
//! # Contract of every pointer here
//! As in `pool::front`: null, or a live block of the pool or of libc. Callable from any thread, at any time; nothing
//! blocks but the page heap's lock.

use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::pool::{self, next, start, watch};

type Malloc = unsafe extern "C" fn(usize) -> *mut c_void;
type Realloc = unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void;
type Free = unsafe extern "C" fn(*mut c_void);

unsafe extern "C" {
    fn partyline_glue_has_osip() -> c_int;
    fn partyline_glue_set_allocators(malloc: Malloc, realloc: Realloc, free: Free) -> c_int;
}

static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Whether an osip2 was found at load and uses the pool.
pub fn installed() -> bool {
    INSTALLED.load(Ordering::Relaxed)
}

/// Memory for osip2; not zeroed. NULL past the pool's limit.
///
/// # Safety
/// None needed; unsafe because the type is osip2's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn osip_malloc(size: usize) -> *mut c_void {
    pool::malloc(size).cast()
}

/// # Safety
/// See the module's head.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn osip_realloc(block: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { pool::realloc(block.cast(), size).cast() }
}

/// # Safety
/// See the module's head.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn osip_free(block: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { pool::free(block.cast()) }
}

/// As [`osip_malloc`]; reports of misuse name the call site.
///
/// # Safety
/// `file` is NULL or a string that lives as long as the program.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _osip_malloc(size: usize, file: *mut c_char, line: u16) -> *mut c_void {
    watch::malloc_at(size, site(file, line)).cast()
}

/// # Safety
/// As [`_osip_malloc`], and see the module's head.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _osip_realloc(block: *mut c_void, size: usize, file: *mut c_char, line: u16) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { watch::realloc_at(block.cast(), size, site(file, line)).cast() }
}

/// # Safety
/// See the module's head.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _osip_free(block: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { pool::free(block.cast()) }
}

fn site(file: *mut c_char, line: u16) -> watch::Site {
    if file.is_null() { None } else { Some((file.cast_const(), line)) }
}

/// Starts the pool and gives it to osip2, where there is one, before the program's `main`. The loader calls it; calling it again is harmless.
#[unsafe(no_mangle)]
pub extern "C" fn partyline_constructor() {
    next::resolve();
    #[cfg(windows)]
    register_on_exit();
    // SAFETY: compares an address with NULL.
    if unsafe { partyline_glue_has_osip() } == 0 || start::start() == start::Mode::Libc {
        return;
    }
    // SAFETY: the three functions have osip2's types and live as long as the program.
    let found = unsafe { partyline_glue_set_allocators(osip_malloc, osip_realloc, osip_free) };
    INSTALLED.store(found != 0, Ordering::Relaxed);
}

extern "C" fn on_exit() {
    super::report::print();
}

/// The CRT has no section for what runs at exit.
#[cfg(windows)]
fn register_on_exit() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // SAFETY: the function lives as long as the library.
    ONCE.call_once(|| unsafe {
        libc::atexit(on_exit);
    });
}

#[used]
#[cfg_attr(unix, unsafe(link_section = ".init_array"))]
#[cfg_attr(windows, unsafe(link_section = ".CRT$XCU"))]
static ON_LOAD: extern "C" fn() = partyline_constructor;

#[cfg(unix)]
#[used]
#[unsafe(link_section = ".fini_array")]
static ON_EXIT: extern "C" fn() = on_exit;
