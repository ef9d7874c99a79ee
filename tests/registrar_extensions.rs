//! What extensions of SIP ask of a registrar, from the bytes of a request to the bytes of its answer; each test named after
//! the section that it comes from.

mod registrar_support;

use partyline::registrar::{Mode, Options, Outcome, PathMode, Registrar, Registration, SipReply};
use partyline::sip::{Message, Tags};
use registrar_support::{NOW, NotingSink, SqliteFile, eventually, now, options};

struct Server {
    registrar: Registrar<u64>,
    tags: Tags,
}

/// What a request says beyond the least.
struct Ask<'a> {
    from: &'a str,
    call: (&'a str, u32),
    headers: &'a str,
    contact: &'a str,
    socket: &'a str,
    received: &'a str,
}

const ASK: Ask<'static> = Ask {
    from: "sip:alice@example.org",
    call: ("c", 1),
    headers: "",
    contact: "Contact: <sip:a@h1>",
    socket: "tcp:192.0.2.9:5060",
    received: "",
};

/// Two proxies on the way; the second knows nothing of outbound.
const TWO_HOPS: &str = "Via: SIP/2.0/TCP p2;branch=z9hG4bKp, SIP/2.0/TCP edge;branch=z9hG4bKe\r\n";

impl Server {
    fn open(change: impl FnOnce(&mut Options)) -> Server {
        let mut options = Options::default();
        change(&mut options);
        Server { registrar: Registrar::open_at(options, NotingSink::default(), || 0).expect("open"), tags: Tags::new() }
    }

    fn at(&self, now: u32, ask: &Ask<'_>) -> String {
        let contact = if ask.contact.is_empty() { String::new() } else { format!("{}\r\n", ask.contact) };
        let mut bytes = format!(
            "REGISTER sip:example.org SIP/2.0\r\nVia: SIP/2.0/TCP h;branch=z9hG4bKx\r\n{}{contact}From: <{}>;tag=1\r\n\
             To: <sip:alice@example.org>\r\nCall-ID: {}\r\nCSeq: {} REGISTER\r\n\r\n",
            ask.headers, ask.from, ask.call.0, ask.call.1
        )
        .into_bytes();
        let message = Message::parse(&mut bytes).expect("message");
        let mut room = [0; 8000];
        let mut reply = SipReply::new(&mut room, &message, None, &self.tags);
        match Registration::read(&message, true) {
            Ok(read) => {
                let request = read.request(ask.received.as_bytes(), ask.socket.as_bytes());
                let outcome = self.registrar.register(&request, now, &mut reply);
                assert!(matches!(outcome, Outcome::Answered(_) | Outcome::Rejected(_)), "{outcome:?}");
            }
            Err(rejection) => _ = rejection.write(&mut reply),
        }
        String::from_utf8(reply.finish().expect("fits").to_vec()).expect("text")
    }

    fn ask(&self, ask: &Ask<'_>) -> String {
        self.at(NOW, ask)
    }

    fn bindings(&self) -> usize {
        self.registrar.bindings()
    }
}

fn status(answer: &str) -> u16 {
    answer["SIP/2.0 ".len()..][..3].parse().expect("status")
}

/// The values of all headers of this name, in order.
fn all<'a>(answer: &'a str, name: &str) -> Vec<&'a str> {
    answer.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect()
}

#[test]
fn rfc3261_10_3_2_what_is_required_and_not_understood_is_named() {
    let server = Server::open(|o| o.path = PathMode::Off);
    let answer = server.ask(&Ask { headers: "Require: path, x-new\r\nRequire: outbound, gruu\r\n", ..ASK });
    assert_eq!((status(&answer), server.bindings()), (420, 0));
    assert_eq!(all(&answer, "Unsupported"), ["path, x-new, gruu"]);
    let server = Server::open(|o| o.gruu = true);
    assert_eq!(status(&server.ask(&Ask { headers: "Require: PATH, gruu\r\n", ..ASK })), 200);
}

#[test]
fn rfc3327_5_3_path_is_stored_and_told_to_who_supports_it() {
    let server = Server::open(|_| ());
    let path = "Path: <sip:p1.example.com;lr>, <sip:p2.example.com;lr>\r\nPath: \"P\" <sip:p3.example.com;lr>\r\n";
    let answer = server.ask(&Ask { headers: &format!("Supported: path\r\n{path}"), ..ASK });
    let values = ["<sip:p1.example.com;lr>, <sip:p2.example.com;lr>", "\"P\" <sip:p3.example.com;lr>"];
    assert_eq!(all(&answer, "Path"), values);
    let stored = |server: &Server| {
        let mut stored = Vec::new();
        server.registrar.lookup(b"alice@example.org", NOW, |b| stored.push(b.path.to_vec())).expect("lookup");
        String::from_utf8(stored.concat()).expect("text")
    };
    assert_eq!(stored(&server), values.join(", "));
    // Who does not say so is not told; it is stored all the same.
    let answer = server.ask(&Ask { headers: path, call: ("d", 1), ..ASK });
    assert_eq!((status(&answer), all(&answer, "Path").len()), (200, 0));
    assert_eq!(stored(&server), values.join(", "));
    // Without a Path there is none to tell, and it is forgotten with the next refresh.
    let answer = server.ask(&Ask { headers: "Supported: path\r\n", call: ("d", 2), ..ASK });
    assert_eq!((all(&answer, "Path").len(), stored(&server).as_str()), (0, ""));
}

#[test]
fn rfc3327_5_3_a_registrar_may_refuse_or_leave_it() {
    let path = "Path: <sip:p1.example.com;lr>\r\n";
    let strict = Server::open(|o| o.path = PathMode::Strict);
    let answer = strict.ask(&Ask { headers: path, ..ASK });
    assert_eq!((status(&answer), all(&answer, "Unsupported"), strict.bindings()), (420, vec!["path"], 0));
    assert_eq!(status(&strict.ask(&Ask { headers: &format!("{path}k: path\r\n"), ..ASK })), 200);
    let off = Server::open(|o| o.path = PathMode::Off);
    let answer = off.ask(&Ask { headers: &format!("{path}k: path\r\n"), ..ASK });
    assert_eq!((status(&answer), all(&answer, "Path").len()), (200, 0));
    off.registrar.lookup(b"alice@example.org", NOW, |b| assert_eq!(b.path, b"")).expect("lookup");
}

#[test]
fn rfc3327_4_a_path_that_is_none_is_a_bad_request() {
    let server = Server::open(|_| ());
    for bad in ["", "sip:p;lr", "<tel:1>", "<sip:p", "<sip:p>, x", "<sip:p>\r\nPath: <>"] {
        let answer = server.ask(&Ask { headers: &format!("Path: {bad}\r\n"), ..ASK });
        assert_eq!((status(&answer), server.bindings()), (400, 0), "{bad}");
    }
}

const FLOW: &str = "Contact: <sip:a@h1>;+sip.instance=\"<urn:uuid:1>\";reg-id=1";
const OUTBOUND: &str = "Supported: path, outbound\r\n";

#[test]
fn rfc5626_6_a_flow_is_answered_with_require_outbound() {
    let server = Server::open(|o| o.flow_timer = 120);
    let answer = server.ask(&Ask { headers: OUTBOUND, contact: FLOW, ..ASK });
    assert_eq!((all(&answer, "Require"), all(&answer, "Flow-Timer")), (vec!["outbound"], vec!["120"]));
    assert!(answer.contains("reg-id=1"));
    // Over an edge proxy that keeps flows: the Path nearest to the user agent says so.
    let hops = format!("{OUTBOUND}{TWO_HOPS}Path: <sip:p2;lr>, <sip:edge;lr;ob>\r\n");
    let answer = server.ask(&Ask { headers: &hops, contact: FLOW, call: ("c", 2), ..ASK });
    assert_eq!(all(&answer, "Require"), ["outbound"]);
    // It is one flow, so one binding, whatever the contact.
    let moved = "Contact: <sip:a@h2>;+sip.instance=\"<urn:uuid:1>\";reg-id=1";
    server.ask(&Ask { headers: OUTBOUND, contact: moved, call: ("c", 3), ..ASK });
    assert_eq!(server.bindings(), 1);
    // Straight over UDP nobody answers STUN, so the flow is not promised.
    let answer =
        server.ask(&Ask { headers: OUTBOUND, contact: FLOW, call: ("c", 4), socket: "udp:192.0.2.9:5060", ..ASK });
    assert_eq!((status(&answer), all(&answer, "Require").len()), (200, 0));
    let off = Server::open(|o| o.outbound = false);
    assert_eq!(all(&off.ask(&Ask { headers: OUTBOUND, contact: FLOW, ..ASK }), "Require").len(), 0);
    assert_eq!(status(&off.ask(&Ask { headers: "Require: outbound\r\n", contact: FLOW, ..ASK })), 420);
}

#[test]
fn rfc5626_6_439_when_the_first_hop_lacks_it() {
    let server = Server::open(|_| ());
    for path in ["", "Path: <sip:p2;lr>\r\n", "Path: <sip:p2;lr;ob>, <sip:edge;lr>\r\n"] {
        let answer = server.ask(&Ask { headers: &format!("{OUTBOUND}{TWO_HOPS}{path}"), contact: FLOW, ..ASK });
        assert_eq!((status(&answer), server.bindings()), (439, 0), "{path}");
    }
    assert!(
        server
            .ask(&Ask { headers: &format!("{OUTBOUND}{TWO_HOPS}"), contact: FLOW, ..ASK })
            .contains("First Hop Lacks")
    );
    // Who asks for no flow registers over any proxy.
    assert_eq!(status(&server.ask(&Ask { headers: &format!("{OUTBOUND}{TWO_HOPS}"), ..ASK })), 200);
}

#[test]
fn rfc5626_6_one_reg_id_per_request_and_none_without_outbound() {
    let server = Server::open(|_| ());
    let two = format!("{FLOW}, <sip:a@h2>;+sip.instance=\"<urn:uuid:1>\";reg-id=2");
    assert_eq!(status(&server.ask(&Ask { headers: OUTBOUND, contact: &two, ..ASK })), 400);
    let removed = format!("{two};expires=0");
    assert_eq!(status(&server.ask(&Ask { headers: OUTBOUND, contact: &removed, ..ASK })), 200);
    // Without the option tag reg-id means nothing: the URI decides.
    let server = Server::open(|_| ());
    assert!(!server.ask(&Ask { contact: FLOW, ..ASK }).contains("reg-id"));
    server.ask(&Ask { contact: &FLOW.replace("h1", "h2"), call: ("c", 2), ..ASK });
    assert_eq!(server.bindings(), 2);
}

#[test]
fn rfc5626_6_an_equal_cseq_is_a_retransmission_by_instance_too() {
    let server = Server::open(|_| ());
    server.ask(&Ask { headers: OUTBOUND, contact: FLOW, ..ASK });
    // The same request after a NAT has changed the contact: nothing is refreshed, nothing is moved.
    let answer = server.at(NOW + 100, &Ask { headers: OUTBOUND, contact: &FLOW.replace("h1", "h2"), ..ASK });
    assert_eq!(status(&answer), 200);
    assert!(answer.contains("<sip:a@h1>;expires=3500"), "{answer}");
    assert_eq!(server.bindings(), 1);
}

#[test]
fn rfc5627_5_3_public_gruu() {
    let server = Server::open(|o| o.gruu = true);
    let instance = "Contact: <sip:a@h1>;+sip.instance=\"<urn:uuid:f81d-7dec>\", <sip:a@h2>";
    let answer = server.ask(&Ask { headers: "Supported: gruu\r\n", contact: instance, ..ASK });
    let contacts = all(&answer, "Contact");
    assert_eq!(contacts.len(), 2);
    let gruu = ";pub-gruu=\"sip:alice@example.org;gr=urn:uuid:f81d-7dec\"";
    assert_eq!(contacts.iter().filter(|c| c.contains(gruu)).count(), 1, "{answer}");
    assert_eq!(contacts.iter().filter(|c| c.contains("gruu")).count(), 1);
    // Who does not support it, is not told; what could not stand in a URI, either.
    assert!(!server.ask(&Ask { contact: "", call: ("d", 1), ..ASK }).contains("gruu"));
    let odd = "Contact: <sip:a@h3>;+sip.instance=\"<urn;x=1>\"";
    let answer = server.ask(&Ask { headers: "Supported: gruu\r\n", contact: odd, call: ("e", 1), ..ASK });
    assert_eq!(answer.matches("pub-gruu").count(), 1, "{answer}");
    // 5.1: a GRUU of this address-of-record is no contact of it.
    let own = "Contact: <sip:alice@EXAMPLE.org;gr=urn:uuid:f81d-7dec>";
    assert_eq!(status(&server.ask(&Ask { contact: own, call: ("f", 1), ..ASK })), 403);
    assert_eq!(server.bindings(), 3);
}

#[test]
fn rfc3608_5_service_route_stands_in_every_200() {
    let server = Server::open(|o| o.service_route = "<sip:p1.example.org;lr>, <sip:p2.example.org;lr>".into());
    assert_eq!(all(&server.ask(&ASK), "Service-Route"), ["<sip:p1.example.org;lr>, <sip:p2.example.org;lr>"]);
    let refused = server.ask(&Ask { headers: "Require: x\r\n", ..ASK });
    assert_eq!(all(&refused, "Service-Route").len(), 0);
    for bad in ["sip:p1", "<sip:p1", "x"] {
        let options = Options { service_route: bad.into(), ..Options::default() };
        assert!(options.check().is_err(), "{bad}");
    }
}

#[test]
fn rfc3581_4_the_answer_says_where_the_request_came_from() {
    let server = Server::open(|_| ());
    let mut bytes = b"REGISTER sip:example.org SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.1:5060;rport;branch=z9hG4bKx\r\n\
        From: <sip:alice@example.org>;tag=1\r\nTo: <sip:alice@example.org>\r\nCall-ID: c\r\nCSeq: 1 REGISTER\r\n\r\n"
        .to_vec();
    let message = Message::parse(&mut bytes).expect("message");
    let source = "192.0.2.7:4444".parse().expect("address");
    let mut room = [0; 2000];
    let mut reply = SipReply::new(&mut room, &message, Some(source), &server.tags);
    let read = Registration::read(&message, true).expect("register");
    assert!(matches!(server.registrar.register(&read.request(b"", b""), NOW, &mut reply), Outcome::Answered(200)));
    let answer = String::from_utf8(reply.finish().expect("fits").to_vec()).expect("text");
    assert_eq!(all(&answer, "Via"), ["SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bKx;received=192.0.2.7;rport=4444"]);
    assert_eq!(message.via().expect("via").reply_to(source), source);
}

#[test]
fn rfc3261_10_2_third_parties_only_where_allowed() {
    let third = Ask { from: "sip:bob@example.org", ..ASK };
    let server = Server::open(|_| ());
    assert_eq!((status(&server.ask(&third)), server.bindings()), (403, 0));
    assert_eq!(status(&server.ask(&Ask { from: "tel:+1", ..ASK })), 403);
    // Written otherwise it is the same user.
    assert_eq!(status(&server.ask(&Ask { from: "sips:%61lice@EXAMPLE.org:5061;x=y", ..ASK })), 200);
    let allowed = Server::open(|o| o.third_party = true);
    assert_eq!((status(&allowed.ask(&third)), allowed.bindings()), (200, 1));
}

#[test]
fn granted_intervals_are_spread_and_a_retransmission_gets_the_same() {
    let server = Server::open(|o| (o.expires_jitter, o.max_contacts) = (10, 1000));
    let granted = |cseq: u32, at: u32| {
        let contact = format!("Contact: <sip:a@h{cseq}>;expires=3000");
        let answer = server.at(NOW + at, &Ask { contact: &contact, call: ("c", cseq), ..ASK });
        let line = all(&answer, "Contact")
            .into_iter()
            .find(|c| c.contains(&format!("@h{cseq}>")))
            .expect("contact")
            .to_owned();
        line.split_once("expires=").expect("expires").1.parse::<u32>().expect("number")
    };
    let seconds: Vec<u32> = (1..=200).map(|cseq| granted(cseq, 0)).collect();
    assert!(seconds.iter().all(|s| (2700..=3000).contains(s)), "{seconds:?}");
    let different: std::collections::BTreeSet<&u32> = seconds.iter().collect();
    assert!(different.len() > 100, "{seconds:?}");
    assert_eq!(granted(7, 10), seconds[6] - 10);
    let server = Server::open(|o| (o.expires_jitter, o.min_expires) = (90, 3000));
    assert!(server.ask(&Ask { contact: "Contact: <sip:a@h>;expires=3600", ..ASK }).contains("expires=3"));
    let brief = server.at(NOW, &Ask { contact: "Contact: <sip:a@g>;expires=3000", call: ("d", 1), ..ASK });
    assert!(brief.contains("<sip:a@g>;expires=3000"), "never below the minimum");
}

const OVER: &str = "sip:192.0.2.7:40000;transport=tcp";

#[test]
fn contacts_go_with_their_connection() {
    let server = Server::open(|o| o.connection_bound = true);
    let registrar = &server.registrar;
    server.ask(&Ask { received: OVER, ..ASK });
    registrar.bind(OVER.as_bytes(), b"alice@example.org");
    registrar.bind(OVER.as_bytes(), b"alice@example.org");
    // The contact's own address needs no `received`; one over UDP with the same address is another.
    let own = "Contact: <sip:a@192.0.2.7:40000;transport=tcp>";
    server.ask(&Ask { contact: own, call: ("d", 1), ..ASK });
    let udp = "Contact: <sip:b@192.0.2.7:40000>";
    server.ask(&Ask { contact: udp, call: ("e", 1), socket: "udp:192.0.2.9:5060", ..ASK });
    let elsewhere = "Contact: <sip:c@h>";
    server.ask(&Ask { contact: elsewhere, call: ("f", 1), received: "sip:192.0.2.8:1;transport=tcp", ..ASK });
    assert_eq!((server.bindings(), registrar.bound()), (4, 1));
    assert_eq!(registrar.unbind(b"sip:192.0.2.7:40001;transport=tcp"), 0);
    assert_eq!((registrar.unbind(OVER.as_bytes()), server.bindings(), registrar.bound()), (2, 2, 0));
    assert_eq!(registrar.unbind(OVER.as_bytes()), 0, "once");
    // Refreshed over another connection: it stays when the first closes.
    server.ask(&Ask { received: OVER, call: ("g", 1), ..ASK });
    registrar.bind(OVER.as_bytes(), b"alice@example.org");
    server.ask(&Ask { received: "sip:192.0.2.7:40002;transport=tcp", call: ("g", 2), ..ASK });
    assert_eq!((registrar.unbind(OVER.as_bytes()), server.bindings()), (0, 3));
}

#[test]
fn what_goes_with_its_connection_goes_from_the_table() {
    let file = SqliteFile::new("bound");
    let options = Options { connection_bound: true, ..options(Mode::WriteBack, &file.url()) };
    let registrar = Registrar::open(options, NotingSink::default()).expect("open");
    let server = Server { registrar, tags: Tags::new() };
    eventually("preload", || server.registrar.complete());
    server.at(now(), &Ask { received: OVER, ..ASK });
    server.registrar.bind(OVER.as_bytes(), b"alice@example.org");
    eventually("written", || file.count("SELECT count(*) FROM location") == 1);
    assert_eq!(server.registrar.unbind(OVER.as_bytes()), 1);
    eventually("deleted", || file.count("SELECT count(*) FROM location") == 0);
}
