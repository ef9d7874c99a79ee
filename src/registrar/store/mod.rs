//! The store: one trait, MySQL and SQLite behind it. It keeps rows and knows nothing of SIP.
//!
//! Promises to the room: a [`Session`] belongs to one thread; [`Session::commit`] returns when the whole batch is durable
//! or nothing of it is (an error of kind [`Kind::Lost`] leaves that open: what was sent may have been committed; every
//! change is idempotent, so it is sent again); errors say what to do about them by their [`Kind`] and what happened in
//! one sentence, in which no password stands.

pub(super) mod layout;
mod mysql;
mod row;
mod schema;
mod sqlite;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use layout::{Layout, Schema, TimeForm};
pub use row::{Aor, Change, Charset, Column, Key, Misfit, NO_METHODS, NO_Q, Row, UserRow, Widths, too_long};
pub(crate) use row::{Reader, encode, is_newer, mark_last};
pub use schema::{Identifier, LOCATION_VERSION, SUBSCRIBER_VERSION, Tables};

/// What an error asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The configuration is wrong (a URL, a name): nothing but a person helps.
    Config,
    /// The database cannot be reached.
    Unreachable,
    /// The database cannot be used: it does not let us in, or there is none of that name. A person has to help.
    Denied,
    /// A table is not ours or of an unknown version.
    Schema,
    /// The connection or the server is gone, or it refuses work for now: connect again, then send the batch again.
    Lost,
    /// A deadlock or a lock wait: send the batch again.
    Retry,
    /// The database refuses the data itself: the same batch will never pass.
    Refused,
    /// The commit did not come within `commit_timeout`; the change stays queued.
    Timeout,
    /// The registrar is being closed.
    Closed,
}

/// One sentence and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreError {
    kind: Kind,
    text: String,
}

impl StoreError {
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        StoreError { kind, text: text.into() }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for StoreError {}

/// What is committed together. No key occurs twice.
#[derive(Debug, Default)]
pub struct Batch<'a> {
    pub upserts: Vec<Row<'a>>,
    pub deletes: Vec<Key<'a>>,
}

/// How a store is reached and used.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    pub tables: Tables,
    pub layout: Layout,
    /// Written into `server_id` of each row.
    pub server_id: u32,
    /// Other servers write the same table: a newer row of theirs stays, and their changes can be asked for.
    pub shared: bool,
    /// A commit is on the disk when it returns (SQLite's synchronous=FULL). Without it a crash of the machine, not of the
    /// program, may lose the last commits. For MySQL this is the server's innodb_flush_log_at_trx_commit.
    pub durable: bool,
    /// How long one attempt to connect may take.
    pub connect_timeout: Duration,
    /// How long one statement may take before the connection counts as lost.
    pub statement_timeout: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            tables: Tables::default(),
            layout: Layout::default(),
            server_id: 0,
            shared: false,
            durable: true,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
        }
    }
}

/// A database, not yet connected. Shared by all threads.
pub trait Store: Send + Sync {
    /// Creates what is missing, refuses what is not ours. Blocks.
    fn prepare(&self) -> Result<(), StoreError>;
    /// What the columns of `location` hold, where that can be less than [`Column::width`].
    fn widths(&self) -> Result<Widths, StoreError> {
        Ok(Widths::default())
    }
    /// A connection for one thread. Blocks for at most `connect_timeout`.
    fn connect(&self) -> Result<Box<dyn Session>, StoreError>;
    /// Whether it can be away while all that is set here is right: a server then starts without it.
    fn is_remote(&self) -> bool {
        false
    }
    /// How many connections write at once when nothing else is asked for.
    fn writers(&self) -> usize;
    /// Where it is, for messages; without the password.
    fn place(&self) -> String;
}

/// Called with each row that was read.
pub type EachRow<'f> = &'f mut dyn FnMut(&Row<'_>);
/// Called with each user that was read.
pub type EachUser<'f> = &'f mut dyn FnMut(&UserRow<'_>);

/// A connection. Every call blocks; every call may return [`Kind::Lost`], after which the session is dropped.
pub trait Session: Send {
    /// Streams `location`. Returns the number of rows.
    fn load_all(&mut self, each: EachRow<'_>) -> Result<u64, StoreError>;
    /// Whether [`Session::load_all`] gives the rows of one address-of-record one after the other.
    fn loads_in_order(&self) -> bool {
        true
    }
    /// Reads the rows of these addresses-of-record, in any order. Returns how many SELECTs it took. A name that the table's
    /// character set cannot hold has no rows.
    fn load_aors(&mut self, aors: &[Aor<'_>], each: EachRow<'_>) -> Result<u64, StoreError>;
    /// Reads these users. An empty domain asks for any domain. Returns how many SELECTs it took.
    fn load_users(&mut self, users: &[Aor<'_>], each: EachUser<'_>) -> Result<u64, StoreError>;
    /// Commits all of it in one transaction, or nothing.
    fn commit(&mut self, batch: &Batch<'_>) -> Result<(), StoreError>;
    /// Reads what other servers have changed from that second on, in any order; the number of rows.
    fn changed_since(&mut self, since: u32, each: EachRow<'_>) -> Result<u64, StoreError>;
    /// Deletes the rows that expired before that second; their number.
    fn sweep(&mut self, before: u32) -> Result<u64, StoreError>;
}

/// Opens `sqlite:PATH` or `mysql://user:password@host:port/database`; nothing is connected yet.
pub fn open(url: &str, options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    if let Some(path) = url.strip_prefix("sqlite:") {
        if options.shared || options.layout != Layout::default() {
            return Err(StoreError::new(
                Kind::Config,
                "several servers on one table, or a table that is not ours, need MySQL",
            ));
        }
        return Ok(Arc::new(sqlite::Sqlite::new(path, options)?));
    }
    if url.starts_with("mysql://") {
        return Ok(Arc::new(mysql::Mysql::new(url, options)?));
    }
    // The URL itself may hold a password: only what stands before the first ':' is repeated.
    let scheme = url.split(':').next().unwrap_or_default();
    Err(StoreError::new(
        Kind::Config,
        format!("unknown database {scheme:?}: sqlite:PATH or mysql://user:password@host:port/database is expected"),
    ))
}

/// What identifies a binding in Kamailio's table, where nothing else was written.
pub(super) fn kamailio_ruid(key: &Key<'_>) -> String {
    String::from_utf8_lossy(&mysql::ids::ruid(key)).into_owned()
}

/// The library's options for a `mysql://` URL; of several hosts the first.
pub(super) fn mysql_options(url: &str) -> Result<::mysql::Opts, StoreError> {
    if !url.starts_with("mysql://") {
        return open(url, &StoreOptions::default())
            .and(Err(StoreError::new(Kind::Config, "a mysql:// URL is expected")));
    }
    mysql::options(url)
}

/// A float of the table as q: 0 to 1000, or none when it is negative (Kamailio writes -1) or not a number.
fn q_of(value: f64) -> u16 {
    if (0.0..=1.0).contains(&value) { (value * 1000.0).round() as u16 } else { NO_Q }
}

/// The other way round.
fn q_to(q: u16) -> f64 {
    if q == NO_Q { -1.0 } else { f64::from(q) / 1000.0 }
}

/// A number of the table as what we keep; what does not fit becomes the nearest that does.
fn clamp_u32(value: i64) -> u32 {
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_url_is_refused_without_its_password() {
        for bad in ["", "postgres://u:secret@h/d", "mysql:u:secret", "/path"] {
            let error = open(bad, &StoreOptions::default()).map(|_| ()).expect_err(bad);
            assert_eq!(error.kind(), Kind::Config);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn q_survives_the_table() {
        for q in (0..=1000).chain([NO_Q]) {
            assert_eq!(q_of(q_to(q)), q);
            assert_eq!(q_of(f64::from(q_to(q) as f32)), q);
        }
        assert_eq!((q_of(f64::NAN), q_of(1.5), clamp_u32(-5), clamp_u32(i64::MAX)), (NO_Q, NO_Q, 0, u32::MAX));
    }
}
