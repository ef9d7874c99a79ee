//! UDP listeners and batches on real loopback sockets, through the system's own file and through the portable one.

mod net_support;

#[cfg(target_os = "linux")]
use std::collections::BTreeSet;
use std::io::ErrorKind;
#[cfg(target_os = "linux")]
use std::net::{IpAddr, Ipv4Addr};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use net_support::reactor;
use partyline::net::{
    BATCH, Event, Native, Os, Portable, Reactor, Ready, RecvBatch, ReplyTo, SendBatch, UdpListener, UdpOptions,
    UdpRoute,
};
use partyline::observe::Text;

/// Longer under Wine: see net_support.
const LIMIT: Duration = Duration::from_secs(if cfg!(windows) { 60 } else { 20 });

fn local(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), 0)
}

fn one(addr: SocketAddr) -> UdpListener {
    UdpListener::bind(addr, &UdpOptions::default()).unwrap().remove(0)
}

fn client(ip: &str) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

/// Waits until `listener` has something and reads it; panics when nothing comes.
fn read<O: Os>(reactor: &Reactor, ready: &mut Ready, batch: &mut RecvBatch<O>, listener: &UdpListener) -> usize {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        reactor.wait(ready, Some(LIMIT)).unwrap();
        while let Some(Event::Udp(found)) = ready.pop() {
            assert!(std::ptr::eq(&*found, listener));
            let count = batch.recv(listener).unwrap();
            if count > 0 {
                return count;
            }
        }
    }
    panic!("nothing arrived");
}

fn metric(listeners: &[Arc<UdpListener>], name: &str) -> u64 {
    let mut text = Text::new();
    UdpListener::metrics(listeners, &mut text);
    let text = text.finish();
    text.lines()
        .filter(|line| line.starts_with(name))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64)
        .sum()
}

fn payload(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + seed) as u8).collect()
}

fn echoes_every_size<O: Os>(ip: &str, longest: usize) {
    let reactor = reactor();
    let listener =
        reactor.add_udp(UdpListener::bind_on::<O>(local(ip), &UdpOptions::default()).unwrap().remove(0)).unwrap();
    let (mut ready, mut batch, mut out) = (Ready::new(), RecvBatch::<O>::on(), SendBatch::<O>::on());
    let client = client(ip);
    client.connect(listener.local_addr()).unwrap();
    for (seed, len) in [1, 2, 63, 64, 65, 465, 1400, 9000, longest].into_iter().enumerate() {
        let sent = payload(len, seed);
        client.send(&sent).unwrap();
        assert_eq!(read(&reactor, &mut ready, &mut batch, &listener), 1);
        for datagram in batch.datagrams() {
            assert_eq!(datagram.peer, client.local_addr().unwrap());
            assert!(!datagram.truncated);
            datagram.data.reverse();
            let to = datagram.reply_to(&listener);
            out.push(&to, |buffer| buffer.extend_from_slice(datagram.data));
        }
        assert_eq!(out.flush().sent, 1);
        let mut got = vec![0; 70_000];
        let count = client.recv(&mut got).unwrap();
        got.truncate(count);
        got.reverse();
        assert!(got == sent, "{len} bytes came back changed");
    }
}

fn an_empty_datagram_is_one_and_an_empty_answer_is_none<O: Os>() {
    let reactor = reactor();
    let listener = reactor.add_udp(one(local("127.0.0.1"))).unwrap();
    let (mut ready, mut batch, mut out) = (Ready::new(), RecvBatch::<O>::on(), SendBatch::<O>::on());
    let client = client("127.0.0.1");
    client.send_to(b"", listener.local_addr()).unwrap();
    assert_eq!(read(&reactor, &mut ready, &mut batch, &listener), 1);
    let datagram = batch.datagrams().next().unwrap();
    assert!(datagram.data.is_empty());
    out.push_udp(&listener, &datagram.route(), |_| {});
    assert!(out.is_empty());
    assert_eq!(out.flush().sent, 0);
}

fn a_long_datagram_is_cut_and_says_so<O: Os>() {
    let reactor = reactor();
    let listener = reactor.add_udp(one(local("127.0.0.1"))).unwrap();
    let (mut ready, mut batch) = (Ready::new(), RecvBatch::<O>::with_slots(4, 100));
    let client = client("127.0.0.1");
    for len in [99, 100, 101, 5000] {
        client.send_to(&payload(len, len), listener.local_addr()).unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 4 {
        read(&reactor, &mut ready, &mut batch, &listener);
        for datagram in batch.datagrams() {
            seen.push((datagram.data.to_vec(), datagram.truncated));
        }
    }
    let want: Vec<_> = [(99, false), (100, false), (101, true), (5000, true)]
        .into_iter()
        .map(|(len, cut)| (payload(len, len)[..len.min(100)].to_vec(), cut))
        .collect();
    assert!(seen == want);
    assert_eq!(metric(&[listener], "partyline_udp_truncated_total{"), 2);
}

/// Later batches find the slots as earlier ones left them: whatever the kernel wrote into a header has to be reset.
fn slots_are_used_again_by_other_families_and_lengths<O: Os>() {
    let reactor = reactor();
    let four = reactor.add_udp(one(local("127.0.0.1"))).unwrap();
    let six = reactor.add_udp(one(local("::"))).unwrap();
    let (mut ready, mut batch) = (Ready::new(), RecvBatch::<O>::on());
    let (client4, client6) = (client("127.0.0.1"), client("::1"));
    let six_addr = SocketAddr::new("::1".parse().unwrap(), six.local_addr().port());
    for round in 0..5 {
        for (client, to, listener) in [(&client4, four.local_addr(), &four), (&client6, six_addr, &six)] {
            client.send_to(&payload(10 + 200 * round, round), to).unwrap();
            assert_eq!(read(&reactor, &mut ready, &mut batch, listener), 1);
            let datagram = batch.datagrams().next().unwrap();
            assert_eq!(datagram.peer, client.local_addr().unwrap());
            assert!(*datagram.data == payload(10 + 200 * round, round));
        }
    }
}

/// Destinations that the kernel refuses, between ones that it takes: all of the latter arrive, in order.
fn a_bad_destination_loses_only_itself<O: Os>() {
    let reactor = reactor();
    let listener = reactor.add_udp(one(local("127.0.0.1"))).unwrap();
    let other = reactor.add_udp(one(local("127.0.0.1"))).unwrap();
    let mut out = SendBatch::<O>::on();
    let client = client("127.0.0.1");
    let good = UdpRoute { peer: client.local_addr().unwrap(), local: None };
    // Broadcast without SO_BROADCAST; IPv6 from an IPv4 socket.
    let denied = UdpRoute { peer: "255.255.255.255:5060".parse().unwrap(), local: None };
    let wrong = UdpRoute { peer: "[2001:db8::1]:5060".parse().unwrap(), local: None };
    let mut want = Vec::new();
    for i in 0..10u8 {
        out.push_udp(&listener, &denied, |b| b.push(i));
        out.push_udp(&listener, &good, |b| b.push(i));
        want.push((listener.local_addr(), i));
        out.push_udp(&listener, &good, |b| b.resize(b.len() + 70_000, 0));
        out.push_udp(&other, &good, |b| b.push(100 + i));
        want.push((other.local_addr(), 100 + i));
        out.push_udp(&other, &wrong, |b| b.push(i));
    }
    let result = out.flush();
    assert_eq!((result.sent, result.dropped), (20, 30));
    let mut got = Vec::new();
    for _ in 0..20 {
        let mut buffer = [0; 10];
        let (len, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(len, 1);
        got.push((from, buffer[0]));
    }
    // Order is kept per socket.
    for socket in [&listener, &other] {
        let of = |all: &[(SocketAddr, u8)]| -> Vec<u8> {
            all.iter().filter(|(from, _)| *from == socket.local_addr()).map(|(_, byte)| *byte).collect()
        };
        assert_eq!(of(&got), of(&want));
    }
    let listeners = [listener, other];
    let errors = |reason: &str| {
        let mut text = Text::new();
        UdpListener::metrics(&listeners, &mut text);
        let label = format!("reason=\"{reason}\"");
        let text = text.finish();
        let lines = text.lines().filter(|l| l.starts_with("partyline_udp_send_errors_total{") && l.contains(&label));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>()
    };
    assert_eq!(errors("denied"), 10);
    assert_eq!(errors("too_long"), 10);
    assert_eq!(metric(&listeners, "partyline_udp_send_errors_total{"), 30);
    assert_eq!(metric(&listeners, "partyline_udp_sent_total{"), 20);
    assert_eq!(metric(&listeners, "partyline_udp_sent_bytes_total{"), 20);
}

/// A destination that nobody listens on answers with ICMP errors; those must not cost the next datagrams anything.
fn a_closed_port_does_not_disturb<O: Os>() {
    let reactor = reactor();
    let listener = reactor.add_udp(one(local("127.0.0.1"))).unwrap();
    let (mut ready, mut batch, mut out) = (Ready::new(), RecvBatch::<O>::on(), SendBatch::<O>::on());
    let client = client("127.0.0.1");
    let closed = client_address_that_is_closed();
    for i in 0..20u8 {
        out.push_udp(&listener, &UdpRoute { peer: closed, local: None }, |b| b.push(i));
        out.push_udp(&listener, &UdpRoute { peer: client.local_addr().unwrap(), local: None }, |b| b.push(i));
        assert_eq!(out.flush().sent, 2);
        client.send_to(&[i], listener.local_addr()).unwrap();
        assert_eq!(read(&reactor, &mut ready, &mut batch, &listener), 1);
        let mut buffer = [0; 10];
        assert_eq!(client.recv(&mut buffer).unwrap(), 1);
        assert_eq!(buffer[0], i);
    }
}

fn client_address_that_is_closed() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// More than a batch holds flushes by itself, and what is left goes out when the batch is dropped.
fn a_full_batch_flushes_itself<O: Os>() {
    let listener = Arc::new(one(local("127.0.0.1")));
    let client = client("127.0.0.1");
    let to = ReplyTo::Udp {
        listener: Arc::clone(&listener),
        route: UdpRoute { peer: client.local_addr().unwrap(), local: None },
    };
    let mut out = SendBatch::<O>::on();
    for i in 0..=BATCH {
        out.push(&to, |buffer| buffer.extend_from_slice(&(i as u16).to_be_bytes()));
    }
    assert_eq!(out.len(), 1);
    drop(out);
    for i in 0..=BATCH {
        let mut buffer = [0; 10];
        assert_eq!(client.recv(&mut buffer).unwrap(), 2);
        assert_eq!(u16::from_be_bytes([buffer[0], buffer[1]]), i as u16);
    }
    assert_eq!(metric(&[listener], "partyline_udp_sent_total{"), BATCH as u64 + 1);
}

/// Several threads lead in turn on one socket while clients send in bursts larger than a batch. Each leader reads one
/// batch per turn and gives back what it did not handle, so nearly every batch is cut; all datagrams still come out,
/// with nobody sending anything more that could wake a sleeper up.
fn nothing_is_stranded<O: Os>(sockets: usize) {
    const CLIENTS: usize = 4;
    const BURSTS: usize = 25;
    const BURST: usize = 150;
    let reactor = Arc::new(reactor());
    let options = UdpOptions { sockets, ..UdpOptions::default() };
    let listeners: Vec<_> = UdpListener::bind(local("127.0.0.1"), &options)
        .unwrap()
        .into_iter()
        .map(|listener| reactor.add_udp(listener).unwrap())
        .collect();
    let to = listeners[0].local_addr();
    let handled = AtomicUsize::new(0);
    let sent = AtomicUsize::new(0);
    let total = CLIENTS * BURSTS * BURST;
    let leading = parking_lot::Mutex::new(());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let (mut ready, mut batch) = (Ready::new(), RecvBatch::<O>::with_slots(8, 64));
                let start = Instant::now();
                while handled.load(Ordering::SeqCst) < total {
                    assert!(start.elapsed() < LIMIT, "stranded after {} of {total}", handled.load(Ordering::SeqCst));
                    let leader = leading.lock();
                    reactor.wait(&mut ready, Some(Duration::from_secs(1))).unwrap();
                    let first = ready.pop();
                    ready.give_back();
                    // Some batches are read by the leader, some after leadership was given away.
                    let keeps = handled.load(Ordering::SeqCst) % 3 == 0;
                    let leader = if keeps { Some(leader) } else { None };
                    if let Some(Event::Udp(listener)) = first {
                        let count = batch.recv(&listener).unwrap();
                        if handled.fetch_add(count, Ordering::SeqCst) + count >= total {
                            reactor.wake();
                        }
                    }
                    drop(leader);
                }
                reactor.wake();
            });
        }
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let socket = client("127.0.0.1");
                for burst in 0..BURSTS {
                    for i in 0..BURST {
                        socket.send_to(&[burst as u8, i as u8], to).unwrap();
                    }
                    // Not more in flight than the smallest receive buffer holds, so that loss is ours if there is any.
                    let mine = sent.fetch_add(BURST, Ordering::SeqCst) + BURST;
                    let start = Instant::now();
                    while handled.load(Ordering::SeqCst) + 2 * BURST < mine && start.elapsed() < LIMIT {
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
    assert_eq!(handled.load(Ordering::SeqCst), total);
    assert_eq!(metric(&listeners, "partyline_udp_received_total{"), total as u64);
}

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod native {
            $(#[test] fn $name() { super::$name::<super::Native>(); })*
            #[test] fn echoes_ipv4() { super::echoes_every_size::<super::Native>("127.0.0.1", 65_507); }
            #[test] fn echoes_ipv6() { super::echoes_every_size::<super::Native>("::1", 65_527); }
            #[test] fn nothing_is_stranded() { super::nothing_is_stranded::<super::Native>(1); }
            #[cfg(not(windows))] // which has no SO_REUSEPORT
            #[test] fn nothing_is_stranded_on_three() { super::nothing_is_stranded::<super::Native>(3); }
        }
        mod portable {
            $(#[test] fn $name() { super::$name::<super::Portable>(); })*
            #[test] fn echoes_ipv4() { super::echoes_every_size::<super::Portable>("127.0.0.1", 65_507); }
            #[test] fn echoes_ipv6() { super::echoes_every_size::<super::Portable>("::1", 65_527); }
            #[test] fn nothing_is_stranded() { super::nothing_is_stranded::<super::Portable>(1); }
        }
    };
}

on_both!(
    an_empty_datagram_is_one_and_an_empty_answer_is_none,
    a_long_datagram_is_cut_and_says_so,
    slots_are_used_again_by_other_families_and_lengths,
    a_bad_destination_loses_only_itself,
    a_closed_port_does_not_disturb,
    a_full_batch_flushes_itself,
);

#[cfg(target_os = "linux")]
#[test]
fn the_answer_leaves_from_the_address_that_was_asked() {
    let reactor = reactor();
    let four = reactor.add_udp(one(local("0.0.0.0"))).unwrap();
    let six = reactor.add_udp(one(local("::"))).unwrap();
    let both =
        UdpListener::bind(local("::"), &UdpOptions { v6_only: false, ..UdpOptions::default() }).unwrap().remove(0);
    let both = reactor.add_udp(both).unwrap();
    let (mut ready, mut batch, mut out) = (Ready::new(), RecvBatch::new(), SendBatch::new());
    for (listener, client_ip, asked) in [
        (&four, "127.0.0.1", "127.0.0.1"),
        (&four, "127.0.0.1", "127.0.0.2"),
        (&four, "127.0.0.9", "127.1.2.3"),
        (&six, "::1", "::1"),
        (&both, "127.0.0.1", "127.0.0.3"),
        (&both, "::1", "::1"),
    ] {
        let client = client(client_ip);
        let asked = SocketAddr::new(asked.parse().unwrap(), listener.local_addr().port());
        client.send_to(b"x", asked).unwrap();
        assert_eq!(read(&reactor, &mut ready, &mut batch, listener), 1);
        let datagram = batch.datagrams().next().unwrap();
        assert_eq!(datagram.local.map(|ip| ip.to_canonical()), Some(asked.ip()));
        out.push_udp(listener, &datagram.route(), |buffer| buffer.push(b'y'));
        assert_eq!(out.flush().sent, 1);
        let (_, from) = client.recv_from(&mut [0; 4]).unwrap();
        assert_eq!(from, asked);
    }
}

#[test]
fn a_port_in_use_is_said_in_one_sentence() {
    let plain = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = plain.local_addr().unwrap();
    for sockets in [1, 4] {
        let options = UdpOptions { sockets, ..UdpOptions::default() };
        let error = UdpListener::bind(addr, &options).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        let text = error.to_string();
        assert!(text.contains(&addr.to_string()) && text.contains("in use"), "{text}");
        assert!(text.contains("choose another port") && !text.contains('\n'), "{text}");
    }
}

#[cfg(unix)]
#[test]
fn a_shared_port_is_in_use_too() {
    for theirs in [1, 3] {
        let shared = UdpOptions { sockets: 3, ..UdpOptions::default() };
        let first = UdpListener::bind(local("127.0.0.1"), &shared).unwrap();
        let addr = first[0].local_addr();
        assert!(first.iter().all(|listener| listener.local_addr() == addr));
        let options = UdpOptions { sockets: theirs, ..UdpOptions::default() };
        let error = UdpListener::bind(addr, &options).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse, "{error}");
        drop(first);
        UdpListener::bind(addr, &options).unwrap();
    }
}

#[test]
#[cfg_attr(windows, ignore = "Wine takes any address and binds to the wildcard instead")]
fn an_address_of_another_machine_is_said_in_one_sentence() {
    // TEST-NET-1 (RFC 5737).
    let error = UdpListener::bind("192.0.2.1:5060".parse().unwrap(), &UdpOptions::default()).map(drop).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("192.0.2.1:5060") && text.contains("no interface"), "{text}");
}

#[test]
fn buffers_are_as_large_as_the_system_allows() {
    let small =
        UdpListener::bind(local("127.0.0.1"), &UdpOptions { recv_buffer: 8192, ..UdpOptions::default() }).unwrap();
    let large = one(local("127.0.0.1"));
    assert!(large.recv_buffer().unwrap() > small[0].recv_buffer().unwrap());
}

#[cfg(unix)]
#[test]
fn sockets_on_one_port_share_its_clients() {
    let reactor = reactor();
    let options = UdpOptions { sockets: 4, ..UdpOptions::default() };
    let listeners: Vec<_> = UdpListener::bind(local("127.0.0.1"), &options)
        .unwrap()
        .into_iter()
        .map(|listener| reactor.add_udp(listener).unwrap())
        .collect();
    let clients: Vec<_> = (0..100).map(|_| client("127.0.0.1")).collect();
    for client in &clients {
        client.send_to(b"x", listeners[0].local_addr()).unwrap();
    }
    let (mut ready, mut batch) = (Ready::new(), RecvBatch::new());
    let (mut peers, mut used) = (BTreeSet::new(), BTreeSet::new());
    let start = Instant::now();
    while peers.len() < clients.len() {
        assert!(start.elapsed() < LIMIT, "{} of {}", peers.len(), clients.len());
        reactor.wait(&mut ready, Some(LIMIT)).unwrap();
        while let Some(Event::Udp(listener)) = ready.pop() {
            if batch.recv(&listener).unwrap() > 0 {
                used.insert(listeners.iter().position(|known| Arc::ptr_eq(known, &listener)).unwrap());
            }
            peers.extend(batch.datagrams().map(|datagram| datagram.peer));
        }
    }
    // 100 clients on one of four sockets by chance: 4^-99.
    assert!(used.len() > 1, "{used:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn multicast_is_heard_when_asked_for() {
    let group: IpAddr = "224.0.1.75".parse().unwrap();
    let options = UdpOptions { multicast: vec![group], multicast_interface: 1, ..UdpOptions::default() };
    assert!(
        UdpListener::bind(local("127.0.0.1"), &options).map(drop).unwrap_err().to_string().contains("wildcard"),
        "a socket bound to one address would hear nothing"
    );
    let reactor = reactor();
    let listener = reactor.add_udp(UdpListener::bind(local("0.0.0.0"), &options).unwrap().remove(0)).unwrap();
    let (mut ready, mut batch, mut out) = (Ready::new(), RecvBatch::new(), SendBatch::new());
    let client = client("127.0.0.1");
    socket2::SockRef::from(&client).set_multicast_if_v4(&Ipv4Addr::LOCALHOST).unwrap();
    client.send_to(b"REGISTER", (group, listener.local_addr().port())).unwrap();
    assert_eq!(read(&reactor, &mut ready, &mut batch, &listener), 1);
    let datagram = batch.datagrams().next().unwrap();
    // A group cannot answer; one of our own addresses does.
    assert!(!datagram.local.unwrap().is_multicast());
    out.push_udp(&listener, &datagram.route(), |buffer| buffer.extend_from_slice(b"SIP/2.0 200 OK"));
    assert_eq!(out.flush().sent, 1);
    assert_eq!(client.recv(&mut [0; 100]).unwrap(), 14);
}
