//! Symbols that stand in for osip2's.
//!
//! Every exported name is a Rust function: what C glue defines does not leave a cdylib. References to osip2 are weak
//! and stand in the glue.

#[cfg(feature = "interpose-libc")]
mod interpose;
pub mod memory;
pub mod report;
