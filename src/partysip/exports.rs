//! The C functions that libpartyline_partysip.a and the plugins call; `psp.h` declares them and says what they promise.
//!
//! Handles are addresses of counted objects: the archive is the only caller, and frees each once.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::AtomicU64;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;

use super::crew::{self, Hook, ReadyFunction, Strands, Turn, TurnFunction};
use super::live::Live;
use super::{counts, register, transport};
use crate::capi::engine::{engine, partyline_engine};
use crate::capi::registrar::{opened, partyline_registrar};
use crate::ffi::{Error, entry, entry_value};

static LIVE: Mutex<Option<Live>> = Mutex::new(None);

fn with_live<R>(body: impl FnOnce(&mut Live) -> R) -> R {
    body(LIVE.lock().get_or_insert_with(Live::default))
}

/// # Safety
/// See `psp.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_psp_start(
    names: *const *const c_char,
    values: *const AtomicU64,
    count: usize,
) -> c_int {
    entry("partyline_psp_start", || {
        // SAFETY: the caller's promise.
        unsafe { counts::set_table(names, values, count) };
        crew::start().map_err(|e| Error::invalid(format!("no threads for partysip's loops: {e}")))?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn partyline_psp_stop() {
    crew::stop();
}

/// # Safety
/// See `psp.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_psp_turn_new(run: TurnFunction, arg: *mut c_void) -> *const c_void {
    let turn = crew::current().map(|crew| crew.turn(run, arg));
    turn.map_or(core::ptr::null(), |turn| Arc::into_raw(turn).cast())
}

/// # Safety
/// See `psp.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_psp_turn_wake(turn: *const c_void) {
    if let (false, Some(crew)) = (turn.is_null(), crew::current()) {
        // SAFETY: made by `partyline_psp_turn_new` and not freed; the count is not touched.
        let turn = unsafe { core::mem::ManuallyDrop::new(Arc::from_raw(turn.cast::<Turn>())) };
        crew.wake(&turn);
    }
}

/// # Safety
/// See `psp.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_psp_turn_stop(turn: *const c_void) {
    if let (false, Some(crew)) = (turn.is_null(), crew::current()) {
        // SAFETY: made by `partyline_psp_turn_new` and not freed; the count is not touched.
        let turn = unsafe { core::mem::ManuallyDrop::new(Arc::from_raw(turn.cast::<Turn>())) };
        crew.forget(&turn);
    }
}

/// # Safety
/// See `psp.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_psp_turn_free(turn: *const c_void) {
    if !turn.is_null() {
        // SAFETY: as for `partyline_psp_turn_stop`; freed once.
        unsafe {
            partyline_psp_turn_stop(turn);
            drop(Arc::from_raw(turn.cast::<Turn>()));
        }
    }
}

/// # Safety
/// See `psp.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_psp_watch(fd: c_int, ready: ReadyFunction, arg: *mut c_void) -> c_int {
    entry("partyline_psp_watch", || {
        let crew = crew::current().ok_or_else(|| Error::invalid("the loops are not started"))?;
        crew.watch(fd, ready, arg).map_err(|e| Error::invalid(format!("descriptor {fd} cannot be watched: {e}")))?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn partyline_psp_unwatch(fd: c_int) {
    if let Some(crew) = crew::current() {
        crew.unwatch(fd);
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn partyline_psp_strands_new(keyed: c_int) -> *const c_void {
    Arc::into_raw(Strands::new(keyed != 0)).cast()
}

/// # Safety
/// See `psp.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_psp_strands_run(
    strands: *const c_void,
    key: u64,
    hook: Hook,
    arg: *mut c_void,
) -> c_int {
    // SAFETY: made by `partyline_psp_strands_new` and not freed; the count is not touched.
    let strands = unsafe { core::mem::ManuallyDrop::new(Arc::from_raw(strands.cast::<Strands>())) };
    match crew::current() {
        Some(crew) if crew.run_on(&strands, key, hook, arg) => 0,
        _ => -1,
    }
}

/// # Safety
/// See `psp.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_psp_strands_free(strands: *const c_void) {
    if !strands.is_null() {
        // SAFETY: made by `partyline_psp_strands_new`; freed once.
        drop(unsafe { Arc::from_raw(strands.cast::<Strands>()) });
    }
}

/// # Safety
/// `transactions` holds `count` addresses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_psp_live_put(
    request: usize,
    transactions: *const usize,
    count: usize,
    deadline: i64,
    waits: c_int,
    key: u64,
) {
    // SAFETY: the caller's promise.
    let transactions = if count == 0 { &[] } else { unsafe { core::slice::from_raw_parts(transactions, count) } };
    let deadline = if deadline < 0 { i64::MAX } else { deadline };
    with_live(|live| live.put(request, transactions, deadline, waits != 0, key));
}

#[unsafe(no_mangle)]
pub extern "C" fn partyline_psp_live_drop(request: usize) {
    with_live(|live| live.drop(request));
}

#[unsafe(no_mangle)]
pub extern "C" fn partyline_psp_live_changed(transaction: usize) -> c_int {
    with_live(|live| live.changed(transaction)).into()
}

#[unsafe(no_mangle)]
pub extern "C" fn partyline_psp_live_mark(request: usize) {
    with_live(|live| if request == 0 { live.mark_waiting() } else { live.mark(request) });
}

#[unsafe(no_mangle)]
pub extern "C" fn partyline_psp_live_find(key: u64, n: usize) -> usize {
    with_live(|live| live.find(key, n)).unwrap_or(0)
}

#[unsafe(no_mangle)]
pub extern "C" fn partyline_psp_live_next(now: i64) -> usize {
    with_live(|live| live.next(now)).unwrap_or(0)
}

#[unsafe(no_mangle)]
pub extern "C" fn partyline_psp_live_deadline() -> i64 {
    with_live(|live| live.deadline()).unwrap_or(-1)
}

#[unsafe(no_mangle)]
pub extern "C" fn partyline_psp_live_clear() {
    *LIVE.lock() = None;
}

#[unsafe(no_mangle)]
pub extern "C" fn partyline_psp_collect(on: c_int) {
    if on != 0 { transport::begin() } else { transport::end() }
}

/// # Safety
/// `address` is 4 or 16 bytes (`family` 4 or 6), `bytes` holds `length`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_psp_send(
    handle: *mut partyline_engine,
    family: c_int,
    address: *const u8,
    port: u16,
    bytes: *const u8,
    length: usize,
) -> c_int {
    entry("partyline_psp_send", || {
        let engine = engine(handle)?;
        // SAFETY: the caller's promise.
        let (peer, bytes) = unsafe {
            let ip = match family {
                4 => Ipv4Addr::from(*address.cast::<[u8; 4]>()).into(),
                _ => Ipv6Addr::from(*address.cast::<[u8; 16]>()).into(),
            };
            (SocketAddr::new(ip, port), core::slice::from_raw_parts(bytes, length))
        };
        transport::send(&engine, peer, bytes)?;
        Ok(0)
    })
}

/// # Safety
/// `text` holds `length` bytes; `address` is NULL or a C string; `headers` holds `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_psp_register(
    registrar: *mut partyline_registrar,
    text: *const u8,
    length: usize,
    address: *const c_char,
    port: u16,
    headers: *mut c_char,
    capacity: usize,
) -> c_int {
    entry("partyline_psp_register", || {
        let registrar = opened(registrar)?;
        // SAFETY: the caller's promise.
        let (mut text, address) = unsafe {
            let address = if address.is_null() { None } else { CStr::from_ptr(address).to_str().ok() };
            (core::slice::from_raw_parts(text, length).to_vec(), address)
        };
        let source = address.and_then(|text| text.parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, port));
        let mut lines = Vec::new();
        let status = register::register(&registrar, &mut text, source, &mut lines);
        if lines.len() >= capacity {
            lines.clear();
        }
        if capacity > 0 {
            // SAFETY: as above; shorter than the capacity.
            unsafe {
                core::ptr::copy_nonoverlapping(lines.as_ptr(), headers.cast::<u8>(), lines.len());
                headers.add(lines.len()).write(0);
            }
        }
        Ok(status.into())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn partyline_psp_clock() -> i64 {
    entry_value("partyline_psp_clock", -1, || Ok(crew::now()))
}
