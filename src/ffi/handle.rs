//! Handles: what C holds as `partyline_engine *` and the like is not an address but a number that is looked up, so that
//! NULL, garbage, a handle freed twice and one of another kind are told apart from a good one without touching memory.
//!
//! ```text
//! bit 63..56  kind        another kind's handle never matches
//! bit 55..28  generation  counts up each time the slot is given out; a stale handle does not match
//! bit 27..1   slot
//! bit 0       1           never an address that malloc returns
//! ```
//!
//! Slots lie in segments that double in size and are never moved or freed, so a look-up takes one short lock, the
//! slot's own, and nothing is linear in what is alive.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::Error;

/// What a handle stands for; part of its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Engine = 0x51,
    Registrar = 0x52,
    Ticket = 0x53,
    Timer = 0x54,
    Group = 0x55,
    Connection = 0x56,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Engine => "engine",
            Kind::Registrar => "registrar",
            Kind::Ticket => "ticket",
            Kind::Timer => "timer",
            Kind::Group => "group",
            Kind::Connection => "connection",
        }
    }
}

const SLOT_BITS: u32 = 27;
const GENERATION_MASK: u32 = (1 << 28) - 1;
/// The first segment's size; segment n holds `FIRST << n` slots.
const FIRST: u32 = 64;
const SEGMENTS: usize = 21;

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Made when its first slot is given out, then never moved.
type Segment<T> = OnceLock<Box<[Mutex<Slot<T>>]>>;

/// All handles of one kind.
pub struct HandleTable<T> {
    kind: Kind,
    segments: [Segment<T>; SEGMENTS],
    unused: Mutex<Vec<u32>>,
    next: AtomicU32,
}

impl<T> HandleTable<T> {
    pub const fn new(kind: Kind) -> Self {
        HandleTable {
            kind,
            segments: [const { OnceLock::new() }; SEGMENTS],
            unused: Mutex::new(Vec::new()),
            next: AtomicU32::new(0),
        }
    }

    /// Stores `value` and returns its handle, never 0.
    pub fn insert(&self, value: T) -> usize {
        let recycled = self.unused.lock().pop();
        let index = recycled.unwrap_or_else(|| self.next.fetch_add(1, Ordering::Relaxed));
        assert!(index < 1 << SLOT_BITS, "more than {} {} handles at once", 1u32 << SLOT_BITS, self.kind.name());
        let mut slot = self.slot(index).lock();
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        slot.value = Some(value);
        ((self.kind as usize) << 56) | ((slot.generation as usize) << 28) | ((index as usize) << 1) | 1
    }

    /// Takes the value out: the handle is not valid any more. Of two threads that try, one gets it.
    pub fn take(&self, handle: usize) -> Result<T, Error> {
        let index = self.index(handle)?;
        let value = {
            let mut slot = self.slot(index).lock();
            if slot.generation == generation(handle) { slot.value.take() } else { None }
        };
        let value = value.ok_or_else(|| self.unknown(handle))?;
        self.unused.lock().push(index);
        Ok(value)
    }

    /// A copy of the value (an `Arc`, mostly).
    pub fn get(&self, handle: usize) -> Result<T, Error>
    where
        T: Clone,
    {
        let index = self.index(handle)?;
        let slot = self.slot(index).lock();
        let value = if slot.generation == generation(handle) { slot.value.clone() } else { None };
        value.ok_or_else(|| self.unknown(handle))
    }

    /// How many handles are valid now.
    pub fn live(&self) -> usize {
        let unused = self.unused.lock().len();
        (self.next.load(Ordering::Relaxed) as usize).saturating_sub(unused)
    }

    fn index(&self, handle: usize) -> Result<u32, Error> {
        let index = (handle >> 1) as u32 & ((1 << SLOT_BITS) - 1);
        let right_kind = handle & 1 == 1 && handle >> 56 == self.kind as usize;
        if right_kind && index < self.next.load(Ordering::Relaxed) { Ok(index) } else { Err(self.unknown(handle)) }
    }

    fn unknown(&self, handle: usize) -> Error {
        let kind = self.kind.name();
        if handle == 0 {
            Error::invalid(format!("the {kind} handle is NULL"))
        } else {
            Error::invalid(format!("{handle:#x} is not a live {kind} handle (freed already, or never one)"))
        }
    }

    fn slot(&self, index: u32) -> &Mutex<Slot<T>> {
        let segment = (index / FIRST + 1).ilog2();
        let first = FIRST * ((1 << segment) - 1);
        let slots = self.segments[segment as usize]
            .get_or_init(|| (0..FIRST << segment).map(|_| Mutex::new(Slot { generation: 0, value: None })).collect());
        &slots[(index - first) as usize]
    }
}

fn generation(handle: usize) -> u32 {
    (handle >> 28) as u32 & GENERATION_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_stale_and_foreign_handles_are_refused() {
        let engines: HandleTable<u32> = HandleTable::new(Kind::Engine);
        let timers: HandleTable<u32> = HandleTable::new(Kind::Timer);
        let a = engines.insert(7);
        assert_eq!(engines.get(a), Ok(7));
        for bad in [0, 1, a + 1, a ^ (1 << 30), a + 2, usize::MAX, 0x7fff_1234_5670] {
            assert!(engines.get(bad).is_err(), "{bad:#x} was taken for a handle");
        }
        assert!(timers.get(a).is_err());
        assert_eq!(engines.take(a), Ok(7));
        assert!(engines.take(a).is_err());
        let b = engines.insert(8);
        assert_ne!(a, b, "the slot is used again under another generation");
        assert!(engines.get(a).is_err());
        assert_eq!(engines.live(), 1);
    }

    #[test]
    fn many_handles_over_several_segments() {
        let table: HandleTable<usize> = HandleTable::new(Kind::Ticket);
        let handles: Vec<usize> = (0..10_000).map(|i| table.insert(i)).collect();
        for (i, handle) in handles.iter().enumerate() {
            assert_eq!(table.get(*handle), Ok(i));
        }
        for handle in &handles {
            assert!(table.take(*handle).is_ok());
        }
        assert_eq!(table.live(), 0);
    }

    #[test]
    fn of_many_takers_one_wins() {
        let table: HandleTable<u32> = HandleTable::new(Kind::Ticket);
        for _ in 0..200 {
            let handle = table.insert(1);
            let wins: usize = std::thread::scope(|scope| {
                let takers: Vec<_> = (0..3).map(|_| scope.spawn(|| table.take(handle).is_ok() as usize)).collect();
                takers.into_iter().map(|t| t.join().unwrap()).sum()
            });
            assert_eq!(wins, 1);
        }
    }
}
