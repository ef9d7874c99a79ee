//! (room ffi)

pub mod thread;
