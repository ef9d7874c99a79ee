//! Plugins and the chain that a request goes through: by phase, then in order of registration, each plugin for the methods
//! that it named. The chain is fixed when the engine starts, so reading it takes no lock.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::ffi::Error;
use crate::observe::{Counter, Histogram};
use crate::sched::StrandSet;
use crate::sip::Method;

use super::exchange::{Exchange, Kept};

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
}

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
            let without = Methods::parse(list)?;
            return Ok(Methods { known: !without.known, others: without.others, rest: true });
        }
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
    pub deadline: Duration,
    pub calls: Counter,
    pub refused: Counter,
    pub run: Histogram,
    /// Until when it counts as one that blocks, in milliseconds of the engine's life; 0: never did.
    pub slow_until: AtomicU64,
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
        for bad in ["", ",", "!", "!!X", "REGISTER,,OPTIONS", "REG ISTER", "a@b", "é"] {
            assert!(Methods::parse(bad).is_err(), "{bad}");
        }
    }
}
