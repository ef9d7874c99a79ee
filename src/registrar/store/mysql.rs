//! MySQL and MariaDB.
//!
//! One multi-row upsert carries a batch. A prepared statement has a fixed number of rows, so a batch is filled up to the
//! next size in [`SIZES`] by repeating its last row: the server finds that row unchanged, which costs less than another
//! round trip. A batch of one statement commits by itself (autocommit); more statements stand between START TRANSACTION
//! and COMMIT.

mod url;

use std::time::Duration;

use mysql::prelude::Queryable;
use mysql::{Conn, DriverError, Opts, Params, Value};

use super::schema;
use super::{
    Aor, Batch, EachRow, EachUser, Key, Kind, NO_METHODS, NO_Q, Row, Session, Store, StoreError, StoreOptions, UserRow,
    clamp_u32, q_of, q_to,
};

const DDL: &str = include_str!("mysql.sql");
const COLUMNS: &str = "username, domain, contact, instance, reg_id, ruid, received, path, callid, user_agent, socket, \
                       expires, last_modified, cseq, q, methods, server_id";
const COLUMN_COUNT: usize = 17;
const KEY_COLUMNS: [&str; 5] = ["username", "domain", "contact", "instance", "reg_id"];

/// Rows per prepared statement. About 100 is where larger batches stop paying.
const SIZES: [usize; 22] = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 100];
/// Keys per SELECT or DELETE.
const KEY_SIZES: [usize; 4] = [1, 4, 16, 64];

fn size_for(n: usize, sizes: &[usize]) -> usize {
    sizes.iter().copied().find(|size| *size >= n).unwrap_or(sizes[sizes.len() - 1])
}

pub(super) struct Mysql {
    opts: Opts,
    place: String,
    options: StoreOptions,
}

impl Mysql {
    pub fn new(url: &str, options: &StoreOptions) -> Result<Self, StoreError> {
        let (opts, place) = url::read(url)?;
        let opts = opts
            .tcp_connect_timeout(Some(options.connect_timeout))
            .read_timeout(Some(options.statement_timeout))
            .write_timeout(Some(options.statement_timeout))
            .tcp_keepalive_time_ms(Some(10_000))
            .stmt_cache_size(64usize)
            .into();
        Ok(Mysql { opts, place, options: options.clone() })
    }

    fn open(&self) -> Result<Conn, StoreError> {
        let connect = || -> mysql::Result<Conn> {
            let mut conn = Conn::new(self.opts.clone())?;
            // Strict: what does not fit is refused, never cut. READ COMMITTED: no gap locks between writers. A row lock is
            // not waited for longer than a batch may be late.
            conn.query_drop(
                "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', SESSION innodb_lock_wait_timeout = 5",
            )?;
            conn.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")?;
            Ok(conn)
        };
        connect().map_err(|e| {
            StoreError::new(Kind::Unreachable, format!("cannot connect to {}: {}", self.place, sentence(&e)))
        })
    }
}

impl Store for Mysql {
    fn prepare(&self) -> Result<(), StoreError> {
        let mut conn = self.open()?;
        let exists = |conn: &mut Conn, table: &str| -> Result<bool, StoreError> {
            let sql =
                "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?";
            let count: Option<i64> = conn.exec_first(sql, (table,)).map_err(classify)?;
            Ok(count.unwrap_or(0) > 0)
        };
        let versioned = exists(&mut conn, "version")?;
        let mut complete = versioned;
        for (table, wanted) in self.options.tables.versions() {
            let table = table.as_str();
            // The table is looked for first: another program that starts now writes the row before it creates the table.
            let there = exists(&mut conn, table)?;
            let version: Option<i64> = if versioned {
                conn.exec_first("SELECT table_version FROM version WHERE table_name = ?", (table,)).map_err(classify)?
            } else {
                None
            };
            schema::admit(table, wanted, there, version)?;
            complete &= there && version.is_some();
        }
        // A user without the right to create tables can use those that stand.
        if !complete {
            for statement in self.options.tables.statements(DDL) {
                conn.query_drop(statement).map_err(classify)?;
            }
        }
        let flush: Option<String> =
            conn.query_first("SELECT CAST(@@GLOBAL.innodb_flush_log_at_trx_commit AS CHAR)").unwrap_or_default();
        if let Some(value) = flush.filter(|value| self.options.durable && value != "1") {
            tracing::warn!(place = %self.place, value = %value,
                "innodb_flush_log_at_trx_commit is not 1: what was committed can be lost when the database's machine fails");
        }
        Ok(())
    }

    fn connect(&self) -> Result<Box<dyn Session>, StoreError> {
        Ok(Box::new(MysqlSession {
            conn: self.open()?,
            location: self.options.tables.location.as_str().to_owned(),
            subscriber: self.options.tables.subscriber.as_str().to_owned(),
            server_id: self.options.server_id,
            upserts: SIZES.map(|_| None),
            retry_pause: Duration::from_millis(2),
        }))
    }

    fn writers(&self) -> usize {
        2
    }

    fn place(&self) -> String {
        self.place.clone()
    }
}

struct MysqlSession {
    conn: Conn,
    location: String,
    subscriber: String,
    server_id: u32,
    /// By the index of their size.
    upserts: [Option<mysql::Statement>; SIZES.len()],
    retry_pause: Duration,
}

fn bytes(value: &[u8]) -> Value {
    Value::Bytes(value.to_vec())
}

fn bytes_or_null(value: &[u8]) -> Value {
    if value.is_empty() { Value::NULL } else { bytes(value) }
}

fn push_row(params: &mut Vec<Value>, row: &Row<'_>, server_id: u32) {
    params.extend([
        bytes(row.key.aor.user),
        bytes(row.key.aor.domain),
        bytes(row.key.contact),
        bytes(row.key.instance),
        row.key.reg_id.into(),
        bytes(row.ruid),
        bytes_or_null(row.received),
        bytes_or_null(row.path),
        bytes(row.call_id),
        bytes(row.user_agent),
        bytes_or_null(row.socket),
        row.expires.into(),
        row.modified.into(),
        row.cseq.into(),
        q_to(row.q).into(),
        if row.methods == NO_METHODS { Value::NULL } else { row.methods.into() },
        server_id.into(),
    ]);
}

fn push_key(params: &mut Vec<Value>, key: &Key<'_>) {
    params.extend([
        bytes(key.aor.user),
        bytes(key.aor.domain),
        bytes(key.contact),
        bytes(key.instance),
        key.reg_id.into(),
    ]);
}

fn upsert_sql(location: &str, rows: usize) -> String {
    let one = format!("({})", vec!["?"; COLUMN_COUNT].join(","));
    let updates: Vec<String> = COLUMNS
        .split(", ")
        .map(str::trim)
        .filter(|column| !KEY_COLUMNS.contains(column))
        .map(|column| format!("{column}=VALUES({column})"))
        .collect();
    format!(
        "INSERT INTO {location} ({COLUMNS}) VALUES {} ON DUPLICATE KEY UPDATE {}",
        vec![one.as_str(); rows].join(","),
        updates.join(",")
    )
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
    fn upsert(&mut self, rows: &[Row<'_>]) -> mysql::Result<()> {
        let size = size_for(rows.len(), &SIZES);
        let slot = SIZES.iter().position(|s| *s == size).unwrap_or(0);
        let statement = match &self.upserts[slot] {
            Some(statement) => statement.clone(),
            None => {
                let statement = self.conn.prep(upsert_sql(&self.location, size))?;
                self.upserts[slot].insert(statement).clone()
            }
        };
        let mut params = Vec::with_capacity(size * COLUMN_COUNT);
        for i in 0..size {
            push_row(&mut params, &rows[i.min(rows.len() - 1)], self.server_id);
        }
        self.conn.exec_drop(&statement, Params::Positional(params))
    }

    fn delete(&mut self, keys: &[Key<'_>]) -> mysql::Result<()> {
        let size = size_for(keys.len(), &KEY_SIZES);
        // A chain of ORs is read as ranges of the primary key by MySQL and MariaDB alike; row values with IN are not.
        let one = "(username=? AND domain=? AND contact=? AND instance=? AND reg_id=?)";
        let sql = format!("DELETE FROM {} WHERE {}", self.location, vec![one; size].join(" OR "));
        let mut params = Vec::with_capacity(size * KEY_COLUMNS.len());
        for i in 0..size {
            push_key(&mut params, &keys[i.min(keys.len() - 1)]);
        }
        self.conn.exec_drop(sql, Params::Positional(params))
    }

    fn write(&mut self, batch: &Batch<'_>) -> mysql::Result<()> {
        let largest = SIZES[SIZES.len() - 1];
        if batch.deletes.is_empty() && batch.upserts.len() <= largest {
            return if batch.upserts.is_empty() { Ok(()) } else { self.upsert(&batch.upserts) };
        }
        self.conn.query_drop("START TRANSACTION")?;
        for keys in batch.deletes.chunks(KEY_SIZES[KEY_SIZES.len() - 1]) {
            self.delete(keys)?;
        }
        for rows in batch.upserts.chunks(largest) {
            self.upsert(rows)?;
        }
        self.conn.query_drop("COMMIT")
    }
}

impl Session for MysqlSession {
    fn load_all(&mut self, each: EachRow<'_>) -> Result<u64, StoreError> {
        // The order is that of the primary key, so nothing is sorted.
        let sql = format!("SELECT {COLUMNS} FROM {} ORDER BY username, domain", self.location);
        let mut count = 0;
        for row in self.conn.exec_iter(sql, ()).map_err(classify)? {
            each(&row_of(&row.map_err(classify)?));
            count += 1;
        }
        Ok(count)
    }

    fn load_aors(&mut self, aors: &[Aor<'_>], each: EachRow<'_>) -> Result<u64, StoreError> {
        let mut selects = 0;
        for some in aors.chunks(KEY_SIZES[KEY_SIZES.len() - 1]) {
            let size = size_for(some.len(), &KEY_SIZES);
            let wanted = vec!["(username=? AND domain=?)"; size].join(" OR ");
            let sql = format!("SELECT {COLUMNS} FROM {} WHERE {wanted}", self.location);
            let mut params = Vec::with_capacity(2 * size);
            for i in 0..size {
                let aor = some[i.min(some.len() - 1)];
                params.extend([bytes(aor.user), bytes(aor.domain)]);
            }
            for row in self.conn.exec_iter(sql, Params::Positional(params)).map_err(classify)? {
                each(&row_of(&row.map_err(classify)?));
            }
            selects += 1;
        }
        Ok(selects)
    }

    fn load_users(&mut self, users: &[Aor<'_>], each: EachUser<'_>) -> Result<u64, StoreError> {
        let columns = "SELECT username, domain, password, ha1, ha1b FROM";
        let mut selects = 0;
        for user in users {
            // The columns hold text, so what is not text names nobody (and would be an error to the server).
            if std::str::from_utf8(user.user).is_err() || std::str::from_utf8(user.domain).is_err() {
                continue;
            }
            let (sql, params) = if user.domain.is_empty() {
                (format!("{columns} {} WHERE username=?", self.subscriber), vec![bytes(user.user)])
            } else {
                let sql = format!("{columns} {} WHERE username=? AND domain=?", self.subscriber);
                (sql, vec![bytes(user.user), bytes(user.domain)])
            };
            for row in self.conn.exec_iter(sql, Params::Positional(params)).map_err(classify)? {
                let row = row.map_err(classify)?;
                each(&UserRow {
                    aor: Aor { user: text_at(&row, 0), domain: text_at(&row, 1) },
                    password: text_at(&row, 2),
                    ha1: text_at(&row, 3),
                    ha1b: text_at(&row, 4),
                });
            }
            selects += 1;
        }
        Ok(selects)
    }

    fn commit(&mut self, batch: &Batch<'_>) -> Result<(), StoreError> {
        // A deadlock is between two batches that are both about to commit: one short pause settles nearly all of them.
        let mut outcome = self.write(batch).map_err(classify);
        if matches!(&outcome, Err(e) if e.kind() == Kind::Retry) {
            self.rollback()?;
            std::thread::sleep(self.retry_pause);
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
}

impl MysqlSession {
    fn rollback(&mut self) -> Result<(), StoreError> {
        self.conn.query_drop("ROLLBACK").map_err(classify)
    }
}

/// The library's messages, as one sentence.
fn sentence(error: &mysql::Error) -> String {
    match error {
        mysql::Error::MySqlError(e) => format!("{} (error {})", e.message, e.code),
        mysql::Error::DriverError(DriverError::CouldNotConnect(Some((_, description, _)))) => description.clone(),
        other => other.to_string(),
    }
}

fn classify(error: mysql::Error) -> StoreError {
    let kind = match &error {
        mysql::Error::MySqlError(e) => match e.code {
            // Lock wait, deadlock, certification failure of a cluster at COMMIT.
            1205 | 1213 | 1180 => Kind::Retry,
            // Data too long, out of range, not of the column's type, NULL where none may stand, a broken CHECK or key.
            1048 | 1062 | 1264 | 1265 | 1292 | 1366 | 1406 | 3819 | 4025 => Kind::Refused,
            _ if e.state.starts_with("22") || e.state.starts_with("23") => Kind::Refused,
            _ => Kind::Lost,
        },
        mysql::Error::DriverError(DriverError::PacketTooLarge) => Kind::Refused,
        _ => Kind::Lost,
    };
    StoreError::new(kind, sentence(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_takes_the_next_larger_statement() {
        assert_eq!([1, 9, 37, 81, 100, 500].map(|n| size_for(n, &SIZES)), [1, 10, 40, 100, 100, 100]);
        assert!(SIZES.is_sorted());
        assert_eq!(COLUMNS.split(',').count(), COLUMN_COUNT);
        assert_eq!(upsert_sql("location", 3).matches('?').count(), 3 * COLUMN_COUNT);
    }
}
