//! What the registrar's tests share: an engine that only notes what comes back, and requests made of text.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use partyline::registrar::store::{Kind, StoreError};
use partyline::registrar::{
    BindingView, Contact, Mode, Options, Outcome, RegisterRequest, Registrar, ReplyWriter, Sink,
};
use partyline::sip::HeaderName;
use partyline::sip::uri::Uri;

/// What came back for each waiter.
#[derive(Default)]
pub struct Notes {
    pub committed: Mutex<HashMap<u64, Result<(), Kind>>>,
    pub loaded: Mutex<HashMap<u64, Result<(), Kind>>>,
    pub changed: Condvar,
    /// How many waiters each call of `committed` brought.
    pub batches: Mutex<Vec<usize>>,
}

#[derive(Clone, Default)]
pub struct NotingSink(pub Arc<Notes>);

impl Sink<u64> for NotingSink {
    fn committed(&self, waiters: &mut Vec<u64>, result: Result<(), &StoreError>) {
        self.0.batches.lock().push(waiters.len());
        let mut committed = self.0.committed.lock();
        for waiter in waiters.drain(..) {
            assert!(committed.insert(waiter, result.map_err(StoreError::kind)).is_none(), "{waiter} came back twice");
        }
        self.0.changed.notify_all();
    }

    fn loaded(&self, waiters: &mut Vec<u64>, result: Result<(), &StoreError>) {
        // The lock that `wait` holds.
        let _committed = self.0.committed.lock();
        let mut loaded = self.0.loaded.lock();
        for waiter in waiters.drain(..) {
            assert!(loaded.insert(waiter, result.map_err(StoreError::kind)).is_none(), "{waiter} came back twice");
        }
        self.0.changed.notify_all();
    }
}

pub const LIMIT: Duration = Duration::from_secs(60);

impl Notes {
    /// Waits until the condition holds.
    pub fn wait(&self, what: &str, mut until: impl FnMut(&HashMap<u64, Result<(), Kind>>) -> bool) {
        let end = Instant::now() + LIMIT;
        let mut committed = self.committed.lock();
        while !until(&committed) {
            assert!(!self.changed.wait_until(&mut committed, end).timed_out(), "waited too long: {what}");
        }
    }

    pub fn outcome(&self, waiter: u64) -> Result<(), Kind> {
        self.wait("commit", |committed| committed.contains_key(&waiter));
        self.committed.lock()[&waiter]
    }

    pub fn wait_loaded(&self, waiter: u64) -> Result<(), Kind> {
        self.wait("load", |_| self.loaded.lock().contains_key(&waiter));
        self.loaded.lock()[&waiter]
    }
}

/// Waits until the condition holds, which is looked at again and again.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < end, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An answer, as text.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub reason: String,
    /// URI and seconds, in the order in which they were told.
    pub contacts: Vec<(String, u32)>,
    pub headers: Vec<(String, u32)>,
}

impl ReplyWriter for Answer {
    fn start(&mut self, status: u16, reason: &str) {
        assert_eq!(self.status, 0, "started twice");
        self.status = status;
        self.reason = reason.to_owned();
    }
    fn contact(&mut self, binding: &BindingView<'_>, remaining: u32) {
        assert_eq!(self.status, 200);
        self.contacts.push((String::from_utf8_lossy(binding.contact).into_owned(), remaining));
    }
    fn number(&mut self, name: HeaderName, value: u32) {
        self.headers.push((String::from_utf8_lossy(name.as_bytes()).into_owned(), value));
    }
    fn header(&mut self, _name: HeaderName, _value: &[u8]) {}
}

impl Answer {
    pub fn uris(&self) -> Vec<&str> {
        self.contacts.iter().map(|(uri, _)| uri.as_str()).collect()
    }
}

/// A contact of a test: `uri`, and how long.
pub fn contact(uri: &str) -> Contact<'_> {
    Contact::of_uri(Uri::parse(uri.as_bytes()).expect("uri"))
}

pub fn lasting(uri: &str, expires: u32) -> Contact<'_> {
    Contact { expires: Some(expires), ..contact(uri) }
}

pub fn request<'a>(aor: &'a str, call_id: &'a str, cseq: u32, contacts: &'a [Contact<'a>]) -> RegisterRequest<'a> {
    RegisterRequest {
        contacts,
        user_agent: b"Test Phone 1.0",
        ..RegisterRequest::query(aor.as_bytes(), call_id.as_bytes(), cseq)
    }
}

/// A registrar and what came back from it.
pub struct Bench {
    pub registrar: Registrar<u64>,
    pub notes: Arc<Notes>,
}

pub const NOW: u32 = 1_700_000_000;

impl Bench {
    pub fn open(options: Options) -> Bench {
        let sink = NotingSink::default();
        let notes = sink.0.clone();
        // Without a database time is what each request says, and the registrar's own clock stands still.
        let clock = if options.mode == Mode::Memory { || 0 } else { partyline::registrar::system_clock };
        Bench { registrar: Registrar::open_at(options, sink, clock).expect("open"), notes }
    }

    pub fn memory() -> Bench {
        Bench::open(Options::default())
    }

    /// A request that is decided at once, at `NOW + after`.
    pub fn at(&self, after: u32, request: &RegisterRequest<'_>) -> Answer {
        let mut answer = Answer::default();
        match self.registrar.register(request, NOW + after, &mut answer) {
            Outcome::Answered(status) => assert_eq!(status, answer.status),
            Outcome::Rejected(rejection) => assert_eq!(rejection.answer().0, answer.status),
            other => panic!("{other:?}"),
        }
        answer
    }

    pub fn register(&self, request: &RegisterRequest<'_>) -> Answer {
        self.at(0, request)
    }

    /// What an address-of-record has at `NOW + after`.
    pub fn bindings(&self, aor: &str, after: u32) -> Vec<String> {
        let mut found = Vec::new();
        self.registrar
            .lookup(aor.as_bytes(), NOW + after, |b| found.push(String::from_utf8_lossy(b.contact).into_owned()))
            .expect("lookup");
        found
    }

    /// As an engine does it: whatever the outcome, until there is an answer.
    pub fn complete(&self, request: &RegisterRequest<'_>, now: u32, waiter: u64) -> Result<Answer, Kind> {
        loop {
            let mut answer = Answer::default();
            match self.registrar.register(request, now, &mut answer) {
                Outcome::Answered(_) | Outcome::Rejected(_) => return Ok(answer),
                Outcome::Durable(ticket) => {
                    if self.registrar.submit(ticket, waiter).is_none() {
                        self.registrar.kick();
                        self.notes.outcome(waiter)?;
                    }
                    return Ok(answer);
                }
                Outcome::Miss(ticket) => {
                    self.registrar.load(ticket, waiter).expect("room");
                    self.notes.wait_loaded(waiter)?;
                    self.notes.loaded.lock().remove(&waiter);
                }
            }
        }
    }
}

/// Options for tests on a database, with the real clock's expiries.
pub fn options(mode: Mode, url: &str) -> Options {
    Options { mode, url: url.to_owned(), ..Options::default() }
}

pub fn now() -> u32 {
    partyline::registrar::system_clock()
}

/// A new file name under `target/`.
pub fn sqlite_path(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{next}.db", std::process::id()));
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    path
}

/// A SQLite database that is removed at the end of the test.
pub struct SqliteFile(pub PathBuf);

impl SqliteFile {
    pub fn new(name: &str) -> SqliteFile {
        SqliteFile(sqlite_path(name))
    }
    pub fn url(&self) -> String {
        format!("sqlite:{}", self.0.display())
    }
    pub fn connect(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(&self.0).expect("database")
    }
    pub fn count(&self, sql: &str) -> i64 {
        self.connect().query_row(sql, [], |row| row.get(0)).expect(sql)
    }
}

impl Drop for SqliteFile {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", self.0.display()));
        }
    }
}
