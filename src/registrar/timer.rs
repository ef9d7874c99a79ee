//! What happens by the clock: bindings expire, and who has waited too long for the database is told so.

use std::time::{Duration, Instant};

use super::Shared;
use super::cache::Policy;
use super::store::{Kind, StoreError};

/// Records looked at under one hold of a shard's lock.
const BUDGET: usize = 64;

impl<W: Send + 'static> Shared<W> {
    pub(super) fn run_timer(&self) {
        // Late by a quarter of the timeout at most, and by no more than a second.
        let period = (self.options.commit_timeout / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
        let mut expired_at = 0;
        while !self.pause(period) {
            self.time_out();
            let now = (self.clock)();
            if now != expired_at {
                expired_at = now;
                self.expire(now);
            }
        }
    }

    /// Removes what has expired by `now`; the number of bindings.
    pub(super) fn expire(&self, now: u32) -> usize {
        // Nobody waits for the deletion of what expired, so in write_through too the writer fetches it.
        // Where other servers write too, the row may be another's by now: the sweeper looks at the row itself.
        let never = self.policy() == Policy::Never || self.options.store.shared;
        let policy = if never { Policy::Never } else { Policy::Later };
        let mut sum = 0;
        for index in 0..self.cache.shards() {
            loop {
                let mut shard = self.cache.lock(index);
                let (expired, more) =
                    shard.expire(now, BUDGET, policy, &mut |shard, slot| self.settle(shard, slot, index));
                sum += expired;
                if !more {
                    shard.trim(BUDGET, self.keep(), &self.durable(index));
                    break;
                }
            }
        }
        self.counters.expired.add(sum as u64);
        sum
    }

    fn time_out(&self) {
        let now = Instant::now();
        let error = StoreError::new(Kind::Timeout, "the database did not answer in time");
        let mut waiters = Vec::new();
        for partition in &self.partitions {
            partition.time_out(now, &mut waiters);
        }
        if !waiters.is_empty() {
            self.counters.timeouts.add(waiters.len() as u64);
            self.sink.committed(&mut waiters, Err(&error));
        }
        let mut loads = Vec::new();
        self.loader.time_out(now, &mut loads);
        if !loads.is_empty() {
            self.counters.timeouts.add(loads.len() as u64);
            self.tell_loaded(&mut loads, Err(&error));
        }
    }
}
