//! A running server out of the rooms above: options, listeners, the plugin chain, the registrar; start, drain, stop.
//!
//! ```text
//! Engine ── control: options, listen, plug, start, stop          (one lock, never on a message's way)
//!   └─ Arc<Core> ── what a message meets: chain, registrar, tags (read only while it runs)
//!        ▲   └─ Weak<Pool>
//!        │ Source
//!      Pool (leader/follower, group IO)     Pool (group WORKER)     Clockwork (timers, kept by the leader)
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `config`, `sockets`, `registrar_settings`, `settings` | options by name |
//! | `plugin` | plugins and their chain |
//! | `reload` | exchanging a plugin's code |
//! | `exchange` | a message in hand, kept, or deferred |
//! | `core` | what all threads share; putting a message on a thread |
//! | `intake` | the leader's reading of batches |
//! | `backlog` | what waits behind the calls of a batch |
//! | `walk` | a message's way through the chain |
//! | `bindings` | the registrar's side: held answers, commits, look-ups |
//! | `count` | figures |
//! | `listen` | addresses, certificates, watchers, sending |
#![deny(unsafe_code)]

mod backlog;
mod bindings;
mod config;
mod core;
mod count;
mod exchange;
mod intake;
mod listen;
mod plugin;
mod registrar_settings;
mod reload;
mod settings;
mod sockets;
mod walk;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use self::core::{Core, Sockets};
use crate::ffi::{Code, Error, fork::Birth};
use crate::net::{Reactor, StreamEvents, StreamOptions, Streams, TcpAcceptor, TlsClient, TlsServer, UdpListener};
use crate::observe::{Text, log};
use crate::sched::{
    Cancel, Clockwork, GroupId, Groups, Options as PoolOptions, Patrol, Pool, Source, Task, TimerCall, TimerId, Why,
};

pub use bindings::{Bindings, Found, Held, RegistrarOptions, flush, forget_user, lookup, open_registrar};
pub use config::{Config, options_document, set_registrar_option};

pub use exchange::{Exchange, Ticket, UriOf, UriParts};
pub use listen::{Watchers, not_sent};
pub use plugin::{Handler, Methods, Phase, Plugin, Policy, Switch, Verdict};

/// A closure for a thread group.
pub type Event = Box<dyn FnOnce() + Send>;

/// The thread groups that C code may post to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Io,
    Worker,
    Log,
}

impl Group {
    fn id(self) -> GroupId {
        match self {
            Group::Io => GroupId::IO,
            Group::Worker => GroupId::WORKER,
            Group::Log => GroupId::LOG,
        }
    }
}

/// See the module.
pub struct Engine {
    birth: Birth,
    stage: Mutex<Stage>,
    stopped: Condvar,
    /// The certificates of its TLS addresses.
    tls: Mutex<Option<Arc<TlsServer>>>,
}

enum Stage {
    Setup(Box<Setup>),
    Running(Arc<Running>),
    Stopping(Arc<Running>),
    Stopped(Option<Arc<Running>>),
}

#[derive(Default)]
struct Setup {
    config: Config,
    udp: Vec<UdpListener>,
    tcp: Vec<TcpAcceptor>,
    watchers: Watchers,
    plugins: Vec<Plugin>,
    registrar: Option<Arc<Bindings>>,
}

struct Running {
    core: Arc<Core>,
    groups: Arc<Groups>,
    clock: Arc<Clockwork>,
    /// Ends with the engine.
    _patrol: Option<Patrol>,
}

/// What is known of one plugin; see `partyline_plugin_stats`.
#[derive(Debug, Default, Clone, Copy)]
pub struct PluginFigures {
    pub calls: u64,
    pub running: u64,
    pub queued: u64,
    pub refused: u64,
    pub overdue: u64,
    /// The longest call of the overdue ones that have ended.
    pub longest: Duration,
    /// Quantiles 0.5 and 0.99 of the time that messages waited, of those that did, and that calls ran.
    pub wait: [Duration; 2],
    pub run: [Duration; 2],
    /// Its calls are made on threads that do not lead.
    pub blocks: bool,
    /// How often leadership changed hands for its calls.
    pub promotions: u64,
}

/// Counts for programs; see `partyline_stats`.
#[derive(Debug, Default, Clone, Copy)]
pub struct Figures {
    pub threads: u32,
    pub received: u64,
    pub sent: u64,
    pub answered: u64,
    pub dropped: u64,
    pub malformed: u64,
    pub send_errors: u64,
    pub overload: u64,
    pub deferred: u64,
    pub promotions: u64,
    pub plugin_calls: u64,
    pub bindings: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
    pub selects: u64,
    pub rows_written: u64,
    pub commits: u64,
    pub database_errors: u64,
}

impl Engine {
    #[allow(clippy::new_ret_no_self)]
    pub fn new() -> Arc<Engine> {
        Arc::new(Engine {
            birth: Birth::here(),
            stage: Mutex::new(Stage::Setup(Box::default())),
            stopped: Condvar::new(),
            tls: Mutex::new(None),
        })
    }

    /// An error in a forked child, whose threads are in the parent.
    pub fn check_process(&self) -> Result<(), Error> {
        self.birth.check("engine")
    }

    /// An error on a thread of this engine, which cannot wait for its own end.
    pub fn check_caller(&self) -> Result<(), Error> {
        match self.running() {
            Ok(running) if self.birth.check("").is_ok() && running.is_member() => {
                Err(Error::new(Code::State, "called on one of the engine's own threads: it cannot wait for itself"))
            }
            _ => Ok(()),
        }
    }

    fn setup<R>(&self, change: impl FnOnce(&mut Setup) -> Result<R, Error>) -> Result<R, Error> {
        match &mut *self.stage.lock() {
            Stage::Setup(setup) => change(setup),
            _ => Err(Error::new(Code::State, "the engine was started: this is done before")),
        }
    }

    fn running(&self) -> Result<Arc<Running>, Error> {
        match &*self.stage.lock() {
            Stage::Running(running) | Stage::Stopping(running) => Ok(Arc::clone(running)),
            Stage::Setup(_) => Err(Error::new(Code::State, "the engine is not started yet")),
            Stage::Stopped(_) => Err(Error::new(Code::State, "the engine was stopped")),
        }
    }

    pub fn set(&self, name: &str, value: &str) -> Result<(), Error> {
        self.setup(|setup| config::set_engine_option(&mut setup.config, name, value))
    }

    pub fn attach(&self, registrar: Arc<Bindings>) -> Result<(), Error> {
        self.setup(|setup| {
            if setup.registrar.replace(registrar).is_some() {
                return Err(Error::new(Code::State, "a registrar is attached already"));
            }
            Ok(())
        })
    }

    pub fn plug(&self, plugin: Plugin) -> Result<(), Error> {
        if plugin.name.is_empty() || plugin.name.len() > 64 {
            return Err(Error::invalid("a plugin's name has 1 to 64 bytes"));
        }
        self.setup(|setup| {
            if setup.plugins.iter().any(|other| other.name == plugin.name) {
                return Err(Error::invalid(format!("there is a plugin named {} already", plugin.name)));
            }
            setup.plugins.push(plugin);
            Ok(())
        })
    }

    /// Starts the threads.
    pub fn start(&self) -> Result<(), Error> {
        let mut stage = self.stage.lock();
        let setup = match &mut *stage {
            Stage::Setup(setup) => setup,
            Stage::Stopped(_) => return Err(Error::new(Code::State, "the engine was stopped: make a new one")),
            _ => return Err(Error::new(Code::State, "the engine runs already")),
        };
        if setup.udp.is_empty() && setup.tcp.is_empty() {
            return Err(Error::new(Code::State, "the engine has no listener: call partyline_engine_listen first"));
        }
        if setup.config.threads_min > setup.config.threads_max {
            let (min, max) = (setup.config.threads_min, setup.config.threads_max);
            return Err(Error::new(Code::Config, format!("threads.min is {min} and threads.max {max}")));
        }
        *stage = Stage::Running(Arc::new(Running::start(*std::mem::take(setup))?));
        Ok(())
    }

    /// Starts if need be, and waits for the stop.
    pub fn run(&self) -> Result<(), Error> {
        self.check_caller()?;
        let started = matches!(&*self.stage.lock(), Stage::Setup(_));
        if started {
            self.start()?;
        }
        let mut stage = self.stage.lock();
        while !matches!(&*stage, Stage::Stopped(_)) {
            self.stopped.wait(&mut stage);
        }
        Ok(())
    }

    /// See `partyline_engine_stop`.
    pub fn stop(self: &Arc<Self>, drain: Duration) -> Result<usize, Error> {
        let running = {
            let mut stage = self.stage.lock();
            let running = match &*stage {
                Stage::Running(running) => Arc::clone(running),
                Stage::Stopping(_) => return Ok(0),
                Stage::Setup(_) => return Err(Error::new(Code::State, "the engine is not started yet")),
                Stage::Stopped(_) => return Err(Error::new(Code::State, "the engine was stopped already")),
            };
            *stage = Stage::Stopping(Arc::clone(&running));
            running
        };
        if running.is_member() {
            // Its own threads have to end for this, so somebody else waits for them.
            let engine = Arc::clone(self);
            let spawned = std::thread::Builder::new().name("pl-stop".into()).spawn(move || {
                engine.finish(running, drain);
            });
            return spawned.map(|_| 0).map_err(|e| Error::new(Code::Io, format!("no thread for the stop: {e}")));
        }
        Ok(self.finish(running, drain))
    }

    fn finish(&self, running: Arc<Running>, drain: Duration) -> usize {
        let left = running.stop(drain);
        if left > 0 {
            tracing::warn!(left, "stopped with messages unanswered");
        }
        *self.stage.lock() = Stage::Stopped(Some(running));
        self.stopped.notify_all();
        left
    }

    /// Ends what runs, without draining.
    pub fn free(self: Arc<Self>) {
        if self.birth.check("engine").is_err() {
            // In a forked child nothing can be joined; the parent has the threads.
            std::mem::forget(self);
            return;
        }
        let running = matches!(&*self.stage.lock(), Stage::Running(_) | Stage::Stopping(_));
        if running {
            let _ = self.stop(Duration::ZERO);
            let mut stage = self.stage.lock();
            while !matches!(&*stage, Stage::Stopped(_)) {
                self.stopped.wait(&mut stage);
            }
        }
        if let Stage::Stopped(running) = &mut *self.stage.lock() {
            // What a deferred message still holds stays until that is finished; the rest goes now.
            *running = None;
        }
    }

    pub fn post(&self, group: Group, event: Event) -> Result<(), Error> {
        self.running()?.groups.post(group.id(), Task::Once(event)).map_err(|refused| match refused.why {
            Why::Full => Error::new(Code::Full, "as many events wait as the option queue_limit allows"),
            _ => Error::new(Code::State, "the engine is being stopped"),
        })
    }

    /// Starts a timer; returns its number.
    pub fn start_timer(
        &self,
        group: Group,
        delay_ms: u32,
        period_ms: u32,
        call: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<u64, Error> {
        let period = (period_ms > 0).then(|| Duration::from_millis(period_ms.into()));
        let delay = Duration::from_millis(delay_ms.into());
        let call = TimerCall::Mut(Box::new(move || call()));
        Ok(self.running()?.clock.start(group.id(), delay, period, call).0)
    }

    pub fn cancel_timer(&self, timer: u64) -> Result<(), Error> {
        let gone = || Error::new(Code::NotFound, format!("timer {timer} has fired, was cancelled, or never was"));
        if matches!(&*self.stage.lock(), Stage::Setup(_)) {
            return Err(gone());
        }
        match self.running()?.clock.cancel(TimerId(timer)) {
            Cancel::Prevented | Cancel::Running => Ok(()),
            Cancel::Gone => Err(gone()),
        }
    }

    /// Exchanges the code of a plugin; how many calls still run in the old code after `limit`.
    pub fn reload(&self, name: &str, path: Option<&str>, limit: Duration) -> Result<usize, Error> {
        let running = self.running()?;
        // A plugin's call that waited for the end of its own would wait for ever.
        if running.groups.pool(GroupId::IO).is_some_and(|pool| pool.is_member()) {
            return Err(Error::new(
                Code::State,
                "called on one of the threads that call plugins: post it to another group",
            ));
        }
        running.core.reload(name, path, limit)
    }

    pub fn plugin_figures(&self, name: &str) -> Result<PluginFigures, Error> {
        let running = match &*self.stage.lock() {
            Stage::Running(r) | Stage::Stopping(r) | Stage::Stopped(Some(r)) => Arc::clone(r),
            _ => return Err(Error::new(Code::State, "the engine is not started yet")),
        };
        running.core.plugin_figures(name)
    }

    /// Prometheus text.
    pub fn metrics(&self) -> String {
        let mut text = Text::new();
        text.gauge("partyline_info", "The library's version.", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        let running = match &*self.stage.lock() {
            Stage::Running(r) | Stage::Stopping(r) | Stage::Stopped(Some(r)) => Some(Arc::clone(r)),
            _ => None,
        };
        if let Some(running) = running {
            running.metrics(&mut text);
        }
        log::metrics(&mut text);
        text.finish()
    }

    pub fn figures(&self) -> Figures {
        match &*self.stage.lock() {
            Stage::Running(r) | Stage::Stopping(r) | Stage::Stopped(Some(r)) => r.figures(),
            _ => Figures::default(),
        }
    }
}

impl Running {
    fn start(setup: Setup) -> Result<Running, Error> {
        let Setup { config, udp, tcp, watchers, plugins, registrar } = setup;
        let io_error = |what: &str, e: std::io::Error| Error::new(Code::Io, format!("{what}: {e}"));
        start_log(&config)?;
        let tls_client = TlsClient::new(config.tls_client.clone());
        if config.tls_client.names_files() {
            tls_client.prepare().map_err(|e| Error::new(Code::Config, e.to_string()))?;
        }
        let reactor = Reactor::with_backend(config.backend).map_err(|e| io_error("no event queue", e))?;
        let no_wait = |e| io_error("a listener cannot be waited for", e);
        let events = match registrar.as_ref().filter(|registrar| registrar.options().connection_bound) {
            Some(registrar) => {
                let bound = bindings::BoundTo { registrar: Arc::clone(registrar), next: watchers.events };
                Some(Arc::new(bound) as Arc<dyn StreamEvents>)
            }
            None => watchers.events,
        };
        let streams =
            Streams::new(&reactor, StreamOptions { framer: watchers.framer, ..config.stream_options() }, events)
                .map_err(no_wait)?;
        let udp: Result<Vec<_>, _> = udp.into_iter().map(|listener| reactor.add_udp(listener)).collect();
        let tcp: Result<Vec<_>, _> = tcp.into_iter().map(|acceptor| reactor.add_tcp(acceptor)).collect();
        let sockets = Sockets { udp: udp.map_err(no_wait)?, tcp: tcp.map_err(no_wait)?, streams, tls_client };
        let pool_options = PoolOptions {
            name: "io".into(),
            min: config.threads_min,
            max: config.threads_max,
            batch: config.threads_batch,
            keep_alive: config.keep_alive,
            queue_limit: config.queue_limit,
            takeover: config.takeover,
            pin: None,
        };
        let worker_options = PoolOptions {
            name: "worker".into(),
            min: 0,
            max: config.worker_threads,
            batch: 1,
            pin: None,
            ..pool_options.clone()
        };
        let log_options = PoolOptions { name: "log".into(), max: 1, ..worker_options.clone() };
        let has_plugins = !plugins.is_empty();
        let core = Core::new(config, reactor, sockets, plugins, registrar);
        let source: Arc<dyn Source> = Arc::clone(&core) as Arc<dyn Source>;
        let groups = Arc::new(Groups::new());
        let clock = Clockwork::new(&groups, &source);
        let no_pool = |e| io_error("the thread pool cannot be made", e);
        let io = Arc::new(Pool::new(pool_options, Some(source)).map_err(no_pool)?);
        io.set_clock(Arc::clone(&clock) as _).map_err(no_pool)?;
        let worker = Arc::new(Pool::new(worker_options, None).map_err(no_pool)?);
        core.set_pool(&io);
        groups.set(GroupId::IO, Arc::clone(&io));
        groups.set(GroupId::WORKER, Arc::clone(&worker));
        let log = Arc::new(Pool::new(log_options, None).map_err(no_pool)?);
        groups.set(GroupId::LOG, Arc::clone(&log));
        let no_threads = |e| io_error("the engine's threads cannot be started", e);
        let patrol = if has_plugins { Some(core.dog.patrol().map_err(no_threads)?) } else { None };
        worker.start().map_err(no_threads)?;
        log.start().map_err(no_threads)?;
        io.start().map_err(no_threads)?;
        Ok(Running { core, groups, clock, _patrol: patrol })
    }

    fn is_member(&self) -> bool {
        [GroupId::IO, GroupId::WORKER, GroupId::LOG]
            .iter()
            .any(|id| self.groups.pool(*id).is_some_and(|pool| pool.is_member()))
    }

    /// Reads nothing any more, waits for what is in hand, ends the threads; what was left.
    fn stop(&self, drain: Duration) -> usize {
        let deadline = Instant::now() + drain;
        self.core.close();
        // Answers that a peer has not read yet are in hand too.
        while (self.core.in_hand() > 0 || self.core.streams.unsent() > 0) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let unsent = self.core.streams.unsent();
        if unsent > 0 {
            tracing::warn!(connections = unsent, "stopped with answers that their peers have not read");
        }
        let in_hand = self.core.in_hand();
        let left = self.groups.stop(deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100)));
        self.core.drain_strands();
        self.core.disconnect();
        in_hand.max(left.tasks + left.threads)
    }

    fn metrics(&self, out: &mut Text) {
        self.core.metrics(out);
        self.groups.metrics(out);
        self.clock.metrics(out);
    }

    fn figures(&self) -> Figures {
        let mut figures = self.core.figures();
        for id in [GroupId::IO, GroupId::WORKER, GroupId::LOG] {
            if let Some(pool) = self.groups.pool(id) {
                let f = pool.figures();
                figures.threads += f.threads as u32;
                figures.promotions += f.promotions + f.takeovers;
            }
        }
        figures
    }
}

fn start_log(config: &Config) -> Result<(), Error> {
    let target = if config.log_file.is_empty() {
        log::Target::Stderr
    } else {
        log::Target::File(config.log_file.clone().into())
    };
    // The option's parser lets only level names through.
    let level = config.log.parse().unwrap_or(tracing::level_filters::LevelFilter::INFO);
    let options = log::Options { level, target, ..log::Options::default() };
    log::start(options).map(|_| ()).map_err(|e| Error::new(Code::Config, format!("log_file {}: {e}", config.log_file)))
}
