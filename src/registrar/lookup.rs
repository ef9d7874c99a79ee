//! Look-ups: what an address-of-record has, asked for by a program and not by a REGISTER.
//!
//! Promise: what the cache knows costs one shard's lock; else the caller waits, or takes a ticket.

use std::sync::Arc;
use std::time::Instant;

use super::loader::{Gate, Waiter, What};
use super::store::{Kind, StoreError};
use super::{BindingView, LoadTicket, Registrar, rules};

impl<W: Send + 'static> Registrar<W> {
    /// Calls `each` with the bindings of an address-of-record ([`crate::sip::AorKey`]'s bytes), highest q first, and
    /// returns their number. Under the lock of a shard: `each` must not call the registrar. When the cache does not know
    /// the address-of-record the calling thread blocks until it is read, at most `commit_timeout`.
    pub fn lookup(&self, aor: &[u8], now: u32, mut each: impl FnMut(&BindingView<'_>)) -> Result<usize, StoreError> {
        loop {
            if let Some(count) = self.try_lookup(aor, now, &mut each) {
                return Ok(count);
            }
            self.wait_for(LoadTicket { what: What::Bindings, key: aor })?;
        }
    }

    /// Reads what a request misses while the calling thread waits, at most `commit_timeout`. For callers that have a thread
    /// of their own; all others [`Registrar::load`].
    pub fn wait_for(&self, ticket: LoadTicket<'_>) -> Result<(), StoreError> {
        let shared = &*self.shared;
        let gate = Arc::new(Gate::default());
        let deadline = Instant::now() + shared.options.commit_timeout;
        let waiter = Waiter::Thread(gate.clone());
        if shared.loader.ask(ticket.what, ticket.key, waiter, deadline, shared.options.load_queue).is_err() {
            return Err(StoreError::new(Kind::Timeout, "too many requests wait for the database"));
        }
        gate.wait()
    }

    /// As [`Registrar::lookup`] without waiting: `None` when the cache does not know the address-of-record;
    /// [`Registrar::miss`] gives the ticket for [`Registrar::load`].
    pub fn try_lookup(&self, aor: &[u8], now: u32, mut each: impl FnMut(&BindingView<'_>)) -> Option<usize> {
        let shared = &*self.shared;
        let spot = shared.cache.spot(aor);
        let shard = shared.cache.lock(spot.shard);
        let complete = shared.cache.complete();
        // While the database was not reached what is known of a partial record is better than nothing.
        let whole = |slot: &u32| complete || shared.unreached() || !shard.is_partial(*slot);
        let Some(slot) = shard.find(spot.tag, aor).filter(whole) else {
            if complete {
                shared.counters.hits.inc()
            } else {
                shared.counters.misses.inc()
            }
            return complete.then_some(0);
        };
        shared.counters.hits.inc();
        let bindings = shard.bindings(slot);
        let (mut few, mut many) = ([0; 64], Vec::new());
        let order = rules::in_order(bindings, now, &mut few, &mut many);
        for index in order {
            each(&shard.view(&bindings[usize::from(*index)]));
        }
        Some(order.len())
    }

    /// The ticket to have an address-of-record loaded that [`Registrar::try_lookup`] did not know.
    pub fn miss<'a>(&self, aor: &'a [u8]) -> LoadTicket<'a> {
        LoadTicket { what: What::Bindings, key: aor }
    }
}
