//! The view of a message: what it shows, what it refuses, and what of a refused one can still be answered.

use partyline::sip::{Contact, HeaderName, MAX_HEADERS, Message, Method, ParseError, Scheme, Start};

const REGISTER: &str = "REGISTER sip:example.org SIP/2.0\r\n\
    Via: SIP/2.0/UDP 192.0.2.1:5062;rport;branch=z9hG4bK776asdhds\r\n\
    Max-Forwards: 70\r\n\
    From: \"Alice\" <sip:alice@example.org>;tag=456248\r\n\
    To: <sip:alice@example.org>\r\n\
    Call-ID: 843817637684230@998sdasdh09\r\n\
    CSeq: 1826 REGISTER\r\n\
    Contact: <sip:alice@192.0.2.1:5062>;q=0.5, \"x, y\" <sip:b@c>\r\n\
    Contact: *\r\n\
    Expires: 7200\r\n\
    X-Mine: a\r\n\
    Content-Length: 3\r\n\r\nabc";

#[test]
fn view_of_a_register() {
    let mut buf = REGISTER.as_bytes().to_vec();
    buf.extend_from_slice(b"left out");
    let message = Message::parse(&mut buf).unwrap();
    assert_eq!(message.start(), Start::Request { method: Method::Register, uri: b"sip:example.org" });
    assert_eq!(message.via().unwrap().branch, Some(&b"z9hG4bK776asdhds"[..]));
    assert_eq!(message.from().unwrap().tag(), Some(&b"456248"[..]));
    assert_eq!(message.to().unwrap().uri, b"sip:alice@example.org");
    assert_eq!(message.call_id(), b"843817637684230@998sdasdh09");
    assert_eq!(message.cseq(), (1826, Method::Register));
    assert_eq!(message.max_forwards(), Some(70));
    assert_eq!(message.expires(), Ok(Some(7200)));
    assert_eq!((message.content_length(), message.body()), (Some(3), &b"abc"[..]));
    assert_eq!(message.raw(), REGISTER.as_bytes());
    assert_eq!(message.by_name(b"x-mine").collect::<Vec<_>>(), [b"a"]);
    assert_eq!(message.by_name(b"m").count(), 2);
    assert_eq!(message.all().count(), 11);
    let contacts: Vec<_> = message.contacts().map(Result::unwrap).collect();
    assert_eq!(contacts.len(), 3);
    assert!(
        matches!(contacts[0], Contact::Address(contact) if contact.q == Some(500) && contact.uri.scheme == Scheme::Sip)
    );
    assert!(matches!(contacts[1], Contact::Address(contact) if contact.display == b"\"x, y\""));
    assert!(matches!(contacts[2], Contact::Star));
    message.check().unwrap();
}

fn error(text: &str) -> Option<ParseError> {
    Message::parse(&mut text.as_bytes().to_vec()).err()
}

#[test]
fn errors_are_told_apart() {
    use ParseError::*;
    for (from, to, expected) in [
        ("SIP/2.0\r\nVia", "SIP/3.0\r\nVia", BadVersion),
        ("SIP/2.0\r\nVia", "HTTP/1.1\r\nVia", BadStartLine),
        ("REGISTER sip:example.org ", "REGISTER  sip:example.org ", BadStartLine),
        ("REGISTER sip:example.org ", "REGISTER <sip:example.org> ", BadStartLine),
        ("REGISTER sip:example.org ", "REGISTER sip:example.org;a b ", BadStartLine),
        ("SIP/2.0\r\nVia", "SIP/2.0 \r\nVia", BadStartLine),
        ("Via:", "Other:", Missing(HeaderName::Via)),
        ("From:", "Other:", Missing(HeaderName::From)),
        ("To:", "Other:", Missing(HeaderName::To)),
        ("Call-ID:", "Other:", Missing(HeaderName::CallId)),
        ("CSeq:", "Other:", Missing(HeaderName::CSeq)),
        ("X-Mine: a", "f: <sip:x@y>", Repeated(HeaderName::From)),
        ("X-Mine: a", "X-Mine a", BadHeaderLine),
        ("X-Mine: a", ": a", BadHeaderLine),
        ("X-Mine: a", "X-Mine: a\rb", BareCr),
        ("CSeq: 1826", "CSeq: 2147483648", BadCSeq),
        ("CSeq: 1826", "CSeq: -1", BadCSeq),
        ("CSeq: 1826 REGISTER", "CSeq: 1826", BadCSeq),
        ("CSeq: 1826 REGISTER", "CSeq: 1826 INVITE", CSeqMismatch),
        ("Max-Forwards: 70", "Max-Forwards: 256", BadMaxForwards),
        ("Max-Forwards: 70", "Max-Forwards: 1\r\nMax-Forwards: 1", Repeated(HeaderName::MaxForwards)),
        ("Content-Length: 3", "Content-Length: 4", Truncated),
        ("Content-Length: 3", "Content-Length: -3", BadContentLength),
        ("Content-Length: 3", "Content-Length: 99999999999999999999999", BadContentLength),
        ("Content-Length: 3\r\n\r\nabc", "Content-Length: 0\r\n", NoEndOfHeaders),
        ("843817637684230", "8438 7637684230", BadCallId),
        ("843817637684230", "8438\x007637684230", BadCallId),
    ] {
        let text = REGISTER.replacen(from, to, 1);
        assert_ne!(text, REGISTER, "{from}");
        assert_eq!(error(&text), Some(expected), "{to}");
    }
    assert_eq!(error(""), Some(KeepAlive));
    assert_eq!(error("\r\n\r\n"), Some(KeepAlive));
    assert_eq!(error("\0\0\0\0"), Some(KeepAlive));
    assert_eq!(error("garbage"), Some(BadStartLine));
    let long = "x".repeat(66_000);
    assert_eq!(error(&REGISTER.replacen("X-Mine: a", &format!("X-Mine: {long}"), 1)), Some(TooLarge));
    assert_eq!(error(&REGISTER.replacen("sip:example.org", &format!("sip:{long}"), 1)), Some(TooLarge));
}

#[test]
fn headers_are_bounded() {
    let with = |more: usize| REGISTER.replacen("X-Mine: a\r\n", &"X: 1\r\n".repeat(more), 1);
    let mut most = with(MAX_HEADERS - 10).into_bytes();
    assert_eq!(Message::parse(&mut most).unwrap().all().count(), MAX_HEADERS);
    assert_eq!(error(&with(MAX_HEADERS - 9)), Some(ParseError::TooManyHeaders));
    // The limit is on lines: ten thousand contacts on one line are read one by one.
    let many = REGISTER.replacen("Contact: *", &format!("m: {}", "sip:a@b,".repeat(7_000)), 1);
    assert_eq!(Message::parse(&mut many.into_bytes()).unwrap().contacts().count(), 7_002);
}

#[test]
fn folding_compact_forms_and_bare_lf() {
    let mut text = "\r\n\nREGISTER sip:h SIP/2.0\nv  :\n SIP/2.0/UDP\t a \r\n ;branch=z9hG4bK1\nVIA: SIP/2.0/UDP b\nf: sip:a@h\r\n\t;tag=1\nT: sip:a@h\nI:c\ncSEQ:\r\n 1\n REGISTER\nl:0\n\n"
        .as_bytes()
        .to_vec();
    let message = Message::parse(&mut text).unwrap();
    assert_eq!(message.via().unwrap().branch, Some(&b"z9hG4bK1"[..]));
    assert_eq!(message.headers(HeaderName::Via).count(), 2);
    assert_eq!(message.from().unwrap().tag(), Some(&b"1"[..]));
    assert_eq!(message.cseq(), (1, Method::Register));
    assert!(message.all().all(|header| !header.value.contains(&b'\n')));
}

#[test]
fn responses() {
    let base = REGISTER.replacen("REGISTER sip:example.org SIP/2.0", "SIP/2.0 200 OK", 1);
    let mut buf = base.clone().into_bytes();
    let message = Message::parse(&mut buf).unwrap();
    assert_eq!(message.start(), Start::Response { status: 200, reason: b"OK" });
    assert_eq!(message.method(), Method::Register);
    for (line, status) in [("SIP/2.0 100 ", 100), ("SIP/2.0 486", 486), ("sip/2.0 699 \u{2603} 1", 699)] {
        let mut buf = base.replacen("SIP/2.0 200 OK", line, 1).into_bytes();
        assert_eq!(Message::parse(&mut buf).unwrap().status(), status);
    }
    for line in ["SIP/2.0 99 x", "SIP/2.0 700 x", "SIP/2.0 2000 OK", "SIP/2.0 20", "SIP/2.0 ", "SIP/2.0 4294967301 x"] {
        assert_eq!(error(&base.replacen("SIP/2.0 200 OK", line, 1)), Some(ParseError::BadStartLine), "{line}");
    }
    assert_eq!(error(&base.replacen("SIP/2.0 200 OK", "SIP/7.0 200 OK", 1)), Some(ParseError::BadVersion));
}

#[test]
fn salvage_answers_what_can_be_answered() {
    let salvaged = |text: &str| {
        let mut buf = text.as_bytes().to_vec();
        Message::parse(&mut buf).unwrap_err();
        Message::salvage(&mut buf).map(|message| message.cseq_number())
    };
    for (from, to) in [
        ("Max-Forwards: 70", "Max-Forwards: x"),
        ("X-Mine: a", "X-Mine a"),
        ("Content-Length: 3", "Content-Length: 900"),
        ("SIP/2.0\r\nVia", "SIP/7.0\r\nVia"),
        ("REGISTER sip:example.org", "REGISTER <sip:example.org>"),
        ("X-Mine: a", &"X: 1\r\n".repeat(200)),
        ("\r\n\r\nabc", "\r\n"),
    ] {
        assert_eq!(salvaged(&REGISTER.replacen(from, to, 1)), Some(1826), "{to}");
    }
    for (from, to) in [
        ("Via:", "Wia:"),
        ("Via: SIP/2.0/UDP", "Via: SIP/2.0/UDP;"),
        ("From:", "Form:"),
        ("Call-ID:", "Other:"),
        ("REGISTER sip", "ACK sip"),
        ("REGISTER sip:example.org SIP/2.0", "SIP/2.0 2000 OK"),
        ("REGISTER sip:example.org SIP/2.0", "what is this"),
    ] {
        let text = REGISTER.replacen(from, to, 1).replacen("CSeq: 1826", "CSeq: x", 1);
        assert_eq!(salvaged(&text), None, "{to}");
    }
    // The number is not needed to answer, the header is.
    assert_eq!(salvaged(&REGISTER.replacen("CSeq: 1826", "CSeq: x", 1)), Some(0));
}
