//! Writers: each owns one connection and the changes of its part of the address-of-records.
//!
//! ```text
//!   register()  -- under the shard's lock -->  Partition.packed   [change][change|last][change|last] ...
//!   submit()    ---------------------------->  Partition.waiting  one entry per ticket, oldest first
//!   writer thread: takes all that is packed -> batches that end with a ticket -> one transaction each
//!                  -> the waiters of the batch go to the sink together
//! ```
//! Promises: the changes of one address-of-record reach the database in the order in which they reached the cache, for
//! they are packed under its shard's lock and a shard belongs to one partition; all changes of one ticket are in one
//! transaction; a database that is gone blocks nobody but the writer, which keeps what it has and comes back to it.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::store::{Batch, Change, Kind, Reader, Row, Session, StoreError, encode};
use super::{Counters, Shared};

/// The place of a change in the order of its partition; given by `register`, taken by `submit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "without `submit` nobody learns of the commit"]
pub struct Ticket {
    pub(super) partition: u32,
    pub(super) number: u64,
}

/// A ticket's place in the line of those who wait.
enum Waiting<W> {
    /// `submit` may still come.
    Open,
    Held(W, Instant),
    /// Nobody waits, or nobody any more.
    Nobody,
}

pub(super) struct Queue<W> {
    packed: Vec<u8>,
    /// Where the last change of the ticket under way begins.
    head: Option<usize>,
    /// Tickets that are not finished, from number `base` on.
    waiting: VecDeque<Waiting<W>>,
    base: u64,
    /// Finished tickets whose changes the database refused before anybody had submitted them.
    refused: Vec<u64>,
    /// Tickets before this one have been looked at by `time_out`.
    timed: u64,
    closing: Option<Instant>,
}

pub(super) struct Partition<W> {
    queue: Mutex<Queue<W>>,
    /// There is something packed, or it is time to close.
    work: Condvar,
    /// It is time to close: ends a pause between two attempts to connect.
    close: Condvar,
    /// Tickets below this number are committed (or refused).
    done: AtomicU64,
    /// Changes that are packed or in the writer's hands.
    rows: AtomicUsize,
}

impl<W> Partition<W> {
    pub fn new() -> Self {
        Partition {
            queue: Mutex::new(Queue {
                packed: Vec::new(),
                head: None,
                waiting: VecDeque::new(),
                base: 0,
                refused: Vec::new(),
                timed: 0,
                closing: None,
            }),
            work: Condvar::new(),
            close: Condvar::new(),
            done: AtomicU64::new(0),
            rows: AtomicUsize::new(0),
        }
    }

    /// Opens the queue for the changes of one ticket.
    pub fn lock(&self) -> Filling<'_, W> {
        Filling { partition: self, queue: self.queue.lock() }
    }

    /// Wakes the writer if it sleeps and there is something to do.
    pub fn kick(&self) {
        // A load when nobody sleeps.
        self.work.notify_one();
    }

    /// The number, cut to 32 bits, of which a record remembers that nothing of it is under way.
    pub fn nothing_handed(&self) -> u32 {
        self.done.load(Ordering::Acquire).wrapping_sub(1) as u32
    }

    /// Whether the ticket that a record remembers is committed. Numbers are compared as 32 bits: a record that nobody
    /// touched for 2^31 tickets may be taken for one that waits, which costs its next request a wait and nothing else.
    pub fn is_done(&self, handed: u32) -> bool {
        let done = self.done.load(Ordering::Acquire) as u32;
        done.wrapping_sub(handed).wrapping_sub(1) < 1 << 31
    }

    /// Who waits for the ticket; `Some` gives it back at once, with the outcome.
    pub fn submit(&self, ticket: Ticket, waiter: W, deadline: Instant) -> Option<(W, bool)> {
        let mut queue = self.queue.lock();
        let Some(ahead) = ticket.number.checked_sub(queue.base) else {
            let refused = queue.refused.iter().position(|number| *number == ticket.number);
            if let Some(at) = refused {
                queue.refused.swap_remove(at);
            }
            return Some((waiter, refused.is_none()));
        };
        match queue.waiting.get_mut(ahead as usize) {
            Some(place @ Waiting::Open) => {
                *place = Waiting::Held(waiter, deadline);
                None
            }
            _ => Some((waiter, false)),
        }
    }

    /// Takes out who has waited too long. Their changes stay.
    pub fn time_out(&self, now: Instant, out: &mut Vec<W>) {
        let mut queue = self.queue.lock();
        let first = queue.timed.max(queue.base);
        let base = queue.base;
        let mut looked = first;
        for place in queue.waiting.range_mut((first - base) as usize..) {
            match place {
                Waiting::Open => break,
                Waiting::Held(_, deadline) if *deadline > now => break,
                Waiting::Nobody => {}
                Waiting::Held(..) => {
                    if let Waiting::Held(waiter, _) = std::mem::replace(place, Waiting::Nobody) {
                        out.push(waiter);
                    }
                }
            }
            looked += 1;
        }
        queue.timed = looked;
    }

    /// Ends `count` tickets.
    fn finish(&self, count: u64, rows: usize, ok: bool, out: &mut Vec<W>) {
        let mut queue = self.queue.lock();
        for _ in 0..count {
            match queue.waiting.pop_front() {
                Some(Waiting::Held(waiter, _)) => out.push(waiter),
                Some(Waiting::Open) if !ok => {
                    let number = queue.base;
                    queue.refused.push(number);
                }
                _ => {}
            }
            queue.base += 1;
        }
        self.done.store(queue.base, Ordering::Release);
        drop(queue);
        self.rows.fetch_sub(rows, Ordering::Relaxed);
    }

    pub fn begin_close(&self, deadline: Instant) {
        self.queue.lock().closing = Some(deadline);
        self.work.notify_all();
        self.close.notify_all();
    }

    /// Everybody who still waits.
    pub fn abandon(&self, out: &mut Vec<W>) {
        let mut queue = self.queue.lock();
        for place in &mut queue.waiting {
            if let Waiting::Held(waiter, _) = std::mem::replace(place, Waiting::Nobody) {
                out.push(waiter);
            }
        }
    }

    /// Changes that are not committed yet.
    pub fn depth(&self) -> usize {
        self.rows.load(Ordering::Relaxed)
    }
}

/// The queue while one ticket's changes are put into it.
pub(super) struct Filling<'q, W> {
    partition: &'q Partition<W>,
    queue: MutexGuard<'q, Queue<W>>,
}

impl<W> Filling<'_, W> {
    /// Whether so many more changes may wait. No: nothing may be pushed.
    pub fn has_room(&self, changes: usize, limit: usize) -> bool {
        self.queue.closing.is_none() && self.partition.depth() + changes <= limit
    }

    pub fn push(&mut self, change: &Change<'_>) {
        let queue = &mut *self.queue;
        queue.head = Some(queue.packed.len());
        encode(&mut queue.packed, change);
        self.partition.rows.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends the ticket. Without a change it stands for all that was queued before.
    pub fn ticket(&mut self, somebody_waits: bool) -> u64 {
        if self.queue.head.is_none() {
            self.push(&Change::Barrier);
        }
        let queue = &mut *self.queue;
        if let Some(head) = queue.head.take() {
            super::store::mark_last(&mut queue.packed[head]);
        }
        queue.waiting.push_back(if somebody_waits { Waiting::Open } else { Waiting::Nobody });
        queue.base + queue.waiting.len() as u64 - 1
    }
}

/// What a writer does next.
enum Next {
    Work,
    Flush,
    End,
}

/// One writer thread.
pub(super) struct Writer<'s, W: Send + 'static> {
    shared: &'s Shared<W>,
    me: usize,
    session: Option<Box<dyn Session>>,
    /// Set while the database is away, so that it is said once.
    away: bool,
    finished: Vec<W>,
}

impl<'s, W: Send + 'static> Writer<'s, W> {
    pub fn new(shared: &'s Shared<W>, me: usize, session: Option<Box<dyn Session>>) -> Self {
        Writer { shared, me, session, away: false, finished: Vec::new() }
    }

    fn partition(&self) -> &'s Partition<W> {
        &self.shared.partitions[self.me]
    }

    pub fn run(mut self) {
        let mut work = Vec::new();
        let interval = self.shared.options.flush_interval;
        let mut flush_at = Instant::now() + interval;
        loop {
            match self.next(&mut work, flush_at) {
                Next::Work => self.write(&mut work),
                Next::Flush => {
                    self.flush(&mut work);
                    flush_at = Instant::now() + interval;
                }
                Next::End => {
                    self.flush(&mut work);
                    break;
                }
            }
        }
        self.partition().abandon(&mut self.finished);
        self.tell(Err(&StoreError::new(Kind::Closed, "the registrar is closed")));
    }

    /// Waits for changes, or for the time to fetch them; what was packed is in `work` then.
    fn next(&self, work: &mut Vec<u8>, flush_at: Instant) -> Next {
        let mut queue = self.partition().queue.lock();
        loop {
            if Instant::now() >= flush_at {
                return Next::Flush;
            }
            if !queue.packed.is_empty() {
                std::mem::swap(&mut queue.packed, work);
                return Next::Work;
            }
            if queue.closing.is_some() {
                return Next::End;
            }
            self.partition().work.wait_until(&mut queue, flush_at);
        }
    }

    /// Fetches what is marked in the shards of this partition and writes it, batch by batch.
    fn flush(&mut self, work: &mut Vec<u8>) {
        let batch = self.shared.options.batch;
        let mut shard = self.me as u32;
        while shard < self.shared.cache.shards() {
            let more = self.fetch(shard, batch);
            // A full batch is written before more is fetched: what waits in the cache is still coalesced there.
            let last = !more && shard + self.shared.partitions.len() as u32 >= self.shared.cache.shards();
            if last || self.partition().depth() >= batch {
                std::mem::swap(&mut self.partition().queue.lock().packed, work);
                self.write(work);
            }
            if self.gave_up() {
                return;
            }
            if !more {
                shard += self.shared.partitions.len() as u32;
            }
        }
    }

    /// Moves up to a batch of changed records from a shard into the queue; true when there is more in it.
    fn fetch(&self, index: u32, batch: usize) -> bool {
        let mut shard = self.shared.cache.lock(index);
        if !shard.has_dirty() {
            return false;
        }
        let mut filling = self.partition().lock();
        while filling.partition.depth() < batch {
            let cell = std::cell::RefCell::new(&mut filling);
            let slot = shard.hand_over(&mut |change| cell.borrow_mut().push(change), &mut || {
                cell.borrow_mut().ticket(false) as u32
            });
            let Some(slot) = slot else { return false };
            self.shared.settle(&mut shard, slot, index);
        }
        shard.has_dirty()
    }

    /// Whether the time to close is over.
    fn gave_up(&self) -> bool {
        self.partition().queue.lock().closing.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Writes all of it, in batches that end with a ticket. Empties `work`.
    fn write(&mut self, work: &mut Vec<u8>) {
        let mut reader = Reader::new(work);
        let mut changes = Vec::with_capacity(self.shared.options.batch + 8);
        while reader.left() > 0 {
            let start = reader.clone();
            let (mut tickets, mut rows) = (0, 0);
            changes.clear();
            while let Some((change, last)) = reader.next_change() {
                rows += 1;
                changes.push(change);
                tickets += u64::from(last);
                if last && rows >= self.shared.options.batch {
                    break;
                }
            }
            match self.commit(&changes) {
                Ok(()) => self.finish(tickets, rows, Ok(())),
                Err(e) if e.kind() == Kind::Closed => {
                    let left = self.partition().depth();
                    tracing::error!(changes = left, "closed before everything was written: {e}");
                    self.partition().abandon(&mut self.finished);
                    self.tell(Err(&e));
                    break;
                }
                // One change spoils the batch: each ticket by itself finds which.
                Err(e) if tickets == 1 => {
                    self.counters().refused.inc();
                    tracing::error!("the database refuses a change, which is dropped: {e}");
                    self.finish(1, rows, Err(&e));
                }
                Err(_) => self.write_singly(start, tickets),
            }
        }
        work.clear();
        // What an outage piled up is not kept for ever.
        if work.capacity() > 4 << 20 {
            work.shrink_to(1 << 20);
        }
    }

    fn write_singly(&mut self, mut reader: Reader<'_>, tickets: u64) {
        let mut changes = Vec::new();
        for _ in 0..tickets {
            changes.clear();
            while let Some((change, last)) = reader.next_change() {
                changes.push(change);
                if last {
                    break;
                }
            }
            match self.commit(&changes) {
                Ok(()) => self.finish(1, changes.len(), Ok(())),
                Err(e) => {
                    self.counters().refused.inc();
                    tracing::error!("the database refuses a change, which is dropped: {e}");
                    self.finish(1, changes.len(), Err(&e));
                }
            }
        }
    }

    fn counters(&self) -> &'s Counters {
        &self.shared.counters
    }

    fn finish(&mut self, tickets: u64, rows: usize, result: Result<(), &StoreError>) {
        self.partition().finish(tickets, rows, result.is_ok(), &mut self.finished);
        self.tell(result);
    }

    fn tell(&mut self, result: Result<(), &StoreError>) {
        if !self.finished.is_empty() {
            self.shared.sink.committed(&mut self.finished, result);
            self.finished.clear();
        }
    }

    /// Commits the last state of each key. Comes back with an error only when the data is refused or the time to close is
    /// over; until then it tries again.
    fn commit(&mut self, changes: &[Change<'_>]) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        let mut seen = HashSet::with_capacity(changes.len());
        for change in changes.iter().rev() {
            match change {
                Change::Barrier => {}
                Change::Upsert(row) if seen.insert(row.key) => batch.upserts.push(*row),
                Change::Delete(key) if seen.insert(*key) => batch.deletes.push(*key),
                Change::Upsert(_) | Change::Delete(_) => {}
            }
        }
        if batch.upserts.is_empty() && batch.deletes.is_empty() {
            return Ok(());
        }
        // In the order of the table, as every other writer: two batches that meet do not lock each other out.
        batch.upserts.sort_unstable_by_key(|row: &Row<'_>| row.key);
        batch.deletes.sort_unstable();
        let mut pause = FIRST_PAUSE;
        loop {
            match self.attempt(&batch) {
                Ok(()) => {
                    let counters = self.counters();
                    counters.commits.inc();
                    counters.upserts.add(batch.upserts.len() as u64);
                    counters.deletes.add(batch.deletes.len() as u64);
                    if std::mem::take(&mut self.away) {
                        tracing::info!(place = %self.shared.place(), "the database is back");
                    }
                    return Ok(());
                }
                Err(e) => match e.kind() {
                    Kind::Refused => return Err(e),
                    Kind::Retry => self.counters().retries.inc(),
                    _ => {
                        self.session = None;
                        if !std::mem::replace(&mut self.away, true) {
                            self.counters().outages.inc();
                            tracing::warn!(place = %self.shared.place(), "the database is away, changes are kept: {e}");
                            // A server that closed an idle connection is there at once.
                            continue;
                        }
                    }
                },
            }
            self.wait(pause)?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn attempt(&mut self, batch: &Batch<'_>) -> Result<(), StoreError> {
        let session = match &mut self.session {
            Some(session) => session,
            None => self.session.insert(self.shared.connect()?),
        };
        let started = Instant::now();
        let result = session.commit(batch);
        self.counters().commit_time.record(started.elapsed().as_nanos() as u64);
        result
    }

    fn wait(&self, pause: Duration) -> Result<(), StoreError> {
        let mut queue = self.partition().queue.lock();
        let until = Instant::now() + pause;
        loop {
            if queue.closing.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(StoreError::new(
                    Kind::Closed,
                    "the database did not come back before the registrar was closed",
                ));
            }
            let until = queue.closing.map_or(until, |deadline| deadline.min(until));
            let over = self.partition().close.wait_until(&mut queue, until).timed_out();
            if over && queue.closing.is_none_or(|deadline| until < deadline) {
                return Ok(());
            }
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
