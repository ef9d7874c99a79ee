//! A fast seeded hash for keys that come from the network.
//!
//! Multiply and fold: each 16 bytes are xored with seeds and multiplied to 128 bits, whose halves are xored (the round of
//! Wang Yi's wyhash). The seeds are drawn from the system's randomness when a table is made, so a peer can't
//! compute which keys collide; unlike SipHash this is no proven pseudo-random function, so a hash must never be shown to
//! a peer with the seeds that a table uses. [`super::response::Tags`], whose hashes are sent, has seeds of its own.

use std::hash::{BuildHasher, Hasher};

/// The seeds of one table; `BuildHasher` for `hashbrown` and `std` maps, and [`KeyHasher::hash`] for sharding.
#[derive(Clone, Copy)]
pub struct KeyHasher {
    seeds: [u64; 4],
}

impl KeyHasher {
    /// Random seeds.
    pub fn new() -> Self {
        // The one source of system randomness in std; each value is a SipHash under its random keys.
        let random = std::hash::RandomState::new();
        Self::from_seeds([0u64, 1, 2, 3].map(|n| random.hash_one(n)))
    }

    /// Fixed seeds: where several processes have to agree, and in tests.
    pub const fn from_seeds(seeds: [u64; 4]) -> Self {
        KeyHasher { seeds }
    }

    pub fn hash(&self, bytes: &[u8]) -> u64 {
        let mut state = self.build_hasher();
        state.write(bytes);
        state.finish()
    }
}

impl Default for KeyHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for KeyHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHasher")
    }
}

impl BuildHasher for KeyHasher {
    type Hasher = KeyState;

    fn build_hasher(&self) -> KeyState {
        KeyState { state: self.seeds[0], seeds: self.seeds }
    }
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    wide as u64 ^ (wide >> 64) as u64
}

/// A hash under way. Each `write` counts as one piece with its length, so `ab`,`c` and `a`,`bc` differ.
#[derive(Clone, Copy)]
pub struct KeyState {
    state: u64,
    seeds: [u64; 4],
}

impl Hasher for KeyState {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let [_, s1, s2, s3] = self.seeds;
        let mut state = self.state ^ fold(bytes.len() as u64 ^ s3, s1);
        let mut rest = bytes;
        while let Some((block, tail)) = rest.split_first_chunk::<16>() {
            // The last block overlaps the one before instead of being padded.
            if tail.is_empty() {
                break;
            }
            let (a, b) = halves(block);
            state = fold(a ^ s1, b ^ state);
            rest = tail;
        }
        let (a, b) = match (bytes.last_chunk::<16>(), rest) {
            (Some(last), _) => halves(last),
            (None, short) => match (short.first_chunk::<8>(), short.last_chunk::<8>()) {
                (Some(first), Some(last)) => (u64::from_le_bytes(*first), u64::from_le_bytes(*last)),
                _ => match (short.first_chunk::<4>(), short.last_chunk::<4>()) {
                    (Some(first), Some(last)) => {
                        (u64::from(u32::from_le_bytes(*first)), u64::from(u32::from_le_bytes(*last)))
                    }
                    _ => (short.iter().fold(0, |word, &byte| word << 8 | u64::from(byte)), 0),
                },
            },
        };
        self.state = fold(a ^ s2, b ^ state);
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        self.state = fold(value ^ self.seeds[2], self.state ^ self.seeds[1]);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    #[inline]
    fn finish(&self) -> u64 {
        fold(self.state ^ self.seeds[3], self.seeds[1])
    }
}

fn halves(block: &[u8; 16]) -> (u64, u64) {
    let wide = u128::from_le_bytes(*block);
    (wide as u64, (wide >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const FIXED: KeyHasher = KeyHasher::from_seeds([
        0x243f_6a88_85a3_08d3,
        0x1319_8a2e_0370_7345,
        0xa409_3822_299f_31d1,
        0x082e_fa98_ec4e_6c89,
    ]);

    #[test]
    fn every_byte_and_every_length_counts() {
        for len in 0..70 {
            let base = vec![b'a'; len];
            let mut seen = HashSet::from([FIXED.hash(&base)]);
            for at in 0..len {
                for bit in 0..8 {
                    let mut other = base.clone();
                    other[at] ^= 1 << bit;
                    assert!(seen.insert(FIXED.hash(&other)), "{len} {at} {bit}");
                }
            }
        }
        let lengths: HashSet<u64> = (0..200).map(|len| FIXED.hash(&vec![0; len])).collect();
        assert_eq!(lengths.len(), 200);
    }

    #[test]
    fn spreads_aors_over_low_and_high_bits() {
        let (mut low, mut high) = ([0u32; 256], [0u32; 256]);
        for n in 0..65_536 {
            let hash = FIXED.hash(format!("user{n}@example.org").as_bytes());
            low[hash as usize & 255] += 1;
            high[(hash >> 56) as usize] += 1;
        }
        // 256 expected in each; six standard deviations are 96.
        for count in low.iter().chain(&high) {
            assert!((160..=352).contains(count), "{count}");
        }
    }

    #[test]
    fn seeds_differ_and_pieces_do_not_run_together() {
        assert_ne!(KeyHasher::new().hash(b"a"), KeyHasher::new().hash(b"a"));
        let pieces = |parts: &[&[u8]]| {
            let mut state = FIXED.build_hasher();
            parts.iter().for_each(|part| state.write(part));
            state.finish()
        };
        assert_ne!(pieces(&[b"ab", b"c"]), pieces(&[b"a", b"bc"]));
        assert_ne!(pieces(&[b"", b"a"]), pieces(&[b"a", b""]));
    }
}
