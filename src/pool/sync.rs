//! The atomics of [`super::remote`]; its loom test puts loom's in their place.

pub use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Between a store and a load of sequentially consistent order nothing is needed; loom knows such an order of fences only
/// and puts one here.
#[inline(always)]
pub fn store_before_load() {}
