//! Answers every request with 346 fixed bytes through `net`, one thread, over UDP and TCP on one port: what
//! `c-harness/bench/udp_bare.c` and `tcp_bare.c` do with bare system calls. Their `load` drives both.
//!
//!     net_echo PORT [portable]
//!
//! Ends at the word QUIT and prints messages, CPU microseconds per message, and what of it was in the kernel.

use std::time::Instant;

use partyline::net::{
    Event, Native, Os, Portable, Reactor, Ready, RecvBatch, SendBatch, StreamOptions, StreamReader, Streams,
    TcpAcceptor, TcpOptions, UdpListener, UdpOptions,
};

const ANSWER: [u8; 346] = [b'a'; 346];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().ok_or("usage: net_echo PORT [portable]")?.parse()?;
    match arguments.next().as_deref() {
        None => serve::<Native>("net_echo", port),
        Some(_) => serve::<Portable>("net_echo_portable", port),
    }
}

fn serve<O: Os>(name: &str, port: u16) -> Result<(), Box<dyn std::error::Error>> {
    let addr = ([127, 0, 0, 1], port).into();
    let reactor = Reactor::new()?;
    for listener in UdpListener::bind(addr, &UdpOptions::default())? {
        reactor.add_udp(listener)?;
    }
    let streams = Streams::new(&reactor, StreamOptions::default(), None)?;
    reactor.add_tcp(TcpAcceptor::bind(addr, &TcpOptions::default())?)?;
    let (mut ready, mut batch, mut out, mut reader) =
        (Ready::new(), RecvBatch::<O>::on(), SendBatch::<O>::on(), StreamReader::new());
    let (mut messages, mut quit) = (0u64, false);
    while !quit {
        reactor.wait(&mut ready, streams.expire_interval())?;
        streams.expire(Instant::now());
        while let Some(event) = ready.pop() {
            match event {
                Event::Udp(listener) => {
                    messages += batch.recv(&listener)? as u64;
                    for datagram in batch.datagrams() {
                        quit |= &*datagram.data == b"QUIT";
                        out.push_udp(&listener, &datagram.route(), |b| b.extend_from_slice(&ANSWER));
                    }
                    out.flush();
                }
                Event::Accept(acceptor) => {
                    streams.accept(&acceptor);
                }
                Event::Stream(mut stream) => {
                    let count = stream.handle(&mut reader, |message| {
                        quit |= message.data.starts_with(b"QUIT");
                        out.push_conn(message.conn, |b| b.extend_from_slice(&ANSWER));
                    });
                    messages += count as u64;
                    out.flush();
                }
            }
        }
    }
    report(name, messages);
    Ok(())
}

fn report(name: &str, messages: u64) {
    // utime and stime, fields 14 and 15 of proc(5), in ticks of 10 ms; the name in field 2 has no blanks here.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks: Vec<f64> = stat.split(' ').skip(13).take(2).filter_map(|field| field.parse().ok()).collect();
    if let [user, kernel] = ticks[..] {
        let per = |ticks: f64| ticks * 10_000.0 / messages as f64;
        println!(
            "{name} messages {messages} cpu_us_per_message {:.3} user {:.3} kernel {:.3}",
            per(user + kernel),
            per(user),
            per(kernel)
        );
    }
}
