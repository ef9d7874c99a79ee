//! Calls everything of the room on one buffer. What the fuzz drivers run: it has to come back from any input, and what
//! it was shown has to lie in the buffer.

use partyline::sip::digest::{Algorithm, Credentials, Hash};
use partyline::sip::{AorKey, Contact, HeaderName, KeyHasher, Message, NameAddr, Params, Response, Tags, Uri, Via};

const HASHER: KeyHasher = KeyHasher::from_seeds([1, 2, 3, 4]);

struct Within(std::ops::Range<usize>);

impl Within {
    fn see(&self, part: &[u8]) {
        let start = part.as_ptr() as usize;
        assert!(part.is_empty() || (self.0.contains(&start) && start + part.len() <= self.0.end));
    }

    fn uri(&self, uri: &Uri<'_>) {
        for part in [Some(uri.raw), uri.user, uri.password, Some(uri.host), Some(uri.params), Some(uri.headers)] {
            self.see(part.unwrap_or(&[]));
        }
        assert!(uri.matches(uri));
        uri.params().chain(uri.headers()).take(100).for_each(|(name, value)| {
            self.see(name);
            self.see(value.unwrap_or(&[]));
        });
        if let Ok(key) = AorKey::new(uri) {
            assert!(key.as_bytes().iter().all(|byte| (b' '..0x7f).contains(byte)));
            assert_eq!(key, AorKey::from_bytes(key.as_bytes()).unwrap());
            HASHER.hash(key.as_bytes());
        }
    }

    fn params(&self, params: Params<'_>) {
        for param in params {
            self.see(param.name);
            self.see(param.text());
        }
    }

    fn address(&self, address: &NameAddr<'_>) {
        self.see(address.display);
        self.see(address.uri);
        self.see(address.tag().unwrap_or(&[]));
        self.params(address.params);
        if let Ok(uri) = address.parsed_uri() {
            self.uri(&uri);
        }
    }

    fn via(&self, via: &Via<'_>) {
        for part in [Some(via.raw), Some(via.transport), Some(via.host), via.branch, via.received, via.maddr] {
            self.see(part.unwrap_or(&[]));
        }
        self.params(via.params);
    }

    fn message(&self, message: &Message<'_>) {
        let _ = message.check();
        for header in message.all() {
            self.see(header.text);
            self.see(header.value);
            assert!(!header.value.iter().any(|byte| matches!(byte, b'\r' | b'\n')));
            assert!(message.by_name(header.text).any(|value| value == header.value));
        }
        for name in HeaderName::ALL {
            assert_eq!(message.has(name), message.headers(name).next().is_some());
            assert_eq!(message.value(name), message.headers(name).next());
        }
        message.elements(HeaderName::Via).for_each(|element| {
            self.see(element);
            if let Ok(via) = Via::parse(element) {
                self.via(&via);
            }
        });
        for name in [HeaderName::Route, HeaderName::Path, HeaderName::RecordRoute, HeaderName::ReferTo] {
            message
                .elements(name)
                .filter_map(|value| NameAddr::parse(value).ok())
                .for_each(|route| self.address(&route));
        }
        for address in [message.from(), message.to()].into_iter().flatten() {
            self.address(&address);
        }
        if let Ok(uri) = message.request_uri() {
            self.uri(&uri);
        }
        for contact in message.contacts() {
            match contact {
                Ok(Contact::Address(contact)) => {
                    self.see(contact.raw);
                    self.uri(&contact.uri);
                    self.params(contact.params);
                    assert!(contact.q.is_none_or(|q| q <= 1000));
                }
                Ok(Contact::Star) | Err(_) => (),
            }
        }
        for name in [HeaderName::Authorization, HeaderName::ProxyAuthorization] {
            for credentials in message.headers(name).filter_map(|value| Credentials::parse(value).ok()) {
                self.see(credentials.username);
                let ha1 = Hash::ha1(Algorithm::Md5, credentials.username, credentials.realm, b"secret");
                credentials.verify(&ha1, message.method().as_bytes());
            }
        }
        self.see(message.body());
        self.see(message.raw());
    }
}

/// An answer to `message`, read back.
fn answer(message: &Message<'_>, sound: bool) {
    let mut room = vec![0; 70_000];
    let source = Some("[2001:db8::1]:5070".parse().unwrap());
    let mut response = Response::new(&mut room, message, 200, source, &Tags::from_key([5; 4]));
    response.copy(HeaderName::Path, message);
    if let Some(sent) = response.finish() {
        assert_eq!(sent.windows(4).filter(|window| window == b"\r\n\r\n").count(), 1);
        let read = Message::parse(sent);
        if sound {
            let read = read.expect("the answer to a sound request is sound");
            assert_eq!(read.cseq(), message.cseq());
            assert_eq!(read.call_id(), message.call_id());
            assert!(read.to().unwrap().tag().is_some());
            assert_eq!(read.headers(HeaderName::Via).count(), message.headers(HeaderName::Via).count());
        }
    }
}

/// Whether the input was a sound message.
pub fn exercise(input: &[u8]) -> bool {
    let mut buf = input.to_vec();
    let range = buf.as_ptr_range();
    let within = Within(range.start as usize..range.end as usize);
    if let Ok(message) = Message::parse(&mut buf) {
        within.message(&message);
        answer(&message, true);
        // Unfolding changes nothing that a second look would see.
        let mut again = message.raw().to_vec();
        let again = Message::parse(&mut again).unwrap();
        assert!(again.all().map(|header| header.value).eq(message.all().map(|header| header.value)));
        return true;
    }
    if let Some(message) = Message::salvage(&mut buf) {
        within.message(&message);
        answer(&message, false);
    }
    // The pieces by themselves, for what never gets as far as being a message.
    let input = &input[..input.len().min(2_000)];
    let range = input.as_ptr_range();
    let within = Within(range.start as usize..range.end as usize);
    if let Ok(uri) = Uri::parse(input) {
        within.uri(&uri);
    }
    if let Ok(address) = NameAddr::parse(input) {
        within.address(&address);
    }
    if let Ok(via) = Via::parse(input) {
        within.via(&via);
    }
    let _ = Contact::parse(input);
    let _ = Credentials::parse(input);
    false
}
