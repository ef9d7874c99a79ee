//! Engine: new, set, listen, attach, start, run, stop, free.

use std::ffi::{c_char, c_int};
use std::sync::Arc;
use std::time::Duration;

use super::registrar::{REGISTRARS, partyline_registrar};
use super::{PARTYLINE_OK, copy_out};
use crate::engine::Engine;
use crate::ffi::{self, HandleTable, Kind, entry};

/// A server: listeners, a leader/follower pool, a chain of plugins.
pub struct partyline_engine {
    _opaque: [u8; 0],
}

pub(super) static ENGINES: HandleTable<Arc<Engine>> = HandleTable::new(Kind::Engine);

pub(crate) fn engine(handle: *const partyline_engine) -> Result<Arc<Engine>, ffi::Error> {
    let engine = ENGINES.get(handle as usize)?;
    engine.check_process()?;
    Ok(engine)
}

/// Makes an engine with default options. Nothing is started and no address is taken. Free it with
/// partyline_engine_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_engine_new(engine: *mut *mut partyline_engine) -> c_int {
    entry("partyline_engine_new", || {
        // SAFETY: an out-parameter, as the comment says.
        let out = unsafe { ffi::out(engine, "engine") }?;
        out.write(ENGINES.insert(Engine::new()) as *mut partyline_engine);
        Ok(PARTYLINE_OK)
    })
}

/// Sets an option by name, before partyline_engine_start(). docs/options.md lists the names, their units and defaults.
/// PARTYLINE_ECONFIG: no such option, or a value that cannot be used; PARTYLINE_ESTATE: started already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_engine_set(
    engine: *mut partyline_engine,
    name: *const c_char,
    value: *const c_char,
) -> c_int {
    let handle = engine;
    entry("partyline_engine_set", || {
        let engine = self::engine(engine)?;
        // SAFETY: two strings that live during the call.
        let (name, value) = unsafe { (ffi::text(name, "name")?, ffi::text(value, "value")?) };
        engine.set(name, value)?;
        if name == "plugin" && !value.trim().is_empty() {
            super::module::load(handle, &engine, value.trim())?;
        }
        Ok(PARTYLINE_OK)
    })
}

/// Takes an address: "udp:127.0.0.1:5060", "tcp:[::1]:5060", "tls:127.0.0.1:5061" (the options `tls.certificate` and
/// `tls.key` first); port 0 lets the system choose. `port` receives the port, and may be NULL. Answers go over the connection that the request came on. Before partyline_engine_start(). PARTYLINE_EADDR: in use (also where another program shares the port
/// with SO_REUSEPORT), not an address of this host, or no permission.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_engine_listen(
    engine: *mut partyline_engine,
    address: *const c_char,
    port: *mut u16,
) -> c_int {
    entry("partyline_engine_listen", || {
        let engine = self::engine(engine)?;
        // SAFETY: a string that lives during the call.
        let address = unsafe { ffi::text(address, "address") }?;
        let bound = engine.listen(address)?;
        // SAFETY: NULL, or an out-parameter.
        if let Some(port) = unsafe { port.as_mut() } {
            *port = bound.port();
        }
        Ok(PARTYLINE_OK)
    })
}

/// Lets the engine answer REGISTER by itself, from `registrar`, after all plugins have passed a request on: the fast
/// path, without a call into C. The engine keeps the registrar alive; freeing the handle is still the caller's business.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_engine_attach(
    engine: *mut partyline_engine,
    registrar: *mut partyline_registrar,
) -> c_int {
    entry("partyline_engine_attach", || {
        self::engine(engine)?.attach(REGISTRARS.get(registrar as usize)?.opened()?)?;
        Ok(PARTYLINE_OK)
    })
}

/// Starts the engine's threads and returns. Signals are blocked in them: they stay the program's business.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_engine_start(engine: *mut partyline_engine) -> c_int {
    entry("partyline_engine_start", || {
        self::engine(engine)?.start()?;
        Ok(PARTYLINE_OK)
    })
}

/// Starts the engine, if it is not started yet, and waits until partyline_engine_stop() has been called by another thread
/// or by a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_engine_run(engine: *mut partyline_engine) -> c_int {
    entry("partyline_engine_run", || {
        self::engine(engine)?.run()?;
        Ok(PARTYLINE_OK)
    })
}

/// Stops the engine: takes nothing new, waits at most `drain_ms` milliseconds for what is in hand (also for answers that
/// wait for the database), ends its threads. Returns how many messages were left unanswered, or a negative code. Called
/// from a callback it only asks for the stop, and returns 0. Not for signal handlers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_engine_stop(engine: *mut partyline_engine, drain_ms: u32) -> c_int {
    entry("partyline_engine_stop", || {
        let left = self::engine(engine)?.stop(Duration::from_millis(drain_ms.into()))?;
        Ok(c_int::try_from(left).unwrap_or(c_int::MAX))
    })
}

/// Frees the engine; stops it first, without draining, if it still runs. The handle is not valid any more. NULL does
/// nothing. In a forked child it only lets go of the handle. PARTYLINE_ESTATE: called from one of its own callbacks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_engine_free(engine: *mut partyline_engine) -> c_int {
    entry("partyline_engine_free", || {
        if engine.is_null() {
            return Ok(PARTYLINE_OK);
        }
        ENGINES.get(engine as usize)?.check_caller()?;
        ENGINES.take(engine as usize)?.free();
        Ok(PARTYLINE_OK)
    })
}

/// All figures of the engine, its plugins and its registrar in Prometheus' text format (version 0.0.4), with a NUL at the
/// end. `length` (may be NULL) receives the length without the NUL. PARTYLINE_ETOOSMALL: `length` receives the capacity
/// that is needed; call with capacity 0 to ask for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_engine_metrics(
    engine: *mut partyline_engine,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> c_int {
    entry("partyline_engine_metrics", || {
        let text = self::engine(engine)?.metrics();
        // SAFETY: the buffer holds `capacity` bytes, as the comment says.
        unsafe { copy_out(text.as_bytes(), buffer, capacity, length) }
    })
}
