//! What an engine can be told, by name; the registrar's names follow below.

use std::time::Duration;

use super::settings::{Setting, number, show_switch, show_time, switch, time};

/// An engine's options. Each field's meaning stands in [`ENGINE`].
#[derive(Debug, Clone)]
pub struct Config {
    pub threads_min: usize,
    pub threads_max: usize,
    pub threads_batch: usize,
    pub keep_alive: Duration,
    pub worker_threads: usize,
    pub queue_limit: usize,
    pub strand_limit: usize,
    pub deferred_limit: usize,
    pub watchdog: Duration,
    pub udp_sockets: usize,
    pub udp_receive_buffer: usize,
    pub udp_send_buffer: usize,
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
            worker_threads: 8,
            queue_limit: 65_536,
            strand_limit: 1_024,
            deferred_limit: 100_000,
            watchdog: Duration::from_secs(5),
            udp_sockets: 1,
            udp_receive_buffer: 4 << 20,
            udp_send_buffer: 1 << 20,
            max_message: 65_000,
            retry_after: 5,
            server: String::new(),
            log: "info".into(),
            log_file: String::new(),
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

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
        name: "watchdog",
        help: "A plugin call that takes longer is named in the log and counted.",
        set: |c, v| time(v, Duration::from_millis(10), HOUR).map(|t| c.watchdog = t),
        show: |c| show_time(c.watchdog),
    },
    Setting {
        name: "udp.sockets",
        help: "Sockets per UDP address (SO_REUSEPORT); more than 1 pays where one core does nothing but read.",
        set: |c, v| number(v, 1, 64).map(|n| c.udp_sockets = n),
        show: |c| c.udp_sockets.to_string(),
    },
    Setting {
        name: "udp.receive_buffer",
        help: "SO_RCVBUF in bytes; 0 leaves the system's default. The system may give less (net.core.rmem_max).",
        set: |c, v| number(v, 0, 1 << 30).map(|n| c.udp_receive_buffer = n),
        show: |c| c.udp_receive_buffer.to_string(),
    },
    Setting {
        name: "udp.send_buffer",
        help: "SO_SNDBUF in bytes; 0 leaves the system's default.",
        set: |c, v| number(v, 0, 1 << 30).map(|n| c.udp_send_buffer = n),
        show: |c| c.udp_send_buffer.to_string(),
    },
    Setting {
        name: "max_message",
        help: "A longer datagram is dropped and counted, in bytes.",
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
