//! One Via element (RFC 3261 sections 20.42 and 18.2, RFC 3581).

use std::net::{IpAddr, SocketAddr};

use super::ParseError;
use super::lex::{self, Params, class};

/// What the sender asked for with `rport` (RFC 3581).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rport {
    /// No such parameter: answers go to the port of sent-by.
    Absent,
    /// `;rport`: answers go to the port that the request came from.
    Asked,
    /// `;rport=N`: a response, or a request that came through somebody.
    Is(u16),
}

/// One element of a Via header.
#[derive(Clone, Copy, Debug)]
pub struct Via<'a> {
    /// The whole element, trimmed.
    pub raw: &'a [u8],
    /// `UDP`, `TCP`, `TLS`, ... in the sender's case.
    pub transport: &'a [u8],
    /// The host of sent-by; an IPv6 address with its brackets.
    pub host: &'a [u8],
    pub port: Option<u16>,
    /// Never empty.
    pub branch: Option<&'a [u8]>,
    pub received: Option<&'a [u8]>,
    pub rport: Rport,
    pub maddr: Option<&'a [u8]>,
    pub params: Params<'a>,
}

impl<'a> Via<'a> {
    /// The first element of a header value.
    pub fn first(value: &'a [u8]) -> Result<Via<'a>, ParseError> {
        Via::parse(value.get(..lex::element_len(value)).unwrap_or(&[]))
    }

    /// `element` is one element, without the comma that ends it.
    pub fn parse(element: &'a [u8]) -> Result<Via<'a>, ParseError> {
        let raw = lex::trim(element);
        let (transport, rest) = match raw.strip_prefix(b"SIP/2.0/") {
            Some(rest) => token(rest)?,
            None => {
                let (_, rest) = token(raw)?;
                let (_, rest) = token(slash(rest)?)?;
                token(lex::trim_start(slash(rest)?))?
            }
        };
        let sent_by = lex::trim_start(rest);
        if sent_by.len() == rest.len() {
            return Err(ParseError::BadVia);
        }
        let host_len = match sent_by {
            [b'[', ..] => memchr::memchr(b']', sent_by).ok_or(ParseError::BadVia)? + 1,
            _ => lex::span(sent_by, class::HOST),
        };
        let (host, rest) = sent_by.split_at(host_len);
        if host.is_empty() || (host.first() == Some(&b'[') && lex::span(host, class::VALUE) != host.len()) {
            return Err(ParseError::BadVia);
        }
        let mut rest = lex::trim_start(rest);
        let mut port = None;
        if let [b':', tail @ ..] = rest {
            let tail = lex::trim_start(tail);
            let len = lex::span(tail, class::DIGIT);
            let (digits, tail) = tail.split_at(len);
            port = Some(lex::port(digits).ok_or(ParseError::BadVia)?);
            rest = lex::trim_start(tail);
        }
        if !matches!(rest, [] | [b';', ..]) {
            return Err(ParseError::BadVia);
        }
        let params = Params::new(rest);
        let mut via =
            Via { raw, transport, host, port, branch: None, received: None, rport: Rport::Absent, maddr: None, params };
        let mut walk = params;
        while let Some(param) = walk.step()? {
            match (param.name.len(), param.name.first().map(|byte| byte | 0x20)) {
                (6, Some(b'b')) if param.is(b"branch") => via.branch = param.value.filter(|value| !value.is_empty()),
                (8, Some(b'r')) if param.is(b"received") => via.received = param.value,
                (5, Some(b'm')) if param.is(b"maddr") => via.maddr = param.value,
                (5, Some(b'r')) if param.is(b"rport") => {
                    via.rport = match param.value {
                        None | Some([]) => Rport::Asked,
                        Some(value) => Rport::Is(lex::port(value).ok_or(ParseError::BadVia)?),
                    }
                }
                _ => (),
            }
        }
        Ok(via)
    }

    /// Whether the branch is one of RFC 3261 (`z9hG4bK`), so that it alone names the transaction.
    pub fn has_cookie(&self) -> bool {
        self.branch.is_some_and(|branch| branch.get(..7).is_some_and(|head| head.eq_ignore_ascii_case(b"z9hG4bK")))
    }

    /// The port of sent-by, or the default of its transport.
    pub fn port_or_default(&self) -> u16 {
        let tls = self.transport.eq_ignore_ascii_case(b"TLS") || self.transport.eq_ignore_ascii_case(b"WSS");
        self.port.unwrap_or(if tls { 5061 } else { 5060 })
    }

    /// Where the answer to a request from `source` goes over an unreliable transport (RFC 3261 section 18.2.2, RFC 3581
    /// section 4): the address it came from, and the port of sent-by unless `rport` asks for that of the source.
    /// `maddr` is left unheeded on purpose: it would let one packet send our answer to an address of its choice.
    pub fn reply_to(&self, source: SocketAddr) -> SocketAddr {
        match self.rport {
            // Nobody listens on port 0.
            Rport::Absent if self.port != Some(0) => {
                let mut to = source;
                to.set_port(self.port_or_default());
                to
            }
            _ => source,
        }
    }

    /// Whether sent-by's host is this very address, so that no `received` is due (RFC 3261 section 18.2.1).
    pub fn is_from(&self, ip: IpAddr) -> bool {
        let host = match self.host {
            [b'[', inner @ .., b']'] => inner,
            host => host,
        };
        let text = std::str::from_utf8(host).ok();
        text.and_then(|text| text.parse::<IpAddr>().ok()).is_some_and(|host| host.to_canonical() == ip.to_canonical())
    }
}

fn token(bytes: &[u8]) -> Result<(&[u8], &[u8]), ParseError> {
    let len = lex::span(bytes, class::TOKEN);
    if len == 0 {
        return Err(ParseError::BadVia);
    }
    Ok(bytes.split_at(len))
}

fn slash(bytes: &[u8]) -> Result<&[u8], ParseError> {
    match lex::trim_start(bytes) {
        [b'/', rest @ ..] => Ok(lex::trim_start(rest)),
        _ => Err(ParseError::BadVia),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_form() {
        let via = Via::parse(b"SIP/2.0/UDP 192.0.2.1:5062;rport;branch=z9hG4bKa;received=1.2.3.4").unwrap();
        assert_eq!(via.transport, b"UDP");
        assert_eq!(via.host, b"192.0.2.1");
        assert_eq!(via.port, Some(5062));
        assert_eq!(via.branch, Some(&b"z9hG4bKa"[..]));
        assert_eq!(via.received, Some(&b"1.2.3.4"[..]));
        assert_eq!(via.rport, Rport::Asked);
        assert!(via.has_cookie());
    }

    #[test]
    fn white_space_everywhere() {
        let via =
            Via::parse(b"SIP  /   2.0\r\n /TLS    first.example.com : 4000  ;  branch  =   z9hG4bKk9 ; x").unwrap();
        assert_eq!((via.transport, via.host, via.port), (&b"TLS"[..], &b"first.example.com"[..], Some(4000)));
        assert_eq!(via.branch, Some(&b"z9hG4bKk9"[..]));
        assert_eq!(Via::parse(b"SIP/2.0/TLS h").unwrap().port_or_default(), 5061);
        assert_eq!(Via::parse(b"SIP/2.0/WS h").unwrap().port_or_default(), 5060);
    }

    #[test]
    fn ipv6() {
        let via = Via::parse(b"SIP/2.0/UDP [2001:db8::9:1]:70;rport=7;branch=;received=[2001:db8::9:255]").unwrap();
        assert_eq!((via.host, via.port), (&b"[2001:db8::9:1]"[..], Some(70)));
        assert_eq!(via.rport, Rport::Is(7));
        assert_eq!(via.branch, None);
        assert_eq!(via.received, Some(&b"[2001:db8::9:255]"[..]));
        assert!(via.is_from("2001:db8:0::9:1".parse().unwrap()));
        assert!(!via.is_from("2001:db8::9:2".parse().unwrap()));
    }

    #[test]
    fn source_and_way_back() {
        let source: SocketAddr = "192.0.2.7:4444".parse().unwrap();
        let plain = Via::parse(b"SIP/2.0/UDP 192.0.2.7:5070;branch=z9hG4bK1").unwrap();
        assert!(plain.is_from(source.ip()));
        assert!(plain.is_from("::ffff:192.0.2.7".parse().unwrap()));
        assert_eq!(plain.reply_to(source), "192.0.2.7:5070".parse().unwrap());
        let default = Via::parse(b"SIP/2.0/UDP pc33;branch=z9hG4bK1;maddr=224.2.0.1").unwrap();
        assert!(!default.is_from(source.ip()));
        assert_eq!(default.reply_to(source), "192.0.2.7:5060".parse().unwrap());
        assert_eq!(Via::parse(b"SIP/2.0/UDP pc33:0").unwrap().reply_to(source), source);
        let rport = Via::parse(b"SIP/2.0/UDP pc33;branch=z9hG4bK1;rport").unwrap();
        assert_eq!(rport.reply_to(source), source);
    }

    #[test]
    fn what_is_no_via() {
        for bad in [
            &b""[..],
            b"SIP",
            b"SIP/2.0",
            b"SIP/2.0/",
            b"SIP/2.0/UDP",
            b"SIP/2.0/UDP ",
            b"SIP/2.0/UDP ;branch=x",
            b"SIP/2.0/UDP host:",
            b"SIP/2.0/UDP host:x",
            b"SIP/2.0/UDP host:99999",
            b"SIP/2.0/UDP [::1",
            b"SIP/2.0/UDP host;branch=\"x",
            b"SIP/2.0/UDP ho st",
            b"SIP/2.0/UDP h;rport=x",
            b"SIP/2.0UDP host",
        ] {
            assert!(Via::parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
