//! (room ffi)
