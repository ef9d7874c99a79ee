//! What the transport allocates: nothing per message in steady state, and little per idle connection. A program of its
//! own, for it counts every allocation of the thread that runs the test (the harness's own thread allocates as well).

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use partyline::net::{
    Event, Native, Os, Portable, Reactor, Ready, RecvBatch, SendBatch, StreamOptions, StreamReader, Streams,
    TcpAcceptor, TcpOptions, UdpListener, UdpOptions,
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static LIVE: Cell<u64> = const { Cell::new(0) };
}

fn allocations() -> u64 {
    ALLOCATIONS.get()
}

fn count(allocations: u64, bytes: i64) {
    // Fails only while the thread ends, when nobody counts any more.
    let _ = ALLOCATIONS.try_with(|all| all.set(all.get() + allocations));
    let _ = LIVE.try_with(|live| live.set(live.get().wrapping_add_signed(bytes)));
}

// SAFETY: hands everything on to the system's allocator and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as i64);
        // SAFETY: the caller's promises are System's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(0, -(layout.size() as i64));
        // SAFETY: the caller's promises are System's.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn rounds<O: Os>(answers: usize) -> u64 {
    let reactor = Reactor::new().unwrap();
    let bound = UdpListener::bind("0.0.0.0:0".parse().unwrap(), &UdpOptions::default()).unwrap().remove(0);
    let listener = reactor.add_udp(bound).unwrap();
    let to = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().port()));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut ready, mut batch, mut out) = (Ready::new(), RecvBatch::<O>::on(), SendBatch::<O>::on());
    let mut buffer = [0; 2000];
    let mut round = || {
        // More than one batch, so that marks are part of it.
        for _ in 0..80 {
            client.send_to(&[b'x'; 465], to).unwrap();
        }
        let mut answered = 0;
        while answered < 80 {
            reactor.wait(&mut ready, Some(Duration::from_secs(20))).unwrap();
            while let Some(Event::Udp(found)) = ready.pop() {
                batch.recv(&found).unwrap();
                for datagram in batch.datagrams() {
                    out.push_udp(&found, &datagram.route(), |b| b.extend_from_slice(&datagram.data[..346]));
                }
                answered += out.flush().sent;
            }
        }
        for _ in 0..80 {
            assert_eq!(client.recv(&mut buffer).unwrap(), 346);
        }
    };
    for _ in 0..3 {
        round();
    }
    let before = allocations();
    for _ in 0..answers {
        round();
    }
    allocations() - before
}

const REQUEST: &[u8] = b"OPTIONS sip:x SIP/2.0\r\nl: 0\r\n\r\n";

struct Tcp {
    reactor: Reactor,
    streams: std::sync::Arc<Streams>,
    acceptor: std::sync::Arc<TcpAcceptor>,
    ready: Ready,
    reader: StreamReader,
    out: SendBatch,
}

impl Tcp {
    fn new() -> Tcp {
        let reactor = Reactor::new().unwrap();
        let streams = Streams::new(&reactor, StreamOptions::default(), None).unwrap();
        let acceptor = TcpAcceptor::bind("127.0.0.1:0".parse().unwrap(), &TcpOptions::default()).unwrap();
        let acceptor = reactor.add_tcp(acceptor).unwrap();
        Tcp { reactor, streams, acceptor, ready: Ready::new(), reader: StreamReader::new(), out: SendBatch::new() }
    }

    /// Handles what comes until `until` messages have been answered or, with 0, until `open` connections are there.
    fn serve(&mut self, messages: usize, open: usize) {
        let start = Instant::now();
        let mut handled = 0;
        while handled < messages || self.streams.open_count() < open {
            assert!(start.elapsed() < Duration::from_secs(20), "{handled} of {messages}");
            self.reactor.wait(&mut self.ready, self.streams.expire_interval()).unwrap();
            self.streams.expire(Instant::now());
            while let Some(event) = self.ready.pop() {
                match event {
                    Event::Accept(acceptor) => drop(self.streams.accept(&acceptor)),
                    Event::Stream(mut stream) => {
                        let out = &mut self.out;
                        handled += stream.handle(&mut self.reader, |message| {
                            out.push_conn(message.conn, |b| b.extend_from_slice(b"SIP/2.0 200 OK\r\nl: 0\r\n\r\n"));
                        });
                        self.out.flush();
                    }
                    Event::Udp(_) => {}
                }
            }
        }
    }
}

fn ask(client: &mut TcpStream, server: &mut Tcp) {
    let mut answer = [0; 24];
    client.write_all(REQUEST).unwrap();
    server.serve(1, 0);
    client.read_exact(&mut answer[..24]).unwrap();
}

/// Allocations of 500 requests on connections that are there.
fn requests_over_tcp() -> u64 {
    let mut server = Tcp::new();
    let mut clients: Vec<_> = (0..10).map(|_| TcpStream::connect(server.acceptor.local_addr()).unwrap()).collect();
    server.serve(0, 10);
    for _ in 0..2 {
        clients.iter_mut().for_each(|client| ask(client, &mut server));
    }
    let before = allocations();
    for _ in 0..50 {
        clients.iter_mut().for_each(|client| ask(client, &mut server));
    }
    allocations() - before
}

/// Bytes of ours per connection, for so many that have each been answered and have nothing to say now.
fn idle_connections(count: usize) -> u64 {
    let mut server = Tcp::new();
    let mut clients = Vec::with_capacity(count);
    clients.push(TcpStream::connect(server.acceptor.local_addr()).unwrap());
    server.serve(0, 1);
    ask(&mut clients[0], &mut server);
    let before = LIVE.get();
    for _ in 0..count {
        clients.push(TcpStream::connect(server.acceptor.local_addr()).unwrap());
        server.serve(0, clients.len());
        let last = clients.len() - 1;
        ask(&mut clients[last], &mut server);
    }
    // The vector of clients has grown past its capacity by one, which is not the server's.
    let ours = LIVE.get() - before - (clients.capacity() - count) as u64 * 4;
    ours / count as u64
}

#[test]
fn nothing_per_message_and_little_per_connection() {
    // The counter counts at all: an allocation on purpose.
    let before = allocations();
    drop(std::hint::black_box(Box::new(1u64)));
    assert!(allocations() > before);
    assert_eq!(rounds::<Native>(20), 0);
    assert_eq!(rounds::<Portable>(20), 0);
    // The wheel grows a bucket now and then, at most once per tick: nothing that depends on the number of requests.
    let some = requests_over_tcp();
    assert!(some <= 10, "{some} allocations for 500 requests");
    let bytes = idle_connections(400);
    println!("{bytes} bytes per idle connection, {} by size", Streams::bytes_per_idle_connection());
    assert!(bytes <= 512, "{bytes} bytes per idle connection");
}
