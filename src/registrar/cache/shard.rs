//! One shard: the records of the addresses-of-record that hash to it, under one lock.
//!
//! ```text
//!   index:   tag -> slot                      8 bytes in a cell, a third or more of the cells free
//!   records: [slot] Record { aor, tag, alarm, handed, flags, bindings }   in chunks, so that growing copies nothing
//!   alarms:  heap of (second, slot)           what may expire, soonest first
//!   dirty:   [slot]                           what the writer has still to be told of
//!   empties: [slot]                           known to have no bindings, oldest first (only while the cache is lazy)
//! ```
//! Each list may hold stale slots; the record's own fields decide (`alarm`, `queued`, `listed`). So nothing is searched
//! for in a list, and a refresh that moves an expiry to a later time touches no list at all.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::binding::{Binding, BindingView, Bindings, State};
use super::index::Index;
use super::intern::Agents;
use crate::ffi::fetch;
use crate::registrar::store::{Aor, Change, Row, is_newer};

const CHUNK: usize = 32;
/// The width of the column `ruid`.
const RUID: usize = 64;

/// What is done about the database when a binding changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// There is none.
    Never,
    /// The change is marked; the writer fetches the last state.
    Later,
    /// The change is handed over now.
    Now,
}

/// Where changes are handed over.
pub(crate) type Emit<'f> = &'f mut dyn FnMut(&Change<'_>);

#[derive(Default)]
struct Record {
    /// Empty: this slot is free.
    aor: Box<[u8]>,
    tag: u32,
    /// The second of this record's valid entry in `alarms`; 0: it has none.
    alarm: u32,
    /// The ticket of its last change, cut to 32 bits (see `Partition`).
    handed: u32,
    /// Its entry in `dirty` is valid.
    queued: bool,
    /// Its entry in `empties` is valid.
    listed: bool,
    /// It was made while the database had not been reached: there may be more of it there.
    partial: bool,
    bindings: Bindings,
}

#[derive(Default)]
pub(crate) struct Shard {
    index: Index,
    chunks: Vec<Box<[Record]>>,
    free: Vec<u32>,
    agents: Agents,
    alarms: BinaryHeap<Reverse<(u32, u32)>>,
    dirty: VecDeque<u32>,
    empties: VecDeque<u32>,
    /// Bindings that are not Gone.
    bindings: usize,
    /// Removals are written as rows whose time is over: other servers must see them.
    graves: bool,
}

/// The request that removes a binding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Removal<'a> {
    pub call_id: &'a [u8],
    pub cseq: u32,
    pub now: u32,
}

/// What a shard holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Levels {
    pub records: usize,
    pub bindings: usize,
    pub dirty: usize,
}

impl Shard {
    /// `graves`: other servers use the same table.
    pub fn new(graves: bool) -> Shard {
        Shard { graves, ..Shard::default() }
    }

    fn record(&self, slot: u32) -> &Record {
        &self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }

    fn record_mut(&mut self, slot: u32) -> &mut Record {
        &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }

    pub fn find(&self, tag: u32, aor: &[u8]) -> Option<u32> {
        self.index.find(tag, |slot| *self.record(slot).aor == *aor)
    }

    /// The three steps of [`super::Cache::fetch`]: each has read what the next one looks at.
    pub fn fetch_index(&self, tag: u32) {
        self.index.fetch(tag);
    }

    pub fn fetch_record(&self, tag: u32) {
        if let Some(slot) = self.index.find(tag, |_| true) {
            fetch(std::slice::from_ref(self.record(slot)));
        }
    }

    pub fn fetch_texts(&self, tag: u32) {
        if let Some(slot) = self.index.find(tag, |_| true) {
            let record = self.record(slot);
            fetch(&record.aor);
            if let Some(binding) = record.bindings.as_slice().first() {
                binding.fetch();
            }
        }
    }

    /// A record without bindings. There must be none for this address-of-record.
    pub fn create(&mut self, tag: u32, aor: &[u8], handed: u32) -> u32 {
        debug_assert!(self.find(tag, aor).is_none() && !aor.is_empty());
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let first = (self.chunks.len() * CHUNK) as u32;
                self.chunks.push((0..CHUNK).map(|_| Record::default()).collect());
                self.free.extend((first + 1..first + CHUNK as u32).rev());
                first
            }
        };
        *self.record_mut(slot) = Record { aor: aor.into(), tag, handed, ..Record::default() };
        self.index.insert(tag, slot);
        slot
    }

    fn destroy(&mut self, slot: u32) {
        let tag = self.record(slot).tag;
        debug_assert!(self.record(slot).bindings.as_slice().is_empty());
        self.index.remove(tag, slot);
        *self.record_mut(slot) = Record::default();
        self.free.push(slot);
    }

    pub fn bindings(&self, slot: u32) -> &[Binding] {
        self.record(slot).bindings.as_slice()
    }

    pub fn view<'a>(&'a self, binding: &'a Binding) -> BindingView<'a> {
        binding.view(&self.agents)
    }

    /// Whether the database may hold more of this record than the cache.
    pub fn is_partial(&self, slot: u32) -> bool {
        self.record(slot).partial
    }

    pub fn set_partial(&mut self, slot: u32, partial: bool) {
        self.record_mut(slot).partial = partial;
    }

    pub fn handed(&self, slot: u32) -> u32 {
        self.record(slot).handed
    }

    pub fn set_handed(&mut self, slot: u32, ticket: u32) {
        self.record_mut(slot).handed = ticket;
    }

    /// Adds the binding that the row describes, or makes the one with its key what the row says.
    pub fn put(&mut self, slot: u32, row: &Row<'_>, policy: Policy, emit: Emit<'_>) {
        let record = &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK];
        // The row's name in the database stays what it is (Kamailio's table, or somebody else's program).
        let mut name = [0; RUID];
        let mut row = *row;
        match record.bindings.as_mut_slice().iter_mut().find(|b| b.has_key(&row)) {
            Some(binding) => {
                let ruid = binding.ruid();
                if row.ruid.is_empty() && ruid.len() <= RUID {
                    name[..ruid.len()].copy_from_slice(ruid);
                    row.ruid = &name[..ruid.len()];
                }
                let row = &row;
                if binding.state == State::Gone {
                    self.bindings += 1;
                }
                binding.update(row, &mut self.agents);
                binding.state = match policy {
                    Policy::Never => State::New,
                    Policy::Later if binding.state == State::New => State::New,
                    Policy::Later => State::Dirty,
                    Policy::Now => State::Synced,
                };
            }
            None => {
                let state = if policy == Policy::Now { State::Synced } else { State::New };
                record.bindings.push(Binding::new(&row, state, &mut self.agents));
                self.bindings += 1;
            }
        }
        match policy {
            Policy::Never => {}
            Policy::Later => self.mark(slot),
            Policy::Now => emit(&Change::Upsert(row)),
        }
        self.arm(slot, row.expires);
    }

    /// Removes a binding; the last one takes its place, so several are removed from the highest index down.
    pub fn remove(&mut self, slot: u32, index: usize, policy: Policy, emit: Emit<'_>) {
        let record = &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK];
        let binding = &mut record.bindings.as_mut_slice()[index];
        if binding.state == State::Gone {
            return;
        }
        self.bindings -= 1;
        if policy == Policy::Later && binding.state != State::New {
            binding.state = State::Gone;
            self.mark(slot);
            return;
        }
        if policy == Policy::Now {
            emit(&Change::Delete(binding.key(Aor::split(&record.aor))));
        }
        if let Some(mut taken) = record.bindings.swap_remove(index) {
            taken.release(&mut self.agents);
        }
    }

    /// Removes a binding because a request says so: as [`Shard::remove`], but where other servers must learn of it the row
    /// stays, with that request's CSeq and a time that is over.
    pub fn bury(&mut self, slot: u32, index: usize, by: Removal<'_>, policy: Policy, emit: Emit<'_>) {
        let record = &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK];
        let binding = &mut record.bindings.as_mut_slice()[index];
        let written = policy == Policy::Now || policy == Policy::Later && binding.state != State::New;
        if !self.graves || !written || binding.state == State::Gone {
            return self.remove(slot, index, policy, emit);
        }
        let grave = Row {
            call_id: by.call_id,
            cseq: by.cseq,
            modified: by.now,
            expires: by.now.saturating_sub(1),
            ..binding.row(Aor::split(&record.aor), &self.agents)
        };
        if policy == Policy::Now {
            emit(&Change::Upsert(grave));
            // It is in the writer's hands: nothing more has to be said about it.
            return self.remove(slot, index, Policy::Never, emit);
        }
        binding.bury(by.call_id, by.cseq, by.now);
        self.bindings -= 1;
        self.mark(slot);
    }

    /// Takes a row of another server over. One that is older than what is known changes nothing; `settled`: it is known to
    /// be the database's last word. True: the two are of one second and from different clients, so that cannot be said.
    pub fn absorb(&mut self, slot: u32, row: &Row<'_>, now: u32, settled: bool) -> bool {
        let record = &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK];
        let over = row.expires <= now;
        let found = record.bindings.as_slice().iter().position(|binding| binding.has_key(row));
        let Some(index) = found else {
            if !over {
                record.bindings.push(Binding::new(row, State::Synced, &mut self.agents));
                self.bindings += 1;
                self.arm(slot, row.expires);
            }
            return false;
        };
        let binding = &mut record.bindings.as_mut_slice()[index];
        let known = binding.row(row.key.aor, &self.agents);
        let same = known.modified == row.modified && known.cseq == row.cseq && known.call_id == row.call_id;
        if same && (known.expires == row.expires || binding.state == State::Gone) {
            return false;
        }
        // Of one state that which is over is the later: it went with its connection.
        let later = is_newer(row, &known, settled) || same && over;
        if !later {
            return !settled && !same && known.modified == row.modified && known.call_id != row.call_id;
        }
        if over {
            if binding.state != State::Gone {
                self.bindings -= 1;
            }
            if let Some(mut taken) = record.bindings.swap_remove(index) {
                taken.release(&mut self.agents);
            }
            return false;
        }
        if binding.state == State::Gone {
            self.bindings += 1;
        }
        binding.update(row, &mut self.agents);
        binding.state = State::Synced;
        self.arm(slot, row.expires);
        false
    }

    /// To be called when a record may have lost its last binding. Without bindings it goes as soon as `durable` says that
    /// its last change is in the database; when nothing else would know that there are none (`keep` is not 0) it stays,
    /// until `keep` such are younger.
    pub fn settle(&mut self, slot: u32, keep: usize, durable: &dyn Fn(u32) -> bool) {
        let record = self.record_mut(slot);
        if !record.bindings.as_slice().is_empty() {
            return;
        }
        if keep == 0 && durable(record.handed) {
            self.destroy(slot);
            return;
        }
        if !std::mem::replace(&mut record.listed, true) {
            self.empties.push_back(slot);
        }
        // Two go where one enters, so that the list shrinks to its bound without a walk over it.
        self.trim(2, keep, durable);
    }

    /// Lets go of the oldest records without bindings, as [`Shard::settle`] says; looks at `budget` of them at most.
    pub fn trim(&mut self, budget: usize, keep: usize, durable: &dyn Fn(u32) -> bool) {
        for _ in 0..budget {
            if self.empties.len() <= keep {
                return;
            }
            let Some(oldest) = self.empties.pop_front() else { return };
            let record = self.record_mut(oldest);
            if !std::mem::take(&mut record.listed) || !record.bindings.as_slice().is_empty() {
                continue;
            }
            if durable(record.handed) {
                self.destroy(oldest);
            } else {
                // A SELECT would still find what is being deleted, and a retransmission has to wait for it.
                record.listed = true;
                self.empties.push_back(oldest);
            }
        }
    }

    fn mark(&mut self, slot: u32) {
        if !std::mem::replace(&mut self.record_mut(slot).queued, true) {
            self.dirty.push_back(slot);
        }
    }

    fn arm(&mut self, slot: u32, second: u32) {
        let second = second.max(1);
        let record = self.record_mut(slot);
        if record.alarm == 0 || second < record.alarm {
            record.alarm = second;
            self.alarms.push(Reverse((second, slot)));
        }
    }

    /// Removes what has expired; looks at no more than `budget` records. Returns how many bindings expired, and whether
    /// more is due.
    pub fn expire(
        &mut self,
        now: u32,
        budget: usize,
        policy: Policy,
        settle: &mut dyn FnMut(&mut Shard, u32),
    ) -> (usize, bool) {
        let mut expired = 0;
        for _ in 0..budget {
            let Some(&Reverse((second, slot))) = self.alarms.peek() else { return (expired, false) };
            if second > now {
                return (expired, false);
            }
            self.alarms.pop();
            let record = self.record_mut(slot);
            if record.alarm != second || record.aor.is_empty() {
                continue;
            }
            record.alarm = 0;
            for index in (0..record.bindings.as_slice().len()).rev() {
                let binding = &self.bindings(slot)[index];
                if binding.state != State::Gone && binding.expires <= now {
                    self.remove(slot, index, policy, &mut |_| ());
                    expired += 1;
                }
            }
            let next = self.bindings(slot).iter().filter(|b| b.state != State::Gone).map(|b| b.expires).min();
            if let Some(next) = next {
                self.arm(slot, next);
            }
            settle(self, slot);
        }
        (expired, true)
    }

    /// Hands over the last state of one record that changed: each change is emitted, then `done` gives the ticket.
    /// Returns false when there is no such record.
    pub fn hand_over(&mut self, emit: Emit<'_>, done: &mut dyn FnMut() -> u32) -> Option<u32> {
        while let Some(slot) = self.dirty.pop_front() {
            let record = &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK];
            if !std::mem::take(&mut record.queued) {
                continue;
            }
            let mut emitted = false;
            for index in (0..record.bindings.as_slice().len()).rev() {
                let aor = Aor::split(&record.aor);
                let binding = &mut record.bindings.as_mut_slice()[index];
                match binding.state {
                    State::Synced => continue,
                    State::New | State::Dirty => {
                        binding.state = State::Synced;
                        emit(&Change::Upsert(binding.row(aor, &self.agents)));
                    }
                    State::Gone => {
                        if self.graves {
                            emit(&Change::Upsert(binding.row(aor, &self.agents)));
                        } else {
                            emit(&Change::Delete(binding.key(aor)));
                        }
                        if let Some(mut taken) = record.bindings.swap_remove(index) {
                            taken.release(&mut self.agents);
                        }
                    }
                }
                emitted = true;
            }
            if emitted {
                record.handed = done();
                return Some(slot);
            }
        }
        None
    }

    /// Takes rows in as the database has them. What has expired is kept as Gone, so that the writer deletes it.
    pub fn take_in(&mut self, slot: u32, row: &Row<'_>, now: u32) {
        let record = &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK];
        let gone = row.expires <= now;
        if gone && self.graves {
            // Whoever sweeps deletes it.
            return;
        }
        let state = if gone { State::Gone } else { State::Synced };
        record.bindings.push(Binding::new(row, state, &mut self.agents));
        if gone {
            self.mark(slot);
        } else {
            self.bindings += 1;
            self.arm(slot, row.expires);
        }
    }

    /// As [`Shard::take_in`], for a partial record: what was registered meanwhile is the newer.
    pub fn merge(&mut self, slot: u32, row: &Row<'_>, now: u32) {
        let record = self.record_mut(slot);
        match record.bindings.as_mut_slice().iter_mut().find(|binding| binding.has_key(row)) {
            // The database knows of it, so its removal has to be told.
            Some(binding) if binding.state == State::New => binding.state = State::Dirty,
            Some(_) => {}
            None => self.take_in(slot, row, now),
        }
    }

    pub fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub fn levels(&self) -> Levels {
        Levels { records: self.index.len(), bindings: self.bindings, dirty: self.dirty.len() }
    }
}

#[cfg(test)]
mod tests;
