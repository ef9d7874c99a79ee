//! SIP over TLS: an engine with a registrar in memory, and peers of two other implementations (openssl, rustls), which call
//! and are called.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::{Duration, Instant};

use partyline::engine::{Engine, RegistrarOptions, open_registrar};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

const LIMIT: Duration = Duration::from_secs(20);

/// Counts what threads other than the peers' have allocated and not given back.
struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);
thread_local! { static PEER: Cell<bool> = const { Cell::new(false) }; }

fn count(bytes: isize) {
    if !PEER.try_with(Cell::get).unwrap_or(true) {
        LIVE.fetch_add(bytes, Ordering::SeqCst);
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test looks at what all threads have allocated: it runs while no other does.
static MACHINE: parking_lot::RwLock<()> = parking_lot::RwLock::new(());

fn dir(test: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tls-{test}"));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// A certificate for 127.0.0.1 that vouches for itself: its file, and its key's.
fn certificate(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    certificate_for(dir, name, "IP:127.0.0.1")
}

fn certificate_for(dir: &Path, name: &str, whom: &str) -> (PathBuf, PathBuf) {
    let [config, certificate, key] = ["cnf", "crt", "key"].map(|end| dir.join(format!("{name}.{end}")));
    let text = format!(
        "[req]\ndistinguished_name=dn\nx509_extensions=ext\nprompt=no\n[dn]\nCN=partyline test\n\
         [ext]\nbasicConstraints=critical,CA:FALSE\nsubjectAltName={whom}\n"
    );
    fs::write(&config, text).unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-config".as_ref(), config.as_os_str(), "-out".as_ref(), certificate.as_os_str()])
        .args(["-keyout".as_ref(), key.as_os_str()])
        .output()
        .expect("openssl is installed (scripts/deps.sh test)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (certificate, key)
}

struct Server {
    engine: Arc<Engine>,
    addr: SocketAddr,
    certificate: PathBuf,
    key: PathBuf,
}

impl Server {
    fn start(test: &str, options: &[(&str, &str)]) -> Server {
        let (certificate, key) = certificate(&dir(test), "server");
        let options_registrar = RegistrarOptions::default();
        let engine = Engine::new();
        let files = [("tls.certificate", certificate.to_str().unwrap()), ("tls.key", key.to_str().unwrap())];
        for (name, value) in files.iter().chain(options) {
            engine.set(name, value).unwrap();
        }
        engine.set("log", "error").unwrap();
        let addr = engine.listen("tls:127.0.0.1:0").unwrap();
        engine.attach(open_registrar(options_registrar, "memory:").unwrap()).unwrap();
        engine.start().unwrap();
        Server { engine, addr, certificate, key }
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.engine.metrics();
        let line = text.lines().find(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("no metric {name}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let end = Instant::now() + LIMIT;
        while !condition() {
            assert!(Instant::now() < end, "not within {LIMIT:?}: {what}\n{}", self.engine.metrics());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn raw(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    fn client(&self) -> StreamOwned<ClientConnection, TcpStream> {
        self.trusting(&self.certificate)
    }

    fn trusting(&self, certificate: &Path) -> StreamOwned<ClientConnection, TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), self.raw())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let left = self.engine.stop(Duration::from_secs(2));
        if !std::thread::panicking() {
            assert_eq!(left.unwrap(), 0);
        }
    }
}

fn register(user: &str, cseq: u32, padding: usize) -> String {
    format!(
        "REGISTER sips:example.test SIP/2.0\r\nVia: SIP/2.0/TLS 127.0.0.1:9;branch=z9hG4bK{user}{cseq}\r\n\
         From: <sip:{user}@example.test>;tag=1\r\nTo: <sip:{user}@example.test>\r\nCall-ID: {user}\r\n\
         CSeq: {cseq} REGISTER\r\nContact: <sip:{user}@127.0.0.1:9;transport=tls>\r\nContent-Length: {padding}\r\n\r\n{}",
        "x".repeat(padding)
    )
}

/// The next message, up to its Content-Length of 0.
fn answer(stream: &mut impl Read) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&text)));
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn openssl_registers_over_both_versions() {
    let _others = MACHINE.read();
    let server = Server::start("openssl", &[]);
    for (i, version) in ["-tls1_2", "-tls1_3"].into_iter().enumerate() {
        let mut client = Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", version, "-connect", &server.addr.to_string()])
            .args(["-verify_ip", "127.0.0.1", "-CAfile", server.certificate.to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = client.stdin.take().unwrap();
        let mut output = client.stdout.take().unwrap();
        for cseq in 1..=3 {
            input.write_all(register(&format!("openssl{i}"), cseq, 0).as_bytes()).unwrap();
            let text = answer(&mut output);
            assert!(text.starts_with("SIP/2.0 200 OK\r\n") && text.contains(&format!("CSeq: {cseq} ")), "{text}");
            assert!(text.contains("transport=tls"), "{text}");
        }
        // At the end of its input it waits for the server's.
        client.kill().unwrap();
        client.wait().unwrap();
    }
    server.until("both have gone", || server.metric("partyline_stream_open") == 0.0);
    // Which of the two it is depends on whether a ticket of the session still lay unread at the client.
    let closed = |reason: &str| server.metric(&format!("partyline_stream_closed_total{{reason=\"{reason}\"}}"));
    assert_eq!(closed("peer") + closed("reset"), 2.0);
}

#[test]
fn messages_of_any_length_however_they_are_cut() {
    let _others = MACHINE.read();
    let server = Server::start("cuts", &[("tcp.outbound", "1000000")]);
    let mut client = server.client();
    // Longer than a record, then many in one, then a byte a record.
    for (cseq, padding) in [(1, 0), (2, 20_000), (3, 60_000)] {
        client.write_all(register("long", cseq, padding).as_bytes()).unwrap();
        assert!(answer(&mut client).contains(&format!("CSeq: {cseq} ")));
    }
    let many: String = (1..=200).map(|cseq| register("many", cseq, 10)).collect();
    client.write_all(many.as_bytes()).unwrap();
    for cseq in 1..=200 {
        let text = answer(&mut client);
        assert!(text.contains(&format!("CSeq: {cseq} REGISTER\r\n")), "{cseq}: {text}");
    }
    for byte in register("bytes", 1, 3).as_bytes() {
        client.write_all(std::slice::from_ref(byte)).unwrap();
    }
    assert!(answer(&mut client).contains("CSeq: 1 "));
    // The records themselves in pieces.
    let mut sealed = Vec::new();
    client.conn.writer().write_all(register("pieces", 1, 0).as_bytes()).unwrap();
    while client.conn.wants_write() {
        client.conn.write_tls(&mut sealed).unwrap();
    }
    for byte in &sealed {
        client.sock.write_all(std::slice::from_ref(byte)).unwrap();
    }
    assert!(answer(&mut client).contains("Call-ID: pieces"));
    // Ping and pong; then the end, said in TLS, and answered.
    client.write_all(b"\r\n\r\n").unwrap();
    let mut pong = [0; 2];
    client.read_exact(&mut pong).unwrap();
    assert_eq!(&pong, b"\r\n");
    client.conn.send_close_notify();
    client.flush().unwrap();
    assert_eq!(client.read(&mut pong).unwrap(), 0, "the server says its end too");
}

#[test]
fn several_threads_send_over_one_connection() {
    let _others = MACHINE.read();
    let server = Server::start("senders", &[("tcp.outbound", "10000000")]);
    let mut client = server.client();
    client.write_all(register("one", 1, 0).as_bytes()).unwrap();
    answer(&mut client);
    let peer = format!("tls:{}", client.sock.local_addr().unwrap());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (engine, peer) = (&server.engine, &peer);
            scope.spawn(move || {
                for i in 0..250 {
                    let text = format!("NOTIFY sip:{thread} SIP/2.0\r\nCSeq: {i} NOTIFY\r\nl: 0\r\n\r\n");
                    engine.send(peer, text.as_bytes()).unwrap();
                }
            });
        }
        let mut next = [0; 4];
        for _ in 0..1000 {
            let text = answer(&mut client);
            let thread: usize = text["NOTIFY sip:".len()..].split(' ').next().unwrap().parse().unwrap();
            assert!(text.contains(&format!("CSeq: {} NOTIFY", next[thread])), "{text}");
            next[thread] += 1;
        }
    });
}

#[test]
fn certificates_change_while_it_runs() {
    let _others = MACHINE.read();
    let server = Server::start("reload", &[]);
    let mut old = server.client();
    old.write_all(register("old", 1, 0).as_bytes()).unwrap();
    answer(&mut old);
    let (fresh, fresh_key) = certificate(server.certificate.parent().unwrap(), "fresh");
    let before = fs::read(&server.certificate).unwrap();
    let old_file = server.certificate.with_extension("old");
    fs::write(&old_file, &before).unwrap();

    // A key that does not belong to the certificate: refused, and all stays as it was.
    fs::copy(&fresh, &server.certificate).unwrap();
    let error = server.engine.reload_certificates().unwrap_err();
    assert!(error.text.contains("key"), "{}", error.text);
    fs::copy(&fresh_key, &server.key).unwrap();
    let mut still = server.trusting(&old_file);
    still.write_all(register("still", 1, 0).as_bytes()).unwrap();
    answer(&mut still);

    server.engine.reload_certificates().unwrap();
    let mut new = server.trusting(&fresh);
    new.write_all(register("new", 1, 0).as_bytes()).unwrap();
    answer(&mut new);
    // Who trusts only the old one is not connected any more; who is connected stays so.
    assert!(server.trusting(&old_file).write_all(register("late", 1, 0).as_bytes()).is_err());
    old.write_all(register("old", 2, 0).as_bytes()).unwrap();
    answer(&mut old);
}

#[test]
fn who_does_not_speak_tls_is_closed() {
    let _others = MACHINE.read();
    let server = Server::start("limits", &[("tls.handshake_limit", "500ms"), ("tcp.first_bytes", "500ms")]);
    let closed = |reason: &str| server.metric(&format!("partyline_stream_closed_total{{reason=\"{reason}\"}}"));
    // Says nothing; begins a hello and sends a byte of it now and then; says nothing after the handshake.
    let _silent = server.raw();
    server.until("the silent one", || closed("tls_too_slow") == 1.0);
    let mut slow = server.raw();
    slow.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc]).unwrap();
    let end = Instant::now() + LIMIT;
    while closed("tls_too_slow") < 2.0 {
        assert!(Instant::now() < end, "a hello without an end");
        let _ = slow.write_all(&[3]);
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut mute = server.client();
    while mute.conn.is_handshaking() {
        mute.conn.complete_io(&mut mute.sock).unwrap();
    }
    server.until("the mute one", || closed("silent_too_long") == 1.0);
    // SIP in the clear, garbage, a hello of SSL 3.
    for (i, text) in [&b"REGISTER sip:x SIP/2.0\r\n\r\n"[..], &[0; 100], &[22, 3, 0, 0, 1, 9]].into_iter().enumerate() {
        let mut wrong = server.raw();
        wrong.write_all(text).unwrap();
        server.until("the one without TLS", || closed("tls") + closed("tls_too_slow") == 3.0 + i as f64);
    }
    // A record that was changed on its way.
    let mut client = server.client();
    client.write_all(register("changed", 1, 0).as_bytes()).unwrap_or_default();
    answer(&mut client);
    let failed = closed("tls");
    client
        .sock
        .write_all(&[23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20])
        .unwrap();
    server.until("the changed record", || closed("tls") == failed + 1.0);
    server.until("all gone", || server.metric("partyline_stream_open") == 0.0);
}

/// What docs/transport.md says of it.
#[test]
fn an_idle_connection_keeps_its_keys_and_no_buffers() {
    let _alone = MACHINE.write();
    PEER.set(true);
    let server = Server::start("idle", &[]);
    let open = |count: usize| -> Vec<_> {
        let one = |i: usize| {
            let mut client = server.client();
            client.write_all(register(&format!("idle{i}"), 1, 20_000).as_bytes()).unwrap();
            answer(&mut client);
            client
        };
        (0..count).map(one).collect()
    };
    let _warm = open(20);
    let before = LIVE.load(Ordering::SeqCst);
    let clients = open(100);
    let each = (LIVE.load(Ordering::SeqCst) - before) / 100;
    println!("an idle TLS connection and its registration: {each} bytes");
    assert!((500..12_000).contains(&each), "{each} bytes");
    drop(clients);
    server.until("the clients are gone", || server.metric("partyline_stream_open") == 20.0);
}

/// Somebody whom the engine calls: a rustls server on a port.
struct Peer {
    listener: TcpListener,
    config: Arc<ServerConfig>,
}

impl Peer {
    fn listen((certificate, key): &(PathBuf, PathBuf)) -> Peer {
        let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap())
            .unwrap();
        Peer { listener: TcpListener::bind("127.0.0.1:0").unwrap(), config: Arc::new(config) }
    }

    fn address(&self, domain: &str) -> String {
        let end = if domain.is_empty() { String::new() } else { format!(";domain={domain}") };
        format!("tls:{}{end}", self.listener.local_addr().unwrap())
    }

    /// The next connection, whose handshake is made by reading from it.
    fn accept(&self) -> StreamOwned<ServerConnection, TcpStream> {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        StreamOwned::new(ServerConnection::new(Arc::clone(&self.config)).unwrap(), stream)
    }
}

fn options(number: u32) -> String {
    format!("OPTIONS sip:peer SIP/2.0\r\nCSeq: {number} OPTIONS\r\nContent-Length: 0\r\n\r\n")
}

#[test]
fn peers_are_called_and_have_to_be_who_was_meant() {
    let _others = MACHINE.read();
    let theirs = certificate_for(&dir("peers-of"), "peer", "DNS:sip.example.org");
    let server = Server::start("peers", &[("tls.client.roots", theirs.0.to_str().unwrap())]);
    let peer = Peer::listen(&theirs);
    let send = |domain: &str, number| server.engine.send(&peer.address(domain), options(number).as_bytes());
    // Before there is a connection, and while it is made: all of it waits, and comes in order.
    for number in 1..=3 {
        send("sip.example.org", number).unwrap();
    }
    let mut conn = peer.accept();
    for number in 1..=3 {
        assert!(answer(&mut conn).contains(&format!("CSeq: {number} ")));
    }
    assert_eq!(conn.conn.server_name(), Some("sip.example.org"));
    // It is a connection like any other: requests come over it, and it is found again.
    conn.write_all(register("peer", 1, 20_000).as_bytes()).unwrap();
    assert!(answer(&mut conn).starts_with("SIP/2.0 200 OK\r\n"));
    send("sip.example.org", 4).unwrap();
    assert!(answer(&mut conn).contains("CSeq: 4 "));
    assert_eq!(server.metric("partyline_stream_opened_total{by=\"us\"}"), 1.0);
    // The same address under other names: another connection, and nothing is said to who is not meant.
    for (refused, domain) in [(1.0, ""), (2.0, "example.org"), (3.0, "127.0.0.1")] {
        send(domain, 5).unwrap();
        assert!(peer.accept().read(&mut [0]).is_err(), "{domain}: nothing can be read");
        let closed = || server.metric("partyline_stream_closed_total{reason=\"tls\"}");
        server.until("the end of a connection with another", || closed() == refused);
    }
    send("sip.example.org", 6).unwrap();
    assert!(answer(&mut conn).contains("CSeq: 6 "));
    // What cannot be a name, and where nobody listens.
    assert!(send("not a name", 7).unwrap_err().text.contains("not a name"));
    assert!(server.engine.send("udp:127.0.0.1:9;domain=x", b"x").unwrap_err().text.contains("is not an address"));
    if let Err(error) = server.engine.send("tls:127.0.0.1:9", b"x") {
        assert!(error.text.contains("has closed"), "it was refused already: {}", error.text);
    }
    server.until("nobody", || server.metric("partyline_stream_closed_total{reason=\"connect_failed\"}") == 1.0);
    drop(conn);
    server.until("the peer's end", || server.metric("partyline_stream_open") == 0.0);
}

#[test]
fn a_peer_that_never_shakes_hands_is_given_up() {
    let _others = MACHINE.read();
    let server = Server::start("mute", &[("tls.handshake_limit", "300ms"), ("tls.client.verify", "off")]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    server.engine.send(&format!("tls:{}", listener.local_addr().unwrap()), b"x").unwrap();
    let (mut mute, _) = listener.accept().unwrap();
    server.until("its end", || server.metric("partyline_stream_closed_total{reason=\"tls_too_slow\"}") == 1.0);
    let mut hello = Vec::new();
    mute.read_to_end(&mut hello).unwrap();
    assert_eq!(hello[0], 22, "a handshake record");
}

#[test]
fn openssl_is_called_and_sees_a_certificate() {
    let _others = MACHINE.read();
    let folder = dir("s_server-of");
    let (theirs, ours) = (certificate_for(&folder, "peer", "DNS:elsewhere.example"), certificate(&folder, "client"));
    let path = |p: &PathBuf| p.to_str().unwrap().to_owned();
    let server = Server::start(
        "s_server",
        &[
            ("tls.client.roots", &path(&theirs.0)),
            ("tls.client.verify", "chain"),
            ("tls.client.certificate", &path(&ours.0)),
            ("tls.client.key", &path(&ours.1)),
        ],
    );
    for version in ["-tls1_2", "-tls1_3"] {
        // s_server takes a port of its own and says which.
        let mut peer = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-Verify", "1", "-verify_return_error", version])
            .args(["-naccept", "1", "-cert", &path(&theirs.0), "-key", &path(&theirs.1), "-CAfile", &path(&ours.0)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(peer.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("ACCEPT ") {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "openssl listens");
        }
        server.engine.send(&format!("tls:{}", line["ACCEPT ".len()..].trim()), options(9).as_bytes()).unwrap();
        let mut said = String::new();
        while !said.contains("CSeq: 9 OPTIONS") {
            assert!(output.read_line(&mut said).unwrap() > 0, "{version}: {said}");
        }
        assert!(said.contains("Client certificate"), "{version}: {said}");
        peer.kill().unwrap();
        peer.wait().unwrap();
    }
}

#[test]
fn files_that_cannot_be_used_are_named_at_the_start() {
    let _others = MACHINE.read();
    let (own, key) = certificate(&dir("bad-files"), "own");
    let (own, key) = (own.to_str().unwrap(), key.to_str().unwrap());
    let cases: [(&[(&str, &str)], &str); 4] = [
        (&[("tls.client.roots", "/nowhere/roots.pem")], "/nowhere/roots.pem"),
        (&[("tls.client.roots", key)], "no certificate"),
        (&[("tls.client.roots", own), ("tls.client.certificate", own)], "named together"),
        (&[("tls.client.verify", "off"), ("tls.client.certificate", own), ("tls.client.key", own)], "key file"),
    ];
    for (options, text) in cases {
        let engine = Engine::new();
        engine.listen("udp:127.0.0.1:0").unwrap();
        for (name, value) in options {
            engine.set(name, value).unwrap();
        }
        let error = engine.start().unwrap_err();
        assert!(error.text.contains(text), "{}", error.text);
    }
}
