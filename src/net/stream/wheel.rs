//! When to look at a connection next. A hashed timing wheel (Varghese and Lauck 1987, scheme 6) that is lazy: a
//! connection stands in it once, at the earliest time at which something may be due; a deadline that moves away costs
//! nothing, for the visit finds it and puts the connection further on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::table::ConnId;

/// How late a limit may be noticed.
pub(super) const TICK: Duration = Duration::from_millis(100);
const PER_SECOND: u64 = 10;
const BUCKETS: u64 = 512;

pub(super) struct Wheel {
    start: Instant,
    buckets: Mutex<Buckets>,
}

struct Buckets {
    // The first tick that has not been visited.
    next: u64,
    // With the tick that was meant: a bucket may be visited a revolution late.
    rings: Vec<Vec<(u64, ConnId)>>,
}

impl Wheel {
    pub(super) fn new(start: Instant) -> Self {
        let rings = (0..BUCKETS).map(|_| Vec::new()).collect();
        Wheel { start, buckets: Mutex::new(Buckets { next: 1, rings }) }
    }

    /// The tick at `now`, counted from 1: 0 stands for never.
    pub(super) fn tick(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.start);
        passed.as_secs() * PER_SECOND + u64::from(passed.subsec_nanos()) / u64::from(TICK.subsec_nanos()) + 1
    }

    /// The tick at which `after` has surely passed since `now`.
    pub(super) fn due(&self, now: Instant, after: Duration) -> u64 {
        self.tick(now + after) + 1
    }

    /// Makes sure that `id` is looked at not later than `due`. `queued` is where it stands now (0: nowhere).
    pub(super) fn ensure(&self, id: ConnId, queued: &AtomicU64, due: u64) {
        // Ordered with the visit, which clears `queued` first and reads what is due then: one of the two sees the other.
        let now = queued.load(Ordering::SeqCst);
        if now != 0 && now <= due {
            return;
        }
        let mut buckets = self.buckets.lock();
        let at = due.clamp(buckets.next, buckets.next + BUCKETS - 1);
        let now = queued.load(Ordering::SeqCst);
        if now == 0 || at < now {
            // An entry at a later tick stays behind; its visit sees that `queued` is not that tick and lets it go.
            queued.store(at, Ordering::SeqCst);
            buckets.rings[(at % BUCKETS) as usize].push((at, id));
        }
    }

    /// Takes out what stands at ticks up to `now` into `out`, with the tick at which it stood.
    pub(super) fn visit(&self, now: Instant, out: &mut Vec<(u64, ConnId)>) {
        let tick = self.tick(now);
        let mut buckets = self.buckets.lock();
        // After a long sleep one round visits all.
        let first = buckets.next.max((tick + 1).saturating_sub(BUCKETS));
        for at in first..=tick {
            let bucket = &mut buckets.rings[(at % BUCKETS) as usize];
            out.append(bucket);
            if bucket.capacity() > 1024 {
                bucket.shrink_to(0);
            }
        }
        buckets.next = buckets.next.max(tick + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn id(index: u32) -> ConnId {
        ConnId { index, generation: 1 }
    }

    fn visited(wheel: &Wheel, now: Instant) -> Vec<(u64, ConnId)> {
        let mut out = Vec::new();
        wheel.visit(now, &mut out);
        out
    }

    #[test]
    fn a_visit_comes_when_it_is_due_and_not_before() {
        let start = Instant::now();
        let wheel = Wheel::new(start);
        let places: Vec<AtomicU64> = (0..4).map(|_| AtomicU64::new(0)).collect();
        // 0.05 s, 1 s, 50 s, and beyond the horizon of 51 s.
        for (i, millis) in [50, 1000, 50_000, 500_000].into_iter().enumerate() {
            wheel.ensure(id(i as u32), &places[i], wheel.due(start, Duration::from_millis(millis)));
        }
        let mut seen = Vec::new();
        for tenth in 0..=600 {
            let now = start + TICK * tenth;
            seen.extend(visited(&wheel, now).into_iter().map(|(_, id)| (id.index, tenth)));
        }
        assert_eq!(seen[0].0, 0);
        assert_eq!(seen[1].0, 1);
        assert_eq!(seen[2].0, 2);
        assert_eq!(seen[3].0, 3);
        assert!((1..=2).contains(&seen[0].1), "{seen:?}");
        assert!((10..=11).contains(&seen[1].1), "{seen:?}");
        assert!((500..=501).contains(&seen[2].1), "{seen:?}");
        // Visited at the horizon; whoever visits finds that it is not due and puts it further on.
        assert!(seen[3].1 < 515, "{seen:?}");
        assert_eq!(seen.len(), 4);
    }

    #[test]
    fn an_earlier_time_moves_the_visit_forward_and_a_long_sleep_loses_none() {
        let start = Instant::now();
        let wheel = Wheel::new(start);
        let place = AtomicU64::new(0);
        wheel.ensure(id(7), &place, wheel.due(start, Duration::from_secs(20)));
        wheel.ensure(id(7), &place, wheel.due(start, Duration::from_secs(30)));
        wheel.ensure(id(7), &place, wheel.due(start, Duration::from_secs(1)));
        let (at, seen) = visited(&wheel, start + Duration::from_millis(1300))[0];
        assert_eq!((seen, at), (id(7), place.load(Ordering::Relaxed)));
        place.store(0, Ordering::Relaxed);
        wheel.ensure(id(7), &place, wheel.due(start, Duration::from_secs(40)));
        // What stood at 20 s is still there, and is not where `place` says: whoever visits lets it go.
        let late = visited(&wheel, start + Duration::from_secs(1000));
        assert_eq!(late.len(), 2);
        assert_eq!(late.iter().filter(|(at, _)| *at == place.load(Ordering::Relaxed)).count(), 1);
    }
}
