//! The memory pool: size classes, spans, a heap per thread, statistics.
//!
//! It promises to the rooms above it:
//! * [`malloc`], [`free`], [`realloc`], [`calloc`] mean what libc's mean; blocks of libc may be given to them and are
//!   passed on. Any thread may free any block, at any time in its life.
//! * No lock and no atomic read-modify-write on the local path; one compare-exchange per batch across threads.
//! * Nothing here unwinds, logs, or allocates elsewhere than from the system. Corruption that is found ends the program
//!   with a line on stderr.
//!
//! | file | concept |
//! |---|---|
//! | [`front`] | the calls | |
//! | [`heap`] | what a thread allocates from |
//! | [`span`] | blocks of one class; encoded links |
//! | [`runs`] | blocks between 8 and 256 KiB |
//! | [`remote`] | everything that threads do to each other |
//! | [`pages`], [`range`], [`os`] | runs of slices, the reserved range, the system |
//! | [`start`], [`tls`] | start, modes, thread exit, fork; the thread's heap pointer |
//! | [`watch`], [`guarded`], [`misuse`] | `checked` and `leaks` modes; reports |
//! | [`stats`] | what it did and holds |

pub mod classes;
#[macro_use]
pub mod os;
pub mod front;
mod guarded;
mod heap;
mod marks;
mod misuse;
pub mod next;
mod outbox;
mod pages;
#[cfg(test)]
mod planted;
mod range;
mod remote;
mod runs;
mod span;
pub mod start;
pub mod stats;
mod sync;
mod tls;
pub mod watch;

pub use front::{PoolAlloc, calloc, free, malloc, realloc, trim, usable_size};
pub use range::offset_of;
pub use stats::{ClassStats, Stats, set_limit};
