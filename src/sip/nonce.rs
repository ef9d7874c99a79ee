//! Nonces that need no memory to be checked, and the count of their use (RFC 7616 sections 3.3, 3.4 and 5.4).
//!
//! A nonce is `id || HMAC-SHA-256(key, id || realm)` in hexadecimal, with `id` = seconds since 1970 in the upper half and a
//! running number in the lower. Who issued it and when is read from it; nobody else can make one. Its count (`nc`) is
//! kept in a table of fixed size:
//!
//! ```text
//!   NonceCounter ── sets ──┬─ Mutex<Set> ── 8 entries [id, highest nc, which of the 64 below were seen]
//!                          │               floor: no id up to here may begin
//!                          ├─ Mutex<Set>
//! ```
//! A set that is full forgets its oldest id and raises its floor to it. An id that is not in its set and not above the floor
//! is stale, whether it was used before or not: a replay never passes because memory ran short; at worst a client that
//! waited long is challenged once more, with `stale=true`, and asks nobody for a password.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::digest::same_secret;
use super::write::Cursor;

const MAC_LEN: usize = 16;

/// The length of a nonce's text.
pub const NONCE_LEN: usize = 2 * (8 + MAC_LEN);

/// A nonce's text, to be put into a challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce(pub [u8; NONCE_LEN]);

impl Nonce {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What a nonce that came back is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonceState {
    /// Ours and in time. The id is for [`NonceCounter::take`].
    Fresh(u64),
    /// Ours, but too old (or from a clock that went back): `stale=true` if the response is right.
    Stale,
    /// Not made with this key for this realm.
    Foreign,
}

/// Makes and checks nonces.
pub struct NonceKey {
    // HMAC (RFC 2104) with the first block of each half already hashed.
    inner: Sha256,
    outer: Sha256,
    serial: AtomicU32,
}

impl NonceKey {
    /// With a secret of the caller's: servers that share it take each other's nonces (each with a count of its own).
    pub fn new(secret: &[u8; 32]) -> Self {
        let pad = |with: u8| {
            let mut block = [with; 64];
            for (byte, secret) in block.iter_mut().zip(secret) {
                *byte ^= secret;
            }
            Sha256::new().chain_update(block)
        };
        NonceKey { inner: pad(0x36), outer: pad(0x5c), serial: AtomicU32::new(0) }
    }

    /// With a random secret: nonces end with the process.
    pub fn random() -> Self {
        // std's RandomState is seeded by the system with 128 bits; two of them, and SHA-256 over what they give, make a key
        // from which neither can be computed.
        let states = [std::hash::RandomState::new(), std::hash::RandomState::new()];
        let mut hash = Sha256::new();
        for n in 0u64..4 {
            for state in &states {
                hash.update(state.hash_one(n).to_le_bytes());
            }
        }
        Self::new(&hash.finalize().into())
    }

    fn mac(&self, id: u64, realm: &[u8]) -> [u8; MAC_LEN] {
        let inner = self.inner.clone().chain_update(id.to_be_bytes()).chain_update(realm).finalize();
        let whole = self.outer.clone().chain_update(inner).finalize();
        let mut mac = [0; MAC_LEN];
        mac.copy_from_slice(&whole[..MAC_LEN]);
        mac
    }

    /// A new nonce. `now` is in seconds since 1970.
    pub fn issue(&self, now: u64, realm: &[u8]) -> Nonce {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let id = now << 32 | u64::from(serial);
        let mut text = [0; NONCE_LEN];
        Cursor::new(&mut text).put_hex(&id.to_be_bytes()).put_hex(&self.mac(id, realm));
        Nonce(text)
    }

    /// `max_age` is in seconds.
    pub fn check(&self, text: &[u8], now: u64, max_age: u64, realm: &[u8]) -> NonceState {
        let Some(bytes) = unhex(text) else {
            return NonceState::Foreign;
        };
        let (id, mac) = bytes.split_at(8);
        let id = id.iter().fold(0u64, |id, &byte| id << 8 | u64::from(byte));
        if !same_secret(mac, &self.mac(id, realm)) {
            return NonceState::Foreign;
        }
        match (now & u64::from(u32::MAX)).checked_sub(id >> 32) {
            Some(age) if age <= max_age => NonceState::Fresh(id),
            _ => NonceState::Stale,
        }
    }
}

impl std::fmt::Debug for NonceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NonceKey")
    }
}

fn unhex(text: &[u8]) -> Option<[u8; 8 + MAC_LEN]> {
    if text.len() != NONCE_LEN {
        return None;
    }
    let mut bytes = [0; 8 + MAC_LEN];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |text: u8| match text {
            b'0'..=b'9' => Some(text - b'0'),
            b'a'..=b'f' => Some(text - b'a' + 10),
            _ => None,
        };
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

const WAYS: usize = 8;
/// How far below the highest count a late request may be.
const WINDOW: u32 = 64;

#[derive(Clone, Copy, Default)]
struct Entry {
    /// 0: free.
    id: u64,
    /// Bit n: `highest - n` was seen.
    seen: u64,
    highest: u32,
}

#[derive(Default)]
struct Set {
    floor: u64,
    entries: [Entry; WAYS],
}

/// Counts the use of nonces. See the head of this file.
pub struct NonceCounter {
    sets: Box<[Mutex<Set>]>,
}

impl NonceCounter {
    /// Room for at least `nonces` at a time, at 30 bytes each. Allocates here and never again.
    pub fn new(nonces: usize) -> Self {
        let sets = nonces.div_ceil(WAYS).max(1).next_power_of_two();
        NonceCounter { sets: (0..sets).map(|_| Mutex::default()).collect() }
    }

    /// Uses count `nc` of a nonce that [`NonceKey::check`] found fresh. `false`: it was used before, or too much came in
    /// between to tell. Answer that with `stale=true` and a new nonce.
    ///
    /// Counts may come out of order within 64 of the highest, as requests over UDP do.
    pub fn take(&self, id: u64, nc: u32) -> bool {
        if nc == 0 {
            return false;
        }
        // Serial numbers run, so neighbours in time lie in different sets.
        let at = (id as usize ^ (id >> 32) as usize) & (self.sets.len() - 1);
        let mut set = self.sets[at].lock();
        if let Some(entry) = set.entries.iter_mut().find(|entry| entry.id == id) {
            return entry.take(nc);
        }
        if id <= set.floor {
            return false;
        }
        let fresh = Entry { id, seen: 1, highest: nc };
        let mut oldest = 0;
        for (index, entry) in set.entries.iter().enumerate() {
            if entry.id < set.entries[oldest].id {
                oldest = index;
            }
        }
        // Never forget a newer one for an older: then the old one is stale at once.
        if set.entries[oldest].id > id {
            return false;
        }
        set.floor = set.floor.max(set.entries[oldest].id);
        set.entries[oldest] = fresh;
        true
    }
}

impl std::fmt::Debug for NonceCounter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NonceCounter({} nonces)", self.sets.len() * WAYS)
    }
}

impl Entry {
    fn take(&mut self, nc: u32) -> bool {
        if nc > self.highest {
            let ahead = nc - self.highest;
            self.seen = if ahead < WINDOW { self.seen << ahead } else { 0 } | 1;
            self.highest = nc;
            return true;
        }
        let behind = self.highest - nc;
        if behind >= WINDOW || self.seen >> behind & 1 == 1 {
            return false;
        }
        self.seen |= 1 << behind;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_is_hmac_sha_256() {
        // HMAC with a key and a message built by hand from RFC 2104's definition.
        let key = NonceKey::new(&[7; 32]);
        let mut block = [0u8; 64];
        block[..32].fill(7);
        let inner = Sha256::new()
            .chain_update(block.map(|byte| byte ^ 0x36))
            .chain_update(0x0102_0304_0506_0708u64.to_be_bytes())
            .chain_update(b"realm")
            .finalize();
        let whole = Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize();
        assert_eq!(key.mac(0x0102_0304_0506_0708, b"realm"), whole[..16]);
    }

    #[test]
    fn issued_checked_aged() {
        let key = NonceKey::random();
        let nonce = key.issue(1000, b"r");
        assert_ne!(nonce, key.issue(1000, b"r"));
        let id = match key.check(nonce.as_bytes(), 1000, 30, b"r") {
            NonceState::Fresh(id) => id,
            state => panic!("{state:?}"),
        };
        assert_eq!(key.check(nonce.as_bytes(), 1030, 30, b"r"), NonceState::Fresh(id));
        assert_eq!(key.check(nonce.as_bytes(), 1031, 30, b"r"), NonceState::Stale);
        assert_eq!(key.check(nonce.as_bytes(), 999, 30, b"r"), NonceState::Stale);
        assert_eq!(key.check(nonce.as_bytes(), 1000, 30, b"other"), NonceState::Foreign);
        assert_eq!(NonceKey::random().check(nonce.as_bytes(), 1000, 30, b"r"), NonceState::Foreign);
        assert_eq!(key.check(b"", 1000, 30, b"r"), NonceState::Foreign);
        for at in 0..NONCE_LEN {
            let mut forged = nonce.0;
            forged[at] = if forged[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(key.check(&forged, 1000, 30, b"r"), NonceState::Foreign, "{at}");
        }
    }

    #[test]
    fn counts_in_a_window() {
        let counter = NonceCounter::new(8);
        assert!(!counter.take(1, 0));
        assert!(counter.take(1, 1));
        assert!(!counter.take(1, 1));
        assert!(counter.take(1, 3));
        assert!(counter.take(1, 2));
        assert!(!counter.take(1, 2));
        assert!(counter.take(1, 100));
        assert!(!counter.take(1, 36));
        assert!(counter.take(1, 37));
        assert!(!counter.take(1, 37));
        assert!(counter.take(1, u32::MAX));
        assert!(!counter.take(1, 101));
        assert!(counter.take(2, 1));
    }

    #[test]
    fn what_was_forgotten_is_refused() {
        let counter = NonceCounter::new(8);
        // One set of eight: the ninth forgets the first.
        for id in 1..=9 {
            assert!(counter.take(id << 32, 1));
        }
        assert!(!counter.take(1 << 32, 2));
        assert!(!counter.take(1 << 32, 1));
        assert!(counter.take(2 << 32, 2));
        // An unused one below the floor might have been used and forgotten.
        assert!(!counter.take(1 << 31, 1));
        // No count is ever taken twice, whatever the order and however small the table.
        let counter = NonceCounter::new(16);
        let mut taken = std::collections::HashSet::new();
        let mut state = 1u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (id, nc) = ((state >> 33 & 127) + 1, (state >> 50 & 127) as u32);
            if counter.take(id, nc) {
                assert!(taken.insert((id, nc)));
            }
        }
        assert!(taken.len() > 100);
    }
}
