//! An engine's sockets by their options: rate limits, multicast, both address families, what a stop leaves to be read.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use partyline::engine::{Engine, RegistrarOptions, open_registrar};

const LIMIT: Duration = Duration::from_secs(20);
/// Within this a datagram over loopback has come, or was dropped.
const SHORT: Duration = Duration::from_millis(300);

struct Server {
    engine: Arc<Engine>,
    addrs: Vec<SocketAddr>,
}

impl Server {
    fn start(options: &[(&str, &str)], addresses: &[&str]) -> Server {
        let engine = Engine::new();
        engine.set("log", "error").unwrap();
        for (name, value) in options {
            engine.set(name, value).unwrap();
        }
        let addrs = addresses.iter().map(|address| engine.listen(address).unwrap()).collect();
        engine.attach(open_registrar(RegistrarOptions::default(), "memory:").unwrap()).unwrap();
        engine.start().unwrap();
        Server { engine, addrs }
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.engine.metrics();
        let line = text.lines().find(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("no metric {name}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    fn dropped(&self, reason: &str) -> f64 {
        self.metric(&format!("partyline_dropped_total{{reason=\"{reason}\"}}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.engine.stop(Duration::ZERO);
    }
}

fn request(method: &str, via: &str, cseq: usize, name: &str) -> String {
    format!(
        "{method} sip:example.test SIP/2.0\r\nVia: {via};branch=z9hG4bK{cseq}\r\n\
         From: \"{name}\" <sip:s@example.test>;tag=1\r\nTo: <sip:s@example.test>\r\nCall-ID: s\r\n\
         CSeq: {cseq} {method}\r\nContact: <sip:s@example.test:5060>\r\nContent-Length: 0\r\n\r\n"
    )
}

fn peer(ip: &str) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

/// The next answer, and where it came from.
fn answer(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 65_536];
    let (count, from) = socket.recv_from(&mut buffer).unwrap();
    (String::from_utf8(buffer[..count].to_vec()).unwrap(), from)
}

/// How many of `count` requests are answered.
fn answered(server: &Server, ip: &str, count: usize) -> usize {
    let socket = peer(ip);
    for cseq in 1..=count {
        socket
            .send_to(request("OPTIONS", "SIP/2.0/UDP 127.0.0.1:9;rport", cseq, "").as_bytes(), server.addrs[0])
            .unwrap();
    }
    socket.set_read_timeout(Some(SHORT)).unwrap();
    let mut buffer = [0; 2048];
    (0..count).take_while(|_| socket.recv(&mut buffer).is_ok()).count()
}

#[test]
fn a_source_that_sends_too_much_loses_what_is_too_much() {
    let options = [("rate.source", "1"), ("rate.source_burst", "3")];
    let server = Server::start(&options, &["udp:127.0.0.1:0", "tcp:127.0.0.1:0"]);
    let first = answered(&server, "127.0.0.1", 20);
    // One more may come for each second that this takes.
    assert!((3..10).contains(&first), "{first}");
    let second = answered(&server, "127.0.0.2", 20);
    assert!((3..10).contains(&second), "{second}");
    assert_eq!(server.dropped("rate_of_source") as usize, 40 - first - second);
    assert_eq!(server.dropped("rate_of_all"), 0.0);

    // Over a connection as well; it is closed at once when its peer ends: nothing is owed for what was dropped.
    let mut stream = TcpStream::connect(server.addrs[1]).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let before = server.dropped("rate_of_source");
    for cseq in 1..=50 {
        stream.write_all(request("OPTIONS", "SIP/2.0/TCP 127.0.0.1:9", cseq, "").as_bytes()).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let answers = text.matches("SIP/2.0 501").count();
    assert!(answers < 20, "{answers}");
    assert_eq!((server.dropped("rate_of_source") - before) as usize, 50 - answers);
}

#[test]
fn all_together_have_a_limit_too() {
    let server = Server::start(&[("rate.all", "1"), ("rate.all_burst", "5")], &["udp:127.0.0.1:0"]);
    let all: usize = (1..=4).map(|n| answered(&server, &format!("127.0.0.{n}"), 10)).sum();
    assert!((5..15).contains(&all), "{all}");
    assert_eq!(server.dropped("rate_of_all") as usize, 40 - all);
}

#[test]
fn answers_leave_from_the_address_that_was_asked() {
    let server = Server::start(&[], &["udp:0.0.0.0:0", "udp:[::]:0"]);
    for (asked, own, listener) in [("127.0.0.5", "127.0.0.1", 0), ("127.0.0.77", "127.0.0.9", 0), ("::1", "::1", 1)] {
        let socket = peer(own);
        let to = SocketAddr::new(asked.parse().unwrap(), server.addrs[listener].port());
        for method in ["OPTIONS", "REGISTER"] {
            socket.send_to(request(method, "SIP/2.0/UDP 192.0.2.1:9;rport", 1, "").as_bytes(), to).unwrap();
            let (text, from) = answer(&socket);
            assert_eq!(from, to, "{method}");
            // RFC 3581 section 4: the source, in parameters of the topmost Via.
            let via = text.lines().find(|line| line.starts_with("Via:")).unwrap();
            let port = socket.local_addr().unwrap().port();
            assert!(via.contains(&format!(";received={own}")) && via.contains(&format!(";rport={port}")), "{via}");
        }
    }
}

#[test]
fn without_rport_the_answer_goes_to_the_port_of_sent_by() {
    let server = Server::start(&[], &["udp:127.0.0.1:0", "udp:[::1]:0"]);
    for (i, ip) in ["127.0.0.1", "::1"].into_iter().enumerate() {
        let (asks, listens) = (peer(ip), peer(ip));
        let via = format!("SIP/2.0/UDP example.invalid:{}", listens.local_addr().unwrap().port());
        asks.send_to(request("OPTIONS", &via, 1, "").as_bytes(), server.addrs[i]).unwrap();
        let (text, from) = answer(&listens);
        assert_eq!(from, server.addrs[i]);
        assert!(text.contains(&format!(";received={ip}")) && !text.contains("rport"), "{text}");
    }
}

#[test]
fn connections_over_ipv6() {
    let server = Server::start(&[], &["tcp:[::1]:0"]);
    let mut stream = TcpStream::connect(server.addrs[0]).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(request("REGISTER", "SIP/2.0/TCP [::1]:9;rport", 1, "").as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("SIP/2.0 200 OK\r\n") && text.contains(";rport="), "{text}");
}

#[test]
fn multicast_is_answered_from_an_address_of_the_interface() {
    const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 1, 75);
    let options = [("udp.multicast", "224.0.1.75,ff02::2:9"), ("udp.multicast_interface", "1")];
    let server = Server::start(&options, &["udp:0.0.0.0:0", "udp:127.0.0.1:0"]);
    let socket = peer("127.0.0.1");
    socket2::SockRef::from(&socket).set_multicast_if_v4(&Ipv4Addr::LOCALHOST).unwrap();
    for method in ["OPTIONS", "REGISTER"] {
        let text = request(method, "SIP/2.0/UDP 127.0.0.1:9;rport", 1, "");
        socket.send_to(text.as_bytes(), (GROUP, server.addrs[0].port())).unwrap();
        let (_, from) = answer(&socket);
        assert_eq!(from, SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), server.addrs[0].port()));
    }
    let engine = Engine::new();
    assert!(engine.set("udp.multicast", "192.0.2.1").is_err());
    assert!(engine.set("udp.multicast", "").is_ok());
}

#[test]
fn a_stop_waits_for_peers_to_read_their_answers() {
    const REQUESTS: usize = 4000;
    let server = Server::start(&[("tcp.outbound", "100000000")], &["tcp:127.0.0.1:0"]);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    // So that little of it lies in the system's buffers.
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&server.addrs[0].into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let name = "n".repeat(4000);
    for cseq in 1..=REQUESTS {
        stream.write_all(request("OPTIONS", "SIP/2.0/TCP 127.0.0.1:9", cseq, &name).as_bytes()).unwrap();
    }
    let all = || server.metric("partyline_stream_received_total") as usize == REQUESTS;
    while !all() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let taken = server.metric("partyline_stream_sent_bytes_total");
    assert!(
        taken < (REQUESTS * 4000) as f64,
        "the system has taken all {taken} bytes, and the test would not see a loss"
    );
    let engine = Arc::clone(&server.engine);
    let stopping = std::thread::spawn(move || engine.stop(LIMIT).unwrap());
    // Nobody else is let in any more: the stop has begun.
    while TcpListener::bind(server.addrs[0]).is_err() && TcpStream::connect(server.addrs[0]).is_ok() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    let answers = memchr::memmem::find_iter(&text, b"SIP/2.0 501").count();
    assert_eq!(answers, REQUESTS);
    assert_eq!(stopping.join().unwrap(), 0);
}
