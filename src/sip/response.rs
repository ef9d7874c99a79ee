//! Responses to a request, written straight into a send buffer (RFC 3261 section 8.2.6, 18.2.1; RFC 3581).
//!
//! ```text
//! let mut response = Response::new(buf, &request, 200, Some(source), &tags);
//! response.line(HeaderName::Contact, |out| _ = out.put(b"<sip:a@b>;expires=").put_number(60));
//! let bytes = response.finish().ok_or(...)?;            // to request.via()?.reply_to(source)
//! ```
//! Order: status line, Via (the top one with `received` and `rport`), From, To with a tag, Call-ID, CSeq, what the caller
//! adds, Content-Length, body.

use std::net::SocketAddr;

use super::hash::KeyHasher;
use super::write::Cursor;
use super::{HeaderName, Message, Rport, Via};
use std::hash::{BuildHasher, Hasher};

/// Gives every request one tag, so that a server without transactions answers a retransmission with the tag it gave
/// before (RFC 3261 section 8.2.7): a keyed hash of Call-ID, From tag, CSeq number and top branch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tags {
    hasher: KeyHasher,
}

impl Tags {
    /// Random key: tags differ after a restart.
    pub fn new() -> Self {
        Self::default()
    }

    /// A given key, for servers that share an address. Use it for nothing else: tags are seen by everybody.
    pub fn from_key(key: [u64; 4]) -> Self {
        Tags { hasher: KeyHasher::from_seeds(key) }
    }

    pub fn tag(&self, request: &Message<'_>) -> u64 {
        let mut state = self.hasher.build_hasher();
        state.write(request.call_id());
        state.write(request.from().ok().and_then(|from| from.tag()).unwrap_or(&[]));
        state.write_u64(u64::from(request.cseq_number()));
        state.write(request.via().ok().and_then(|via| via.branch).unwrap_or(&[]));
        state.finish()
    }
}

/// A response under way. See the head of this file.
pub struct Response<'b> {
    out: Cursor<'b>,
}

impl<'b> Response<'b> {
    /// Begins with the standard reason phrase. `source` is where the request came from; without it the top Via is copied
    /// as it is. A To without tag gets one from `tags`, but for 100.
    pub fn new(buf: &'b mut [u8], request: &Message<'_>, status: u16, source: Option<SocketAddr>, tags: &Tags) -> Self {
        Self::with_reason(buf, request, status, reason(status).as_bytes(), source, tags)
    }

    /// With a reason phrase of the caller's. CR or LF in it makes [`Response::finish`] fail.
    pub fn with_reason(
        buf: &'b mut [u8],
        request: &Message<'_>,
        status: u16,
        reason: &[u8],
        source: Option<SocketAddr>,
        tags: &Tags,
    ) -> Self {
        let mut out = Cursor::new(buf);
        out.put(b"SIP/2.0 ").put_number(u64::from(status)).put(b" ").put_line_text(reason).put(b"\r\n");
        let mut top = true;
        for value in request.headers(HeaderName::Via) {
            out.put(b"Via: ");
            match (top, source, request.via()) {
                (true, Some(source), Ok(via)) => put_top_via(&mut out, value, &via, source),
                _ => _ = out.put(value),
            }
            out.put(b"\r\n");
            top = false;
        }
        out.put(b"From: ").put(request.value(HeaderName::From).unwrap_or(&[])).put(b"\r\n");
        out.put(b"To: ").put(request.value(HeaderName::To).unwrap_or(&[]));
        if status != 100 && request.to().ok().and_then(|to| to.tag()).is_none() {
            out.put(b";tag=").put_hex(&tags.tag(request).to_be_bytes());
        }
        out.put(b"\r\nCall-ID: ").put(request.call_id());
        out.put(b"\r\nCSeq: ").put(request.value(HeaderName::CSeq).unwrap_or(&[])).put(b"\r\n");
        if status == 100 {
            // RFC 3261 section 8.2.6.1.
            for value in request.headers(HeaderName::Timestamp) {
                out.put(b"Timestamp: ").put(value).put(b"\r\n");
            }
        }
        Response { out }
    }

    /// Adds a header. CR or LF in the value makes [`Response::finish`] fail.
    pub fn header(&mut self, name: HeaderName, value: &[u8]) -> &mut Self {
        self.named(name.as_bytes(), value)
    }

    /// Adds a header with any name.
    pub fn named(&mut self, name: &[u8], value: &[u8]) -> &mut Self {
        self.out.put_line_text(name).put(b": ").put_line_text(value).put(b"\r\n");
        self
    }

    pub fn number(&mut self, name: HeaderName, value: u64) -> &mut Self {
        self.out.put(name.as_bytes()).put(b": ").put_number(value).put(b"\r\n");
        self
    }

    /// Adds a header whose value is written piece by piece. The caller keeps line ends out of it:
    /// [`Cursor::put_line_text`] for what comes from outside.
    pub fn line(&mut self, name: HeaderName, value: impl FnOnce(&mut Cursor<'b>)) -> &mut Self {
        self.out.put(name.as_bytes()).put(b": ");
        value(&mut self.out);
        self.out.put(b"\r\n");
        self
    }

    /// Adds whole header lines, each with its CRLF at the end; the caller has seen to it that they are that.
    pub fn lines(&mut self, lines: &[u8]) -> &mut Self {
        self.out.put(lines);
        self
    }

    /// Copies every header of this name from the request: Record-Route for dialogs, Path for RFC 3327.
    pub fn copy(&mut self, name: HeaderName, request: &Message<'_>) -> &mut Self {
        for value in request.headers(name) {
            self.out.put(name.as_bytes()).put(b": ").put(value).put(b"\r\n");
        }
        self
    }

    /// Ends a response without body. `None`: it did not fit, or something held CR or LF; `buf` is then to be thrown away.
    pub fn finish(mut self) -> Option<&'b mut [u8]> {
        self.out.put(b"Content-Length: 0\r\n\r\n");
        self.out.finish()
    }

    pub fn finish_with_body(mut self, content_type: &[u8], body: &[u8]) -> Option<&'b mut [u8]> {
        self.header(HeaderName::ContentType, content_type);
        self.finish_with(body)
    }

    /// Ends a response whose Content-Type, if it has a body, is among its lines already.
    pub fn finish_with(mut self, body: &[u8]) -> Option<&'b mut [u8]> {
        self.number(HeaderName::ContentLength, body.len() as u64);
        self.out.put(b"\r\n").put(body);
        self.out.finish()
    }
}

/// Writes the header value `value`, whose first element is `via`. What the sender itself wrote into `received` or
/// `rport` is replaced, since whoever reads them trusts us for them.
fn put_top_via(out: &mut Cursor<'_>, value: &[u8], via: &Via<'_>, source: SocketAddr) {
    let raw = via.raw;
    // `raw` is `value`'s first element without white space: a prefix, for header values are trimmed.
    let others = value.get(raw.len()..).unwrap_or(&[]);
    if via.rport == Rport::Absent && via.received.is_none() {
        out.put(raw);
        if !via.is_from(source.ip()) {
            out.put(b";received=").put_ip(source.ip());
        }
        out.put(others);
        return;
    }
    let mut params = via.params;
    let mut kept = raw.len() - params.raw().len();
    out.put(raw.get(..kept).unwrap_or(&[]));
    while let Ok(Some(param)) = params.step() {
        let end = raw.len() - params.raw().len();
        if !param.is(b"rport") && !param.is(b"received") {
            out.put(raw.get(kept..end).unwrap_or(&[]));
        }
        kept = end;
    }
    if via.rport != Rport::Absent || !via.is_from(source.ip()) {
        out.put(b";received=").put_ip(source.ip());
    }
    if via.rport != Rport::Absent {
        out.put(b";rport=").put_number(u64::from(source.port()));
    }
    out.put(others);
}

/// The standard reason phrase of a status (IANA registry); that of its class for a status that has none.
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Trying",
        180 => "Ringing",
        181 => "Call Is Being Forwarded",
        182 => "Queued",
        183 => "Session Progress",
        199 => "Early Dialog Terminated",
        200 => "OK",
        202 => "Accepted",
        204 => "No Notification",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Moved Temporarily",
        305 => "Use Proxy",
        380 => "Alternative Service",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        410 => "Gone",
        412 => "Conditional Request Failed",
        413 => "Request Entity Too Large",
        414 => "Request-URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Unsupported URI Scheme",
        417 => "Unknown Resource-Priority",
        420 => "Bad Extension",
        421 => "Extension Required",
        422 => "Session Interval Too Small",
        423 => "Interval Too Brief",
        424 => "Bad Location Information",
        428 => "Use Identity Header",
        429 => "Provide Referrer Identity",
        430 => "Flow Failed",
        433 => "Anonymity Disallowed",
        436 => "Bad Identity Info",
        437 => "Unsupported Credential",
        438 => "Invalid Identity Header",
        439 => "First Hop Lacks Outbound Support",
        440 => "Max-Breadth Exceeded",
        469 => "Bad Info Package",
        470 => "Consent Needed",
        480 => "Temporarily Unavailable",
        481 => "Call/Transaction Does Not Exist",
        482 => "Loop Detected",
        483 => "Too Many Hops",
        484 => "Address Incomplete",
        485 => "Ambiguous",
        486 => "Busy Here",
        487 => "Request Terminated",
        488 => "Not Acceptable Here",
        489 => "Bad Event",
        491 => "Request Pending",
        493 => "Undecipherable",
        494 => "Security Agreement Required",
        500 => "Server Internal Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Server Time-out",
        505 => "Version Not Supported",
        513 => "Message Too Large",
        555 => "Push Notification Service Not Supported",
        580 => "Precondition Failure",
        600 => "Busy Everywhere",
        603 => "Decline",
        604 => "Does Not Exist Anywhere",
        606 => "Not Acceptable",
        607 => "Unwanted",
        608 => "Rejected",
        _ => match status / 100 {
            1 => "Session Progress",
            2 => "OK",
            3 => "Multiple Choices",
            4 => "Bad Request",
            5 => "Server Internal Error",
            _ => "Decline",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u64; 4] = [1, 2, 3, 4];

    fn answer(request: &str, status: u16, source: Option<&str>) -> String {
        let mut buf = request.as_bytes().to_vec();
        let message = Message::parse(&mut buf).unwrap();
        let mut room = [0; 1024];
        let source = source.map(|text| text.parse().unwrap());
        let response = Response::new(&mut room, &message, status, source, &Tags::from_key(KEY));
        String::from_utf8(response.finish().unwrap().to_vec()).unwrap()
    }

    fn request(via: &str, to: &str) -> String {
        format!(
            "REGISTER sip:h SIP/2.0\r\nt: {to}\r\nTimestamp: 5\r\nv: {via}\r\nFrom: <sip:a@h>;tag=f\r\ni: c1\r\nCSeq: 7 REGISTER\r\nVia: SIP/2.0/UDP last\r\n\r\n"
        )
    }

    fn top_via(via: &str, source: &str) -> String {
        let text = answer(&request(via, "<sip:a@h>"), 200, Some(source));
        text.lines().nth(1).unwrap().to_string()
    }

    #[test]
    fn rfc3261_8_2_6_copies_what_it_must() {
        let text =
            answer(&request("SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1", "<sip:a@h>;tag=t"), 200, Some("192.0.2.1:5060"));
        let lines = [
            "SIP/2.0 200 OK",
            "Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1",
            "Via: SIP/2.0/UDP last",
            "From: <sip:a@h>;tag=f",
            "To: <sip:a@h>;tag=t",
            "Call-ID: c1",
            "CSeq: 7 REGISTER",
            "Content-Length: 0",
            "",
            "",
        ];
        assert_eq!(text, lines.join("\r\n"));
        // 100 has no tag, and Timestamp is copied.
        let trying = answer(&request("SIP/2.0/UDP h", "<sip:a@h>"), 100, None);
        assert!(trying.contains("\r\nTo: <sip:a@h>\r\n") && trying.contains("\r\nTimestamp: 5\r\n"), "{trying}");
    }

    #[test]
    fn rfc3261_18_2_1_received() {
        let source = "192.0.2.9:7000";
        assert_eq!(
            top_via("SIP/2.0/UDP pc33:5070;branch=b", source),
            "Via: SIP/2.0/UDP pc33:5070;branch=b;received=192.0.2.9"
        );
        assert_eq!(top_via("SIP/2.0/UDP 192.0.2.9;branch=b", source), "Via: SIP/2.0/UDP 192.0.2.9;branch=b");
        assert_eq!(
            top_via("SIP/2.0/UDP 192.0.2.9;received=6.6.6.6 ;branch=b", source),
            "Via: SIP/2.0/UDP 192.0.2.9;branch=b"
        );
        assert_eq!(
            top_via("SIP/2.0/UDP pc33;branch=b , SIP/2.0/TCP x;rport", "[2001:db8::1]:5060"),
            "Via: SIP/2.0/UDP pc33;branch=b;received=2001:db8::1 , SIP/2.0/TCP x;rport"
        );
    }

    #[test]
    fn rfc3581_rport() {
        let source = "192.0.2.9:7000";
        assert_eq!(
            top_via("SIP/2.0/UDP 192.0.2.9:5060;rport;branch=b", source),
            "Via: SIP/2.0/UDP 192.0.2.9:5060;branch=b;received=192.0.2.9;rport=7000"
        );
        assert_eq!(
            top_via("SIP/2.0/UDP h ; branch=b ; rport = 1 ; received=1.1.1.1;x", source),
            "Via: SIP/2.0/UDP h ; branch=b ;x;received=192.0.2.9;rport=7000"
        );
    }

    #[test]
    fn rfc3261_8_2_7_tag_is_the_requests() {
        let to_of = |text: &str| text.lines().find(|line| line.starts_with("To:")).unwrap().to_string();
        let first = request("SIP/2.0/UDP h;branch=z9hG4bK1", "<sip:a@h>");
        let tag = to_of(&answer(&first, 200, None));
        assert_eq!(tag.len(), "To: <sip:a@h>;tag=0123456789abcdef".len());
        assert_eq!(tag, to_of(&answer(&first, 404, Some("192.0.2.1:1"))));
        for (from, to) in [("c1", "c2"), ("CSeq: 7", "CSeq: 8"), ("tag=f", "tag=g"), ("z9hG4bK1", "z9hG4bK2")] {
            assert_ne!(tag, to_of(&answer(&first.replace(from, to), 200, None)), "{from}");
        }
    }

    #[test]
    fn what_does_not_fit_or_breaks_lines_is_refused() {
        let mut buf = request("SIP/2.0/UDP h", "<sip:a@h>").into_bytes();
        let message = Message::parse(&mut buf).unwrap();
        let tags = Tags::new();
        let full = Response::new(&mut [0; 1024], &message, 200, None, &tags).finish().unwrap().len();
        for room in 0..full {
            assert!(Response::new(&mut vec![0; room], &message, 200, None, &tags).finish().is_none(), "{room}");
        }
        assert!(Response::new(&mut vec![0; full], &message, 200, None, &tags).finish().is_some());
        let mut room = [0; 1024];
        let mut response = Response::new(&mut room, &message, 200, None, &tags);
        response.header(HeaderName::Warning, b"399 h \"a\r\nContact: <sip:evil>\"");
        assert!(response.finish().is_none());
        assert!(Response::with_reason(&mut room, &message, 400, b"a\nb", None, &tags).finish().is_none());
    }

    #[test]
    fn with_body_and_composed_lines() {
        let mut buf = request("SIP/2.0/UDP h", "<sip:a@h>").into_bytes();
        let message = Message::parse(&mut buf).unwrap();
        let mut room = [0; 1024];
        let mut response = Response::with_reason(&mut room, &message, 299, b"Fine", None, &Tags::new());
        response.number(HeaderName::Expires, 60).copy(HeaderName::Timestamp, &message);
        response.line(HeaderName::Contact, |out| _ = out.put(b"<sip:a@b>;q=").put_q(250));
        let sent = response.finish_with_body(b"text/plain", b"hello").unwrap();
        let text = String::from_utf8(sent.to_vec()).unwrap();
        assert!(text.starts_with("SIP/2.0 299 Fine\r\n"));
        assert!(text.ends_with(
            "Expires: 60\r\nTimestamp: 5\r\nContact: <sip:a@b>;q=0.25\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
        ));
        let reply = Message::parse(sent).unwrap();
        assert_eq!((reply.status(), reply.body()), (299, &b"hello"[..]));
    }
}
