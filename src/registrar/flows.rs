//! Contacts that live as long as the connection they were registered over (option `connection_bound`): a phone behind NAT
//! whose connection is gone cannot be reached by a new one.
//!
//! ```text
//!   shards: hash of source -> Mutex<{ source -> [address-of-record] }>      source: "sip:192.0.2.1:40000;transport=tcp"
//! ```
//! Promise: what was registered over a connection before it closed is removed when it closes, for other servers on the same
//! table too; a binding that was refreshed from elsewhere meanwhile stays. Costs nothing for those that do not come over connections.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::cache::{Binding, Policy, Removal};
use super::{Registrar, Shared};
use crate::sip::KeyHasher;
use crate::sip::uri::Uri;

const SHARDS: usize = 64;

type Bound = HashMap<Box<[u8]>, Vec<Box<[u8]>>, KeyHasher>;

pub(super) struct Flows {
    hasher: KeyHasher,
    shards: Box<[Mutex<Bound>]>,
}

impl Default for Flows {
    fn default() -> Self {
        Flows { hasher: KeyHasher::new(), shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Flows {
    fn shard(&self, source: &[u8]) -> &Mutex<Bound> {
        &self.shards[self.hasher.hash(source) as usize % SHARDS]
    }
}

/// Whether the binding was made over the connection with this source.
fn came_from(binding: &Binding, source: &[u8]) -> bool {
    let received = binding.received();
    if !received.is_empty() {
        return received == source;
    }
    // The contact names the connection's own address, or `received` would say so.
    let (Ok(contact), Ok(source)) = (Uri::parse(binding.contact()), Uri::parse(source)) else { return false };
    binding.socket().starts_with(b"tcp:")
        && contact.host.eq_ignore_ascii_case(source.host)
        && contact.port_or_default() == source.port_or_default()
}

impl<W: Send + 'static> Registrar<W> {
    /// A REGISTER for `aor` was answered over the connection from `source`, which is written as `received` would be. To be
    /// called with the option `connection_bound` only.
    pub fn bind(&self, source: &[u8], aor: &[u8]) {
        let mut shard = self.shared.flows.shard(source).lock();
        if let Some(bound) = shard.get_mut(source) {
            if !bound.iter().any(|other| **other == *aor) {
                bound.push(aor.into());
            }
            return;
        }
        shard.insert(source.into(), vec![aor.into()]);
    }

    /// The connection from `source` has closed: what was registered over it goes. Returns how many bindings did. Waits for
    /// no database: as after an expiry the writer fetches the deletions.
    pub fn unbind(&self, source: &[u8]) -> usize {
        let bound = self.shared.flows.shard(source).lock().remove(source).unwrap_or_default();
        bound.iter().map(|aor| self.shared.unbind(source, aor)).sum()
    }

    /// Connections that have something bound to them.
    pub fn bound(&self) -> usize {
        self.shared.flows.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

impl<W> Shared<W> {
    fn unbind(&self, source: &[u8], aor: &[u8]) -> usize {
        let policy = if self.policy() == Policy::Never { Policy::Never } else { Policy::Later };
        let spot = self.cache.spot(aor);
        let mut shard = self.cache.lock(spot.shard);
        let Some(slot) = shard.find(spot.tag, aor) else { return 0 };
        // As the request that made the binding: not what has replaced it elsewhere is removed. A second back, so that a client
        // that comes back to another server in this very second is the newer.
        let now = (self.clock)().saturating_sub(1);
        let mut gone = 0;
        for index in (0..shard.bindings(slot).len()).rev() {
            let binding = &shard.bindings(slot)[index];
            if binding.alive(0) && came_from(binding, source) {
                let call_id = binding.call_id().to_vec();
                let by = Removal { call_id: &call_id, cseq: binding.cseq, now: now.max(binding.modified) };
                shard.bury(slot, index, by, policy, &mut |_| ());
                gone += 1;
            }
        }
        self.settle(&mut shard, slot, spot.shard);
        gone
    }
}
