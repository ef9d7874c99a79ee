//! A thread's heap pointer, reached without a function call.
//!
//! Stable Rust's `thread_local!` calls `__tls_get_addr` in a shared library. On x86-64 the variable is defined here in
//! assembly and read with the initial-exec model: one load of its offset, one of its value. Elsewhere a C accessor
//! serves (`glue_memory.c`).
//!
//! A thread that has not allocated yet has [`EMPTY`], whose every table entry leads to the slow path, so the fast path
//! needs no test for it.

use core::cell::Cell;

use super::heap::{EMPTY, Heap};

/// What a thread is to the pool.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum State {
    #[allow(dead_code, reason = "what the assembly below writes")]
    New = 0,
    /// Has a heap; its exit will be noticed.
    Entered = 1,
    /// Its exit destructor has run: it must not take a heap again, nobody would hand that over.
    Left = 2,
}

#[repr(C)]
pub struct Tls {
    /// The heap that the fast paths use: [`EMPTY`] where every call has to be looked at.
    pub heap: Cell<*mut Heap>,
    /// The heap that belongs to the thread, or null.
    pub own: Cell<*mut Heap>,
    pub state: Cell<State>,
    /// How often the exit destructor was put off.
    pub rounds: Cell<u64>,
}

#[cfg(all(target_arch = "x86_64", unix))]
core::arch::global_asm!(
    ".pushsection .tdata.partyline_tls,\"awT\",@progbits",
    ".balign 8",
    ".hidden partyline_tls",
    ".globl partyline_tls",
    ".type partyline_tls,@object",
    ".size partyline_tls,32",
    "partyline_tls:",
    ".quad {empty}",
    ".quad 0",
    ".quad 0",
    ".quad 0",
    ".popsection",
    empty = sym EMPTY,
);

#[cfg(all(target_arch = "x86_64", unix))]
#[inline(always)]
pub fn heap() -> *mut Heap {
    let heap: *mut Heap;
    // SAFETY: reads the first word of this thread's `partyline_tls`; the offset comes from the linker or the loader.
    unsafe {
        core::arch::asm!(
            "mov {0}, qword ptr [rip + partyline_tls@GOTTPOFF]",
            "mov {0}, qword ptr fs:[{0}]",
            out(reg) heap,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    heap
}

#[cfg(all(target_arch = "x86_64", unix))]
pub fn tls() -> &'static Tls {
    let at: *const Tls;
    // SAFETY: the thread's block lies at its pointer (fs:0) plus the variable's offset and lives as long as the thread;
    // callers do not keep the reference beyond their call.
    unsafe {
        core::arch::asm!(
            "mov {0}, qword ptr fs:[0]",
            "add {0}, qword ptr [rip + partyline_tls@GOTTPOFF]",
            out(reg) at,
            options(pure, readonly, nostack)
        );
        &*at
    }
}

#[cfg(not(all(target_arch = "x86_64", unix)))]
unsafe extern "C" {
    fn partyline_glue_tls() -> *mut core::ffi::c_void;
}

#[cfg(not(all(target_arch = "x86_64", unix)))]
pub fn tls() -> &'static Tls {
    // SAFETY: the accessor returns this thread's zero-initialised block, which has the layout of Tls.
    let tls = unsafe { &*partyline_glue_tls().cast::<Tls>() };
    if tls.heap.get().is_null() {
        tls.heap.set((&raw const EMPTY).cast_mut());
    }
    tls
}

#[cfg(not(all(target_arch = "x86_64", unix)))]
#[inline(always)]
pub fn heap() -> *mut Heap {
    tls().heap.get()
}

pub fn empty() -> *mut Heap {
    (&raw const EMPTY).cast_mut()
}
