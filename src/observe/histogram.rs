//! A histogram of nanoseconds with buckets that are at most 6.25 % wide (16 per power of two): recording is one relaxed
//! add, reading walks the buckets.

use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets per power of two.
const SUB: usize = 16;
/// Values up to 2^40 ns (18 minutes) are kept apart; longer ones fall into the last bucket.
const BUCKETS: usize = (40 - 4) * SUB + SUB;

pub struct Histogram {
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
    max: AtomicU64,
}

/// A reading, in nanoseconds; each quantile is the upper edge of its bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quantiles {
    pub count: u64,
    pub sum: u64,
    pub max: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    pub fn new() -> Self {
        Histogram {
            buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
            max: AtomicU64::new(0),
        }
    }

    pub fn record(&self, nanos: u64) {
        self.buckets[bucket_of(nanos)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(nanos, Ordering::Relaxed);
        if nanos > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(nanos, Ordering::Relaxed);
        }
    }

    pub fn quantiles(&self) -> Quantiles {
        let counts: Vec<u64> = self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).collect();
        let count: u64 = counts.iter().sum();
        let max = self.max.load(Ordering::Relaxed);
        let at = |per_mille: u64| {
            // The rank is rounded up: the p-th of n values is the ceil(p * n)-th in order.
            let rank = (count * per_mille).div_ceil(1000).max(1);
            let mut seen = 0;
            for (i, n) in counts.iter().enumerate() {
                seen += n;
                if seen >= rank {
                    return upper_edge(i).min(max);
                }
            }
            max
        };
        if count == 0 {
            return Quantiles::default();
        }
        Quantiles {
            count,
            sum: self.sum.load(Ordering::Relaxed),
            max,
            p50: at(500),
            p90: at(900),
            p99: at(990),
            p999: at(999),
        }
    }
}

fn bucket_of(nanos: u64) -> usize {
    if nanos < SUB as u64 {
        return nanos as usize;
    }
    let exponent = 63 - nanos.leading_zeros() as usize;
    let mantissa = (nanos >> (exponent - 4)) as usize & (SUB - 1);
    ((exponent - 3) * SUB + mantissa).min(BUCKETS - 1)
}

fn upper_edge(bucket: usize) -> u64 {
    if bucket < SUB {
        return bucket as u64;
    }
    let exponent = bucket / SUB + 3;
    let mantissa = (bucket % SUB) as u64;
    ((SUB as u64 + mantissa + 1) << (exponent - 4)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_within_its_bucket_and_a_sixteenth() {
        let mut value: u64 = 0;
        while value < 1 << 39 {
            let edge = upper_edge(bucket_of(value));
            assert!(edge >= value, "{value} above its edge {edge}");
            assert!(edge - value <= value / 16 + 1, "{value} too far from its edge {edge}");
            value = value * 9 / 8 + 1;
        }
    }

    #[test]
    fn quantiles_of_a_known_row() {
        let h = Histogram::new();
        for v in 1..=1000u64 {
            h.record(v * 1000);
        }
        let q = h.quantiles();
        assert_eq!((q.count, q.max, q.sum), (1000, 1_000_000, 500_500_000));
        assert!((500_000..=531_250).contains(&q.p50), "{}", q.p50);
        assert!((990_000..=1_000_000).contains(&q.p99), "{}", q.p99);
    }
}
