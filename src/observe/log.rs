//! The log: a bounded ring of lines, written out by a thread of its own.
//!
//! ```text
//!   any thread ── tracing event ──▶ take a spare line, write into it, push it ──▶ [ ring ] ──▶ the log's thread ──▶ target
//!                                        ▲      └─ no spare line: count it as lost                 │
//!                                        └──────────────────── spare lines ◀───────────────────────┘
//! ```
//! A thread that logs never waits and never allocates: the lines are allocated when the log starts, and when all are on
//! their way the new one is dropped and counted. A target that blocks (a pipe nobody reads) or fails (a full disk) holds up
//! the log's thread and nobody else; what is lost is told in a line `N lines lost` as soon as lines can be written.
//!
//! Nothing happens by itself: [`install`] makes us the receiver of `tracing` events, unless the program has one
//! already, which then stays; [`start`] does the same and starts the thread; [`stop`] writes out what is queued and ends
//! it. While no thread runs, warnings and errors are written to stderr by the thread that has them, each place in the
//! code once and at most 64 in all; the rest is dropped.
//!
//! A line is `<UTC time> <LEVEL> <target>: <message> <key>=<value>...`; control characters are escaped, so what comes
//! from the network cannot forge a line or reach a terminal; at most 1,000 bytes, cut at a character.

mod line;

use std::cell::Cell;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use parking_lot::{Condvar, Mutex, RwLock};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::{Counter, Text};
use line::{Escaped, LINE, Line};

/// Bytes that are given to the target at once.
const BATCH: usize = 64 * 1024;
/// Lines written to stderr while no thread runs.
const EARLY: usize = 64;
/// How long the thread waits when the target cannot take anything just now.
const PAUSE: Duration = Duration::from_millis(10);

/// Called with a line without its newline, on the log's thread. What it logs itself is dropped.
pub type Callback = Box<dyn FnMut(Level, &str) + Send>;

pub enum Target {
    Stderr,
    /// Appended to; made when it is not there.
    File(PathBuf),
    Callback(Callback),
    /// Anything that takes bytes.
    Write(Box<dyn Write + Send>),
}

pub struct Options {
    /// The environment's `PARTYLINE_LOG` (`off`, `error`, `warn`, `info`, `debug`, `trace`) goes before this.
    pub level: LevelFilter,
    pub target: Target,
    /// Lines that may be on their way; a kilobyte each.
    pub ring: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { level: LevelFilter::INFO, target: Target::Stderr, ring: 4096 }
    }
}

/// Who gets the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    Ours,
    /// The program has set a receiver of its own before; it gets everything.
    Programs,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub written: u64,
    /// No spare line, or the target failed.
    pub lost: u64,
    /// Failed writes.
    pub failures: u64,
}

static WRITTEN: Counter = Counter::new();
static LOST: Counter = Counter::new();
static FAILURES: Counter = Counter::new();
/// The most that is let through; 0 is off, 5 is trace.
static LEVEL: AtomicUsize = AtomicUsize::new(2);
static OURS: AtomicBool = AtomicBool::new(false);
static RUNNING: RwLock<Option<Arc<Ring>>> = RwLock::new(None);

thread_local! {
    /// The log's own thread: what a callback or a target logs there would never come to an end.
    static WRITER: Cell<bool> = const { Cell::new(false) };
}

/// The places in the code that have written to stderr.
static EARLY_SEEN: Mutex<([usize; EARLY], usize)> = Mutex::new(([0; EARLY], 0));

/// Makes us the receiver of events; starts no thread. `PARTYLINE_LOG` goes before `level`.
pub fn install(level: LevelFilter) -> Receiver {
    let wish = super::env::var("PARTYLINE_LOG");
    let known = wish.as_deref().map(parse_level);
    LEVEL.store(rank(known.flatten().unwrap_or(level)), Ordering::Relaxed);
    if !OURS.load(Ordering::Acquire) {
        if tracing::subscriber::set_global_default(Log).is_err() {
            // Two threads may come here at once, and one of them was we.
            return if OURS.load(Ordering::Acquire) { Receiver::Ours } else { Receiver::Programs };
        }
        OURS.store(true, Ordering::Release);
    }
    // What was asked about a place in the code before may be answered differently now.
    tracing::callsite::rebuild_interest_cache();
    if let Some(None) = known {
        tracing::warn!(PARTYLINE_LOG = wish.as_deref(), "unknown log level: off, error, warn, info, debug or trace");
    }
    Receiver::Ours
}

/// Starts the log. If it runs already, only the level changes. With a receiver of the program's own no thread is
/// started. The thread inherits the signal mask of its starter: start it with signals blocked, for a write to a pipe that
/// nobody reads any more raises SIGPIPE.
pub fn start(options: Options) -> io::Result<Receiver> {
    if install(options.level) == Receiver::Programs {
        return Ok(Receiver::Programs);
    }
    let mut running = RUNNING.write();
    if running.is_some() {
        return Ok(Receiver::Ours);
    }
    let sink = Sink::open(options.target)?;
    let ring = Arc::new(Ring::new(options.ring.max(1)));
    let writer = Arc::clone(&ring);
    // Read here: by the time the thread runs lines may have been lost already.
    let told = LOST.get();
    let handle = std::thread::Builder::new().name("pl-log".into()).spawn(move || writer.write_out(sink, told))?;
    // Whoever pushes a line may have to wake the thread; nobody can push before `RUNNING` is set.
    *ring.thread.lock() = Some(handle.thread().clone());
    *running = Some(ring);
    Ok(Receiver::Ours)
}

/// Writes out what is queued and ends the thread, waiting at most `limit`; how many lines were left. They are lost if
/// the target never takes them; a thread that hangs in its target is left behind.
pub fn stop(limit: Duration) -> usize {
    let Some(ring) = RUNNING.write().take() else { return 0 };
    ring.stopping.store(true, Ordering::Release);
    ring.wake();
    let end = Instant::now() + limit;
    let mut ended = ring.ended.lock();
    while !*ended {
        if ring.at_end.wait_until(&mut ended, end).timed_out() {
            break;
        }
    }
    if *ended { 0 } else { ring.on_their_way() + ring.writing.load(Ordering::Relaxed) }
}

pub fn stats() -> Stats {
    Stats { written: WRITTEN.get(), lost: LOST.get(), failures: FAILURES.get() }
}

pub fn metrics(out: &mut Text) {
    let stats = stats();
    out.counter("partyline_log_lines_total", "Log lines written.", &[], stats.written);
    out.counter("partyline_log_lost_total", "Log lines lost: ring full or target failed.", &[], stats.lost);
    out.counter("partyline_log_failures_total", "Writes to the log's target that failed.", &[], stats.failures);
}

fn parse_level(text: &str) -> Option<LevelFilter> {
    let levels = [
        ("off", LevelFilter::OFF),
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ];
    levels.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, level)| level)
}

fn rank(level: LevelFilter) -> usize {
    let order = [LevelFilter::OFF, LevelFilter::ERROR, LevelFilter::WARN, LevelFilter::INFO, LevelFilter::DEBUG];
    order.iter().position(|l| *l == level).unwrap_or(order.len())
}

fn current() -> LevelFilter {
    match LEVEL.load(Ordering::Relaxed) {
        0 => LevelFilter::OFF,
        1 => LevelFilter::ERROR,
        2 => LevelFilter::WARN,
        3 => LevelFilter::INFO,
        4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

/// The receiver of events. It knows no spans: their ids are all alike and nothing is kept of them.
struct Log;

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= current()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(current())
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        if WRITER.get() {
            return;
        }
        let ring = RUNNING.read().clone();
        let Some(ring) = ring else {
            early(event);
            return;
        };
        let Some(line) = ring.spare.pop() else {
            LOST.inc();
            return;
        };
        let mut taken = Taken { ring: &ring, line: Some(line) };
        if let Some(line) = &mut taken.line {
            line.format(*metadata.level(), metadata.target(), event);
        }
        if let Some(line) = taken.line.take() {
            ring.push(line);
        }
    }
}

/// A line that is being written into. It goes back if what it formats panics.
struct Taken<'r> {
    ring: &'r Ring,
    line: Option<Box<Line>>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            LOST.inc();
            // There is room: the line came from there.
            let _ = self.ring.spare.push(line);
        }
    }
}

/// An event while no thread runs.
fn early(event: &Event<'_>) {
    let metadata = event.metadata();
    if *metadata.level() > Level::WARN {
        return;
    }
    let place = std::ptr::from_ref(metadata).addr();
    {
        let mut seen = EARLY_SEEN.lock();
        let n = seen.1;
        if n == EARLY || seen.0[..n].contains(&place) {
            LOST.inc();
            return;
        }
        seen.0[n] = place;
        seen.1 += 1;
    }
    let mut line = Line::new();
    line.format(*metadata.level(), metadata.target(), event);
    match io::stderr().write_all(line.bytes()) {
        Ok(()) => WRITTEN.inc(),
        Err(_) => LOST.inc(),
    }
}

struct Ring {
    spare: ArrayQueue<Box<Line>>,
    full: ArrayQueue<Box<Line>>,
    thread: Mutex<Option<Thread>>,
    /// The thread has found nothing to do; whoever pushes next wakes it.
    asleep: AtomicBool,
    stopping: AtomicBool,
    /// Lines that the thread has taken and not written yet.
    writing: AtomicUsize,
    ended: Mutex<bool>,
    at_end: Condvar,
}

impl Ring {
    fn new(lines: usize) -> Self {
        let spare = ArrayQueue::new(lines);
        for _ in 0..lines {
            // There is room for each by construction.
            let _ = spare.push(Box::new(Line::new()));
        }
        Ring {
            spare,
            full: ArrayQueue::new(lines),
            thread: Mutex::new(None),
            asleep: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            writing: AtomicUsize::new(0),
            ended: Mutex::new(false),
            at_end: Condvar::new(),
        }
    }

    fn push(&self, line: Box<Line>) {
        if self.full.push(line).is_err() {
            unreachable!("as many places as lines");
        }
        // Pairs with the fence in `rest`: either the thread sees the line or we see that it sleeps.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(thread) = &*self.thread.lock() {
            thread.unpark();
        }
    }

    fn on_their_way(&self) -> usize {
        self.spare.capacity() - self.spare.len()
    }

    /// The thread.
    fn write_out(&self, mut sink: Sink, mut told: u64) {
        WRITER.set(true);
        let mut patience = 100;
        loop {
            let stopping = self.stopping.load(Ordering::Acquire);
            let some = sink.fill(self);
            let lost = LOST.get();
            if lost > told && sink.tell_lost(lost - told) {
                told = lost;
            }
            if some {
                continue;
            }
            // A thread that took its line before the stop pushes it soon after, unless it was ended in the middle.
            if stopping && (patience == 0 || self.on_their_way() == 0) {
                break;
            }
            patience -= i32::from(stopping);
            self.rest(stopping);
        }
        *self.ended.lock() = true;
        self.at_end.notify_all();
    }

    fn rest(&self, stopping: bool) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.full.is_empty() {
            if stopping {
                std::thread::park_timeout(Duration::from_millis(1));
            } else if !self.stopping.load(Ordering::Acquire) {
                std::thread::park_timeout(Duration::from_secs(1));
            }
        }
        self.asleep.store(false, Ordering::Relaxed);
    }
}

/// Where lines go.
struct Sink {
    target: Out,
    batch: Vec<u8>,
    /// The target has failed in the middle of a line.
    torn: bool,
}

enum Out {
    Bytes(Box<dyn Write + Send>),
    Callback(Callback),
}

impl Sink {
    fn open(target: Target) -> io::Result<Self> {
        let target = match target {
            Target::Stderr => Out::Bytes(stderr()?),
            Target::File(path) => Out::Bytes(Box::new(OpenOptions::new().append(true).create(true).open(path)?)),
            Target::Callback(callback) => Out::Callback(callback),
            Target::Write(write) => Out::Bytes(write),
        };
        Ok(Sink { target, batch: Vec::with_capacity(BATCH + LINE + 1), torn: false })
    }

    /// Takes what is in the ring, a batch at most, and writes it; false when there was nothing.
    fn fill(&mut self, ring: &Ring) -> bool {
        let mut lines = 0;
        self.batch.clear();
        while self.batch.len() < BATCH {
            let Some(line) = ring.full.pop() else { break };
            lines += 1;
            ring.writing.store(lines, Ordering::Relaxed);
            match &mut self.target {
                Out::Bytes(_) => self.batch.extend_from_slice(line.bytes()),
                Out::Callback(callback) => call(callback, line.level, line.text()),
            }
            // There is room: the line came from there.
            let _ = ring.spare.push(line);
        }
        let written = if lines > 0 { self.put_out() } else { 0 };
        let written = if matches!(self.target, Out::Callback(_)) { lines } else { written };
        ring.writing.store(0, Ordering::Relaxed);
        WRITTEN.add(written as u64);
        LOST.add((lines - written) as u64);
        lines > 0
    }

    /// Writes the batch; how many of its lines the target took whole.
    fn put_out(&mut self) -> usize {
        let Out::Bytes(out) = &mut self.target else { return 0 };
        if self.torn {
            self.batch.insert(0, b'\n');
        }
        let whole = write_some(&mut **out, &self.batch);
        let taken = &self.batch[..whole];
        let ends = memchr::memchr_iter(b'\n', taken).count();
        let lines = ends.saturating_sub(usize::from(self.torn));
        self.torn = taken.last().map_or(self.torn, |last| *last != b'\n');
        lines
    }

    fn tell_lost(&mut self, lost: u64) -> bool {
        let mut line = Line::new();
        line.head(Level::WARN, "partyline::observe::log");
        let _ = write!(Escaped(&mut line), "{lost} lines lost");
        line.end();
        if let Out::Callback(callback) = &mut self.target {
            call(callback, line.level, line.text());
            return true;
        }
        self.batch.clear();
        self.batch.extend_from_slice(line.bytes());
        self.put_out() == 1
    }
}

fn call(callback: &mut Callback, level: Level, text: &str) {
    if catch_unwind(AssertUnwindSafe(|| callback(level, text))).is_err() {
        FAILURES.inc();
    }
}

/// How many bytes the target took before it failed, if it did.
fn write_some(out: &mut dyn Write, bytes: &[u8]) -> usize {
    let mut taken = 0;
    while taken < bytes.len() {
        match out.write(&bytes[taken..]) {
            Ok(n) if n > 0 => taken += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Somebody has made it non-blocking; the ring takes what comes meanwhile.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            _ => {
                FAILURES.inc();
                break;
            }
        }
    }
    taken
}

/// Stderr without the lock of the standard library: blocked in it, we would hold up everybody else's `eprintln`.
#[cfg(unix)]
fn stderr() -> io::Result<Box<dyn Write + Send>> {
    use std::os::fd::AsFd;
    Ok(Box::new(File::from(io::stderr().as_fd().try_clone_to_owned()?)))
}

#[cfg(windows)]
fn stderr() -> io::Result<Box<dyn Write + Send>> {
    use std::os::windows::io::AsHandle;
    Ok(Box::new(File::from(io::stderr().as_handle().try_clone_to_owned()?)))
}
