//! SQLite: the store that needs no server. One writer at a time, so one connection writes.
//!
//! WAL, so that readers never wait for the writer; synchronous=FULL where a commit has to be on the disk.

use std::time::Duration;

use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, Statement, ToSql, params};

use super::schema::{self, Tables};
use super::{
    Aor, Batch, EachRow, EachUser, Key, Kind, NO_METHODS, Row, Session, Store, StoreError, StoreOptions, UserRow,
    clamp_u32, q_of, q_to,
};

const DDL: &str = include_str!("sqlite.sql");
const COLUMNS: &str = "username, domain, contact, instance, reg_id, ruid, received, path, callid, user_agent, socket, \
                       expires, last_modified, cseq, q, methods, server_id";

pub(super) struct Sqlite {
    path: String,
    options: StoreOptions,
}

impl Sqlite {
    pub fn new(path: &str, options: &StoreOptions) -> Result<Self, StoreError> {
        if path.is_empty() || path.contains('\0') {
            return Err(StoreError::new(Kind::Config, "sqlite: needs the path of a file behind it"));
        }
        // Each connection to ":memory:" is a database of its own, so what one thread writes no other would see.
        if path == ":memory:" {
            return Err(StoreError::new(
                Kind::Config,
                "sqlite::memory: is not shared between threads; use mode memory",
            ));
        }
        Ok(Sqlite { path: path.to_owned(), options: options.clone() })
    }

    fn open(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connect = || -> rusqlite::Result<Connection> {
            let db = Connection::open_with_flags(&self.path, flags)?;
            db.busy_timeout(self.options.statement_timeout.min(Duration::from_secs(5)))?;
            db.pragma_update(None, "journal_mode", "WAL")?;
            db.pragma_update(None, "synchronous", if self.options.durable { "FULL" } else { "NORMAL" })?;
            db.set_prepared_statement_cache_capacity(16);
            Ok(db)
        };
        connect().map_err(|e| StoreError::new(Kind::Denied, format!("cannot open {}: {e}", self.place())))
    }
}

impl Store for Sqlite {
    fn prepare(&self) -> Result<(), StoreError> {
        let mut db = self.open()?;
        // IMMEDIATE: two programs that start at once create the tables one after the other.
        let tx = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(classify)?;
        let has = |table: &str| -> rusqlite::Result<bool> {
            tx.query_row("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?", [table], |row| {
                row.get::<_, i64>(0)
            })
            .map(|n| n > 0)
        };
        let versioned = has("version").map_err(classify)?;
        for (table, wanted) in self.options.tables.versions() {
            let table = table.as_str();
            let mut version = None;
            if versioned {
                let row =
                    tx.query_row("SELECT table_version FROM version WHERE table_name = ?", [table], |row| row.get(0));
                version = match row {
                    Ok(found) => Some(found),
                    Err(rusqlite::Error::QueryReturnedNoRows) => None,
                    Err(e) => return Err(classify(e)),
                };
            }
            schema::admit(table, wanted, has(table).map_err(classify)?, version)?;
        }
        for statement in self.options.tables.statements(DDL) {
            tx.execute(&statement, []).map_err(classify)?;
        }
        tx.commit().map_err(classify)
    }

    fn connect(&self) -> Result<Box<dyn Session>, StoreError> {
        let db = self.open()?;
        Ok(Box::new(SqliteSession { sql: Sql::new(&self.options.tables), db, server_id: self.options.server_id }))
    }

    fn writers(&self) -> usize {
        1
    }

    fn place(&self) -> String {
        format!("sqlite:{}", self.path)
    }
}

struct Sql {
    all: String,
    of_aor: String,
    user: String,
    user_any_domain: String,
    upsert: String,
    delete: String,
    sweep: String,
}

impl Sql {
    fn new(tables: &Tables) -> Sql {
        let location = tables.location.as_str();
        let subscriber = tables.subscriber.as_str();
        let updates: Vec<String> = COLUMNS
            .split(", ")
            .map(str::trim)
            .filter(|c| !["username", "domain", "contact", "instance", "reg_id"].contains(c))
            .map(|c| format!("{c} = excluded.{c}"))
            .collect();
        let users = format!("SELECT username, domain, password, ha1, ha1b FROM {subscriber} WHERE username = ?1");
        Sql {
            all: format!("SELECT {COLUMNS} FROM {location} ORDER BY username, domain"),
            of_aor: format!("SELECT {COLUMNS} FROM {location} WHERE username = ?1 AND domain = ?2"),
            user: format!("{users} AND domain = ?2"),
            user_any_domain: users,
            upsert: format!(
                "INSERT INTO {location} ({COLUMNS}) VALUES ({}) ON CONFLICT DO UPDATE SET {}",
                vec!["?"; COLUMNS.split(',').count()].join(", "),
                updates.join(", ")
            ),
            delete: format!(
                "DELETE FROM {location} WHERE username = ? AND domain = ? AND contact = ? AND instance = ? AND reg_id = ?"
            ),
            sweep: format!("DELETE FROM {location} WHERE expires < ?"),
        }
    }
}

struct SqliteSession {
    sql: Sql,
    db: Connection,
    server_id: u32,
}

/// Bound as TEXT whatever its bytes: SQLite compares TEXT and BLOB as different values, and a C program binds text.
struct Text<'a>(&'a [u8]);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

/// As [`Text`], with NULL for what is empty.
struct TextOrNull<'a>(&'a [u8]);

impl ToSql for TextOrNull<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        if self.0.is_empty() {
            return Ok(ToSqlOutput::Owned(Value::Null));
        }
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

fn text_of<'a>(row: &'a rusqlite::Row<'_>, column: usize) -> rusqlite::Result<&'a [u8]> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
        _ => b"",
    })
}

fn number_of(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Option<i64>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Integer(n) => Some(n),
        ValueRef::Real(r) => Some(r as i64),
        _ => None,
    })
}

fn each_row(mut rows: rusqlite::Rows<'_>, each: EachRow<'_>) -> rusqlite::Result<u64> {
    let mut count = 0;
    while let Some(row) = rows.next()? {
        let number = |column| number_of(row, column).map(|n| clamp_u32(n.unwrap_or(0)));
        let q = match row.get_ref(14)? {
            ValueRef::Real(r) => q_of(r),
            ValueRef::Integer(n) => q_of(n as f64),
            _ => super::NO_Q,
        };
        each(&Row {
            key: Key {
                aor: Aor { user: text_of(row, 0)?, domain: text_of(row, 1)? },
                contact: text_of(row, 2)?,
                instance: text_of(row, 3)?,
                reg_id: number(4)?,
            },
            ruid: text_of(row, 5)?,
            received: text_of(row, 6)?,
            path: text_of(row, 7)?,
            call_id: text_of(row, 8)?,
            user_agent: text_of(row, 9)?,
            socket: text_of(row, 10)?,
            expires: number(11)?,
            modified: number(12)?,
            cseq: number(13)?,
            q,
            methods: number_of(row, 15)?.map_or(NO_METHODS, clamp_u32),
            server_id: number(16)?,
        });
        count += 1;
    }
    Ok(count)
}

fn upsert(statement: &mut Statement<'_>, row: &Row<'_>, server_id: u32) -> rusqlite::Result<()> {
    let methods = (row.methods != NO_METHODS).then_some(row.methods);
    statement.execute(params![
        Text(row.key.aor.user),
        Text(row.key.aor.domain),
        Text(row.key.contact),
        Text(row.key.instance),
        row.key.reg_id,
        Text(row.ruid),
        TextOrNull(row.received),
        TextOrNull(row.path),
        Text(row.call_id),
        Text(row.user_agent),
        TextOrNull(row.socket),
        row.expires,
        row.modified,
        row.cseq,
        q_to(row.q),
        methods,
        server_id,
    ])?;
    Ok(())
}

impl SqliteSession {
    fn write(&mut self, batch: &Batch<'_>) -> rusqlite::Result<()> {
        let tx = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        if !batch.deletes.is_empty() {
            let mut statement = tx.prepare_cached(&self.sql.delete)?;
            for key in &batch.deletes {
                statement.execute(params![
                    Text(key.aor.user),
                    Text(key.aor.domain),
                    Text(key.contact),
                    Text(key.instance),
                    key.reg_id
                ])?;
            }
        }
        if !batch.upserts.is_empty() {
            let mut statement = tx.prepare_cached(&self.sql.upsert)?;
            for row in &batch.upserts {
                upsert(&mut statement, row, self.server_id)?;
            }
        }
        tx.commit()
    }
}

impl Session for SqliteSession {
    fn load_all(&mut self, each: EachRow<'_>) -> Result<u64, StoreError> {
        let mut statement = self.db.prepare(&self.sql.all).map_err(classify)?;
        let rows = statement.query([]).map_err(classify)?;
        each_row(rows, each).map_err(classify)
    }

    fn load_aors(&mut self, aors: &[Aor<'_>], each: EachRow<'_>) -> Result<u64, StoreError> {
        let mut statement = self.db.prepare_cached(&self.sql.of_aor).map_err(classify)?;
        for aor in aors {
            let rows = statement.query(params![Text(aor.user), Text(aor.domain)]).map_err(classify)?;
            each_row(rows, &mut *each).map_err(classify)?;
        }
        Ok(aors.len() as u64)
    }

    fn load_users(&mut self, users: &[Aor<'_>], each: EachUser<'_>) -> Result<u64, StoreError> {
        for aor in users {
            let one = |each: EachUser<'_>| -> rusqlite::Result<()> {
                let mut statement;
                let mut rows = if aor.domain.is_empty() {
                    statement = self.db.prepare_cached(&self.sql.user_any_domain)?;
                    statement.query(params![Text(aor.user)])?
                } else {
                    statement = self.db.prepare_cached(&self.sql.user)?;
                    statement.query(params![Text(aor.user), Text(aor.domain)])?
                };
                while let Some(row) = rows.next()? {
                    each(&UserRow {
                        aor: Aor { user: text_of(row, 0)?, domain: text_of(row, 1)? },
                        password: text_of(row, 2)?,
                        ha1: text_of(row, 3)?,
                        ha1b: text_of(row, 4)?,
                    });
                }
                Ok(())
            };
            one(&mut *each).map_err(classify)?;
        }
        Ok(users.len() as u64)
    }

    fn commit(&mut self, batch: &Batch<'_>) -> Result<(), StoreError> {
        self.write(batch).map_err(classify)
    }

    /// The file is one server's: nobody else changes it.
    fn changed_since(&mut self, _: u32, _: EachRow<'_>) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn sweep(&mut self, before: u32) -> Result<u64, StoreError> {
        let swept = self.db.execute(&self.sql.sweep, params![before]).map_err(classify)?;
        Ok(swept as u64)
    }
}

fn classify(error: rusqlite::Error) -> StoreError {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Kind::Retry,
        Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch) => Kind::Refused,
        _ => Kind::Lost,
    };
    StoreError::new(kind, format!("SQLite: {error}"))
}
