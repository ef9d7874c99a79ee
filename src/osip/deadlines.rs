//! Who is due when. Timers of one length expire in the order in which they were started: such go into queues, the rest into
//! a heap.
//!
//! A queue takes a deadline that is no earlier than its last, and of those that do the one whose last is the latest is
//! taken: timer J fills one of them, timer E with its doubled lengths several. A heap costs a move per level for each
//! expiry, each of which writes into a transaction's side that is likely in no cache.

use super::glue::Deadline;
use super::heap::Heap;
use super::queue::Queue;
use super::side::{Side, TIMER};

const QUEUES: usize = 6;
/// In [`Side::queue`]: in none; in the heap; else the queue.
pub const NONE: u8 = u8::MAX;
const HEAP: u8 = u8::MAX - 1;

pub struct Deadlines {
    queues: [Queue<Deadline, TIMER>; QUEUES],
    rest: Heap<Deadline, TIMER>,
}

impl Deadlines {
    pub const fn new() -> Self {
        Deadlines { queues: [const { Queue::new() }; QUEUES], rest: Heap::new() }
    }

    /// The earliest.
    pub fn first(&self) -> Option<Deadline> {
        let queues = self.queues.iter().filter_map(|queue| queue.first());
        queues.chain(self.rest.first()).map(|(deadline, _)| deadline).min()
    }

    /// Puts a member in, or moves it to its new deadline.
    ///
    /// # Safety
    /// `side` is live and in no other set of deadlines.
    pub unsafe fn set(&mut self, side: *mut Side, deadline: Deadline) {
        // SAFETY: the caller's promise.
        unsafe {
            match (*side).queue {
                NONE => {}
                HEAP => return self.rest.set(side, deadline),
                queue => {
                    if self.queues[queue as usize].key(side) == deadline {
                        return;
                    }
                    self.remove(side);
                }
            }
            let takes = |queue: &Queue<Deadline, TIMER>| {
                queue.last().map_or(Some(None), |(last, _)| (last <= deadline).then_some(Some(last)))
            };
            // An empty queue only where no other takes it: `None` is less than any deadline.
            let best = (0..QUEUES).filter_map(|n| Some((takes(&self.queues[n])?, n))).max_by_key(|(last, _)| *last);
            match best {
                Some((_, n)) => {
                    self.queues[n].push(side, deadline);
                    (*side).queue = n as u8;
                }
                None => {
                    (*side).at[TIMER] = super::heap::OUT;
                    self.rest.set(side, deadline);
                    (*side).queue = HEAP;
                }
            }
        }
    }

    /// Takes a member out; nothing if it is not in.
    ///
    /// # Safety
    /// As [`Deadlines::set`].
    pub unsafe fn remove(&mut self, side: *mut Side) {
        // SAFETY: the caller's promise.
        unsafe {
            match core::mem::replace(&mut (*side).queue, NONE) {
                NONE => {}
                HEAP => self.rest.remove(side),
                queue => self.queues[queue as usize].remove(side),
            }
        }
    }

    /// Members whose deadline is at most `limit`: costs what it finds.
    pub fn until(&self, limit: Deadline, out: &mut Vec<*mut Side>) {
        for queue in &self.queues {
            out.extend(queue.iter().take_while(|(deadline, _)| *deadline <= limit).map(|(_, side)| side));
        }
        self.rest.until(limit, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_as_a_sorted_list() {
        let mut sides: Vec<Side> = (0..200).map(|_| Side::new()).collect();
        let at: Vec<*mut Side> = sides.iter_mut().map(|side| side as *mut Side).collect();
        let mut deadlines = Deadlines::new();
        let mut model: Vec<Option<Deadline>> = vec![None; at.len()];
        let mut random = 1u64;
        let mut heap_was_used = false;
        for step in 0..20_000i64 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let n = (random >> 33) as usize % at.len();
            // SAFETY: the sides live as long as the test.
            unsafe {
                if random >> 20 & 7 == 0 {
                    deadlines.remove(at[n]);
                    model[n] = None;
                } else {
                    // Mostly one of few lengths from now, sometimes anything.
                    let length =
                        [500, 1000, 32_000, 5_000, (random >> 40) as i64 % 90_000][(random >> 24) as usize % 5];
                    let deadline = Deadline { sec: (step + length) / 100, usec: (step + length) % 100 };
                    deadlines.set(at[n], deadline);
                    model[n] = Some(deadline);
                }
            }
            heap_was_used |= deadlines.rest.first().is_some();
            assert_eq!(deadlines.first(), model.iter().flatten().min().copied());
            if step % 50 == 0 {
                let limit = Deadline { sec: (step + 900) / 100, usec: 0 };
                let mut due = Vec::new();
                deadlines.until(limit, &mut due);
                due.sort_unstable();
                let is_due = |n: &usize| model[*n].is_some_and(|deadline| deadline <= limit);
                let mut expected: Vec<_> = (0..at.len()).filter(is_due).map(|n| at[n]).collect();
                expected.sort_unstable();
                assert_eq!(due, expected);
            }
        }
        assert!(heap_was_used);
    }
}
