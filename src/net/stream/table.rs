//! Connection objects: pooled, found by handle or by their ends, and used again when the last holder has let go.
//!
//! ```text
//!  Table.slots[index] -> Slot { word: generation | pins, flags, stream, input, output, dues }
//!  ConnId = index + generation          (a number: keeps nothing alive, goes stale)
//!  Conn   = slot + generation + one pin (counted: the object is not used again before it is dropped)
//! ```
//! The table itself holds one pin from open to close. When the last pin goes, the generation moves on, so an old
//! [`ConnId`] finds nothing, and the slot joins the free list.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use hashbrown::HashTable;
use mio::Token;
use parking_lot::{Mutex, RwLock};

use super::input::Input;
use super::output::Output;
use super::tls::Tls;
use crate::net::error::Transport;
use crate::net::sys::polling;

/// Set in a token that is a connection's.
const STREAM: usize = 1 << (usize::BITS - 1);
const INDEX_BITS: u32 = if usize::BITS >= 64 { 32 } else { 20 };
const INDEX_MASK: usize = (1 << INDEX_BITS) - 1;
/// As much of a generation as a token has room for.
const GENERATION_MASK: u32 = ((1u64 << (usize::BITS - 1 - INDEX_BITS)) - 1) as u32;

/// A connection's number. Small, copied freely; a closed connection's number finds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl ConnId {
    pub(super) fn token(self) -> Token {
        Token(STREAM | ((self.generation & GENERATION_MASK) as usize) << INDEX_BITS | self.index as usize)
    }

    pub(super) fn of_token(token: Token) -> ConnId {
        ConnId {
            index: (token.0 & INDEX_MASK) as u32,
            generation: ((token.0 & !STREAM) >> INDEX_BITS) as u32 & GENERATION_MASK,
        }
    }

    /// As one number, for C.
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub fn from_bits(bits: u64) -> ConnId {
        ConnId { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

pub(in crate::net) fn is_stream(token: Token) -> bool {
    token.0 & STREAM != 0
}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// The peer opened it.
    pub incoming: bool,
    /// TCP or TLS.
    pub transport: Transport,
}

/// Bits of [`Slot::flags`].
pub(super) mod flag {
    /// The system said so and nobody has looked yet.
    pub const READABLE: u32 = 1;
    pub const WRITABLE: u32 = 2;
    /// The peer has closed its side: reading goes on to the end.
    pub const HUNG_UP: u32 = 4;
    /// Somebody handles the connection; its input belongs to them. Stays set once the connection is finished.
    pub const BUSY: u32 = 8;
    /// In the reactor's queue of marks.
    pub const MARKED: u32 = 16;
    /// So much waits for the peer to read it that nothing more is read from it.
    pub const THROTTLED: u32 = 32;
    /// It was readable while it was throttled: READABLE again when that ends.
    pub const HELD: u32 = 64;
    /// Watchers have not heard of the connection yet.
    pub const NEW: u32 = 128;
    /// Watchers have not heard of what was written.
    pub const WROTE: u32 = 256;
    /// What is read and written are TLS records. From the beginning to the end of a connection.
    pub const SECURE: u32 = 512;
    /// The TLS handshake goes on.
    pub const SHAKING: u32 = 1024;
}

pub(super) struct Slot {
    pub(super) index: u32,
    /// Generation in the upper half, pins in the lower.
    word: AtomicU64,
    pub(super) flags: AtomicU32,
    /// Why it is being closed (`CloseReason` as a number); 0: it is open.
    pub(super) reason: AtomicU8,
    pub(super) ends: RwLock<Option<Ends>>,
    /// Read-locked for a system call on it, write-locked once, to close it.
    pub(super) stream: RwLock<Option<polling::TcpStream>>,
    pub(super) input: Mutex<Input>,
    pub(super) output: Mutex<Output>,
    /// What is due next on the reading side: tick * 8 + kind; 0: nothing.
    pub(super) read_due: AtomicU64,
    /// When writing has to have moved on; 0: nothing waits.
    pub(super) write_due: AtomicU64,
    /// Where it stands in the wheel.
    pub(super) queued: AtomicU64,
    /// Messages handed out less messages sent: whether somebody still waits for an answer.
    pub(super) unanswered: AtomicU32,
    /// The system error that ended it, for watchers; 0: none.
    pub(super) failure: AtomicI32,
    /// Bytes written of which watchers have not heard.
    pub(super) wrote: AtomicUsize,
    /// A number of the watcher's.
    pub(super) tag: AtomicUsize,
    /// Locked after `output`, where both are.
    pub(super) tls: Mutex<Option<Box<Tls>>>,
    /// Whom a TLS connection of ours was opened for ([`Table::mark_of`]), if that was said; else 0.
    pub(super) domain: AtomicU64,
}

impl Slot {
    fn new(index: u32) -> Slot {
        Slot {
            index,
            word: AtomicU64::new(1 << 32),
            flags: AtomicU32::new(flag::BUSY),
            reason: AtomicU8::new(0),
            ends: RwLock::new(None),
            stream: RwLock::new(None),
            input: Mutex::new(Input::default()),
            output: Mutex::new(Output::default()),
            read_due: AtomicU64::new(0),
            write_due: AtomicU64::new(0),
            queued: AtomicU64::new(0),
            unanswered: AtomicU32::new(0),
            failure: AtomicI32::new(0),
            wrote: AtomicUsize::new(0),
            tag: AtomicUsize::new(0),
            tls: Mutex::new(None),
            domain: AtomicU64::new(0),
        }
    }

    fn generation(&self) -> u32 {
        (self.word.load(Ordering::SeqCst) >> 32) as u32
    }

    /// One more pin, if the slot is in use and still of that generation (a token has only a part of it); returns the
    /// whole generation.
    fn pin(&self, generation: u32) -> Option<u32> {
        let mut word = self.word.load(Ordering::SeqCst);
        loop {
            if (word >> 32) as u32 & GENERATION_MASK != generation & GENERATION_MASK || word as u32 == 0 {
                return None;
            }
            match self.word.compare_exchange_weak(word, word + 1, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Some((word >> 32) as u32),
                Err(now) => word = now,
            }
        }
    }
}

/// Connections that are there; how many come from where.
pub(super) struct Table {
    slots: RwLock<Vec<Arc<Slot>>>,
    free: Mutex<Vec<u32>>,
    ends: Mutex<HashTable<(SocketAddr, u32)>>,
    sources: Mutex<std::collections::HashMap<IpAddr, u32>>,
    hasher: RandomState,
    open: AtomicUsize,
}

/// Why a connection was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    All,
    Source,
}

/// One holder's pin. The table's is made with `pinned` and given up by `unpin`.
pub(super) struct Pin {
    pub(super) slot: Arc<Slot>,
    pub(super) generation: u32,
}

impl Table {
    pub(super) fn new() -> Self {
        Table {
            slots: RwLock::new(Vec::new()),
            free: Mutex::new(Vec::new()),
            ends: Mutex::new(HashTable::new()),
            sources: Mutex::new(std::collections::HashMap::new()),
            hasher: RandomState::new(),
            open: AtomicUsize::new(0),
        }
    }

    pub(super) fn open_count(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Slots that exist, in use or not.
    pub(super) fn slot_count(&self) -> usize {
        self.slots.read().len()
    }

    /// Counts a connection from `source` in, unless a limit (0: none) is reached.
    pub(super) fn admit(&self, source: IpAddr, all: usize, per_source: usize) -> Result<(), Full> {
        let admitted =
            self.open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (all == 0 || n < all).then_some(n + 1));
        if admitted.is_err() {
            return Err(Full::All);
        }
        let mut sources = self.sources.lock();
        let count = sources.entry(source).or_insert(0);
        if per_source != 0 && *count as usize >= per_source {
            drop(sources);
            self.open.fetch_sub(1, Ordering::SeqCst);
            return Err(Full::Source);
        }
        *count += 1;
        Ok(())
    }

    /// Counts it out again.
    pub(super) fn dismiss(&self, source: IpAddr) {
        self.open.fetch_sub(1, Ordering::SeqCst);
        let mut sources = self.sources.lock();
        if let Some(count) = sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                sources.remove(&source);
                if sources.capacity() > 1024 && sources.len() * 8 < sources.capacity() {
                    sources.shrink_to_fit();
                }
            }
        }
    }

    /// A slot for an admitted connection, with two pins: the table's own, and the one returned. Nobody else finds it
    /// before [`Table::publish`].
    pub(super) fn take(&self, ends: Ends, flags: u32) -> Pin {
        let index = self.free.lock().pop();
        let slot = match index {
            Some(index) => Arc::clone(&self.slots.read()[index as usize]),
            None => {
                let mut slots = self.slots.write();
                let slot = Arc::new(Slot::new(slots.len() as u32));
                slots.push(Arc::clone(&slot));
                slot
            }
        };
        *slot.ends.write() = Some(ends);
        *slot.input.lock() = Input::default();
        *slot.output.lock() = Output::default();
        slot.reason.store(0, Ordering::SeqCst);
        slot.read_due.store(0, Ordering::SeqCst);
        slot.write_due.store(0, Ordering::SeqCst);
        slot.queued.store(0, Ordering::SeqCst);
        slot.unanswered.store(0, Ordering::SeqCst);
        slot.failure.store(0, Ordering::SeqCst);
        slot.wrote.store(0, Ordering::SeqCst);
        slot.tag.store(0, Ordering::SeqCst);
        // BUSY until the caller has set it up: an early event leaves its bit and is handled then.
        slot.flags.store(flag::BUSY | flags, Ordering::SeqCst);
        slot.word.fetch_add(2, Ordering::SeqCst);
        let generation = slot.generation();
        Pin { slot, generation }
    }

    pub(super) fn publish(&self, ends: &Ends, index: u32) {
        let hash = self.hasher.hash_one(ends.peer);
        self.ends.lock().insert_unique(hash, (ends.peer, index), |(peer, _)| self.hasher.hash_one(peer));
    }

    pub(super) fn unpublish(&self, ends: &Ends, index: u32) {
        let hash = self.hasher.hash_one(ends.peer);
        let mut all = self.ends.lock();
        if let Ok(entry) = all.find_entry(hash, |(_, known)| *known == index) {
            entry.remove();
        }
        if all.capacity() > 4096 && all.len() * 8 < all.capacity() {
            all.shrink_to_fit(|(peer, _)| self.hasher.hash_one(peer));
        }
    }

    /// A domain in eight bytes, for every connection has room for one: a hash under keys of this process, 0 for none. Two
    /// domains at one address have the same with a probability of 2^-63.
    pub(super) fn mark_of(&self, domain: Option<&str>) -> u64 {
        domain.map_or(0, |domain| self.hasher.hash_one(domain) | 1)
    }

    /// An open connection to `peer` over `transport`, from `local` if that is given, that was opened for `domain` or, with
    /// none, for no certain one.
    pub(super) fn find(
        &self,
        transport: Transport,
        peer: SocketAddr,
        local: Option<IpAddr>,
        domain: Option<&str>,
    ) -> Option<Pin> {
        let hash = self.hasher.hash_one(peer);
        let domain = self.mark_of(domain);
        let slots = self.slots.read();
        let all = self.ends.lock();
        let fits = |&(known, index): &(SocketAddr, u32)| {
            let slot = &slots[index as usize];
            known == peer
                && slot.reason.load(Ordering::SeqCst) == 0
                && slot
                    .ends
                    .read()
                    .is_some_and(|ends| ends.transport == transport && local.is_none_or(|ip| ends.local.ip() == ip))
                && slot.domain.load(Ordering::SeqCst) == domain
        };
        let &(_, index) = all.find(hash, fits)?;
        let slot = Arc::clone(&slots[index as usize]);
        let generation = slot.pin(slot.generation())?;
        Some(Pin { slot, generation })
    }

    pub(super) fn pin(&self, id: ConnId) -> Option<Pin> {
        let slot = Arc::clone(self.slots.read().get(id.index as usize)?);
        let generation = slot.pin(id.generation)?;
        Some(Pin { slot, generation })
    }

    pub(super) fn pin_again(&self, pin: &Pin) -> Pin {
        pin.slot.word.fetch_add(1, Ordering::SeqCst);
        Pin { slot: Arc::clone(&pin.slot), generation: pin.generation }
    }

    /// Gives one pin back; the last one makes the slot free.
    pub(super) fn unpin(&self, slot: &Slot) {
        let before = slot.word.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(before as u32 != 0, "a pin given back twice");
        if before as u32 == 1 {
            // Pins are 0: nobody can take one, so this thread alone moves the generation on.
            let next = (((before >> 32) as u32).wrapping_add(1)).max(1);
            slot.word.store(u64::from(next) << 32, Ordering::SeqCst);
            self.free.lock().push(slot.index);
        }
    }

    /// Every slot that is in use.
    pub(super) fn pinned(&self) -> Vec<Pin> {
        let slots = self.slots.read();
        slots
            .iter()
            .filter_map(|slot| {
                let generation = slot.pin(slot.generation())?;
                Some(Pin { slot: Arc::clone(slot), generation })
            })
            .collect()
    }
}
