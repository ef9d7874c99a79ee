//! The few lexical pieces that every SIP header shares (RFC 3261 section 25.1): tokens, linear white space, quoted
//! strings, `;name=value` parameters, comma-separated lists and decimal numbers.
//!
//! Promise: nothing here allocates or panics, whatever the bytes are. Folded lines were already turned into spaces by
//! [`super::Message::parse`], but CR and LF still count as white space here, so that a value that was never part of a
//! message is read alike.

use super::ParseError;

/// One bit per kind of character: what a byte may be part of.
pub mod class {
    /// `token` (RFC 3261 section 25.1).
    pub const TOKEN: u8 = 1;
    /// What may stand unquoted after `=` in a parameter. Wider than the grammar's `token / host`, for the field sends `:`,
    /// `/` and `@` there; never a separator, white space or a control character.
    pub const VALUE: u8 = 2;
    /// Linear white space.
    pub const LWS: u8 = 4;
    /// Host names and IPv4 addresses, with the underscore that the field puts into names.
    pub const HOST: u8 = 8;
    /// What may stand in a URI at all. Bytes above 127 are no URI by the grammar, but users have names.
    pub const URI: u8 = 16;
    /// Printable without space: Call-ID and the like.
    pub const WORD: u8 = 32;
    /// `0` to `9`.
    pub const DIGIT: u8 = 64;
}

const CLASS: [u8; 256] = {
    let mut table = [0u8; 256];
    let mut i = 0;
    while i < 256 {
        let byte = i as u8;
        let alnum = byte.is_ascii_alphanumeric();
        let printable = byte > b' ' && byte != 0x7f;
        let mut bits = 0;
        if alnum || matches!(byte, b'-' | b'.' | b'!' | b'%' | b'*' | b'_' | b'+' | b'`' | b'\'' | b'~') {
            bits |= class::TOKEN;
        }
        if printable && !matches!(byte, b';' | b',' | b'"') {
            bits |= class::VALUE;
        }
        if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
            bits |= class::LWS;
        }
        if alnum || matches!(byte, b'-' | b'.' | b'_') {
            bits |= class::HOST;
        }
        if printable && !matches!(byte, b'<' | b'>' | b'"') {
            bits |= class::URI;
        }
        if printable {
            bits |= class::WORD;
        }
        if byte.is_ascii_digit() {
            bits |= class::DIGIT;
        }
        table[i] = bits;
        i += 1;
    }
    table
};

/// Whether `byte` is of one of `kinds`.
#[inline(always)]
pub fn is(byte: u8, kinds: u8) -> bool {
    CLASS[byte as usize] & kinds != 0
}

/// How many bytes from the start on are of `kinds`.
#[inline(always)]
pub fn span(bytes: &[u8], kinds: u8) -> usize {
    bytes.iter().position(|&byte| !is(byte, kinds)).unwrap_or(bytes.len())
}

/// Linear white space.
#[inline(always)]
pub fn is_lws(byte: u8) -> bool {
    is(byte, class::LWS)
}

/// A whole, non-empty `token`.
pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && span(bytes, class::TOKEN) == bytes.len()
}

#[inline]
pub fn trim_start(mut bytes: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = bytes {
        if !is_lws(*first) {
            break;
        }
        bytes = rest;
    }
    bytes
}

#[inline]
pub fn trim_end(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., last] = bytes {
        if !is_lws(*last) {
            break;
        }
        bytes = rest;
    }
    bytes
}

/// Without the white space around it.
pub fn trim(bytes: &[u8]) -> &[u8] {
    trim_end(trim_start(bytes))
}

/// A whole number of decimal digits and nothing else. `None` for no digits, another character, or more than `u64`.
pub fn number(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() {
        return None;
    }
    let mut value: u64 = 0;
    for &byte in bytes {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

/// Like [`number`], bounded to 32 bits.
pub fn number32(bytes: &[u8]) -> Option<u32> {
    number(bytes).and_then(|value| u32::try_from(value).ok())
}

/// A port: 0 to 65535, as the grammar allows.
pub fn port(bytes: &[u8]) -> Option<u16> {
    number(bytes).and_then(|value| u16::try_from(value).ok())
}

/// The length of the quoted string at the start of `bytes` (which begins with `"`), both quotes included. `None` when
/// it does not end.
pub fn quoted_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    None
}

/// The inside of a quoted string; anything else as it is. Quoted pairs stay as they are: see [`unquote_into`].
pub fn unquote(bytes: &[u8]) -> &[u8] {
    match bytes {
        [b'"', inner @ .., b'"'] => inner,
        _ => bytes,
    }
}

/// Writes the inside of a quoted string with its quoted pairs resolved. `None` when `out` is too small.
pub fn unquote_into<'o>(bytes: &[u8], out: &'o mut [u8]) -> Option<&'o [u8]> {
    let inner = unquote(bytes);
    let mut len = 0;
    let mut at = 0;
    while let Some(&byte) = inner.get(at) {
        let byte = if byte == b'\\' {
            at += 1;
            *inner.get(at).unwrap_or(&b'\\')
        } else {
            byte
        };
        *out.get_mut(len)? = byte;
        len += 1;
        at += 1;
    }
    out.get(..len)
}

/// One `name` or `name=value` of a parameter list. The value of a quoted string keeps its quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param<'a> {
    pub name: &'a [u8],
    pub value: Option<&'a [u8]>,
}

impl<'a> Param<'a> {
    pub fn is(&self, name: &[u8]) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// The value without quotes; empty when there is none.
    pub fn text(&self) -> &'a [u8] {
        self.value.map_or(&[], unquote)
    }
}

/// The parameters of a header value, in order: `;a;b=c ; d = "e;f"`. White space around the separators is allowed, and
/// an empty parameter (`;;`) is passed over, as osip2 does. Ends early at the first one that is malformed;
/// [`Params::check`] tells whether that is the case.
#[derive(Clone, Copy, Debug, Default)]
pub struct Params<'a> {
    rest: &'a [u8],
}

impl<'a> Params<'a> {
    /// `bytes` is empty or begins, after white space, with `;`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Params { rest: bytes }
    }

    /// The bytes not yet read.
    pub fn raw(&self) -> &'a [u8] {
        self.rest
    }

    pub fn get(&self, name: &[u8]) -> Option<Param<'a>> {
        let mut walk = *self;
        walk.find(|param| param.is(name))
    }

    /// The text of parameter `name`, without quotes, if it is there and has a value.
    pub fn value(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.get(name).and_then(|param| param.value).map(unquote)
    }

    /// Whether every parameter can be read.
    pub fn check(&self) -> Result<(), ParseError> {
        let mut params = *self;
        loop {
            match params.step() {
                Ok(Some(_)) => (),
                Ok(None) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next parameter, or what is wrong with it.
    pub fn step(&mut self) -> Result<Option<Param<'a>>, ParseError> {
        let mut rest = trim_start(self.rest);
        while let [b';', tail @ ..] = rest {
            rest = trim_start(tail);
        }
        if rest.is_empty() {
            self.rest = rest;
            return Ok(None);
        }
        let name_len = span(rest, class::TOKEN);
        if name_len == 0 {
            return Err(ParseError::BadParameter);
        }
        let (name, tail) = rest.split_at(name_len);
        let mut after = tail;
        if !matches!(after, [] | [b';' | b'=', ..]) {
            after = trim_start(after);
        }
        let value = match after {
            [b'=', tail @ ..] => {
                let tail = trim_start(tail);
                let len = match tail {
                    [b'"', ..] => quoted_len(tail).ok_or(ParseError::UnbalancedQuote)?,
                    _ => span(tail, class::VALUE),
                };
                let (value, tail) = tail.split_at(len);
                after = trim_start(tail);
                Some(value)
            }
            _ => None,
        };
        if !matches!(after, [] | [b';', ..]) {
            return Err(ParseError::BadParameter);
        }
        self.rest = after;
        Ok(Some(Param { name, value }))
    }
}

impl<'a> Iterator for Params<'a> {
    type Item = Param<'a>;

    fn next(&mut self) -> Option<Param<'a>> {
        match self.step() {
            Ok(param) => param,
            Err(_) => {
                self.rest = &[];
                None
            }
        }
    }
}

/// The length of the first element of a comma-separated list: up to a comma that stands neither in a quoted string nor
/// in angle brackets, or to the end. An unbalanced quote or bracket takes the rest.
pub fn element_len(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(next) = memchr::memchr3(b',', b'"', b'<', bytes.get(at..).unwrap_or(&[])) {
        at += next;
        let rest = bytes.get(at..).unwrap_or(&[]);
        let skip = match rest.first() {
            Some(b',') => return at,
            Some(b'"') => quoted_len(rest),
            _ => memchr::memchr(b'>', rest).map(|len| len + 1),
        };
        match skip {
            Some(len) => at += len,
            None => break,
        }
    }
    bytes.len()
}

/// The elements of one header value, split at commas and trimmed; empty ones are passed over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Elements<'a> {
    rest: &'a [u8],
}

impl<'a> Elements<'a> {
    pub fn new(value: &'a [u8]) -> Self {
        Elements { rest: value }
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.rest.is_empty() {
            let len = element_len(self.rest);
            let (element, tail) = self.rest.split_at(len);
            self.rest = tail.get(1..).unwrap_or(&[]);
            let element = trim(element);
            if !element.is_empty() {
                return Some(element);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_allow_white_space_quotes_and_empty_ones() {
        let params = Params::new(b" ; a;b = c ;; D=\"x;\\\"y\" ;e=[::1]:5");
        params.check().unwrap();
        let all: Vec<_> = params.collect();
        assert_eq!(all.len(), 4);
        assert_eq!(all[0], Param { name: b"a", value: None });
        assert_eq!(all[1], Param { name: b"b", value: Some(b"c") });
        assert_eq!(all[2], Param { name: b"D", value: Some(b"\"x;\\\"y\"") });
        assert_eq!(all[3].value, Some(&b"[::1]:5"[..]));
        assert_eq!(params.value(b"d"), Some(&b"x;\\\"y"[..]));
        let mut room = [0; 8];
        assert_eq!(unquote_into(all[2].value.unwrap(), &mut room), Some(&b"x;\"y"[..]));
        assert_eq!(unquote_into(b"\"123456789\"", &mut room), None);
    }

    #[test]
    fn params_that_cannot_be_read_are_told() {
        for bad in [&b";a=\"x"[..], b";=x", b";a b", b";a=\"x\"y", b";a=x y", b";(a", b";a=x\"y\""] {
            assert!(Params::new(bad).check().is_err(), "{}", String::from_utf8_lossy(bad));
        }
        assert!(Params::new(b"").check().is_ok());
        assert!(Params::new(b" ; ").check().is_ok());
    }

    #[test]
    fn elements_split_outside_quotes_and_brackets() {
        let list: Vec<_> = Elements::new(b"\"a, \\\"b\" <sip:x,y@z>;q=1 , ,c ,<sip:d>").collect();
        assert_eq!(list, [&b"\"a, \\\"b\" <sip:x,y@z>;q=1"[..], b"c", b"<sip:d>"]);
        assert_eq!(Elements::new(b"\"open, b").count(), 1);
        assert_eq!(Elements::new(b"<open, b").count(), 1);
        assert_eq!(Elements::new(b" , ,").count(), 0);
    }

    #[test]
    fn numbers() {
        assert_eq!(number(b"0018446744073709551615"), Some(u64::MAX));
        assert_eq!(number(b"18446744073709551616"), None);
        assert_eq!(number(b""), None);
        assert_eq!(number(b"-1"), None);
        assert_eq!(number32(b"4294967296"), None);
        assert_eq!(port(b"65536"), None);
        assert_eq!(port(b"65535"), Some(65535));
    }
}
