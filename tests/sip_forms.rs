//! One message, many spellings: any header order, any case, compact or long, folded or not, CRLF or LF, lists on one line or
//! on many, give the same view.

use partyline::sip::{Contact, HeaderName, Message};
use proptest::prelude::*;
use proptest::sample::Index;

/// Headers of the message in the order that must survive within one name.
const HEADERS: &[(HeaderName, &[&str])] = &[
    (
        HeaderName::Via,
        &["SIP/2.0/UDP 192.0.2.1:5062;branch=z9hG4bK1;rport", "SIP/2.0/TCP b.example.org;branch=z9hG4bK2"],
    ),
    (HeaderName::From, &["\"A, B\" <sip:alice@example.org>;tag=f1"]),
    (HeaderName::To, &["<sip:alice@example.org>"]),
    (HeaderName::CallId, &["c1@192.0.2.1"]),
    (HeaderName::CSeq, &["42 REGISTER"]),
    (
        HeaderName::Contact,
        &["<sip:alice@192.0.2.1:5062;transport=udp>;expires=60;q=0.5", "\"x, <y>\" <sip:b@c>", "sip:d@e;expires=0"],
    ),
    (HeaderName::Supported, &["path", "outbound", "gruu"]),
    (HeaderName::MaxForwards, &["70"]),
    (HeaderName::ContentLength, &["4"]),
    (HeaderName::Expires, &["3600"]),
    (HeaderName::UserAgent, &["Some Agent (1.0)"]),
];

/// What has to be the same for every spelling.
fn view(buf: &mut [u8]) -> Vec<Vec<u8>> {
    let message = Message::parse(buf).unwrap();
    message.check().unwrap();
    let squeeze = |value: &[u8]| value.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<u8>>();
    let mut seen = vec![message.uri().to_vec(), message.body().to_vec()];
    for &(name, _) in HEADERS {
        seen.push(name.as_bytes().to_vec());
        match name {
            HeaderName::Via | HeaderName::Contact | HeaderName::Supported => {
                seen.extend(message.elements(name).map(squeeze));
            }
            _ => seen.extend(message.headers(name).map(squeeze)),
        }
    }
    for contact in message.contacts().map(Result::unwrap) {
        match contact {
            Contact::Star => seen.push(b"*".to_vec()),
            Contact::Address(contact) => {
                seen.push(contact.uri.raw.to_vec());
                seen.push(format!("{:?} {:?}", contact.expires, contact.q).into_bytes());
            }
        }
    }
    let via = message.via().unwrap();
    seen.push(via.branch.unwrap().to_vec());
    seen.push(format!("{:?} {:?} {:?}", via.port, message.cseq(), message.max_forwards()).into_bytes());
    seen.push(message.from().unwrap().tag().unwrap().to_vec());
    seen
}

/// Decisions, drawn one after another.
struct Draw<'p> {
    picks: &'p [Index],
    at: usize,
}

impl Draw<'_> {
    fn below(&mut self, n: usize) -> usize {
        self.at += 1;
        self.picks[self.at % self.picks.len()].index(n)
    }
}

fn spell(picks: &[Index]) -> Vec<u8> {
    let mut draw = Draw { picks, at: 0 };
    let mut lines: Vec<(HeaderName, String)> = Vec::new();
    for &(name, values) in HEADERS {
        let mut rest = values;
        while !rest.is_empty() {
            let take = 1 + draw.below(rest.len());
            lines.push((name, rest[..take].join([", ", ",", " , "][draw.below(3)])));
            rest = &rest[take..];
        }
    }
    // Any order that keeps lines of one name in theirs.
    let mut order: Vec<usize> = (0..lines.len()).collect();
    for at in 0..order.len() {
        let other = at + draw.below(order.len() - at);
        order.swap(at, other);
    }
    let mut names: Vec<HeaderName> = order.iter().map(|&at| lines[at].0).collect();
    let mut text = b"REGISTER sip:example.org SIP/2.0\r\n".to_vec();
    for name in names.drain(..) {
        let at = lines.iter().position(|line| line.0 == name).unwrap();
        let (name, value) = lines.remove(at);
        let written = match (name.compact(), draw.below(2)) {
            (Some(letter), 0) => vec![letter],
            _ => name.as_bytes().to_vec(),
        };
        for byte in written {
            text.push(if draw.below(2) == 0 { byte.to_ascii_lowercase() } else { byte.to_ascii_uppercase() });
        }
        text.extend_from_slice([&b":"[..], b": ", b" :", b"\t: \t", b":\r\n "][draw.below(5)]);
        let mut quoted = false;
        for byte in value.bytes() {
            quoted ^= byte == b'"';
            // A space outside quotes may be any white space, a fold too.
            if byte == b' ' && !quoted {
                text.extend_from_slice([&b" "[..], b"\t", b"  ", b"\r\n ", b"\n\t", b" \r\n  "][draw.below(6)]);
            } else {
                text.push(byte);
            }
        }
        text.extend_from_slice([&b"\r\n"[..], b"\n", b" \r\n"][draw.below(3)]);
    }
    text.extend_from_slice([&b"\r\nbody"[..], b"\nbody", b"\r\nbody and more"][draw.below(3)]);
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_spelling_gives_the_same_view(picks in proptest::collection::vec(any::<Index>(), 400)) {
        let plain = {
            let mut text = b"REGISTER sip:example.org SIP/2.0\r\n".to_vec();
            for &(name, values) in HEADERS {
                text.extend_from_slice(name.as_bytes());
                text.extend_from_slice(b": ");
                text.extend_from_slice(values.join(", ").as_bytes());
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"\r\nbody");
            text
        };
        let mut spelt = spell(&picks);
        let shown = String::from_utf8_lossy(&spelt).into_owned();
        prop_assert_eq!(view(&mut spelt), view(&mut plain.clone()), "{}", shown);
    }
}
