//! Plugins and the chain that a request goes through: by phase, then in order of registration, each plugin for the methods
//! that it named. The chain is fixed when the engine starts, so reading it takes no lock.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::ffi::{Code, Error};
use crate::observe::Counter;
use crate::sched::{Permit, StrandSet, Watched};
use crate::sip::Method;

use super::exchange::{Exchange, Kept, Ticket};

/// What a plugin says when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not mine, or not only mine: go on with the next plugin.
    Next,
    /// Answered, or not to be answered.
    Done,
    /// Somebody holds the message and will finish it.
    Pending,
}

/// How many calls of a plugin may run at once, and in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Serial,
    KeyedByCallId,
    KeyedByAor,
    Parallel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    First,
    Normal,
    Last,
}

/// The code of a plugin. May block: it costs the thread that calls it and nothing else.
pub trait Handler: Send + Sync {
    fn call(&self, exchange: &mut Exchange<'_>) -> Verdict;

    /// Whether the code can be exchanged while the engine runs. What it defers is then kept track of.
    fn can_reload(&self) -> bool {
        false
    }

    /// Loads a new version, from another file if one is named, and gives what puts it in the old one's place. An error
    /// leaves everything as it is.
    fn reload(&self, _path: Option<&str>) -> Result<Switch, Error> {
        Err(Error::new(Code::State, "this plugin was registered by the program: there is no file to load it from"))
    }

    /// A deferred message, known by [`Ticket::set_name`], goes to the new version: the name is not valid any more.
    fn revoked(&self, _name: usize) {}
}

/// Makes calls go to the new version from now on.
pub type Switch = Box<dyn FnOnce() + Send>;

/// A plugin as it is registered.
pub struct Plugin {
    pub name: String,
    pub policy: Policy,
    pub phase: Phase,
    pub methods: Methods,
    /// 0: the engine's watchdog option.
    pub deadline_ms: u32,
    /// 0: unbounded.
    pub concurrency: u32,
    pub handler: Box<dyn Handler>,
}

/// A set of methods: a bit for each that the library knows, the others by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Methods {
    known: u32,
    others: Vec<Vec<u8>>,
    /// Whether methods that the library does not know are in, but for `others`; else only `others` are.
    rest: bool,
}

impl Methods {
    pub fn all() -> Self {
        Methods { known: u32::MAX, others: Vec::new(), rest: true }
    }

    /// "REGISTER, OPTIONS". Methods are case-sensitive (RFC 3261 section 7.1); an extension method may be named too. All but
    /// these: "!REGISTER, OPTIONS".
    pub fn parse(list: &str) -> Result<Self, Error> {
        if let Some(list) = list.strip_prefix('!') {
            if list.starts_with('!') {
                return Err(Error::invalid("a list of methods has one \"!\" at most, at its beginning"));
            }
            let without = Methods::named(list)?;
            return Ok(Methods { known: !without.known, others: without.others, rest: true });
        }
        Methods::named(list)
    }

    fn named(list: &str) -> Result<Self, Error> {
        let mut methods = Methods { known: 0, others: Vec::new(), rest: false };
        for name in list.split(',').map(str::trim) {
            let token = |b: u8| b.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&b);
            if name.is_empty() || !name.bytes().all(token) {
                let list = list.escape_default();
                return Err(Error::invalid(format!(
                    "\"{list}\" is not a list of methods such as \"REGISTER,OPTIONS\""
                )));
            }
            match bit(Method::from_bytes(name.as_bytes())) {
                Some(bit) => methods.known |= bit,
                None => methods.others.push(name.as_bytes().to_vec()),
            }
        }
        Ok(methods)
    }

    pub fn contains(&self, method: Method<'_>) -> bool {
        match bit(method) {
            Some(bit) => self.known & bit != 0,
            None => self.rest != self.others.iter().any(|name| name == method.as_bytes()),
        }
    }
}

fn bit(method: Method<'_>) -> Option<u32> {
    let place = match method {
        Method::Invite => 0,
        Method::Ack => 1,
        Method::Bye => 2,
        Method::Cancel => 3,
        Method::Register => 4,
        Method::Options => 5,
        Method::Subscribe => 6,
        Method::Notify => 7,
        Method::Publish => 8,
        Method::Message => 9,
        Method::Info => 10,
        Method::Prack => 11,
        Method::Update => 12,
        Method::Refer => 13,
        Method::Other(_) => return None,
    };
    Some(1 << place)
}

/// A plugin at its place in the chain.
pub(super) struct Link {
    pub plugin: Plugin,
    pub strands: Arc<StrandSet<Kept>>,
    /// Bounds the calls of all strands of a keyed plugin together.
    pub gate: Option<Arc<StrandSet<Gated>>>,
    pub watched: Watched,
    pub calls: Counter,
    pub refused: Counter,
    pub promotions: Counter,
    pub pace: Pace,
    /// What it has deferred, if its code can be exchanged.
    pub tickets: Mutex<Vec<Weak<Ticket>>>,
    /// Held while its code is exchanged.
    pub reloading: Mutex<()>,
}

impl Link {
    /// Messages that wait for a turn.
    pub fn queued(&self) -> usize {
        self.strands.queued() + self.gate.as_ref().map_or(0, |gate| gate.queued())
    }
}

/// A message that has its turn on its strand and waits for the plugin's other calls.
pub(super) type Gated = (Kept, Permit<Kept>);

/// The right to call a plugin for a message.
pub(super) struct Pass {
    pub strand: Permit<Kept>,
    pub gate: Option<Permit<Gated>>,
}

/// What is known of how long a plugin's calls take, as a decaying mean over the last hundred or so. Threads that meet may
/// lose each other's sample.
#[derive(Default)]
pub(super) struct Pace {
    /// Of the calls, those that took longer than the bound; in 1/65536.
    overran: AtomicU32,
    /// Of those that do not, in nanoseconds.
    mean: AtomicU64,
    blocks: AtomicBool,
}

impl Pace {
    const ONE: u32 = 1 << 16;
    /// From this share on (1 %) it is cheaper to call it on another thread than to be called away now and then ...
    const BLOCKS: u32 = Self::ONE / 100;
    /// ... until it is below this.
    const SHORT: u32 = Self::ONE / 400;

    /// `overran`: it took longer than the bound. `counted`: that is known of the call already.
    pub fn record(&self, took: Duration, overran: bool, counted: bool) {
        // The mean is of the others: one call of seconds would hide for a hundred more that they are short, and each of
        // those would cost a promotion.
        if !overran {
            let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            let mean = self.mean.load(Ordering::Relaxed);
            let next = mean - mean / 16 + took / 16;
            if next != mean {
                self.mean.store(next, Ordering::Relaxed);
            }
        }
        self.share(overran && !counted);
    }

    pub fn share(&self, overran: bool) {
        let share = self.overran.load(Ordering::Relaxed);
        if share == 0 && !overran {
            return;
        }
        let share = share - share.div_ceil(128) + u32::from(overran) * (Self::ONE / 128);
        self.overran.store(share, Ordering::Relaxed);
        let blocks = self.blocks.load(Ordering::Relaxed);
        if blocks != (share >= if blocks { Self::SHORT } else { Self::BLOCKS }) {
            self.blocks.store(!blocks, Ordering::Relaxed);
        }
    }

    /// So many of its calls take long that each is taken for one that does.
    pub fn blocks(&self) -> bool {
        self.blocks.load(Ordering::Relaxed)
    }

    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.mean.load(Ordering::Relaxed))
    }
}

/// The plugins in the order in which a request meets them.
#[derive(Default)]
pub(super) struct Chain(Vec<Link>);

impl Chain {
    /// Puts a plugin behind those of its phase.
    pub fn insert(&mut self, link: Link) {
        let place = self.0.partition_point(|other| other.plugin.phase <= link.plugin.phase);
        self.0.insert(place, link);
    }

    /// The first link at or behind `step` that wants the method, with its place.
    pub fn next(&self, step: usize, method: Method<'_>) -> Option<(usize, &Link)> {
        let rest = self.0.get(step..)?;
        let found = rest.iter().position(|link| link.plugin.methods.contains(method))?;
        Some((step + found, &rest[found]))
    }

    pub fn links(&self) -> &[Link] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_blocks_when_more_than_one_call_in_a_hundred_does() {
        let pace = Pace::default();
        let (short, long) = (Duration::from_micros(5), Duration::from_millis(5));
        for _ in 0..50 {
            pace.record(short, false, false);
        }
        assert!(pace.mean() <= short && pace.mean() > short / 2);
        pace.record(long, true, false);
        assert!(!pace.blocks(), "one call says nothing yet");
        assert!(pace.mean() <= short, "and nothing of how long the others take");
        pace.record(long, true, true);
        assert!(!pace.blocks(), "it was counted when it was found");
        pace.record(long, true, false);
        assert!(pace.blocks());
        for _ in 0..400 {
            pace.record(short, false, false);
        }
        assert!(!pace.blocks(), "it is forgotten");
        for n in 0..10_000 {
            pace.record(short, n % 1000 == 0, false);
            assert!(!pace.blocks(), "one in a thousand is cheaper taken over");
        }
    }

    #[test]
    fn method_lists() {
        let some = Methods::parse("REGISTER, OPTIONS,X-FOO").unwrap();
        for (name, inside) in
            [("REGISTER", true), ("OPTIONS", true), ("X-FOO", true), ("register", false), ("X-F", false)]
        {
            assert_eq!(some.contains(Method::from_bytes(name.as_bytes())), inside, "{name}");
        }
        assert!(Methods::all().contains(Method::from_bytes(b"WHATEVER")));
        let most = Methods::parse("!REGISTER,X-FOO").unwrap();
        for (name, inside) in [("REGISTER", false), ("OPTIONS", true), ("X-FOO", false), ("X-F", true)] {
            assert_eq!(most.contains(Method::from_bytes(name.as_bytes())), inside, "all but: {name}");
        }
        for bad in ["", ",", "!", "REGISTER,,OPTIONS", "REG ISTER", "a@b", "é"] {
            assert!(Methods::parse(bad).is_err(), "{bad}");
        }
    }
}
