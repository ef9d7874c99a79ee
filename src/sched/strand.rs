//! Strands: what must not run twice at once, or not more than so many times.
//!
//! A job is admitted under a key. If its strand is free the caller runs it, holding a [`Permit`]; else it waits on the
//! strand and the caller goes on. Whoever finishes a job asks the permit for the next one and runs that.
//!
//! ```text
//!   shard (by key) ─ lock ─┬─ strands: key ─▶ { running, queued, lanes }     of the keyed, only those in use have an entry
//!                          └─ nodes:   slab of queued jobs, linked by index        no allocation in steady state
//! ```
//! - `Serial`: one strand. `Keyed`: one per key (a hash of the Call-ID, of the address-of-record); keys that collide in
//!   all 64 bits share a strand, which costs time and is never wrong. `Parallel`: as many calls as the cap allows.
//! - Jobs of a strand (and lane) begin in the order in which they were admitted; with a limit of one they also end in that order.
//! - Bounded per strand and in all; beyond, the job comes back ([`Admit::Full`]).
//! - A permit that is dropped instead of asked (a panic) hands its strand on: the next job goes to `resume`.
//! - While held ([`StrandSet::hold`]) nothing is admitted to run and what runs comes to its end: for exchanging the code.

use std::sync::Arc;
use std::sync::atomic::AtomicU64 as Count;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::crew::Lane;
use super::sync::{AtomicUsize, Condvar, Mutex, Ordering, own_number, wait};
use crate::observe::{Histogram, Text};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// One at a time: for code that says nothing about itself.
    Serial,
    /// One at a time per key.
    Keyed,
    /// At once, at most `cap` (0: no limit). With a cap the jobs that wait are begun in order of arrival.
    Parallel { cap: u32 },
}

#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Jobs that may wait on one strand.
    pub per_strand: usize,
    /// Jobs that may wait in all.
    pub total: usize,
    /// Jobs that one thread runs of a strand without going back to the pool, so that a busy strand does not keep it.
    pub turn: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { per_strand: 1024, total: 65_536, turn: 64 }
    }
}

pub enum Admit<J: Send + 'static> {
    /// Run it now, then ask the permit.
    Run(J, Permit<J>),
    Queued,
    /// As much waits as may.
    Full(J),
}

pub enum Next<J> {
    /// Run it on this thread, then ask again.
    Run(J),
    /// Run it too, but first let others have the thread: submit job and permit to the pool. Where that is refused,
    /// running it here is right as well.
    Yield(J),
    /// The strand is released, or nothing waits; the permit is used up.
    Done,
}

/// Given job and permit of a strand whose thread went away (a panic), or that was held: they have to be submitted to a
/// pool, or run. It must not panic.
pub type Resume<J> = Box<dyn Fn(J, Permit<J>) + Send + Sync>;

const NIL: u32 = u32::MAX;

struct Node<J> {
    job: Option<J>,
    since: Instant,
    next: u32,
}

#[derive(Clone, Copy)]
struct List {
    first: u32,
    last: u32,
}

/// What waits on a strand, and how many of it run.
struct Strand {
    running: u32,
    queued: u32,
    /// `High` and `Normal`.
    lanes: [List; 2],
}

impl Strand {
    const NEW: Strand = Strand { running: 0, queued: 0, lanes: [List { first: NIL, last: NIL }; 2] };
}

/// Keys are hashes already.
#[derive(Default, Clone, Copy)]
struct AsIs(u64);

impl std::hash::Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 keys are hashed");
    }
    fn write_u64(&mut self, key: u64) {
        // Callers may hand in a hash with poor low or high bits; hashbrown uses both ends.
        self.0 = (key ^ (key >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

type BuildAsIs = std::hash::BuildHasherDefault<AsIs>;

struct Shard<J> {
    strands: HashMap<u64, Strand, BuildAsIs>,
    nodes: Vec<Node<J>>,
    unused: u32,
    running: usize,
    /// Counted here and not in one place for all: that line would go from processor to processor with every job.
    admitted: u64,
    held: bool,
}

/// A shard on cache lines of its own.
#[repr(align(128))]
struct Padded<J>(Mutex<Shard<J>>);

pub struct StrandSet<J: Send + 'static> {
    policy: Policy,
    bounds: Bounds,
    /// Jobs of one strand that may run at once.
    limit: u32,
    shards: Box<[Padded<J>]>,
    queued: AtomicUsize,
    /// While held, tells the holder that a shard has run empty.
    idle: Condvar,
    resume: Resume<J>,
    full: Count,
    yields: Count,
    wait: Histogram,
    run: Histogram,
}

/// The right to run jobs of one strand. [`Permit::next`] after each.
pub struct Permit<J: Send + 'static> {
    set: Arc<StrandSet<J>>,
    key: u64,
    shard: u32,
    turn: u32,
    live: bool,
    began: Instant,
}

impl<J: Send + 'static> StrandSet<J> {
    pub fn new(policy: Policy, bounds: Bounds, resume: Resume<J>) -> Arc<Self> {
        // A parallel set without a cap has no strand to find: its shards only count, each for some of the threads.
        let shards = match policy {
            Policy::Serial => 1,
            Policy::Parallel { cap } if cap > 0 => 1,
            Policy::Keyed | Policy::Parallel { .. } => SHARDS,
        };
        let limit = match policy {
            Policy::Serial | Policy::Keyed => 1,
            Policy::Parallel { cap: 0 } => u32::MAX,
            Policy::Parallel { cap } => cap,
        };
        let shard = |_| {
            Padded(Mutex::new(Shard {
                strands: HashMap::with_hasher(BuildAsIs::default()),
                nodes: Vec::new(),
                unused: NIL,
                running: 0,
                admitted: 0,
                held: false,
            }))
        };
        Arc::new(StrandSet {
            policy,
            bounds,
            limit,
            shards: (0..shards).map(shard).collect(),
            queued: AtomicUsize::new(0),
            idle: Condvar::new(),
            resume,
            full: Count::new(0),
            yields: Count::new(0),
            wait: Histogram::new(),
            run: Histogram::new(),
        })
    }

    /// Which strand of which shard.
    fn place(&self, key: u64) -> (u64, usize) {
        match self.policy {
            // The top bits choose the shard; the map uses all of them, mixed.
            Policy::Keyed => (key, (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize % self.shards.len()),
            Policy::Parallel { cap: 0 } => (0, own_number() % self.shards.len()),
            Policy::Serial | Policy::Parallel { .. } => (0, 0),
        }
    }

    /// As [`StrandSet::admit`] for a job that is in the caller's hands and stays there: a permit if the strand is free.
    /// So only what has to wait is made into a `J`.
    pub fn try_enter(self: &Arc<Self>, key: u64) -> Option<Permit<J>> {
        let (key, at) = self.place(key);
        let mut shard = self.shards[at].0.lock();
        if shard.held {
            return None;
        }
        let strand = shard.strands.entry(key).or_insert(Strand::NEW);
        if strand.running >= self.limit || strand.queued != 0 {
            return None;
        }
        strand.running += 1;
        shard.running += 1;
        shard.admitted += 1;
        drop(shard);
        Some(self.permit(key, at as u32, Instant::now()))
    }

    /// Admits a job to its strand. The key counts for `Keyed` only.
    pub fn admit(self: &Arc<Self>, key: u64, job: J) -> Admit<J> {
        self.admit_in(Lane::Normal, key, job)
    }

    /// The same; on a strand that is busy every `High` job begins before any `Normal` one that waits. For overload, and
    /// only where the two do not belong together: a BYE must not pass its INVITE.
    pub fn admit_in(self: &Arc<Self>, lane: Lane, key: u64, job: J) -> Admit<J> {
        let (key, at) = self.place(key);
        let mut shard = self.shards[at].0.lock();
        let held = shard.held;
        let strand = shard.strands.entry(key).or_insert(Strand::NEW);
        // Behind what waits, even if the limit would allow it: order of arrival.
        if !held && strand.running < self.limit && strand.queued == 0 {
            strand.running += 1;
            shard.running += 1;
            shard.admitted += 1;
            drop(shard);
            return Admit::Run(job, self.permit(key, at as u32, Instant::now()));
        }
        // A hold is short and nobody's fault: what comes meanwhile is bounded in all only.
        let near = held || (strand.queued as usize) < self.bounds.per_strand;
        let room = near && self.queued.fetch_add(1, Ordering::Relaxed) < self.bounds.total;
        if !room {
            if near {
                self.queued.fetch_sub(1, Ordering::Relaxed);
            }
            if self.policy == Policy::Keyed && strand.running == 0 && strand.queued == 0 {
                shard.strands.remove(&key);
            }
            drop(shard);
            self.full.fetch_add(1, Relaxed);
            return Admit::Full(job);
        }
        shard.push(key, lane, job);
        shard.admitted += 1;
        Admit::Queued
    }

    fn permit(self: &Arc<Self>, key: u64, shard: u32, began: Instant) -> Permit<J> {
        Permit { set: Arc::clone(self), key, shard, turn: 0, live: true, began }
    }

    /// From now on jobs wait, even on free strands. Those that run go on, but take no next job.
    pub fn hold(&self) {
        for shard in &self.shards {
            shard.0.lock().held = true;
        }
    }

    /// While held: waits until nothing runs, at most `limit`; how many run still.
    pub fn wait_idle(&self, limit: Duration) -> usize {
        #[cfg(not(loom))]
        let end = Instant::now() + limit;
        let mut left = 0;
        for shard in &self.shards {
            let mut shard = shard.0.lock();
            while shard.running > 0 {
                #[cfg(not(loom))]
                let limit = end.saturating_duration_since(Instant::now());
                if wait(&self.idle, &mut shard, Some(limit)) {
                    break;
                }
            }
            left += shard.running;
        }
        left
    }

    /// Ends a hold: what waited goes to `resume`, each strand's first job (up to its limit).
    pub fn release(self: &Arc<Self>) {
        for at in 0..self.shards.len() {
            let mut ready = Vec::new();
            let mut guard = self.shards[at].0.lock();
            guard.held = false;
            let keys: Vec<u64> = guard.strands.iter().filter(|(_, s)| s.queued > 0).map(|(key, _)| *key).collect();
            for key in keys {
                while let Some((job, since)) = guard.begin(key, self.limit) {
                    ready.push((key, job, since));
                }
            }
            drop(guard);
            self.queued.fetch_sub(ready.len(), Ordering::Relaxed);
            let now = Instant::now();
            for (key, job, since) in ready {
                self.wait.record(nanos(now.saturating_duration_since(since)));
                (self.resume)(job, self.permit(key, at as u32, now));
            }
        }
    }

    /// Takes out all that waits, for a stop: nothing is run.
    pub fn drain(&self) -> Vec<J> {
        let mut left = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.0.lock();
            let shard = &mut *shard;
            for strand in shard.strands.values_mut() {
                while let Some((job, _)) = pop(strand, &mut shard.nodes, &mut shard.unused) {
                    left.push(job);
                }
            }
            shard.strands.retain(|_, strand| strand.running > 0 || self.policy != Policy::Keyed);
        }
        self.queued.fetch_sub(left.len(), Ordering::Relaxed);
        left
    }

    /// Jobs that run now.
    pub fn running(&self) -> usize {
        self.shards.iter().map(|s| s.0.lock().running).sum()
    }

    /// Jobs that wait now.
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Strands in use: those with a job.
    pub fn strands(&self) -> usize {
        let used = |shard: &Padded<J>| {
            let shard = shard.0.lock();
            match self.policy {
                Policy::Keyed => shard.strands.len(),
                _ => shard.strands.values().filter(|s| s.running > 0 || s.queued > 0).count(),
            }
        };
        self.shards.iter().map(used).sum()
    }

    pub fn admitted(&self) -> u64 {
        self.shards.iter().map(|s| s.0.lock().admitted).sum()
    }

    pub fn refused(&self) -> u64 {
        self.full.load(Relaxed)
    }

    /// How long jobs waited, of those that did.
    pub fn wait_times(&self) -> &Histogram {
        &self.wait
    }

    pub fn run_times(&self) -> &Histogram {
        &self.run
    }

    /// Families have to be written in one piece, so all sets (one per plugin) are written by one call.
    pub fn metrics<'s>(sets: impl Iterator<Item = (&'s str, &'s StrandSet<J>)> + Clone, out: &mut Text) {
        for (name, set) in sets.clone() {
            out.counter("partyline_calls_total", "Jobs admitted.", &[("plugin", name)], set.admitted());
        }
        for (name, set) in sets.clone() {
            out.counter(
                "partyline_calls_refused_total",
                "Jobs refused: too many wait.",
                &[("plugin", name)],
                set.refused(),
            );
        }
        for (name, set) in sets.clone() {
            let yields = set.yields.load(Relaxed);
            out.counter("partyline_calls_yields_total", "Turns of a strand that ended.", &[("plugin", name)], yields);
        }
        for (name, set) in sets.clone() {
            out.gauge("partyline_calls_running", "Calls in flight.", &[("plugin", name)], set.running() as f64);
        }
        for (name, set) in sets.clone() {
            out.gauge("partyline_calls_queued", "Jobs that wait.", &[("plugin", name)], set.queued() as f64);
        }
        for (name, set) in sets.clone() {
            out.summary("partyline_call_wait_seconds", "Time that jobs waited.", &[("plugin", name)], &set.wait);
        }
        for (name, set) in sets {
            out.summary("partyline_call_seconds", "Time that calls ran.", &[("plugin", name)], &set.run);
        }
    }
}

impl<J: Send + 'static> Permit<J> {
    /// The job is done. Gives the strand's next one, or releases the strand.
    // Not an iterator: it has three answers.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Next<J> {
        if !self.live {
            return Next::Done;
        }
        let now = Instant::now();
        self.set.run.record(nanos(now.saturating_duration_since(self.began)));
        self.began = now;
        let Some((job, since)) = self.step() else { return Next::Done };
        self.set.wait.record(nanos(now.saturating_duration_since(since)));
        self.turn += 1;
        if self.turn < self.set.bounds.turn {
            return Next::Run(job);
        }
        self.turn = 0;
        self.set.yields.fetch_add(1, Relaxed);
        Next::Yield(job)
    }

    /// The time at which the current job began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Ends one job and begins the next, in one step under the lock: nobody gets between.
    fn step(&mut self) -> Option<(J, Instant)> {
        let set = &self.set;
        let mut guard = set.shards[self.shard as usize].0.lock();
        let shard = &mut *guard;
        let Entry::Occupied(mut entry) = shard.strands.entry(self.key) else {
            unreachable!("a strand that runs has an entry");
        };
        let strand = entry.get_mut();
        let next = if shard.held || strand.running > set.limit {
            None
        } else {
            pop(strand, &mut shard.nodes, &mut shard.unused)
        };
        if next.is_some() {
            drop(guard);
            set.queued.fetch_sub(1, Ordering::Relaxed);
            return next;
        }
        self.live = false;
        strand.running -= 1;
        shard.running -= 1;
        // Only strands in use have an entry; while held, one that has jobs waiting is in use.
        if set.policy == Policy::Keyed && strand.running == 0 && strand.queued == 0 {
            entry.remove();
        }
        if shard.held && shard.running == 0 {
            drop(guard);
            set.idle.notify_all();
        }
        None
    }
}

impl<J: Send + 'static> Drop for Permit<J> {
    fn drop(&mut self) {
        if !self.live {
            return;
        }
        if let Some((job, _)) = self.step() {
            // This permit's right goes on in a new one; `live` keeps this one from handing on twice.
            self.live = false;
            let permit = self.set.permit(self.key, self.shard, Instant::now());
            (self.set.resume)(job, permit);
        }
    }
}

impl<J> Shard<J> {
    fn push(&mut self, key: u64, lane: Lane, job: J) {
        let node = Node { job: Some(job), since: Instant::now(), next: NIL };
        let index = match self.unused {
            NIL => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
            index => {
                self.unused = self.nodes[index as usize].next;
                self.nodes[index as usize] = node;
                index
            }
        };
        let strand = self.strands.get_mut(&key).expect("entered by the caller");
        let list = &mut strand.lanes[lane as usize];
        match list.last {
            NIL => list.first = index,
            last => self.nodes[last as usize].next = index,
        }
        list.last = index;
        strand.queued += 1;
    }

    /// Takes the first job of a strand, if it may run one more.
    fn begin(&mut self, key: u64, limit: u32) -> Option<(J, Instant)> {
        let strand = self.strands.get_mut(&key)?;
        if strand.running >= limit {
            return None;
        }
        let taken = pop(strand, &mut self.nodes, &mut self.unused)?;
        strand.running += 1;
        self.running += 1;
        Some(taken)
    }
}

fn pop<J>(strand: &mut Strand, nodes: &mut [Node<J>], unused: &mut u32) -> Option<(J, Instant)> {
    let list = strand.lanes.iter_mut().find(|list| list.first != NIL)?;
    let index = list.first;
    let node = &mut nodes[index as usize];
    let taken = node.job.take().map(|job| (job, node.since));
    list.first = node.next;
    if list.first == NIL {
        list.last = NIL;
    }
    strand.queued -= 1;
    node.next = *unused;
    *unused = index;
    taken
}

const SHARDS: usize = if cfg!(loom) { 2 } else { 64 };

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
