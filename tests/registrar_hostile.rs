//! REGISTERs made to hurt: each is refused with 400 (or what its size asks for) and leaves everything as it was, or is taken
//! as the plain text that it is. Bytes in, bytes out, with a database behind.

mod registrar_support;

use std::sync::Arc;

use partyline::registrar::{Mode, Options, Outcome, Registrar, Registration, SipReply};
use partyline::sip::{Message, ParseError, Tags};
use registrar_support::{Notes, NotingSink, SqliteFile, eventually, now, options};

struct Server {
    registrar: Registrar<u64>,
    notes: Arc<Notes>,
    tags: Tags,
    file: SqliteFile,
    next: std::cell::Cell<u64>,
}

impl Server {
    fn open() -> Server {
        let file = SqliteFile::new("hostile");
        let sink = NotingSink::default();
        let notes = sink.0.clone();
        let options = Options { max_contacts: 1000, ..options(Mode::WriteThrough, &file.url()) };
        let registrar = Registrar::open(options, sink).expect("open");
        eventually("preload", || registrar.complete());
        let server = Server { registrar, notes, tags: Tags::new(), file, next: std::cell::Cell::new(1) };
        assert_eq!(server.send(&request("Contact: <sip:first@h>\r\n", "")), 200);
        server
    }

    /// The status of the answer; 0 when nobody would be answered.
    fn send(&self, bytes: &[u8]) -> u16 {
        let mut bytes = bytes.to_vec();
        let mut room = vec![0; 65_507];
        let message = match Message::parse(&mut bytes) {
            Ok(message) => message,
            Err(ParseError::KeepAlive) => return 0,
            Err(error) => return error.status(),
        };
        let mut reply = SipReply::new(&mut room, &message, None, &self.tags);
        let outcome = match Registration::read(&message, true) {
            Ok(read) => match self.registrar.register(&read.request(b"", b"udp:192.0.2.1:5060"), now(), &mut reply) {
                Outcome::Durable(ticket) => Some(ticket),
                Outcome::Answered(_) | Outcome::Rejected(_) => None,
                Outcome::Miss(_) => panic!("all is loaded"),
            },
            Err(rejection) => {
                rejection.write(&mut reply);
                None
            }
        };
        let answer = reply.finish().expect("an answer that fits").to_vec();
        if let Some(ticket) = outcome {
            let waiter = self.next.replace(self.next.get() + 1);
            if self.registrar.submit(ticket, waiter).is_none() {
                self.registrar.kick();
                assert_eq!(self.notes.outcome(waiter), Ok(()), "the database takes what the rules took");
            }
        }
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("end of headers");
        assert!(!answer[..head].iter().any(|b| *b == 0 || *b == 0x7f), "{}", answer.escape_ascii());
        std::str::from_utf8(&answer[8..11]).expect("status").parse().expect("status")
    }

    /// What the table holds, every text column.
    fn table(&self) -> Vec<String> {
        let db = self.file.connect();
        let mut select = db
            .prepare("SELECT hex(username) || '|' || hex(contact) || '|' || hex(callid) || '|' || cseq || '|' || expires FROM location ORDER BY 1")
            .expect("select");
        let rows = select.query_map([], |row| row.get(0)).expect("rows");
        rows.map(|row| row.expect("row")).collect()
    }

    fn refused(&self, what: &str, bytes: &[u8], statuses: &[u16]) {
        let (before, alive) = (self.table(), self.registrar.bindings());
        let status = self.send(bytes);
        assert!(statuses.contains(&status), "{what}: {status}");
        assert_eq!((self.table(), self.registrar.bindings()), (before, alive), "{what}: something has changed");
    }
}

fn request(headers: &str, body: &str) -> Vec<u8> {
    format!(
        "REGISTER sip:example.org SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bKx\r\nFrom: <sip:alice@example.org>;tag=1\r\n\
         To: <sip:alice@example.org>\r\nCall-ID: call\r\nCSeq: 1 REGISTER\r\n{headers}\r\n{body}"
    )
    .into_bytes()
}

/// The request with one header's value exchanged.
fn with(header: &str, value: &[u8]) -> Vec<u8> {
    let plain = request("Contact: <sip:new@h>\r\nUser-Agent: phone\r\nExpires: 600\r\n", "");
    let text = String::from_utf8(plain).expect("text");
    let mut out = Vec::new();
    for line in text.split_inclusive("\r\n") {
        match line.strip_prefix(header).and_then(|rest| rest.strip_prefix(": ")) {
            Some(_) => {
                out.extend_from_slice(header.as_bytes());
                out.extend_from_slice(b": ");
                out.extend_from_slice(value);
                out.extend_from_slice(b"\r\n");
            }
            None => out.extend_from_slice(line.as_bytes()),
        }
    }
    out
}

#[test]
fn too_many_contacts_and_too_much_of_anything() {
    let server = Server::open();
    let many = |n: usize| (0..n).map(|i| format!("<sip:c{i}@h>")).collect::<Vec<_>>().join(",");
    server.refused("10,000 contacts", &with("Contact", many(10_000).as_bytes()), &[400, 513]);
    server.refused("3,000 contacts", &with("Contact", many(3000).as_bytes()), &[400]);
    server.refused("33 contacts", &with("Contact", many(33).as_bytes()), &[400]);
    let lines = "Contact: <sip:c@h>\r\n".repeat(10_000);
    server.refused("10,000 lines", &request(&lines, ""), &[400, 513]);
    let long = "x".repeat(60_000);
    for header in ["Contact", "Call-ID", "User-Agent", "To", "From"] {
        for value in
            [format!("<sip:{long}@h>"), long.clone(), format!("<sip:a@h>;x={long}"), format!("\"{long}\" <sip:a@h>")]
        {
            // A long parameter or display name of a header that is not kept may pass; then it registers nothing new.
            let bytes = with(header, value.as_bytes());
            let status = server.send(&bytes);
            assert!([200, 400, 403, 513].contains(&status), "{header}: {status}");
        }
    }
    server.refused("120 kB", &request(&format!("X: {long}{long}\r\nContact: <sip:new@h>\r\n"), ""), &[400, 513]);
    let path = "<sip:p;lr>,".repeat(5000) + "<sip:p;lr>";
    server.refused("5,001 hops", &request(&format!("Path: {path}\r\nContact: <sip:new@h>\r\n"), ""), &[400]);
    let tags = "a,".repeat(20_000) + "b";
    server.refused("20,001 tags", &request(&format!("Require: {tags}\r\nContact: <sip:new@h>\r\n"), ""), &[420]);
    assert!(server.table().len() <= 3, "{:?}", server.table());
}

#[test]
fn control_characters_and_bytes_that_are_no_text() {
    let server = Server::open();
    let bad: [&[u8]; 8] =
        [b"\0", b"\x01", b"\x1b[2J", b"\x7f", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"];
    for bytes in bad {
        let name = bytes.escape_ascii().to_string();
        let into = |before: &[u8], after: &[u8]| [before, bytes, after].concat();
        server.refused(&format!("contact {name}"), &with("Contact", &into(b"<sip:a", b"@h>")), &[400]);
        server.refused(&format!("contact's parameter {name}"), &with("Contact", &into(b"<sip:a@h;x=", b">")), &[400]);
        server.refused(
            &format!("instance {name}"),
            &with("Contact", &into(b"<sip:a@h>;+sip.instance=\"<", b">\"")),
            &[400],
        );
        server.refused(&format!("call-id {name}"), &with("Call-ID", &into(b"c", b"")), &[400]);
        server.refused(&format!("user-agent {name}"), &with("User-Agent", &into(b"phone", b"x")), &[400]);
        let path = [&b"Path: <sip:p;x="[..], bytes, b">\r\nContact: <sip:new@h>\r\n"].concat();
        let mut whole = request("MARK", "");
        let at = whole.windows(4).position(|four| four == b"MARK").expect("mark");
        whole.splice(at..at + 4, path);
        server.refused(&format!("path {name}"), &whole, &[400]);
    }
    // In a host nothing but a name's characters stands.
    server.refused("host", &with("Contact", b"<sip:a@h\xc3\xa9>"), &[400]);
    // In an address-of-record such bytes are escaped: it is another user's, and nobody's row but its own.
    let other = with("To", b"<sip:\xff\x01@example.org>");
    let status = server.send(&other);
    assert!([400, 403].contains(&status), "{status}");
    // Text in other alphabets is text.
    assert_eq!(server.send(&with("User-Agent", "T\u{e9}l\u{e9}phone \u{96fb}\u{8a71}".as_bytes())), 200);
}

#[test]
fn numbers_out_of_range() {
    let server = Server::open();
    for number in ["-1", "4294967296", "99999999999999999999999", "1e3", "0x10", "1.5", "", "NaN"] {
        server.refused(&format!("Expires {number}"), &with("Expires", number.as_bytes()), &[400]);
        let contact = format!("<sip:new@h>;expires={number}");
        server.refused(&contact, &with("Contact", contact.as_bytes()), &[400]);
        let cseq = format!("{number} REGISTER");
        server.refused(&format!("CSeq {cseq}"), &with("CSeq", cseq.as_bytes()), &[400]);
        let length = format!("Contact: <sip:new@h>\r\nContent-Length: {number}\r\n");
        server.refused(&format!("Content-Length {number}"), &request(&length, ""), &[400]);
        let hops = format!("Contact: <sip:new@h>\r\nMax-Forwards: {number}\r\n");
        server.refused(&format!("Max-Forwards {number}"), &request(&hops, ""), &[400]);
        let port = format!("<sip:new@h:{number}x>");
        server.refused(&port, &with("Contact", port.as_bytes()), &[400]);
    }
    for q in ["1.001", "-0.1", "2", "0.0001", "NaN"] {
        let contact = format!("<sip:new@h>;q={q}");
        server.refused(&contact, &with("Contact", contact.as_bytes()), &[400]);
    }
    for id in ["0", "-1", "4294967296", "x"] {
        let contact = format!("<sip:new@h>;+sip.instance=\"<urn:x>\";reg-id={id}");
        server.refused(&contact, &with("Contact", contact.as_bytes()), &[400]);
    }
    server.refused("CSeq above 2^31", &with("CSeq", b"2147483648 REGISTER"), &[400]);
    // The largest numbers that are good are held to the bounds.
    assert_eq!(server.send(&with("Expires", b"4294967295")), 200);
    server.registrar.lookup(b"alice@example.org", now(), |b| assert!(b.expires <= now() + 86_401)).expect("lookup");
}

#[test]
fn sql_is_text() {
    let server = Server::open();
    let attacks = [
        "'; DROP TABLE location; --",
        "' OR '1'='1",
        "\\'; DELETE FROM location; --",
        "x'); DELETE FROM location WHERE ('1'='1",
        "%s%n${7*7}{{7*7}}",
        "`location`/*",
    ];
    let mut expected = 1;
    for (i, attack) in attacks.iter().enumerate() {
        let i = i + 1;
        // In a URI blanks and quotes cannot stand as they are; everywhere else they can.
        let uri = attack.replace(' ', "%20").replace(['"', '<', '>', '`', '{', '}', '\\'], "");
        let call: String = attack.chars().filter(|c| !c.is_whitespace()).collect();
        let bytes = format!(
            "REGISTER sip:example.org SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bKx\r\nFrom: <sip:user{i}@example.org>;tag=1\r\n\
             To: <sip:user{i}@example.org>\r\nCall-ID: {call}\r\nCSeq: 1 REGISTER\r\nUser-Agent: {attack}\r\n\
             Contact: <sip:{i}@h;x={uri}>;+sip.instance=\"<{attack}>\"\r\n\r\n"
        );
        let status = server.send(bytes.as_bytes());
        assert!(status == 200 || status == 400, "{attack}: {status}");
        expected += usize::from(status == 200);
        assert_eq!(server.table().len(), expected, "{attack}");
        if status == 200 {
            let stored: (String, String) = server
                .file
                .connect()
                .query_row("SELECT callid, user_agent FROM location WHERE username = ?", [format!("user{i}")], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .expect("row");
            assert_eq!(stored, (call, (*attack).to_owned()));
        }
    }
    assert!(expected > 3, "some of them are good SIP: {expected}");
    // As a user's name: a key of its own.
    let name = "<sip:'%20OR%20'1'='1@example.org>";
    let text = String::from_utf8(request("Contact: <sip:new@h>\r\n", "")).expect("text");
    let text = text.replace("<sip:alice@example.org>", name);
    assert_eq!(server.send(text.as_bytes()), 200);
    assert_eq!(server.table().len(), expected + 1);
}

#[test]
fn what_stands_twice_or_is_missing() {
    let server = Server::open();
    for twice in [
        "Call-ID: other",
        "CSeq: 9 REGISTER",
        "To: <sip:bob@example.org>",
        "From: <sip:bob@example.org>;tag=2",
        "Expires: 1\r\nExpires: 2",
    ] {
        server.refused(twice, &request(&format!("{twice}\r\nContact: <sip:new@h>\r\n"), ""), &[400]);
    }
    let whole = String::from_utf8(request("Contact: <sip:new@h>\r\n", "")).expect("text");
    for missing in ["Via", "From", "To", "Call-ID", "CSeq"] {
        let lines: Vec<&str> =
            whole.split_inclusive("\r\n").filter(|l| !l.starts_with(&format!("{missing}:"))).collect();
        server.refused(missing, lines.concat().as_bytes(), &[400]);
    }
    server.refused("body cut short", &request("Contact: <sip:new@h>\r\nContent-Length: 100\r\n", "short"), &[400]);
    server.refused("star among others", &with("Contact", b"*, <sip:new@h>"), &[400]);
    server.refused("star that lasts", &with("Contact", b"*"), &[400]);
    server.refused("other scheme", &with("To", b"<tel:+1>"), &[400]);
}
