//! Answers every request with 346 fixed bytes through `net`, over UDP and TCP on one port: what
//! `c-harness/bench/udp_bare.c` and `tcp_bare.c` do with bare system calls. Their `load` drives all of them;
//! `scripts/bench-transport.py` compares.
//!
//!     net_echo PORT            one thread, its own loop over the reactor
//!     net_echo PORT portable   the same with the portable system calls
//!     net_echo PORT sched      a leader/follower pool of two threads over the reactor
//!     net_echo PORT engine     a whole engine with a registrar in memory, UDP only; ends at the end of its stdin
//!
//! Ends at the word QUIT and prints messages, CPU microseconds per message, and what of it was in the kernel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use partyline::engine::{Engine, RegistrarOptions, open_registrar};
use partyline::net::{
    Event, Native, Os, Portable, Reactor, Ready, RecvBatch, SendBatch, StreamOptions, StreamReader, Streams,
    TcpAcceptor, TcpOptions, UdpListener, UdpOptions,
};
use partyline::sched::{Leader, Options, Pool, Source};

const ANSWER: [u8; 346] = [b'a'; 346];

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().ok_or("usage: net_echo PORT [portable|sched|engine]")?.parse()?;
    match arguments.next().as_deref() {
        None => alone(Server::<Native>::open(port)?, "net_echo"),
        Some("portable") => alone(Server::<Portable>::open(port)?, "net_echo_portable"),
        Some("sched") => in_turn(Server::<Native>::open(port)?),
        Some("engine") => engine(port),
        Some(other) => Err(format!("there is no way of serving called {other}").into()),
    }
}

/// What a thread needs while it serves; the others wait in a stack.
struct Desk<O: Os> {
    ready: Ready,
    batch: RecvBatch<O>,
    out: SendBatch<O>,
    reader: StreamReader,
}

struct Server<O: Os> {
    reactor: Reactor,
    streams: Arc<Streams>,
    desks: Mutex<Vec<Desk<O>>>,
    messages: AtomicU64,
    quit: AtomicBool,
}

impl<O: Os> Server<O> {
    fn open(port: u16) -> Result<Arc<Self>, Failure> {
        let addr = ([127, 0, 0, 1], port).into();
        let reactor = Reactor::new()?;
        for listener in UdpListener::bind(addr, &UdpOptions::default())? {
            reactor.add_udp(listener)?;
        }
        let streams = Streams::new(&reactor, StreamOptions::default(), None)?;
        reactor.add_tcp(TcpAcceptor::bind(addr, &TcpOptions::default())?)?;
        Ok(Arc::new(Server {
            reactor,
            streams,
            desks: Mutex::new(Vec::new()),
            messages: AtomicU64::new(0),
            quit: AtomicBool::new(false),
        }))
    }

    fn desk() -> Desk<O> {
        Desk { ready: Ready::new(), batch: RecvBatch::on(), out: SendBatch::on(), reader: StreamReader::new() }
    }

    /// One wait, and what it brought.
    fn turn(&self, desk: &mut Desk<O>, timeout: Option<Duration>) {
        let Desk { ready, batch, out, reader } = desk;
        let interval = self.streams.expire_interval();
        let timeout = [timeout, interval].into_iter().flatten().min();
        self.reactor.wait(ready, timeout).expect("the reactor waits");
        if interval.is_some() {
            self.streams.expire(Instant::now());
        }
        let (mut messages, mut quit) = (0, false);
        while let Some(event) = ready.pop() {
            match event {
                Event::Udp(listener) => {
                    messages += batch.recv(&listener).unwrap_or(0) as u64;
                    for datagram in batch.datagrams() {
                        quit |= &*datagram.data == b"QUIT";
                        out.push_udp(&listener, &datagram.route(), |b| b.extend_from_slice(&ANSWER));
                    }
                    out.flush();
                }
                Event::Accept(acceptor) => {
                    self.streams.accept(&acceptor);
                }
                Event::Stream(mut stream) => {
                    let count = stream.handle(reader, |message| {
                        quit |= message.data.starts_with(b"QUIT");
                        out.push_conn(message.conn, |b| b.extend_from_slice(&ANSWER));
                    });
                    messages += count as u64;
                    out.flush();
                }
            }
        }
        self.messages.fetch_add(messages, Ordering::Relaxed);
        if quit {
            self.quit.store(true, Ordering::SeqCst);
        }
    }
}

impl Source for Server<Native> {
    fn lead(&self, leader: &mut Leader<'_>, timeout: Option<Duration>) {
        let mut desk = self.desks.lock().pop().unwrap_or_else(Self::desk);
        leader.events_came();
        self.turn(&mut desk, timeout);
        self.desks.lock().push(desk);
    }

    fn wake(&self) {
        self.reactor.wake();
    }
}

fn alone<O: Os>(server: Arc<Server<O>>, name: &str) -> Result<(), Failure> {
    let mut desk = Server::<O>::desk();
    while !server.quit.load(Ordering::SeqCst) {
        server.turn(&mut desk, None);
    }
    report(name, server.messages.load(Ordering::Relaxed));
    Ok(())
}

fn in_turn(server: Arc<Server<Native>>) -> Result<(), Failure> {
    let pool = Pool::new(Options::default(), Some(Arc::clone(&server) as Arc<dyn Source>))?;
    pool.start()?;
    while !server.quit.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(50));
    }
    pool.stop(Duration::from_secs(1));
    report("net_echo_sched", server.messages.load(Ordering::Relaxed));
    Ok(())
}

fn engine(port: u16) -> Result<(), Failure> {
    let text = |e: partyline::ffi::Error| e.text.into_owned();
    let registrar = open_registrar(RegistrarOptions::default(), "memory:").map_err(text)?;
    let engine = Engine::new();
    engine.listen(&format!("udp:127.0.0.1:{port}")).map_err(text)?;
    engine.attach(registrar).map_err(text)?;
    engine.start().map_err(text)?;
    std::io::stdin().read_line(&mut String::new())?;
    let figures = engine.figures();
    if figures.answered * 100 < figures.received * 99 {
        return Err(format!("{} of {} requests were answered", figures.answered, figures.received).into());
    }
    report("engine", figures.answered);
    engine.stop(Duration::from_secs(1)).map_err(text)?;
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
