//! The spool: changes that were acknowledged while the database was away, in a SQLite file of their own.
//!
//! Promises: what [`Spool::append`] returned for is on the disk (WAL, synchronous=FULL), and so is what
//! [`Spool::remove`] removed: a removed change never comes back after newer ones. The changes of one address-of-record
//! stand in one partition, in order. The file belongs to one process at a time and to one database.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::store::{Kind, Reader, StoreError};

/// `user_version` of the file: the form of the packed changes in it.
const VERSION: i64 = 1;

/// The partition of what an earlier run left: its addresses-of-record may be in any of this run's.
pub(super) const EARLIER: u32 = 1 << 30;

/// Wakes the spooler.
#[derive(Default)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Bell {
    pub fn ring(&self) {
        *self.rung.lock() = true;
        self.heard.notify_one();
    }

    /// Waits for the bell, at most so long.
    pub fn wait(&self, limit: Duration) {
        let mut rung = self.rung.lock();
        if !*rung {
            self.heard.wait_for(&mut rung, limit);
        }
        *rung = false;
    }
}

/// Changes of one partition that were read together.
pub(super) struct Piece {
    last: i64,
    pub chunks: u64,
    changes: u64,
}

pub(super) struct Spool {
    db: Mutex<Connection>,
    path: String,
    /// Changes in the file.
    held: AtomicU64,
    limit: u64,
    pub bell: Bell,
}

impl Spool {
    /// Opens the file, or makes it. `place` names the database that its changes are for. What an earlier run left stands in
    /// partition [`EARLIER`] then.
    pub fn open(path: &str, place: &str, limit: u64) -> Result<Spool, StoreError> {
        let say = |e: rusqlite::Error| StoreError::new(Kind::Config, format!("the spool {path} cannot be used: {e}"));
        let mut db = Connection::open(path).map_err(say)?;
        let version = (|| {
            db.busy_timeout(Duration::from_millis(100))?;
            // Held until the process ends: a second one would replay what this one still writes.
            db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            db.pragma_update(None, "journal_mode", "WAL")?;
            db.pragma_update(None, "synchronous", "FULL")?;
            db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
        })();
        let version = version.map_err(say)?;
        if version != 0 && version != VERSION {
            return Err(StoreError::new(
                Kind::Schema,
                format!("the spool {path} has version {version}; this program knows version {VERSION}"),
            ));
        }
        let prepared = (|| {
            let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            tx.execute_batch(
                "CREATE TABLE IF NOT EXISTS spool (part INTEGER NOT NULL, seq INTEGER NOT NULL, changes INTEGER NOT NULL,
                                                   packed BLOB NOT NULL, PRIMARY KEY (part, seq)) WITHOUT ROWID;
                 CREATE TABLE IF NOT EXISTS meant_for (place TEXT NOT NULL);",
            )?;
            let other = tx.query_row("SELECT place FROM meant_for", [], |row| row.get::<_, String>(0)).optional()?;
            let held: i64 = tx.query_row("SELECT coalesce(sum(changes), 0) FROM spool", [], |row| row.get(0))?;
            if held == 0 {
                tx.execute("DELETE FROM meant_for", [])?;
                tx.execute("INSERT INTO meant_for VALUES (?)", [place])?;
            }
            tx.pragma_update(None, "user_version", VERSION)?;
            if other.as_deref().is_none_or(|other| other == place) {
                gather(&tx)?;
            }
            tx.commit()?;
            Ok((other, held as u64))
        })();
        let (other, held) = prepared.map_err(say)?;
        if let Some(other) = other.filter(|other| held > 0 && other != place) {
            return Err(StoreError::new(
                Kind::Config,
                format!("the spool {path} holds {held} changes for {other}, not for {place}"),
            ));
        }
        let spool =
            Spool { db: Mutex::new(db), path: path.to_owned(), held: held.into(), limit, bell: Bell::default() };
        Ok(spool)
    }

    fn error(&self, e: rusqlite::Error) -> StoreError {
        StoreError::new(Kind::Lost, format!("the spool {}: {e}", self.path))
    }

    /// Changes that are in the file.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    pub fn is_full(&self) -> bool {
        self.held() >= self.limit
    }

    /// Makes packed changes durable, all of them in one transaction: (partition, changes). Returns in how many chunks of
    /// `batch` changes each stands, and the number of changes; a chunk ends with a ticket.
    pub fn append(&self, work: &[(u32, &[u8])], batch: usize) -> Result<(Vec<u64>, u64), StoreError> {
        let mut db = self.db.lock();
        let mut changes = 0;
        let mut write = || -> rusqlite::Result<Vec<u64>> {
            let mut chunks = Vec::with_capacity(work.len());
            let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for &(partition, packed) in work {
                let mut insert = tx.prepare_cached(
                    "INSERT INTO spool SELECT ?1, coalesce(max(seq), 0) + 1, ?2, ?3 FROM spool WHERE part = ?1",
                )?;
                let (mut count, mut in_chunk, mut start) = (0, 0u64, 0);
                let mut reader = Reader::new(packed);
                while let Some((_, last)) = reader.next_change() {
                    in_chunk += 1;
                    let end = packed.len() - reader.left();
                    if last && (in_chunk >= batch as u64 || end == packed.len()) {
                        insert.execute(params![partition, in_chunk as i64, &packed[start..end]])?;
                        count += 1;
                        changes += in_chunk;
                        (start, in_chunk) = (end, 0);
                    }
                }
                chunks.push(count);
            }
            tx.commit()?;
            Ok(chunks)
        };
        let chunks = write().map_err(|e| self.error(e))?;
        self.held.fetch_add(changes, Ordering::Relaxed);
        Ok((chunks, changes))
    }

    /// Appends the oldest chunks of a partition, at most `most`, to `packed`.
    pub fn oldest(&self, partition: u32, most: usize, packed: &mut Vec<u8>) -> Result<Option<Piece>, StoreError> {
        let db = self.db.lock();
        let mut read = || -> rusqlite::Result<Option<Piece>> {
            let mut select =
                db.prepare_cached("SELECT seq, changes, packed FROM spool WHERE part = ? ORDER BY seq LIMIT ?")?;
            let mut rows = select.query(params![partition, most as i64])?;
            let mut piece = Piece { last: 0, chunks: 0, changes: 0 };
            while let Some(row) = rows.next()? {
                piece.last = row.get(0)?;
                piece.changes += row.get::<_, i64>(1)? as u64;
                piece.chunks += 1;
                packed.extend_from_slice(row.get_ref(2)?.as_blob()?);
            }
            Ok((piece.chunks > 0).then_some(piece))
        };
        read().map_err(|e| self.error(e))
    }

    /// Takes a piece out, which the database has now.
    pub fn remove(&self, partition: u32, piece: &Piece) -> Result<(), StoreError> {
        let db = self.db.lock();
        db.prepare_cached("DELETE FROM spool WHERE part = ? AND seq <= ?")
            .and_then(|mut delete| delete.execute(params![partition, piece.last]))
            .map_err(|e| self.error(e))?;
        self.held.fetch_sub(piece.changes, Ordering::Relaxed);
        Ok(())
    }
}

/// An address-of-record has stood in one partition in each run, so one after the other keeps its order; what an earlier start
/// has gathered comes first.
fn gather(db: &Connection) -> rusqlite::Result<()> {
    let mut parts = db.prepare("SELECT DISTINCT part FROM spool WHERE part <> ? ORDER BY part")?;
    let parts = parts.query_map([EARLIER], |row| row.get::<_, u32>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    for part in parts {
        db.execute(
            "UPDATE spool SET part = ?1, seq = seq + (SELECT coalesce(max(seq), 0) FROM spool WHERE part = ?1) WHERE part = ?2",
            params![EARLIER, part],
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registrar::store::{Aor, Change, Key, encode, mark_last};

    fn packed(names: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        for name in names {
            let head = out.len();
            let key = Key { aor: Aor::split(name.as_bytes()), contact: b"sip:c", instance: b"", reg_id: 0 };
            encode(&mut out, &Change::Delete(key));
            mark_last(&mut out[head]);
        }
        out
    }

    fn path(name: &str) -> String {
        let path = std::env::temp_dir().join(format!("partyline-spool-{name}-{}.db", std::process::id()));
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
        }
        path.display().to_string()
    }

    #[test]
    fn pieces_come_back_in_order_and_survive() {
        let path = path("order");
        let spool = Spool::open(&path, "here", 100).expect("spool");
        let (one, two, other) = (packed(&["a@d", "b@d", "c@d"]), packed(&["a@d"]), packed(&["z@d"]));
        assert_eq!(spool.append(&[(0, &one[..]), (7, &other)], 2), Ok((vec![2, 1], 4)));
        assert_eq!(spool.append(&[(0, &two)], 2), Ok((vec![1], 1)));
        assert_eq!((spool.held(), spool.is_full()), (5, false));
        // Nobody else may have it, and after that it is all there.
        assert_eq!(Spool::open(&path, "here", 100).map(|_| ()).map_err(|e| e.kind()), Err(Kind::Config));
        drop(spool);
        let error = Spool::open(&path, "there", 100).map(|_| ()).expect_err("another database");
        assert!(error.to_string().ends_with("holds 5 changes for here, not for there"), "{error}");
        let spool = Spool::open(&path, "here", 5).expect("spool");
        assert!(spool.is_full());
        let mut read = Vec::new();
        // All of it is an earlier run's now, and what this one adds stands behind it at the next start.
        let third = packed(&["c@d"]);
        assert_eq!(spool.append(&[(0, &third[..])], 2), Ok((vec![1], 1)));
        drop(spool);
        let spool = Spool::open(&path, "here", 5).expect("spool");
        let piece = spool.oldest(EARLIER, 2, &mut read).expect("read").expect("a piece");
        assert_eq!((piece.chunks, &read), (2, &one));
        spool.remove(EARLIER, &piece).expect("removed");
        read.clear();
        let piece = spool.oldest(EARLIER, 10, &mut read).expect("read").expect("a piece");
        assert_eq!((piece.chunks, &read), (3, &[&two[..], &other, &third].concat()));
        spool.remove(EARLIER, &piece).expect("removed");
        assert!(spool.oldest(EARLIER, 10, &mut read).expect("read").is_none());
        assert_eq!(spool.held(), 0);
        drop(spool);
        drop(Spool::open(&path, "there", 5).expect("an empty one may change its database"));
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{path}{suffix}"));
        }
    }
}
