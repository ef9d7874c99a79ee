//! The cache of `subscriber`: who exists, with what a digest needs. Bounded, each entry with a time to live.

use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use hashbrown::HashTable;
use parking_lot::Mutex;

use super::store::UserRow;
use crate::sip::KeyHasher;

/// What is known about a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known<T> {
    /// Nothing: the database has to be asked.
    Nothing,
    /// The database has no such user.
    Absent,
    Present(T),
}

/// One allocation and 32 bytes: there may be as many as bindings.
struct Entry {
    /// `user@domain`, as the address-of-record, then password, ha1, ha1b.
    text: Box<[u8]>,
    /// Where the key, the password and ha1 end.
    ends: [u16; 3],
    exists: bool,
    /// When it was read, in milliseconds of the cache's life.
    since: u64,
}

impl Entry {
    fn new(key: &[u8], row: Option<&UserRow<'_>>, since: u64) -> Entry {
        let parts = [key, row.map_or(b"", |r| r.password), row.map_or(b"", |r| r.ha1), row.map_or(b"", |r| r.ha1b)];
        let text = parts.concat().into_boxed_slice();
        let mut end = 0;
        let ends = [0, 1, 2].map(|i| {
            end += parts[i].len();
            end as u16
        });
        // What no column holds is nobody's password: a user whom nothing lets in.
        if text.len() > usize::from(u16::MAX) {
            return Entry::new(key, row.map(|r| UserRow { password: b"", ha1: b"", ha1b: b"", ..*r }).as_ref(), since);
        }
        Entry { text, ends, exists: row.is_some(), since }
    }

    fn part(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { usize::from(self.ends[i - 1]) };
        let end = self.ends.get(i).map_or(self.text.len(), |end| usize::from(*end));
        &self.text[start..end]
    }

    fn key(&self) -> &[u8] {
        self.part(0)
    }
}

#[derive(Default)]
struct Shard {
    table: HashTable<Entry>,
}

pub(super) struct Users {
    hasher: KeyHasher,
    born: Instant,
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
            hasher: KeyHasher::new(),
            born: Instant::now(),
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
        let hash = self.hasher.hash(key);
        let now = self.millis(now);
        let shard = self.shard(hash).lock();
        let Some(entry) = shard.table.find(hash, |entry| entry.key() == key) else { return Known::Nothing };
        let ttl = if entry.exists { self.ttl } else { self.absent_ttl };
        if u128::from(now.saturating_sub(entry.since)) >= ttl.as_millis() {
            return Known::Nothing;
        }
        if !entry.exists {
            return Known::Absent;
        }
        let (password, ha1, ha1b) = (entry.part(1), entry.part(2), entry.part(3));
        Known::Present(read(&UserRow { aor: super::store::Aor::split(key), password, ha1, ha1b }))
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.born).as_millis() as u64
    }

    /// Takes in a row that the database gave for this key.
    pub fn learn(&self, key: &[u8], row: &UserRow<'_>) {
        self.put(key, Some(row));
    }

    /// The database was asked for this user: who was not learnt by then does not exist.
    pub fn settle(&self, key: &[u8]) {
        if self.get(key, Instant::now(), |_| ()) == Known::Nothing {
            self.put(key, None);
        }
    }

    /// Forgets a user, whose row has changed.
    pub fn forget(&self, key: &[u8]) {
        self.forget_older(key, Duration::ZERO);
    }

    /// Forgets a user whose row was read longer ago than `age`; whether there was one.
    pub fn forget_older(&self, key: &[u8], age: Duration) -> bool {
        let hash = self.hasher.hash(key);
        let oldest = self.millis(Instant::now());
        let mut shard = self.shard(hash).lock();
        match shard.table.find_entry(hash, |entry| entry.key() == key) {
            Ok(entry) if u128::from(oldest.saturating_sub(entry.get().since)) >= age.as_millis() => {
                entry.remove();
                true
            }
            _ => false,
        }
    }

    fn put(&self, key: &[u8], row: Option<&UserRow<'_>>) {
        let hash = self.hasher.hash(key);
        let new = Entry::new(key, row, self.millis(Instant::now()));
        let mut shard = self.shard(hash).lock();
        if let Some(entry) = shard.table.find_mut(hash, |entry| entry.key() == key) {
            *entry = new;
            return;
        }
        if shard.table.len() >= self.most {
            // Any one goes: which one is left to the seeded hash, so nobody can choose whom to push out.
            let victim = shard.table.iter_hash(hash ^ 1).next().or_else(|| shard.table.iter().next());
            let victim = victim.map(|entry| entry.key().to_vec());
            if let Some(victim) = victim {
                let hash = self.hasher.hash(&victim);
                if let Ok(entry) = shard.table.find_entry(hash, |entry| entry.key() == victim) {
                    entry.remove();
                }
            }
        }
        shard.table.insert_unique(hash, new, |entry| self.hasher.hash(entry.key()));
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
    fn all_of_a_row_comes_back_and_what_no_column_holds_lets_nobody_in() {
        let users = Users::new(1000, Duration::from_secs(60), Duration::from_secs(10));
        let aor = Aor { user: b"a", domain: b"d" };
        users.learn(b"a@d", &UserRow { aor, password: b"pass", ha1: b"one", ha1b: b"two" });
        let all = |row: &UserRow<'_>| (row.password.to_vec(), row.ha1.to_vec(), row.ha1b.to_vec(), row.aor == aor);
        let now = Instant::now();
        assert_eq!(
            users.get(b"a@d", now, all),
            Known::Present((b"pass".to_vec(), b"one".to_vec(), b"two".to_vec(), true))
        );
        users.learn(b"a@d", &UserRow { aor, password: &[b'x'; 70_000], ha1: b"one", ha1b: b"two" });
        assert_eq!(users.get(b"a@d", now, all), Known::Present((Vec::new(), Vec::new(), Vec::new(), true)));
        assert!(size_of::<Entry>() <= 32);
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
