//! The loader: reads what the cache does not know, many questions in one SELECT, and the whole table at start.
//!
//! Promises: a waiter comes back exactly once, when the cache knows the answer or when its time is over; what the cache
//! already holds is never overwritten by what the database says, for the cache is ahead of it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::store::{Aor, Change, Key, Kind, Reader, Row, Session, StoreError, encode};
use super::{Shared, request};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum What {
    /// The bindings of an address-of-record.
    Bindings,
    /// A user's row of `subscriber`.
    User,
}

/// Who is told.
pub(super) enum Waiter<W> {
    Engine(W),
    /// A thread that blocks until the answer is here.
    Thread(Arc<Gate>),
}

/// What a blocked thread waits at.
#[derive(Default)]
pub(super) struct Gate {
    result: Mutex<Option<Result<(), StoreError>>>,
    open: Condvar,
}

impl Gate {
    pub fn wait(&self) -> Result<(), StoreError> {
        let mut result = self.result.lock();
        loop {
            match result.take() {
                Some(outcome) => return outcome,
                None => self.open.wait(&mut result),
            }
        }
    }

    fn open(&self, outcome: Result<(), StoreError>) {
        *self.result.lock() = Some(outcome);
        self.open.notify_all();
    }
}

/// How much of an address-of-record the rows are that are taken in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All, and it was asked for.
    Whole,
    /// All.
    Streamed,
    /// More may follow: until the table is in, who asks has it read by itself.
    Some,
}

struct Load<W> {
    what: What,
    key: Box<[u8]>,
    /// Gone when its time was over.
    waiter: Option<Waiter<W>>,
    deadline: Instant,
}

struct Queue<W> {
    loads: VecDeque<Load<W>>,
    /// Loads before this one have been looked at by `time_out`, counted from the front.
    timed: usize,
    closing: bool,
}

pub(super) struct Loader<W> {
    queue: Mutex<Queue<W>>,
    work: Condvar,
}

/// Questions per round.
pub(super) const ROUND: usize = 64;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl<W> Loader<W> {
    pub fn new() -> Self {
        Loader { queue: Mutex::new(Queue { loads: VecDeque::new(), timed: 0, closing: false }), work: Condvar::new() }
    }

    /// Queues a question; gives the waiter back when there is no room.
    pub fn ask(
        &self,
        what: What,
        key: &[u8],
        waiter: Waiter<W>,
        deadline: Instant,
        limit: usize,
    ) -> Result<(), Waiter<W>> {
        let mut queue = self.queue.lock();
        if queue.closing || queue.loads.len() >= limit {
            return Err(waiter);
        }
        queue.loads.push_back(Load { what, key: key.into(), waiter: Some(waiter), deadline });
        drop(queue);
        self.work.notify_one();
        Ok(())
    }

    /// Takes out who has waited too long.
    pub fn time_out(&self, now: Instant, out: &mut Vec<Waiter<W>>) {
        let mut queue = self.queue.lock();
        let queue = &mut *queue;
        while let Some(load) = queue.loads.get_mut(queue.timed) {
            if load.deadline > now {
                return;
            }
            out.extend(load.waiter.take());
            queue.timed += 1;
        }
    }

    pub fn begin_close(&self) {
        self.queue.lock().closing = true;
        self.work.notify_all();
    }
}

impl<W: Send + 'static> Shared<W> {
    /// Tells loaded waiters; `out` is empty afterwards.
    pub(super) fn tell_loaded(&self, out: &mut Vec<Waiter<W>>, result: Result<(), &StoreError>) {
        let mut engine = Vec::new();
        for waiter in out.drain(..) {
            match waiter {
                Waiter::Engine(w) => engine.push(w),
                Waiter::Thread(gate) => gate.open(result.map_err(Clone::clone)),
            }
        }
        if !engine.is_empty() {
            self.sink.loaded(&mut engine, result);
        }
    }

    /// The loader's thread.
    pub(super) fn run_loader(&self, mut session: Option<Box<dyn Session>>) {
        let mut keys: Vec<(What, Box<[u8]>)> = Vec::new();
        let mut pause = FIRST_PAUSE;
        let mut away = false;
        while self.next_loads(&mut keys) {
            let outcome = self.load(&mut session, &keys);
            let error = match outcome {
                Ok(()) => {
                    (pause, away) = (FIRST_PAUSE, false);
                    self.answer(keys.len(), Ok(()));
                    continue;
                }
                Err(e) => e,
            };
            if matches!(error.kind(), Kind::Refused) {
                tracing::error!("the database refuses a question: {error}");
                self.answer(keys.len(), Err(&error));
                continue;
            }
            if session.take().is_some() && !away {
                // A server that closed an idle connection is there at once.
                away = true;
                continue;
            }
            if !std::mem::replace(&mut away, true) {
                tracing::warn!(place = %self.place(), "the database is away, questions wait: {error}");
            }
            let mut queue = self.loader.queue.lock();
            if queue.closing {
                continue;
            }
            self.loader.work.wait_for(&mut queue, pause);
            drop(queue);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        let mut left: Vec<Waiter<W>> = Vec::new();
        left.extend(self.loader.queue.lock().loads.drain(..).filter_map(|load| load.waiter));
        self.tell_loaded(&mut left, Err(&StoreError::new(Kind::Closed, "the registrar is closed")));
    }

    /// Waits for questions and copies the first of them; false when it is time to close.
    fn next_loads(&self, keys: &mut Vec<(What, Box<[u8]>)>) -> bool {
        let mut queue = self.loader.queue.lock();
        loop {
            if queue.closing {
                return false;
            }
            if !queue.loads.is_empty() {
                keys.clear();
                keys.extend(queue.loads.iter().take(ROUND).map(|load| (load.what, load.key.clone())));
                return true;
            }
            self.loader.work.wait(&mut queue);
        }
    }

    /// Answers the first `count` questions.
    fn answer(&self, count: usize, result: Result<(), &StoreError>) {
        let mut queue = self.loader.queue.lock();
        let mut out: Vec<Waiter<W>> = queue.loads.drain(..count).filter_map(|load| load.waiter).collect();
        queue.timed = queue.timed.saturating_sub(count);
        drop(queue);
        self.tell_loaded(&mut out, result);
    }

    fn load(&self, session: &mut Option<Box<dyn Session>>, keys: &[(What, Box<[u8]>)]) -> Result<(), StoreError> {
        let session = match session {
            Some(session) => session,
            None => session.insert(self.connect_to_read()?),
        };
        // What each question found so far: packed rows.
        let mut found: HashMap<&[u8], Vec<u8>> = HashMap::with_capacity(keys.len());
        let mut users: HashSet<&[u8]> = HashSet::new();
        for (what, key) in keys {
            match what {
                What::Bindings => _ = found.entry(key).or_default(),
                What::User => _ = users.insert(key),
            }
        }
        let mut joined = Vec::new();
        if !found.is_empty() {
            let aors: Vec<Aor<'_>> = found.keys().map(|key| Aor::split(key)).collect();
            let selects = session.load_aors(&aors, &mut |row| {
                row.key.aor.join(&mut joined);
                if let Some(rows) = found.get_mut(&joined[..]) {
                    encode(rows, &Change::Upsert(*row));
                }
            })?;
            self.counters.selects.add(selects);
        }
        if !users.is_empty() {
            let asked: Vec<Aor<'_>> = users.iter().map(|key| Aor::split(key)).collect();
            let selects = session.load_users(&asked, &mut |user| {
                // Asked for with its domain, or as a user of any domain.
                for aor in [user.aor, Aor { domain: b"", ..user.aor }] {
                    aor.join(&mut joined);
                    if users.contains(&joined[..]) {
                        self.users.learn(&joined, user);
                    }
                }
            })?;
            self.counters.selects.add(selects);
            for key in users {
                self.users.settle(key);
            }
        }
        for (aor, rows) in &found {
            self.fill(aor, rows, Part::Whole);
        }
        Ok(())
    }

    /// Takes the rows of one address-of-record into the cache, unless it knows better.
    fn fill(&self, aor: &[u8], rows: &[u8], part: Part) {
        let spot = self.cache.spot(aor);
        let now = (self.clock)();
        let mut shard = self.cache.lock(spot.shard);
        // Once the cache is complete, a record that is missing has been removed since the SELECT.
        let found = shard.find(spot.tag, aor);
        if found.is_some_and(|slot| !shard.is_partial(slot)) || self.cache.complete() {
            return;
        }
        let partition = self.partition_of(spot.shard);
        let nothing = || partition.map_or(0, |p| p.nothing_handed());
        let slot = found.unwrap_or_else(|| shard.create(spot.tag, aor, nothing()));
        let mut reader = Reader::new(rows);
        while let Some((change, _)) = reader.next_change() {
            if let Change::Upsert(row) = change {
                self.counters.rows.inc();
                if !self.can_be_told(&row) {
                    continue;
                }
                if found.is_some() {
                    shard.merge(slot, &row, now);
                } else {
                    shard.take_in(slot, &row, now);
                }
            }
        }
        shard.set_partial(slot, part == Part::Some);
        if part == Part::Whole {
            self.settle(&mut shard, slot, spot.shard);
        }
    }

    /// Whether a row may stand in an answer; the first that may not is named in the log.
    pub(super) fn can_be_told(&self, row: &Row<'_>) -> bool {
        let good = request::can_be_told(row);
        if !good {
            if self.counters.bad_rows.get() == 0 {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let Key { aor, contact, .. } = row.key;
                tracing::warn!(place = %self.place(), username = ?text(aor.user), domain = ?text(aor.domain),
                    contact = ?text(contact), "a row is left out, for it has text that is no UTF-8 or has control characters; \
                    others like it are counted only (partyline_registrar_store_bad_rows_total)");
            }
            self.counters.bad_rows.inc();
        }
        good
    }

    /// The thread that streams the table in at start. Tries again until it has all of it or the registrar is closed.
    pub(super) fn run_preload(&self, mut session: Option<Box<dyn Session>>) {
        let mut pause = FIRST_PAUSE;
        let mut away = false;
        let started = Instant::now();
        while !self.closing() {
            let outcome = match session.take() {
                Some(session) => Ok(session),
                None => self.connect_to_read(),
            };
            match outcome.and_then(|mut session| self.preload(&mut *session)) {
                Ok(rows) => {
                    self.cache.set_complete();
                    tracing::info!(
                        rows,
                        milliseconds = started.elapsed().as_millis() as u64,
                        "the location table is loaded"
                    );
                    return;
                }
                Err(e) if !std::mem::replace(&mut away, true) => {
                    tracing::warn!(place = %self.place(), "the location table could not be read, trying again: {e}")
                }
                Err(_) => {}
            }
            if self.pause(pause) {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn preload(&self, session: &mut dyn Session) -> Result<u64, StoreError> {
        // Rows of one address-of-record that follow each other are taken in together.
        let part = if session.loads_in_order() { Part::Streamed } else { Part::Some };
        let (mut aor, mut next, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let count = session.load_all(&mut |row: &Row<'_>| {
            row.key.aor.join(&mut next);
            if next != aor {
                if !aor.is_empty() {
                    self.fill(&aor, &rows, part);
                }
                std::mem::swap(&mut aor, &mut next);
                rows.clear();
            }
            encode(&mut rows, &Change::Upsert(*row));
        })?;
        if !aor.is_empty() {
            self.fill(&aor, &rows, part);
        }
        self.counters.selects.inc();
        Ok(count)
    }
}
