//! What concerns the whole process: descriptors that run out, and SIGPIPE as a C program has it. A program of its own
//! with one test, for the limits and the signal are everybody's.
#![cfg(target_os = "linux")]

mod net_support;

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use net_support::{Server, answer_to, read_exactly, request};
use partyline::net::StreamOptions;

fn set_descriptor_limit(limit: u64) -> u64 {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid rlimit.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut now), 0);
        let before = now.rlim_cur;
        now.rlim_cur = limit;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const now), 0);
        before
    }
}

/// Every number below it is taken, and at most `spare` more can be opened.
fn leave_descriptors(spare: u64) -> u64 {
    let probe = std::fs::File::open("/dev/null").unwrap();
    let lowest = std::os::fd::AsRawFd::as_raw_fd(&probe) as u64;
    set_descriptor_limit(lowest + spare)
}

#[test]
fn descriptors_run_out_and_peers_vanish() {
    // SAFETY: no handler is installed; a C host has SIGPIPE at its default, where Rust's start-up has it ignored.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let server = Server::start(StreamOptions::default(), 2);
    let one = request("OPTIONS", b"x");

    // Accepting rests when descriptors run out, and nothing spins meanwhile.
    let mut clients: Vec<TcpStream> = (0..60).map(|_| server.connect()).collect();
    server.until("all accepted", || server.streams.open_count() == 60);
    drop(clients.split_off(5));
    server.until("most have gone", || server.streams.open_count() == 5);
    // Sockets for 60 more clients, opened before the limit comes down; they connect after it.
    let sockets: Vec<_> =
        (0..60).map(|_| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap()).collect();
    let before = leave_descriptors(10);
    for socket in &sockets {
        socket.set_read_timeout(Some(net_support::LIMIT)).unwrap();
        socket.connect(&server.addr().into()).unwrap();
    }
    server.until("accepting rests", || server.metric("partyline_stream_accept_pauses_total") >= 1);
    let (waits, pauses) =
        (server.metric("partyline_reactor_waits_total"), server.metric("partyline_stream_accept_pauses_total"));
    server.until("a few more pauses", || server.metric("partyline_stream_accept_pauses_total") >= pauses + 5);
    let (waits, pauses) = (
        server.metric("partyline_reactor_waits_total") - waits,
        server.metric("partyline_stream_accept_pauses_total") - pauses,
    );
    assert!(waits <= pauses * 6 + 20, "{waits} waits in {pauses} pauses: it spins");
    // Who is inside is served.
    for client in &mut clients {
        client.write_all(&one).unwrap();
        assert_eq!(read_exactly(client, answer_to(&one).len()), answer_to(&one));
    }
    // With descriptors again, all who waited are let in.
    set_descriptor_limit(before);
    for socket in sockets {
        let mut client = TcpStream::from(socket);
        client.write_all(&one).unwrap();
        assert_eq!(read_exactly(&mut client, answer_to(&one).len()), answer_to(&one));
    }
    drop(clients);
    server.all_gone();

    // Writing to peers that have reset their connections raises no signal.
    for _ in 0..50 {
        let mut client = server.connect();
        let addr = client.local_addr().unwrap();
        client.write_all(&one).unwrap();
        server.until("the connection", || server.streams.find(addr, None).is_some());
        let conn = server.streams.find(addr, None).unwrap();
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        while conn.send(&one).is_ok() {}
    }
    server.all_gone();
}
