//! Tag to slot, for one shard: open addressing in one array, so that a look-up touches one cache line, and which one is
//! known from the tag alone. That is what lets a batch of look-ups fetch its lines at once.
//!
//! ```text
//!   cells: [ 0 | tag,slot+1 | tag,slot+1 | 0 | ... ]     home(tag) = high bits of its spread; probing is linear;
//!                                                        removal moves followers back, so there are no tombstones
//! ```
//! At most 3/4 of the cells are taken. Tags are not unique: the caller says which slot is meant.

use crate::ffi::fetch;

#[derive(Default)]
pub(super) struct Index {
    cells: Box<[u64]>,
    len: usize,
}

const EMPTY: u64 = 0;
const FEWEST: usize = 8;

fn cell(tag: u32, slot: u32) -> u64 {
    u64::from(tag) << 32 | (u64::from(slot) + 1)
}

fn tag_of(cell: u64) -> u32 {
    (cell >> 32) as u32
}

fn slot_of(cell: u64) -> u32 {
    (cell as u32).wrapping_sub(1)
}

impl Index {
    fn mask(&self) -> usize {
        self.cells.len().wrapping_sub(1)
    }

    fn home(&self, tag: u32) -> usize {
        // The tag's low bits have chosen nothing yet, but its own spread must not depend on a few of them.
        (u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & self.mask()
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The first slot with this tag that is the one.
    pub fn find(&self, tag: u32, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        if self.cells.is_empty() {
            return None;
        }
        let mut at = self.home(tag);
        loop {
            let cell = self.cells[at];
            if cell == EMPTY {
                return None;
            }
            if tag_of(cell) == tag && is(slot_of(cell)) {
                return Some(slot_of(cell));
            }
            at = (at + 1) & self.mask();
        }
    }

    /// Has the line read where a search for this tag begins.
    pub fn fetch(&self, tag: u32) {
        if let Some(cell) = self.cells.get(self.home(tag)) {
            fetch(std::slice::from_ref(cell));
        }
    }

    pub fn insert(&mut self, tag: u32, slot: u32) {
        if self.len + 1 > self.cells.len() / 4 * 3 {
            let more = (self.cells.len() * 2).max(FEWEST);
            let old = std::mem::replace(&mut self.cells, vec![EMPTY; more].into_boxed_slice());
            for cell in old.into_iter().filter(|cell| *cell != EMPTY) {
                self.place(cell);
            }
        }
        self.place(cell(tag, slot));
        self.len += 1;
    }

    fn place(&mut self, cell: u64) {
        let mut at = self.home(tag_of(cell));
        while self.cells[at] != EMPTY {
            at = (at + 1) & self.mask();
        }
        self.cells[at] = cell;
    }

    pub fn remove(&mut self, tag: u32, slot: u32) {
        if self.cells.is_empty() {
            return;
        }
        let (wanted, mask) = (cell(tag, slot), self.mask());
        let mut at = self.home(tag);
        while self.cells[at] != wanted {
            if self.cells[at] == EMPTY {
                return;
            }
            at = (at + 1) & mask;
        }
        self.len -= 1;
        // Knuth's algorithm R (TAOCP 6.4): a follower whose home does not lie between the hole and itself moves into it.
        let mut hole = at;
        loop {
            at = (at + 1) & mask;
            let cell = self.cells[at];
            if cell == EMPTY {
                break;
            }
            let from_home = at.wrapping_sub(self.home(tag_of(cell))) & mask;
            if from_home >= (at.wrapping_sub(hole) & mask) {
                self.cells[hole] = cell;
                hole = at;
            }
        }
        self.cells[hole] = EMPTY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn it_is_a_set_of_pairs_whatever_the_order() {
        let mut index = Index::default();
        let mut model = HashSet::new();
        assert_eq!(index.find(1, |_| true), None);
        index.remove(1, 1);
        let mut state = 7u64;
        for step in 0..200_000u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Few tags, so that they repeat and runs are long and wrap around; the extremes among them.
            let tag = match state >> 33 & 255 {
                255 => u32::MAX,
                tag => tag as u32,
            };
            let slot = (state >> 45 & 7) as u32 * 0x1fff_ffff;
            let grows = if step % 20_000 < 10_000 { 3 } else { 1 };
            if state >> 60 & 3 < grows {
                if model.insert((tag, slot)) {
                    index.insert(tag, slot);
                }
            } else {
                model.remove(&(tag, slot));
                index.remove(tag, slot);
            }
            assert_eq!(index.len(), model.len());
            assert_eq!(index.find(tag, |s| s == slot).is_some(), model.contains(&(tag, slot)));
        }
        for (tag, slot) in &model {
            assert_eq!(index.find(*tag, |s| s == *slot), Some(*slot));
        }
        assert_eq!(index.cells.iter().filter(|cell| **cell != EMPTY).count(), model.len());
    }
}
