//! A hierarchical timing wheel (Varghese and Lauck, SOSP 1987, scheme 7): start, cancel and expire in O(1), whatever the
//! number of timers. No locks and no clock: time is a number of ticks that the owner gives.
//!
//! ```text
//!   level 0: 256 slots of 1 tick    level 1: 256 slots of 256 ticks   ...   level 4: 256 slots of 2^32 ticks
//!     └─ slot ─▶ entry ⇄ entry ⇄ ...      (doubly linked through a slab of entries, by index)
//! ```
//! A timer stands at the level of the highest byte in which its deadline differs from the current time, so all timers
//! of a level come before all of the level above, and within a level the first slot in use is the next. Two timers with
//! one deadline stand at the same level at any time, hence they expire in the order in which they were started. A map of
//! bits per level finds the first slot in use without a walk over the empty ones: a jump over an hour costs what a jump
//! over a millisecond costs.

const BITS: u32 = 8;
const SLOTS: usize = 1 << BITS;
const LEVELS: usize = 5;
/// The longest distance: half of what the levels span (2^39 ticks; 17 years of milliseconds).
const FARTHEST: u64 = 1 << (BITS as usize * LEVELS - 1);
const NIL: u32 = u32::MAX;

/// Names an entry of a wheel: its index and a generation. An entry that is gone is not found under its old key, unless
/// its index was used 2^32 times since. The generation is never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub index: u32,
    pub generation: u32,
}

struct Entry<T> {
    value: Option<T>,
    deadline: u64,
    generation: u32,
    next: u32,
    prev: u32,
    /// Level and slot while it waits; `RESTING` while it is in no slot.
    place: u16,
}

const RESTING: u16 = u16::MAX;

pub struct Wheel<T> {
    entries: Vec<Entry<T>>,
    /// First unused entry, linked by `next`.
    unused: u32,
    /// First and last entry of each slot.
    slots: Box<[(u32, u32)]>,
    used: [[u64; SLOTS / 64]; LEVELS],
    now: u64,
    live: usize,
    waiting: usize,
}

impl<T> Default for Wheel<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Wheel<T> {
    /// An empty wheel at tick 0.
    pub fn new() -> Self {
        Wheel {
            entries: Vec::new(),
            unused: NIL,
            slots: vec![(NIL, NIL); SLOTS * LEVELS].into(),
            used: [[0; SLOTS / 64]; LEVELS],
            now: 0,
            live: 0,
            waiting: 0,
        }
    }

    /// Entries that exist, waiting or resting.
    pub fn len(&self) -> usize {
        self.live
    }

    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    pub fn now(&self) -> u64 {
        self.now
    }

    /// A timer that expires when `advance` comes to `deadline`, or at its next call if that is past.
    pub fn start(&mut self, deadline: u64, value: T) -> Key {
        let index = match self.unused {
            NIL => {
                let index = u32::try_from(self.entries.len()).ok().filter(|i| *i != NIL);
                self.entries.push(Entry {
                    value: None,
                    deadline: 0,
                    generation: 1,
                    next: NIL,
                    prev: NIL,
                    place: RESTING,
                });
                index.expect("fewer than 2^32 timers")
            }
            index => {
                self.unused = self.entries[index as usize].next;
                index
            }
        };
        let entry = &mut self.entries[index as usize];
        entry.value = Some(value);
        self.live += 1;
        let key = Key { index, generation: entry.generation };
        self.place(index, deadline);
        key
    }

    pub fn get(&self, key: Key) -> Option<&T> {
        self.entry(key)?.value.as_ref()
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.entry(key)?;
        self.entries[key.index as usize].value.as_mut()
    }

    /// When it expires, or expired last.
    pub fn deadline(&self, key: Key) -> Option<u64> {
        Some(self.entry(key)?.deadline)
    }

    /// Sets a resting entry to wait again, or a waiting one to another deadline; false if it is gone.
    pub fn restart(&mut self, key: Key, deadline: u64) -> bool {
        if self.entry(key).is_none() {
            return false;
        }
        self.unlink(key.index);
        self.place(key.index, deadline);
        true
    }

    /// Takes an entry out, waiting or resting. The key is not valid any more.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        self.entry(key)?;
        self.unlink(key.index);
        let entry = &mut self.entries[key.index as usize];
        entry.generation = entry.generation.wrapping_add(1).max(1);
        entry.next = self.unused;
        self.unused = key.index;
        self.live -= 1;
        entry.value.take()
    }

    /// The tick at which `advance` next has something to do, at the latest when the first timer is due; `None` when
    /// nothing waits.
    pub fn next(&self) -> Option<u64> {
        self.first().map(|(_, _, tick)| tick)
    }

    /// Moves the time to `now` and shows each timer that is due, earliest first. It rests then: the owner removes it,
    /// or restarts it.
    pub fn advance(&mut self, now: u64, mut due: impl FnMut(Key, &mut T)) {
        while let Some((level, slot, tick)) = self.first() {
            if tick > now {
                break;
            }
            self.now = self.now.max(tick);
            let at = level * SLOTS + slot;
            let mut index = self.slots[at].0;
            self.slots[at] = (NIL, NIL);
            self.used[level][slot / 64] &= !(1 << (slot % 64));
            while index != NIL {
                let entry = &mut self.entries[index as usize];
                let next = entry.next;
                let (deadline, generation) = (entry.deadline, entry.generation);
                entry.place = RESTING;
                self.waiting -= 1;
                if deadline <= self.now {
                    if let Some(value) = &mut entry.value {
                        due(Key { index, generation }, value);
                    }
                } else {
                    self.place(index, deadline);
                }
                index = next;
            }
        }
        self.now = self.now.max(now);
    }

    fn entry(&self, key: Key) -> Option<&Entry<T>> {
        self.entries.get(key.index as usize).filter(|e| e.generation == key.generation && e.value.is_some())
    }

    /// Links a resting entry into its slot.
    fn place(&mut self, index: u32, deadline: u64) {
        // What is past is due at the next tick: the current one has been handed out already.
        let deadline = deadline.clamp(self.now + 1, self.now + FARTHEST);
        let differs = self.now ^ deadline;
        let level = ((63 - differs.leading_zeros()) / BITS) as usize;
        // Beyond the top level only after 2^40 ticks (35 years): it then waits at the top and is placed anew from there.
        let level = level.min(LEVELS - 1);
        let slot = (deadline >> (BITS as usize * level)) as usize & (SLOTS - 1);
        let at = level * SLOTS + slot;
        let last = self.slots[at].1;
        let entry = &mut self.entries[index as usize];
        entry.deadline = deadline;
        entry.place = at as u16;
        entry.prev = last;
        entry.next = NIL;
        if last == NIL {
            self.slots[at].0 = index;
            self.used[level][slot / 64] |= 1 << (slot % 64);
        } else {
            self.entries[last as usize].next = index;
        }
        self.slots[at].1 = index;
        self.waiting += 1;
    }

    fn unlink(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        if entry.place == RESTING {
            return;
        }
        let at = entry.place as usize;
        let (prev, next) = (entry.prev, entry.next);
        entry.place = RESTING;
        match prev {
            NIL => self.slots[at].0 = next,
            prev => self.entries[prev as usize].next = next,
        }
        match next {
            NIL => self.slots[at].1 = prev,
            next => self.entries[next as usize].prev = prev,
        }
        if self.slots[at].0 == NIL {
            let (level, slot) = (at / SLOTS, at % SLOTS);
            self.used[level][slot / 64] &= !(1 << (slot % 64));
        }
        self.waiting -= 1;
    }

    /// Level, slot and first tick of the next slot in use.
    fn first(&self) -> Option<(usize, usize, u64)> {
        if self.waiting == 0 {
            return None;
        }
        for (level, words) in self.used.iter().enumerate() {
            let found = words.iter().enumerate().find(|(_, word)| **word != 0);
            if let Some((i, word)) = found {
                let slot = i * 64 + word.trailing_zeros() as usize;
                let shift = BITS as usize * level;
                let above = self.now >> (shift + BITS as usize) << (shift + BITS as usize);
                return Some((level, slot, above | (slot as u64) << shift));
            }
        }
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn due(wheel: &mut Wheel<u32>, now: u64) -> Vec<u32> {
        let mut out = Vec::new();
        wheel.advance(now, |_, value| out.push(*value));
        out
    }

    #[test]
    fn a_far_timer_comes_down_the_levels_and_expires_on_its_tick() {
        for deadline in [1, 255, 256, 257, 65_535, 65_536, 70_000, 1 << 24, (1 << 32) + 5] {
            let mut wheel = Wheel::new();
            wheel.advance(3, |_, _| ());
            wheel.start(deadline, 7);
            if deadline > 4 {
                assert_eq!(due(&mut wheel, deadline - 1), [0; 0], "{deadline}");
                assert_eq!(wheel.next(), Some(deadline));
            }
            assert_eq!(due(&mut wheel, deadline.max(4)), [7], "{deadline}");
            assert_eq!(wheel.next(), None);
        }
    }

    #[test]
    fn a_key_does_not_find_the_next_user_of_its_entry() {
        let mut wheel = Wheel::new();
        let first = wheel.start(5, 1);
        assert_eq!(wheel.remove(first), Some(1));
        let second = wheel.start(5, 2);
        assert_eq!(first.index, second.index);
        assert_eq!(wheel.remove(first), None);
        assert!(!wheel.restart(first, 9));
        assert_eq!(due(&mut wheel, 5), [2]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Start(u64),
        Cancel(usize),
        Restart(usize, u64),
        Advance(u64),
    }

    fn distance() -> impl Strategy<Value = u64> {
        prop_oneof![0..4u64, 250..260u64, 0..70_000u64, 65_530..65_540u64, 0..(1u64 << 33)]
    }

    proptest! {
        /// The wheel against an ordered map: same timers, same order, nothing early, nothing late.
        #[test]
        fn does_what_an_ordered_map_does(steps in prop::collection::vec(prop_oneof![
            4 => distance().prop_map(Step::Start),
            1 => any::<prop::sample::Index>().prop_map(|i| Step::Cancel(i.index(1 << 16))),
            1 => (any::<prop::sample::Index>(), distance()).prop_map(|(i, d)| Step::Restart(i.index(1 << 16), d)),
            3 => distance().prop_map(Step::Advance),
        ], 1..120)) {
            let mut wheel = Wheel::new();
            let mut model: BTreeMap<(u64, u64), u32> = BTreeMap::new();
            let mut keys: Vec<(Key, u32)> = Vec::new();
            let (mut now, mut serial, mut order) = (0u64, 0u32, 0u64);
            for step in steps {
                order += 1;
                match step {
                    Step::Start(distance) => {
                        serial += 1;
                        keys.push((wheel.start(now + distance, serial), serial));
                        model.insert(((now + distance).max(now + 1), order), serial);
                    }
                    Step::Cancel(i) if !keys.is_empty() => {
                        let (key, value) = keys.swap_remove(i % keys.len());
                        let was = model.iter().find(|(_, v)| **v == value).map(|(k, _)| *k);
                        prop_assert_eq!(wheel.remove(key), Some(value));
                        if let Some(was) = was { model.remove(&was); }
                    }
                    Step::Restart(i, distance) if !keys.is_empty() => {
                        let (key, value) = keys[i % keys.len()];
                        prop_assert!(wheel.restart(key, now + distance));
                        model.retain(|_, v| *v != value);
                        model.insert(((now + distance).max(now + 1), order), value);
                    }
                    Step::Advance(distance) => {
                        now += distance;
                        let rest = model.split_off(&(now + 1, 0));
                        let expected: Vec<u32> = std::mem::replace(&mut model, rest).into_values().collect();
                        prop_assert_eq!(due(&mut wheel, now), expected);
                        let first = model.keys().next().map(|(deadline, _)| *deadline);
                        prop_assert_eq!(wheel.next().is_some(), first.is_some());
                        prop_assert!(wheel.next().unwrap_or(0) <= first.unwrap_or(0));
                        prop_assert!(wheel.next().is_none_or(|tick| tick > now));
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(wheel.len(), keys.len());
        }
    }
}
