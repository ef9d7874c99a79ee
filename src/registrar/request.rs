//! A REGISTER as the rules see it, and how it is read out of the view of a message.

use super::rules::Rejection;
use super::store::{Aor, Column, Key, Misfit, NO_METHODS, NO_Q, Row, Widths, too_long};
use crate::sip::contact::{NameAddr, is_route};
use crate::sip::lex::Elements;
use crate::sip::uri::{Scheme, Uri};
use crate::sip::{self, AorKey, HeaderName, Message, ParseError};

/// More contacts than these in one request are refused (400) before anything else is looked at.
pub const MAX_REQUEST_CONTACTS: usize = 32;

/// Extensions of SIP that change how a REGISTER is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extensions {
    /// RFC 3327.
    pub path: bool,
    /// RFC 5626.
    pub outbound: bool,
    /// RFC 5627.
    pub gruu: bool,
}

impl Extensions {
    fn of(&mut self, tag: &[u8]) -> Option<&mut bool> {
        match tag.len() {
            4 if tag.eq_ignore_ascii_case(b"path") => Some(&mut self.path),
            8 if tag.eq_ignore_ascii_case(b"outbound") => Some(&mut self.outbound),
            4 if tag.eq_ignore_ascii_case(b"gruu") => Some(&mut self.gruu),
            _ => None,
        }
    }

    /// Whether the extension with this option tag is among them.
    pub fn has(mut self, tag: &[u8]) -> bool {
        self.of(tag).is_some_and(|it| *it)
    }

    fn read(&mut self, message: &Message<'_>, name: HeaderName) {
        if message.has(name) {
            for tag in message.elements(name) {
                if let Some(it) = self.of(tag) {
                    *it = true;
                }
            }
        }
    }
}

/// The tags of Require that are not understood (RFC 3261 section 10.3 step 2).
pub(crate) fn unsupported<'m>(message: &'m Message<'_>, understood: Extensions) -> impl Iterator<Item = &'m [u8]> {
    message.elements(HeaderName::Require).filter(move |tag| !understood.has(tag))
}

/// What stands between the user agent and here (RFC 5626 section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FirstHop {
    /// Nobody: there is one Via.
    #[default]
    Us,
    /// A proxy that keeps flows: the Path that was added first has `ob`.
    Outbound,
    /// A proxy that does not.
    Other,
}

impl FirstHop {
    fn read(message: &Message<'_>, path: &[u8]) -> FirstHop {
        if message.elements(HeaderName::Via).nth(1).is_none() {
            return FirstHop::Us;
        }
        // Each proxy puts its own in front (RFC 3327 section 5.2): the last is the nearest to the user agent.
        let last = Elements::new(path).last().map(NameAddr::parse);
        let uri = last.and_then(Result::ok).and_then(|address| address.parsed_uri().ok());
        if uri.is_some_and(|uri| uri.param(b"ob").is_some()) { FirstHop::Outbound } else { FirstHop::Other }
    }
}

/// One contact of a request.
#[derive(Debug, Clone, Copy)]
pub struct Contact<'a> {
    pub uri: Uri<'a>,
    /// Seconds, as the parameter says.
    pub expires: Option<u32>,
    /// 0 to 1000, or [`NO_Q`].
    pub q: u16,
    /// Without quotes; empty when there is none.
    pub instance: &'a [u8],
    /// 0 when there is none.
    pub reg_id: u32,
}

impl<'a> Contact<'a> {
    const NONE: Contact<'static> = Contact::of_uri(Uri {
        raw: b"",
        scheme: Scheme::Other,
        user: None,
        password: None,
        host: b"",
        port: None,
        params: b"",
        headers: b"",
    });

    pub const fn of_uri(uri: Uri<'a>) -> Contact<'a> {
        Contact { uri, expires: None, q: NO_Q, instance: b"", reg_id: 0 }
    }

    /// Bindings with both an instance and a reg-id are told apart by these (RFC 5626 section 6), all others by their URI.
    pub fn has_flow(&self) -> bool {
        self.reg_id != 0 && !self.instance.is_empty()
    }
}

/// A REGISTER. All text is borrowed from the message.
#[derive(Debug, Clone, Copy)]
pub struct RegisterRequest<'a> {
    /// [`AorKey`]'s bytes.
    pub aor: &'a [u8],
    pub call_id: &'a [u8],
    pub cseq: u32,
    pub contacts: &'a [Contact<'a>],
    /// There is a Contact `*` (as well).
    pub star: bool,
    /// The Expires header.
    pub expires: Option<u32>,
    pub user_agent: &'a [u8],
    /// Where it came from when that is not where the Contact says, as a SIP URI; empty otherwise.
    pub received: &'a [u8],
    /// The Path headers' values, separated by commas.
    pub path: &'a [u8],
    /// The socket that it came in on, as Kamailio writes it (`udp:192.0.2.1:5060`); may be empty.
    pub socket: &'a [u8],
    pub methods: u32,
    /// By Supported and Require.
    pub supported: Extensions,
    /// By Require.
    pub required: Extensions,
    /// Require names more than [`Extensions`] has.
    pub requires_others: bool,
    pub first_hop: FirstHop,
    /// From names another user than To.
    pub third_party: bool,
}

impl<'a> RegisterRequest<'a> {
    /// One without contacts: a query.
    pub fn query(aor: &'a [u8], call_id: &'a [u8], cseq: u32) -> RegisterRequest<'a> {
        RegisterRequest {
            aor,
            call_id,
            cseq,
            contacts: &[],
            star: false,
            expires: None,
            user_agent: b"",
            received: b"",
            path: b"",
            socket: b"",
            methods: NO_METHODS,
            supported: Extensions::default(),
            required: Extensions::default(),
            requires_others: false,
            first_hop: FirstHop::Us,
            third_party: false,
        }
    }

    /// The same without its contacts: answered with the state, changes nothing. For [`super::Auth::Again`].
    pub fn as_query(self) -> RegisterRequest<'a> {
        RegisterRequest { contacts: &[], star: false, ..self }
    }

    /// The row of `location` that one of its contacts makes.
    pub(crate) fn row(&self, contact: &Contact<'a>, now: u32, expires: u32) -> Row<'a> {
        Row {
            key: Key {
                aor: Aor::split(self.aor),
                contact: contact.uri.raw,
                instance: contact.instance,
                reg_id: contact.reg_id,
            },
            ruid: b"",
            received: self.received,
            path: self.path,
            call_id: self.call_id,
            user_agent: self.user_agent,
            socket: self.socket,
            expires,
            modified: now,
            cseq: self.cseq,
            q: contact.q,
            methods: self.methods,
            server_id: 0,
        }
    }

    /// The first of its values that a table with these columns could not take.
    pub(crate) fn misfit(&self, widths: &Widths) -> Option<Misfit> {
        self.contacts.iter().find_map(|contact| widths.misfit(&self.row(contact, 0, 0)))
    }

    /// Whether all that it does is to add or refresh bindings: that needs no knowledge of those that stand.
    pub(crate) fn only_adds(&self) -> bool {
        let stays = |contact: &Contact<'_>| contact.expires.or(self.expires) != Some(0);
        !self.star && !self.contacts.is_empty() && self.contacts.iter().all(stays)
    }

    /// The first of its values that is no UTF-8 or has control characters: they would stand in tables, logs and answers.
    pub(crate) fn unprintable(&self) -> Option<Column> {
        let whole = [
            (Column::CallId, self.call_id),
            (Column::UserAgent, self.user_agent),
            (Column::Path, self.path),
            (Column::Received, self.received),
        ];
        let bad = |(column, text): (Column, &[u8])| (!is_printable(text)).then_some(column);
        whole.into_iter().find_map(bad).or_else(|| {
            let of = |c: &Contact<'_>| bad((Column::Contact, c.uri.raw)).or(bad((Column::Instance, c.instance)));
            self.contacts.iter().find_map(of)
        })
    }

    /// The first of its values that its column could not take.
    pub(crate) fn too_long(&self) -> Option<Column> {
        let aor = Aor::split(self.aor);
        too_long(&[
            (Column::Username, aor.user),
            (Column::Domain, aor.domain),
            (Column::CallId, self.call_id),
            (Column::UserAgent, self.user_agent),
            (Column::Received, self.received),
            (Column::Path, self.path),
            (Column::Socket, self.socket),
        ])
        .or_else(|| {
            self.contacts.iter().find_map(|contact| {
                too_long(&[(Column::Contact, contact.uri.raw), (Column::Instance, contact.instance)])
            })
        })
    }
}

/// Whether a row of the table holds nothing that may not stand in an answer.
pub(crate) fn can_be_told(row: &Row<'_>) -> bool {
    [row.key.contact, row.key.instance, row.path, row.received].into_iter().all(is_printable)
}

fn is_printable(text: &[u8]) -> bool {
    // Without a branch per byte: nearly all texts are ASCII.
    if text.iter().fold(true, |good, byte| good & (*byte >= b' ') & (*byte < 0x7f)) {
        return true;
    }
    std::str::from_utf8(text).is_ok_and(|text| !text.chars().any(|c| c.is_control() && c != '\t'))
}

/// Whether From names the user of To, whose key is `to`.
fn is_first_party(message: &Message<'_>, to: &AorKey, use_domain: bool) -> bool {
    let (Ok(from), Ok(whom)) = (message.from(), message.to()) else { return false };
    // Nearly always written alike.
    from.uri == whom.uri || from_key(message, use_domain).is_ok_and(|from| from == *to)
}

/// The key of the user that From names.
pub(crate) fn from_key(message: &Message<'_>, use_domain: bool) -> Result<AorKey, ParseError> {
    message.from()?.parsed_uri().and_then(|uri| AorKey::new(&uri)).and_then(|from| key(from, use_domain))
}

/// The key without its domain, unless that belongs to it.
pub(crate) fn key(aor: AorKey, use_domain: bool) -> Result<AorKey, ParseError> {
    if use_domain || aor.user().is_empty() {
        return Ok(aor);
    }
    AorKey::from_bytes(&aor.as_bytes()[..=aor.user().len()])
}

/// How many contacts are read without an allocation.
const INLINE: usize = 4;

/// What was read out of a message; [`Registration::request`] lends it to the rules. More than [`INLINE`] contacts, or more
/// than one Path header, cost an allocation.
pub struct Registration<'a> {
    aor: AorKey,
    call_id: &'a [u8],
    cseq: u32,
    few: [Contact<'a>; INLINE],
    count: usize,
    many: Vec<Contact<'a>>,
    star: bool,
    expires: Option<u32>,
    user_agent: &'a [u8],
    path: &'a [u8],
    joined_path: Vec<u8>,
    supported: Extensions,
    required: Extensions,
    requires_others: bool,
    first_hop: FirstHop,
    third_party: bool,
}

impl<'a> Registration<'a> {
    /// Reads a REGISTER. The address-of-record is that of the To header (RFC 3261 section 10.3 step 5); without
    /// `use_domain` its domain is left out of the key.
    pub fn read(message: &Message<'a>, use_domain: bool) -> Result<Registration<'a>, Rejection> {
        let to = message.to().and_then(|to| to.parsed_uri()).map_err(Rejection::BadRequest)?;
        let aor = AorKey::new(&to).and_then(|aor| key(aor, use_domain)).map_err(Rejection::BadRequest)?;
        let mut read = Registration {
            aor,
            call_id: message.call_id(),
            cseq: message.cseq_number(),
            few: [Contact::NONE; INLINE],
            count: 0,
            many: Vec::new(),
            star: false,
            expires: message.expires().map_err(Rejection::BadRequest)?,
            user_agent: message.value(HeaderName::UserAgent).unwrap_or_default(),
            path: b"",
            joined_path: Vec::new(),
            supported: Extensions::default(),
            required: Extensions::default(),
            requires_others: false,
            first_hop: FirstHop::Us,
            third_party: !is_first_party(message, &aor, use_domain),
        };
        read.required.read(message, HeaderName::Require);
        read.supported = read.required;
        read.supported.read(message, HeaderName::Supported);
        let all = Extensions { path: true, outbound: true, gruu: true };
        read.requires_others = message.has(HeaderName::Require) && unsupported(message, all).next().is_some();
        for contact in message.contacts() {
            match contact.map_err(Rejection::BadRequest)? {
                sip::Contact::Star => read.star = true,
                sip::Contact::Address(address) => {
                    if read.count == MAX_REQUEST_CONTACTS {
                        return Err(Rejection::TooManyInRequest);
                    }
                    read.push(Contact {
                        uri: address.uri,
                        expires: address.expires,
                        q: address.q.unwrap_or(NO_Q),
                        instance: address.instance.unwrap_or_default(),
                        // Only who does outbound means a flow by it (RFC 5626 section 6).
                        reg_id: address.reg_id.filter(|_| read.supported.outbound).unwrap_or(0),
                    });
                }
            }
        }
        let mut paths = message.headers(HeaderName::Path);
        read.path = paths.next().unwrap_or_default();
        for more in paths {
            if read.joined_path.is_empty() {
                read.joined_path.extend_from_slice(read.path);
            }
            read.joined_path.extend_from_slice(b", ");
            read.joined_path.extend_from_slice(more);
        }
        let path = if read.joined_path.is_empty() { read.path } else { &read.joined_path };
        if message.has(HeaderName::Path) && !is_route(path) {
            return Err(Rejection::BadRequest(ParseError::BadAddress));
        }
        if read.supported.outbound {
            read.first_hop = FirstHop::read(message, path);
        }
        Ok(read)
    }

    fn push(&mut self, contact: Contact<'a>) {
        if self.count < INLINE {
            self.few[self.count] = contact;
        } else {
            if self.many.is_empty() {
                self.many.extend_from_slice(&self.few);
            }
            self.many.push(contact);
        }
        self.count += 1;
    }

    /// Its contacts, without `*`.
    pub fn contacts(&self) -> &[Contact<'a>] {
        if self.count <= INLINE { &self.few[..self.count] } else { &self.many }
    }

    pub fn aor(&self) -> &AorKey {
        &self.aor
    }

    /// The request, with what the message itself does not know: `received` and `socket`, see [`RegisterRequest`].
    pub fn request<'b>(&'b self, received: &'b [u8], socket: &'b [u8]) -> RegisterRequest<'b> {
        RegisterRequest {
            aor: self.aor.as_bytes(),
            call_id: self.call_id,
            cseq: self.cseq,
            contacts: self.contacts(),
            star: self.star,
            expires: self.expires,
            user_agent: self.user_agent,
            received,
            path: if self.joined_path.is_empty() { self.path } else { &self.joined_path },
            socket,
            methods: NO_METHODS,
            supported: self.supported,
            required: self.required,
            requires_others: self.requires_others,
            first_hop: self.first_hop,
            third_party: self.third_party,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::ParseError;

    fn message(headers: &str) -> Vec<u8> {
        format!(
            "REGISTER sip:example.org SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bKx\r\nFrom: <sip:f@example.org>;tag=1\r\n\
             To: <sip:%61lice@Example.ORG>\r\nCall-ID: call\r\nCSeq: 7 REGISTER\r\n{headers}\r\n"
        )
        .into_bytes()
    }

    #[test]
    fn everything_is_read() {
        let mut bytes = message(
            "Contact: <sip:a@h>;q=0.5;expires=9, <sip:b@h>;+sip.instance=\"<urn:x>\";reg-id=2\r\nm: sip:c@h\r\n\
             Supported: path\r\nk: Outbound , x\r\nPath: <sip:p1;lr>\r\nPath: <sip:p2;lr>,<sip:p3;lr>\r\nUser-Agent: phone\r\nExpires: 77\r\n",
        );
        let message = Message::parse(&mut bytes).expect("message");
        let read = Registration::read(&message, true).expect("register");
        let request = read.request(b"sip:1.2.3.4:5", b"udp:h:1");
        assert_eq!((request.aor, request.call_id, request.cseq), (&b"alice@example.org"[..], &b"call"[..], 7));
        assert_eq!((request.expires, request.user_agent), (Some(77), &b"phone"[..]));
        assert_eq!(request.supported, Extensions { path: true, outbound: true, gruu: false });
        assert_eq!(request.path, b"<sip:p1;lr>, <sip:p2;lr>,<sip:p3;lr>");
        let [a, b, c] = request.contacts else { panic!("{:?}", request.contacts) };
        assert_eq!((a.uri.raw, a.q, a.expires, a.has_flow()), (&b"sip:a@h"[..], 500, Some(9), false));
        assert_eq!((b.instance, b.reg_id, b.q, b.has_flow()), (&b"<urn:x>"[..], 2, NO_Q, true));
        assert_eq!(c.uri.raw, b"sip:c@h");
        assert_eq!(Registration::read(&message, false).expect("register").aor().as_bytes(), b"alice@");
    }

    #[test]
    fn contacts_up_to_the_bound_are_read_and_one_more_is_refused() {
        for n in [0, 1, INLINE, INLINE + 1, MAX_REQUEST_CONTACTS] {
            let contacts: Vec<String> = (0..n).map(|i| format!("Contact: <sip:c{i}@h>\r\n")).collect();
            let mut bytes = message(&contacts.concat());
            let read_message = Message::parse(&mut bytes).expect("message");
            let read = Registration::read(&read_message, true).expect("register");
            let request = read.request(b"", b"");
            assert_eq!(request.contacts.len(), n);
            for (i, contact) in request.contacts.iter().enumerate() {
                assert_eq!(contact.uri.raw, format!("sip:c{i}@h").as_bytes());
            }
        }
        let contacts = vec!["<sip:c@h>"; MAX_REQUEST_CONTACTS + 1].join(",");
        let mut bytes = message(&format!("Contact: {contacts}\r\n"));
        let message = Message::parse(&mut bytes).expect("message");
        assert_eq!(Registration::read(&message, true).err(), Some(Rejection::TooManyInRequest));
    }

    #[test]
    fn what_cannot_be_read_is_a_bad_request() {
        for (headers, error) in [
            ("Contact: <sip:a@h>;q=2\r\n", ParseError::BadQ),
            ("Contact: <sip:a@h>;expires=-1\r\n", ParseError::BadExpires),
            ("Expires: x\r\n", ParseError::BadExpires),
        ] {
            let mut bytes = message(headers);
            let message = Message::parse(&mut bytes).expect("message");
            assert_eq!(Registration::read(&message, true).err(), Some(Rejection::BadRequest(error)), "{headers}");
        }
    }
}
