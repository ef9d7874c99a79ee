//! The changes of one part of the addresses-of-record, on their way to the database, and who waits for them.
//!
//! ```text
//!   register()  -- under the shard's lock -->  packed   [change][change|last][change|last] ...
//!   submit()    ---------------------------->  waiting  one entry per ticket, oldest first
//!
//!   direct:    packed ──▶ flight (in the writer's hands) ──▶ database
//!   spooling:  packed ──▶ taken (in the spooler's hands) ──▶ spool ──▶ writer ──▶ database
//! ```
//! Promises: changes reach the database in the order in which they were packed, across both ways; all changes of one
//! ticket are in one transaction; a ticket is finished once, when its changes are durable in the database or the spool.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::store::{Change, Reader, encode, mark_last};

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

/// What the writer has in its hands.
struct Flight {
    work: Arc<Vec<u8>>,
    /// Where what is not committed yet begins.
    from: usize,
    since: Instant,
    /// The database is away: the spooler need not wait any longer.
    urgent: bool,
}

/// What the spooler has in its hands.
struct Taken {
    work: Arc<Vec<u8>>,
    tickets: u64,
    rows: usize,
    /// The spool cannot be written: the writer may have it back.
    stuck: bool,
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
    flight: Option<Flight>,
    taken: Option<Taken>,
    /// Chunks in the spool that the database does not have yet.
    spooled: u64,
}

pub(super) struct Partition<W> {
    queue: Mutex<Queue<W>>,
    /// There is something packed, or it is time to close.
    work: Condvar,
    /// It is time to close: ends a pause between two attempts to connect.
    close: Condvar,
    /// Tickets below this number are committed (or refused).
    done: AtomicU64,
    /// Tickets below this number were in the database when spooling began.
    stored: AtomicU64,
    /// Changes that are durable nowhere yet.
    rows: AtomicUsize,
    /// Changes go through the spool. Written under the queue's lock.
    spooling: AtomicBool,
    /// The database has been away for longer than a request may wait, and there is no spool.
    refusing: AtomicBool,
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
                flight: None,
                taken: None,
                spooled: 0,
            }),
            work: Condvar::new(),
            close: Condvar::new(),
            done: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            rows: AtomicUsize::new(0),
            spooling: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
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

    /// Whether the ticket that a record remembers is durable. Numbers are compared as 32 bits: a record that nobody
    /// touched for 2^31 tickets may be taken for one that waits, which costs its next request a wait and nothing else.
    pub fn is_done(&self, handed: u32) -> bool {
        before(handed, self.done.load(Ordering::Acquire))
    }

    /// Tickets before this one are in the database: a SELECT that is sent now sees them.
    pub fn mark(&self) -> u64 {
        let mark = if self.spooling() { &self.stored } else { &self.done };
        mark.load(Ordering::Acquire)
    }

    /// Whether the database has it: a SELECT would find it.
    pub fn is_stored(&self, handed: u32) -> bool {
        before(handed, self.mark())
    }

    pub fn spooling(&self) -> bool {
        self.spooling.load(Ordering::Acquire)
    }

    /// From the start on, for there is something in the spool that has to be in the database first.
    pub fn begin_spooling(&self) {
        let _queue = self.queue.lock();
        self.spooling.store(true, Ordering::Release);
    }

    /// Whether a change is to be refused at once.
    pub fn refusing(&self) -> bool {
        self.refusing.load(Ordering::Relaxed)
    }

    pub fn set_refusing(&self, refusing: bool) {
        self.refusing.store(refusing, Ordering::Relaxed);
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

    /// Ends `count` tickets that the writer has committed; false when the spooler has taken them over.
    pub fn finish(&self, count: u64, rows: usize, ok: bool, out: &mut Vec<W>) -> bool {
        let mut queue = self.queue.lock();
        if self.spooling() {
            return false;
        }
        queue.flight = None;
        self.end(&mut queue, count, rows, ok, out);
        true
    }

    fn end(&self, queue: &mut Queue<W>, count: u64, rows: usize, ok: bool, out: &mut Vec<W>) {
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
        self.rows.fetch_sub(rows, Ordering::Relaxed);
    }

    /// The writer begins with what stands in `work` from `from` on.
    pub fn take_off(&self, work: &Arc<Vec<u8>>, from: usize) {
        let flight = Flight { work: Arc::clone(work), from, since: Instant::now(), urgent: false };
        let mut queue = self.queue.lock();
        if !self.spooling() {
            queue.flight = Some(flight);
        }
    }

    /// The writer does not come through.
    pub fn call_for_help(&self) {
        if let Some(flight) = &mut self.queue.lock().flight {
            flight.urgent = true;
        }
    }

    /// Gives the spooler what it is to write: all that waits, when the database is away or has not answered for `patience`.
    /// What it was given before comes first.
    pub fn take(&self, patience: Duration) -> Option<Arc<Vec<u8>>> {
        let mut queue = self.queue.lock();
        if let Some(taken) = &mut queue.taken {
            taken.stuck = false;
            return Some(Arc::clone(&taken.work));
        }
        let mut work = Vec::new();
        if !self.spooling() {
            let late = |flight: &mut Flight| flight.urgent || flight.since.elapsed() >= patience;
            let flight = queue.flight.take_if(late)?;
            self.stored.store(queue.base, Ordering::Release);
            self.spooling.store(true, Ordering::Release);
            work.extend_from_slice(&flight.work[flight.from..]);
        }
        if work.is_empty() {
            std::mem::swap(&mut work, &mut queue.packed);
        } else {
            work.append(&mut queue.packed);
        }
        if work.is_empty() {
            return None;
        }
        let (mut tickets, mut rows) = (0, 0);
        let mut reader = Reader::new(&work);
        while let Some((_, last)) = reader.next_change() {
            rows += 1;
            tickets += u64::from(last);
        }
        let work = Arc::new(work);
        queue.taken = Some(Taken { work: Arc::clone(&work), tickets, rows, stuck: false });
        Some(work)
    }

    /// What the spooler was given is durable, in so many chunks.
    pub fn landed(&self, chunks: u64, out: &mut Vec<W>) {
        let mut queue = self.queue.lock();
        if let Some(taken) = queue.taken.take() {
            queue.spooled += chunks;
            self.end(&mut queue, taken.tickets, taken.rows, true, out);
        }
        drop(queue);
        self.work.notify_all();
    }

    /// The spool cannot take it.
    pub fn stuck(&self) {
        if let Some(taken) = &mut self.queue.lock().taken {
            taken.stuck = true;
        }
        self.work.notify_all();
    }

    /// So many chunks of the spool are in the database.
    pub fn replayed(&self, chunks: u64) {
        self.queue.lock().spooled -= chunks;
    }

    /// Whether the spool holds something for the writer. When all is in the database, changes go there directly again.
    pub fn to_replay(&self) -> Replay {
        let mut queue = self.queue.lock();
        if queue.spooled > 0 {
            return if queue.closing.is_some() { Replay::Closing } else { Replay::More };
        }
        match &queue.taken {
            None => {}
            Some(taken) if taken.stuck => {
                // The spool is no help, the database may be: it goes in front of what has come since.
                let mut work = taken.work.to_vec();
                work.append(&mut queue.packed);
                queue.packed = work;
                queue.taken = None;
            }
            Some(_) => {
                self.work.wait_for(&mut queue, Duration::from_millis(100));
                return Replay::Wait;
            }
        }
        self.spooling.store(false, Ordering::Release);
        Replay::Over
    }

    /// Waits for changes, or for the time to fetch them; what was packed is in `work` then.
    pub fn next(&self, work: &mut Arc<Vec<u8>>, flush_at: Instant) -> Next {
        let mut queue = self.queue.lock();
        loop {
            if Instant::now() >= flush_at {
                return Next::Flush;
            }
            if !queue.packed.is_empty() {
                swap_packed(&mut queue, work);
                return Next::Work;
            }
            if queue.closing.is_some() {
                return Next::End;
            }
            self.work.wait_until(&mut queue, flush_at);
        }
    }

    /// What is packed, without waiting.
    pub fn fetch(&self, work: &mut Arc<Vec<u8>>) {
        swap_packed(&mut self.queue.lock(), work);
    }

    /// When closing has begun: until when there is time.
    pub fn closing(&self) -> Option<Instant> {
        self.queue.lock().closing
    }

    /// Waits, but not past the end; false when that has come.
    pub fn pause(&self, pause: Duration) -> bool {
        let mut queue = self.queue.lock();
        let until = Instant::now() + pause;
        loop {
            if queue.closing.is_some_and(|deadline| Instant::now() >= deadline) {
                return false;
            }
            let until = queue.closing.map_or(until, |deadline| deadline.min(until));
            let over = self.close.wait_until(&mut queue, until).timed_out();
            if over && queue.closing.is_none_or(|deadline| until < deadline) {
                return true;
            }
        }
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

    /// Changes that are durable nowhere yet.
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
            mark_last(&mut queue.packed[head]);
        }
        queue.waiting.push_back(if somebody_waits { Waiting::Open } else { Waiting::Nobody });
        queue.base + queue.waiting.len() as u64 - 1
    }
}

/// What a writer does next.
pub(super) enum Next {
    Work,
    Flush,
    End,
}

/// What a writer has to do with the spool.
pub(super) enum Replay {
    More,
    /// The spooler is writing: look again.
    Wait,
    Over,
    /// There is more, and it may stay where it is: it is durable.
    Closing,
}

/// Whether the ticket that a record remembers stands before a mark.
pub(super) fn before(handed: u32, mark: u64) -> bool {
    (mark as u32).wrapping_sub(handed).wrapping_sub(1) < 1 << 31
}

fn swap_packed<W>(queue: &mut Queue<W>, work: &mut Arc<Vec<u8>>) {
    // The spooler may still read the last one.
    if Arc::get_mut(work).is_none() {
        *work = Arc::default();
    }
    if let Some(work) = Arc::get_mut(work) {
        work.clear();
        // What an outage piled up is not kept for ever.
        if work.capacity() > 4 << 20 {
            work.shrink_to(1 << 20);
        }
        std::mem::swap(work, &mut queue.packed);
    }
}
