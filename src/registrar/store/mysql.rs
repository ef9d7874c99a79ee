//! MySQL and MariaDB.
//!
//! One multi-row upsert carries a batch. A prepared statement has a fixed number of rows, so a batch is filled up to the
//! next size in [`SIZES`] by repeating its last row: the server finds that row unchanged, which costs less than another
//! round trip. A batch of one statement commits by itself (autocommit); more statements stand between START TRANSACTION
//! and COMMIT.

pub(super) mod ids;
mod session;
mod sql;
mod url;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mysql::prelude::Queryable;
use mysql::{Conn, DriverError, Opts};

use super::layout::{LOCATION, Schema};
use super::row::{Charset, Widths};
use super::schema;
use super::{Kind, Session, Store, StoreError, StoreOptions};
use ids::Ids;
use session::MysqlSession;
use sql::Sql;

const DDL: &str = include_str!("mysql.sql");

/// What Kamailio's `version` says about its `location`, from 5.0 to 5.8.
const KAMAILIO_LOCATION: u32 = 9;

/// The options of a URL's first host.
pub(super) fn options(url: &str) -> Result<Opts, StoreError> {
    let (mut hosts, _) = url::read(url)?;
    Ok(hosts.swap_remove(0).into())
}

type TableColumn = (String, Option<u64>, Option<String>);

pub(super) struct Mysql {
    hosts: Vec<Opts>,
    /// The host that is tried first.
    first: AtomicUsize,
    place: String,
    options: StoreOptions,
    ids: Arc<Ids>,
}

impl Mysql {
    pub fn new(url: &str, options: &StoreOptions) -> Result<Self, StoreError> {
        options.layout.check()?;
        let (hosts, place) = url::read(url)?;
        let hosts = hosts.into_iter().map(|opts| {
            opts.tcp_connect_timeout(Some(options.connect_timeout))
                .read_timeout(Some(options.statement_timeout))
                .write_timeout(Some(options.statement_timeout))
                .tcp_keepalive_time_ms(Some(10_000))
                .stmt_cache_size(64usize)
                .into()
        });
        Ok(Mysql {
            hosts: hosts.collect(),
            first: AtomicUsize::new(0),
            place,
            options: options.clone(),
            ids: Arc::new(Ids::new()),
        })
    }

    /// A connection to the first host that takes writes; among several, the one that was good last is tried first.
    fn open(&self) -> Result<Conn, StoreError> {
        let first = self.first.load(Ordering::Relaxed);
        let (mut last, mut away) = (None, false);
        for turn in 0..self.hosts.len() {
            let index = (first + turn) % self.hosts.len();
            match self.open_one(&self.hosts[index]) {
                Ok(conn) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(conn);
                }
                Err(e) => {
                    away |= !is_denied(&e);
                    last = Some(e);
                }
            }
        }
        let why = last.as_ref().map_or_else(|| "no host".to_owned(), sentence);
        let kind = if away || last.is_none() { Kind::Unreachable } else { Kind::Denied };
        Err(StoreError::new(kind, format!("cannot connect to {}: {why}", self.place)))
    }

    fn open_one(&self, opts: &Opts) -> mysql::Result<Conn> {
        let mut conn = Conn::new(opts.clone())?;
        // Strict: what does not fit is refused, never cut. READ COMMITTED: no gap locks between writers. A row lock is
        // not waited for longer than a batch may be late.
        conn.query_drop(
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', SESSION innodb_lock_wait_timeout = 5",
        )?;
        conn.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")?;
        if self.options.layout.date_time() {
            conn.query_drop(format!("SET SESSION time_zone = '{}'", self.options.layout.time_zone))?;
        }
        if self.options.shared {
            // On a Galera node a read waits until what other nodes committed before is applied. No other server knows it.
            let _ = conn.query_drop("SET SESSION wsrep_sync_wait = 1");
        }
        if self.hosts.len() > 1 {
            let read_only: Option<i64> = conn.query_first("SELECT @@GLOBAL.read_only")?;
            if read_only == Some(1) {
                return Err(mysql::Error::IoError(std::io::Error::other("every host is read-only or away")));
            }
        }
        Ok(conn)
    }

    /// Name, width and character set of each.
    fn columns(&self, conn: &mut Conn, table: &str) -> Result<Vec<TableColumn>, StoreError> {
        conn.exec(
            "SELECT CAST(LOWER(column_name) AS CHAR), character_maximum_length, CAST(character_set_name AS CHAR) \
             FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = ?",
            (table,),
        )
        .map_err(classify)
    }

    /// Says which column of a table that is not ours is missing.
    fn check_columns(&self, conn: &mut Conn) -> Result<(), StoreError> {
        let location = self.options.tables.location.as_str();
        let found = self.columns(conn, location)?;
        if found.is_empty() {
            return Err(StoreError::new(Kind::Schema, format!("there is no table {location}")));
        }
        let wanted = LOCATION.iter().map(|column| self.options.layout.location(column)).chain(["id"]);
        for column in wanted {
            if !found.iter().any(|(name, ..)| name.eq_ignore_ascii_case(column)) {
                return Err(StoreError::new(Kind::Schema, format!("table {location} has no column {column}")));
            }
        }
        Ok(())
    }

    /// The indexes that several servers need.
    fn check_indexes(&self, conn: &mut Conn) -> Result<(), StoreError> {
        let table = self.options.tables.location.as_str();
        let layout = &self.options.layout;
        let rows: Vec<(String, u32, String)> = conn
            .exec(
                "SELECT CAST(index_name AS CHAR), CAST(seq_in_index AS UNSIGNED), CAST(LOWER(column_name) AS CHAR) \
                 FROM information_schema.statistics WHERE table_schema = DATABASE() AND table_name = ?",
                (table,),
            )
            .map_err(classify)?;
        let has = |columns: &[&str]| {
            rows.iter().any(|(index, _, _)| {
                columns.iter().enumerate().all(|(at, column)| {
                    rows.iter()
                        .any(|(i, seq, c)| i == index && *seq as usize == at + 1 && c.eq_ignore_ascii_case(column))
                })
            })
        };
        for (index, columns) in
            [("partyline_changed_idx", &["server_id", "last_modified"][..]), ("expires_idx", &["expires"])]
        {
            let names: Vec<&str> = columns.iter().map(|column| layout.location(column)).collect();
            if has(&names) {
                continue;
            }
            let sql = format!("CREATE INDEX {index} ON {table} (`{}`)", names.join("`, `"));
            if layout.schema == Schema::Own {
                match conn.query_drop(&sql) {
                    // 1061: another server that starts now was faster.
                    Err(mysql::Error::MySqlError(e)) if e.code == 1061 => {}
                    other => other.map_err(classify)?,
                }
            } else {
                tracing::warn!(place = %self.place, %sql, "without this index every poll reads the whole table");
            }
        }
        Ok(())
    }
}

impl Store for Mysql {
    fn prepare(&self) -> Result<(), StoreError> {
        let mut conn = self.open()?;
        let layout = &self.options.layout;
        let exists = |conn: &mut Conn, table: &str| -> Result<bool, StoreError> {
            let sql =
                "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?";
            let count: Option<i64> = conn.exec_first(sql, (table,)).map_err(classify)?;
            Ok(count.unwrap_or(0) > 0)
        };
        let versioned = exists(&mut conn, "version")?;
        let mut complete = versioned;
        for (table, wanted) in self.options.tables.versions() {
            // Who names the columns says that the table is none of Kamailio's.
            if layout.is_renamed() {
                break;
            }
            let ours = table == &self.options.tables.location && layout.schema == Schema::Own;
            let wanted = if ours || table != &self.options.tables.location { wanted } else { KAMAILIO_LOCATION };
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
        match layout.schema {
            Schema::Kamailio => self.check_columns(&mut conn)?,
            // A user without the right to create tables can use those that stand.
            Schema::Own if !complete => {
                for statement in self.options.tables.statements(DDL) {
                    conn.query_drop(statement).map_err(classify)?;
                }
            }
            Schema::Own => {}
        }
        if self.options.shared {
            self.check_indexes(&mut conn)?;
        }
        let flush: Option<String> =
            conn.query_first("SELECT CAST(@@GLOBAL.innodb_flush_log_at_trx_commit AS CHAR)").unwrap_or_default();
        if let Some(value) = flush.filter(|value| self.options.durable && value != "1") {
            tracing::warn!(place = %self.place, value = %value,
                "innodb_flush_log_at_trx_commit is not 1: what was committed can be lost when the database's machine fails");
        }
        Ok(())
    }

    fn widths(&self) -> Result<Widths, StoreError> {
        let mut widths = Widths::default();
        if self.options.layout.schema == Schema::Kamailio {
            let found = self.columns(&mut self.open()?, self.options.tables.location.as_str())?;
            widths.narrow(|column| {
                let name = self.options.layout.location(column);
                let (_, width, charset) = found.iter().find(|(found, ..)| found.eq_ignore_ascii_case(name))?;
                Some((*width, Charset::named(charset.as_deref().unwrap_or_default())))
            });
        }
        Ok(widths)
    }

    fn connect(&self) -> Result<Box<dyn Session>, StoreError> {
        Ok(Box::new(MysqlSession::new(self.open()?, Sql::new(&self.options), &self.options, Arc::clone(&self.ids))))
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn writers(&self) -> usize {
        2
    }

    fn place(&self) -> String {
        self.place.clone()
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

/// Whether trying again would be of no use, after an attempt to connect.
fn is_denied(error: &mysql::Error) -> bool {
    match error {
        // No such user, password, database; this host or a connection without TLS is not let in; the account is locked.
        mysql::Error::MySqlError(e) => {
            e.state == "28000" || [1044, 1045, 1049, 1130, 1251, 1275, 1698, 1862, 3118, 3159, 4151].contains(&e.code)
        }
        mysql::Error::TlsError(_) | mysql::Error::UrlError(_) => true,
        // A certificate that does not hold, a file of certificates that is not there.
        mysql::Error::IoError(e) => {
            use std::io::ErrorKind::{InvalidData, InvalidInput, NotFound, PermissionDenied};
            [InvalidData, InvalidInput, NotFound, PermissionDenied].contains(&e.kind())
        }
        // TLS fails where the first packet is read, and the library keeps no more of it than its text.
        mysql::Error::CodecError(e) => e.to_string().contains("certificate"),
        mysql::Error::DriverError(e) => matches!(
            e,
            DriverError::TlsNotSupported
                | DriverError::UnknownAuthPlugin(_)
                | DriverError::OldMysqlPasswordDisabled
                | DriverError::CleartextPluginDisabled
        ),
        _ => false,
    }
}

/// Whether a text was not of the table's character set.
fn is_of_other_charset(error: &mysql::Error) -> bool {
    // The collations cannot be compared (with two, three, more); not valid; cannot be converted.
    matches!(error, mysql::Error::MySqlError(e) if [1267, 1270, 1271, 1300, 1366, 3854].contains(&e.code))
}

fn classify(error: mysql::Error) -> StoreError {
    let kind = match &error {
        mysql::Error::MySqlError(e) => match e.code {
            // Lock wait, deadlock, certification failure of a cluster at COMMIT.
            1205 | 1213 | 1180 => Kind::Retry,
            // Data too long, out of range, not of the column's type, NULL where none may stand, a broken CHECK or key.
            _ if is_of_other_charset(&error) => Kind::Refused,
            1048 | 1062 | 1264 | 1265 | 1292 | 1366 | 1406 | 3819 | 4025 => Kind::Refused,
            _ if e.state.starts_with("22") || e.state.starts_with("23") => Kind::Refused,
            // No right to do that here.
            1044 | 1142 | 1143 | 1227 => Kind::Denied,
            // The rest says that this server is no use now, also 1290, 1792 and 1836: it has become read-only.
            _ => Kind::Lost,
        },
        mysql::Error::DriverError(DriverError::PacketTooLarge) => Kind::Refused,
        _ => Kind::Lost,
    };
    StoreError::new(kind, sentence(&error))
}

/// How long a batch that met another one's locks waits before it is sent once more.
const RETRY_PAUSE: Duration = Duration::from_millis(2);
