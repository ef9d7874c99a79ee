//! Windows: connections that come and go over the completion port leave nothing behind, and both ways of waiting give the
//! same answers.
#![cfg(windows)]

mod net_support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use net_support::{LIMIT, Server, answer_to, read_exactly, request, until};
use partyline::net::{
    Backend, Event, Reactor, Ready, RecvBatch, SendBatch, StreamOptions, Streams, TcpAcceptor, TcpOptions, UdpListener,
    UdpOptions,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, GetProcessHandleCount};

fn handles() -> u32 {
    let mut count = 0;
    // SAFETY: one u32 is written.
    assert!(unsafe { GetProcessHandleCount(GetCurrentProcess(), &mut count) } != 0);
    count
}

/// Small numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn reset(client: &TcpStream) {
    socket2::SockRef::from(client).set_linger(Some(Duration::ZERO)).unwrap();
}

/// One client's life: it may end anywhere, and so may the server's side of it.
fn live(server: &Server, one: &[u8], dice: &mut Dice) {
    let mut client = server.connect();
    match dice.roll(8) {
        0 => {}
        1 => {
            client.write_all(one).unwrap();
            assert_eq!(read_exactly(&mut client, answer_to(one).len()), answer_to(one));
        }
        2 => {
            client.write_all(&one[..1 + dice.roll(one.len() as u64 - 1) as usize]).unwrap();
            reset(&client);
        }
        3 => {
            client.write_all(&one.repeat(1 + dice.roll(20) as usize)).unwrap();
            reset(&client);
        }
        4 => {
            client.write_all(&one.repeat(3)).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_exactly(&mut client, answer_to(one).len() * 3), answer_to(one).repeat(3));
        }
        // Closed by the server with receives in flight, maybe twice.
        5 | 6 => {
            if let Some(conn) = server.streams.find(client.local_addr().unwrap(), None) {
                conn.disconnect();
                conn.disconnect();
            }
            let _ = client.write_all(one);
        }
        // Closed by the server with sends in flight that the client never reads, and cancelled by its going.
        _ => {
            let addr = client.local_addr().unwrap();
            until("the connection", || server.streams.find(addr, None).is_some());
            let conn = server.streams.find(addr, None).unwrap();
            let big = request("NOTIFY", &[7; 50_000]);
            for _ in 0..1 + dice.roll(8) {
                let _ = conn.send(&big);
            }
            conn.disconnect();
        }
    }
}

#[test]
fn handles_and_operations_return_to_the_start() {
    const THREADS: u64 = 3;
    let rounds: u64 = std::env::var("PARTYLINE_SOAK_ROUNDS").map_or(150, |rounds| rounds.parse().unwrap());
    let one = request("REGISTER", b"0123456789");
    let server = Server::start(StreamOptions::default(), 3);
    let storm = |rounds: u64, seed: u64| {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (server, one) = (&server, &one);
                scope.spawn(move || {
                    let mut dice = Dice(seed * 1000 + thread + 1);
                    (0..rounds).for_each(|_| live(server, one, &mut dice));
                });
            }
        });
        server.all_gone();
    };
    let idle = server.reactor.operations();
    // What is made once and kept, Winsock's and ours, is there after the first storm.
    storm(20, 1);
    until("the first storm's operations", || server.reactor.operations() == idle);
    let before = handles();
    storm(rounds, 2);
    until("the operations have ended", || server.reactor.operations() == idle);
    let total = server.metric("partyline_stream_opened_total");
    // A client that resets at once may be gone before it is accepted.
    assert!(total > THREADS * (rounds + 20) / 2 && total <= THREADS * (rounds + 20), "{total}");
    // Sockets that are kept to be used again are handles too, and there are never more than were open at a time.
    until("the handles are closed", || handles() <= before + 8);
    println!("{total} connections: {idle} operations and {before} handles before, {} after", handles());
}

/// Connections that nobody answers, and that are let go of while they are being made.
#[test]
fn connections_that_are_given_up_leave_no_operation() {
    let server = Server::start(StreamOptions::default(), 2);
    let idle = server.reactor.operations();
    let peer = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let open = peer.local_addr().unwrap();
    for port in 0..20 {
        // Nobody listens on port 1 of these; 192.0.2.0/24 (RFC 5737) is nowhere.
        for to in [SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([192, 0, 2, 1], 5060 + port)), open] {
            if let Ok(conn) = server.streams.connect(to, None) {
                let _ = conn.send(b"hello");
                conn.disconnect();
            }
        }
    }
    server.all_gone();
    until("the operations have ended", || server.reactor.operations() == idle);
}

#[test]
fn a_reactor_that_ends_takes_its_operations_along() {
    let run = || {
        let reactor = Arc::new(Reactor::new().unwrap());
        let streams = Streams::new(&reactor, StreamOptions::default(), None).unwrap();
        let acceptor = TcpAcceptor::bind("127.0.0.1:0".parse().unwrap(), &TcpOptions::default()).unwrap();
        let acceptor = reactor.add_tcp(acceptor).unwrap();
        let udp = UdpListener::bind("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap().remove(0);
        let udp = reactor.add_udp(udp).unwrap();
        let clients: Vec<_> = (0..4).map(|_| TcpStream::connect(acceptor.local_addr()).unwrap()).collect();
        let mut ready = Ready::new();
        while streams.open_count() < 4 {
            reactor.wait(&mut ready, Some(LIMIT)).unwrap();
            while let Some(event) = ready.pop() {
                if let Event::Accept(acceptor) = event {
                    streams.accept(&acceptor);
                }
            }
        }
        streams.close_all();
        drop((clients, ready, streams, reactor, acceptor, udp));
    };
    run();
    let before = handles();
    (0..10).for_each(|_| run());
    until("the handles are closed", || handles() <= before + 4);
}

fn echo_datagrams(backend: Backend) -> Vec<Vec<u8>> {
    let reactor = Reactor::with_backend(backend).unwrap();
    let listener = UdpListener::bind("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap().remove(0);
    let listener = reactor.add_udp(listener).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    let (mut ready, mut batch, mut out) = (Ready::new(), RecvBatch::new(), SendBatch::new());
    let mut answers = Vec::new();
    for round in 0..50usize {
        client.send_to(&vec![round as u8; 1 + round * 100], listener.local_addr()).unwrap();
        let mut handled = 0;
        while handled == 0 {
            reactor.wait(&mut ready, Some(LIMIT)).unwrap();
            while let Some(Event::Udp(listener)) = ready.pop() {
                handled += batch.recv(&listener).unwrap();
                for datagram in batch.datagrams() {
                    out.push(&datagram.reply_to(&listener), |b| b.extend_from_slice(datagram.data));
                }
                out.flush();
            }
        }
        let mut answer = [0; 8192];
        let count = client.recv(&mut answer).unwrap();
        answers.push(answer[..count].to_vec());
    }
    assert_eq!(reactor.operations() > 0, backend == Backend::System);
    answers
}

fn echo_stream(backend: Backend) -> Vec<u8> {
    let server = Server::on(backend, StreamOptions::default(), 2, Arc::new(net_support::echo));
    assert_eq!(server.reactor.operations() > 0, backend == Backend::System);
    let mut client = server.connect();
    let all: Vec<_> = (0..50).map(|i| request(&format!("M{i}"), &vec![i as u8; i * 300])).collect();
    let want: Vec<u8> = all.iter().flat_map(|request| answer_to(request)).collect();
    let mut reader = client.try_clone().unwrap();
    let got = std::thread::scope(|scope| {
        let reading = scope.spawn(|| read_exactly(&mut reader, want.len()));
        all.concat().chunks(777).for_each(|piece| client.write_all(piece).unwrap());
        reading.join().unwrap()
    });
    assert!(got == want);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    server.all_gone();
    got
}

#[test]
fn both_ways_of_waiting_give_the_same_answers() {
    let sent: Vec<_> = (0..50usize).map(|round| vec![round as u8; 1 + round * 100]).collect();
    assert!(echo_datagrams(Backend::System) == sent);
    assert!(echo_datagrams(Backend::Readiness) == sent);
    assert!(echo_stream(Backend::System) == echo_stream(Backend::Readiness));
}

/// Answers per second to a client that keeps 32 datagrams on their way.
fn datagram_rate(backend: Backend, count: u32) -> f64 {
    const WINDOW: u32 = 32;
    let reactor = Reactor::with_backend(backend).unwrap();
    let listener = UdpListener::bind("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap().remove(0);
    let listener = reactor.add_udp(listener).unwrap();
    let to = listener.local_addr();
    let client = std::thread::spawn(move || {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        let (one, mut answer) = ([7; 500], [0; 600]);
        let began = Instant::now();
        for _ in 0..WINDOW {
            client.send_to(&one, to).unwrap();
        }
        for got in 1..=count {
            assert_eq!(client.recv(&mut answer).unwrap(), one.len());
            if got + WINDOW <= count {
                client.send_to(&one, to).unwrap();
            }
        }
        f64::from(count) / began.elapsed().as_secs_f64()
    });
    let (mut ready, mut batch, mut out) = (Ready::new(), RecvBatch::new(), SendBatch::new());
    while !client.is_finished() {
        reactor.wait(&mut ready, Some(Duration::from_millis(100))).unwrap();
        while let Some(Event::Udp(listener)) = ready.pop() {
            batch.recv(&listener).unwrap();
            for datagram in batch.datagrams() {
                out.push(&datagram.reply_to(&listener), |b| b.extend_from_slice(datagram.data));
            }
            out.flush();
        }
    }
    client.join().unwrap()
}

/// Answers per second on one connection per thread, one request at a time on each.
fn stream_rate(backend: Backend, count: u32) -> f64 {
    const CLIENTS: u32 = 8;
    let server = Server::on(backend, StreamOptions::default(), 2, Arc::new(net_support::echo));
    let one = request("REGISTER", &[b'x'; 400]);
    let want = answer_to(&one);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
    let began = Instant::now();
    for _ in 0..count / CLIENTS {
        clients.iter_mut().for_each(|client| client.write_all(&one).unwrap());
        clients.iter_mut().for_each(|client| assert!(read_exactly(client, want.len()) == want));
    }
    let rate = f64::from(count / CLIENTS * CLIENTS) / began.elapsed().as_secs_f64();
    drop(clients);
    server.all_gone();
    rate
}

#[test]
#[ignore = "figures, for scripts/test-windows.sh"]
fn figures_of_both_ways() {
    for round in 1..=3 {
        for (name, backend) in [("port", Backend::System), ("readiness", Backend::Readiness)] {
            let (udp, tcp) = (datagram_rate(backend, 4000), stream_rate(backend, 4000));
            println!("figure windows_{name} round {round}: UDP {udp:.0} answers/s, TCP {tcp:.0} answers/s");
        }
    }
}
