//! What an engine can be told, by name. The rows of sockets and connections stand in `sockets`, the registrar's in
//! `registrar_settings`.

use std::net::IpAddr;
use std::time::Duration;

use super::bindings::RegistrarOptions;
use super::registrar_settings::REGISTRAR;
use super::settings::{Setting, apply, document, number, show_time, time};
use super::sockets::TRANSPORT;
use crate::ffi::{Code, Error};
use crate::net::{Backend, FramerLimits, LimitOptions, Rate, StreamOptions, TlsClientOptions, TlsFiles};

/// An engine's options. Each field's meaning stands in [`ENGINE`].
#[derive(Clone)]
pub struct Config {
    pub threads_min: usize,
    pub threads_max: usize,
    pub threads_batch: usize,
    pub keep_alive: Duration,
    pub takeover: Duration,
    pub worker_threads: usize,
    pub queue_limit: usize,
    pub strand_limit: usize,
    pub deferred_limit: usize,
    pub overload_high: usize,
    pub overload_low: usize,
    /// The one that was named last; the room `capi` loads them.
    pub plugin: String,
    pub watchdog: Duration,
    pub backend: Backend,
    pub udp_sockets: usize,
    pub udp_receive_buffer: usize,
    pub udp_send_buffer: usize,
    pub udp_multicast: Vec<IpAddr>,
    pub udp_multicast_interface: u32,
    pub tcp_backlog: i32,
    pub tls: TlsFiles,
    pub tls_client: TlsClientOptions,
    pub rates: Rates,
    /// The limits of connections; the room `net` has their defaults.
    pub streams: StreamOptions,
    pub max_message: usize,
    pub retry_after: u32,
    pub server: String,
    pub log: String,
    pub log_file: String,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            threads_min: 2,
            threads_max: 64,
            threads_batch: 2,
            keep_alive: Duration::from_secs(30),
            takeover: Duration::from_millis(1),
            worker_threads: 8,
            queue_limit: 65_536,
            strand_limit: 1_024,
            deferred_limit: 100_000,
            overload_high: 8_192,
            overload_low: 4_096,
            plugin: String::new(),
            watchdog: Duration::from_secs(5),
            backend: Backend::System,
            udp_sockets: 1,
            udp_receive_buffer: 4 << 20,
            udp_send_buffer: 1 << 20,
            udp_multicast: Vec::new(),
            udp_multicast_interface: 0,
            tcp_backlog: 1024,
            tls: TlsFiles::default(),
            tls_client: TlsClientOptions::default(),
            rates: Rates::default(),
            streams: StreamOptions::default(),
            max_message: 65_000,
            retry_after: 5,
            server: String::new(),
            log: "info".into(),
            log_file: String::new(),
        }
    }
}

/// Messages a second; 0: no limit.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    pub source: u32,
    /// 0: as many as in a second.
    pub source_burst: u32,
    pub all: u32,
    pub all_burst: u32,
}

impl Rates {
    pub fn is_limited(&self) -> bool {
        self.source > 0 || self.all > 0
    }

    pub fn options(&self) -> LimitOptions {
        let rate = |per_second: u32, burst: u32| {
            (per_second > 0).then_some(Rate { per_second, burst: if burst > 0 { burst } else { per_second } })
        };
        LimitOptions {
            per_source: rate(self.source, self.source_burst),
            all: rate(self.all, self.all_burst),
            ..LimitOptions::default()
        }
    }
}

impl Config {
    /// What connections may do, with the bound on a message that holds for datagrams too.
    pub fn stream_options(&self) -> StreamOptions {
        let head = FramerLimits::default().head.min(self.max_message);
        StreamOptions { limits: FramerLimits { head, message: self.max_message }, ..self.streams.clone() }
    }
}

pub(super) const DAY: Duration = Duration::from_secs(86_400);
pub(super) const HOUR: Duration = Duration::from_secs(3600);

pub const ENGINE: &[Setting<Config>] = &[
    Setting {
        name: "threads.min",
        help: "Threads that serve the sockets, at least; started with the engine.",
        set: |c, v| number(v, 1, 1024).map(|n| c.threads_min = n),
        show: |c| c.threads_min.to_string(),
    },
    Setting {
        name: "threads.max",
        help: "The most threads that serve the sockets; a plugin that blocks costs one of them.",
        set: |c, v| number(v, 1, 1024).map(|n| c.threads_max = n),
        show: |c| c.threads_max.to_string(),
    },
    Setting {
        name: "threads.batch",
        help: "Threads that are started at once when more are needed.",
        set: |c, v| number(v, 1, 64).map(|n| c.threads_batch = n),
        show: |c| c.threads_batch.to_string(),
    },
    Setting {
        name: "threads.keep_alive",
        help: "A thread above the minimum ends after being idle for this long.",
        set: |c, v| time(v, Duration::from_millis(10), HOUR).map(|t| c.keep_alive = t),
        show: |c| show_time(c.keep_alive),
    },
    Setting {
        name: "threads.takeover",
        help: "How long a plugin's call may keep the thread that reads the sockets from reading; then another thread does. A plugin of whose calls more than 1 % take longer is called on other threads only. 0ms: each message is called on a thread that does not read.",
        set: |c, v| time(v, Duration::ZERO, Duration::from_secs(1)).map(|t| c.takeover = t),
        show: |c| show_time(c.takeover),
    },
    Setting {
        name: "worker.threads",
        help: "The most threads of the group WORKER (partyline_post, timers); they start when needed.",
        set: |c, v| number(v, 1, 1024).map(|n| c.worker_threads = n),
        show: |c| c.worker_threads.to_string(),
    },
    Setting {
        name: "queue_limit",
        help: "Posted events and resumed messages that may wait for a thread, per group; past it PARTYLINE_EFULL or 503.",
        set: |c, v| number(v, 1, 10_000_000).map(|n| c.queue_limit = n),
        show: |c| c.queue_limit.to_string(),
    },
    Setting {
        name: "strand_limit",
        help: "Messages that may wait for one strand of a serial or keyed plugin; past it 503 with Retry-After.",
        set: |c, v| number(v, 1, 10_000_000).map(|n| c.strand_limit = n),
        show: |c| c.strand_limit.to_string(),
    },
    Setting {
        name: "deferred_limit",
        help: "Messages that plugins may keep deferred at once; past it partyline_message_defer gives PARTYLINE_EFULL.",
        set: |c, v| number(v, 1, 100_000_000).map(|n| c.deferred_limit = n),
        show: |c| c.deferred_limit.to_string(),
    },
    Setting {
        name: "overload.high",
        help: "When so many messages wait for plugins and threads, new requests get 503 with Retry-After at once; responses, ACK, CANCEL and requests within a dialog are taken up to `queue_limit`, and go before others.",
        set: |c, v| number(v, 1, 10_000_000).map(|n| c.overload_high = n),
        show: |c| c.overload_high.to_string(),
    },
    Setting {
        name: "overload.low",
        help: "When no more than so many wait again, the overload is over.",
        set: |c, v| number(v, 0, 10_000_000).map(|n| c.overload_low = n),
        show: |c| c.overload_low.to_string(),
    },
    Setting {
        name: "plugin",
        help: "A shared object that is loaded as a plugin at once, as by partyline_plugin_load(); set once for each.",
        set: |c, v| {
            v.clone_into(&mut c.plugin);
            Ok(())
        },
        show: |c| c.plugin.clone(),
    },
    Setting {
        name: "watchdog",
        help: "A plugin call that takes longer is named in the log and counted.",
        set: |c, v| time(v, Duration::from_millis(10), HOUR).map(|t| c.watchdog = t),
        show: |c| show_time(c.watchdog),
    },
    Setting {
        name: "max_message",
        help: "A longer datagram is dropped and counted; a longer message of a connection is answered with 513 and the connection closed. In bytes.",
        set: |c, v| number(v, 512, 65_535).map(|n| c.max_message = n),
        show: |c| c.max_message.to_string(),
    },
    Setting {
        name: "retry_after",
        help: "Seconds in the Retry-After header of a 503.",
        set: |c, v| number(v, 1, 3600).map(|n| c.retry_after = n),
        show: |c| c.retry_after.to_string(),
    },
    Setting {
        name: "server",
        help: "Text of a Server header in every answer; empty: none.",
        set: |c, v| {
            if v.len() > 128 || v.bytes().any(|b| b.is_ascii_control()) {
                return Err("give at most 128 bytes without control characters".into());
            }
            v.clone_into(&mut c.server);
            Ok(())
        },
        show: |c| c.server.clone(),
    },
    Setting {
        name: "log",
        help: "The least level that is logged: off, error, warn, info, debug, trace. PARTYLINE_LOG wins.",
        set: |c, v| {
            if !["off", "error", "warn", "info", "debug", "trace"].contains(&v) {
                return Err("give off, error, warn, info, debug or trace".into());
            }
            v.clone_into(&mut c.log);
            Ok(())
        },
        show: |c| c.log.clone(),
    },
    Setting {
        name: "log_file",
        help: "Where the log goes; empty: stderr.",
        set: |c, v| {
            v.clone_into(&mut c.log_file);
            Ok(())
        },
        show: |c| c.log_file.clone(),
    },
];

/// Sets an engine's option by name.
pub fn set_engine_option(config: &mut Config, name: &str, value: &str) -> Result<(), Error> {
    match [ENGINE, TRANSPORT].into_iter().find(|table| table.iter().any(|s| s.name == name)) {
        Some(table) => apply(table, config, name, value),
        None => {
            let names: Vec<&str> = ENGINE.iter().chain(TRANSPORT).map(|s| s.name).collect();
            let (name, names) = (name.escape_default(), names.join(", "));
            Err(Error::new(Code::Config, format!("there is no option \"{name}\"; the options are {names}")))
        }
    }
}

/// Sets a registrar's option by name.
pub fn set_registrar_option(options: &mut RegistrarOptions, name: &str, value: &str) -> Result<(), Error> {
    apply(REGISTRAR, options, name, value)
}

/// docs/options.md: every option with its default.
pub fn options_document() -> String {
    format!(
        "# Options\n\nSet by name before the start. A value that cannot be used is refused with a sentence that says what \
         can be.\n\n## Engine: `partyline_engine_set`\n\n{}\n### Sockets and connections\n\n{}\n## Registrar: `partyline_registrar_set`\n\n{}",
        document(ENGINE),
        document(TRANSPORT),
        document(REGISTRAR)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each default is a value that its own parser takes, and gives the same again.
    #[test]
    fn defaults_can_be_said() {
        fn check<T: Default>(table: &[Setting<T>]) {
            let mut names: Vec<&str> = table.iter().map(|s| s.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), table.len(), "a name stands twice");
            for s in table {
                let mut options = T::default();
                let shown = (s.show)(&options);
                (s.set)(&mut options, &shown).unwrap_or_else(|why| panic!("{}: {shown}: {why}", s.name));
                assert_eq!((s.show)(&options), shown, "{}", s.name);
            }
        }
        check(ENGINE);
        check(TRANSPORT);
        check(REGISTRAR);
    }

    #[test]
    fn the_documentation_is_not_stale() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/options.md");
        let fresh = options_document();
        if std::env::var_os("PARTYLINE_WRITE_DOCS").is_some() {
            std::fs::write(path, &fresh).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == fresh, "docs/options.md is stale: run the tests once with PARTYLINE_WRITE_DOCS=1");
    }
}
