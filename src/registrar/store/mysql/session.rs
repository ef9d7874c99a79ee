//! One connection.

use std::sync::Arc;

use mysql::prelude::Queryable;
use mysql::{Conn, Params, Value};

use super::ids::{Ids, Ruid, ruid};
use super::sql::{SWEEP, Sql};
use super::{RETRY_PAUSE, classify, is_of_other_charset};
use crate::registrar::store::layout::LOCATION;
use crate::registrar::store::{
    Aor, Batch, EachRow, EachUser, Key, Kind, NO_METHODS, NO_Q, Row, Session, StoreError, StoreOptions, UserRow,
    clamp_u32, is_newer, q_of, q_to,
};

/// Rows per prepared statement. About 100 is where larger batches stop paying.
const SIZES: [usize; 22] = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 100];
/// Keys per SELECT or DELETE.
const KEY_SIZES: [usize; 4] = [1, 4, 16, 64];
const MOST_KEYS: usize = KEY_SIZES[KEY_SIZES.len() - 1];
/// A change that is older than this when it is written (it waited out an outage) is compared with what stands there before:
/// its own time would hide it from those who poll.
const DELAYED: u32 = 5;
/// FROM_UNIXTIME knows no later second.
const LAST_SECOND: u32 = i32::MAX as u32;

fn size_for(n: usize, sizes: &[usize]) -> usize {
    sizes.iter().copied().find(|size| *size >= n).unwrap_or(sizes[sizes.len() - 1])
}

/// A row with the `ruid` that is made of its key, and its `id` where that is known.
type Identified<'r> = (Row<'r>, Ruid, Option<u32>);

pub(super) struct MysqlSession {
    conn: Conn,
    sql: Sql,
    users: [String; 2],
    server_id: u32,
    shared: bool,
    ids: Arc<Ids>,
    /// By the index of their size: without `id`, with it.
    upserts: [[Option<mysql::Statement>; SIZES.len()]; 2],
}

fn bytes(value: &[u8]) -> Value {
    Value::Bytes(value.to_vec())
}

fn bytes_or_null(value: &[u8]) -> Value {
    if value.is_empty() { Value::NULL } else { bytes(value) }
}

fn text_at(row: &mysql::Row, column: usize) -> &[u8] {
    match row.as_ref(column) {
        Some(Value::Bytes(bytes)) => bytes,
        _ => b"",
    }
}

fn number_at(row: &mysql::Row, column: usize) -> Option<u32> {
    match row.as_ref(column) {
        Some(Value::Int(n)) => Some(clamp_u32(*n)),
        Some(Value::UInt(n)) => Some(u32::try_from(*n).unwrap_or(u32::MAX)),
        _ => None,
    }
}

/// In the order of [`LOCATION`].
fn row_of(row: &mysql::Row) -> Row<'_> {
    let number = |column| number_at(row, column).unwrap_or(0);
    Row {
        key: Key {
            aor: Aor { user: text_at(row, 0), domain: text_at(row, 1) },
            contact: text_at(row, 2),
            instance: text_at(row, 3),
            reg_id: number(4),
        },
        ruid: text_at(row, 5),
        received: text_at(row, 6),
        path: text_at(row, 7),
        call_id: text_at(row, 8),
        user_agent: text_at(row, 9),
        socket: text_at(row, 10),
        expires: number(11),
        modified: number(12),
        cseq: number(13),
        q: match row.as_ref(14) {
            Some(Value::Float(q)) => q_of(f64::from(*q)),
            Some(Value::Double(q)) => q_of(*q),
            _ => NO_Q,
        },
        methods: number_at(row, 15).unwrap_or(NO_METHODS),
        server_id: number(16),
    }
}

impl MysqlSession {
    pub fn new(conn: Conn, sql: Sql, options: &StoreOptions, ids: Arc<Ids>) -> Self {
        let (layout, table) = (&options.layout, options.tables.subscriber.as_str());
        let [user, domain, password, ha1, ha1b] =
            ["username", "domain", "password", "ha1", "ha1b"].map(|column| format!("`{}`", layout.subscriber(column)));
        let any = format!("SELECT {user}, {domain}, {password}, {ha1}, {ha1b} FROM {table} WHERE {user}=?");
        MysqlSession {
            conn,
            sql,
            users: [format!("{any} AND {domain}=?"), any],
            server_id: options.server_id,
            shared: options.shared,
            ids,
            upserts: [const { [const { None }; SIZES.len()] }; 2],
        }
    }

    fn push_row(&self, params: &mut Vec<Value>, row: &Row<'_>, ruid: &[u8]) {
        let theirs = self.sql.kamailio();
        let or_null = |value| if theirs { bytes_or_null(value) } else { bytes(value) };
        let seconds = |value: u32| if self.sql.date_time() { value.min(LAST_SECOND) } else { value };
        let expires = if theirs && row.expires == u32::MAX { 0 } else { seconds(row.expires) };
        // Kamailio writes a missing q as -1 hundredth.
        let q = if theirs && row.q == NO_Q { -0.01 } else { q_to(row.q) };
        params.extend([
            bytes(row.key.aor.user),
            or_null(row.key.aor.domain),
            bytes(row.key.contact),
            or_null(row.key.instance),
            row.key.reg_id.into(),
            bytes(ruid),
            bytes_or_null(row.received),
            bytes_or_null(row.path),
            bytes(row.call_id),
            bytes(row.user_agent),
            bytes_or_null(row.socket),
            expires.into(),
            seconds(row.modified).into(),
            row.cseq.into(),
            q.into(),
            if row.methods == NO_METHODS { Value::NULL } else { row.methods.into() },
            self.server_id.into(),
        ]);
    }

    fn push_key(&self, params: &mut Vec<Value>, key: &Key<'_>) {
        params.push(bytes(key.aor.user));
        if self.sql.kamailio() {
            params.extend([bytes_or_null(key.aor.domain), bytes(key.contact)]);
        } else {
            params.push(bytes(key.aor.domain));
        }
        params.extend([bytes(key.contact), bytes(key.instance), key.reg_id.into()]);
    }

    /// Parameters for `size` keys: the last is repeated.
    fn key_parameters(&self, keys: &[Key<'_>], size: usize) -> Params {
        let mut params = Vec::with_capacity(size * 6);
        for i in 0..size {
            self.push_key(&mut params, &keys[i.min(keys.len() - 1)]);
        }
        Params::Positional(params)
    }

    fn upsert(&mut self, rows: &[Identified<'_>]) -> mysql::Result<()> {
        let size = size_for(rows.len(), &SIZES);
        let slot = SIZES.iter().position(|s| *s == size).unwrap_or(0);
        let with_id = rows.first().is_some_and(|(_, _, id)| id.is_some());
        let statement = match &self.upserts[usize::from(with_id)][slot] {
            Some(statement) => statement.clone(),
            None => {
                let statement = self.conn.prep(self.sql.upsert(size, with_id))?;
                self.upserts[usize::from(with_id)][slot].insert(statement).clone()
            }
        };
        let mut params = Vec::with_capacity(size * (LOCATION.len() + 1));
        for i in 0..size {
            let (row, made, id) = &rows[i.min(rows.len() - 1)];
            params.extend(id.map(Value::from));
            self.push_row(&mut params, row, if row.ruid.is_empty() && self.sql.kamailio() { made } else { row.ruid });
        }
        self.conn.exec_drop(&statement, Params::Positional(params))
    }

    fn delete(&mut self, keys: &[Key<'_>]) -> mysql::Result<()> {
        let size = size_for(keys.len(), &KEY_SIZES);
        let params = self.key_parameters(keys, size);
        self.conn.exec_drop(self.sql.delete(size), params)?;
        if self.sql.kamailio() {
            keys.iter().for_each(|key| self.ids.forget(&ruid(key)));
        }
        Ok(())
    }

    /// Gives each row what its statement needs besides: in Kamailio's table `ruid`, and `id` where the row stands there.
    /// The first of the result have no `id`; their number.
    fn identify<'r>(&mut self, rows: &[Row<'r>]) -> mysql::Result<(Vec<Identified<'r>>, usize)> {
        if !self.sql.kamailio() {
            return Ok((rows.iter().map(|row| (*row, [0; 35], None)).collect(), rows.len()));
        }
        let mut found: Vec<Identified<'r>> = Vec::with_capacity(rows.len());
        let mut unknown = Vec::new();
        for row in rows {
            let made = ruid(&row.key);
            let known: &[u8] = if row.ruid.is_empty() { &made } else { row.ruid };
            let id = self.ids.get(known);
            if id.is_none() {
                unknown.push(known.to_vec());
            }
            found.push((*row, made, id));
        }
        for some in unknown.chunks(MOST_KEYS) {
            let size = size_for(some.len(), &KEY_SIZES);
            let params = (0..size).map(|i| bytes(&some[i.min(some.len() - 1)])).collect();
            let ids: Vec<(u32, Vec<u8>)> = self.conn.exec(self.sql.ids(size), Params::Positional(params))?;
            for (id, ruid) in ids {
                self.ids.learn(&ruid, id);
            }
        }
        if !unknown.is_empty() {
            for (row, made, id) in found.iter_mut().filter(|(_, _, id)| id.is_none()) {
                *id = self.ids.get(if row.ruid.is_empty() { made } else { row.ruid });
            }
            // Stable: each part stays in the order in which every writer locks.
            found.sort_by_key(|(_, _, id)| id.is_some());
        }
        let fresh = found.iter().take_while(|(_, _, id)| id.is_none()).count();
        Ok((found, fresh))
    }

    fn write(&mut self, batch: &Batch<'_>) -> mysql::Result<()> {
        let now = crate::registrar::system_clock();
        let delayed = |row: &&Row<'_>| row.modified.saturating_add(DELAYED) < now;
        let careful = self.shared && batch.upserts.iter().any(|row| delayed(&row));
        let largest = SIZES[SIZES.len() - 1];
        let (rows, fresh) = self.identify(&batch.upserts)?;
        let single = rows.len() <= largest && (fresh == 0 || fresh == rows.len());
        if batch.deletes.is_empty() && single && !careful {
            return if rows.is_empty() { Ok(()) } else { self.upsert(&rows) };
        }
        self.conn.query_drop("START TRANSACTION")?;
        for keys in batch.deletes.chunks(MOST_KEYS) {
            self.delete(keys)?;
        }
        let (mut fresh, mut known) = (rows[..fresh].to_vec(), rows[fresh..].to_vec());
        if careful {
            self.keep_winners(&mut fresh, now)?;
            self.keep_winners(&mut known, now)?;
        }
        for rows in fresh.chunks(largest).chain(known.chunks(largest)) {
            self.upsert(rows)?;
        }
        self.conn.query_drop("COMMIT")
    }

    /// Of rows that waited for long: locks what stands there, drops what is older than that, and gives the rest the time
    /// of now, so that other servers find it.
    fn keep_winners(&mut self, rows: &mut Vec<Identified<'_>>, now: u32) -> mysql::Result<()> {
        let keys: Vec<Key<'_>> = rows.iter().map(|(row, _, _)| row.key).collect();
        let mut lost = vec![false; rows.len()];
        for (chunk, some) in keys.chunks(MOST_KEYS).enumerate() {
            let size = size_for(some.len(), &KEY_SIZES);
            let params = self.key_parameters(some, size);
            let stored: Vec<mysql::Row> = self.conn.exec(self.sql.lock(size), params)?;
            for raw in &stored {
                let stored = taken_in(&self.sql, &self.ids, raw);
                for (at, key) in some.iter().enumerate().filter(|(_, key)| **key == stored.key) {
                    let (row, _, _) = &rows[chunk * MOST_KEYS + at];
                    let wins = stored.server_id == self.server_id || is_newer(row, &stored, true);
                    lost[chunk * MOST_KEYS + at] = row.key == *key && !wins;
                }
            }
        }
        let mut lost = lost.into_iter();
        rows.retain(|_| !lost.next().unwrap_or(false));
        for (row, _, _) in rows {
            row.modified = row.modified.max(now);
        }
        Ok(())
    }

    fn rollback(&mut self) -> Result<(), StoreError> {
        self.conn.query_drop("ROLLBACK").map_err(classify)
    }

    /// Streams what a statement finds.
    fn read(&mut self, sql: String, params: Params, each: EachRow<'_>) -> mysql::Result<u64> {
        let (mut count, sql_of) = (0, &self.sql);
        let ids = &self.ids;
        for raw in self.conn.exec_iter(sql, params)? {
            each(&taken_in(sql_of, ids, &raw?));
            count += 1;
        }
        Ok(count)
    }

    fn read_aors(&mut self, aors: &[Aor<'_>], each: EachRow<'_>) -> mysql::Result<u64> {
        let size = size_for(aors.len(), &KEY_SIZES);
        let mut params = Vec::with_capacity(2 * size);
        for i in 0..size {
            let aor = aors[i.min(aors.len() - 1)];
            let domain = if self.sql.kamailio() { bytes_or_null(aor.domain) } else { bytes(aor.domain) };
            params.extend([bytes(aor.user), domain]);
        }
        self.read(self.sql.of_aors(size), Params::Positional(params), each)
    }
}

impl Session for MysqlSession {
    fn load_all(&mut self, each: EachRow<'_>) -> Result<u64, StoreError> {
        self.read(self.sql.all(), Params::Empty, each).map_err(classify)
    }

    fn loads_in_order(&self) -> bool {
        !self.sql.kamailio()
    }

    fn load_aors(&mut self, aors: &[Aor<'_>], each: EachRow<'_>) -> Result<u64, StoreError> {
        let mut selects = 0;
        for some in aors.chunks(MOST_KEYS) {
            selects += 1;
            match self.read_aors(some, &mut *each) {
                // One among them is of no row; it is not to stand in the way of the others.
                Err(e) if is_of_other_charset(&e) => {
                    for aor in some.chunks(1).filter(|_| some.len() > 1) {
                        selects += 1;
                        match self.read_aors(aor, &mut *each) {
                            Err(e) if !is_of_other_charset(&e) => return Err(classify(e)),
                            _ => {}
                        }
                    }
                }
                other => _ = other.map_err(classify)?,
            }
        }
        Ok(selects)
    }

    fn load_users(&mut self, users: &[Aor<'_>], each: EachUser<'_>) -> Result<u64, StoreError> {
        let mut selects = 0;
        for user in users {
            // The columns hold text, so what is not text names nobody (and would be an error to the server).
            if std::str::from_utf8(user.user).is_err() || std::str::from_utf8(user.domain).is_err() {
                continue;
            }
            let (sql, params) = if user.domain.is_empty() {
                (&self.users[1], vec![bytes(user.user)])
            } else {
                (&self.users[0], vec![bytes(user.user), bytes(user.domain)])
            };
            selects += 1;
            let rows = match self.conn.exec_iter(sql, Params::Positional(params)) {
                Err(e) if is_of_other_charset(&e) => continue,
                other => other.map_err(classify)?,
            };
            for row in rows {
                let row = row.map_err(classify)?;
                each(&UserRow {
                    aor: Aor { user: text_at(&row, 0), domain: text_at(&row, 1) },
                    password: text_at(&row, 2),
                    ha1: text_at(&row, 3),
                    ha1b: text_at(&row, 4),
                });
            }
        }
        Ok(selects)
    }

    fn commit(&mut self, batch: &Batch<'_>) -> Result<(), StoreError> {
        // A deadlock is between two batches that are both about to commit: one short pause settles nearly all of them.
        let mut outcome = self.write(batch).map_err(classify);
        if matches!(&outcome, Err(e) if e.kind() == Kind::Retry) {
            self.rollback()?;
            std::thread::sleep(RETRY_PAUSE);
            outcome = self.write(batch).map_err(classify);
        }
        match outcome {
            Err(e) if e.kind() != Kind::Lost => {
                self.rollback()?;
                Err(e)
            }
            other => other,
        }
    }

    fn changed_since(&mut self, since: u32, each: EachRow<'_>) -> Result<u64, StoreError> {
        let all: Vec<u32> = self.conn.exec(self.sql.servers(), ()).map_err(classify)?;
        let others: Vec<u32> = all.into_iter().filter(|id| *id != self.server_id).collect();
        if others.is_empty() {
            return Ok(0);
        }
        let params = std::iter::once(since).chain(others.iter().copied()).map(Value::from).collect();
        self.read(self.sql.changed(others.len()), Params::Positional(params), each).map_err(classify)
    }

    fn sweep(&mut self, before: u32) -> Result<u64, StoreError> {
        let mut swept = 0;
        loop {
            self.conn.exec_drop(self.sql.sweep(), (before,)).map_err(classify)?;
            swept += self.conn.affected_rows();
            if self.conn.affected_rows() < SWEEP {
                return Ok(swept);
            }
        }
    }
}

/// A row as the cache takes it. Kamailio's expires 0 stands for a contact without an end, and a `ruid` that is made of the
/// key need not be kept.
fn taken_in<'a>(sql: &Sql, ids: &Ids, raw: &'a mysql::Row) -> Row<'a> {
    let mut row = row_of(raw);
    if sql.kamailio() {
        if let Some(id) = number_at(raw, LOCATION.len()) {
            ids.learn(row.ruid, id);
        }
        if row.expires == 0 {
            row.expires = u32::MAX;
        }
        if row.ruid == ruid(&row.key) {
            row.ruid = b"";
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_takes_the_next_larger_statement() {
        assert_eq!([1, 9, 37, 81, 100, 500].map(|n| size_for(n, &SIZES)), [1, 10, 40, 100, 100, 100]);
        assert!(SIZES.is_sorted());
    }
}
