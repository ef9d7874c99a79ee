//! Writers: each owns one connection and the changes of its part of the addresses-of-record.
//!
//! ```text
//!   direct:    all that is packed ──▶ batches that end with a ticket ──▶ one transaction each ──▶ their waiters, together
//!   spooling:  the oldest chunks of the spool ──▶ one transaction ──▶ out of the spool           (see `spooler`)
//! ```
//! Promises: the changes of one address-of-record reach the database in the order in which they reached the cache, for
//! they are packed under its shard's lock and a shard belongs to one partition; a database that is gone blocks nobody but
//! the writer, which keeps what it has and comes back to it; a batch that the database refuses, or that meets other
//! writers again and again, is halved until what is to blame stands alone.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::partition::{Next, Partition, Replay};
use super::spool::{EARLIER, Spool};
use super::store::{Batch, Change, Kind, Reader, Row, Session, StoreError};
use super::{Counters, Shared};

/// Why a batch was not committed.
enum Stop {
    /// The database refuses the data itself.
    Refused(StoreError),
    /// Others lock the same rows; a smaller batch meets fewer of them.
    Contended,
    /// There is no time left.
    Closed(StoreError),
    /// The spooler has taken it over.
    Spooled,
}

/// Where a batch comes from.
#[derive(Clone, Copy)]
enum From<'a> {
    /// From the queue: there are tickets to be finished.
    Queue(&'a Arc<Vec<u8>>),
    /// From the spool: acknowledged already.
    Spool,
}

/// One writer thread.
pub(super) struct Writer<'s, W: Send + 'static> {
    shared: &'s Shared<W>,
    me: usize,
    session: Option<Box<dyn Session>>,
    /// Since when the database is away.
    away: Option<Instant>,
    /// Waits for no database: at start somebody waits for the outcome.
    hasty: bool,
    finished: Vec<W>,
}

/// Chunks of the spool that are replayed in one go.
const CHUNKS: usize = 10;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl<'s, W: Send + 'static> Writer<'s, W> {
    pub fn new(shared: &'s Shared<W>, me: usize, session: Option<Box<dyn Session>>) -> Self {
        Writer { shared, me, session, away: None, hasty: false, finished: Vec::new() }
    }

    fn partition(&self) -> &'s Partition<W> {
        &self.shared.partitions[self.me]
    }

    pub fn run(mut self) {
        let mut work = Arc::default();
        let interval = self.shared.options.flush_interval;
        let mut flush_at = Instant::now() + interval;
        loop {
            if self.partition().spooling() && !self.replay() {
                break;
            }
            match self.partition().next(&mut work, flush_at) {
                Next::Work => self.write(&work),
                Next::Flush => {
                    self.flush(&mut work);
                    flush_at = Instant::now() + interval;
                }
                Next::End => {
                    self.flush(&mut work);
                    if self.partition().spooling() {
                        continue;
                    }
                    break;
                }
            }
        }
        self.partition().abandon(&mut self.finished);
        self.tell(Err(&StoreError::new(Kind::Closed, "the registrar is closed")));
    }

    /// Fetches what is marked in the shards of this partition and writes it, batch by batch.
    fn flush(&mut self, work: &mut Arc<Vec<u8>>) {
        let batch = self.shared.options.batch;
        let mut shard = self.me as u32;
        while shard < self.shared.cache.shards() {
            let more = self.fetch(shard, batch);
            // A full batch is written before more is fetched: what waits in the cache is still coalesced there.
            let last = !more && shard + self.shared.partitions.len() as u32 >= self.shared.cache.shards();
            if last || self.partition().depth() >= batch {
                self.partition().fetch(work);
                self.write(work);
            }
            if self.gave_up() || self.partition().spooling() {
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
        while self.partition().depth() < batch {
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
        self.partition().closing().is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Writes all of it, and finishes its tickets.
    fn write(&mut self, work: &Arc<Vec<u8>>) {
        if let Err(Stop::Closed(e)) = self.write_all(work, From::Queue(work)) {
            let left = self.partition().depth();
            tracing::error!(changes = left, "closed before everything was written: {e}");
            self.partition().abandon(&mut self.finished);
            self.tell(Err(&e));
        }
    }

    /// Writes packed changes in batches that end with a ticket.
    fn write_all(&mut self, packed: &[u8], from: From<'_>) -> Result<(), Stop> {
        let batch = match from {
            From::Queue(_) => self.shared.options.batch,
            From::Spool => self.shared.options.batch.saturating_mul(CHUNKS),
        };
        let mut reader = Reader::new(packed);
        let mut changes = Vec::with_capacity(batch + 8);
        // Tickets per batch: halved where a batch is in trouble, doubled again after each that passes.
        let mut most = usize::MAX;
        while reader.left() > 0 {
            let start = reader.clone();
            let mut tickets = 0;
            changes.clear();
            while let Some((change, last)) = reader.next_change() {
                changes.push(change);
                tickets += usize::from(last);
                if last && (changes.len() >= batch || tickets >= most) {
                    break;
                }
            }
            if let (From::Queue(work), true) = (from, self.shared.spool.is_some()) {
                self.partition().take_off(work, packed.len() - start.left());
            }
            match self.commit(&changes, tickets, from) {
                Ok(()) => {
                    self.finish(tickets, changes.len(), Ok(()), from)?;
                    most = most.saturating_mul(2);
                }
                Err(Stop::Refused(e)) if tickets <= 1 => {
                    self.counters().refused.inc();
                    tracing::error!("the database refuses a change, which is dropped: {e}");
                    self.finish(tickets, changes.len(), Err(&e), from)?;
                }
                Err(Stop::Refused(_) | Stop::Contended) => {
                    most = (tickets / 2).max(1);
                    reader = start;
                }
                Err(stop) => return Err(stop),
            }
        }
        Ok(())
    }

    fn counters(&self) -> &'s Counters {
        &self.shared.counters
    }

    fn finish(
        &mut self,
        tickets: usize,
        rows: usize,
        result: Result<(), &StoreError>,
        from: From<'_>,
    ) -> Result<(), Stop> {
        if let From::Queue(_) = from {
            if !self.partition().finish(tickets as u64, rows, result.is_ok(), &mut self.finished) {
                return Err(Stop::Spooled);
            }
            self.tell(result);
        }
        Ok(())
    }

    fn tell(&mut self, result: Result<(), &StoreError>) {
        if !self.finished.is_empty() {
            self.shared.sink.committed(&mut self.finished, result);
            self.finished.clear();
        }
    }

    /// Commits the last state of each key; tries again for as long as it makes sense.
    fn commit(&mut self, changes: &[Change<'_>], tickets: usize, from: From<'_>) -> Result<(), Stop> {
        let batch = batch_of(changes);
        if batch.upserts.is_empty() && batch.deletes.is_empty() {
            return Ok(());
        }
        let mut pause = FIRST_PAUSE;
        let mut contended = 0;
        loop {
            let error = match self.attempt(&batch) {
                Ok(()) => {
                    let counters = self.counters();
                    counters.commits.inc();
                    counters.upserts.add(batch.upserts.len() as u64);
                    counters.deletes.add(batch.deletes.len() as u64);
                    if self.away.take().is_some() {
                        self.partition().set_refusing(false);
                        tracing::info!(place = %self.shared.place(), "the database is back");
                    }
                    return Ok(());
                }
                Err(e) => e,
            };
            match error.kind() {
                Kind::Refused => return Err(Stop::Refused(error)),
                Kind::Retry => {
                    self.counters().retries.inc();
                    contended += 1;
                    if contended > 1 && tickets > 1 {
                        return Err(Stop::Contended);
                    }
                }
                _ if self.hasty => return Err(Stop::Closed(error)),
                _ => {
                    self.session = None;
                    let Some(since) = self.away else {
                        self.away = Some(Instant::now());
                        self.counters().outages.inc();
                        tracing::warn!(place = %self.shared.place(), "the database is away, changes are kept: {error}");
                        // A server that closed an idle connection is there at once.
                        continue;
                    };
                    self.help(since, from);
                }
            }
            if matches!(from, From::Queue(_)) && self.partition().spooling() {
                return Err(Stop::Spooled);
            }
            if !self.partition().pause(pause) {
                return Err(Stop::Closed(StoreError::new(
                    Kind::Closed,
                    "the database did not come back before the registrar was closed",
                )));
            }
            if matches!(from, From::Spool) && self.partition().closing().is_some() {
                // It is durable where it is.
                return Err(Stop::Closed(error));
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The database has been away since then: the spool takes over; or, when there is none, requests are refused at once
    /// from the time on when waiting would be of no use to them.
    fn help(&self, since: Instant, from: From<'_>) {
        match &self.shared.spool {
            Some(spool) => {
                if let From::Queue(_) = from {
                    self.partition().call_for_help();
                    spool.bell.ring();
                }
            }
            None if since.elapsed() >= self.shared.options.commit_timeout => self.partition().set_refusing(true),
            None => {}
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

    /// Replays what stands in the spool, until changes go to the database directly again; false when it is time to close.
    fn replay(&mut self) -> bool {
        let Some(spool) = &self.shared.spool else { return true };
        if !self.replay_earlier(spool) {
            return false;
        }
        loop {
            match self.partition().to_replay() {
                Replay::Over => {
                    tracing::info!(place = %self.shared.place(), "the spool is replayed");
                    return true;
                }
                Replay::Closing => return false,
                Replay::Wait => {}
                Replay::More => match self.replay_some(spool, self.me as u32) {
                    Ok(Some(chunks)) => self.partition().replayed(chunks),
                    Ok(None) => {}
                    Err(Stop::Closed(_)) => return false,
                    Err(_) => {}
                },
            }
        }
    }

    /// Replays the oldest chunks of a partition; how many.
    fn replay_some(&mut self, spool: &Spool, partition: u32) -> Result<Option<u64>, Stop> {
        let mut packed = Vec::new();
        let outcome = spool.oldest(partition, CHUNKS, &mut packed);
        let trouble = match outcome {
            Ok(Some(piece)) => {
                self.write_all(&packed, From::Spool)?;
                match spool.remove(partition, &piece) {
                    Ok(()) => return Ok(Some(piece.chunks)),
                    Err(e) => e,
                }
            }
            Ok(None) => return Ok(None),
            Err(e) => e,
        };
        if self.hasty {
            return Err(Stop::Closed(trouble));
        }
        tracing::error!("the spool cannot be read or emptied, trying again: {trouble}");
        if self.partition().pause(LONGEST_PAUSE) { Ok(None) } else { Err(Stop::Closed(trouble)) }
    }

    /// Replays what an earlier run left, of whichever partition; false when it is time to close. One writer does it, the others
    /// wait for that.
    fn replay_earlier(&mut self, spool: &Spool) -> bool {
        let _one = self.shared.replaying.lock();
        while self.shared.owes.load(Ordering::Acquire) {
            match self.replay_some(spool, EARLIER) {
                Ok(Some(_)) => {}
                Ok(None) => {
                    tracing::info!(place = %self.shared.place(), "the spool of an earlier run is replayed");
                    self.shared.owes.store(false, Ordering::Release);
                }
                Err(Stop::Closed(_)) => return false,
                Err(_) => {}
            }
        }
        true
    }

    /// At start: the same, but it gives up when the database does.
    pub fn replay_at_start(mut self, spool: &Spool) -> Result<Option<Box<dyn Session>>, StoreError> {
        self.hasty = true;
        loop {
            match self.replay_some(spool, EARLIER) {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(self.session),
                Err(Stop::Closed(e) | Stop::Refused(e)) => return Err(e),
                Err(Stop::Contended | Stop::Spooled) => {}
            }
        }
    }
}

/// The last state of each key, in the order of the table, as every other writer sorts them: two batches that meet do not
/// lock each other out.
fn batch_of<'a>(changes: &[Change<'a>]) -> Batch<'a> {
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
    batch.upserts.sort_unstable_by_key(|row: &Row<'_>| row.key);
    batch.deletes.sort_unstable();
    batch
}
