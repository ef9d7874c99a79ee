//! A binary heap's four-way cousin whose members know their place, so that any of them can be moved or taken out. Four
//! children share a cache line of keys, which halves the levels: with 300,000 timers that is nine.

use super::side::Side;

/// Not in the heap.
pub const OUT: u32 = u32::MAX;
const WAYS: usize = 4;

/// `WHICH` is the index of the member's place in [`Side::at`].
pub struct Heap<K, const WHICH: usize> {
    items: Vec<(K, *mut Side)>,
}

impl<K: Ord + Copy, const WHICH: usize> Heap<K, WHICH> {
    pub const fn new() -> Self {
        Heap { items: Vec::new() }
    }

    pub fn first(&self) -> Option<(K, *mut Side)> {
        self.items.first().copied()
    }

    /// Puts a member in, or moves it to its new key.
    ///
    /// # Safety
    /// `side` is live and its place in `at[WHICH]` is this heap's or [`OUT`].
    pub unsafe fn set(&mut self, side: *mut Side, key: K) {
        // SAFETY: the caller's promise.
        let at = unsafe { (*side).at[WHICH] };
        let at = if at == OUT {
            self.items.push((key, side));
            self.items.len() - 1
        } else {
            let at = at as usize;
            if self.items[at].0 == key {
                return;
            }
            self.items[at].0 = key;
            at
        };
        let at = self.up(at);
        self.down(at);
    }

    /// Takes a member out; nothing if it is not in.
    ///
    /// # Safety
    /// As [`Heap::set`].
    pub unsafe fn remove(&mut self, side: *mut Side) {
        // SAFETY: the caller's promise.
        let at = unsafe { core::mem::replace(&mut (*side).at[WHICH], OUT) };
        if at == OUT {
            return;
        }
        let at = at as usize;
        self.items.swap_remove(at);
        if at < self.items.len() {
            let at = self.up(at);
            self.down(at);
        }
    }

    /// Members whose key is at most `limit`: costs what it finds.
    pub fn until(&self, limit: K, out: &mut Vec<*mut Side>) {
        let mut at = 0;
        let first = out.len();
        // `out` is its own work list: position n of what was found has its children looked at when n is reached. The
        // places are stored in the members.
        if self.items.first().is_some_and(|item| item.0 <= limit) {
            out.push(self.items[0].1);
        }
        while first + at < out.len() {
            // SAFETY: members of a heap are live.
            let place = unsafe { (*out[first + at]).at[WHICH] } as usize;
            for child in place * WAYS + 1..(place * WAYS + 1 + WAYS).min(self.items.len()) {
                if self.items[child].0 <= limit {
                    out.push(self.items[child].1);
                }
            }
            at += 1;
        }
    }

    fn place(&mut self, at: usize) {
        // SAFETY: members of a heap are live.
        unsafe { (*self.items[at].1).at[WHICH] = at as u32 };
    }

    fn up(&mut self, mut at: usize) -> usize {
        while at > 0 {
            let parent = (at - 1) / WAYS;
            if self.items[parent].0 <= self.items[at].0 {
                break;
            }
            self.items.swap(parent, at);
            self.place(at);
            at = parent;
        }
        self.place(at);
        at
    }

    fn down(&mut self, mut at: usize) {
        loop {
            let from = at * WAYS + 1;
            let to = (from + WAYS).min(self.items.len());
            let Some(least) = (from..to).min_by_key(|child| self.items[*child].0) else { break };
            if self.items[at].0 <= self.items[least].0 {
                break;
            }
            self.items.swap(at, least);
            self.place(at);
            at = least;
        }
        self.place(at);
    }
}
