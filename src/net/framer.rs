//! Where one SIP message ends and the next begins in a stream (RFC 3261 section 18.3: by Content-Length), and the
//! keep-alives between them (RFC 5626 section 4.4.1: CRLF CRLF is a ping, a CRLF answers it).
//!
//! [`SipFramer`] is a state machine over the bytes in order; it never looks back, so it does not matter how the stream
//! is cut or where it lies. It costs one `memchr` per header line and nothing per byte of a body.
//!
//! Promises:
//! - Any cut of a stream gives the same steps, but for how blanks between messages are grouped.
//! - Content-Length is found in any case, in its compact form `l`, with blanks before the colon and on folded
//!   lines. Said twice, it has to say the same. Missing, it is an error: nothing else says where a stream's
//!   message ends.
//! - Lines end with CRLF or LF. A message begins with a character that a method or `SIP/2.0` can begin with, so a TLS
//!   hello or binary garbage is found out at its first byte.
//! - State is a few words, and a message longer than the limit is refused as soon as that is known, so what a peer can
//!   make us keep is bounded by [`FramerLimits`].

/// What a peer may send at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramerLimits {
    /// Start line and header fields with the blank line, in bytes. Default 32,768.
    pub head: usize,
    /// The whole message. Default 65,536, about what a datagram can carry.
    pub message: usize,
}

impl Default for FramerLimits {
    fn default() -> Self {
        FramerLimits { head: 32_768, message: 65_536 }
    }
}

/// Why a stream cannot be followed any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameError {
    /// A message does not begin like one.
    Garbage,
    HeadTooLong,
    MessageTooLong,
    /// Content-Length is not a number, or says two different ones.
    BadLength,
    NoLength,
    /// A framer of the user's refused.
    Refused,
}

impl FrameError {
    pub(super) const ALL: [FrameError; 6] = [
        FrameError::Garbage,
        FrameError::HeadTooLong,
        FrameError::MessageTooLong,
        FrameError::BadLength,
        FrameError::NoLength,
        FrameError::Refused,
    ];

    pub fn name(self) -> &'static str {
        match self {
            FrameError::Garbage => "garbage",
            FrameError::HeadTooLong => "head_too_long",
            FrameError::MessageTooLong => "message_too_long",
            FrameError::BadLength => "bad_length",
            FrameError::NoLength => "no_length",
            FrameError::Refused => "refused",
        }
    }
}

/// What the bytes looked at so far mean. Lengths count from the end of the last [`Step::Blank`] or [`Step::Message`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// All input was used; the message goes on.
    More,
    /// `len` bytes of line ends between messages, to be thrown away, with so many pings to be answered.
    Blank { len: usize, pings: usize },
    /// A message of `len` bytes.
    Message { len: usize },
    /// The stream cannot be followed. If `head` is not 0, that many bytes are a head that can be answered (with 400,
    /// or 513 for [`FrameError::MessageTooLong`]) before the connection is closed.
    Broken { error: FrameError, head: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between messages.
    Blank,
    /// At the first byte of a message.
    First,
    /// Within a line that does not matter.
    Line,
    /// At the first byte of a line.
    LineStart,
    /// At the first byte of a line, a CR seen: the blank line, if LF follows.
    BlankLine,
    /// So many bytes of `content-length` seen.
    Name(u8),
    /// The name is complete; blanks, then a colon.
    Colon,
    /// Before the digits, within them, after them. A line end in any of them may be followed by a folded line.
    BeforeValue,
    Value,
    AfterValue,
    Body,
    Broken,
}

const NAME: &[u8; 14] = b"content-length";

/// See the module.
#[derive(Debug, Clone)]
pub struct SipFramer {
    state: State,
    /// State to go back to when a Content-Length's line is folded; `Line` when the header is another one.
    folded: State,
    /// Bytes of the ping CR LF CR LF seen.
    ping: u8,
    bad_length: bool,
    length: Option<u32>,
    value: u32,
    /// Bytes of the message seen.
    seen: u32,
    head: u32,
    head_limit: u32,
    message_limit: u32,
}

impl Default for SipFramer {
    fn default() -> Self {
        SipFramer::new(FramerLimits::default())
    }
}

impl SipFramer {
    /// Limits above 1 GiB are taken as 1 GiB.
    pub fn new(limits: FramerLimits) -> Self {
        let bounded = |limit: usize| limit.min(1 << 30) as u32;
        SipFramer {
            state: State::Blank,
            folded: State::Line,
            ping: 0,
            bad_length: false,
            length: None,
            value: 0,
            seen: 0,
            head: 0,
            head_limit: bounded(limits.head),
            message_limit: bounded(limits.message),
        }
    }

    /// Whether a message has begun and not ended.
    pub fn inside(&self) -> bool {
        self.state != State::Blank
    }

    /// Looks at the next bytes of the stream; returns how many were used (all of them with [`Step::More`]) and what
    /// they meant. To be called again with the rest.
    pub fn step(&mut self, input: &[u8]) -> (usize, Step) {
        if self.state == State::Blank {
            if let Some(blank) = self.blanks(input) {
                return blank;
            }
        }
        let mut used = 0;
        while used < input.len() {
            let rest = &input[used..];
            if self.state == State::Body {
                let missing = self.total() - self.seen as usize;
                let here = missing.min(rest.len());
                self.seen += here as u32;
                used += here;
                if here == missing {
                    return (used, self.complete());
                }
                break;
            }
            // Not more than one byte beyond the limit is looked at, however long the input is.
            let room = (self.head_limit - self.seen) as usize;
            if room == 0 {
                return (used, self.broken(FrameError::HeadTooLong, 0));
            }
            let rest = &rest[..rest.len().min(room)];
            let taken = self.head_bytes(rest);
            self.seen += taken as u32;
            used += taken;
            match self.state {
                State::Broken => return (used, self.broken(FrameError::Garbage, 0)),
                State::Body => {
                    if let Some(step) = self.head_done() {
                        return (used, step);
                    }
                }
                _ => {}
            }
        }
        (used, Step::More)
    }

    /// Line ends between messages; `None` when a message begins at once.
    fn blanks(&mut self, input: &[u8]) -> Option<(usize, Step)> {
        let mut pings = 0;
        let mut len = 0;
        for &byte in input {
            match byte {
                b'\r' => self.ping = if self.ping == 2 { 3 } else { 1 },
                b'\n' if self.ping == 1 => self.ping = 2,
                b'\n' if self.ping == 3 => {
                    self.ping = 0;
                    pings += 1;
                }
                b'\n' => self.ping = 0,
                _ => {
                    self.ping = 0;
                    self.begin();
                    break;
                }
            }
            len += 1;
        }
        (len > 0).then_some((len, Step::Blank { len, pings }))
    }

    fn begin(&mut self) {
        self.state = State::First;
        self.folded = State::Line;
        self.bad_length = false;
        self.length = None;
        self.seen = 0;
        self.head = 0;
    }

    /// One stretch of the head: a byte, or all that is left of a line that does not matter. Returns what it took.
    fn head_bytes(&mut self, rest: &[u8]) -> usize {
        let byte = rest[0];
        match self.state {
            State::Line => {
                return match memchr::memchr(b'\n', rest) {
                    Some(at) => {
                        self.state = State::LineStart;
                        at + 1
                    }
                    None => rest.len(),
                };
            }
            // A token's character (RFC 3261 section 25.1).
            State::First => {
                let fits = byte.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&byte);
                self.state = if fits { State::Line } else { State::Broken };
            }
            State::LineStart => self.line_start(byte),
            State::BlankLine => {
                self.state = match byte {
                    b'\n' => State::Body,
                    // A CR alone at the start of a line ends nothing.
                    _ => {
                        self.folded = State::Line;
                        State::Line
                    }
                };
            }
            State::Name(at) => {
                if byte.to_ascii_lowercase() == NAME[at as usize] {
                    let next = at as usize + 1;
                    self.state = if next == NAME.len() { State::Colon } else { State::Name(next as u8) };
                } else {
                    self.other(byte);
                }
            }
            State::Colon => match byte {
                // A line folded before the colon is not in the grammar, but some parsers take it: so does this one, for
                // who reads a length that the other does not see can be made to take a body for a request.
                b' ' | b'\t' | b'\r' => {}
                b'\n' => {
                    self.folded = State::Colon;
                    self.state = State::LineStart;
                }
                b':' => {
                    self.state = State::BeforeValue;
                    self.value = 0;
                }
                _ => self.other(byte),
            },
            State::BeforeValue | State::Value | State::AfterValue => self.value_byte(byte),
            State::Blank | State::Body | State::Broken => {}
        }
        1
    }

    fn line_start(&mut self, byte: u8) {
        if matches!(byte, b' ' | b'\t') {
            self.state = self.folded;
            if self.state == State::Value {
                self.state = State::AfterValue;
            }
            return;
        }
        self.end_length();
        match byte {
            b'c' | b'C' => self.state = State::Name(1),
            b'l' | b'L' => self.state = State::Colon,
            b'\r' => self.state = State::BlankLine,
            b'\n' => self.state = State::Body,
            _ => self.state = State::Line,
        }
    }

    /// The line is another header's.
    fn other(&mut self, byte: u8) {
        self.state = if byte == b'\n' { State::LineStart } else { State::Line };
    }

    fn value_byte(&mut self, byte: u8) {
        match (self.state, byte) {
            (_, b'\n') => {
                self.folded = self.state;
                self.state = State::LineStart;
            }
            (State::BeforeValue, b' ' | b'\t' | b'\r') => {}
            (State::Value | State::AfterValue, b' ' | b'\t' | b'\r') => self.state = State::AfterValue,
            (State::BeforeValue | State::Value, b'0'..=b'9') => {
                // Saturating: what does not fit is above every limit.
                self.value = self.value.saturating_mul(10).saturating_add(u32::from(byte - b'0'));
                self.state = State::Value;
            }
            _ => {
                self.bad_length = true;
                self.state = State::Line;
            }
        }
    }

    /// The line after a Content-Length begins: its value is complete.
    fn end_length(&mut self) {
        match self.folded {
            State::Value | State::AfterValue => match self.length {
                Some(earlier) if earlier != self.value => self.bad_length = true,
                _ => self.length = Some(self.value),
            },
            State::BeforeValue => self.bad_length = true,
            _ => {}
        }
        self.folded = State::Line;
    }

    /// The blank line has been seen.
    fn head_done(&mut self) -> Option<Step> {
        self.head = self.seen;
        let head = self.head as usize;
        match self.length {
            _ if self.bad_length => Some(self.broken(FrameError::BadLength, head)),
            None => Some(self.broken(FrameError::NoLength, head)),
            Some(length) if length > self.message_limit.saturating_sub(self.head) => {
                Some(self.broken(FrameError::MessageTooLong, head))
            }
            Some(0) => Some(self.complete()),
            Some(_) => None,
        }
    }

    fn total(&self) -> usize {
        self.head as usize + self.length.unwrap_or(0) as usize
    }

    fn complete(&mut self) -> Step {
        self.state = State::Blank;
        self.ping = 0;
        Step::Message { len: self.total() }
    }

    fn broken(&mut self, error: FrameError, head: usize) -> Step {
        self.state = State::Broken;
        Step::Broken { error, head }
    }
}
