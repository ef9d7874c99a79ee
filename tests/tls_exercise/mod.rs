//! A TLS listener under arbitrary bytes, and a sound session cut and changed on its way: what the fuzz drivers of TLS run.
//!
//! The first byte of an input says what the rest is:
//! - even: bytes that come instead of a hello, in pieces whose lengths are taken from the last eight;
//! - odd: a rustls client's session. The next three say which byte of what the client sends is changed, and how (0: none);
//!   the others are the lengths of the pieces, one after the other and again from the first.
//!
//! What must hold: nothing panics, no byte of a message is made up (of a changed session a beginning arrives, of a sound
//! one all), and no connection is left behind.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use partyline::net::{
    Event, Reactor, Ready, SendBatch, StreamOptions, StreamReader, Streams, TcpAcceptor, TcpOptions, TlsFiles,
    TlsServer,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

const CERTIFICATE: &str = include_str!("certificate.pem");
const KEY: &str = include_str!("key.pem");
const LIMIT: Duration = Duration::from_secs(20);

/// One listener for all inputs.
struct Listener {
    reactor: Reactor,
    streams: Arc<Streams>,
    addr: SocketAddr,
    ready: Ready,
    reader: StreamReader,
    out: SendBatch,
    /// What arrived over the connection of this input.
    arrived: Vec<u8>,
    client: Arc<ClientConfig>,
}

impl Listener {
    fn open() -> Listener {
        let dir = std::env::temp_dir().join(format!("partyline-tls-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let files = TlsFiles { certificate: dir.join("certificate.pem"), key: dir.join("key.pem") };
        std::fs::write(&files.certificate, CERTIFICATE).unwrap();
        std::fs::write(&files.key, KEY).unwrap();
        let tls = TlsServer::open(files).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let reactor = Reactor::new().unwrap();
        let streams = Streams::new(&reactor, StreamOptions::default(), None).unwrap();
        let options = TcpOptions { tls: Some(tls), ..TcpOptions::default() };
        let acceptor = TcpAcceptor::bind("127.0.0.1:0".parse().unwrap(), &options).unwrap();
        let addr = acceptor.local_addr();
        reactor.add_tcp(acceptor).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Listener {
            reactor,
            streams,
            addr,
            ready: Ready::new(),
            reader: StreamReader::new(),
            out: SendBatch::new(),
            arrived: Vec::new(),
            client: Arc::new(client),
        }
    }

    /// Handles what has come by now; with a limit, waits so long for something.
    fn turn(&mut self, limit: Duration) {
        self.reactor.wait(&mut self.ready, Some(limit)).unwrap();
        while let Some(event) = self.ready.pop() {
            match event {
                Event::Accept(acceptor) => {
                    self.streams.accept(&acceptor);
                }
                Event::Stream(mut stream) => {
                    let (out, arrived) = (&mut self.out, &mut self.arrived);
                    stream.handle(&mut self.reader, |message| {
                        arrived.extend_from_slice(message.data);
                        out.push_conn(message.conn, |b| b.extend_from_slice(b"SIP/2.0 200 OK\r\nl: 0\r\n\r\n"));
                    });
                    self.out.flush();
                    drop(stream);
                }
                Event::Udp(_) => {}
            }
        }
    }

    /// Turns until `done` says so.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Listener) -> bool) {
        let end = Instant::now() + LIMIT;
        while !done(self) {
            assert!(Instant::now() < end, "never came: {what}");
            self.turn(Duration::from_millis(1));
        }
    }

    fn connect(&mut self) -> TcpStream {
        let socket = TcpStream::connect(self.addr).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.set_nodelay(true).unwrap();
        // Its end is a reset: a million of them must not wait for their time in TIME_WAIT.
        socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        self.until("the connection", |listener| listener.streams.open_count() == 1);
        self.arrived.clear();
        socket
    }

    /// The peer goes; nothing of it stays.
    fn part(&mut self, socket: TcpStream) {
        drop(socket);
        self.until("the end of the connection", |listener| listener.streams.open_count() == 0);
        self.streams.expire(Instant::now());
        assert!(self.streams.object_count() <= 2, "{} objects for one connection", self.streams.object_count());
    }

    fn raw(&mut self, bytes: &[u8]) {
        let cuts = &bytes[bytes.len().saturating_sub(8)..];
        let mut socket = self.connect();
        let mut rest = bytes;
        for at in 0.. {
            let piece = cuts.get(at % cuts.len().max(1)).map_or(1, |cut| usize::from(*cut).max(1)).min(rest.len());
            // A listener that has closed resets who goes on.
            if rest.is_empty() || socket.write(&rest[..piece]).is_err() {
                break;
            }
            rest = &rest[piece..];
            self.turn(Duration::ZERO);
        }
        assert!(self.arrived.is_empty(), "a message without a key");
        self.part(socket);
    }

    /// Whether a change was made on the way.
    fn session(&mut self, plan: &[u8]) -> bool {
        let place =
            usize::from(plan.first().copied().unwrap_or(0)) << 8 | usize::from(plan.get(1).copied().unwrap_or(0));
        let change = plan.get(2).copied().unwrap_or(0);
        let cuts = plan.get(3..).filter(|cuts| !cuts.is_empty()).unwrap_or(&[255]);
        let name = ServerName::try_from("sip.example.org").unwrap();
        let mut client = ClientConnection::new(Arc::clone(&self.client), name).unwrap();
        let mut sent = Vec::new();
        for (number, body) in [0, 300, 20_000].into_iter().enumerate() {
            let text = format!("OPTIONS sip:x SIP/2.0\r\nCSeq: {number} OPTIONS\r\nl: {body}\r\n\r\n");
            sent.extend_from_slice(text.as_bytes());
            sent.resize(sent.len() + body, b'a' + number as u8);
        }
        client.writer().write_all(&sent).unwrap();
        let mut socket = self.connect();
        let (mut wire, mut gone, mut cut, mut changed, mut broken) = (Vec::new(), 0, 0, false, false);
        let (mut answers, mut buffer) = (Vec::new(), vec![0; 4096]);
        let end = Instant::now() + LIMIT;
        while !broken && answers.len() < 3 * 24 {
            assert!(Instant::now() < end, "the session hangs: {} answers", answers.len() / 24);
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut moved = false;
            if gone < wire.len() {
                if !changed && place < wire.len() && gone <= place && change != 0 {
                    wire[place] ^= change;
                    changed = true;
                }
                // A byte at a time would be as many system calls as bytes: the pieces are up to 4 kB.
                let piece = (usize::from(cuts[cut % cuts.len()]) * 16 + 1).min(wire.len() - gone);
                cut += 1;
                match socket.write(&wire[gone..gone + piece]) {
                    Ok(count) => (gone, moved) = (gone + count, true),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => broken = true,
                }
            }
            self.turn(Duration::ZERO);
            match socket.read(&mut buffer) {
                Ok(0) => broken = true,
                Ok(count) => {
                    moved = true;
                    let mut bytes = &buffer[..count];
                    while !bytes.is_empty() {
                        client.read_tls(&mut bytes).unwrap();
                        // The listener's alert, after a change.
                        broken |= client.process_new_packets().is_err();
                    }
                    let _ = client.reader().read_to_end(&mut answers);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => broken = true,
            }
            // A changed length makes the listener wait for what does not come.
            if changed && !moved && gone == wire.len() {
                break;
            }
            if !moved {
                self.turn(Duration::from_millis(1));
            }
        }
        assert!(sent.starts_with(&self.arrived), "{} bytes arrived that nobody sent", self.arrived.len());
        if !changed {
            assert!(!broken && self.arrived.len() == sent.len(), "{} of {}", self.arrived.len(), sent.len());
        }
        self.part(socket);
        changed
    }
}

/// Whether a sound session went through unchanged.
pub fn exercise(input: &[u8]) -> bool {
    static LISTENER: OnceLock<Mutex<Listener>> = OnceLock::new();
    let listener = LISTENER.get_or_init(|| Mutex::new(Listener::open()));
    let mut listener = listener.lock().unwrap();
    match input.split_first() {
        Some((kind, plan)) if kind % 2 == 1 => !listener.session(plan),
        Some((_, bytes)) => {
            listener.raw(bytes);
            false
        }
        None => false,
    }
}
