//! The read buffer of a connection: a ring, borrowed from a pool while bytes of an unfinished message are in it.
//!
//! ```text
//!            head            head+scanned      head+len
//!  memory  ---|=================|=================|-------  (modulo its length, a power of two)
//!              the message begun  not yet framed     free
//! ```
//! Nothing is ever moved to the front: an empty ring starts at 0 again, and else reading goes on at the other end. A
//! message that lies across the end is the only one that is copied, once, to be handed out in one piece. A message
//! longer than the ring makes it grow, to twice its size each time.

use parking_lot::Mutex;

pub(super) struct Ring {
    memory: Box<[u8]>,
    head: usize,
    len: usize,
    scanned: usize,
}

impl Ring {
    fn over(memory: Box<[u8]>) -> Ring {
        debug_assert!(memory.len().is_power_of_two());
        Ring { memory, head: 0, len: 0, scanned: 0 }
    }

    fn mask(&self) -> usize {
        self.memory.len() - 1
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the next bytes may be read to, in one piece. Never empty: a full ring grows first.
    pub(super) fn space(&mut self) -> &mut [u8] {
        if self.len == 0 {
            self.head = 0;
        } else if self.len == self.memory.len() {
            self.grow();
        }
        let tail = (self.head + self.len) & self.mask();
        let end = if tail < self.head { self.head } else { self.memory.len() };
        &mut self.memory[tail..end]
    }

    /// Copies `bytes` to the end.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.space();
            let count = space.len().min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            self.filled(count);
            bytes = &bytes[count..];
        }
    }

    /// `count` bytes have been put into [`Ring::space`].
    pub(super) fn filled(&mut self, count: usize) {
        self.len += count;
    }

    /// Bytes not framed yet, as far as they lie in one piece; empty when there are none.
    pub(super) fn unscanned(&self) -> &[u8] {
        let count = self.len - self.scanned;
        let start = (self.head + self.scanned) & self.mask();
        &self.memory[start..(start + count).min(self.memory.len())]
    }

    pub(super) fn scan(&mut self, count: usize) {
        self.scanned += count;
    }

    /// The first `count` bytes in one piece, copied to `scratch` if they lie across the end.
    pub(super) fn front<'a>(&'a mut self, count: usize, scratch: &'a mut Vec<u8>) -> &'a mut [u8] {
        let end = self.head + count;
        if end <= self.memory.len() {
            return &mut self.memory[self.head..end];
        }
        scratch.clear();
        scratch.extend_from_slice(&self.memory[self.head..]);
        scratch.extend_from_slice(&self.memory[..end - self.memory.len()]);
        scratch
    }

    /// Forgets the first `count` bytes.
    pub(super) fn discard(&mut self, count: usize) {
        self.head = (self.head + count) & self.mask();
        self.len -= count;
        self.scanned = self.scanned.saturating_sub(count);
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn grow(&mut self) {
        let mut larger = vec![0; self.memory.len() * 2].into_boxed_slice();
        let first = self.len.min(self.memory.len() - self.head);
        larger[..first].copy_from_slice(&self.memory[self.head..self.head + first]);
        larger[first..self.len].copy_from_slice(&self.memory[..self.len - first]);
        self.memory = larger;
        self.head = 0;
    }
}

/// Rings waiting to be used, last in first out: what was used last is in the caches.
pub(super) struct RingPool {
    free: Mutex<Vec<Box<[u8]>>>,
    size: usize,
    kept: usize,
}

impl RingPool {
    /// Rings of `size` bytes (rounded up to a power of two), of which `kept` are kept when nobody uses them.
    pub(super) fn new(size: usize, kept: usize) -> Self {
        RingPool { free: Mutex::new(Vec::new()), size: size.max(64).next_power_of_two(), kept }
    }

    pub(super) fn get(&self) -> Ring {
        let memory = self.free.lock().pop();
        Ring::over(memory.unwrap_or_else(|| vec![0; self.size].into_boxed_slice()))
    }

    /// What has grown is given back to the allocator: the pool's memory is bounded by its count.
    pub(super) fn put(&self, ring: Ring) {
        if ring.memory.len() == self.size {
            let mut free = self.free.lock();
            if free.len() < self.kept {
                free.push(ring.memory);
            }
        }
    }

    /// Whether a ring is of the pool's own size.
    pub(super) fn is_plain(&self, ring: &Ring) -> bool {
        ring.memory.len() == self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn a_ring_is_a_queue(steps in prop::collection::vec((any::<bool>(), 0usize..200), 1..200)) {
            let pool = RingPool::new(64, 4);
            let mut ring = pool.get();
            let (mut model, mut next) = (VecDeque::new(), 0u8);
            let mut scratch = Vec::new();
            for (write, amount) in steps {
                if write {
                    let mut left = amount;
                    while left > 0 {
                        let space = ring.space();
                        prop_assert!(!space.is_empty());
                        let count = left.min(space.len());
                        for byte in &mut space[..count] {
                            *byte = next;
                            model.push_back(next);
                            next = next.wrapping_add(1);
                        }
                        ring.filled(count);
                        left -= count;
                    }
                } else {
                    let mut seen = Vec::new();
                    while !ring.unscanned().is_empty() {
                        seen.extend_from_slice(ring.unscanned());
                        ring.scan(ring.unscanned().len());
                    }
                    let tail: Vec<u8> = model.iter().skip(model.len() - seen.len()).copied().collect();
                    prop_assert_eq!(seen, tail);
                    let count = amount.min(ring.len());
                    let front = ring.front(count, &mut scratch).to_vec();
                    let want: Vec<u8> = model.drain(..count).collect();
                    prop_assert_eq!(front, want);
                    ring.discard(count);
                }
                prop_assert_eq!(ring.len(), model.len());
                prop_assert_eq!(ring.is_empty(), model.is_empty());
            }
        }
    }
}
