//! SIP and SIPS URIs: the view, and equality by RFC 3261 section 19.1.4.
//!
//! `tel:` and every other scheme is opaque: scheme and rest, compared byte by byte without case.

use super::ParseError;
use super::lex::{self, class};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Sip,
    Sips,
    Tel,
    Other,
}

/// A URI in place. For a scheme other than `sip` and `sips` everything but `raw` is empty.
#[derive(Clone, Copy, Debug)]
pub struct Uri<'a> {
    pub raw: &'a [u8],
    pub scheme: Scheme,
    /// As it stands, escapes included; with the parameters a user part may hold (`1;phone-context=+49`).
    pub user: Option<&'a [u8]>,
    pub password: Option<&'a [u8]>,
    /// An IPv6 address keeps its brackets.
    pub host: &'a [u8],
    pub port: Option<u16>,
    /// `a=b;c`, without the first `;`.
    pub params: &'a [u8],
    /// `a=b&c=d`, without the `?`.
    pub headers: &'a [u8],
}

impl<'a> Uri<'a> {
    pub fn parse(raw: &'a [u8]) -> Result<Uri<'a>, ParseError> {
        let colon = raw.iter().take(64).position(|&byte| byte == b':').ok_or(ParseError::BadUri)?;
        let (name, rest) = (raw.get(..colon).unwrap_or(&[]), raw.get(colon + 1..).unwrap_or(&[]));
        let scheme = scheme(name)?;
        let mut uri = Uri { raw, scheme, user: None, password: None, host: b"", port: None, params: b"", headers: b"" };
        if !matches!(scheme, Scheme::Sip | Scheme::Sips) {
            let sound = !rest.is_empty() && lex::span(rest, class::URI) == rest.len();
            return if sound { Ok(uri) } else { Err(ParseError::BadUri) };
        }
        let mut rest = rest;
        // `@` is reserved everywhere else in the URI, so the first one ends the user part, whatever stands before it.
        let user_len = rest.iter().position(|&byte| byte == b'@' || !lex::is(byte, class::URI));
        if let Some(at) = user_len {
            let (user, tail) = match (rest.get(..at), rest.get(at..)) {
                (Some(user), Some([b'@', tail @ ..])) => (user, tail),
                _ => return Err(ParseError::BadUri),
            };
            rest = tail;
            match user.iter().position(|&byte| byte == b':') {
                Some(colon) => {
                    uri.user = user.get(..colon);
                    uri.password = user.get(colon + 1..);
                }
                None => uri.user = Some(user),
            }
            if uri.user.is_none_or(<[u8]>::is_empty) {
                return Err(ParseError::BadUri);
            }
        }
        let host_len = match rest {
            [b'[', ..] => memchr::memchr(b']', rest).ok_or(ParseError::BadUri)? + 1,
            _ => lex::span(rest, class::HOST),
        };
        let (host, tail) = rest.split_at(host_len);
        rest = tail;
        uri.host = host;
        if host.is_empty() || (host.len() > 1 && host.starts_with(b"[") && !is_ipv6(host)) {
            return Err(ParseError::BadUri);
        }
        if let [b':', tail @ ..] = rest {
            let len = lex::span(tail, class::DIGIT);
            let (digits, tail) = tail.split_at(len);
            uri.port = Some(lex::port(digits).ok_or(ParseError::BadUri)?);
            rest = tail;
        }
        if let [b';', tail @ ..] = rest {
            let len = tail.iter().position(|&byte| byte == b'?' || !lex::is(byte, class::URI)).unwrap_or(tail.len());
            (uri.params, rest) = tail.split_at(len);
        }
        match rest {
            [] => Ok(uri),
            [b'?', headers @ ..] if lex::span(headers, class::URI) == headers.len() => {
                uri.headers = headers;
                Ok(uri)
            }
            _ => Err(ParseError::BadUri),
        }
    }

    pub fn is_sip(&self) -> bool {
        matches!(self.scheme, Scheme::Sip | Scheme::Sips)
    }

    /// The URI's parameters in order. Names and values as they stand, escapes included.
    pub fn params(&self) -> Pairs<'a> {
        Pairs { rest: self.params, separator: b';' }
    }

    /// The URI's headers in order.
    pub fn headers(&self) -> Pairs<'a> {
        Pairs { rest: self.headers, separator: b'&' }
    }

    /// Parameter `name`: `None` when absent, an empty value when it has none.
    pub fn param(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.params().find(|(key, _)| same_text(key, name, false)).map(|(_, value)| value.unwrap_or(&[]))
    }

    /// The port that is meant when none is written.
    pub fn port_or_default(&self) -> u16 {
        self.port.unwrap_or(if self.scheme == Scheme::Sips { 5061 } else { 5060 })
    }

    /// Equality by RFC 3261 section 19.1.4. It is not transitive, as the section itself says: a parameter that only one of
    /// two URIs has is mostly ignored. URIs with more than 32 parameters or headers are equal only byte by byte.
    pub fn matches(&self, other: &Uri<'_>) -> bool {
        if !self.is_sip() || !other.is_sip() {
            return self.scheme == other.scheme && self.raw.eq_ignore_ascii_case(other.raw);
        }
        if self.scheme != other.scheme || self.port != other.port {
            return false;
        }
        if self.raw == other.raw {
            return true;
        }
        same_option(self.user, other.user)
            && same_option(self.password, other.password)
            && same_text(self.host, other.host, false)
            && self.comparable()
            && other.comparable()
            && same_params(self, other)
            && same_params(other, self)
            && same_headers(self, other)
    }

    /// Comparing lists in any order is quadratic, so what is compared that way is bounded. Longer lists are equal only
    /// when the URIs are, byte by byte.
    fn comparable(&self) -> bool {
        self.params().nth(MAX_COMPARED).is_none() && self.headers().nth(MAX_COMPARED).is_none()
    }
}

const MAX_COMPARED: usize = 32;

#[inline]
fn scheme(name: &[u8]) -> Result<Scheme, ParseError> {
    if name == b"sip" || name.eq_ignore_ascii_case(b"sip") {
        Ok(Scheme::Sip)
    } else if name.eq_ignore_ascii_case(b"sips") {
        Ok(Scheme::Sips)
    } else if name.eq_ignore_ascii_case(b"tel") {
        Ok(Scheme::Tel)
    } else if name.first().is_some_and(u8::is_ascii_alphabetic)
        && name.iter().all(|&byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
    {
        Ok(Scheme::Other)
    } else {
        Err(ParseError::BadUri)
    }
}

fn is_ipv6(bracketed: &[u8]) -> bool {
    let inner = bracketed.get(1..bracketed.len() - 1).unwrap_or(&[]);
    !inner.is_empty() && inner.iter().all(|&byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'))
}

/// `name[=value]` pairs with a separator between; empty ones are passed over.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a> {
    rest: &'a [u8],
    separator: u8,
}

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let len = memchr::memchr(self.separator, self.rest).unwrap_or(self.rest.len());
            let (pair, tail) = self.rest.split_at(len);
            self.rest = tail.get(1..).unwrap_or(&[]);
            if pair.is_empty() {
                continue;
            }
            return Some(match memchr::memchr(b'=', pair) {
                Some(at) => (pair.get(..at).unwrap_or(&[]), pair.get(at + 1..)),
                None => (pair, None),
            });
        }
        None
    }
}

fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// The characters of `bytes` with escapes resolved. The second value tells that the character was written as an escape.
/// A `%` without two hexadecimal digits stands for itself.
#[derive(Clone, Copy)]
pub(super) struct Unescaped<'a>(pub &'a [u8]);

impl Iterator for Unescaped<'_> {
    type Item = (u8, bool);

    #[inline]
    fn next(&mut self) -> Option<(u8, bool)> {
        if let [b'%', high, low, rest @ ..] = self.0 {
            if let (Some(high), Some(low)) = (hex(*high), hex(*low)) {
                self.0 = rest;
                return Some((high << 4 | low, true));
            }
        }
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some((byte, false))
    }
}

/// `reserved` of RFC 3261 section 25.1: such a character and its escape do not mean the same.
fn is_reserved(byte: u8) -> bool {
    matches!(byte, b';' | b'/' | b'?' | b':' | b'@' | b'&' | b'=' | b'+' | b'$' | b',')
}

fn same_text(a: &[u8], b: &[u8], case: bool) -> bool {
    if a == b || (!case && a.eq_ignore_ascii_case(b)) {
        return true;
    }
    if !a.contains(&b'%') && !b.contains(&b'%') {
        return false;
    }
    let fold = move |(byte, escaped): (u8, bool)| {
        let byte = if case { byte } else { byte.to_ascii_lowercase() };
        (byte, escaped && is_reserved(byte))
    };
    Unescaped(a).map(fold).eq(Unescaped(b).map(fold))
}

fn same_option(a: Option<&[u8]>, b: Option<&[u8]>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => same_text(a, b, true),
        (None, None) => true,
        _ => false,
    }
}

/// Every parameter of `a` that also stands in `b` has the same value there, and those five that count even when only one
/// side has them (user, ttl, method, maddr, and, by the RFC's own example, transport) stand in both.
fn same_params(a: &Uri<'_>, b: &Uri<'_>) -> bool {
    a.params().all(|(name, value)| {
        let value = value.unwrap_or(&[]);
        match b.param(name) {
            // Method names are case-sensitive; all other values compare without case unless stated otherwise.
            Some(other) => same_text(value, other, same_text(name, b"method", false)),
            None => {
                let counts = [&b"transport"[..], b"user", b"ttl", b"method", b"maddr"];
                !counts.iter().any(|known| same_text(name, known, false))
            }
        }
    })
}

/// "URI header components are never ignored": both have the same ones, in any order.
fn same_headers(a: &Uri<'_>, b: &Uri<'_>) -> bool {
    let covered = |from: &Uri<'_>, by: &Uri<'_>| {
        from.headers().all(|(name, value)| {
            let times = |uri: &Uri<'_>| {
                let equal = |&(key, other): &(&[u8], Option<&[u8]>)| {
                    same_text(key, name, false) && same_text(other.unwrap_or(&[]), value.unwrap_or(&[]), true)
                };
                uri.headers().filter(equal).count()
            };
            times(from) == times(by)
        })
    };
    a.headers == b.headers || (covered(a, b) && covered(b, a))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri<'_> {
        Uri::parse(text.as_bytes()).unwrap()
    }

    fn same(a: &str, b: &str) {
        assert!(uri(a).matches(&uri(b)) && uri(b).matches(&uri(a)), "{a} = {b}");
    }

    fn differ(a: &str, b: &str) {
        assert!(!uri(a).matches(&uri(b)) && !uri(b).matches(&uri(a)), "{a} != {b}");
    }

    #[test]
    fn view() {
        let full = uri("sips:alice;day=tue:se%25cret@[2001:db8::1]:5071;transport=tcp;lr?subject=a%20b&x");
        assert_eq!(full.scheme, Scheme::Sips);
        assert_eq!(full.user, Some(&b"alice;day=tue"[..]));
        assert_eq!(full.password, Some(&b"se%25cret"[..]));
        assert_eq!((full.host, full.port), (&b"[2001:db8::1]"[..], Some(5071)));
        assert_eq!(full.param(b"TRANSPORT"), Some(&b"tcp"[..]));
        assert_eq!(full.param(b"lr"), Some(&b""[..]));
        assert_eq!(full.param(b"maddr"), None);
        let headers: Vec<_> = full.headers().collect();
        assert_eq!(headers, [(&b"subject"[..], Some(&b"a%20b"[..])), (b"x", None)]);
        let bare = uri("SIP:example.org");
        assert_eq!((bare.user, bare.host, bare.port, bare.port_or_default()), (None, &b"example.org"[..], None, 5060));
        assert_eq!(uri("sip:h?a=b").headers, b"a=b");
        assert_eq!(uri("sip:?q;x=y/z@h").user, Some(&b"?q;x=y/z"[..]));
        assert_eq!(uri("tel:+1-201-555-0123;ext=1").scheme, Scheme::Tel);
        assert_eq!(uri("urn:service:sos").scheme, Scheme::Other);
    }

    #[test]
    fn what_is_no_uri() {
        for bad in [
            &b""[..],
            b"sip",
            b"sip:",
            b":x",
            b"sip:@h",
            b"sip:a@",
            b"sip:a@h:",
            b"sip:a@h:x",
            b"sip:a@h:65536",
            b"sip:a@h@i",
            b"sip:a b@h",
            b"sip:a@h>",
            b"sip:a@[::1",
            b"sip:a@[]",
            b"sip:a@[g]",
            b"sip:a@h\0",
            b"s ip:a@h",
            b"sip:\"a\"@h",
            b"5ip:h",
            b"sip:a@h,b",
            b"sip::p@h",
        ] {
            assert!(Uri::parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn rfc3261_19_1_4_equal() {
        same("sip:%61lice@atlanta.com;transport=TCP", "sip:alice@AtLanTa.CoM;Transport=tcp");
        same("sip:carol@chicago.com", "sip:carol@chicago.com;newparam=5");
        same("sip:carol@chicago.com", "sip:carol@chicago.com;security=on");
        same("sip:carol@chicago.com;newparam=5", "sip:carol@chicago.com;security=on");
        same(
            "sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",
            "sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com",
        );
        same(
            "sip:alice@atlanta.com?subject=project%20x&priority=urgent",
            "sip:alice@atlanta.com?priority=urgent&subject=project%20x",
        );
    }

    #[test]
    fn rfc3261_19_1_4_not_equal() {
        differ("SIP:ALICE@AtLanTa.CoM;Transport=udp", "sip:alice@AtLanTa.CoM;Transport=UDP");
        differ("sip:bob@biloxi.com", "sip:bob@biloxi.com:5060");
        differ("sip:bob@biloxi.com", "sip:bob@biloxi.com;transport=udp");
        differ("sip:bob@biloxi.com", "sip:bob@biloxi.com:6000;transport=tcp");
        differ("sip:carol@chicago.com", "sip:carol@chicago.com?Subject=next%20meeting");
        differ("sip:bob@phone21.boxesbybob.com", "sip:bob@192.0.2.4");
        // Not transitive: both equal sip:carol@chicago.com, not each other.
        differ("sip:carol@chicago.com;security=on", "sip:carol@chicago.com;security=off");
    }

    #[test]
    fn rfc3261_19_1_4_each_rule() {
        differ("sip:a@h", "sips:a@h");
        differ("sip:a@h", "sip:h");
        differ("sip:a@h", "sip:a:p@h");
        differ("sip:a:p@h", "sip:a:P@h");
        same("sip:a:%70@h", "sip:a:p@h");
        same("SIP:a@H", "sip:a@h");
        // An escaped reserved character is not the character; hexadecimal digits have no case.
        differ("sip:a%3Bb@h", "sip:a;b@h");
        same("sip:a%3Bb@h", "sip:a%3bb@h");
        same("sip:a%2Db@h", "sip:a-b@h");
        differ("sip:null-%00-null@example.com", "sip:null-%00%00-null@example.com");
        for param in ["user=phone", "ttl=15", "method=INVITE", "maddr=239.255.255.1", "transport=udp", "transport"] {
            differ("sip:a@h", &format!("sip:a@h;{param}"));
            same(&format!("sip:a@h;{param};x"), &format!("sip:a@h;y;{param}"));
        }
        differ("sip:a@h;method=INVITE", "sip:a@h;method=invite");
        same("sip:a@h;user=phone", "sip:a@h;USER=Phone");
        differ("sip:a@h;x=1", "sip:a@h;x=2");
        same("sip:a@h;%78=1", "sip:a@h;x=1");
        differ("sip:a@h?x=1", "sip:a@h?x=1&y=2");
        differ("sip:a@h?x=1&x=1", "sip:a@h?x=1");
        differ("sip:a@h?x=1&x=2", "sip:a@h?x=1&x=1");
        same("sip:a@h?X=1&y=2", "sip:a@h?Y=2&x=1");
        same("tel:+1-201", "TEL:+1-201");
        differ("tel:+1-201", "tel:+1-202");
        differ("tel:+1-201", "sip:+1-201@h;user=phone");
    }

    #[test]
    fn long_lists_compare_in_bounded_time() {
        let many = "sip:a@h".to_string() + &";a=1".repeat(10_000);
        same(&many, &many);
        differ(&many, &format!("{many};b"));
    }
}
