//! Posted events and timers.

use std::ffi::{c_int, c_void};

use super::PARTYLINE_OK;
use super::engine::{engine, partyline_engine};
use crate::engine::{Event, Group};
use crate::ffi::{self, entry};

/// The threads that serve the sockets. What runs here should be short.
pub const PARTYLINE_GROUP_IO: c_int = 0;
/// Threads for work that may block.
pub const PARTYLINE_GROUP_WORKER: c_int = 1;

/// One thread for what has time: writing records, say.
pub const PARTYLINE_GROUP_LOG: c_int = 2;

/// What runs on a thread of a group.
pub type partyline_function = Option<unsafe extern "C" fn(user: *mut c_void)>;

struct Call {
    function: unsafe extern "C" fn(*mut c_void),
    user: *mut c_void,
}

// SAFETY: the pointer is only handed back to the caller's function, which the header says runs on another thread.
unsafe impl Send for Call {}
// SAFETY: as for Send.
unsafe impl Sync for Call {}

impl Call {
    fn run(&self) {
        // SAFETY: function and pointer belong together and were given for this.
        unsafe { (self.function)(self.user) }
    }
}

fn event(function: partyline_function, user: *mut c_void) -> Result<Event, ffi::Error> {
    let function = function.ok_or_else(|| ffi::Error::invalid("function is NULL"))?;
    let call = Call { function, user };
    Ok(Box::new(move || call.run()))
}

fn group(group: c_int) -> Result<Group, ffi::Error> {
    match group {
        PARTYLINE_GROUP_IO => Ok(Group::Io),
        PARTYLINE_GROUP_WORKER => Ok(Group::Worker),
        PARTYLINE_GROUP_LOG => Ok(Group::Log),
        other => Err(ffi::Error::invalid(format!("there is no thread group {other}"))),
    }
}

/// Runs `function(user)` once on a thread of the group. Any thread may post, callbacks too; the call does not wait. Events
/// of one poster for one group start in the order of posting, and may then run at the same time on several threads.
/// PARTYLINE_EFULL: as many events wait as the option `queue_limit` allows. PARTYLINE_ESTATE: the engine does not run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_post(
    engine: *mut partyline_engine,
    group: c_int,
    function: partyline_function,
    user: *mut c_void,
) -> c_int {
    entry("partyline_post", || {
        self::engine(engine)?.post(self::group(group)?, event(function, user)?)?;
        Ok(PARTYLINE_OK)
    })
}

/// Calls `function(user)` on a thread of the group after `delay_ms` milliseconds, and then every `period_ms`
/// milliseconds (0: only once). A period's call is skipped while the one before still runs. `timer` receives a number,
/// never 0, for partyline_timer_cancel(); it may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_timer_start(
    engine: *mut partyline_engine,
    group: c_int,
    delay_ms: u32,
    period_ms: u32,
    function: partyline_function,
    user: *mut c_void,
    timer: *mut u64,
) -> c_int {
    entry("partyline_timer_start", || {
        let function = function.ok_or_else(|| ffi::Error::invalid("function is NULL"))?;
        let call = Call { function, user };
        let id = self::engine(engine)?.start_timer(
            self::group(group)?,
            delay_ms,
            period_ms,
            std::sync::Arc::new(move || call.run()),
        )?;
        // SAFETY: NULL, or an out-parameter.
        if let Some(timer) = unsafe { timer.as_mut() } {
            *timer = id;
        }
        Ok(PARTYLINE_OK)
    })
}

/// Cancels a timer: when this returns 0 its function will not start again, but it may still run on another thread. Waits
/// for nothing. PARTYLINE_ENOTFOUND: it has fired its last time already, was cancelled, or never was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_timer_cancel(engine: *mut partyline_engine, timer: u64) -> c_int {
    entry("partyline_timer_cancel", || {
        self::engine(engine)?.cancel_timer(timer)?;
        Ok(PARTYLINE_OK)
    })
}
