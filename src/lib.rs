//! Partyline: a memory pool, a leader/follower scheduler, an epoll/IOCP transport, a transaction engine and a cached
//! registrar for C SIP servers on osip2. C programs use it through `include/partyline.h` or by preloading.
//!
//! The rooms, from the ground up. A room may use only the rooms above it in this table; `tests/rooms.rs` reads the
//! `use` lines and fails when one looks down.
//!
//! | room | holds | knows nothing of |
//! |---|---|---|
//! | [`observe`] | counters, histograms, Prometheus text, the log ring | everything else |
//! | [`ffi`] | the entry guard, handles, error codes, last error | what the functions do |
//! | [`pool`] | size classes, spans, per-thread heaps, statistics | SIP, threads' purpose |
//! | [`sched`] | leader/follower pool, strands, timers, posted events | sockets, SIP |
//! | [`net`] | listeners, UDP batches; one OS contract, one file per OS | SIP beyond framing, registrar |
//! | [`sip`] | zero-copy message view, URI comparison, response writer, digest | sockets, storage |
//! | [`registrar`] | RFC 3261 section 10, location cache, authentication, stores | sockets, C |
//! | [`engine`] | a running server built out of the rooms above | C types |
//! | [`capi`] | the `partyline_*` functions | |
//! | [`osip`] | symbols that stand in for osip2's | partysip |
//! | [`partysip`] | symbols that stand in for partysip's | |

pub mod observe;
#[macro_use]
pub mod ffi;
pub mod capi;
pub mod engine;
pub mod net;
pub mod osip;
#[cfg(target_os = "linux")]
pub mod partysip;
pub mod pool;
pub mod registrar;
pub mod sched;
pub mod sip;

/// In libpartyline.so what Rust allocates comes from the pool as well; a Rust program chooses its allocator itself.
#[cfg(feature = "interpose-libc")]
#[global_allocator]
static ALLOCATOR: pool::PoolAlloc = pool::PoolAlloc;
