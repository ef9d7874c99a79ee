//! The registrar: the rules of RFC 3261 section 10.3 over a cache of bindings, and a database behind the cache.
//!
//! ```text
//!   engine:  register() -> Answered | Rejected      the answer is written; send it
//!                       -> Durable(ticket)          the answer is written; hold it:  submit(ticket, W), kick()
//!                       -> Miss(ticket)             keep the message:                load(ticket, W)
//!   sink:    committed(W.., Ok)  send the answers   committed(W.., Err)  503 instead
//!            loaded(W.., Ok)     register() again   loaded(W.., Err)     503
//!
//!   rules    what a request does to the bindings          cache    bindings, expiry, what the database has still to know
//!   writer   packs changes into transactions, one thread per connection        loader   reads what the cache does not know
//!   spool    keeps what was acknowledged while the database is away (write_through)
//!   store    the trait, SQLite and MySQL                  users, auth          who somebody is
//! ```
//! Promises to the engine: `register` takes one shard's lock, waits for no database and allocates only when text has to be
//! kept that was not there before; every rule is checked before anything changes; a waiter comes back exactly once; the
//! sink is called from threads of the registrar and under none of its locks. Threads inherit the signal mask of the one
//! that calls [`Registrar::open`].
#![deny(unsafe_code)]

mod auth;
mod authorize;
mod cache;
mod flows;
pub mod import;
mod loader;
mod lookup;
mod metrics;
mod open;
mod options;
mod partition;
mod peers;
mod reply;
mod request;
mod rules;
mod spool;
mod spooler;
pub mod store;
mod timer;
mod users;
mod writer;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::sip::{AorKey, HeaderName};
use auth::Authenticator;
use cache::{Cache, Policy, Removal, Shard};
use flows::Flows;
use loader::{Loader, Waiter, What};
use partition::Partition;
use rules::Step;
use spool::Spool;
use store::{Kind, Misfit, Store, StoreError, Widths};
use users::Users;

pub(crate) use cache::Spot;
pub use cache::{BindingView, State};
pub use metrics::Counters;
pub use options::{AuthMode, Mode, Options, PathMode, WhenBrief, WhenFull};
pub use partition::Ticket;
pub use reply::{ReplyWriter, SipReply};
pub use request::{Contact, Extensions, FirstHop, MAX_REQUEST_CONTACTS, RegisterRequest, Registration};
pub use rules::{Extra, Rejection};

/// Where waiters come back. Called from threads of the registrar, under none of its locks; it may call the registrar.
/// What it leaves in the vector is dropped. It must not panic: that would end a writer.
pub trait Sink<W>: Send + Sync + 'static {
    /// The changes of these requests are committed; or they are not known to be, and the answer is 503 with Retry-After.
    fn committed(&self, waiters: &mut Vec<W>, result: Result<(), &StoreError>);
    /// The cache knows now what these requests need: each is to be run again. Or it could not be read: 503.
    fn loaded(&self, waiters: &mut Vec<W>, result: Result<(), &StoreError>);
}

/// What became of a REGISTER.
#[derive(Debug)]
#[must_use]
pub enum Outcome<'a> {
    /// The answer is written, with this status.
    Answered(u16),
    /// Refused; the answer is written, with the status of [`Rejection::answer`].
    Rejected(Rejection),
    /// The answer (200) is written and must be held until the sink says that it is committed: [`Registrar::submit`].
    Durable(Ticket),
    /// Nothing is written: the cache has to be filled first, [`Registrar::load`].
    Miss(LoadTicket<'a>),
}

/// What became of a request's credentials.
#[derive(Debug)]
#[must_use]
pub enum Auth<'a> {
    /// Go on with [`Registrar::register`]. When that is a miss, the message that comes back is not authorised again: its
    /// credentials count once.
    Ok,
    /// This very request was let in before: register its [`RegisterRequest::as_query`].
    Again,
    /// 401 is written.
    Challenge,
    /// The answer is written (403, 404 or 400).
    Rejected(Rejection),
    /// Nothing is written: the user has to be read first, [`Registrar::load`]; then authorise again.
    Miss(LoadTicket<'a>),
}

/// What has to be read before a request can be decided.
#[derive(Debug)]
#[must_use]
pub struct LoadTicket<'a> {
    what: What,
    key: &'a [u8],
}

pub(crate) struct Shared<W> {
    options: Options,
    clock: fn() -> u32,
    cache: Cache,
    users: Users,
    flows: Flows,
    authenticator: Option<Authenticator>,
    store: Option<Arc<dyn Store>>,
    partitions: Box<[Partition<W>]>,
    spool: Option<Spool>,
    /// Where the table takes less than ours; known when the database was reached.
    widths: OnceLock<Widths>,
    /// The database was not reached yet.
    unreached: AtomicBool,
    /// Held by who tries to; whether it was said what is wrong.
    reaching: Mutex<bool>,
    /// The spool holds what an earlier run left: the database's rows are old until it is replayed.
    owes: AtomicBool,
    /// Held by the writer that does that.
    replaying: Mutex<()>,
    loader: Loader<W>,
    sink: Box<dyn Sink<W>>,
    counters: Counters,
    closing: AtomicBool,
    stop: Mutex<()>,
    stopped: Condvar,
}

impl<W> Shared<W> {
    fn policy(&self) -> Policy {
        match self.options.mode {
            Mode::Memory => Policy::Never,
            Mode::WriteBack => Policy::Later,
            Mode::WriteThrough => Policy::Now,
        }
    }

    fn partition_of(&self, shard: u32) -> Option<&Partition<W>> {
        self.partitions.get(shard as usize % self.partitions.len().max(1))
    }

    /// How many addresses-of-record without bindings a shard remembers.
    fn keep(&self) -> usize {
        if self.cache.complete() && !self.options.store.shared {
            0
        } else if !self.cache.complete() && self.options.preload {
            // While the table is streamed in nothing is forgotten: a row read earlier could bring it back.
            usize::MAX
        } else {
            // What a round of the loader brought in must still be there when its requests run again; and a poll that was
            // under way when a binding was removed must not bring it back.
            (self.options.known_empty / self.cache.shards() as usize).max(loader::ROUND)
        }
    }

    /// Whether a record's last change is in the database.
    fn durable(&self, index: u32) -> impl Fn(u32) -> bool + '_ {
        let matters = self.policy() == Policy::Now || !self.cache.complete() || self.options.store.shared;
        let partition = self.partition_of(index).filter(|_| matters);
        move |handed| partition.is_none_or(|partition| partition.is_stored(handed))
    }

    /// Lets go of a record that has no bindings, as far as that can be.
    fn settle(&self, shard: &mut Shard, slot: u32, index: u32) {
        if shard.bindings(slot).is_empty() {
            shard.settle(slot, self.keep(), &self.durable(index));
        }
    }

    fn place(&self) -> String {
        self.store.as_ref().map_or_else(String::new, |store| store.place())
    }

    fn unreached(&self) -> bool {
        self.unreached.load(Ordering::Acquire)
    }

    /// Whether bindings may be added to what the cache does not know: while the database was not reached yet, where a
    /// request needs nothing else to be answered.
    fn adds_unseen(&self) -> bool {
        self.unreached() && (self.options.mode == Mode::WriteBack || self.spool.is_some())
    }

    fn closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Waits, but not past the beginning of the end; true when that has come.
    fn pause(&self, time: std::time::Duration) -> bool {
        let until = Instant::now() + time;
        let mut guard = self.stop.lock();
        while !self.closing() {
            if self.stopped.wait_until(&mut guard, until).timed_out() {
                return self.closing();
            }
        }
        true
    }
}

/// Seconds since the epoch, by the system's clock.
pub fn system_clock() -> u32 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

/// The registrar. `W` is what the engine gives for a request that has to wait.
pub struct Registrar<W: Send + 'static> {
    shared: Arc<Shared<W>>,
    threads: Mutex<Threads>,
    /// The writers have ended.
    over: Arc<AtomicBool>,
}

#[derive(Default)]
struct Threads {
    writers: Vec<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
}

impl<W: Send + 'static> Registrar<W> {
    /// Decides a REGISTER and writes its answer. `now`: seconds since the epoch. Never blocks on a database.
    pub fn register<'a>(&self, request: &RegisterRequest<'a>, now: u32, reply: &mut impl ReplyWriter) -> Outcome<'a> {
        let shared = &*self.shared;
        if let Err(rejection) = rules::check(request, &shared.options) {
            return self.reject(rejection, reply);
        }
        match shared.widths.get().and_then(|widths| request.misfit(widths)) {
            None => {}
            Some(Misfit::TooLong(column)) => return self.reject(Rejection::TooLong(column), reply),
            Some(Misfit::Charset(column)) => return self.reject(Rejection::OtherCharset(column), reply),
        }
        let unpathed = RegisterRequest { path: b"", ..*request };
        let request = if shared.options.path == PathMode::Off { &unpathed } else { request };
        if shared.closing() && shared.options.mode != Mode::Memory {
            return self.reject(Rejection::StoreBusy { retry_after: shared.options.retry_after }, reply);
        }
        let spot = shared.cache.spot(request.aor);
        let mut guard = shared.cache.lock(spot.shard);
        let shard = &mut *guard;
        let found = shard.find(spot.tag, request.aor);
        let partial = !shared.cache.complete() && found.is_none_or(|slot| shard.is_partial(slot));
        if partial && !(shared.adds_unseen() && request.only_adds()) {
            shared.counters.misses.inc();
            return Outcome::Miss(LoadTicket { what: What::Bindings, key: request.aor });
        }
        shared.counters.hits.inc();
        let bindings = found.map_or(&[][..], |slot| shard.bindings(slot));
        let plan = match rules::plan(bindings, request, now, &shared.options) {
            Ok(plan) => plan,
            Err(rejection) => {
                drop(guard);
                return self.reject(rejection, reply);
            }
        };
        let weight = plan.weight(bindings.len());
        let policy = shared.policy();
        let mut ticket = None;
        let mut filling = None;
        if let (Policy::Now, Some(partition)) = (policy, shared.partition_of(spot.shard)) {
            // A retransmission, or a question about what is not committed yet, waits for it as the first request does.
            let waits = weight > 0 || found.is_some_and(|slot| !partition.is_done(shard.handed(slot)));
            if waits {
                let queue = partition.lock();
                if partition.refusing() || !queue.has_room(weight.max(1), shared.options.queue) {
                    drop((queue, guard));
                    let retry_after = shared.options.retry_after;
                    return self.reject(Rejection::StoreBusy { retry_after }, reply);
                }
                filling = Some(queue);
            }
        }
        let mut emit = |change: &store::Change<'_>| {
            if let Some(queue) = &mut filling {
                queue.push(change);
            }
        };
        let nothing_handed = || shared.partition_of(spot.shard).map_or(0, |partition| partition.nothing_handed());
        let slot = apply(shard, found, &plan, request, spot, now, policy, nothing_handed, &mut emit);
        if let Some(mut queue) = filling {
            let number = queue.ticket(true);
            ticket = Some(Ticket { partition: spot.shard % shared.partitions.len() as u32, number });
            if let Some(slot) = slot.filter(|_| weight > 0) {
                shard.set_handed(slot, number as u32);
            }
        }
        if let Some(slot) = slot.filter(|_| partial) {
            shard.set_partial(slot, true);
        }
        reply.start(200, "OK");
        let (options, supported) = (&shared.options, request.supported);
        if supported.gruu && options.gruu {
            reply.tell_gruu();
        }
        if let Some(slot) = slot {
            let bindings = shard.bindings(slot);
            let (mut few, mut many) = ([0; 64], Vec::new());
            for index in rules::in_order(bindings, now, &mut few, &mut many) {
                let binding = &bindings[usize::from(*index)];
                reply.contact(&shard.view(binding), binding.expires - now);
            }
            shared.settle(shard, slot, spot.shard);
        }
        drop(guard);
        if supported.path && !request.path.is_empty() {
            reply.copy(HeaderName::Path);
        }
        if rules::is_outbound(request, options) {
            reply.header(HeaderName::Require, b"outbound");
            if options.flow_timer > 0 {
                reply.number(HeaderName::FlowTimer, options.flow_timer);
            }
        }
        if !options.service_route.is_empty() {
            reply.header(HeaderName::ServiceRoute, options.service_route.as_bytes());
        }
        shared.counters.answered.inc();
        ticket.map_or(Outcome::Answered(200), Outcome::Durable)
    }

    fn reject<'a>(&self, rejection: Rejection, reply: &mut impl ReplyWriter) -> Outcome<'a> {
        self.shared.counters.rejected.inc();
        reply::refuse(&rejection, reply);
        Outcome::Rejected(rejection)
    }

    /// Who waits for a ticket. `Some`: it is committed already, the answer can be sent now. Otherwise the waiter goes to the
    /// sink. The writers are not woken: [`Registrar::kick`].
    pub fn submit(&self, ticket: Ticket, waiter: W) -> Option<W> {
        let shared = &*self.shared;
        let deadline = Instant::now() + shared.options.commit_timeout;
        match shared.partitions.get(ticket.partition as usize)?.submit(ticket, waiter, deadline) {
            None => None,
            Some((waiter, true)) => Some(waiter),
            Some((waiter, false)) => {
                let error = StoreError::new(Kind::Refused, "the change was refused, or the registrar is closed");
                shared.sink.committed(&mut vec![waiter], Err(&error));
                None
            }
        }
    }

    /// Wakes the writers that sleep and have something to do: once after a batch of `submit`s. Cheap when all are awake.
    pub fn kick(&self) {
        if self.shared.options.mode == Mode::WriteThrough {
            for partition in &self.shared.partitions {
                partition.kick();
            }
            if let Some(spool) =
                self.shared.spool.as_ref().filter(|_| self.shared.partitions.iter().any(|p| p.spooling()))
            {
                spool.bell.ring();
            }
        }
    }

    /// Where the cache holds an address-of-record ([`AorKey`]'s bytes), for [`Registrar::expect`].
    pub(crate) fn spot(&self, aor: &[u8]) -> Spot {
        let user = memchr::memrchr(b'@', aor).filter(|_| !self.shared.options.use_domain);
        self.shared.cache.spot(user.map_or(aor, |at| &aor[..=at]))
    }

    /// Requests for these are about to come: what the cache holds of them is read from memory for all at once. A guess; a
    /// wrong one costs only time.
    pub(crate) fn expect(&self, spots: &[Spot]) {
        self.shared.cache.fetch(spots);
    }

    /// Has the cache filled; the waiter comes back through the sink. `Err`: too many wait already, answer 503.
    pub fn load(&self, ticket: LoadTicket<'_>, waiter: W) -> Result<(), W> {
        let shared = &*self.shared;
        let deadline = Instant::now() + shared.options.commit_timeout;
        let asked =
            shared.loader.ask(ticket.what, ticket.key, Waiter::Engine(waiter), deadline, shared.options.load_queue);
        match asked {
            Err(Waiter::Engine(waiter)) => Err(waiter),
            _ => Ok(()),
        }
    }

    /// Whether a miss in the cache is known to mean that there are no bindings.
    pub fn complete(&self) -> bool {
        self.shared.cache.complete()
    }

    /// Bindings that are alive, by the cache. Locks each shard for a moment.
    pub fn bindings(&self) -> usize {
        self.shared.cache.levels().bindings
    }

    /// What is not in the database yet: addresses-of-record with changes, and changes on their way.
    pub fn unwritten(&self) -> usize {
        if self.shared.options.mode == Mode::Memory {
            return 0;
        }
        let queued: usize = self.shared.partitions.iter().map(|p| p.depth()).sum();
        let spooled = self.shared.spool.as_ref().map_or(0, |spool| spool.held() as usize);
        self.shared.cache.levels().dirty + queued + spooled
    }

    /// The key under which an address-of-record stands in the cache: without its domain where the options say so.
    pub fn key(&self, aor: &AorKey) -> AorKey {
        request::key(*aor, self.shared.options.use_domain).unwrap_or(*aor)
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// Removes what has expired. The registrar's own thread does this each second; for those who bring their own clock.
    pub fn expire(&self, now: u32) -> usize {
        self.shared.expire(now)
    }

    /// Writes what is still to be written, for at most `close_timeout`, and ends the threads. Requests from now on are
    /// answered 503 where they would have to wait. Safe to call more than once.
    pub fn close(&self) {
        let shared = &*self.shared;
        {
            let _guard = shared.stop.lock();
            shared.closing.store(true, Ordering::Release);
        }
        shared.stopped.notify_all();
        shared.loader.begin_close();
        let deadline = Instant::now() + shared.options.close_timeout;
        for partition in &shared.partitions {
            partition.begin_close(deadline);
        }
        let threads = std::mem::take(&mut *self.threads.lock());
        let join = |threads: Vec<JoinHandle<()>>| {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a thread of the registrar panicked");
                }
            }
        };
        join(threads.writers);
        self.over.store(true, Ordering::Release);
        if let Some(spool) = &shared.spool {
            spool.bell.ring();
        }
        join(threads.others);
    }
}

impl<W: Send + 'static> Drop for Registrar<W> {
    fn drop(&mut self) {
        self.close();
    }
}

/// Carries a plan out. Returns the record, if there is one now.
#[allow(clippy::too_many_arguments, reason = "one caller; a struct would only repeat the names")]
fn apply(
    shard: &mut Shard,
    found: Option<u32>,
    plan: &rules::Plan,
    request: &RegisterRequest<'_>,
    spot: Spot,
    now: u32,
    policy: Policy,
    nothing_handed: impl Fn() -> u32,
    emit: &mut dyn FnMut(&store::Change<'_>),
) -> Option<u32> {
    let mut slot = found;
    for (contact, step) in request.contacts.iter().zip(plan.steps()) {
        if let Step::Put { expires } = *step {
            let slot = *slot.get_or_insert_with(|| shard.create(spot.tag, request.aor, nothing_handed()));
            shard.put(slot, &request.row(contact, now, expires), policy, emit);
        }
    }
    let slot = slot?;
    let by = Removal { call_id: request.call_id, cseq: request.cseq, now };
    if plan.all {
        for index in (0..shard.bindings(slot).len()).rev() {
            shard.bury(slot, index, by, policy, emit);
        }
    }
    for index in plan.removed() {
        shard.bury(slot, usize::from(*index), by, policy, emit);
    }
    Some(slot)
}
