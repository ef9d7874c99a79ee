//! Figures of an engine as a struct, for programs; partyline_engine_metrics() has the same as text.

use std::ffi::c_int;

use super::PARTYLINE_OK;
use super::engine::{engine, partyline_engine};
use crate::ffi::{self, entry};

/// Counts since the engine was made. Set `size` before the call; a later library may know a longer struct and fills only
/// what `size` covers.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct partyline_stats {
    /// sizeof(partyline_stats), set by the caller.
    pub size: usize,
    /// 1, set by the library.
    pub version: u32,
    /// Threads of the engine now.
    pub threads: u32,
    /// Messages received.
    pub received: u64,
    /// Messages sent.
    pub sent: u64,
    /// Requests that got a final answer.
    pub answered: u64,
    /// Datagrams dropped without an answer: not SIP, cut off, too large, or nobody to answer to.
    pub dropped: u64,
    /// Requests answered with 400 because they could not be understood.
    pub malformed: u64,
    /// Answers that could not be sent.
    pub send_errors: u64,
    /// Requests refused with 503 because a bound was reached.
    pub overload: u64,
    /// Messages deferred by plugins and not finished yet.
    pub deferred: u64,
    /// How often leadership changed hands: given away by a leader that had something to handle, or taken while it was
    /// blocked.
    pub promotions: u64,
    /// Calls of plugins.
    pub plugin_calls: u64,
    /// Bindings in the registrar's cache.
    pub bindings: u64,
    /// Look-ups that the cache answered, and that it could not.
    pub cache_hits: u64,
    pub cache_misses: u64,
    /// SELECT statements sent to the database since the registrar was opened.
    pub selects: u64,
    /// Rows written and transactions committed.
    pub rows_written: u64,
    pub commits: u64,
    /// Statements that failed.
    pub database_errors: u64,
}

/// Fills `stats`, whose `size` the caller has set. PARTYLINE_EINVAL: a size smaller than the first two fields.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_stats_get(engine: *mut partyline_engine, stats: *mut partyline_stats) -> c_int {
    entry("partyline_stats_get", || {
        let engine = self::engine(engine)?;
        if stats.is_null() {
            return Err(ffi::Error::invalid("stats is NULL"));
        }
        // SAFETY: not NULL, and `size` is set by the caller.
        let size = unsafe { (*stats).size };
        let least = std::mem::offset_of!(partyline_stats, received);
        if size < least || size > 65_536 {
            return Err(ffi::Error::invalid(format!("stats.size is {size}: set it to sizeof(partyline_stats)")));
        }
        let f = engine.figures();
        let filled = partyline_stats {
            size: size.min(size_of::<partyline_stats>()),
            version: 1,
            threads: f.threads,
            received: f.received,
            sent: f.sent,
            answered: f.answered,
            dropped: f.dropped,
            malformed: f.malformed,
            send_errors: f.send_errors,
            overload: f.overload,
            deferred: f.deferred,
            promotions: f.promotions,
            plugin_calls: f.plugin_calls,
            bindings: f.bindings,
            cache_hits: f.cache_hits,
            cache_misses: f.cache_misses,
            selects: f.selects,
            rows_written: f.rows_written,
            commits: f.commits,
            database_errors: f.database_errors,
        };
        // SAFETY: the caller's struct has `size` bytes, and no more than that and our own struct's size are copied.
        unsafe {
            std::ptr::copy_nonoverlapping((&raw const filled).cast::<u8>(), stats.cast::<u8>(), filled.size);
        }
        Ok(PARTYLINE_OK)
    })
}
