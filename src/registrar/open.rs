//! How a registrar is opened, and how its database is reached when that comes later.
//!
//! Promises: what is wrong with the options or the tables is said before a thread runs; a database that is away holds
//! nothing up, and when it comes its tables are checked or made before anything else is done there; no row is read before
//! the spool of an earlier run is in the database.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::auth::Authenticator;
use super::cache::{Cache, Policy};
use super::flows::Flows;
use super::loader::Loader;
use super::partition::Partition;
use super::spool::Spool;
use super::store::{self, Kind, Session, Store, StoreError, Widths};
use super::users::Users;
use super::writer::Writer;
use super::{Counters, Mode, Options, Registrar, Shared, Sink, Threads, system_clock};

/// What a database that is there says.
#[derive(Default)]
struct Found {
    /// Where the table takes less than ours.
    widths: Option<Widths>,
    /// One for each writer.
    sessions: Vec<Option<Box<dyn Session>>>,
}

fn reach(store: &dyn Store, writers: usize) -> Result<Found, StoreError> {
    store.prepare()?;
    let widths = Some(store.widths()?).filter(|widths| *widths != Widths::default());
    let sessions = (0..writers).map(|_| store.connect().map(Some)).collect::<Result<_, _>>()?;
    Ok(Found { widths, sessions })
}

/// Whether it may come by itself.
fn is_away(store: &dyn Store, error: &StoreError) -> bool {
    store.is_remote() && matches!(error.kind(), Kind::Unreachable | Kind::Lost)
}

impl<W: Send + 'static> Registrar<W> {
    /// Checks the options, connects, checks or creates the tables and starts the threads. Blocks. Every failure is one
    /// sentence. A database that is away (MySQL only) is none: it is reached later, and until then requests are answered
    /// as docs/storage.md says.
    pub fn open(options: Options, sink: impl Sink<W>) -> Result<Registrar<W>, StoreError> {
        Self::open_at(options, sink, system_clock)
    }

    /// With another clock than the system's: seconds since the epoch, asked by the registrar's own threads.
    pub fn open_at(options: Options, sink: impl Sink<W>, clock: fn() -> u32) -> Result<Registrar<W>, StoreError> {
        options.check()?;
        let store = match options.url.as_str() {
            "" => None,
            url => {
                let mut how = options.store.clone();
                how.durable &= options.mode == Mode::WriteThrough;
                Some(store::open(url, &how)?)
            }
        };
        let writes = options.mode != Mode::Memory;
        let mut found = Found::default();
        let mut unreached = false;
        if let Some(store) = &store {
            let proposed = if options.writers == 0 { store.writers() } else { options.writers };
            let writers = if writes { proposed } else { 0 };
            match reach(&**store, writers) {
                Ok(there) => found = there,
                Err(e) if is_away(&**store, &e) => {
                    tracing::warn!(place = %store.place(), "starting without the database, which is away: {e}");
                    unreached = true;
                    found.sessions.resize_with(writers, || None);
                }
                Err(e) => return Err(e),
            }
        }
        let mut sessions = found.sessions;
        let spool = match &store {
            Some(store) if !options.spool.is_empty() && writes => {
                Some(Spool::open(&options.spool, &store.place(), options.spool_limit)?)
            }
            _ => None,
        };
        let owes = spool.as_ref().is_some_and(|spool| spool.held() > 0);
        let shared = Arc::new(Shared {
            cache: Cache::new(options.shards, !writes, options.store.shared),
            users: Users::new(options.user_cache, options.user_ttl, options.no_user_ttl),
            flows: Flows::default(),
            authenticator: Authenticator::new(&options),
            partitions: sessions.iter().map(|_| Partition::new()).collect(),
            loader: Loader::new(),
            sink: Box::new(sink),
            counters: Counters::default(),
            closing: AtomicBool::new(false),
            stop: Mutex::new(()),
            stopped: Condvar::new(),
            store,
            spool,
            widths: found.widths.map_or_else(OnceLock::new, OnceLock::from),
            unreached: unreached.into(),
            reaching: Mutex::new(false),
            owes: owes.into(),
            replaying: Mutex::default(),
            clock,
            options,
        });
        if let Some(spool) = shared.spool.as_ref().filter(|spool| spool.held() > 0) {
            // Before anybody reads a row: what an earlier run owes comes first.
            let left = spool.held();
            if unreached {
                tracing::warn!(changes = left, "the spool of an earlier run waits for the database");
            } else {
                match Writer::new(&shared, 0, sessions[0].take()).replay_at_start(spool) {
                    Ok(session) => {
                        sessions[0] = session;
                        shared.owes.store(false, Ordering::Release);
                        tracing::info!(changes = left, "the spool of an earlier run is replayed");
                    }
                    Err(e) if shared.store.as_ref().is_some_and(|store| is_away(&**store, &e)) => {
                        tracing::warn!(place = %shared.place(), "the database went away: {e}");
                    }
                    Err(e) => return Err(e),
                }
            }
            if shared.owes.load(Ordering::Acquire) {
                shared.partitions.iter().for_each(Partition::begin_spooling);
            }
        }
        let mut threads = Threads::default();
        for (me, session) in sessions.into_iter().enumerate() {
            let shared = shared.clone();
            threads.writers.push(spawn("writer", move || Writer::new(&shared, me, session).run())?);
        }
        let over = Arc::new(AtomicBool::new(false));
        if shared.policy() == Policy::Now && shared.spool.is_some() {
            let (shared, over) = (shared.clone(), over.clone());
            let run = move || shared.spool.iter().for_each(|spool| shared.run_spooler(spool, &over));
            threads.others.push(spawn("spooler", run)?);
        }
        let registrar = Registrar { shared, threads: Mutex::new(threads), over };
        let start = |name, run: fn(&Shared<W>)| -> Result<(), StoreError> {
            let shared = registrar.shared.clone();
            registrar.threads.lock().others.push(spawn(name, move || run(&shared))?);
            Ok(())
        };
        start("timer", |shared| shared.run_timer())?;
        if registrar.shared.store.is_some() {
            start("loader", |shared| shared.run_loader(None))?;
        }
        if writes && registrar.shared.options.preload {
            start("preload", |shared| shared.run_preload(None))?;
        }
        if writes && registrar.shared.options.store.shared {
            start("peers", |shared| shared.run_peers())?;
        }
        Ok(registrar)
    }
}

impl<W> Shared<W> {
    /// A connection for a writer.
    pub(super) fn connect(&self) -> Result<Box<dyn Session>, StoreError> {
        let Some(store) = &self.store else {
            return Err(StoreError::new(Kind::Config, "there is no database"));
        };
        if self.unreached() {
            self.reach_late(&**store)?;
        }
        store.connect()
    }

    /// A connection for who reads: not before what an earlier run owes is written.
    pub(super) fn connect_to_read(&self) -> Result<Box<dyn Session>, StoreError> {
        if self.owes.load(Ordering::Acquire) {
            return Err(StoreError::new(Kind::Unreachable, "the spool of an earlier run is not replayed yet"));
        }
        self.connect()
    }

    fn reach_late(&self, store: &dyn Store) -> Result<(), StoreError> {
        // Each attempt may take `connect_timeout`; they are not to add up.
        let Some(mut said) = self.reaching.try_lock() else {
            return Err(StoreError::new(Kind::Unreachable, "the database was not reached yet"));
        };
        if !self.unreached() {
            return Ok(());
        }
        match reach(store, 0) {
            Ok(found) => {
                if let Some(widths) = found.widths {
                    self.widths.get_or_init(|| widths);
                }
                self.unreached.store(false, Ordering::Release);
                tracing::info!(place = %store.place(), "the database is reached");
                Ok(())
            }
            Err(e) => {
                if !is_away(store, &e) && !std::mem::replace(&mut *said, true) {
                    tracing::error!(place = %store.place(), "the database is there, but cannot be used: {e}");
                }
                Err(e)
            }
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    std::thread::Builder::new()
        .name(format!("partyline-{name}"))
        .spawn(run)
        .map_err(|e| StoreError::new(Kind::Unreachable, format!("cannot start the registrar's {name} thread: {e}")))
}
