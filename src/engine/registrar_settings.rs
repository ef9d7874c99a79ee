//! What a registrar can be told, by name.

use std::time::Duration;

use super::bindings::RegistrarOptions;
use super::config::{DAY, HOUR};
use super::settings::{Setting, number, show_switch, show_time, switch, time};
use crate::registrar::store::{Identifier, Schema, TimeForm};
use crate::registrar::{AuthMode, Mode, PathMode, WhenBrief, WhenFull};
use crate::sip::contact::is_route;
use crate::sip::digest::Algorithm;

const MILLI: Duration = Duration::from_millis(1);

/// A registrar's options.
pub const REGISTRAR: &[Setting<RegistrarOptions>] = &[
    Setting {
        name: "mode",
        help: "What a crash can lose: memory (all), write_back (the changes of one `flush_interval`), write_through (nothing that was answered).",
        set: |c, v| match v {
            "memory" => {
                c.0.mode = Mode::Memory;
                Ok(())
            }
            "write_back" => {
                c.0.mode = Mode::WriteBack;
                Ok(())
            }
            "write_through" => {
                c.0.mode = Mode::WriteThrough;
                Ok(())
            }
            _ => Err("give memory, write_back or write_through".into()),
        },
        show: |c| {
            match c.0.mode {
                Mode::Memory => "memory",
                Mode::WriteBack => "write_back",
                Mode::WriteThrough => "write_through",
            }
            .into()
        },
    },
    Setting {
        name: "auth",
        help: "Who may pass: none (everybody), user (who stands in the table subscriber), digest (who knows the password, RFC 8760).",
        set: |c, v| match v {
            "none" => {
                c.0.auth = AuthMode::None;
                Ok(())
            }
            "user" => {
                c.0.auth = AuthMode::UserExists;
                Ok(())
            }
            "digest" => {
                c.0.auth = AuthMode::Digest;
                Ok(())
            }
            _ => Err("give none, user or digest".into()),
        },
        show: |c| {
            match c.0.auth {
                AuthMode::None => "none",
                AuthMode::UserExists => "user",
                AuthMode::Digest => "digest",
            }
            .into()
        },
    },
    Setting {
        name: "algorithms",
        help: "Digest algorithms that are offered, the strongest first: some of SHA-512-256, SHA-256 and MD5, separated by commas. Some peers (sipp 3.6, baresip 1.0) fail where anything but MD5 is offered. A user whose row has hashes is asked for what they are of: 32 digits in `ha1` are MD5, 64 SHA-256.",
        set: |c, v| {
            let found: Option<Vec<_>> =
                v.split(',').map(|name| Algorithm::from_bytes(name.trim().as_bytes())).collect();
            c.0.algorithms = found.ok_or("give some of MD5, SHA-256 and SHA-512-256, separated by commas")?;
            Ok(())
        },
        show: |c| {
            let names = c.0.algorithms.iter().map(|a| String::from_utf8_lossy(a.as_bytes()).into_owned());
            names.collect::<Vec<_>>().join(",")
        },
    },
    Setting {
        name: "realm",
        help: "The realm of a challenge; empty: the domain of the address-of-record.",
        set: |c, v| {
            if v.len() > 128 || v.bytes().any(|b| b.is_ascii_control() || b == b'"' || b == b'\\') {
                return Err("give at most 128 bytes without quotes, backslashes and control characters".into());
            }
            v.clone_into(&mut c.0.realm);
            Ok(())
        },
        show: |c| c.0.realm.clone(),
    },
    Setting {
        name: "expires.default",
        help: "Seconds for a contact that asks for none.",
        set: |c, v| number(v, 1, u32::MAX).map(|n| c.0.default_expires = n),
        show: |c| c.0.default_expires.to_string(),
    },
    Setting {
        name: "expires.min",
        help: "Fewer seconds than these are refused or raised, see `expires.brief`.",
        set: |c, v| number(v, 0, 3600).map(|n| c.0.min_expires = n),
        show: |c| c.0.min_expires.to_string(),
    },
    Setting {
        name: "expires.max",
        help: "More seconds than these are lowered to these.",
        set: |c, v| number(v, 1, u32::MAX).map(|n| c.0.max_expires = n),
        show: |c| c.0.max_expires.to_string(),
    },
    Setting {
        name: "expires.brief",
        help: "An interval below the minimum: refuse (423 with Min-Expires), or raise to the minimum.",
        set: |c, v| match v {
            "refuse" => {
                c.0.when_brief = WhenBrief::Refuse;
                Ok(())
            }
            "raise" => {
                c.0.when_brief = WhenBrief::Raise;
                Ok(())
            }
            _ => Err("give refuse or raise".into()),
        },
        show: |c| {
            match c.0.when_brief {
                WhenBrief::Refuse => "refuse",
                WhenBrief::Raise => "raise",
            }
            .into()
        },
    },
    Setting {
        name: "expires.jitter",
        help: "By how many percent a granted interval may be shortened, never below `expires.min`: clients that registered together do not come back together.",
        set: |c, v| number(v, 0, 90).map(|n| c.0.expires_jitter = n),
        show: |c| c.0.expires_jitter.to_string(),
    },
    Setting {
        name: "path",
        help: "Path headers (RFC 3327): on (stored, told in the answer to who supports it), strict (420 for who does not), off (not understood: neither stored nor told, 420 where it is required).",
        set: |c, v| {
            c.0.path = match v {
                "on" => PathMode::On,
                "strict" => PathMode::Strict,
                "off" => PathMode::Off,
                _ => return Err("give on, strict or off".into()),
            };
            Ok(())
        },
        show: |c| {
            match c.0.path {
                PathMode::On => "on",
                PathMode::Strict => "strict",
                PathMode::Off => "off",
            }
            .into()
        },
    },
    Setting {
        name: "outbound",
        help: "RFC 5626: a flow is answered with Require: outbound, or with 439 where the first hop cannot keep it. What came straight over UDP is answered without.",
        set: |c, v| switch(v).map(|on| c.0.outbound = on),
        show: |c| show_switch(c.0.outbound),
    },
    Setting {
        name: "flow_timer",
        help: "Seconds in the Flow-Timer header of RFC 5626; 0: none.",
        set: |c, v| number(v, 0, 3600).map(|n| c.0.flow_timer = n),
        show: |c| c.0.flow_timer.to_string(),
    },
    Setting {
        name: "gruu",
        help: "RFC 5627: contacts with an instance are told with their public GRUU to who supports it; `partyline_registrar_lookup` resolves it.",
        set: |c, v| switch(v).map(|on| c.0.gruu = on),
        show: |c| show_switch(c.0.gruu),
    },
    Setting {
        name: "service_route",
        help: "Service-Route in every 200 (RFC 3608): SIP URIs in angle brackets, separated by commas; empty: none.",
        set: |c, v| {
            if !v.is_empty() && !is_route(v.as_bytes()) || v.bytes().any(|b| b.is_ascii_control()) {
                return Err("give SIP URIs in angle brackets, separated by commas".into());
            }
            v.clone_into(&mut c.0.service_route);
            Ok(())
        },
        show: |c| c.0.service_route.clone(),
    },
    Setting {
        name: "third_party",
        help: "Whether From may name another user than To: who may pass as From may then register any address-of-record; off: 403.",
        set: |c, v| switch(v).map(|on| c.0.third_party = on),
        show: |c| show_switch(c.0.third_party),
    },
    Setting {
        name: "connection_bound",
        help: "Contacts that were registered over a TCP connection go when it closes.",
        set: |c, v| switch(v).map(|on| c.0.connection_bound = on),
        show: |c| show_switch(c.0.connection_bound),
    },
    Setting {
        name: "contacts.max",
        help: "Bindings that an address-of-record may have.",
        set: |c, v| number(v, 1, 1000).map(|n| c.0.max_contacts = n),
        show: |c| c.0.max_contacts.to_string(),
    },
    Setting {
        name: "contacts.full",
        help: "One contact more than `contacts.max`: refuse (503 with Retry-After), or replace the one that ends soonest.",
        set: |c, v| match v {
            "refuse" => {
                c.0.when_full = WhenFull::Refuse;
                Ok(())
            }
            "replace" => {
                c.0.when_full = WhenFull::ReplaceSoonest;
                Ok(())
            }
            _ => Err("give refuse or replace".into()),
        },
        show: |c| {
            match c.0.when_full {
                WhenFull::Refuse => "refuse",
                WhenFull::ReplaceSoonest => "replace",
            }
            .into()
        },
    },
    Setting {
        name: "retry_after",
        help: "Seconds in the Retry-After header of the registrar's 503.",
        set: |c, v| number(v, 1, 3600).map(|n| c.0.retry_after = n),
        show: |c| c.0.retry_after.to_string(),
    },
    Setting {
        name: "use_domain",
        help: "Whether the domain belongs to the key of an address-of-record (Kamailio's use_domain).",
        set: |c, v| switch(v).map(|on| c.0.use_domain = on),
        show: |c| show_switch(c.0.use_domain),
    },
    Setting {
        name: "preload",
        help: "Reads the whole table at start, while requests are answered already; then a miss needs no SELECT. For one server on its database.",
        set: |c, v| switch(v).map(|on| c.0.preload = on),
        show: |c| show_switch(c.0.preload),
    },
    Setting {
        name: "shared",
        help: "Other servers write the same table (MySQL): removed bindings stay for a minute as rows whose time is over, newer rows of others are kept, and their changes are asked for. Each server needs its own `server_id`.",
        set: |c, v| switch(v).map(|on| c.0.store.shared = on),
        show: |c| show_switch(c.0.store.shared),
    },
    Setting {
        name: "server_id",
        help: "Written into each row's server_id; with `shared` from 1 on, and no two servers the same.",
        set: |c, v| number(v, 0, i32::MAX as u32).map(|n| c.0.store.server_id = n),
        show: |c| c.0.store.server_id.to_string(),
    },
    Setting {
        name: "poll_interval",
        help: "With `shared`: how often the other servers' changes are asked for.",
        set: |c, v| time(v, Duration::from_millis(10), HOUR).map(|t| c.0.poll_interval = t),
        show: |c| show_time(c.0.poll_interval),
    },
    Setting {
        name: "schema",
        help: "own (created when missing), or kamailio: the tables of Kamailio 5.6 to 5.8 as they stand (MySQL).",
        set: |c, v| match v {
            "own" => {
                c.0.store.layout.schema = Schema::Own;
                Ok(())
            }
            "kamailio" => {
                c.0.store.layout.schema = Schema::Kamailio;
                Ok(())
            }
            _ => Err("give own or kamailio".into()),
        },
        show: |c| {
            match c.0.store.layout.schema {
                Schema::Own => "own",
                Schema::Kamailio => "kamailio",
            }
            .into()
        },
    },
    Setting {
        name: "columns",
        help: "With schema kamailio: columns that have other names, as `location.contact=uri,subscriber.ha1=secret`.",
        set: |c, v| c.0.store.layout.set_columns(v).map_err(|e| e.to_string()),
        show: |c| c.0.store.layout.columns(),
    },
    Setting {
        name: "time_form",
        help: "How expires and last_modified are held: schema (own epoch, kamailio datetime), epoch, datetime.",
        set: |c, v| match v {
            "schema" => {
                c.0.store.layout.time = None;
                Ok(())
            }
            "epoch" => {
                c.0.store.layout.time = Some(TimeForm::Epoch);
                Ok(())
            }
            "datetime" => {
                c.0.store.layout.time = Some(TimeForm::DateTime);
                Ok(())
            }
            _ => Err("give schema, epoch or datetime".into()),
        },
        show: |c| {
            match c.0.store.layout.time {
                None => "schema",
                Some(TimeForm::Epoch) => "epoch",
                Some(TimeForm::DateTime) => "datetime",
            }
            .into()
        },
    },
    Setting {
        name: "time_zone",
        help: "The time zone of DATETIME columns, as the database names it: SYSTEM, +01:00, Europe/Berlin. Kamailio writes its machine's local time.",
        set: |c, v| {
            v.clone_into(&mut c.0.store.layout.time_zone);
            Ok(())
        },
        show: |c| c.0.store.layout.time_zone.clone(),
    },
    Setting {
        name: "table.location",
        help: "The name of the table of bindings.",
        set: |c, v| Identifier::new(v).map(|n| c.0.store.tables.location = n).map_err(|e| e.to_string()),
        show: |c| c.0.store.tables.location.as_str().into(),
    },
    Setting {
        name: "table.subscriber",
        help: "The name of the table of users.",
        set: |c, v| Identifier::new(v).map(|n| c.0.store.tables.subscriber = n).map_err(|e| e.to_string()),
        show: |c| c.0.store.tables.subscriber.as_str().into(),
    },
    Setting {
        name: "known_empty",
        help: "Without `preload`: addresses-of-record that are remembered to have no bindings.",
        set: |c, v| number(v, 0, 100000000).map(|n| c.0.known_empty = n),
        show: |c| c.0.known_empty.to_string(),
    },
    Setting {
        name: "shards",
        help: "Locks of the cache, rounded up to a power of two.",
        set: |c, v| number(v, 1, 65536).map(|n| c.0.shards = n),
        show: |c| c.0.shards.to_string(),
    },
    Setting {
        name: "writers",
        help: "Connections that write; 0: as the store proposes (MySQL 2, SQLite 1).",
        set: |c, v| number(v, 0, 64).map(|n| c.0.writers = n),
        show: |c| c.0.writers.to_string(),
    },
    Setting {
        name: "batch",
        help: "Changes per transaction.",
        set: |c, v| number(v, 1, 10000).map(|n| c.0.batch = n),
        show: |c| c.0.batch.to_string(),
    },
    Setting {
        name: "flush_interval",
        help: "How often write_back writes.",
        set: |c, v| time(v, Duration::from_millis(10), HOUR).map(|t| c.0.flush_interval = t),
        show: |c| show_time(c.0.flush_interval),
    },
    Setting {
        name: "queue",
        help: "Changes that may wait for one writer in write_through; past it 503.",
        set: |c, v| number(v, 1, 10000000).map(|n| c.0.queue = n),
        show: |c| c.0.queue.to_string(),
    },
    Setting {
        name: "commit_timeout",
        help: "How long a REGISTER may wait for its commit, or to be loaded; then 503.",
        set: |c, v| time(v, Duration::from_millis(10), HOUR).map(|t| c.0.commit_timeout = t),
        show: |c| show_time(c.0.commit_timeout),
    },
    Setting {
        name: "spool",
        help: "A SQLite file that keeps what write_through answered while the database is away, until the database has it; empty: none, a REGISTER waits `commit_timeout` and gets 503.",
        set: |c, v| {
            v.clone_into(&mut c.0.spool);
            Ok(())
        },
        show: |c| c.0.spool.clone(),
    },
    Setting {
        name: "spool_after",
        help: "A batch that the database has not committed after this time goes into the spool.",
        set: |c, v| time(v, MILLI, HOUR).map(|t| c.0.spool_after = t),
        show: |c| show_time(c.0.spool_after),
    },
    Setting {
        name: "spool_limit",
        help: "Changes that the spool may hold; past it requests wait for the database again.",
        set: |c, v| number(v, 1, 4_000_000_000u32).map(|n| c.0.spool_limit = n.into()),
        show: |c| c.0.spool_limit.to_string(),
    },
    Setting {
        name: "load_queue",
        help: "Requests that may wait to be loaded; past it 503.",
        set: |c, v| number(v, 1, 10000000).map(|n| c.0.load_queue = n),
        show: |c| c.0.load_queue.to_string(),
    },
    Setting {
        name: "close_timeout",
        help: "How long closing waits for what is still to be written.",
        set: |c, v| time(v, MILLI, HOUR).map(|t| c.0.close_timeout = t),
        show: |c| show_time(c.0.close_timeout),
    },
    Setting {
        name: "user_ttl",
        help: "How long a row of subscriber is trusted without being read again.",
        set: |c, v| time(v, MILLI, DAY).map(|t| c.0.user_ttl = t),
        show: |c| show_time(c.0.user_ttl),
    },
    Setting {
        name: "no_user_ttl",
        help: "How long a user is remembered not to exist.",
        set: |c, v| time(v, MILLI, DAY).map(|t| c.0.no_user_ttl = t),
        show: |c| show_time(c.0.no_user_ttl),
    },
    Setting {
        name: "user_cache",
        help: "Users remembered, existing or not.",
        set: |c, v| number(v, 1, 100000000).map(|n| c.0.user_cache = n),
        show: |c| c.0.user_cache.to_string(),
    },
    Setting {
        name: "nonce_ttl",
        help: "How long a nonce of digest authentication can be used.",
        set: |c, v| time(v, Duration::from_secs(1), DAY).map(|t| c.0.nonce_ttl = t),
        show: |c| show_time(c.0.nonce_ttl),
    },
];
