//! Rate limits: a token bucket for each source and one for all.
//!
//! A bucket is one number, the time at which it will be full again (the virtual scheduling form of the leaky bucket,
//! ITU-T I.371, known as GCRA): taking a token moves that time one interval on, and a token is there as long as it is
//! not further ahead than the burst. So a bucket that is full says nothing, and its place can be given to another
//! source without loss.
//!
//! Promises: no lock, no allocation after the start, and memory that does not grow with the number of sources. Where
//! more sources are active at the same time than there are places, the one nearest to full loses its count: a limit may
//! then let more through, never less. An IPv6 source is its /64, for a host has all of it to choose from.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::observe::{Counter, Text};

/// Places that one source may be at: one cache line.
const WAYS: usize = 4;

/// So many a second in the long run, and so many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u32,
    /// At least 1.
    pub burst: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitOptions {
    /// For each source. Default none.
    pub per_source: Option<Rate>,
    /// For all together. Default none.
    pub all: Option<Rate>,
    /// Sources whose buckets can be told apart at a time, 16 bytes each. Default 65,536.
    pub sources: usize,
}

impl Default for LimitOptions {
    fn default() -> Self {
        LimitOptions { per_source: None, all: None, sources: 65_536 }
    }
}

/// Which limit a message has exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    Source,
    All,
}

/// A rate in nanoseconds.
#[derive(Clone, Copy)]
struct Pace {
    interval: u64,
    tolerance: u64,
}

impl Pace {
    fn of(rate: Rate) -> Pace {
        let interval = 1_000_000_000 / u64::from(rate.per_second.max(1));
        Pace { interval, tolerance: interval * u64::from(rate.burst.max(1) - 1) }
    }

    /// Takes a token at `now` from the bucket that is full at `full_at`.
    fn take(self, full_at: &AtomicU64, now: u64) -> bool {
        let step = |at: u64| (at <= now + self.tolerance).then(|| at.max(now) + self.interval);
        full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).is_ok()
    }

    fn put_back(self, full_at: &AtomicU64) {
        // Its place may have been given away meanwhile: never below nothing.
        let back = |at: u64| Some(at.saturating_sub(self.interval));
        let _ = full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, back);
    }
}

#[derive(Default)]
struct Place {
    /// The source, hashed with a key of this process; 0: nobody's.
    source: AtomicU64,
    full_at: AtomicU64,
}

#[derive(Default)]
#[repr(align(64))]
struct Set([Place; WAYS]);

pub struct Limiter {
    start: Instant,
    hasher: RandomState,
    per_source: Option<Pace>,
    sets: Box<[Set]>,
    all: Option<Pace>,
    all_full_at: AtomicU64,
    dropped_source: Counter,
    dropped_all: Counter,
}

impl Limiter {
    /// `start` is the earliest time that will be asked about.
    pub fn new(options: &LimitOptions, start: Instant) -> Limiter {
        let sets = if options.per_source.is_some() { options.sources.div_ceil(WAYS).next_power_of_two() } else { 0 };
        Limiter {
            start,
            hasher: RandomState::new(),
            per_source: options.per_source.map(Pace::of),
            sets: (0..sets).map(|_| Set::default()).collect(),
            all: options.all.map(Pace::of),
            all_full_at: AtomicU64::new(0),
            dropped_source: Counter::new(),
            dropped_all: Counter::new(),
        }
    }

    /// Whether a message from `source` may be handled; what may not is counted. One `now` will do for a whole batch.
    pub fn admit(&self, source: IpAddr, now: Instant) -> Result<(), Exceeded> {
        // From 1: a bucket that nobody has touched is full.
        let now = now.saturating_duration_since(self.start).as_nanos() as u64 + 1;
        // The source first: what one source sends too much must not use up what is for all.
        if let Some(pace) = self.per_source {
            if !pace.take(self.bucket(source, pace, now), now) {
                self.dropped_source.inc();
                return Err(Exceeded::Source);
            }
        }
        if let Some(pace) = self.all {
            if !pace.take(&self.all_full_at, now) {
                self.dropped_all.inc();
                if let Some(own) = self.per_source {
                    own.put_back(self.bucket(source, own, now));
                }
                return Err(Exceeded::All);
            }
        }
        Ok(())
    }

    /// After how long a message that has exceeded the limit for all could be let in; for a Retry-After.
    pub fn retry_after(&self, now: Instant) -> Duration {
        let now = now.saturating_duration_since(self.start).as_nanos() as u64 + 1;
        let wait =
            self.all.map_or(0, |pace| self.all_full_at.load(Ordering::Relaxed).saturating_sub(now + pace.tolerance));
        Duration::from_nanos(wait)
    }

    fn bucket(&self, source: IpAddr, pace: Pace, now: u64) -> &AtomicU64 {
        let hash = match source.to_canonical() {
            IpAddr::V4(ip) => self.hasher.hash_one(ip),
            IpAddr::V6(ip) => self.hasher.hash_one(ip.to_bits() >> 64),
        }
        .max(1);
        let Set(places) = &self.sets[hash as usize & (self.sets.len() - 1)];
        if let Some(place) = places.iter().find(|place| place.source.load(Ordering::Relaxed) == hash) {
            return &place.full_at;
        }
        let mut fullest = &places[0];
        for place in &places[1..] {
            if place.full_at.load(Ordering::Relaxed) < fullest.full_at.load(Ordering::Relaxed) {
                fullest = place;
            }
        }
        // Two threads may take one place for two sources at once; then the two share a bucket for a moment, which is
        // full for both but for what they take.
        fullest.full_at.store(now.saturating_sub(pace.interval), Ordering::Relaxed);
        fullest.source.store(hash, Ordering::Relaxed);
        &fullest.full_at
    }

    pub fn metrics(&self, out: &mut Text) {
        let help = "Messages dropped because a rate limit was exceeded.";
        out.counter("partyline_rate_dropped_total", help, &[("limit", "source")], self.dropped_source.get());
        out.counter("partyline_rate_dropped_total", help, &[("limit", "all")], self.dropped_all.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    fn limiter(per_source: Option<(u32, u32)>, all: Option<(u32, u32)>, sources: usize) -> (Limiter, Instant) {
        let rate = |(per_second, burst)| Rate { per_second, burst };
        let start = Instant::now();
        (Limiter::new(&LimitOptions { per_source: per_source.map(rate), all: all.map(rate), sources }, start), start)
    }

    proptest! {
        /// Against a bucket counted in tokens, with times that the interval divides, so that both are exact.
        #[test]
        fn it_is_a_token_bucket(
            burst in 1u32..10,
            pauses in prop::collection::vec(0u64..5, 1..200),
        ) {
            let (limiter, start) = limiter(Some((10, burst)), None, 16);
            let (mut tokens, mut tenths, mut refilled) = (u64::from(burst), 0, 0);
            for pause in pauses {
                tenths += pause;
                tokens = (tokens + tenths - refilled).min(u64::from(burst));
                refilled = tenths;
                let want = tokens > 0;
                tokens -= u64::from(want);
                let got = limiter.admit(ip(1), start + Duration::from_millis(100 * tenths));
                prop_assert_eq!(got.is_ok(), want);
            }
        }
    }

    #[test]
    fn sources_do_not_take_from_each_other() {
        let (limiter, start) = limiter(Some((1, 3)), None, 1024);
        for n in 0..100 {
            let admitted = (0..10).filter(|_| limiter.admit(ip(n), start).is_ok()).count();
            assert_eq!(admitted, 3, "source {n}");
        }
        assert_eq!(limiter.dropped_source.get(), 700);
        // One /64 is one source; a mapped IPv4 address is that address.
        for (source, ok) in [("2001:db8::1", true), ("2001:db8::2", true), ("2001:db8::ffff:3", true)] {
            assert_eq!(limiter.admit(source.parse().unwrap(), start).is_ok(), ok);
        }
        assert_eq!(limiter.admit("2001:db8::4".parse().unwrap(), start), Err(Exceeded::Source));
        assert!(limiter.admit("2001:db8:0:1::4".parse().unwrap(), start).is_ok());
        assert_eq!(limiter.admit("::ffff:0.0.0.1".parse().unwrap(), start), Err(Exceeded::Source));
    }

    #[test]
    fn a_greedy_source_does_not_use_up_what_is_for_all() {
        let (limiter, start) = limiter(Some((1, 5)), Some((1, 20)), 1024);
        let greedy = (0..1000).filter(|_| limiter.admit(ip(1), start).is_ok()).count();
        assert_eq!(greedy, 5);
        let others = (2..50).filter(|n| limiter.admit(ip(*n), start).is_ok()).count();
        assert_eq!(others, 15);
        assert_eq!(limiter.admit(ip(60), start), Err(Exceeded::All));
        let later = start + limiter.retry_after(start);
        // Who was refused for the sake of all has not paid for it.
        assert_eq!(limiter.admit(ip(60), later), Ok(()));
        assert_eq!(limiter.admit(ip(61), later), Err(Exceeded::All));
    }

    #[test]
    fn more_sources_than_places_are_never_refused_wrongly() {
        let (limiter, start) = limiter(Some((1, 2)), None, 8);
        for round in 0..3 {
            for n in 0..1000 {
                // Two in a row from one source, with all the others between its turns.
                let now = start + Duration::from_secs(10 * round);
                assert!(limiter.admit(ip(n), now).is_ok() && limiter.admit(ip(n), now).is_ok());
            }
        }
    }

    #[test]
    fn without_limits_all_is_let_in() {
        let (limiter, start) = limiter(None, None, 8);
        assert!((0..10_000).all(|n| limiter.admit(ip(n), start).is_ok()));
    }
}
