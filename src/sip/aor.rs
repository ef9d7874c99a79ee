//! The key of an address-of-record: what two AORs have in common when they mean the same user (RFC 3261 section 10.3 step
//! 5), in one inline buffer that can be hashed and compared as bytes.
//!
//! The rule: `user@host`. Scheme, password, port, parameters and headers are left out; the user part is unescaped and
//! keeps its case; the host is lower-case. So `sips:%61lice:secret@Example.ORG:5061;transport=tls` and
//! `sip:alice@example.org` are one user, `sip:Alice@example.org` is another.
//! - **Scheme:** RFC 5630 section 3.1: a SIPS AOR names the same user as the SIP one.
//! - **Port:** an AOR names a domain, and a domain has no port; user agents that write one (`sip:alice@10.0.0.1:5060`) mean
//!   the server's. Kamailio keys its location table in the same way. RFC 3261 section 19.1.4 would tell them apart.
//! - **Escapes:** an escape of a printable ASCII character other than `%` becomes that character; every other byte, written
//!   raw or as an escape, becomes `%HH` with upper-case digits. So a key is always printable ASCII, two spellings of a user
//!   never make two keys, and `%00` or invalid UTF-8 never reaches a database.

use super::ParseError;
use super::uri::{Unescaped, Uri};

/// See the head of this file. `Ord` is that of the bytes.
#[derive(Clone, Copy)]
pub struct AorKey {
    len: u8,
    /// Length of the user part; the `@` follows unless it is 0.
    user: u8,
    bytes: [u8; AorKey::MAX],
}

impl AorKey {
    /// The longest key, `@` included. Kamailio's columns take 64 each.
    pub const MAX: usize = 254;

    /// The key of `uri`, which has to be SIP or SIPS: another scheme has no AOR here ([`ParseError::BadUri`]).
    pub fn new(uri: &Uri<'_>) -> Result<AorKey, ParseError> {
        if !uri.is_sip() {
            return Err(ParseError::BadUri);
        }
        let mut key = AorKey { len: 0, user: 0, bytes: [0; AorKey::MAX] };
        if let Some(user) = uri.user {
            for (byte, _) in Unescaped(user) {
                if (b' '..0x7f).contains(&byte) && byte != b'%' {
                    key.push(byte)?;
                } else {
                    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                    key.push(b'%')?;
                    key.push(DIGITS[usize::from(byte >> 4)])?;
                    key.push(DIGITS[usize::from(byte & 15)])?;
                }
            }
            key.user = key.len;
            key.push(b'@')?;
        }
        for byte in uri.host {
            key.push(byte.to_ascii_lowercase())?;
        }
        Ok(key)
    }

    /// The key that a store gave back (or any bytes taken as one), without further checks but for the length.
    pub fn from_bytes(bytes: &[u8]) -> Result<AorKey, ParseError> {
        let mut key = AorKey { len: 0, user: 0, bytes: [0; AorKey::MAX] };
        key.bytes.get_mut(..bytes.len()).ok_or(ParseError::KeyTooLong)?.copy_from_slice(bytes);
        key.len = bytes.len() as u8;
        // A host never holds `@`, a user may.
        key.user = memchr::memrchr(b'@', bytes).unwrap_or(0) as u8;
        Ok(key)
    }

    fn push(&mut self, byte: u8) -> Result<(), ParseError> {
        *self.bytes.get_mut(usize::from(self.len)).ok_or(ParseError::KeyTooLong)? = byte;
        self.len += 1;
        Ok(())
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }

    /// Printable ASCII when made by [`AorKey::new`].
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or("")
    }

    /// The user part; empty for an AOR without one.
    pub fn user(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.user)).unwrap_or(&[])
    }

    pub fn domain(&self) -> &[u8] {
        let from = if self.user == 0 { 0 } else { usize::from(self.user) + 1 };
        self.as_bytes().get(from..).unwrap_or(&[])
    }
}

impl PartialEq for AorKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for AorKey {}

impl PartialOrd for AorKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for AorKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl std::hash::Hash for AorKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl std::borrow::Borrow<[u8]> for AorKey {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl std::fmt::Debug for AorKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AorKey({})", self.as_bytes().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(uri: &str) -> AorKey {
        AorKey::new(&Uri::parse(uri.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn rfc3261_10_3_step_5() {
        let alice = key("sip:alice@example.org");
        assert_eq!(alice.as_bytes(), b"alice@example.org");
        assert_eq!((alice.user(), alice.domain()), (&b"alice"[..], &b"example.org"[..]));
        assert_eq!(key("sips:%61lice:secret@Example.ORG:5061;transport=tls;user=phone?x=y"), alice);
        assert_ne!(key("sip:Alice@example.org"), alice);
        assert_ne!(key("sip:example.org"), alice);
        assert_eq!((key("sip:H").user(), key("sip:H").domain()), (&b""[..], &b"h"[..]));
        assert_eq!(key("sip:a@[2001:DB8::1]:70").as_bytes(), b"a@[2001:db8::1]");
    }

    #[test]
    fn every_spelling_one_key_and_always_printable() {
        assert_eq!(key("sip:a%40b@h").as_bytes(), b"a@b@h");
        assert_eq!(key("sip:a%40b@h").user(), b"a@b");
        assert_eq!(key("sip:%00%fF@h").as_bytes(), b"%00%FF@h");
        assert_eq!(key("sip:\u{e9}@h"), key("sip:%c3%a9@h"));
        // An escaped percent sign must not become the start of another escape.
        assert_ne!(key("sip:%2500@h"), key("sip:%00@h"));
        assert_eq!(key("sip:100%@h"), key("sip:100%25@h"));
        assert_eq!(AorKey::from_bytes(key("sip:a%40b@h").as_bytes()).unwrap().domain(), b"h");
    }

    #[test]
    fn length_and_scheme_are_bounded() {
        let long = |n: usize| format!("sip:{}@h", "u".repeat(n));
        assert_eq!(key(&long(252)).as_bytes().len(), 254);
        let error = |text: &str| AorKey::new(&Uri::parse(text.as_bytes()).unwrap()).err();
        assert_eq!(error(&long(253)), Some(ParseError::KeyTooLong));
        assert_eq!(error(&long(60_000)), Some(ParseError::KeyTooLong));
        assert_eq!(error("tel:+1"), Some(ParseError::BadUri));
        assert!(AorKey::from_bytes(&[b'x'; 255]).is_err());
    }
}
