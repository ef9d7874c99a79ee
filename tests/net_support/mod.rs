//! A small server over `net`: threads that lead in turn, one accepted port, a handler for whole messages.
#![allow(dead_code)] // each test program uses a part

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use partyline::net::{
    Backend, CloseReason, Conn, Event, Reactor, Ready, SendBatch, StreamEvents, StreamMessage, StreamOptions,
    StreamReader, Streams, Taken, TcpAcceptor, TcpOptions,
};
use partyline::observe::Text;

/// Every operation under Wine goes through one more process, which other builds may starve.
pub const LIMIT: Duration = Duration::from_secs(if cfg!(windows) { 60 } else { 20 });

/// A reactor over the backend that PARTYLINE_TEST_BACKEND names; `scripts/test-windows.sh` runs both.
pub fn reactor() -> Reactor {
    Reactor::with_backend(backend()).unwrap()
}

fn backend() -> Backend {
    match std::env::var("PARTYLINE_TEST_BACKEND").as_deref() {
        Ok("readiness") => Backend::Readiness,
        Ok(other) => panic!("PARTYLINE_TEST_BACKEND={other}: not a backend"),
        Err(_) => Backend::System,
    }
}

pub type Handler = dyn Fn(StreamMessage<'_>, &mut SendBatch) + Send + Sync;

pub struct Server {
    pub reactor: Arc<Reactor>,
    pub streams: Arc<Streams>,
    pub acceptor: Arc<TcpAcceptor>,
    pub log: Arc<Log>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What the callbacks said, in order.
#[derive(Default)]
pub struct Log {
    pub lines: Mutex<Vec<(u64, String)>>,
}

impl Log {
    fn add(&self, conn: &Conn, text: String) {
        self.lines.lock().push((conn.id().to_bits(), text));
    }
    pub fn count(&self, what: &str) -> usize {
        self.lines.lock().iter().filter(|(_, text)| text.starts_with(what)).count()
    }
}

impl StreamEvents for Log {
    fn connected(&self, conn: &Conn) {
        self.add(conn, "connected".into());
    }
    fn disconnected(&self, conn: &Conn, reason: CloseReason) {
        self.add(conn, format!("disconnected {}", reason.name()));
    }
    fn error(&self, conn: &Conn, error: &std::io::Error) {
        self.add(conn, format!("error {error}"));
    }
    fn received(&self, conn: &Conn, message: &[u8]) -> Taken {
        self.add(conn, format!("received {}", message.len()));
        Taken::Pass
    }
    fn sent(&self, conn: &Conn, bytes: usize) {
        self.add(conn, format!("sent {bytes}"));
    }
}

/// Answers a request with its own start line and body, a broken one with 400, a response not at all.
pub fn echo(message: StreamMessage<'_>, out: &mut SendBatch) {
    if message.data.starts_with(b"SIP/2.0") {
        return;
    }
    if message.error.is_some() {
        out.push_conn(message.conn, |b| b.extend_from_slice(b"SIP/2.0 400 Bad Request\r\nl: 0\r\n\r\n"));
        return;
    }
    let answer = answer_to(message.data);
    out.push_conn(message.conn, |b| b.extend_from_slice(&answer));
}

pub fn request(name: &str, body: &[u8]) -> Vec<u8> {
    let mut all =
        format!("{name} sip:x SIP/2.0\r\nVia: SIP/2.0/TCP 127.0.0.1\r\nContent-Length: {}\r\n\r\n", body.len())
            .into_bytes();
    all.extend_from_slice(body);
    all
}

pub fn answer_to(request: &[u8]) -> Vec<u8> {
    let head = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let name = request.split(|b| *b == b' ').next().unwrap();
    let mut all =
        format!("SIP/2.0 200 OK\r\nX: {}\r\nl: {}\r\n\r\n", String::from_utf8_lossy(name), request.len() - head)
            .into_bytes();
    all.extend_from_slice(&request[head..]);
    all
}

impl Server {
    pub fn start(options: StreamOptions, threads: usize) -> Server {
        Self::with(options, threads, Arc::new(echo))
    }

    pub fn with(options: StreamOptions, threads: usize, handler: Arc<Handler>) -> Server {
        Self::on(backend(), options, threads, handler)
    }

    pub fn on(backend: Backend, options: StreamOptions, threads: usize, handler: Arc<Handler>) -> Server {
        let reactor = Arc::new(Reactor::with_backend(backend).unwrap());
        let log = Arc::new(Log::default());
        let streams = Streams::new(&reactor, options, Some(Arc::clone(&log) as Arc<dyn StreamEvents>)).unwrap();
        let acceptor = TcpAcceptor::bind("127.0.0.1:0".parse().unwrap(), &TcpOptions::default()).unwrap();
        let acceptor = reactor.add_tcp(acceptor).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let leading = Arc::new(Mutex::new(()));
        let threads = (0..threads)
            .map(|_| {
                let (reactor, streams) = (Arc::clone(&reactor), Arc::clone(&streams));
                let (stop, leading, handler) = (Arc::clone(&stop), Arc::clone(&leading), Arc::clone(&handler));
                std::thread::spawn(move || {
                    let (mut ready, mut reader, mut out) = (Ready::new(), StreamReader::new(), SendBatch::new());
                    while !stop.load(Ordering::SeqCst) {
                        let leader = leading.lock();
                        reactor.wait(&mut ready, Some(streams.expire_interval().unwrap_or(LIMIT))).unwrap();
                        streams.expire(Instant::now());
                        let event = ready.pop();
                        ready.give_back();
                        drop(leader);
                        match event {
                            Some(Event::Accept(acceptor)) => {
                                streams.accept(&acceptor);
                            }
                            Some(Event::Stream(mut stream)) => {
                                // As at the border to C, where a panic stops as well.
                                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                                    stream.handle(&mut reader, |message| handler(message, &mut out))
                                }));
                                out.flush();
                                drop(stream);
                            }
                            Some(Event::Udp(_)) | None => {}
                        }
                    }
                    // For the next thread that still waits.
                    reactor.wake();
                })
            })
            .collect();
        Server { reactor, streams, acceptor, log, stop, threads }
    }

    pub fn addr(&self) -> SocketAddr {
        self.acceptor.local_addr()
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    pub fn metric(&self, prefix: &str) -> u64 {
        let mut text = Text::new();
        self.streams.metrics(&mut text);
        self.reactor.metrics(&mut text);
        let text = text.finish();
        let mut lines = text.lines().filter(|line| line.starts_with(prefix)).peekable();
        assert!(lines.peek().is_some(), "no figure {prefix}");
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
    }

    pub fn closed(&self, reason: &str) -> u64 {
        self.metric(&format!("partyline_stream_closed_total{{reason=\"{reason}\"}}"))
    }

    /// Waits for a condition that is sure to come.
    pub fn until(&self, what: &str, condition: impl Fn() -> bool) {
        until(what, condition);
    }

    /// Nobody is connected any more, and every connection has come and gone once.
    pub fn all_gone(&self) {
        self.until("all connections closed", || self.streams.open_count() == 0);
        self.until("all closings reported", || {
            self.metric("partyline_stream_closed_total") == self.metric("partyline_stream_opened_total")
        });
    }
}

pub fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "never came: {what}");
        std::thread::yield_now();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.reactor.wake();
        for thread in self.threads.drain(..) {
            let result = thread.join();
            if !std::thread::panicking() {
                result.unwrap();
            }
        }
        self.streams.close_all();
    }
}

pub fn read_exactly(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut got = vec![0; len];
    stream.read_exact(&mut got).unwrap();
    got
}

/// All that comes until the connection ends, in whatever way.
pub fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return got,
            Ok(count) => got.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return got,
            Err(error) => panic!("{error}"),
        }
    }
}
