//! Plugins: C callbacks in the engine's chain. Those in shared objects: `module`.

use std::ffi::{c_char, c_int, c_void};

use super::PARTYLINE_OK;
use super::engine::{engine, partyline_engine};
use super::message::{self, partyline_message};
use crate::engine::{Exchange, Handler, Methods, Phase, Plugin, Policy, Verdict};
use crate::ffi::{self, entry};

/// The plugin passes the message on to the next one.
pub const PARTYLINE_NEXT: c_int = 0;
/// The plugin is done with the message: it has answered it, or does not want it answered.
pub const PARTYLINE_DONE: c_int = 1;
/// The plugin finishes the message later: it holds a message of partyline_message_defer(), or a function of the library
/// returned PARTYLINE_PENDING and the callback hands that on.
pub const PARTYLINE_PENDING: c_int = 2;

/// One call at a time, in order of arrival. The default, safe for legacy code.
pub const PARTYLINE_SERIAL: c_int = 0;
/// One call at a time per Call-ID.
pub const PARTYLINE_KEYED_CALL_ID: c_int = 1;
/// One call at a time per address-of-record (To of REGISTER, else the request URI).
pub const PARTYLINE_KEYED_AOR: c_int = 2;
/// Any number of calls at once.
pub const PARTYLINE_PARALLEL: c_int = 3;

/// Phases of the chain; within a phase plugins are called in order of registration.
pub const PARTYLINE_FIRST: c_int = 0;
/// The middle of the chain.
pub const PARTYLINE_NORMAL: c_int = 1;
/// After all others, before the engine's own registrar.
pub const PARTYLINE_LAST: c_int = 2;

/// Looks at a message, and returns PARTYLINE_NEXT, PARTYLINE_DONE or PARTYLINE_PENDING; anything else counts as
/// PARTYLINE_DONE and is reported in the log. A request that nobody answers gets 501 at the end of the chain.
pub type partyline_callback = Option<unsafe extern "C" fn(user: *mut c_void, message: *mut partyline_message) -> c_int>;

/// Called once for a plugin from a shared object, before its first message: `*user` is the plugin's `user` and may be set.
/// Anything but 0 refuses the plugin (on a reload: the old version goes on).
pub type partyline_start_callback =
    Option<unsafe extern "C" fn(engine: *mut partyline_engine, user: *mut *mut c_void) -> c_int>;
/// Called once for a plugin from a shared object when its last call has ended, before its code is unmapped: it ends the
/// plugin's own threads and cancels its timers.
pub type partyline_stop_callback = Option<unsafe extern "C" fn(user: *mut c_void)>;

/// What a plugin is. Set all to zero first, then `size`; fields that a later version adds are then zero.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct partyline_plugin {
    /// sizeof(partyline_plugin).
    pub size: usize,
    /// 1.
    pub version: u32,
    /// PARTYLINE_SERIAL and so on.
    pub policy: c_int,
    /// PARTYLINE_FIRST and so on.
    pub phase: c_int,
    /// The plugin's name, for the log and the statistics; copied.
    pub name: *const c_char,
    /// The methods that it wants to see, separated by commas, "REGISTER,OPTIONS"; all but these: "!REGISTER"; NULL: all.
    /// Responses are seen as their CSeq says. Copied.
    pub methods: *const c_char,
    pub callback: partyline_callback,
    /// Passed to the callback. It has to live until partyline_engine_free().
    pub user: *mut c_void,
    /// A call longer than this many milliseconds is named in the log; 0: the engine's `watchdog` option.
    pub deadline_ms: u32,
    /// Most calls at once (PARTYLINE_PARALLEL and keyed); 0: no bound but the number of threads.
    pub concurrency: u32,
    /// For a shared object; may be NULL.
    pub start: partyline_start_callback,
    /// For a shared object; may be NULL.
    pub stop: partyline_stop_callback,
}

/// The struct before `start` was added; programs that were compiled then go on.
const FIRST_SIZE: usize = std::mem::offset_of!(partyline_plugin, start);

pub(super) struct Callback {
    pub function: unsafe extern "C" fn(*mut c_void, *mut partyline_message) -> c_int,
    pub user: *mut c_void,
}

// SAFETY: the pointer is never used here, only handed back to the caller's function, which the header says may be called
// on any of the engine's threads, by the policy that the caller chose.
unsafe impl Send for Callback {}
// SAFETY: as for Send.
unsafe impl Sync for Callback {}

impl Handler for Callback {
    fn call(&self, exchange: &mut Exchange<'_>) -> Verdict {
        // SAFETY: the function was given with its user pointer by the caller of partyline_plugin_register(), with this
        // signature; the message is a token that is looked up again when it comes back.
        let code = message::lend(exchange, |message| unsafe { (self.function)(self.user, message) });
        match code {
            PARTYLINE_NEXT => Verdict::Next,
            PARTYLINE_DONE => Verdict::Done,
            PARTYLINE_PENDING => Verdict::Pending,
            other => {
                tracing::warn!(code = other, "a plugin returned a code that is none of NEXT, DONE, PENDING");
                Verdict::Done
            }
        }
    }
}

/// Reads a description and makes a plugin of it, with the handler that `handler` makes of its function.
///
/// # Safety
/// `plugin` is NULL or points to a struct of its own `size`, with strings that live during the call.
pub(super) unsafe fn read(
    plugin: *const partyline_plugin,
    handler: impl FnOnce(&partyline_plugin, Callback) -> Result<Box<dyn Handler>, ffi::Error>,
) -> Result<Plugin, ffi::Error> {
    if plugin.is_null() {
        return Err(ffi::Error::invalid("plugin is NULL"));
    }
    // SAFETY: not NULL, and its first field can be read whatever the version.
    let size = unsafe { (*plugin).size };
    let known = size_of::<partyline_plugin>();
    if size != known && size != FIRST_SIZE {
        return Err(ffi::Error::invalid(format!("plugin.size is {size}, this library knows {known}")));
    }
    let mut copy = std::mem::MaybeUninit::<partyline_plugin>::zeroed();
    // SAFETY: it has `size` bytes, by the caller's contract, and the copy has as many or more. Its fields are numbers and
    // pointers, for which zero is a value.
    let plugin = unsafe {
        std::ptr::copy_nonoverlapping(plugin.cast::<u8>(), copy.as_mut_ptr().cast(), size);
        copy.assume_init()
    };
    if plugin.version != 1 {
        return Err(ffi::Error::invalid(format!("plugin.version is {}, this library knows 1", plugin.version)));
    }
    // SAFETY: strings that live during the call.
    let name = unsafe { ffi::text(plugin.name, "plugin.name") }?;
    let methods = if plugin.methods.is_null() {
        Methods::all()
    } else {
        // SAFETY: as above.
        Methods::parse(unsafe { ffi::text(plugin.methods, "plugin.methods") }?)?
    };
    let policy = match plugin.policy {
        PARTYLINE_SERIAL => Policy::Serial,
        PARTYLINE_KEYED_CALL_ID => Policy::KeyedByCallId,
        PARTYLINE_KEYED_AOR => Policy::KeyedByAor,
        PARTYLINE_PARALLEL => Policy::Parallel,
        other => return Err(ffi::Error::invalid(format!("plugin.policy is {other}"))),
    };
    let phase = match plugin.phase {
        PARTYLINE_FIRST => Phase::First,
        PARTYLINE_NORMAL => Phase::Normal,
        PARTYLINE_LAST => Phase::Last,
        other => return Err(ffi::Error::invalid(format!("plugin.phase is {other}"))),
    };
    let function = plugin.callback.ok_or_else(|| ffi::Error::invalid("plugin.callback is NULL"))?;
    Ok(Plugin {
        name: name.to_owned(),
        policy,
        phase,
        methods,
        deadline_ms: plugin.deadline_ms,
        concurrency: plugin.concurrency,
        handler: handler(&plugin, Callback { function, user: plugin.user })?,
    })
}

/// Adds a plugin to the engine's chain, before partyline_engine_start(). The struct is copied.
/// PARTYLINE_EINVAL: a size or version that is not known, no name, no callback, an unknown policy, phase or method list, or
/// `start` or `stop`, which are for shared objects.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_plugin_register(
    engine: *mut partyline_engine,
    plugin: *const partyline_plugin,
) -> c_int {
    entry("partyline_plugin_register", || {
        let engine = self::engine(engine)?;
        // SAFETY: the caller's struct, as the comment says.
        let plugin = unsafe {
            read(plugin, |described, callback| {
                if described.start.is_some() || described.stop.is_some() {
                    return Err(ffi::Error::invalid("plugin.start and plugin.stop are for shared objects"));
                }
                Ok(Box::new(callback))
            })
        }?;
        engine.plug(plugin)?;
        Ok(PARTYLINE_OK)
    })
}
