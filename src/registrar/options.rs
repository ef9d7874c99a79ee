//! Everything that can be set about the registrar, with its default.

use std::time::Duration;

use super::store::{Kind, StoreError, StoreOptions};
use crate::sip::digest::Algorithm;

/// When a REGISTER is answered, and what a crash can lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// No database. A restart loses everything.
    #[default]
    Memory,
    /// 200 first; what changed is written every `flush_interval`, only the last state of each binding. A crash loses at
    /// most the changes of one interval.
    WriteBack,
    /// 200 only after the commit; many requests share one transaction. A crash loses nothing that was answered.
    WriteThrough,
}

/// How a user proves to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuthMode {
    /// Anybody may register any address-of-record.
    #[default]
    None,
    /// The address-of-record must stand in `subscriber`; no password is asked for.
    UserExists,
    /// Digest (RFC 8760) against `subscriber`.
    Digest,
}

/// What to do with one contact more than an address-of-record may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// 503 with Retry-After, nothing changed.
    #[default]
    Refuse,
    /// The binding that ends soonest makes room.
    ReplaceSoonest,
}

/// What to do with an interval below the minimum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenBrief {
    /// 423 with Min-Expires (RFC 3261 section 10.3 step 7).
    #[default]
    Refuse,
    /// The minimum is taken, as if it had been asked for.
    Raise,
}

/// The options of a registrar. `Options::default()` needs no database.
#[derive(Debug, Clone)]
pub struct Options {
    /// Default: memory.
    pub mode: Mode,
    /// `sqlite:PATH` or `mysql://user:password@host:port/database`. Needed by every mode but memory.
    pub url: String,
    pub store: StoreOptions,

    /// Seconds when a contact asks for none. Default 3600.
    pub default_expires: u32,
    /// Fewer seconds than these are refused or raised; only intervals below an hour can be (RFC 3261 section 10.3).
    /// Default 60.
    pub min_expires: u32,
    /// More seconds than these are lowered. Default 86400.
    pub max_expires: u32,
    /// Default: refuse.
    pub when_brief: WhenBrief,
    /// Bindings per address-of-record. Default 10, at most 1000.
    pub max_contacts: usize,
    /// Default: refuse.
    pub when_full: WhenFull,
    /// Seconds that a 503 asks a client to wait. Default 10.
    pub retry_after: u32,
    /// Whether the domain belongs to the key of an address-of-record (Kamailio's `use_domain`). Default true.
    pub use_domain: bool,

    /// Locks of the cache, rounded up to a power of two. Default 256.
    pub shards: usize,
    /// Reads the whole table at start while requests are answered already; after that a miss in the cache needs no SELECT.
    /// For one server on its database. Default true.
    pub preload: bool,
    /// Without `preload`: how many addresses-of-record are remembered to have no bindings. Default 65,536.
    pub known_empty: usize,

    /// With `store.shared`: how often the other servers' changes are asked for. Default 400 ms.
    pub poll_interval: Duration,

    /// Connections that write. Default 0: as the store proposes (MySQL 2, SQLite 1).
    pub writers: usize,
    /// Changes per transaction. Default 100, where larger batches stop paying.
    pub batch: usize,
    /// How often write_back writes. Default 1 s.
    pub flush_interval: Duration,
    /// Changes that may wait for one writer, in write_through; past it a REGISTER gets 503. Default 65,536.
    pub queue: usize,
    /// How long a REGISTER may wait for its commit, or for its address-of-record to be loaded. Default 5 s.
    pub commit_timeout: Duration,
    /// A SQLite file, in which write_through keeps what it answered while the database is away, until the database has it.
    /// Default empty: none; then a REGISTER waits for `commit_timeout` and gets 503.
    pub spool: String,
    /// A batch that is not committed after this time goes into the spool. Default 500 ms.
    pub spool_after: Duration,
    /// Changes that the spool may hold. Default 10,000,000.
    pub spool_limit: u64,
    /// Requests that may wait to be loaded; past it they get 503. Default 65,536.
    pub load_queue: usize,
    /// How long `close` waits for what is still to be written. Default 10 s.
    pub close_timeout: Duration,

    /// Default: none.
    pub auth: AuthMode,
    /// The realm of a challenge. Default empty: the domain of the address-of-record.
    pub realm: String,
    /// How long a user's row is trusted without being read again. Default 60 s.
    pub user_ttl: Duration,
    /// How long a user is remembered not to exist. Default 10 s.
    pub no_user_ttl: Duration,
    /// Users remembered, existing or not. Default 1,000,000.
    pub user_cache: usize,
    /// How long a nonce can be used. Default 300 s.
    pub nonce_ttl: Duration,
    /// Nonces whose use is counted at a time, 30 bytes each. Default 65,536.
    pub nonces: usize,
    /// What a user whose password is stored is asked for; who has only `ha1` is asked for MD5. Default SHA-256 and MD5.
    pub algorithms: Vec<Algorithm>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            mode: Mode::default(),
            url: String::new(),
            store: StoreOptions::default(),
            default_expires: 3600,
            min_expires: 60,
            max_expires: 86_400,
            when_brief: WhenBrief::default(),
            max_contacts: 10,
            when_full: WhenFull::default(),
            retry_after: 10,
            use_domain: true,
            shards: 256,
            preload: true,
            known_empty: 65_536,
            poll_interval: Duration::from_millis(400),
            writers: 0,
            batch: 100,
            flush_interval: Duration::from_secs(1),
            queue: 65_536,
            commit_timeout: Duration::from_secs(5),
            spool: String::new(),
            spool_after: Duration::from_millis(500),
            spool_limit: 10_000_000,
            load_queue: 65_536,
            close_timeout: Duration::from_secs(10),
            auth: AuthMode::default(),
            realm: String::new(),
            user_ttl: Duration::from_secs(60),
            no_user_ttl: Duration::from_secs(10),
            user_cache: 1_000_000,
            nonce_ttl: Duration::from_secs(300),
            nonces: 65_536,
            algorithms: vec![Algorithm::Sha256, Algorithm::Md5],
        }
    }
}

impl Options {
    /// One sentence about the first thing that cannot be.
    pub fn check(&self) -> Result<(), StoreError> {
        let text = if self.mode != Mode::Memory && self.url.is_empty() {
            "modes write_back and write_through need the URL of a database"
        } else if self.auth != AuthMode::None && self.url.is_empty() {
            "authentication needs the URL of the database that holds the users"
        } else if self.auth == AuthMode::Digest && self.algorithms.is_empty() {
            "digest authentication needs at least one algorithm"
        } else if self.auth == AuthMode::Digest && self.realm.is_empty() && !self.use_domain {
            "digest authentication without use_domain needs a realm"
        } else if self.max_expires == 0 || self.min_expires > self.max_expires {
            "max_expires must be above 0 and not below min_expires"
        } else if !(1..=1000).contains(&self.max_contacts) {
            "max_contacts must lie between 1 and 1000"
        } else if self.store.shared && self.store.server_id == 0 {
            "several servers on one table need a server_id each, from 1 on, and no two the same"
        } else if self.batch == 0 || self.queue == 0 || self.load_queue == 0 {
            "batch, queue and load_queue must be above 0"
        } else if self.writers > 64 {
            "writers must not exceed 64"
        } else if self.flush_interval.is_zero() || self.commit_timeout.is_zero() {
            "flush_interval and commit_timeout must be above 0"
        } else {
            return Ok(());
        };
        Err(StoreError::new(Kind::Config, text))
    }
}
