//! Plugins in shared objects: loaded before the start, exchanged while the engine serves; and the figures of one plugin.

use std::ffi::{c_char, c_int};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

use super::PARTYLINE_OK;
use super::engine::{engine, partyline_engine};
use super::message::TICKETS;
use super::plugin::{self, Callback, partyline_plugin, partyline_stop_callback};
use crate::engine::{Engine, Exchange, Handler, Methods, Phase, Plugin, Policy, Switch, Verdict};
use crate::ffi::{self, Code, Library, entry};

/// What a shared object exports: a `const partyline_plugin` of this name.
const DESCRIPTOR: &std::ffi::CStr = c"partyline_plugin_descriptor";

/// One version of a plugin's code. Dropped by whoever lets go of it last: the exchange, or a call that outlived it.
struct Version {
    callback: Callback,
    stop: partyline_stop_callback,
    /// Behind the callback: what is called must not be unmapped.
    _library: Library,
}

impl Drop for Version {
    fn drop(&mut self) {
        if let Some(stop) = self.stop {
            // SAFETY: the plugin's own function and pointer; no call of it runs any more, and the code is still there.
            unsafe { stop(self.callback.user) };
        }
    }
}

/// What has to stay the same from version to version, for the chain does.
#[derive(PartialEq)]
struct Shape {
    name: String,
    policy: Policy,
    phase: Phase,
    methods: Methods,
    concurrency: u32,
}

impl Shape {
    fn of(plugin: &Plugin) -> Shape {
        let Plugin { name, policy, phase, methods, concurrency, .. } = plugin;
        let (name, methods) = (name.clone(), methods.clone());
        Shape { name, policy: *policy, phase: *phase, methods, concurrency: *concurrency }
    }
}

struct Loaded {
    /// Of the engine, for the plugin's start.
    engine: usize,
    path: RwLock<String>,
    shape: Shape,
    /// Read once per call and held during it, so an exchange cannot unmap what runs.
    version: Arc<RwLock<Arc<Version>>>,
}

impl Handler for Loaded {
    fn call(&self, exchange: &mut Exchange<'_>) -> Verdict {
        let version = Arc::clone(&self.version.read());
        version.callback.call(exchange)
    }

    fn can_reload(&self) -> bool {
        true
    }

    fn reload(&self, path: Option<&str>) -> Result<Switch, ffi::Error> {
        let path = path.map_or_else(|| self.path.read().clone(), str::to_owned);
        let (plugin, version) = open(self.engine as *mut partyline_engine, &path)?;
        let shape = Shape::of(&plugin);
        if self.shape != shape {
            return Err(ffi::Error::invalid(format!(
                "{path} is another plugin than {}, or has another policy, phase, method list or concurrency: those stand \
                 fast while the engine runs",
                self.shape.name
            )));
        }
        *self.path.write() = path;
        let place = Arc::clone(&self.version);
        Ok(Box::new(move || {
            let old = std::mem::replace(&mut *place.write(), version);
            // Not under the lock: it may be the last of it, and then the plugin's stop is called.
            drop(old);
        }))
    }

    fn revoked(&self, name: usize) {
        // Finished meanwhile: then it is not in the table any more.
        let _ = TICKETS.take(name);
    }
}

/// Loads a file and calls the plugin's start.
fn open(engine: *mut partyline_engine, path: &str) -> Result<(Plugin, Arc<Version>), ffi::Error> {
    let library = Library::open_copy(path)?;
    let descriptor = library.symbol(DESCRIPTOR).ok_or_else(|| {
        ffi::Error::invalid(format!("{path} exports no {}: it is not a plugin", DESCRIPTOR.to_string_lossy()))
    })?;
    let mut found = None;
    // SAFETY: the symbol is what the header says, with strings that live as long as the library.
    let plugin = unsafe {
        plugin::read(descriptor.cast::<partyline_plugin>(), |described, callback| {
            found = Some((*described, callback));
            Ok(Box::new(Nobody))
        })
    };
    let plugin = plugin.map_err(|e| ffi::Error::new(e.code, format!("{path}: {}", e.text)))?;
    let Some((described, mut callback)) = found else {
        return Err(ffi::Error::invalid(format!("{path} could not be read")));
    };
    if let Some(start) = described.start {
        // SAFETY: the plugin's own function; `user` is a local that outlives the call.
        let said = unsafe { start(engine, &raw mut callback.user) };
        if said != 0 {
            return Err(ffi::Error::new(Code::State, format!("{path}: its start gave {said}")));
        }
    }
    Ok((plugin, Arc::new(Version { callback, stop: described.stop, _library: library })))
}

/// Stands in until the version is made.
struct Nobody;

impl Handler for Nobody {
    fn call(&self, _: &mut Exchange<'_>) -> Verdict {
        Verdict::Next
    }
}

pub(super) fn load(handle: *mut partyline_engine, engine: &Engine, path: &str) -> Result<(), ffi::Error> {
    let (mut plugin, version) = open(handle, path)?;
    let loaded = Loaded {
        engine: handle as usize,
        path: RwLock::new(path.to_owned()),
        shape: Shape::of(&plugin),
        version: Arc::new(RwLock::new(version)),
    };
    plugin.handler = Box::new(loaded);
    engine.plug(plugin)
}

/// Adds a plugin from a shared object to the engine's chain, before partyline_engine_start(): a file that exports
/// `const partyline_plugin partyline_plugin_descriptor`. It is loaded from a private copy, so the file may be replaced or
/// overwritten at any time. PARTYLINE_EIO: there is no such file, it is cut off, or the loader refused it;
/// PARTYLINE_EINVAL: it exports no descriptor, or one that partyline_plugin_register() would refuse; PARTYLINE_ESTATE: its
/// `start` refused, or the engine was started already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_plugin_load(engine: *mut partyline_engine, path: *const c_char) -> c_int {
    let handle = engine;
    entry("partyline_plugin_load", || {
        let engine = self::engine(engine)?;
        // SAFETY: a string that lives during the call.
        load(handle, &engine, unsafe { ffi::text(path, "path") }?)?;
        Ok(PARTYLINE_OK)
    })
}

/// Exchanges a loaded plugin's code while the engine serves. `path` NULL: the file that it was loaded from, as it is now.
/// The new version is loaded first; one that cannot be loaded, whose `start` refuses, or that differs in name, policy,
/// phase, methods or concurrency leaves the old one in place. Then messages for the plugin wait, running calls end (at most
/// `wait_ms` milliseconds), and what waited, and what the old version has deferred and not finished, goes to the new one;
/// no request is lost. Handles of messages that went over are not valid any more. Returns how many calls still run in the
/// old code: it stays until the last of them has ended. PARTYLINE_ENOTFOUND: no such plugin. PARTYLINE_ESTATE: it was
/// registered by the program, the engine does not run, or called on a thread of PARTYLINE_GROUP_IO (all callbacks are).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_plugin_reload(
    engine: *mut partyline_engine,
    name: *const c_char,
    path: *const c_char,
    wait_ms: u32,
) -> c_int {
    entry("partyline_plugin_reload", || {
        let engine = self::engine(engine)?;
        // SAFETY: strings that live during the call.
        let (name, path) =
            unsafe { (ffi::text(name, "name")?, if path.is_null() { None } else { Some(ffi::text(path, "path")?) }) };
        let running = engine.reload(name, path, Duration::from_millis(wait_ms.into()))?;
        Ok(c_int::try_from(running).unwrap_or(c_int::MAX))
    })
}

/// Figures of one plugin. Set `size` before the call; a later library may know a longer struct and fills only what `size`
/// covers. Times are in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct partyline_plugin_stats {
    /// sizeof(partyline_plugin_stats), set by the caller.
    pub size: usize,
    /// 1, set by the library.
    pub version: u32,
    /// 1: more than one call in a hundred takes longer than `threads.takeover`, so it is called on other threads only.
    pub blocks: u32,
    /// Calls so far, and calls that run now.
    pub calls: u64,
    pub running: u64,
    /// Messages that wait for their turn, and messages that were refused because too many did.
    pub queued: u64,
    pub refused: u64,
    /// Calls that took longer than the deadline, those that still run included; the longest of those that have ended.
    pub overdue: u64,
    pub longest_ns: u64,
    /// How long messages waited, of those that had to.
    pub wait_p50_ns: u64,
    pub wait_p99_ns: u64,
    /// How long calls ran.
    pub run_p50_ns: u64,
    pub run_p99_ns: u64,
    /// How often leadership changed hands for its calls: given away before one, or taken while one blocked.
    pub promotions: u64,
}

/// Fills `stats`, whose `size` the caller has set. PARTYLINE_ENOTFOUND: no such plugin; PARTYLINE_ESTATE: the engine is not
/// started yet; PARTYLINE_EINVAL: a size smaller than the first three fields.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_plugin_stats_get(
    engine: *mut partyline_engine,
    name: *const c_char,
    stats: *mut partyline_plugin_stats,
) -> c_int {
    entry("partyline_plugin_stats_get", || {
        let engine = self::engine(engine)?;
        // SAFETY: a string that lives during the call.
        let name = unsafe { ffi::text(name, "name") }?;
        if stats.is_null() {
            return Err(ffi::Error::invalid("stats is NULL"));
        }
        // SAFETY: not NULL, and `size` is set by the caller.
        let size = unsafe { (*stats).size };
        if size < std::mem::offset_of!(partyline_plugin_stats, calls) || size > 65_536 {
            return Err(ffi::Error::invalid(format!("stats.size is {size}: set it to sizeof(partyline_plugin_stats)")));
        }
        let f = engine.plugin_figures(name)?;
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let filled = partyline_plugin_stats {
            size: size.min(size_of::<partyline_plugin_stats>()),
            version: 1,
            blocks: u32::from(f.blocks),
            calls: f.calls,
            running: f.running,
            queued: f.queued,
            refused: f.refused,
            overdue: f.overdue,
            longest_ns: nanos(f.longest),
            wait_p50_ns: nanos(f.wait[0]),
            wait_p99_ns: nanos(f.wait[1]),
            run_p50_ns: nanos(f.run[0]),
            run_p99_ns: nanos(f.run[1]),
            promotions: f.promotions,
        };
        // SAFETY: the caller's struct has `size` bytes, and no more than that and our own struct's size are copied.
        unsafe {
            std::ptr::copy_nonoverlapping((&raw const filled).cast::<u8>(), stats.cast::<u8>(), filled.size);
        }
        Ok(PARTYLINE_OK)
    })
}
