//! name-addr and addr-spec with header parameters: From, To, Contact, Route, Path (RFC 3261 sections 20.10 and 25.1).
//!
//! Without angle brackets everything after the first `;` belongs to the header, and the URI may hold neither `?` nor `,`
//! (section 20: such a URI "MUST be enclosed"); one that does is refused, as RFC 4475 section 3.1.2.13 advises.

use super::ParseError;
use super::lex::{self, Elements, Param, Params};
use super::message::Headers;
use super::uri::Uri;

/// One address with its header parameters.
#[derive(Clone, Copy, Debug)]
pub struct NameAddr<'a> {
    /// As it stands, quotes included; empty when there is none.
    pub display: &'a [u8],
    /// Without angle brackets, not yet looked into.
    pub uri: &'a [u8],
    /// All of them can be read: [`NameAddr::parse`] looked.
    pub params: Params<'a>,
    tag: Option<&'a [u8]>,
}

impl<'a> NameAddr<'a> {
    /// `value` is one element, without the comma that ends it.
    pub fn parse(value: &'a [u8]) -> Result<NameAddr<'a>, ParseError> {
        let value = lex::trim(value);
        let mut at = 0;
        // A quoted display name may hold anything, so it is stepped over first; what follows must be the bracket.
        if value.first() == Some(&b'"') {
            at = lex::quoted_len(value).ok_or(ParseError::UnbalancedQuote)?;
            while value.get(at).is_some_and(|&byte| lex::is_lws(byte)) {
                at += 1;
            }
            if value.get(at) != Some(&b'<') {
                return Err(ParseError::BadAddress);
            }
        } else {
            while let Some(&byte) = value.get(at) {
                match byte {
                    b'<' | b';' => break,
                    b'"' => return Err(ParseError::UnbalancedQuote),
                    _ => at += 1,
                }
            }
        }
        let (head, tail) = value.split_at(at);
        let (display, uri, rest) = match tail {
            [b'<', inner @ ..] => {
                let len = memchr::memchr(b'>', inner).ok_or(ParseError::BadAddress)?;
                (lex::trim_end(head), lex::trim(&inner[..len]), lex::trim_start(&inner[len + 1..]))
            }
            rest => (&[][..], lex::trim_end(head), rest),
        };
        let bare = !matches!(tail, [b'<', ..]);
        if uri.is_empty() || !matches!(rest, [] | [b';', ..]) {
            return Err(ParseError::BadAddress);
        }
        if bare && uri.iter().any(|&byte| byte == b'?' || byte == b',' || lex::is_lws(byte)) {
            return Err(ParseError::BadAddress);
        }
        let params = Params::new(rest);
        let mut tag = None;
        let mut walk = params;
        while let Some(param) = walk.step()? {
            if param.name.len() == 3 && param.is(b"tag") {
                tag = param.value.filter(|value| !value.is_empty());
            }
        }
        Ok(NameAddr { display, uri, params, tag })
    }

    /// The tag of From or To; `None` when it is absent or empty.
    pub fn tag(&self) -> Option<&'a [u8]> {
        self.tag
    }

    pub fn parsed_uri(&self) -> Result<Uri<'a>, ParseError> {
        Uri::parse(self.uri)
    }

    pub fn param(&self, name: &[u8]) -> Option<Param<'a>> {
        self.params.get(name)
    }
}

/// One value of a Contact header.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::large_enum_variant, reason = "a box would be an allocation per contact; `*` is rare")]
pub enum Contact<'a> {
    /// `*`: all bindings (RFC 3261 section 10.2.2).
    Star,
    Address(ContactAddr<'a>),
}

/// A contact address with the parameters that a registrar uses, read once.
#[derive(Clone, Copy, Debug)]
pub struct ContactAddr<'a> {
    /// The whole value as it was written.
    pub raw: &'a [u8],
    pub display: &'a [u8],
    pub uri: Uri<'a>,
    /// Seconds. A value that is no number below 2^32 made the whole value [`ParseError::BadExpires`].
    pub expires: Option<u32>,
    /// Thousandths, 0 to 1000.
    pub q: Option<u16>,
    /// RFC 5626 `+sip.instance`, without quotes: `<urn:uuid:...>`.
    pub instance: Option<&'a [u8]>,
    /// RFC 5626 `reg-id`; a value of 0 or no number at all is [`ParseError::BadParameter`].
    pub reg_id: Option<u32>,
    /// `received`, as some proxies put it into a Contact.
    pub received: Option<&'a [u8]>,
    /// All parameters, these included.
    pub params: Params<'a>,
}

impl<'a> Contact<'a> {
    /// `value` is one element, without the comma that ends it.
    pub fn parse(value: &'a [u8]) -> Result<Contact<'a>, ParseError> {
        let raw = lex::trim(value);
        if raw == b"*" {
            return Ok(Contact::Star);
        }
        let address = NameAddr::parse(raw)?;
        let mut contact = ContactAddr {
            raw,
            display: address.display,
            uri: address.parsed_uri()?,
            expires: None,
            q: None,
            instance: None,
            reg_id: None,
            received: None,
            params: address.params,
        };
        for param in address.params {
            let text = param.text();
            match (param.name.len(), param.name.first().map(|byte| byte | 0x20)) {
                (1, Some(b'q')) => contact.q = Some(q_value(text).ok_or(ParseError::BadQ)?),
                (7, Some(b'e')) if param.is(b"expires") => {
                    contact.expires = Some(lex::number32(text).ok_or(ParseError::BadExpires)?);
                }
                (13, Some(b'+')) if param.is(b"+sip.instance") => contact.instance = Some(text),
                (6, Some(b'r')) if param.is(b"reg-id") => {
                    let id = lex::number32(text).filter(|&id| id > 0).ok_or(ParseError::BadParameter)?;
                    contact.reg_id = Some(id);
                }
                (8, Some(b'r')) if param.is(b"received") => contact.received = Some(text),
                _ => (),
            }
        }
        Ok(Contact::Address(contact))
    }
}

/// RFC 3261 `qvalue` in thousandths. Also takes `.5` and `1.`, which the field sends.
pub fn q_value(text: &[u8]) -> Option<u16> {
    let (whole, fraction) = match memchr::memchr(b'.', text) {
        Some(dot) => (text.get(..dot)?, text.get(dot + 1..)?),
        None => (text, &[][..]),
    };
    let whole = match whole {
        b"0" => 0,
        b"1" => 1000,
        b"" if !fraction.is_empty() => 0,
        _ => return None,
    };
    if fraction.len() > 3 {
        return None;
    }
    let mut thousandths = 0;
    let mut unit = 100;
    for &byte in fraction {
        if !byte.is_ascii_digit() {
            return None;
        }
        thousandths += u16::from(byte - b'0') * unit;
        unit /= 10;
    }
    Some(whole + thousandths).filter(|&q| q <= 1000)
}

/// Whether `value` is what Path, Route and Service-Route hold: SIP URIs in angle brackets, at least one (RFC 3327 section
/// 4, RFC 3608 section 5).
pub fn is_route(value: &[u8]) -> bool {
    let good = |element: &[u8]| {
        memchr::memchr(b'<', element).is_some()
            && NameAddr::parse(element).and_then(|address| address.parsed_uri()).is_ok_and(|uri| uri.is_sip())
    };
    let mut elements = Elements::new(value).peekable();
    elements.peek().is_some() && elements.all(good)
}

/// Every Contact value of a message: see [`super::Message::contacts`].
#[derive(Clone)]
pub struct Contacts<'m, 'a> {
    lines: Headers<'m, 'a>,
    line: Elements<'a>,
}

impl<'m, 'a> Contacts<'m, 'a> {
    pub(super) fn new(lines: Headers<'m, 'a>) -> Self {
        Contacts { lines, line: Elements::default() }
    }
}

impl<'a> Iterator for Contacts<'_, 'a> {
    type Item = Result<Contact<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(element) = self.line.next() {
                return Some(Contact::parse(element));
            }
            self.line = Elements::new(self.lines.next()?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> ContactAddr<'_> {
        match Contact::parse(text.as_bytes()).unwrap() {
            Contact::Address(address) => address,
            Contact::Star => panic!("star"),
        }
    }

    #[test]
    fn name_addr_and_addr_spec() {
        let full = NameAddr::parse(b"\"A. \\\"G\\\" <Bell>\" <sip:a@b;x=y?h=i> ;tag=1;foo=\"b;a,r\"").unwrap();
        assert_eq!(full.display, b"\"A. \\\"G\\\" <Bell>\"");
        assert_eq!(full.uri, b"sip:a@b;x=y?h=i");
        assert_eq!(full.tag(), Some(&b"1"[..]));
        assert_eq!(full.param(b"FOO").unwrap().text(), b"b;a,r");
        // Without brackets the parameters are the header's (RFC 3261 section 20.10).
        let bare = NameAddr::parse(b"sip:a@b;transport=tcp ; tag = 88").unwrap();
        assert_eq!((bare.display, bare.uri, bare.tag()), (&b""[..], &b"sip:a@b"[..], Some(&b"88"[..])));
        assert_eq!(bare.param(b"transport").unwrap().text(), b"tcp");
        let token = NameAddr::parse(b"Bell, Alexander  <sip:a@b>;tag=").unwrap();
        assert_eq!((token.display, token.uri, token.tag()), (&b"Bell, Alexander"[..], &b"sip:a@b"[..], None));
        assert_eq!(NameAddr::parse(b"caller<sip:a@b>").unwrap().display, b"caller");
        assert_eq!(NameAddr::parse(b"\"W, T\" < sip:a@b >").unwrap().uri, b"sip:a@b");
    }

    #[test]
    fn what_is_no_address() {
        for bad in [
            &b""[..],
            b"\"a <sip:a@b>",
            b"<sip:a@b",
            b"<>",
            b"\"a\" sip:a@b",
            b"<sip:a@b> x",
            b"sip:a@b?Route=x",
            b"a b",
            b"a \"b\" <sip:a@b>",
            b"<sip:a@b>;tag=\"x",
            b"<sip:a@b>,<sip:c@d>",
            b"<sip:a@b>;tag=x,<sip:c@d>",
            b";tag=1",
        ] {
            assert!(NameAddr::parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn routes_are_sip_uris_in_brackets() {
        for good in [&b"<sip:p;lr>"[..], b"\"A, B\" <sips:p@h;lr>;x=y , <sip:q>"] {
            assert!(is_route(good), "{}", String::from_utf8_lossy(good));
        }
        for bad in [&b""[..], b",", b"sip:p;lr", b"<tel:1>", b"<sip:p", b"<sip:p>,sip:q", b"<sip:p> x", b"<>"] {
            assert!(!is_route(bad), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn contact_parameters() {
        let contact = address(
            "\"Me\" <sip:me@192.0.2.1:5062;transport=tcp>;q=0.7;Expires=\"3600\";+sip.instance=\"<urn:uuid:00-1>\";reg-id=2;x",
        );
        assert_eq!((contact.q, contact.expires, contact.reg_id), (Some(700), Some(3600), Some(2)));
        assert_eq!(contact.instance, Some(&b"<urn:uuid:00-1>"[..]));
        assert_eq!(contact.uri.param(b"transport"), Some(&b"tcp"[..]));
        assert!(matches!(Contact::parse(b" * "), Ok(Contact::Star)));
        for (bad, error) in [
            ("<sip:a@b>;expires=-1", ParseError::BadExpires),
            ("<sip:a@b>;expires=4294967296", ParseError::BadExpires),
            ("<sip:a@b>;expires", ParseError::BadExpires),
            ("<sip:a@b>;q=1.1", ParseError::BadQ),
            ("<sip:a@b>;q=-0.1", ParseError::BadQ),
            ("<sip:a@b>;reg-id=0", ParseError::BadParameter),
            ("*;expires=0", ParseError::BadUri),
            ("<sip:a@b:x>", ParseError::BadUri),
        ] {
            assert_eq!(Contact::parse(bad.as_bytes()).err(), Some(error), "{bad}");
        }
        assert_eq!(address("<sip:a@b>;expires=4294967295").expires, Some(u32::MAX));
    }

    #[test]
    fn q_is_thousandths() {
        for (text, q) in
            [("0", 0), ("1", 1000), ("0.", 0), ("1.000", 1000), ("0.001", 1), ("0.5", 500), (".25", 250), ("1.", 1000)]
        {
            assert_eq!(q_value(text.as_bytes()), Some(q), "{text}");
        }
        for text in ["", ".", "2", "1.001", "0.0001", "0,5", "-1", "00.1", "0.a"] {
            assert_eq!(q_value(text.as_bytes()), None, "{text}");
        }
    }
}
