//! What Kamailio's table needs beside the binding itself: the unique `ruid`, and `id`.
//!
//! Its only unique keys are these two. `ruid` is made of what identifies a binding, so that the same binding has the same on
//! every server. An upsert by `ruid` alone would take a new AUTO_INCREMENT value for every refresh, and the 2^32 of them would
//! be used up within days; so the `id` of each row that was seen is remembered (some 40 bytes each) and given.

use std::collections::HashMap;

use md5::{Digest, Md5};
use parking_lot::Mutex;

use crate::registrar::store::Key;

/// The length of a `ruid` that is made here.
const LENGTH: usize = 35;

pub(in super::super) type Ruid = [u8; LENGTH];

/// `pl-` and 32 digits.
pub(in super::super) fn ruid(key: &Key<'_>) -> Ruid {
    let mut hash = Md5::new();
    for part in [key.aor.user, key.aor.domain, key.contact, key.instance] {
        hash.update((part.len() as u32).to_le_bytes());
        hash.update(part);
    }
    hash.update(key.reg_id.to_le_bytes());
    let mut out = *b"pl-00000000000000000000000000000000";
    for (at, byte) in hash.finalize().iter().enumerate() {
        out[3 + 2 * at] = b"0123456789abcdef"[usize::from(byte >> 4)];
        out[4 + 2 * at] = b"0123456789abcdef"[usize::from(byte & 15)];
    }
    out
}

const SHARDS: usize = 16;

/// `ruid` to `id`. Shared by the connections.
pub(super) struct Ids {
    shards: [Mutex<HashMap<u128, u32>>; SHARDS],
}

fn short(ruid: &[u8]) -> u128 {
    u128::from_le_bytes(Md5::digest(ruid).into())
}

impl Ids {
    pub fn new() -> Ids {
        Ids { shards: std::array::from_fn(|_| Mutex::default()) }
    }

    fn shard(&self, short: u128) -> &Mutex<HashMap<u128, u32>> {
        &self.shards[short as usize % SHARDS]
    }

    pub fn get(&self, ruid: &[u8]) -> Option<u32> {
        let short = short(ruid);
        self.shard(short).lock().get(&short).copied()
    }

    pub fn learn(&self, ruid: &[u8], id: u32) {
        let short = short(ruid);
        self.shard(short).lock().insert(short, id);
    }

    pub fn forget(&self, ruid: &[u8]) {
        let short = short(ruid);
        self.shard(short).lock().remove(&short);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registrar::store::Aor;

    #[test]
    fn a_ruid_is_of_its_key_alone() {
        let key = Key { aor: Aor { user: b"ab", domain: b"c" }, contact: b"sip:x", instance: b"", reg_id: 0 };
        assert_eq!(ruid(&key), ruid(&key));
        let others = [
            Key { aor: Aor { user: b"a", domain: b"bc" }, ..key },
            Key { contact: b"sip:X", ..key },
            Key { instance: b"i", ..key },
            Key { reg_id: 1, ..key },
        ];
        assert!(others.iter().all(|other| ruid(other) != ruid(&key)));
        let ids = Ids::new();
        ids.learn(&ruid(&key), 7);
        assert_eq!((ids.get(&ruid(&key)), ids.get(&ruid(&others[0]))), (Some(7), None));
        ids.forget(&ruid(&key));
        assert_eq!(ids.get(&ruid(&key)), None);
    }
}
