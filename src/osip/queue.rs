//! Members in the order in which they came, each of which can be taken out: what is taken out of the middle leaves a hole.
//!
//! Neither end and no removal touches another member, which with 300,000 of them would likely be in no cache. Holes go when
//! they are at an end, and all of them when they are more than the members.

use core::ptr::null_mut;
use std::collections::VecDeque;

use super::side::Side;

/// `WHICH` is the index of the member's place in [`Side::at`].
pub struct Queue<K, const WHICH: usize> {
    items: VecDeque<(K, *mut Side)>,
    /// The place of the first item. Places wrap around.
    base: u32,
    live: usize,
}

impl<K: Copy, const WHICH: usize> Queue<K, WHICH> {
    pub const fn new() -> Self {
        Queue { items: VecDeque::new(), base: 0, live: 0 }
    }

    pub fn len(&self) -> usize {
        self.live
    }

    pub fn first(&self) -> Option<(K, *mut Side)> {
        self.items.front().copied()
    }

    pub fn last(&self) -> Option<(K, *mut Side)> {
        self.items.back().copied()
    }

    fn index(&self, place: u32) -> usize {
        place.wrapping_sub(self.base) as usize
    }

    /// # Safety
    /// `side` is live and not in this queue.
    pub unsafe fn push(&mut self, side: *mut Side, key: K) {
        // SAFETY: the caller's promise.
        unsafe { (*side).at[WHICH] = self.base.wrapping_add(self.items.len() as u32) };
        self.items.push_back((key, side));
        self.live += 1;
    }

    /// # Safety
    /// `side` is in this queue.
    pub unsafe fn key(&self, side: *mut Side) -> K {
        // SAFETY: the caller's promise.
        self.items[self.index(unsafe { (*side).at[WHICH] })].0
    }

    /// # Safety
    /// `side` is in this queue.
    pub unsafe fn remove(&mut self, side: *mut Side) {
        // SAFETY: the caller's promise.
        let index = self.index(unsafe { (*side).at[WHICH] });
        self.items[index].1 = null_mut();
        self.live -= 1;
        while self.items.front().is_some_and(|item| item.1.is_null()) {
            self.items.pop_front();
            self.base = self.base.wrapping_add(1);
        }
        while self.items.back().is_some_and(|item| item.1.is_null()) {
            self.items.pop_back();
        }
        if self.items.len() > 64 && self.items.len() > 2 * self.live {
            self.items.retain(|item| !item.1.is_null());
            for (index, item) in self.items.iter().enumerate() {
                // SAFETY: members are live.
                unsafe { (*item.1).at[WHICH] = self.base.wrapping_add(index as u32) };
            }
        }
    }

    /// Members in order, from a place on; where that is not a place any more, from the first.
    pub fn from(&self, place: u32) -> impl Iterator<Item = (K, *mut Side)> {
        let index = self.index(place);
        let index = if index < self.items.len() { index } else { 0 };
        self.items.range(index..).copied().filter(|item| !item.1.is_null())
    }

    /// The place of the first.
    pub fn start(&self) -> u32 {
        self.base
    }

    pub fn iter(&self) -> impl Iterator<Item = (K, *mut Side)> {
        self.from(self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_in_the_middle_keep_the_order() {
        let mut sides: Vec<Side> = (0..500).map(|_| Side::new()).collect();
        let at: Vec<*mut Side> = sides.iter_mut().map(|side| side as *mut Side).collect();
        let mut queue: Queue<usize, 0> = Queue { items: VecDeque::new(), base: u32::MAX - 100, live: 0 };
        let mut model = Vec::new();
        let mut random = 12345u32;
        for (n, side) in at.iter().enumerate() {
            // SAFETY: each side is pushed once and removed once.
            unsafe { queue.push(*side, n) };
            model.push(n);
            random = random.wrapping_mul(1664525).wrapping_add(1013904223);
            if n % 10 < 8 && !model.is_empty() {
                let gone = model.remove((random >> 8) as usize % model.len());
                // SAFETY: as above.
                unsafe {
                    assert_eq!(queue.key(at[gone]), gone);
                    queue.remove(at[gone]);
                }
            }
            assert_eq!(queue.iter().map(|(key, _)| key).collect::<Vec<_>>(), model);
            assert_eq!((queue.len(), queue.first().map(|(key, _)| key)), (model.len(), model.first().copied()));
            assert!(queue.items.len() <= 2 * queue.live.max(32), "{} for {}", queue.items.len(), queue.live);
        }
    }
}
