//! The names of osip2's that stand here, and when they do not.
//!
//! | what is found at the first call | what happens |
//! |---|---|
//! | the osip2 that we were built against, complete | the engine |
//! | another soname, or a function missing | each name passes its call on to the next definition, said once on stderr |
//! | `PARTYLINE_ENGINE=off` | the same, silently |
//!
//! In a statically linked program there is no next definition, and no other osip2 than the one linked.
//!
//! # Contract
//! Pointers as osip2's functions of these names take them.
#![allow(clippy::unused_unit, reason = "the macro takes what to give where osip2 fails; some give nothing")]

use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::{AtomicU8, Ordering};

use super::glue::{self, Dialog, Event, Fifo, Iterator, List, Message, Osip, Transaction};
use super::{execute, fifo, resend, stack, timers, transaction};
use crate::ffi;
use crate::pool::os;

/// 0 until it has been looked; 1 the engine; 2 the next definition.
static STATE: AtomicU8 = AtomicU8::new(0);

#[inline]
fn on() -> bool {
    match STATE.load(Ordering::Relaxed) {
        1 => true,
        2 => false,
        _ => decide(),
    }
}

/// Whether the engine is in use. For the report and for tests.
pub fn engine_is_on() -> bool {
    on()
}

/// Whether what libosip2 itself calls is what the program calls: ours. False where another definition comes first.
fn reaches_us() -> bool {
    // SAFETY: names are C strings.
    unsafe {
        let add = libc::dlsym(libc::RTLD_DEFAULT, c"osip_fifo_add".as_ptr());
        let init = libc::dlsym(libc::RTLD_DEFAULT, c"osip_transaction_init".as_ptr());
        let ours = |at: *mut c_void, own: *const c_void| at.is_null() || at.cast_const() == own;
        ours(add, osip_fifo_add as *const c_void) && ours(init, osip_transaction_init as *const c_void)
    }
}

/// The soname of the libosip2 that is loaded, if one is.
fn loaded(out: &mut [u8; 64]) -> Option<&str> {
    unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _: usize, data: *mut c_void) -> c_int {
        // SAFETY: dl_iterate_phdr passes a live entry whose name is NULL or a C string; data is the buffer below.
        unsafe {
            if (*info).dlpi_name.is_null() {
                return 0;
            }
            let path = CStr::from_ptr((*info).dlpi_name).to_bytes();
            let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
            if !name.starts_with(b"libosip2.so") || name.len() > 64 {
                return 0;
            }
            core::ptr::copy_nonoverlapping(name.as_ptr(), data.cast::<u8>(), name.len());
            1
        }
    }
    // SAFETY: the callback writes no more than the buffer holds.
    let found = unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut *out).cast()) };
    if found == 0 {
        return None;
    }
    let end = out.iter().position(|byte| *byte == 0).unwrap_or(out.len());
    core::str::from_utf8(&out[..end]).ok()
}

#[cold]
fn decide() -> bool {
    let mut name = [0; 64];
    let loaded = loaded(&mut name);
    let same = match (option_env!("PARTYLINE_OSIP_SONAME"), loaded) {
        (Some(built), Some(present)) => {
            present == built || present.strip_prefix(built).is_some_and(|rest| rest.starts_with('.'))
        }
        _ => true,
    };
    let off = os::env(c"PARTYLINE_ENGINE") == Some(b"off");
    // SAFETY: compares addresses with NULL.
    let complete = unsafe { glue::partyline_glue_osip_complete() } != 0;
    let on = !off && same && complete && reaches_us();
    // The parser library alone: the program has lists, but no transactions, and misses nothing.
    // SAFETY: the name is a C string.
    let parser_only = loaded.is_none() && unsafe { !libc::dlsym(libc::RTLD_NEXT, c"osip_list_add".as_ptr()).is_null() };
    let silent = on || off || parser_only;
    if STATE.compare_exchange(0, if on { 1 } else { 2 }, Ordering::AcqRel, Ordering::Acquire).is_ok() && !silent {
        let mut line = os::Line::<256>::new();
        line.put(format_args!(
            "partyline: built against {}, found {}{}: only the memory pool is in use\n",
            option_env!("PARTYLINE_OSIP_SONAME").unwrap_or("libosip2"),
            loaded.unwrap_or("a static libosip2"),
            if !complete {
                " without all of its functions"
            } else if same {
                ", whose own calls do not reach it"
            } else {
                ""
            }
        ));
        line.say();
    }
    STATE.load(Ordering::Acquire) == 1
}

/// The function of this name that comes after ours; called where the engine is off only.
macro_rules! next_definition {
    ($abi:literal $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)?, $none:expr) => {{
        type Next = unsafe extern $abi fn($($type),*) $(-> $ret)?;
        // SAFETY: the name is a C string; what is found has osip2's type.
        unsafe {
            let next = libc::dlsym(libc::RTLD_NEXT, concat!(stringify!($name), "\0").as_ptr().cast());
            if next.is_null() {
                return $none;
            }
            core::mem::transmute::<*mut c_void, Next>(next)($($arg),*)
        }
    }};
}

/// A panic becomes what osip2's function gives where it fails, with a text in `partyline_last_error()`.
macro_rules! stand_in {
    ($(fn $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? { $body:expr } else $none:expr)*) => {$(
        /// # Safety
        /// As osip2's function of this name.
        // `()` is what a function without a result gives where there is no next definition.
        #[allow(clippy::unused_unit)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) $(-> $ret)? {
            if on() {
                // SAFETY: the caller's promise.
                #[allow(unused_unsafe)]
                return ffi::entry_value(stringify!($name), $none, || Ok(unsafe { $body }));
            }
            next_definition!("C" $name($($arg: $type),*) $(-> $ret)?, $none)
        }
    )*};
}

/// What a thread may leave by `pthread_exit` or cancellation: no guard around it, for a forced unwinding that meets a
/// `catch_unwind` ends the process. What it does before and between callbacks is guarded inside.
macro_rules! stand_in_unwinding {
    ($(fn $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? { $body:expr } else $none:expr)*) => {$(
        /// # Safety
        /// As osip2's function of this name.
        #[allow(clippy::unused_unit)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name($($arg: $type),*) $(-> $ret)? {
            if on() {
                // SAFETY: the caller's promise.
                return unsafe { $body };
            }
            next_definition!("C-unwind" $name($($arg: $type),*) $(-> $ret)?, $none)
        }
    )*};
}

stand_in! {
    fn osip_init(out: *mut *mut Osip) -> c_int { stack::init(out) } else glue::UNDEFINED_ERROR
    fn osip_release(osip: *mut Osip) { stack::release(osip) } else ()

    fn osip_transaction_init(out: *mut *mut Transaction, kind: c_int, osip: *mut Osip, request: *mut Message) -> c_int {
        transaction::init(out, kind, osip, request)
    } else glue::UNDEFINED_ERROR
    fn osip_transaction_free(tr: *mut Transaction) -> c_int { transaction::free(tr) } else glue::UNDEFINED_ERROR
    fn osip_transaction_free2(tr: *mut Transaction) -> c_int { transaction::free2(tr) } else glue::UNDEFINED_ERROR
    fn osip_transaction_add_event(tr: *mut Transaction, event: *mut Event) -> c_int {
        transaction::add_event(tr, event)
    } else glue::UNDEFINED_ERROR
    fn osip_create_transaction(osip: *mut Osip, event: *mut Event) -> *mut Transaction {
        transaction::create(osip, event)
    } else core::ptr::null_mut()

    fn osip_transaction_find(list: *mut List, event: *mut Event) -> *mut Transaction {
        stack::find(list, event)
    } else core::ptr::null_mut()
    fn __osip_find_transaction(osip: *mut Osip, event: *mut Event, consume: c_int) -> *mut Transaction {
        stack::find_event(osip, event, consume)
    } else core::ptr::null_mut()
    fn osip_find_transaction_and_add_event(osip: *mut Osip, event: *mut Event) -> c_int {
        if stack::find_event(osip, event, 1).is_null() { glue::UNDEFINED_ERROR } else { glue::SUCCESS }
    } else glue::UNDEFINED_ERROR

    fn __osip_add_ict(osip: *mut Osip, tr: *mut Transaction) -> c_int { stack::add(osip, tr, 0) } else glue::UNDEFINED_ERROR
    fn __osip_add_ist(osip: *mut Osip, tr: *mut Transaction) -> c_int { stack::add(osip, tr, 1) } else glue::UNDEFINED_ERROR
    fn __osip_add_nict(osip: *mut Osip, tr: *mut Transaction) -> c_int { stack::add(osip, tr, 2) } else glue::UNDEFINED_ERROR
    fn __osip_add_nist(osip: *mut Osip, tr: *mut Transaction) -> c_int { stack::add(osip, tr, 3) } else glue::UNDEFINED_ERROR
    fn osip_remove_transaction(osip: *mut Osip, tr: *mut Transaction) -> c_int {
        stack::remove_any(osip, tr)
    } else glue::UNDEFINED_ERROR
    fn __osip_remove_ict_transaction(osip: *mut Osip, tr: *mut Transaction) -> c_int {
        stack::remove(osip, tr, 0)
    } else glue::UNDEFINED_ERROR
    fn __osip_remove_ist_transaction(osip: *mut Osip, tr: *mut Transaction) -> c_int {
        stack::remove(osip, tr, 1)
    } else glue::UNDEFINED_ERROR
    fn __osip_remove_nict_transaction(osip: *mut Osip, tr: *mut Transaction) -> c_int {
        stack::remove(osip, tr, 2)
    } else glue::UNDEFINED_ERROR
    fn __osip_remove_nist_transaction(osip: *mut Osip, tr: *mut Transaction) -> c_int {
        stack::remove(osip, tr, 3)
    } else glue::UNDEFINED_ERROR

    fn osip_ict_lock(osip: *mut Osip) -> c_int { glue::partyline_glue_lock(osip, 0) } else glue::UNDEFINED_ERROR
    fn osip_ict_unlock(osip: *mut Osip) -> c_int { glue::partyline_glue_unlock(osip, 0) } else glue::UNDEFINED_ERROR
    fn osip_ist_lock(osip: *mut Osip) -> c_int { glue::partyline_glue_lock(osip, 1) } else glue::UNDEFINED_ERROR
    fn osip_ist_unlock(osip: *mut Osip) -> c_int { glue::partyline_glue_unlock(osip, 1) } else glue::UNDEFINED_ERROR
    fn osip_nict_lock(osip: *mut Osip) -> c_int { glue::partyline_glue_lock(osip, 2) } else glue::UNDEFINED_ERROR
    fn osip_nict_unlock(osip: *mut Osip) -> c_int { glue::partyline_glue_unlock(osip, 2) } else glue::UNDEFINED_ERROR
    fn osip_nist_lock(osip: *mut Osip) -> c_int { glue::partyline_glue_lock(osip, 3) } else glue::UNDEFINED_ERROR
    fn osip_nist_unlock(osip: *mut Osip) -> c_int { glue::partyline_glue_unlock(osip, 3) } else glue::UNDEFINED_ERROR
    fn osip_id_mutex_lock(osip: *mut Osip) -> c_int { glue::partyline_glue_lock(osip, 5) } else glue::UNDEFINED_ERROR
    fn osip_id_mutex_unlock(osip: *mut Osip) -> c_int { glue::partyline_glue_unlock(osip, 5) } else glue::UNDEFINED_ERROR

    fn osip_start_200ok_retransmissions(osip: *mut Osip, dialog: *mut Dialog, answer: *mut Message, sock: c_int) {
        resend::start_200(osip, dialog, answer, sock)
    } else ()
    fn osip_start_ack_retransmissions(
        osip: *mut Osip, dialog: *mut Dialog, ack: *mut Message, dest: *mut c_char, port: c_int, sock: c_int
    ) { resend::start_ack(osip, dialog, ack, dest, port, sock) } else ()
    fn osip_stop_200ok_retransmissions(osip: *mut Osip, ack: *mut Message) -> *mut Dialog {
        resend::stop_200(osip, ack)
    } else core::ptr::null_mut()
    fn osip_stop_retransmissions_from_dialog(osip: *mut Osip, dialog: *mut Dialog) {
        resend::stop_dialog(osip, dialog)
    } else ()

    fn osip_timers_ict_execute(osip: *mut Osip) { timers::execute(osip, 0) } else ()
    fn osip_timers_ist_execute(osip: *mut Osip) { timers::execute(osip, 1) } else ()
    fn osip_timers_nict_execute(osip: *mut Osip) { timers::execute(osip, 2) } else ()
    fn osip_timers_nist_execute(osip: *mut Osip) { timers::execute(osip, 3) } else ()
    fn osip_timers_gettimeout(osip: *mut Osip, out: *mut libc::timeval) { timers::gettimeout(osip, out) } else ()

    fn osip_list_add(list: *mut List, element: *mut c_void, at: c_int) -> c_int {{
        stack::touch(list);
        glue::partyline_list_add(list, element, at)
    }} else glue::UNDEFINED_ERROR
    fn osip_list_remove(list: *mut List, at: c_int) -> c_int {{
        stack::touch(list);
        glue::partyline_list_remove(list, at)
    }} else glue::UNDEFINED_ERROR
    fn osip_list_iterator_remove(iterator: *mut Iterator) -> *mut c_void {{
        stack::touch(glue::partyline_list_of(iterator));
        glue::partyline_list_iterator_remove(iterator)
    }} else core::ptr::null_mut()

    fn osip_fifo_init(ff: *mut Fifo) { fifo::init(ff) } else ()
    fn osip_fifo_free(ff: *mut Fifo) { fifo::free(ff) } else ()
    fn osip_fifo_add(ff: *mut Fifo, element: *mut c_void) -> c_int { fifo::add(ff, element) } else glue::UNDEFINED_ERROR
    fn osip_fifo_insert(ff: *mut Fifo, element: *mut c_void) -> c_int {
        fifo::insert(ff, element)
    } else glue::UNDEFINED_ERROR
    fn osip_fifo_size(ff: *mut Fifo) -> c_int { glue::partyline_fifo_count(ff) } else 0
    fn osip_fifo_tryget(ff: *mut Fifo) -> *mut c_void { glue::partyline_fifo_take(ff) } else core::ptr::null_mut()
}

stand_in_unwinding! {
    fn osip_ict_execute(osip: *mut Osip) -> c_int { execute::execute(osip, 0) } else glue::UNDEFINED_ERROR
    fn osip_ist_execute(osip: *mut Osip) -> c_int { execute::execute(osip, 1) } else glue::UNDEFINED_ERROR
    fn osip_nict_execute(osip: *mut Osip) -> c_int { execute::execute(osip, 2) } else glue::UNDEFINED_ERROR
    fn osip_nist_execute(osip: *mut Osip) -> c_int { execute::execute(osip, 3) } else glue::UNDEFINED_ERROR
    fn osip_fifo_get(ff: *mut Fifo) -> *mut c_void { glue::partyline_fifo_wait(ff) } else core::ptr::null_mut()
    fn osip_retransmissions_execute(osip: *mut Osip) { resend::execute(osip) } else ()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails() -> c_int {
        panic!("on purpose")
    }

    stand_in! {
        fn partyline_test_stand_in(value: c_int) -> c_int { if value > 0 { value } else { fails() } } else -7
    }

    #[test]
    fn a_panic_becomes_what_the_function_gives_where_it_fails() {
        STATE.store(1, Ordering::Relaxed);
        // SAFETY: takes a number.
        unsafe {
            assert_eq!(partyline_test_stand_in(3), 3);
            assert_eq!(partyline_test_stand_in(0), -7);
            let text = CStr::from_ptr(ffi::last_error()).to_str().unwrap();
            assert!(text.contains("partyline_test_stand_in") && text.contains("on purpose"), "{text}");
        }
    }
}
