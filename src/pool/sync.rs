//! The atomics of [`super::remote`]; its loom test puts loom's in their place.

pub use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
