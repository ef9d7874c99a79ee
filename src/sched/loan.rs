//! Leadership that is kept during a call which might block, and taken away when it does (the lazy half of [`super::crew`]).
//!
//! To promote before every callback costs two context switches per message where little comes in at a time: a follower is
//! woken to lead, and the leader parks behind its call. But nearly all calls are short. So the leader says when a call
//! begins (one word, [`Loan`]), makes the call itself, and says when it has ended; one parked follower, the *sentinel*,
//! looks at the word every `bound` while such calls are made, and takes leadership when one is older than `bound`. Whoever
//! changes the word first, the leader that returns or the sentinel, leads: a compare-and-swap, so never both.
//!
//! ```text
//!   word: odd   the call that began then (nanoseconds, made unique) is being made by the leader
//!         even  no call; it stays what it was, so that the sentinel sees whether there were any since it looked last
//! ```
//! The sentinel sleeps without a limit when a whole `bound` went by without a call: an idle server wakes nobody. Between
//! a leader that begins a call and a sentinel that goes off duty stands a fence on either side: one of them sees the other.

use std::time::{Duration, Instant};

use super::sync::{AtomicBool, AtomicU64, Ordering, fence};

pub(super) struct Loan {
    word: AtomicU64,
    /// Somebody looks at the word. Written under the crew's lock.
    watched: AtomicBool,
    origin: Instant,
    bound: u64,
}

/// What the sentinel finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// A call is younger than the bound: look again after this.
    Young(Duration),
    Overdue(u64),
    /// No call is being made; the word.
    Idle(u64),
}

impl Loan {
    /// With a bound of zero nothing is lent.
    pub fn new(bound: Duration) -> Self {
        let bound = nanos(bound);
        Loan { word: AtomicU64::new(0), watched: AtomicBool::new(false), origin: Instant::now(), bound }
    }

    pub fn is_possible(&self) -> bool {
        self.bound > 0
    }

    pub fn bound(&self) -> Duration {
        Duration::from_nanos(self.bound)
    }

    pub fn now(&self) -> u64 {
        nanos(self.origin.elapsed())
    }

    /// The leader begins a call. The token of it, and whether somebody watches.
    pub fn begin(&self, at: Instant) -> (u64, bool) {
        let token = self.token(at, self.word.load(Ordering::Relaxed));
        self.word.store(token, Ordering::Release);
        fence(Ordering::SeqCst);
        (token, self.watched.load(Ordering::Relaxed))
    }

    /// The leader begins the next call; `None`: leadership was taken.
    pub fn renew(&self, token: u64, at: Instant) -> Option<u64> {
        let next = self.token(at, token);
        let swapped = self.word.compare_exchange(token, next, Ordering::AcqRel, Ordering::Relaxed);
        swapped.is_ok().then_some(next)
    }

    /// The leader has ended its call, or the sentinel takes over: true for the first of them.
    pub fn end(&self, token: u64) -> bool {
        self.word.compare_exchange(token, token - 1, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub fn is(&self, token: u64) -> bool {
        self.word.load(Ordering::Relaxed) == token
    }

    pub fn is_lent(&self) -> bool {
        self.word.load(Ordering::Acquire) & 1 == 1
    }

    pub fn look(&self) -> Sight {
        let word = self.word.load(Ordering::Acquire);
        if word & 1 == 0 {
            return Sight::Idle(word);
        }
        let age = self.now().saturating_sub(word);
        // Time does not pass in a model: there every call is as old as it takes.
        if cfg!(loom) || age >= self.bound {
            return Sight::Overdue(word);
        }
        Sight::Young(Duration::from_nanos(self.bound - age))
    }

    /// Under the crew's lock.
    pub fn set_watched(&self, watched: bool) {
        self.watched.store(watched, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn token(&self, at: Instant, last: u64) -> u64 {
        let at = if cfg!(loom) { 0 } else { nanos(at.saturating_duration_since(self.origin)) };
        // Later than every other, and odd.
        at.max(last + 2) | 1
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
