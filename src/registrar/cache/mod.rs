//! The location cache: address-of-record to bindings, sharded, with ordered expiry and an explicit state per binding.
//!
//! Promises to the room: one lookup costs one hash and one shard's lock; nothing is linear in what is alive; a callback of
//! the cache runs under its shard's lock and must not come back into it. The cache knows nothing of SIP and of threads.

mod binding;
mod intern;
mod shard;

use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::utils::CachePadded;
use parking_lot::{Mutex, MutexGuard};

use crate::sip::KeyHasher;

pub(crate) use binding::Binding;
pub use binding::{BindingView, State};
pub(crate) use shard::{Levels, Policy, Removal, Shard};

/// The hash of an address-of-record: its shard, and its tag in the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    pub shard: u32,
    pub tag: u32,
}

pub(crate) struct Cache {
    hasher: KeyHasher,
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    /// All rows of the database are here: what is not found does not exist.
    complete: AtomicBool,
}

impl Cache {
    /// `shards` is rounded up to a power of two. `graves`: other servers use the same table.
    pub fn new(shards: usize, complete: bool, graves: bool) -> Cache {
        let shards = shards.clamp(1, 1 << 16).next_power_of_two();
        Cache {
            hasher: KeyHasher::new(),
            shards: (0..shards).map(|_| CachePadded::new(Mutex::new(Shard::new(graves)))).collect(),
            complete: AtomicBool::new(complete),
        }
    }

    pub fn spot(&self, aor: &[u8]) -> Spot {
        let hash = self.hasher.hash(aor);
        Spot { shard: (hash >> 32) as u32 & (self.shards.len() as u32 - 1), tag: hash as u32 }
    }

    pub fn lock(&self, shard: u32) -> MutexGuard<'_, Shard> {
        self.shards[shard as usize].lock()
    }

    pub fn shards(&self) -> u32 {
        self.shards.len() as u32
    }

    pub fn complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    pub fn set_complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// Summed over the shards, each locked for a moment: for statistics only.
    pub fn levels(&self) -> Levels {
        let mut sum = Levels::default();
        for shard in 0..self.shards() {
            let levels = self.lock(shard).levels();
            sum.records += levels.records;
            sum.bindings += levels.bindings;
            sum.dirty += levels.dirty;
        }
        sum
    }
}
