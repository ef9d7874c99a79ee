//! Symbols that stand in for osip2's.
//!
//! Every exported name is a Rust function: what C glue defines does not leave a cdylib. References to osip2 are weak
//! and stand in the glue.
//!
//! | file | holds |
//! |---|---|
//! | [`memory`], `interpose` | osip2's allocators, libc's `free` |
//! | `exports` | the names of the transaction layer and the fifo, and whether they are in use |
//! | `stack`, `lane`, `side` | per `osip_t`, per list, per transaction |
//! | `execute`, `timers`, `transaction`, `fifo` | what the names do |
//! | `resend` | the retransmissions of 200 and ACK |
//! | `audit` | what programs write themselves |
//! | `heap`, `queue`, `deadlines` | ready and deadline order |
//! | `slab` | memory of which most stays untouched |
//! | `glue` and `glue_*.c` | osip2's structs |

#[cfg(osip2)]
mod audit;
#[cfg(osip2)]
mod deadlines;
#[cfg(osip2)]
mod execute;
#[cfg(osip2)]
pub mod exports;
#[cfg(osip2)]
mod fifo;
#[cfg(osip2)]
mod glue;
#[cfg(osip2)]
mod heap;
#[cfg(feature = "interpose-libc")]
mod interpose;
#[cfg(osip2)]
mod lane;
pub mod memory;
#[cfg(osip2)]
mod queue;
pub mod report;
#[cfg(osip2)]
mod resend;
#[cfg(osip2)]
mod side;
#[cfg(osip2)]
mod slab;
#[cfg(osip2)]
mod stack;
#[cfg(osip2)]
mod timers;
#[cfg(osip2)]
mod transaction;
