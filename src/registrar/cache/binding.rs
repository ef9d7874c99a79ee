//! A binding: 64 bytes and one packed text.
//!
//! ```text
//!   Binding { expires, modified, cseq, reg_id, methods, agent, q, state, ends[7], text }
//!                                                                                 |
//!   text:  contact | call_id | received | path | instance | socket | ruid   <-----+   ends[i] is where part i ends
//! ```
//! Promise: a refresh allocates nothing while its text fits where the last one was. A registration under a new Call-ID does
//! as a rule; were its text a new block each time, blocks of all bindings would wander through the heaps of all threads.

use super::intern::{AgentId, Agents};
use crate::registrar::store::{Aor, Key, Row};

/// Where a binding stands towards the database (the three states of Kamailio's usrloc, and one for what has to go).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The database has never been told of it.
    New,
    /// It has changed since it was handed to its writer.
    Dirty,
    /// Its last state was handed to its writer.
    Synced,
    /// Removed or expired; only kept until its deletion is handed over. Nobody sees it.
    Gone,
}

const PARTS: usize = 7;

pub(crate) struct Binding {
    pub expires: u32,
    pub modified: u32,
    pub cseq: u32,
    pub reg_id: u32,
    pub methods: u32,
    agent: AgentId,
    pub q: u16,
    pub state: State,
    ends: [u16; PARTS],
    text: Box<[u8]>,
}

/// What a binding says; borrowed from the cache while its shard is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindingView<'a> {
    pub contact: &'a [u8],
    pub call_id: &'a [u8],
    pub received: &'a [u8],
    /// The Path headers' values, separated by commas; empty when there were none.
    pub path: &'a [u8],
    /// The value of `+sip.instance`, without quotes; empty when there was none.
    pub instance: &'a [u8],
    pub socket: &'a [u8],
    pub user_agent: &'a [u8],
    /// Seconds since the epoch.
    pub expires: u32,
    /// Seconds since the epoch.
    pub modified: u32,
    pub cseq: u32,
    /// 0 when there was none.
    pub reg_id: u32,
    /// 0 to 1000, or [`crate::registrar::store::NO_Q`].
    pub q: u16,
    pub state: State,
}

fn parts<'a>(row: &Row<'a>) -> [&'a [u8]; PARTS] {
    [row.key.contact, row.call_id, row.received, row.path, row.key.instance, row.socket, row.ruid]
}

/// Texts take room in steps of what allocators hand out anyway.
const GRAIN: usize = 16;

fn length(parts: &[&[u8]; PARTS]) -> usize {
    parts.iter().map(|part| part.len()).sum()
}

/// Puts the parts behind each other; returns where each ends.
fn write(text: &mut [u8], parts: &[&[u8]; PARTS]) -> [u16; PARTS] {
    let mut end = 0;
    parts.map(|part| {
        text[end..end + part.len()].copy_from_slice(part);
        end += part.len();
        // The widths of the columns add up to less than 2 kB.
        end as u16
    })
}

impl Binding {
    pub fn new(row: &Row<'_>, state: State, agents: &mut Agents) -> Binding {
        let parts = parts(row);
        let mut text = vec![0; length(&parts).next_multiple_of(GRAIN)].into_boxed_slice();
        Binding {
            expires: row.expires,
            modified: row.modified,
            cseq: row.cseq,
            reg_id: row.key.reg_id,
            methods: row.methods,
            agent: agents.acquire(row.user_agent),
            q: row.q,
            state,
            ends: write(&mut text, &parts),
            text,
        }
    }

    /// Becomes what the row says, which has this binding's key.
    pub fn update(&mut self, row: &Row<'_>, agents: &mut Agents) {
        debug_assert!(self.has_key(row));
        let parts = parts(row);
        if (0..PARTS).any(|i| self.part(i) != parts[i]) {
            self.set_text(&parts);
        }
        self.expires = row.expires;
        self.modified = row.modified;
        self.cseq = row.cseq;
        self.methods = row.methods;
        self.q = row.q;
        if agents.get(self.agent) != row.user_agent {
            agents.release(self.agent);
            self.agent = agents.acquire(row.user_agent);
        }
    }

    fn set_text(&mut self, parts: &[&[u8]; PARTS]) {
        let room = length(parts).next_multiple_of(GRAIN);
        if room != self.text.len() {
            self.text = vec![0; room].into_boxed_slice();
        }
        self.ends = write(&mut self.text, parts);
    }

    /// Becomes what tells other servers that it is gone.
    pub fn bury(&mut self, call_id: &[u8], cseq: u32, now: u32) {
        let old = self.text.clone();
        let mut start = 0;
        let mut parts = self.ends.map(|end| {
            let part = &old[start..usize::from(end)];
            start = usize::from(end);
            part
        });
        parts[1] = call_id;
        self.set_text(&parts);
        (self.cseq, self.modified, self.expires, self.state) = (cseq, now, now.saturating_sub(1), State::Gone);
    }

    pub fn release(&mut self, agents: &mut Agents) {
        agents.release(self.agent);
        self.agent = super::intern::NO_AGENT;
    }

    pub fn has_key(&self, row: &Row<'_>) -> bool {
        self.reg_id == row.key.reg_id && self.contact() == row.key.contact && self.instance() == row.key.instance
    }

    fn part(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { usize::from(self.ends[i - 1]) };
        &self.text[start..usize::from(self.ends[i])]
    }

    pub fn contact(&self) -> &[u8] {
        self.part(0)
    }

    pub fn call_id(&self) -> &[u8] {
        self.part(1)
    }

    pub fn instance(&self) -> &[u8] {
        self.part(4)
    }

    pub fn ruid(&self) -> &[u8] {
        self.part(6)
    }

    /// Has its text read.
    pub fn fetch(&self) {
        crate::ffi::fetch(&self.text);
    }

    pub fn received(&self) -> &[u8] {
        self.part(2)
    }

    pub fn socket(&self) -> &[u8] {
        self.part(5)
    }

    pub fn key<'a>(&'a self, aor: Aor<'a>) -> Key<'a> {
        Key { aor, contact: self.contact(), instance: self.instance(), reg_id: self.reg_id }
    }

    pub fn row<'a>(&'a self, aor: Aor<'a>, agents: &'a Agents) -> Row<'a> {
        Row {
            key: self.key(aor),
            ruid: self.part(6),
            received: self.part(2),
            path: self.part(3),
            call_id: self.call_id(),
            user_agent: agents.get(self.agent),
            socket: self.part(5),
            expires: self.expires,
            modified: self.modified,
            cseq: self.cseq,
            q: self.q,
            methods: self.methods,
            server_id: 0,
        }
    }

    pub fn view<'a>(&'a self, agents: &'a Agents) -> BindingView<'a> {
        BindingView {
            contact: self.contact(),
            call_id: self.call_id(),
            received: self.part(2),
            path: self.part(3),
            instance: self.instance(),
            socket: self.part(5),
            user_agent: agents.get(self.agent),
            expires: self.expires,
            modified: self.modified,
            cseq: self.cseq,
            reg_id: self.reg_id,
            q: self.q,
            state: self.state,
        }
    }

    /// Seen by requests at `now`.
    pub fn alive(&self, now: u32) -> bool {
        self.state != State::Gone && self.expires > now
    }
}

/// The bindings of one address-of-record. Nearly all have one, so that one lies in the record itself.
#[derive(Default)]
pub(crate) enum Bindings {
    #[default]
    None,
    One(Binding),
    Many(Vec<Binding>),
}

impl Bindings {
    pub fn as_slice(&self) -> &[Binding] {
        match self {
            Bindings::None => &[],
            Bindings::One(one) => std::slice::from_ref(one),
            Bindings::Many(many) => many,
        }
    }

    pub fn as_mut_slice(&mut self) -> &mut [Binding] {
        match self {
            Bindings::None => &mut [],
            Bindings::One(one) => std::slice::from_mut(one),
            Bindings::Many(many) => many,
        }
    }

    pub fn push(&mut self, binding: Binding) {
        *self = match std::mem::take(self) {
            Bindings::None => Bindings::One(binding),
            Bindings::One(one) => Bindings::Many(vec![one, binding]),
            Bindings::Many(mut many) => {
                many.push(binding);
                Bindings::Many(many)
            }
        };
    }

    /// Takes one out; the last one takes its place.
    pub fn swap_remove(&mut self, index: usize) -> Option<Binding> {
        match std::mem::take(self) {
            Bindings::None => None,
            Bindings::One(one) => Some(one),
            Bindings::Many(mut many) => {
                let taken = many.swap_remove(index);
                *self = match many.len() {
                    1 => many.pop().map_or(Bindings::None, Bindings::One),
                    _ => Bindings::Many(many),
                };
                Some(taken)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registrar::store::{NO_METHODS, NO_Q};

    fn row(contact: &'static [u8]) -> Row<'static> {
        Row {
            key: Key { aor: Aor { user: b"u", domain: b"d" }, contact, instance: b"<i>", reg_id: 2 },
            ruid: b"r",
            received: b"sip:1.2.3.4",
            path: b"<sip:p>",
            call_id: b"call",
            user_agent: b"agent",
            socket: b"",
            expires: 10,
            modified: 1,
            cseq: 5,
            q: NO_Q,
            methods: NO_METHODS,
            server_id: 0,
        }
    }

    #[test]
    fn a_binding_is_small_and_says_what_the_row_said() {
        assert!(size_of::<Binding>() <= 64, "{}", size_of::<Binding>());
        assert!(size_of::<Bindings>() <= 64, "{}", size_of::<Bindings>());
        let mut agents = Agents::default();
        let mut binding = Binding::new(&row(b"sip:a@b"), State::New, &mut agents);
        assert_eq!(binding.row(row(b"").key.aor, &agents), row(b"sip:a@b"));
        for changed in [
            Row { cseq: 6, expires: 20, user_agent: b"other", ..row(b"sip:a@b") },
            Row { call_id: b"another call", path: b"", socket: b"s", ..row(b"sip:a@b") },
        ] {
            binding.update(&changed, &mut agents);
            assert_eq!(binding.row(changed.key.aor, &agents), changed);
        }
    }

    #[test]
    fn a_registration_under_another_call_id_stays_in_its_memory() {
        let mut agents = Agents::default();
        let mut binding = Binding::new(&row(b"sip:a@b"), State::New, &mut agents);
        let before = binding.text.as_ptr();
        let next = Row { call_id: b"lal2", cseq: 1, ..row(b"sip:a@b") };
        binding.update(&next, &mut agents);
        assert_eq!(binding.text.as_ptr(), before);
        binding.bury(b"bye!", 2, 30);
        assert_eq!((binding.text.as_ptr(), binding.call_id()), (before, &b"bye!"[..]));
        assert_eq!((binding.contact(), binding.part(3), binding.ruid()), (&b"sip:a@b"[..], &b"<sip:p>"[..], &b"r"[..]));
    }

    #[test]
    fn bindings_grow_and_shrink() {
        let mut agents = Agents::default();
        let mut bindings = Bindings::default();
        for contact in [&b"sip:1"[..], b"sip:2", b"sip:3"] {
            let mut one = row(b"x");
            one.key.contact = contact;
            bindings.push(Binding::new(&one, State::New, &mut agents));
        }
        assert_eq!(bindings.swap_remove(0).map(|b| b.contact().to_vec()), Some(b"sip:1".to_vec()));
        assert_eq!(bindings.as_slice().iter().map(|b| b.contact()).collect::<Vec<_>>(), [b"sip:3", b"sip:2"]);
        assert!(bindings.swap_remove(1).is_some());
        assert!(matches!(bindings, Bindings::One(_)));
        assert!(bindings.swap_remove(0).is_some());
        assert!(bindings.swap_remove(0).is_none());
    }
}
