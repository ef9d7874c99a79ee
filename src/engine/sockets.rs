//! The engine's options that concern sockets and connections.

use std::net::IpAddr;
use std::time::Duration;

use super::config::{Config, DAY, HOUR};
use super::settings::{Setting, number, show_time, time};
use crate::net::{Backend, Verify};

pub const TRANSPORT: &[Setting<Config>] = &[
    Setting {
        name: "transport.backend",
        help: "How sockets are waited for: system or readiness. The system's own way is epoll on Linux and a completion port on Windows. Only on Windows is readiness (mio's) another one: the fallback, and there to be compared.",
        set: |c, v| {
            c.backend = match v {
                "system" => Backend::System,
                "readiness" => Backend::Readiness,
                _ => return Err("expected system or readiness".into()),
            };
            Ok(())
        },
        show: |c| match c.backend {
            Backend::System => "system".into(),
            Backend::Readiness => "readiness".into(),
        },
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
        name: "udp.multicast",
        help: "Multicast groups that listeners on a wildcard address join, separated by commas: 224.0.1.75 (sip.mcast.net), ff02::2:9; empty: none. Answers leave from an address of the interface.",
        set: |c, v| {
            let groups: Result<Vec<IpAddr>, _> =
                v.split(',').map(str::trim).filter(|group| !group.is_empty()).map(str::parse).collect();
            match groups {
                Ok(groups) if groups.iter().all(IpAddr::is_multicast) => c.udp_multicast = groups,
                _ => return Err("give multicast addresses, separated by commas".into()),
            }
            Ok(())
        },
        show: |c| c.udp_multicast.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(","),
    },
    Setting {
        name: "udp.multicast_interface",
        help: "Number of the interface on which the groups are joined (`ip link` shows it); 0: the system chooses by route.",
        set: |c, v| number(v, 0, u32::MAX).map(|n| c.udp_multicast_interface = n),
        show: |c| c.udp_multicast_interface.to_string(),
    },
    Setting {
        name: "tcp.backlog",
        help: "Connections that may wait to be accepted; the system may hold it lower (net.core.somaxconn).",
        set: |c, v| number(v, 1, 65_535).map(|n| c.tcp_backlog = n),
        show: |c| c.tcp_backlog.to_string(),
    },
    Setting {
        name: "tcp.connections",
        help: "TCP connections in all, accepted and opened; one more is closed at once. 0: no limit but the descriptors.",
        set: |c, v| number(v, 0, 100_000_000).map(|n| c.streams.connections = n),
        show: |c| c.streams.connections.to_string(),
    },
    Setting {
        name: "tcp.per_source",
        help: "TCP connections from one address; 0: no limit, for whole offices sit behind one.",
        set: |c, v| number(v, 0, 100_000_000).map(|n| c.streams.per_source = n),
        show: |c| c.streams.per_source.to_string(),
    },
    Setting {
        name: "tcp.outbound",
        help: "Bytes that may wait for one peer to read them; from half of it on nothing more is read from that peer, past it the connection is closed.",
        set: |c, v| number(v, 4_096, 1 << 30).map(|n| c.streams.outbound = n),
        show: |c| c.streams.outbound.to_string(),
    },
    Setting {
        name: "tcp.connect_limit",
        help: "How long opening a connection may take.",
        set: |c, v| time(v, Duration::from_millis(100), DAY).map(|t| c.streams.connect_limit = t),
        show: |c| show_time(c.streams.connect_limit),
    },
    Setting {
        name: "tcp.first_bytes",
        help: "How long an accepted connection may say nothing.",
        set: |c, v| time(v, Duration::from_millis(100), DAY).map(|t| c.streams.first_bytes = t),
        show: |c| show_time(c.streams.first_bytes),
    },
    Setting {
        name: "tcp.message_limit",
        help: "How long a message may take from its first byte to its last.",
        set: |c, v| time(v, Duration::from_millis(100), DAY).map(|t| c.streams.message_limit = t),
        show: |c| show_time(c.streams.message_limit),
    },
    Setting {
        name: "tcp.idle",
        help: "How long nothing at all may come over a connection; longer than the usual registration.",
        set: |c, v| time(v, Duration::from_millis(100), DAY).map(|t| c.streams.idle = t),
        show: |c| show_time(c.streams.idle),
    },
    Setting {
        name: "tcp.write_limit",
        help: "How long a peer may read nothing while something waits for it.",
        set: |c, v| time(v, Duration::from_millis(100), DAY).map(|t| c.streams.write_limit = t),
        show: |c| show_time(c.streams.write_limit),
    },
    Setting {
        name: "tcp.linger",
        help: "How long answers that are still owed may take when the peer has closed its side.",
        set: |c, v| time(v, Duration::from_millis(100), HOUR).map(|t| c.streams.linger = t),
        show: |c| show_time(c.streams.linger),
    },
    Setting {
        name: "tls.certificate",
        help: "File in PEM with the certificate of the TLS addresses, and those that lead to a root; read by listen, and by partyline_engine_reload_certificates.",
        set: |c, v| {
            c.tls.certificate = v.into();
            Ok(())
        },
        show: |c| c.tls.certificate.display().to_string(),
    },
    Setting {
        name: "tls.key",
        help: "File in PEM with its private key, not encrypted.",
        set: |c, v| {
            c.tls.key = v.into();
            Ok(())
        },
        show: |c| c.tls.key.display().to_string(),
    },
    Setting {
        name: "tls.client.roots",
        help: "File in PEM with the roots that certificates of peers have to lead to, where this side opens the connection; empty: the system's (/etc/ssl/certs/ca-certificates.crt or the like).",
        set: |c, v| {
            c.tls_client.roots = v.into();
            Ok(())
        },
        show: |c| c.tls_client.roots.display().to_string(),
    },
    Setting {
        name: "tls.client.verify",
        help: "What of such a peer's certificate has to be right: domain (it leads to a root and names the domain, or the address where none is given), chain (it leads to a root), off (nothing: no help against who stands in between).",
        set: |c, v| {
            c.tls_client.verify = match v {
                "domain" => Verify::Domain,
                "chain" => Verify::Chain,
                "off" => Verify::Off,
                _ => return Err("give domain, chain or off".into()),
            };
            Ok(())
        },
        show: |c| match c.tls_client.verify {
            Verify::Domain => "domain".into(),
            Verify::Chain => "chain".into(),
            Verify::Off => "off".into(),
        },
    },
    Setting {
        name: "tls.client.certificate",
        help: "File in PEM with the certificate that is shown to such a peer if it asks for one, and those that lead to a root; empty: none is shown.",
        set: |c, v| {
            c.tls_client.files.certificate = v.into();
            Ok(())
        },
        show: |c| c.tls_client.files.certificate.display().to_string(),
    },
    Setting {
        name: "tls.client.key",
        help: "File in PEM with its private key, not encrypted.",
        set: |c, v| {
            c.tls_client.files.key = v.into();
            Ok(())
        },
        show: |c| c.tls_client.files.key.display().to_string(),
    },
    Setting {
        name: "tls.handshake_limit",
        help: "How long a TLS handshake may take. The limits tcp.* hold for TLS too.",
        set: |c, v| time(v, Duration::from_millis(100), HOUR).map(|t| c.streams.handshake_limit = t),
        show: |c| show_time(c.streams.handshake_limit),
    },
    Setting {
        name: "rate.source",
        help: "Messages a second from one address (of IPv6: one /64); more are dropped and counted. 0: no limit.",
        set: |c, v| number(v, 0, 100_000_000).map(|n| c.rates.source = n),
        show: |c| c.rates.source.to_string(),
    },
    Setting {
        name: "rate.source_burst",
        help: "How many of them may come at once after a pause; 0: as many as in a second.",
        set: |c, v| number(v, 0, 100_000_000).map(|n| c.rates.source_burst = n),
        show: |c| c.rates.source_burst.to_string(),
    },
    Setting {
        name: "rate.all",
        help: "Messages a second from all together; more are dropped and counted. 0: no limit.",
        set: |c, v| number(v, 0, 100_000_000).map(|n| c.rates.all = n),
        show: |c| c.rates.all.to_string(),
    },
    Setting {
        name: "rate.all_burst",
        help: "How many of them may come at once after a pause; 0: as many as in a second.",
        set: |c, v| number(v, 0, 100_000_000).map(|n| c.rates.all_burst = n),
        show: |c| c.rates.all_burst.to_string(),
    },
];
