//! When to look at a connection next. A hashed timing wheel (Varghese and Lauck 1987, scheme 6) that is lazy: a
//! connection stands in it once, at the earliest time at which something may be due; a deadline that moves away costs
//! nothing, for the visit finds it and puts the connection further on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::table::ConnId;

/// How late a limit may be noticed.
pub(super) const TICK: Duration = Duration::from_millis(100);
const BUCKETS: u64 = 512;

pub(super) struct Wheel {
    start: Instant,
    buckets: Mutex<Buckets>,
}

struct Buckets {
    // The first tick that has not been visited.
    next: u64,
    rings: Vec<Vec<ConnId>>,
}

impl Wheel {
    pub(super) fn new(start: Instant) -> Self {
        let rings = (0..BUCKETS).map(|_| Vec::new()).collect();
        Wheel { start, buckets: Mutex::new(Buckets { next: 1, rings }) }
    }

    /// The tick at `now`, counted from 1: 0 stands for never.
    pub(super) fn tick(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.start).as_millis() / TICK.as_millis()) as u64 + 1
    }

    /// The tick at which `after` has surely passed since `now`.
    pub(super) fn due(&self, now: Instant, after: Duration) -> u64 {
        self.tick(now + after) + 1
    }

    /// Makes sure that `id` is looked at not later than `due`. `queued` is where it stands now (0: nowhere).
    pub(super) fn ensure(&self, id: ConnId, queued: &AtomicU64, due: u64) {
        let now = queued.load(Ordering::Relaxed);
        if now != 0 && now <= due {
            return;
        }
        let mut buckets = self.buckets.lock();
        let at = due.clamp(buckets.next, buckets.next + BUCKETS - 1);
        let now = queued.load(Ordering::Relaxed);
        if now == 0 || at < now {
            // An entry at a later tick stays behind; its visit sees that `queued` is not that tick and lets it go.
            queued.store(at, Ordering::Relaxed);
            buckets.rings[(at % BUCKETS) as usize].push(id);
        }
    }

    /// Takes out what stands at ticks up to `now` into `out`, with the tick at which it stood.
    pub(super) fn visit(&self, now: Instant, out: &mut Vec<(u64, ConnId)>) {
        let tick = self.tick(now);
        let mut buckets = self.buckets.lock();
        // After a long sleep one round visits all.
        let first = buckets.next.max((tick + 1).saturating_sub(BUCKETS));
        for at in first..=tick {
            out.extend(buckets.rings[(at % BUCKETS) as usize].drain(..).map(|id| (at, id)));
            let bucket = &mut buckets.rings[(at % BUCKETS) as usize];
            if bucket.capacity() > 1024 {
                bucket.shrink_to(0);
            }
        }
        buckets.next = buckets.next.max(tick + 1);
    }
}
