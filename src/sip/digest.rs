//! Digest authentication (RFC 8760, RFC 7616, RFC 2617; RFC 3261 section 22): credentials, challenges, responses.
//!
//! Algorithms MD5, SHA-256 and SHA-512-256; `qop=auth`, and the form without qop of RFC 2069 that RFC 3261 section 22.4
//! keeps for old user agents. Not offered and refused when sent: `auth-int`, `-sess`, `userhash`.
//! Nothing allocates; comparing takes the same time wherever the texts differ. Nonces are [`super::nonce`]'s.

use md5::Md5;
use sha2::{Sha256, Sha512_256};

use super::lex::{self, Elements, class};
use super::write::Cursor;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Md5,
    Sha256,
    Sha512_256,
}

impl Algorithm {
    /// The strongest first, the order in which RFC 8760 section 2.4 wants them offered.
    pub const ALL: [Algorithm; 3] = [Algorithm::Sha512_256, Algorithm::Sha256, Algorithm::Md5];

    pub fn as_bytes(self) -> &'static [u8] {
        match self {
            Algorithm::Md5 => b"MD5",
            Algorithm::Sha256 => b"SHA-256",
            Algorithm::Sha512_256 => b"SHA-512-256",
        }
    }

    pub fn from_bytes(name: &[u8]) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| name.eq_ignore_ascii_case(algorithm.as_bytes()))
    }

    /// How many hexadecimal digits a hash has.
    pub fn hex_len(self) -> usize {
        match self {
            Algorithm::Md5 => 32,
            Algorithm::Sha256 | Algorithm::Sha512_256 => 64,
        }
    }

    /// The hash of `parts` with a colon between each two.
    fn hash(self, parts: &[&[u8]]) -> Hash {
        let mut hash = Hash { algorithm: self, hex: [0; 64] };
        match self {
            Algorithm::Md5 => hash.fill(&joined::<Md5>(parts)),
            Algorithm::Sha256 => hash.fill(&joined::<Sha256>(parts)),
            Algorithm::Sha512_256 => hash.fill(&joined::<Sha512_256>(parts)),
        }
        hash
    }
}

fn joined<D: sha2::Digest>(parts: &[&[u8]]) -> sha2::digest::Output<D> {
    let mut state = D::new();
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            state.update(b":");
        }
        state.update(part);
    }
    state.finalize()
}

/// A hash as text: lower-case hexadecimal digits. `HA1` is one (what Kamailio's `subscriber` keeps in `ha1`), a response
/// is another. Equality is constant-time.
#[derive(Clone, Copy)]
pub struct Hash {
    algorithm: Algorithm,
    hex: [u8; 64],
}

impl Hash {
    /// `H(username:realm:password)`: what may be stored in place of the password.
    pub fn ha1(algorithm: Algorithm, username: &[u8], realm: &[u8], password: &[u8]) -> Hash {
        algorithm.hash(&[username, realm, password])
    }

    /// A stored hash. `None` when it is not as many hexadecimal digits as the algorithm gives.
    pub fn from_hex(algorithm: Algorithm, text: &[u8]) -> Option<Hash> {
        let mut hash = Hash { algorithm, hex: [0; 64] };
        if text.len() != algorithm.hex_len() || !text.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        // Upper-case digits are the same number, but the response hashes the text.
        for (to, from) in hash.hex.iter_mut().zip(text) {
            *to = from.to_ascii_lowercase();
        }
        Some(hash)
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.hex[..self.algorithm.hex_len()]
    }

    fn fill(&mut self, bytes: &[u8]) {
        Cursor::new(&mut self.hex).put_hex(bytes);
    }
}

impl PartialEq for Hash {
    fn eq(&self, other: &Self) -> bool {
        self.algorithm == other.algorithm && same_secret(&self.hex, &other.hex)
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // An HA1 is as good as the password: it never reaches a log.
        write!(f, "Hash({:?})", self.algorithm)
    }
}

/// Equality whose time depends on the lengths alone.
pub fn same_secret(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let difference = a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y));
    // Kept from the optimiser, which could otherwise leave the loop at the first difference.
    std::hint::black_box(difference) == 0
}

/// Why credentials can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialsError {
    /// Not the Digest scheme: as if there were none.
    OtherScheme,
    /// 400.
    Malformed,
    /// An algorithm or qop that was not offered: challenge again.
    Unsupported,
}

/// The value of one Authorization or Proxy-Authorization header. Texts are without quotes.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    pub username: &'a [u8],
    pub realm: &'a [u8],
    pub nonce: &'a [u8],
    pub uri: &'a [u8],
    /// As sent; compared by [`Credentials::verify`].
    pub response: &'a [u8],
    pub algorithm: Algorithm,
    pub opaque: Option<&'a [u8]>,
    /// Count and cnonce of `qop=auth`; `None` is the legacy form.
    pub auth: Option<Auth<'a>>,
}

/// What `qop=auth` adds.
#[derive(Clone, Copy)]
pub struct Auth<'a> {
    pub cnonce: &'a [u8],
    /// The text, which is hashed.
    nc_text: &'a [u8],
    pub nc: u32,
}

impl<'a> Credentials<'a> {
    pub fn parse(value: &'a [u8]) -> Result<Credentials<'a>, CredentialsError> {
        use CredentialsError::{Malformed, OtherScheme, Unsupported};
        let value = lex::trim(value);
        let scheme_len = lex::span(value, class::TOKEN);
        let (scheme, rest) = value.split_at(scheme_len);
        if !scheme.eq_ignore_ascii_case(b"Digest") {
            return Err(OtherScheme);
        }
        let mut fields: [Option<&'a [u8]>; 10] = [None; 10];
        for element in Elements::new(rest) {
            let name_len = lex::span(element, class::TOKEN);
            let (name, tail) = element.split_at(name_len);
            let text = match lex::trim_start(tail) {
                [b'=', text @ ..] => lex::trim_start(text),
                _ => return Err(Malformed),
            };
            let text = match text {
                [b'"', ..] if lex::quoted_len(text) == Some(text.len()) => lex::unquote(text),
                [b'"', ..] => return Err(Malformed),
                _ => text,
            };
            match field(name) {
                // Twice the same field would let two readers see two users.
                Some(at) if fields[at].is_some() => return Err(Malformed),
                Some(at) => fields[at] = Some(text),
                None if name.eq_ignore_ascii_case(b"userhash") && text.eq_ignore_ascii_case(b"true") => {
                    return Err(Unsupported);
                }
                None => (),
            }
        }
        let [username, realm, nonce, uri, response, algorithm, opaque, qop, cnonce, nc] = fields;
        let auth = match qop {
            None => None,
            Some(qop) if qop.eq_ignore_ascii_case(b"auth") => {
                let nc_text = nc.filter(|text| text.len() == 8).ok_or(Malformed)?;
                let nc = nc_text
                    .iter()
                    .try_fold(0u32, |value, &byte| Some(value << 4 | char::from(byte).to_digit(16).ok_or(()).ok()?));
                Some(Auth { cnonce: cnonce.ok_or(Malformed)?, nc_text, nc: nc.ok_or(Malformed)? })
            }
            Some(_) => return Err(Unsupported),
        };
        Ok(Credentials {
            username: username.filter(|name| !name.is_empty()).ok_or(Malformed)?,
            realm: realm.ok_or(Malformed)?,
            nonce: nonce.ok_or(Malformed)?,
            uri: uri.ok_or(Malformed)?,
            response: response.ok_or(Malformed)?,
            algorithm: match algorithm {
                None => Algorithm::Md5,
                Some(name) => Algorithm::from_bytes(name).ok_or(Unsupported)?,
            },
            opaque,
            auth,
        })
    }

    /// The response that somebody who has `ha1` sends for a request with `method`.
    pub fn expected(&self, ha1: &Hash, method: &[u8]) -> Hash {
        let algorithm = ha1.algorithm;
        let ha2 = algorithm.hash(&[method, self.uri]);
        match self.auth {
            Some(auth) => {
                algorithm.hash(&[ha1.as_bytes(), self.nonce, auth.nc_text, auth.cnonce, b"auth", ha2.as_bytes()])
            }
            None => algorithm.hash(&[ha1.as_bytes(), self.nonce, ha2.as_bytes()]),
        }
    }

    /// Whether the response is that of somebody who has `ha1`. `false` when `ha1` is of another algorithm than the
    /// credentials. The nonce, the realm and the URI are the caller's to check.
    pub fn verify(&self, ha1: &Hash, method: &[u8]) -> bool {
        self.algorithm == ha1.algorithm
            && Hash::from_hex(ha1.algorithm, self.response).is_some_and(|sent| sent == self.expected(ha1, method))
    }
}

/// A field's place among those of [`Credentials::parse`], by one comparison.
fn field(name: &[u8]) -> Option<usize> {
    let (place, known): (usize, &[u8]) = match (name.len(), name.first().map(|byte| byte | 0x20)) {
        (8, Some(b'u')) => (0, b"username"),
        (5, Some(b'r')) => (1, b"realm"),
        (5, Some(b'n')) => (2, b"nonce"),
        (3, Some(b'u')) => (3, b"uri"),
        (8, Some(b'r')) => (4, b"response"),
        (9, Some(b'a')) => (5, b"algorithm"),
        (6, Some(b'o')) => (6, b"opaque"),
        (3, Some(b'q')) => (7, b"qop"),
        (6, Some(b'c')) => (8, b"cnonce"),
        (2, Some(b'n')) => (9, b"nc"),
        _ => return None,
    };
    name.eq_ignore_ascii_case(known).then_some(place)
}

impl std::fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({} {:?})", self.username.escape_ascii(), self.algorithm)
    }
}

/// Writes the value of one WWW-Authenticate or Proxy-Authenticate header. Several algorithms are several headers, the
/// strongest first (RFC 8760 section 2.4). `realm` is the server's own and needs no escapes.
pub fn put_challenge(out: &mut Cursor<'_>, realm: &[u8], nonce: &[u8], algorithm: Algorithm, stale: bool) {
    out.put(b"Digest realm=\"").put_line_text(realm).put(b"\", nonce=\"").put(nonce).put(b"\", ");
    if stale {
        out.put(b"stale=true, ");
    }
    out.put(b"algorithm=").put(algorithm.as_bytes()).put(b", qop=\"auth\"");
}

#[cfg(test)]
mod tests {
    use super::*;

    const RFC2617: &str = "Digest username=\"Mufasa\",\n realm=\"testrealm@host.com\", \
        nonce=\"dcd98b7102dd2f0e8b11d0f600bfb0c093\", uri=\"/dir/index.html\", qop=auth, nc=00000001, \
        cnonce=\"0a4f113b\", response=\"6629fae49393a05397450978507c4ef1\", opaque=\"5ccc069c403ebaf9f0171e9517f40e41\"";

    #[test]
    fn rfc2617_3_5() {
        let credentials = Credentials::parse(RFC2617.as_bytes()).unwrap();
        let ha1 = Hash::ha1(Algorithm::Md5, b"Mufasa", b"testrealm@host.com", b"Circle Of Life");
        assert_eq!(ha1.as_bytes(), b"939e7578ed9e3c518a452acee763bce9");
        assert!(credentials.verify(&ha1, b"GET"));
        assert!(!credentials.verify(&ha1, b"POST"));
        assert!(!credentials.verify(&Hash::ha1(Algorithm::Md5, b"Mufasa", b"testrealm@host.com", b"x"), b"GET"));
        assert_eq!(credentials.auth.unwrap().nc, 1);
        let stored = Hash::from_hex(Algorithm::Md5, b"939E7578ED9E3C518A452ACEE763BCE9").unwrap();
        assert!(credentials.verify(&stored, b"GET"));
    }

    fn rfc7616(algorithm: &str, response: &str) -> String {
        format!(
            "Digest username=\"Mufasa\", realm=\"http-auth@example.org\", uri=\"/dir/index.html\", algorithm={algorithm}, \
             nonce=\"7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v\", nc=00000001, \
             cnonce=\"f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ\", qop=auth, response=\"{response}\", \
             opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\""
        )
    }

    #[test]
    fn rfc7616_3_9_1() {
        for (name, algorithm, response) in [
            ("MD5", Algorithm::Md5, "8ca523f5e9506fed4657c9700eebdbec"),
            ("SHA-256", Algorithm::Sha256, "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
        ] {
            let text = rfc7616(name, response);
            let credentials = Credentials::parse(text.as_bytes()).unwrap();
            assert_eq!(credentials.algorithm, algorithm);
            let ha1 = Hash::ha1(algorithm, b"Mufasa", b"http-auth@example.org", b"Circle of Life");
            assert!(credentials.verify(&ha1, b"GET"), "{name}");
            // Material of another algorithm never matches (RFC 8760 section 2.2: they are not mixed).
            let other = if algorithm == Algorithm::Md5 { Algorithm::Sha256 } else { Algorithm::Md5 };
            let ha1 = Hash::ha1(other, b"Mufasa", b"http-auth@example.org", b"Circle of Life");
            assert!(!credentials.verify(&ha1, b"GET"), "{name}");
        }
    }

    /// With the response of errata 4897, for the RFC's own is of a hash that SHA-512/256 did not become; and without the
    /// userhash, which the response does not depend on.
    #[test]
    fn rfc7616_3_9_2() {
        let text = "Digest username=\"J\u{e4}s\u{f8}n Doe\", realm=\"api@example.org\", uri=\"/doe.json\", algorithm=SHA-512-256, \
            nonce=\"5TsQWLVdgBdmrQ0XsxbDODV+57QdFR34I9HAbC/RVvkK\", nc=00000001, qop=\"auth\", \
            cnonce=\"NTg6RKcb9boFIAS3KrFK9BGeh+iDa/sm6jUMp2wds69v\", \
            response=\"3798d4131c277846293534c3edc11bd8a5e4cdcbff78b05db9d95eeb1cec68a5\", \
            opaque=\"HRPCssKJSGjCrkzDg8OhwpzCiGPChXYjwrI2QmXDnsOS\"";
        let credentials = Credentials::parse(text.as_bytes()).unwrap();
        let username = "J\u{e4}s\u{f8}n Doe".as_bytes();
        assert_eq!(credentials.username, username);
        let ha1 = Hash::ha1(Algorithm::Sha512_256, username, b"api@example.org", b"Secret, or not?");
        assert!(credentials.verify(&ha1, b"GET"));
        assert!(!credentials.verify(&ha1, b"PUT"));
    }

    /// RFC 2069 without qop; the response is that of the corrected example (RFC 2069 errata 749).
    #[test]
    fn legacy_without_qop() {
        let text = "digest username=\"Mufasa\", realm=\"testrealm@host.com\", nonce=\"dcd98b7102dd2f0e8b11d0f600bfb0c093\", \
             uri=\"/dir/index.html\", response=\"1949323746fe6a43ef61f9606e7febea\"";
        let credentials = Credentials::parse(text.as_bytes()).unwrap();
        assert!(credentials.auth.is_none());
        assert!(
            credentials.verify(&Hash::ha1(Algorithm::Md5, b"Mufasa", b"testrealm@host.com", b"CircleOfLife"), b"GET")
        );
    }

    #[test]
    fn credentials_that_cannot_be_used() {
        use CredentialsError::*;
        let error = |text: &str| Credentials::parse(text.as_bytes()).err();
        assert_eq!(error("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), Some(OtherScheme));
        assert_eq!(error(""), Some(OtherScheme));
        for (from, to, expected) in [
            ("username=\"Mufasa\"", "username=\"\"", Malformed),
            ("username=\"Mufasa\"", "x=y", Malformed),
            ("username=\"Mufasa\"", "username=\"Mufasa\", username=\"Scar\"", Malformed),
            ("username=\"Mufasa\"", "username=\"Mufasa", Malformed),
            ("username=\"Mufasa\"", "username", Malformed),
            ("response=", "answer=", Malformed),
            ("nc=00000001", "nc=1", Malformed),
            ("nc=00000001", "nc=0000000g", Malformed),
            ("nc=00000001, ", "", Malformed),
            ("cnonce", "dnonce", Malformed),
            ("qop=auth", "qop=auth-int", Unsupported),
            ("qop=auth", "qop=auth, algorithm=MD5-sess", Unsupported),
            ("qop=auth", "qop=auth, userhash=true", Unsupported),
        ] {
            assert_eq!(error(&RFC2617.replacen(from, to, 1)), Some(expected), "{to}");
        }
        let short = RFC2617.replace("6629fae49393a05397450978507c4ef1", "6629");
        let ha1 = Hash::ha1(Algorithm::Md5, b"Mufasa", b"testrealm@host.com", b"Circle Of Life");
        assert!(!Credentials::parse(short.as_bytes()).unwrap().verify(&ha1, b"GET"));
        assert!(Hash::from_hex(Algorithm::Md5, &[b'g'; 32]).is_none());
        assert!(Hash::from_hex(Algorithm::Sha256, &[b'a'; 32]).is_none());
    }

    #[test]
    fn challenge() {
        let mut room = [0; 200];
        let mut out = Cursor::new(&mut room);
        put_challenge(&mut out, b"example.org", b"abc", Algorithm::Sha256, true);
        let text = &b"Digest realm=\"example.org\", nonce=\"abc\", stale=true, algorithm=SHA-256, qop=\"auth\""[..];
        assert_eq!(out.finish().unwrap(), text);
    }
}
