//! The allocator behind ours: libc's, or one that was preloaded after us. Foreign blocks go there, and everything does
//! where the pool cannot serve.
//!
//! In a library that exports `free` itself (feature `interpose-libc`) the name would lead back to us, so there the next
//! definition is looked up.

#[cfg(all(unix, not(feature = "interpose-libc")))]
mod behind {
    pub use libc::{free, malloc_usable_size as usable_size, realloc};
}

#[cfg(windows)]
mod behind {
    pub use libc::{free, realloc};

    unsafe extern "C" {
        #[link_name = "_msize"]
        pub fn usable_size(block: *mut libc::c_void) -> usize;
    }
}

#[cfg(feature = "interpose-libc")]
mod behind {
    //! `dlsym` may itself allocate and free (its error state), and anybody may call before our constructor ran: a thread
    //! that comes back while it looks up gets the answer that does no harm (a free leaks, a realloc fails).

    use core::ffi::CStr;
    use core::mem::transmute;
    use core::ptr::null_mut;
    use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

    use libc::{c_void, size_t};

    static FREE: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
    static REALLOC: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
    static USABLE: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
    /// A look-up is under way. Another thread that meets it set takes the harmless answer too; the constructor looks
    /// all names up before there is another thread.
    static BUSY: AtomicBool = AtomicBool::new(false);

    #[cold]
    fn look_up(slot: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
        if BUSY.swap(true, Ordering::Acquire) {
            return null_mut();
        }
        // SAFETY: a C string and a pseudo handle.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
        slot.store(found, Ordering::Release);
        BUSY.store(false, Ordering::Release);
        found
    }

    fn get(slot: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
        let known = slot.load(Ordering::Relaxed);
        if known.is_null() { look_up(slot, name) } else { known }
    }

    pub fn resolve() {
        get(&FREE, c"free");
        get(&REALLOC, c"realloc");
        get(&USABLE, c"malloc_usable_size");
    }

    /// # Safety
    /// As libc's.
    pub unsafe fn free(block: *mut c_void) {
        let next = get(&FREE, c"free");
        if !next.is_null() {
            // SAFETY: the symbol of that name has that type.
            unsafe { transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(next)(block) }
        }
    }

    /// # Safety
    /// As libc's.
    pub unsafe fn realloc(block: *mut c_void, size: size_t) -> *mut c_void {
        let next = get(&REALLOC, c"realloc");
        if next.is_null() {
            return null_mut();
        }
        // SAFETY: the symbol of that name has that type.
        unsafe { transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void, size_t) -> *mut c_void>(next)(block, size) }
    }

    /// # Safety
    /// As libc's.
    pub unsafe fn usable_size(block: *mut c_void) -> size_t {
        let next = get(&USABLE, c"malloc_usable_size");
        if next.is_null() {
            return 0;
        }
        // SAFETY: the symbol of that name has that type.
        unsafe { transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void) -> size_t>(next)(block) }
    }
}

/// Looks the next definitions up while there is one thread.
pub fn resolve() {
    #[cfg(feature = "interpose-libc")]
    behind::resolve();
}

pub fn malloc(size: usize) -> *mut u8 {
    // SAFETY: no precondition. We export no malloc, so this is the next one.
    unsafe { libc::malloc(size).cast() }
}

#[cfg(windows)]
pub fn aligned(size: usize, align: usize) -> *mut u8 {
    // The CRT's aligned blocks need a free of their own, which nobody would call.
    if align <= 16 { malloc(size) } else { core::ptr::null_mut() }
}

#[cfg(unix)]
pub fn aligned(size: usize, align: usize) -> *mut u8 {
    let mut block = core::ptr::null_mut();
    // SAFETY: writes the pointer; a bad alignment is refused.
    let failed = unsafe { libc::posix_memalign(&mut block, align.max(16), size) };
    if failed != 0 { core::ptr::null_mut() } else { block.cast() }
}

/// # Safety
/// A block of the allocator behind ours.
pub unsafe fn free(block: *mut u8) {
    // SAFETY: as for this function.
    unsafe { behind::free(block.cast()) };
}

/// # Safety
/// A block of the allocator behind ours.
pub unsafe fn realloc(block: *mut u8, size: usize) -> *mut u8 {
    // SAFETY: as for this function.
    unsafe { behind::realloc(block.cast(), size).cast() }
}

/// # Safety
/// A block of the allocator behind ours.
pub unsafe fn usable_size(block: *mut u8) -> usize {
    // SAFETY: as for this function.
    unsafe { behind::usable_size(block.cast()) }
}
