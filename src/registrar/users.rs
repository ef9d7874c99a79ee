//! The cache of `subscriber`: who exists, with what a digest needs. Bounded, each entry with a time to live.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use hashbrown::HashTable;
use parking_lot::Mutex;

use super::store::UserRow;

/// What is known about a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known<T> {
    /// Nothing: the database has to be asked.
    Nothing,
    /// The database has no such user.
    Absent,
    Present(T),
}

struct Entry {
    /// `user@domain`, as the address-of-record.
    key: Box<[u8]>,
    /// password, ha1, ha1b; `None` for a user who does not exist.
    row: Option<[Box<[u8]>; 3]>,
    since: Instant,
    until: Instant,
}

#[derive(Default)]
struct Shard {
    table: HashTable<Entry>,
}

pub(super) struct Users {
    hasher: RandomState,
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    /// Entries per shard.
    most: usize,
    ttl: Duration,
    absent_ttl: Duration,
}

const SHARDS: usize = 64;

impl Users {
    pub fn new(most: usize, ttl: Duration, absent_ttl: Duration) -> Users {
        Users {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| CachePadded::new(Mutex::new(Shard::default()))).collect(),
            most: most.div_ceil(SHARDS).max(1),
            ttl,
            absent_ttl,
        }
    }

    fn shard(&self, hash: u64) -> &Mutex<Shard> {
        &self.shards[(hash >> 32) as usize % SHARDS]
    }

    /// Calls `read` with the user's row, under the lock of one shard.
    pub fn get<T>(&self, key: &[u8], now: Instant, read: impl FnOnce(&UserRow<'_>) -> T) -> Known<T> {
        let hash = self.hasher.hash_one(key);
        let shard = self.shard(hash).lock();
        match shard.table.find(hash, |entry| *entry.key == *key) {
            None => Known::Nothing,
            Some(entry) if entry.until <= now => Known::Nothing,
            Some(Entry { row: None, .. }) => Known::Absent,
            Some(Entry { row: Some([password, ha1, ha1b]), .. }) => {
                Known::Present(read(&UserRow { aor: super::store::Aor::split(key), password, ha1, ha1b }))
            }
        }
    }

    /// Takes in a row that the database gave for this key.
    pub fn learn(&self, key: &[u8], row: &UserRow<'_>) {
        self.put(key, Some([row.password.into(), row.ha1.into(), row.ha1b.into()]), self.ttl);
    }

    /// The database was asked for this user: who was not learnt by then does not exist.
    pub fn settle(&self, key: &[u8]) {
        if self.get(key, Instant::now(), |_| ()) == Known::Nothing {
            self.put(key, None, self.absent_ttl);
        }
    }

    /// Forgets a user, whose row has changed.
    pub fn forget(&self, key: &[u8]) {
        self.forget_older(key, Duration::ZERO);
    }

    /// Forgets a user whose row was read longer ago than `age`; whether there was one.
    pub fn forget_older(&self, key: &[u8], age: Duration) -> bool {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash).lock();
        match shard.table.find_entry(hash, |entry| *entry.key == *key) {
            Ok(entry) if entry.get().since.elapsed() >= age => {
                entry.remove();
                true
            }
            _ => false,
        }
    }

    fn put(&self, key: &[u8], row: Option<[Box<[u8]>; 3]>, ttl: Duration) {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash).lock();
        let since = Instant::now();
        let new = Entry { key: key.into(), row, since, until: since + ttl };
        if let Some(entry) = shard.table.find_mut(hash, |entry| *entry.key == *key) {
            *entry = new;
            return;
        }
        if shard.table.len() >= self.most {
            // Any one goes: which one is left to the seeded hash, so nobody can choose whom to push out.
            let victim = shard.table.iter_hash(hash ^ 1).next().or_else(|| shard.table.iter().next());
            let victim = victim.map(|entry| entry.key.clone());
            if let Some(victim) = victim {
                let hash = self.hasher.hash_one(&*victim);
                if let Ok(entry) = shard.table.find_entry(hash, |entry| entry.key == victim) {
                    entry.remove();
                }
            }
        }
        shard.table.insert_unique(hash, new, |entry| self.hasher.hash_one(&*entry.key));
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().table.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registrar::store::Aor;

    fn row<'a>(user: &'a [u8], ha1: &'a [u8]) -> UserRow<'a> {
        UserRow { aor: Aor { user, domain: b"d" }, password: b"", ha1, ha1b: b"" }
    }

    #[test]
    fn present_absent_unknown_and_changed() {
        let users = Users::new(1000, Duration::from_secs(60), Duration::from_secs(10));
        let now = Instant::now();
        let ha1 = |key: &[u8], now| users.get(key, now, |row| row.ha1.to_vec());
        assert_eq!(ha1(b"a@d", now), Known::Nothing);
        users.learn(b"a@d", &row(b"a", b"1"));
        users.settle(b"a@d");
        users.settle(b"b@d");
        assert_eq!((ha1(b"a@d", now), ha1(b"b@d", now)), (Known::Present(b"1".to_vec()), Known::Absent));
        users.learn(b"a@d", &row(b"a", b"2"));
        assert_eq!(ha1(b"a@d", now), Known::Present(b"2".to_vec()));
        let later = Instant::now() + Duration::from_secs(11);
        assert_eq!((ha1(b"a@d", later), ha1(b"b@d", later)), (Known::Present(b"2".to_vec()), Known::Nothing));
        assert_eq!(ha1(b"a@d", later + Duration::from_secs(60)), Known::Nothing);
        assert!(!users.forget_older(b"a@d", Duration::from_secs(100)));
        users.forget(b"a@d");
        assert_eq!(ha1(b"a@d", now), Known::Nothing);
    }

    #[test]
    fn the_number_of_users_is_bounded() {
        let users = Users::new(SHARDS * 4, Duration::from_secs(60), Duration::from_secs(10));
        for i in 0..10_000 {
            users.settle(format!("u{i}@d").as_bytes());
            assert!(users.len() <= SHARDS * 4);
        }
        assert!(users.get(b"u9999@d", Instant::now(), |_| ()) == Known::Absent);
    }
}
