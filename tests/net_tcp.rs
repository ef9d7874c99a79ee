//! Stream connections on real loopback sockets.

mod net_support;

use std::io::{Read, Write};
#[cfg(target_os = "linux")]
use std::net::TcpStream;
use std::net::{Shutdown, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use net_support::{LIMIT, Server, answer_to, read_exactly, read_to_end, request, until};
use parking_lot::Mutex;
use partyline::net::{
    Conn, CustomFramer, FramerLimits, Framing, ReplyTo, SendBatch, SendFailed, StreamOptions, Streams, TcpAcceptor,
    TcpOptions,
};
use proptest::prelude::*;

fn body(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + seed) as u8).collect()
}

#[test]
fn requests_are_answered_in_order_however_they_are_cut() {
    let server = Server::start(StreamOptions::default(), 2);
    let strategy = (
        // More than a first buffer holds, and more than a batch.
        prop::collection::vec(prop_oneof![0usize..600, 600usize..20_000, Just(60_000)], 1..100),
        prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    );
    let config = ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |((sizes, cuts) in strategy)| {
        let requests: Vec<_> = sizes.iter().enumerate().map(|(i, len)| request(&format!("M{i}"), &body(*len, i))).collect();
        let stream = requests.concat();
        let want: Vec<u8> = requests.iter().flat_map(|request| answer_to(request)).collect();
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        at.extend([0, stream.len()]);
        at.sort_unstable();
        let mut client = server.connect();
        let mut reader = client.try_clone().unwrap();
        let got = std::thread::scope(|scope| {
            let reading = scope.spawn(|| read_exactly(&mut reader, want.len()));
            for cut in at.windows(2) {
                client.write_all(&stream[cut[0]..cut[1]]).unwrap();
            }
            reading.join().unwrap()
        });
        prop_assert!(got == want);
    });
    server.all_gone();
}

#[test]
fn byte_by_byte_and_all_at_once() {
    let server = Server::start(StreamOptions::default(), 1);
    let mut client = server.connect();
    let one = request("REGISTER", b"hello");
    for byte in &one {
        client.write_all(&[*byte]).unwrap();
    }
    assert_eq!(read_exactly(&mut client, answer_to(&one).len()), answer_to(&one));
    // 500 requests in one write: several batches from one reading, none left behind.
    client.write_all(&one.repeat(500)).unwrap();
    assert_eq!(read_exactly(&mut client, answer_to(&one).len() * 500), answer_to(&one).repeat(500));
    assert_eq!(server.metric("partyline_stream_received_total"), 501);
}

#[test]
fn a_ping_is_answered_with_a_line_end() {
    let server = Server::start(StreamOptions::default(), 1);
    let mut client = server.connect();
    client.write_all(b"\r\n\r\n").unwrap();
    assert_eq!(read_exactly(&mut client, 2), b"\r\n");
    client.write_all(b"\r\n\r").unwrap();
    client.write_all(b"\n\r\n").unwrap();
    let one = request("OPTIONS", b"");
    client.write_all(&one).unwrap();
    let want = [b"\r\n".as_slice(), &answer_to(&one)].concat();
    assert_eq!(read_exactly(&mut client, want.len()), want);
    assert_eq!(server.metric("partyline_stream_pings_total"), 2);
}

#[test]
fn a_broken_head_is_answered_and_the_connection_closed() {
    let server = Server::start(StreamOptions::default(), 1);
    let one = request("OPTIONS", b"");
    for line in ["", "Content-Length: x\r\n", "l: 1\r\nl: 2\r\n", "l: 9999999\r\n"] {
        let mut client = server.connect();
        client.write_all(&one).unwrap();
        client.write_all(format!("INVITE sip:b SIP/2.0\r\n{line}\r\n").as_bytes()).unwrap();
        let mut want = answer_to(&one);
        want.extend_from_slice(b"SIP/2.0 400 Bad Request\r\nl: 0\r\n\r\n");
        assert_eq!(String::from_utf8(read_to_end(&mut client)).unwrap(), String::from_utf8(want).unwrap());
    }
    server.all_gone();
    assert_eq!(server.closed("framing"), 4);
    assert_eq!(server.metric("partyline_stream_framing_errors_total"), 4);
}

#[test]
fn garbage_closes_at_once() {
    let limits = FramerLimits { head: 300, message: 1000 };
    let server = Server::start(StreamOptions { limits, ..StreamOptions::default() }, 1);
    for garbage in [b"\x16\x03\x01\x02\x00".to_vec(), vec![0; 100], vec![b'A'; 10_000]] {
        let mut client = server.connect();
        // It may be closed while we still write.
        let _ = client.write_all(&garbage);
        assert_eq!(read_to_end(&mut client), b"");
    }
    server.all_gone();
    assert_eq!(server.closed("framing"), 3);
}

#[test]
fn limits_in_all_and_per_source() {
    for (options, name) in [
        (StreamOptions { connections: 3, ..StreamOptions::default() }, "all"),
        (StreamOptions { per_source: 3, ..StreamOptions::default() }, "source"),
    ] {
        let server = Server::start(options, 1);
        let mut kept: Vec<_> = (0..3).map(|_| server.connect()).collect();
        server.until("three connections", || server.streams.open_count() == 3);
        let mut refused = server.connect();
        assert_eq!(read_to_end(&mut refused), b"");
        assert_eq!(server.metric(&format!("partyline_stream_refused_total{{limit=\"{name}\"}}")), 1);
        // Those inside are served, and one that leaves makes room.
        let one = request("OPTIONS", b"");
        for client in &mut kept {
            client.write_all(&one).unwrap();
            assert_eq!(read_exactly(client, answer_to(&one).len()), answer_to(&one));
        }
        kept.pop();
        server.until("one has left", || server.streams.open_count() == 2);
        let mut again = server.connect();
        again.write_all(&one).unwrap();
        assert_eq!(read_exactly(&mut again, answer_to(&one).len()), answer_to(&one));
    }
}

#[test]
fn who_is_silent_slow_or_idle_is_closed() {
    let short = Duration::from_millis(300);
    let long = Duration::from_secs(600);
    let base = StreamOptions { first_bytes: long, message_limit: long, idle: long, ..StreamOptions::default() };
    for (options, reason) in [
        (StreamOptions { first_bytes: short, ..base.clone() }, "silent_too_long"),
        (StreamOptions { message_limit: short, ..base.clone() }, "message_too_slow"),
        (StreamOptions { idle: short, ..base.clone() }, "idle"),
    ] {
        let server = Server::start(options, 1);
        let mut client = server.connect();
        let one = request("OPTIONS", b"");
        match reason {
            "message_too_slow" => {
                // A byte now and then does not help: the clock runs from the first.
                client.write_all(&one).unwrap();
                read_exactly(&mut client, answer_to(&one).len());
                client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                let mut sent = 0;
                while client.write_all(&one[sent % 10..=sent % 10]).is_ok() {
                    sent += 1;
                    match client.read(&mut [0; 10]) {
                        Ok(0) => break,
                        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                        _ => assert!(sent < 1000, "a slow message is not closed"),
                    }
                }
            }
            "idle" => {
                client.write_all(&one).unwrap();
                assert_eq!(read_to_end(&mut client), answer_to(&one));
            }
            _ => assert_eq!(read_to_end(&mut client), b""),
        }
        server.all_gone();
        assert_eq!(server.closed(reason), 1, "{reason}");
    }
}

/// A message whose time is up while it is being handled is not slow.
#[test]
fn a_slow_handler_is_not_a_slow_peer() {
    let may_go_on = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let gate = Arc::clone(&may_go_on);
    let server = Server::with(
        StreamOptions { message_limit: Duration::from_millis(300), ..StreamOptions::default() },
        2,
        Arc::new(move |message, out| {
            until("the gate", || gate.load(std::sync::atomic::Ordering::SeqCst));
            net_support::echo(message, out);
        }),
    );
    let one = request("INVITE", b"body");
    let mut client = server.connect();
    client.write_all(&one[..20]).unwrap();
    server.until("the first part", || server.metric("partyline_stream_received_bytes_total") == 20);
    client.write_all(&one[20..]).unwrap();
    server.until("the whole", || server.metric("partyline_stream_received_total") == 1);
    // A peer that began later and really is slow shows that the time is up.
    let mut slow = server.connect();
    slow.write_all(&one[..20]).unwrap();
    assert_eq!(read_to_end(&mut slow), b"");
    may_go_on.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(read_exactly(&mut client, answer_to(&one).len()), answer_to(&one));
    // Counted when the connection is finished, after the peer has seen its end.
    server.until("the slow one is counted", || server.metric("partyline_stream_closed_total") == 1);
    assert_eq!(server.closed("message_too_slow"), 1);
}

#[test]
fn a_peer_that_does_not_read_is_bounded_and_closed() {
    let server = Server::start(StreamOptions { outbound: 100_000, ..StreamOptions::default() }, 2);
    let client = server.connect();
    let addr = client.local_addr().unwrap();
    server.until("the connection", || server.streams.find(addr, None).is_some());
    let conn = server.streams.find(addr, None).unwrap();
    // Never reading: what is sent to it fills both socket buffers and then our own bound.
    let big = request("NOTIFY", &body(50_000, 1));
    let failed = (0..2000).find_map(|_| conn.send(&big).err());
    assert_eq!(failed, Some(SendFailed::Full));
    assert_eq!(conn.send(b"x"), Err(SendFailed::Closed));
    server.all_gone();
    assert_eq!(server.closed("slow_reader"), 1);
    assert_eq!(server.metric("partyline_stream_unsent_total"), 2);
}

/// It asks for much more than our bound and all socket buffers hold, and reads only when it can write no more.
#[test]
fn a_peer_that_asks_faster_than_it_reads_is_made_to_read() {
    let server = Server::start(StreamOptions { outbound: 60_000, ..StreamOptions::default() }, 2);
    let mut client = server.connect();
    let big = request("MESSAGE", &body(10_000, 1)).repeat(3000);
    let want = answer_to(&request("MESSAGE", &body(10_000, 1)));
    let (mut written, mut read) = (0, 0);
    client.set_nonblocking(true).unwrap();
    let start = std::time::Instant::now();
    let mut stalls = 0;
    let mut buffer = vec![0; want.len() * 5];
    while read < want.len() * 3000 {
        assert!(start.elapsed() < LIMIT, "stuck at {written} written, {read} read, {stalls} stalls");
        match client.write(&big[written..]) {
            Ok(count) if count > 0 => {
                written += count;
                continue;
            }
            _ => stalls += 1,
        }
        match client.read(&mut buffer) {
            Ok(0) => panic!("closed after {written} written, {read} read"),
            Ok(count) => {
                let ok = buffer[..count].iter().enumerate().all(|(i, byte)| *byte == want[(read + i) % want.len()]);
                assert!(ok, "answers changed at {read}");
                read += count;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(server.streams.open_count(), 1);
}

#[test]
fn a_peer_that_stops_reading_is_closed_after_a_while() {
    let options =
        StreamOptions { write_limit: Duration::from_millis(300), outbound: 64 << 20, ..StreamOptions::default() };
    let server = Server::start(options, 2);
    let mut client = server.connect();
    let big = request("MESSAGE", &body(50_000, 1));
    client.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    for _ in 0..400 {
        if client.write_all(&big).is_err() {
            break;
        }
    }
    server.all_gone();
    assert_eq!(server.closed("slow_reader"), 1);
}

#[test]
fn a_slow_reader_gets_everything_in_order() {
    let options = StreamOptions { outbound: 64 << 20, write_limit: LIMIT, ..StreamOptions::default() };
    let server = Server::start(options, 3);
    let mut client = server.connect();
    let requests: Vec<_> = (0..300).map(|i| request(&format!("M{i}"), &body(40_000, i))).collect();
    let want: Vec<u8> = requests.iter().flat_map(|request| answer_to(request)).collect();
    for request in &requests {
        client.write_all(request).unwrap();
    }
    server.until("all read", || server.metric("partyline_stream_received_total") == 300);
    assert!(read_exactly(&mut client, want.len()) == want);
}

#[test]
fn a_half_closed_peer_still_gets_its_answers() {
    // Answers are given later, by another thread, as after a commit.
    let kept = Arc::new(Mutex::new(Vec::<(ReplyTo, Vec<u8>)>::new()));
    let keep = Arc::clone(&kept);
    let server = Server::with(
        StreamOptions::default(),
        2,
        Arc::new(move |message, _| keep.lock().push((message.conn.reply_to(None), answer_to(message.data)))),
    );
    let mut client = server.connect();
    let both = [request("REGISTER", b"1"), request("REGISTER", b"22")];
    client.write_all(&both.concat()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    server.until("both requests", || kept.lock().len() == 2);
    let mut out = SendBatch::new();
    for (to, answer) in kept.lock().drain(..) {
        out.push(&to, |b| b.extend_from_slice(&answer));
        assert_eq!(out.flush().sent, 1);
    }
    assert_eq!(read_to_end(&mut client), both.iter().flat_map(|r| answer_to(r)).collect::<Vec<_>>());
    server.all_gone();
    assert_eq!(server.closed("peer"), 1);
}

#[test]
fn a_half_closed_peer_that_nobody_answers_is_closed() {
    let options = StreamOptions { linger: Duration::from_millis(200), ..StreamOptions::default() };
    let server = Server::with(options, 1, Arc::new(|_, _| {}));
    let mut client = server.connect();
    client.write_all(&request("REGISTER", b"")).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client), b"");
    server.all_gone();
}

#[test]
fn connections_are_opened_on_demand_and_found_again() {
    let server = Server::start(StreamOptions::default(), 2);
    let peer = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = peer.local_addr().unwrap();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let streams = Arc::clone(&server.streams);
            std::thread::spawn(move || {
                for i in 0..200 {
                    let conn = streams.connect(to, None).unwrap();
                    conn.send(&request(&format!("T{thread}"), format!("{i}").as_bytes())).unwrap();
                }
            })
        })
        .collect();
    let (mut accepted, _) = peer.accept().unwrap();
    accepted.set_read_timeout(Some(LIMIT)).unwrap();
    for thread in threads {
        thread.join().unwrap();
    }
    // All on this one connection, whole, and in the order of each thread.
    let mut next = [0; 4];
    let mut got = Vec::new();
    while next != [200; 4] {
        let mut buffer = [0; 8192];
        let count = accepted.read(&mut buffer).unwrap();
        assert_ne!(count, 0);
        got.extend_from_slice(&buffer[..count]);
        loop {
            let text = String::from_utf8(got.clone()).unwrap();
            let Some(end) = text.find("\r\n\r\n") else { break };
            let thread: usize = text[1..2].parse().unwrap();
            let want = request(&format!("T{thread}"), format!("{}", next[thread]).as_bytes());
            assert!(text.starts_with('T'), "{text}");
            if got.len() < end || got.len() < want.len() {
                break;
            }
            assert!(got.starts_with(&want), "{text}");
            got.drain(..want.len());
            next[thread] += 1;
        }
    }
    assert_eq!(server.streams.open_count(), 1);
    let conn = server.streams.find(to, None).unwrap();
    assert_eq!(conn.local(), accepted.peer_addr().unwrap());
    assert!(server.streams.find(to, Some("127.0.0.2".parse().unwrap())).is_none());
    // It is framed like any other: a request that comes over it is answered.
    let one = request("OPTIONS", b"x");
    accepted.write_all(&one).unwrap();
    assert_eq!(read_exactly(&mut accepted, answer_to(&one).len()), answer_to(&one));
    // From an address of our choice: another connection.
    let other = server.streams.connect(to, Some("127.0.0.2".parse().unwrap())).unwrap();
    assert_ne!(other.id(), conn.id());
    assert_eq!(peer.accept().unwrap().1.ip(), other.local().ip());
}

#[test]
fn a_connection_that_cannot_be_opened_is_reported_once() {
    let server = Server::start(StreamOptions::default(), 1);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let conn = server.streams.connect(closed, None).unwrap();
    // It may have failed already.
    let _ = conn.send(b"x");
    server.until("the failure", || server.log.count("disconnected connect_failed") == 1);
    assert_eq!(conn.send(b"x"), Err(SendFailed::Closed));
    assert_eq!(conn.peer(), closed);
    assert!(server.streams.find(closed, None).is_none());
    server.all_gone();
    assert_eq!(server.log.count("connected"), 0);
    assert_eq!(server.log.count("disconnected"), 1);
}

#[test]
fn an_answer_finds_its_connection_or_opens_another_but_never_a_strangers() {
    let kept: Arc<Mutex<Vec<(Conn, ReplyTo)>>> = Arc::default();
    let keep = Arc::clone(&kept);
    let peer = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = peer.local_addr().unwrap();
    let server = Server::with(
        StreamOptions::default(),
        2,
        Arc::new(move |message, _| {
            let reopen = message.data.starts_with(b"REOPEN").then_some(to);
            keep.lock().push((message.conn.clone(), message.conn.reply_to(reopen)));
        }),
    );
    for name in ["LOSE", "REOPEN"] {
        let mut client = server.connect();
        client.write_all(&request(name, b"")).unwrap();
        server.until("the request", || kept.lock().len() == 1);
        let (conn, reply) = kept.lock().pop().unwrap();
        conn.disconnect();
        server.all_gone();
        drop(conn);
        // Another client gets the object of the first (its index is the lower half of the number).
        let ReplyTo::Stream { id: gone, .. } = &reply else { panic!("not a connection") };
        let mut strangers = Vec::new();
        let mut stranger = loop {
            assert!(strangers.len() < 50, "the object is not used again");
            let client = server.connect();
            let addr = client.local_addr().unwrap();
            server.until("the stranger", || server.streams.find(addr, None).is_some());
            if server.streams.find(addr, None).unwrap().id().to_bits() as u32 == gone.to_bits() as u32 {
                break client;
            }
            strangers.push(client);
        };
        let mut out = SendBatch::new();
        out.push(&reply, |b| b.extend_from_slice(b"SIP/2.0 200 OK\r\nl: 0\r\n\r\n"));
        let sent = out.flush();
        if name == "REOPEN" {
            assert_eq!((sent.sent, sent.dropped), (1, 0));
            let (mut accepted, _) = peer.accept().unwrap();
            assert_eq!(read_exactly(&mut accepted, 24), b"SIP/2.0 200 OK\r\nl: 0\r\n\r\n"[..24]);
        } else {
            assert_eq!((sent.sent, sent.dropped), (0, 1));
        }
        stranger.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut stranger), b"");
        server.streams.close_all();
        server.all_gone();
    }
}

#[test]
fn callbacks_come_in_order_and_end_once() {
    let server = Server::start(StreamOptions::default(), 3);
    let one = request("OPTIONS", b"abc");
    let clients: Vec<_> = (0..20)
        .map(|i| {
            let mut client = server.connect();
            client.write_all(&one.repeat(i % 3 + 1)).unwrap();
            read_exactly(&mut client, answer_to(&one).len() * (i % 3 + 1));
            client
        })
        .collect();
    drop(clients);
    server.all_gone();
    server.until("20 closings", || server.log.count("disconnected") == 20);
    let lines = server.log.lines.lock();
    let mut ids: Vec<u64> = lines.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 20);
    for id in ids {
        let of: Vec<&str> = lines.iter().filter(|(known, _)| *known == id).map(|(_, text)| text.as_str()).collect();
        assert_eq!(of.first(), Some(&"connected"));
        assert!(of.last().unwrap().starts_with("disconnected "), "{of:?}");
        assert_eq!(of.iter().filter(|text| text.starts_with("connected")).count(), 1);
        assert_eq!(of.iter().filter(|text| text.starts_with("disconnected")).count(), 1);
        let received = of.iter().filter(|text| **text == format!("received {}", one.len())).count();
        assert!((1..=3).contains(&received));
        let sent: usize = of.iter().filter_map(|text| text.strip_prefix("sent ")?.parse::<usize>().ok()).sum();
        assert_eq!(sent, received * answer_to(&one).len());
    }
}

#[test]
fn a_panicking_handler_loses_its_connection_only() {
    let server = Server::with(
        StreamOptions::default(),
        1,
        Arc::new(|message, out| {
            assert!(!message.data.starts_with(b"BOOM"), "on purpose");
            net_support::echo(message, out);
        }),
    );
    let one = request("OPTIONS", b"");
    for _ in 0..3 {
        let mut bad = server.connect();
        bad.write_all(&[request("BOOM", b""), one.clone()].concat()).unwrap();
        assert_eq!(read_to_end(&mut bad), b"");
        let mut good = server.connect();
        good.write_all(&one).unwrap();
        assert_eq!(read_exactly(&mut good, answer_to(&one).len()), answer_to(&one));
    }
    server.all_gone();
    assert_eq!(server.log.count("disconnected local"), 3);
}

struct TwoByteLength;

impl CustomFramer for TwoByteLength {
    fn frame(&self, _: &Conn, data: &[u8]) -> Framing {
        let [high, low, rest @ ..] = data else { return Framing::More };
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        match len {
            0xffff => Framing::Refused,
            _ if rest.len() < len => Framing::More,
            _ => Framing::Message(len + 2),
        }
    }
}

#[test]
fn another_protocol_brings_its_framer() {
    let options = StreamOptions { framer: Some(Arc::new(TwoByteLength)), ..StreamOptions::default() };
    let server = Server::with(
        options,
        1,
        Arc::new(|message, out| {
            let data = message.data.to_vec();
            out.push_conn(message.conn, |b| b.extend_from_slice(&data));
        }),
    );
    let mut client = server.connect();
    let mut stream = Vec::new();
    for len in [0u16, 1, 5000, 3, 9000, 2] {
        stream.extend_from_slice(&len.to_be_bytes());
        stream.extend(body(usize::from(len), 3));
    }
    for piece in stream.chunks(1777) {
        client.write_all(piece).unwrap();
    }
    assert!(read_exactly(&mut client, stream.len()) == stream);
    client.write_all(&[0xff, 0xff]).unwrap();
    assert_eq!(read_to_end(&mut client), b"");
    server.all_gone();
    assert_eq!(server.closed("framing"), 1);
}

#[test]
fn a_port_in_use_is_said_in_one_sentence() {
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let shared = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    #[cfg(unix)]
    shared.set_reuse_port(true).unwrap();
    shared.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    shared.listen(1).unwrap();
    for addr in [plain.local_addr().unwrap(), shared.local_addr().unwrap().as_socket().unwrap()] {
        let error = TcpAcceptor::bind(addr, &TcpOptions::default()).map(drop).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&addr.to_string()) && text.contains("in use"), "{text}");
    }
}

#[cfg(target_os = "linux")]
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Clients that come, talk, half-close, reset and vanish from several threads at once, while others close connections
/// from inside: everything is back at the start afterwards.
#[cfg(target_os = "linux")]
#[test]
fn storms_leave_nothing_behind() {
    let server =
        Server::start(StreamOptions { message_limit: Duration::from_millis(400), ..StreamOptions::default() }, 3);
    const THREADS: usize = 4;
    const ROUNDS: usize = 150;
    let one = request("REGISTER", b"0123456789");
    std::thread::scope(|scope| {
        let storm = |thread: usize| {
            let (server, one) = (&server, &one);
            move || {
                for round in 0..ROUNDS {
                    let mut client = server.connect();
                    match (round + thread) % 6 {
                        0 => {}
                        1 => {
                            client.write_all(one).unwrap();
                            read_exactly(&mut client, answer_to(one).len());
                        }
                        // Reset in the middle of a message, or with answers on their way.
                        2 | 3 => {
                            let part = if round % 2 == 0 { one.len() / 2 } else { one.len() };
                            client.write_all(&one[..part]).unwrap();
                            let socket = socket2::SockRef::from(&client);
                            socket.set_linger(Some(Duration::ZERO)).unwrap();
                        }
                        4 => {
                            client.write_all(&one.repeat(3)).unwrap();
                            client.shutdown(Shutdown::Write).unwrap();
                            assert_eq!(read_to_end(&mut client), answer_to(one).repeat(3));
                        }
                        _ => {
                            if let Some(conn) = server.streams.find(client.local_addr().unwrap(), None) {
                                conn.disconnect();
                                conn.disconnect();
                            }
                            read_to_end_or_talk(&mut client, one);
                        }
                    }
                }
            }
        };
        let running: Vec<_> = (0..THREADS).map(|thread| scope.spawn(storm(thread))).collect();
        // The wait at a scope's end is in std, where ThreadSanitizer does not see it.
        running.into_iter().for_each(|thread| thread.join().unwrap());
    });
    server.all_gone();
    let total = server.metric("partyline_stream_opened_total");
    server.until("all closings called back", || server.log.count("disconnected") as u64 == total);
    assert_eq!(server.log.count("connected") as u64, total);
    // Objects are used again: there are not more than were ever open at a time (and on their way out).
    assert!(server.streams.object_count() < total as usize / 2, "{} of {total}", server.streams.object_count());
    // Other tests of this program open descriptors too; what counts is that the storm's hundreds are gone.
    until("the descriptors are closed", || descriptors() < 150);
}

#[cfg(target_os = "linux")]
fn read_to_end_or_talk(client: &mut TcpStream, one: &[u8]) {
    if client.write_all(one).is_ok() {
        let mut answer = vec![0; answer_to(one).len()];
        // Closed from inside, or answered, whichever was first.
        let _ = client.read_exact(&mut answer);
    }
}

#[test]
fn an_idle_connection_is_small() {
    let bytes = Streams::bytes_per_idle_connection();
    println!("bytes per idle connection: {bytes}");
    assert!(bytes <= 512);
}
