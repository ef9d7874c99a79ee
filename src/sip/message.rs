//! The view of one SIP message in the buffer it was received in (RFC 3261 section 7).
//!
//! Promise to the rooms above: [`Message::parse`] reads every byte of the header section once, allocates nothing, never
//! panics, and after it every mandatory header (section 8.1.1) is there exactly once (Via: at least once), the CSeq is a
//! number below 2^31 with the request's own method, Content-Length and Max-Forwards are sane, the top Via, From and To can
//! be read, and no header value holds CR or LF. URIs and Contacts are read when asked for.
//!
//! ```text
//!   buf:      REGISTER sip:example.org SIP/2.0␍␊Via: SIP/2.0/UDP ...␍␊v: ...␍␊To: ...␍␊␍␊body
//!   entries:  [Via,off,len] [Via,..] [To,..] ...      in the order of the message, 8 bytes each
//!   first:    Via -> 0, To -> 2, others -> NONE       the first entry of each known name
//! ```

use super::contact::{Contacts, NameAddr};
use super::lex::{self, Elements, class};
use super::lines::{cseq, line_len, split_line, unfold};
use super::uri::Uri;
use super::{HeaderName, Method, ParseError, Via};

/// More header lines than this are refused ([`ParseError::TooManyHeaders`]). Lines, not values: a header may carry many
/// values separated by commas.
pub const MAX_HEADERS: usize = 128;

/// The header section, start line included, ends before this offset: offsets are 16 bits.
pub const MAX_HEADER_SECTION: usize = u16::MAX as usize;

const NONE: u8 = u8::MAX;
const _: () = assert!(MAX_HEADERS < NONE as usize);

#[derive(Clone, Copy)]
struct Entry {
    value_at: u16,
    value_len: u16,
    name_at: u16,
    name: HeaderName,
    /// 0 for a name of more than 255 bytes, which is nothing known: its length is looked for again.
    name_len: u8,
}

#[derive(Clone, Copy, Default)]
struct Span {
    at: u16,
    len: u16,
}

/// The start line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start<'a> {
    Request { method: Method<'a>, uri: &'a [u8] },
    Response { status: u16, reason: &'a [u8] },
}

/// See the head of this file.
pub struct Message<'a> {
    buf: &'a [u8],
    /// Method or reason phrase.
    word: Span,
    uri: Span,
    /// 0 for a request.
    status: u16,
    count: u8,
    cseq: u32,
    body_at: u32,
    body_len: u32,
    max_forwards: Option<u8>,
    content_length: Option<u32>,
    // Read once, for whoever handles a request needs all three, mostly more than once.
    via: Result<Via<'a>, ParseError>,
    from: Result<NameAddr<'a>, ParseError>,
    to: Result<NameAddr<'a>, ParseError>,
    first: [u8; HeaderName::COUNT],
    entries: [Entry; MAX_HEADERS],
}

impl<'a> Message<'a> {
    /// Reads one datagram, or one framed message of a stream. Folded lines are unfolded in place: their line end
    /// becomes two spaces. Lines may end with CRLF or LF alone, as osip2 accepts. Bytes after the body that
    /// Content-Length gives are left out (section 18.3); without Content-Length the body is the rest.
    ///
    /// After an error `buf` still holds the message, and [`Message::salvage`] tells whether it can be answered.
    pub fn parse(buf: &'a mut [u8]) -> Result<Message<'a>, ParseError> {
        let mut message = Message::empty();
        let (end, folded) = message.scan(buf, false)?;
        if folded {
            unfold(buf, end);
        }
        message.finish(buf, end)?;
        Ok(message)
    }

    /// The second look at a message that [`Message::parse`] refused: what can be read of it, if that is a request other
    /// than ACK with enough to answer to (the five headers that every response copies, top Via and From readable). Bad
    /// lines are passed over and there is no body. Use it for the answer only.
    pub fn salvage(buf: &'a mut [u8]) -> Option<Message<'a>> {
        let mut message = Message::empty();
        let (end, folded) = message.scan(buf, true).ok()?;
        if folded {
            unfold(buf, end);
        }
        message.buf = buf;
        message.body_at = end as u32;
        message.addresses();
        message.cseq =
            message.value(HeaderName::CSeq).and_then(|value| cseq(value).ok()).map_or(0, |(number, _)| number);
        for name in [HeaderName::From, HeaderName::To, HeaderName::CallId, HeaderName::CSeq] {
            message.value(name)?;
        }
        let answerable = message.status == 0
            && message.word.len > 0
            && message.method() != Method::Ack
            && message.via().is_ok()
            && !message.call_id().iter().any(u8::is_ascii_control);
        answerable.then_some(message)
    }

    fn empty() -> Message<'a> {
        // All zeros, so that the table is one memset; nothing beyond `count` is ever looked at.
        let none = Entry { value_at: 0, value_len: 0, name_at: 0, name: HeaderName::ALL[0], name_len: 0 };
        Message {
            buf: &[],
            word: Span::default(),
            uri: Span::default(),
            status: 0,
            count: 0,
            cseq: 0,
            body_at: 0,
            body_len: 0,
            max_forwards: None,
            content_length: None,
            via: Err(ParseError::Missing(HeaderName::Via)),
            from: Err(ParseError::Missing(HeaderName::From)),
            to: Err(ParseError::Missing(HeaderName::To)),
            first: [NONE; HeaderName::COUNT],
            entries: [none; MAX_HEADERS],
        }
    }

    /// Finds the lines; returns where the body begins and whether a line was folded. `lenient` passes over what is wrong
    /// as long as that makes sense.
    fn scan(&mut self, buf: &[u8], lenient: bool) -> Result<(usize, bool), ParseError> {
        let mut at = buf.iter().position(|&byte| byte != b'\r' && byte != b'\n').ok_or(ParseError::KeepAlive)?;
        // The keep-alive of some user agents is four zero bytes.
        if buf.len() <= 4 && buf.iter().all(|&byte| byte == 0) {
            return Err(ParseError::KeepAlive);
        }
        let mut rest = buf.get(at..).unwrap_or(&[]);
        let (mut len, mut skip) = line_len(rest, 0).map_err(|error| match error {
            ParseError::NoEndOfHeaders => ParseError::BadStartLine,
            error => error,
        })?;
        if at + len > MAX_HEADER_SECTION {
            return Err(ParseError::TooLarge);
        }
        self.start_line(rest.get(..len).unwrap_or(&[]), at, lenient)?;
        let mut folded = false;
        loop {
            at += len + skip;
            rest = rest.get(len + skip..).unwrap_or(&[]);
            let mut found = line_len(rest, 0);
            while let Ok((end @ 1.., line_end)) = found {
                if !matches!(rest.get(end + line_end), Some(b' ' | b'\t')) {
                    break;
                }
                folded = true;
                found = line_len(rest, end + line_end);
            }
            (len, skip) = match found {
                Ok(line) => line,
                Err(_) if lenient => return Ok((at, folded)),
                Err(error) => return Err(error),
            };
            if len == 0 {
                return Ok((at + skip, folded));
            }
            let read = match rest.get(..len) {
                Some(line) if at + len <= MAX_HEADER_SECTION => self.line(line, at),
                _ => Err(ParseError::TooLarge),
            };
            match read {
                Ok(()) => (),
                Err(error) if !lenient => return Err(error),
                Err(ParseError::TooLarge | ParseError::TooManyHeaders) => return Ok((at, folded)),
                Err(_) => (),
            }
        }
    }

    /// `lenient` takes whatever begins with a method and speaks of SIP.
    fn start_line(&mut self, line: &[u8], at: usize, lenient: bool) -> Result<(), ParseError> {
        let result = self.strict_start_line(line, at);
        let request = lenient && self.word.len > 0 && self.status == 0;
        if request && line.windows(5).any(|part| part.eq_ignore_ascii_case(b" SIP/")) {
            return Ok(());
        }
        result
    }

    fn strict_start_line(&mut self, line: &[u8], at: usize) -> Result<(), ParseError> {
        let span = |from: usize, len: usize| Span { at: (at + from) as u16, len: len as u16 };
        if line.get(..4).is_some_and(|head| head.eq_ignore_ascii_case(b"SIP/")) {
            let rest = match line {
                [_, _, _, _, b'2', b'.', b'0', b' ', rest @ ..] => rest,
                _ => return Err(ParseError::BadVersion),
            };
            let status = rest.get(..3).and_then(lex::number).filter(|status| (100..700).contains(status));
            self.status = status.ok_or(ParseError::BadStartLine)? as u16;
            // "SIP/2.0 200" without the space before an empty reason is common enough to accept.
            match rest.get(3) {
                None => (),
                Some(b' ') => self.word = span(12, line.len() - 12),
                Some(_) => return Err(ParseError::BadStartLine),
            }
            return Ok(());
        }
        let method_len = memchr::memchr(b' ', line).ok_or(ParseError::BadStartLine)?;
        if !lex::is_token(line.get(..method_len).unwrap_or(&[])) {
            return Err(ParseError::BadStartLine);
        }
        self.word = span(0, method_len);
        let uri_at = method_len + 1;
        let rest = line.get(uri_at..).unwrap_or(&[]);
        let uri_len = memchr::memchr(b' ', rest).ok_or(ParseError::BadStartLine)?;
        // White space or angle brackets around the URI are errors (RFC 4475 sections 3.1.2.6 to 3.1.2.9); such a line
        // splits into more than three words, or has an empty one.
        if uri_len == 0 || lex::span(rest, class::URI) != uri_len {
            return Err(ParseError::BadStartLine);
        }
        self.uri = span(uri_at, uri_len);
        match rest.get(uri_len + 1..).unwrap_or(&[]) {
            version if version.eq_ignore_ascii_case(b"SIP/2.0") => Ok(()),
            version => {
                let other = version.get(..4).is_some_and(|head| head.eq_ignore_ascii_case(b"SIP/"))
                    && !version.iter().any(|&byte| lex::is_lws(byte));
                Err(if other { ParseError::BadVersion } else { ParseError::BadStartLine })
            }
        }
    }

    #[inline]
    fn line(&mut self, line: &[u8], at: usize) -> Result<(), ParseError> {
        let (name_len, tail, name) = split_line(line)?;
        let value = lex::trim_start(tail);
        let value_at = at + line.len() - value.len();
        let value = lex::trim_end(value);
        let index = self.count;
        let entry = self.entries.get_mut(index as usize).ok_or(ParseError::TooManyHeaders)?;
        // All offsets are below MAX_HEADER_SECTION: the caller looked.
        *entry = Entry {
            value_at: value_at as u16,
            value_len: value.len() as u16,
            name_at: at as u16,
            name,
            name_len: u8::try_from(name_len).unwrap_or(0),
        };
        self.count += 1;
        let first = &mut self.first[name as usize];
        if *first == NONE {
            *first = index;
            return Ok(());
        }
        match name {
            HeaderName::From
            | HeaderName::To
            | HeaderName::CallId
            | HeaderName::CSeq
            | HeaderName::MaxForwards
            | HeaderName::ContentLength
            | HeaderName::Expires => Err(ParseError::Repeated(name)),
            _ => Ok(()),
        }
    }

    fn finish(&mut self, buf: &'a [u8], end: usize) -> Result<(), ParseError> {
        self.buf = buf;
        if let Some(value) = self.value(HeaderName::ContentLength) {
            self.content_length = Some(lex::number32(value).ok_or(ParseError::BadContentLength)?);
        }
        let rest = buf.len() - end;
        let len = match self.content_length {
            Some(len) if len as usize > rest => return Err(ParseError::Truncated),
            Some(len) => len as usize,
            None => rest,
        };
        self.body_at = u32::try_from(end).map_err(|_| ParseError::TooLarge)?;
        self.body_len = u32::try_from(len).map_err(|_| ParseError::TooLarge)?;
        for name in [HeaderName::Via, HeaderName::From, HeaderName::To, HeaderName::CallId, HeaderName::CSeq] {
            if self.value(name).is_none_or(<[u8]>::is_empty) {
                return Err(ParseError::Missing(name));
            }
        }
        self.addresses();
        if let Some(error) = self.via.err().or(self.from.err()).or(self.to.err()) {
            return Err(error);
        }
        // A Call-ID goes into logs, keys and answers; white space or a control character in it is nobody's.
        let call_id = self.call_id();
        if lex::span(call_id, class::WORD) != call_id.len() {
            return Err(ParseError::BadCallId);
        }
        let (number, method) = cseq(self.value(HeaderName::CSeq).unwrap_or(&[]))?;
        if self.status == 0 && method != self.slice(self.word) {
            return Err(ParseError::CSeqMismatch);
        }
        self.cseq = number;
        if let Some(value) = self.value(HeaderName::MaxForwards) {
            let value = lex::number(value).and_then(|value| u8::try_from(value).ok());
            self.max_forwards = Some(value.ok_or(ParseError::BadMaxForwards)?);
        }
        Ok(())
    }

    fn addresses(&mut self) {
        if let Some(value) = self.value(HeaderName::Via) {
            self.via = Via::first(value);
        }
        if let Some(value) = self.value(HeaderName::From) {
            self.from = NameAddr::parse(value);
        }
        if let Some(value) = self.value(HeaderName::To) {
            self.to = NameAddr::parse(value);
        }
    }

    fn slice(&self, span: Span) -> &'a [u8] {
        self.at(span.at as usize, span.len as usize)
    }

    fn at(&self, at: usize, len: usize) -> &'a [u8] {
        self.buf.get(at..at + len).unwrap_or(&[])
    }

    fn list(&self) -> &[Entry] {
        self.entries.get(..self.count as usize).unwrap_or(&[])
    }

    fn header_of(&self, entry: &Entry) -> Header<'a> {
        let name_len = match entry.name_len {
            0 => {
                let rest = self.buf.get(entry.name_at as usize..).unwrap_or(&[]);
                lex::span(rest, class::TOKEN)
            }
            len => len as usize,
        };
        Header {
            name: entry.name,
            text: self.at(entry.name_at as usize, name_len),
            value: self.at(entry.value_at as usize, entry.value_len as usize),
        }
    }

    pub fn start(&self) -> Start<'a> {
        match self.status {
            0 => Start::Request { method: self.method(), uri: self.uri() },
            status => Start::Response { status, reason: self.slice(self.word) },
        }
    }

    pub fn is_request(&self) -> bool {
        self.status == 0
    }

    /// 100 to 699, or 0 for a request.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The method of a request; of a response, that of its CSeq.
    pub fn method(&self) -> Method<'a> {
        match self.status {
            0 => Method::from_bytes(self.slice(self.word)),
            _ => self.cseq().1,
        }
    }

    /// The Request-URI as it stands; empty for a response.
    pub fn uri(&self) -> &'a [u8] {
        self.slice(self.uri)
    }

    /// The Request-URI taken apart.
    pub fn request_uri(&self) -> Result<Uri<'a>, ParseError> {
        Uri::parse(self.uri())
    }

    /// All headers in the order of the message.
    pub fn all(&self) -> impl Iterator<Item = Header<'a>> + '_ {
        self.list().iter().map(|entry| self.header_of(entry))
    }

    /// The values of every header line called `name`, each as it stands (unfolded, trimmed), in order. Compact and long
    /// forms are one. For [`HeaderName::Other`] use [`Message::by_name`].
    pub fn headers(&self, name: HeaderName) -> Headers<'_, 'a> {
        let first = self.first[name as usize] as usize;
        Headers { message: self, name, next: if first == NONE as usize { self.count as usize } else { first } }
    }

    /// The value of the first header called `name`.
    #[inline]
    pub fn value(&self, name: HeaderName) -> Option<&'a [u8]> {
        let entry = self.entries.get(self.first[name as usize] as usize)?;
        Some(self.at(entry.value_at as usize, entry.value_len as usize))
    }

    pub fn has(&self, name: HeaderName) -> bool {
        self.first[name as usize] != NONE
    }

    /// The elements of every header line called `name`, split at commas: Via, Route, Path, Supported, Require, ...
    pub fn elements(&self, name: HeaderName) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.headers(name).flat_map(Elements::new)
    }

    /// The values of the headers with this name as text, known to the library or not, in long or compact form.
    pub fn by_name<'s>(&'s self, name: &'s [u8]) -> impl Iterator<Item = &'a [u8]> + 's {
        let known = HeaderName::recognise(name);
        self.all()
            .filter(move |header| {
                header.name == known && (known != HeaderName::Other || header.text.eq_ignore_ascii_case(name))
            })
            .map(|header| header.value)
    }

    /// Whether `tag` is among the option tags of `name` (Supported, Require, ...). Option tags are tokens, compared
    /// without case.
    pub fn has_option(&self, name: HeaderName, tag: &[u8]) -> bool {
        self.elements(name).any(|element| element.eq_ignore_ascii_case(tag))
    }

    /// The topmost Via element. Never an error after [`Message::parse`]; nor are the next two.
    pub fn via(&self) -> Result<Via<'a>, ParseError> {
        self.via
    }

    pub fn from(&self) -> Result<NameAddr<'a>, ParseError> {
        self.from
    }

    pub fn to(&self) -> Result<NameAddr<'a>, ParseError> {
        self.to
    }

    pub fn call_id(&self) -> &'a [u8] {
        self.value(HeaderName::CallId).unwrap_or(&[])
    }

    pub fn cseq(&self) -> (u32, Method<'a>) {
        let value = self.value(HeaderName::CSeq).unwrap_or(&[]);
        (self.cseq, Method::from_bytes(cseq(value).map_or(&[], |(_, method)| method)))
    }

    /// The number of the CSeq alone.
    pub fn cseq_number(&self) -> u32 {
        self.cseq
    }

    /// Every Contact value of every Contact header, in order; `*` is one of them.
    pub fn contacts(&self) -> Contacts<'_, 'a> {
        Contacts::new(self.headers(HeaderName::Contact))
    }

    /// The Expires header: `Ok(None)` when there is none. A value that is no number or exceeds 32 bits is an error here;
    /// RFC 3261 section 20.19 lets a registrar take it as 3600 instead.
    pub fn expires(&self) -> Result<Option<u32>, ParseError> {
        match self.value(HeaderName::Expires) {
            None => Ok(None),
            Some(value) => lex::number32(value).map(Some).ok_or(ParseError::BadExpires),
        }
    }

    pub fn max_forwards(&self) -> Option<u8> {
        self.max_forwards
    }

    /// What the header says; [`Message::body`] is what there is.
    pub fn content_length(&self) -> Option<u32> {
        self.content_length
    }

    pub fn body(&self) -> &'a [u8] {
        self.at(self.body_at as usize, self.body_len as usize)
    }

    /// The message up to the end of its body, unfolded, with the line ends that came before it.
    pub fn raw(&self) -> &'a [u8] {
        self.at(0, self.body_at as usize + self.body_len as usize)
    }

    /// Reads what [`Message::parse`] leaves for later and that a request must have right (RFC 3261 section 8.2 leaves it to
    /// the server how much it checks): the URIs of the start line, From and To, every Contact, and Expires.
    pub fn check(&self) -> Result<(), ParseError> {
        self.from?.parsed_uri()?;
        self.to?.parsed_uri()?;
        if self.is_request() {
            self.request_uri()?;
        }
        for contact in self.contacts() {
            contact?;
        }
        self.expires()?;
        Ok(())
    }
}

impl std::fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message").field("start", &self.start()).field("headers", &self.count).finish_non_exhaustive()
    }
}

/// One header line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    pub name: HeaderName,
    /// The name as it was written.
    pub text: &'a [u8],
    pub value: &'a [u8],
}

/// See [`Message::headers`].
#[derive(Clone)]
pub struct Headers<'m, 'a> {
    message: &'m Message<'a>,
    name: HeaderName,
    next: usize,
}

impl<'a> Iterator for Headers<'_, 'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let entry = self.message.list().get(self.next)?;
            self.next += 1;
            if entry.name == self.name {
                return Some(self.message.at(entry.value_at as usize, entry.value_len as usize));
            }
        }
    }
}
