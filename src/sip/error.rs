//! Why a message or a piece of one could not be read.

use super::HeaderName;

/// What is wrong with a message, a header or a URI. Small and `Copy`; [`ParseError::text`] is fit for the reason phrase
/// of a 400 and for a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParseError {
    /// Nothing but line ends, or nothing at all: a keep-alive (RFC 5626 section 3.5.1), to be dropped without a word.
    KeepAlive,
    BadStartLine,
    /// Not SIP/2.0: 505.
    BadVersion,
    /// The header section does not fit 65,535 bytes: 513.
    TooLarge,
    TooManyHeaders,
    /// No empty line ends the header section.
    NoEndOfHeaders,
    BadHeaderLine,
    /// A CR without LF: to some receivers a line end, to others not.
    BareCr,
    /// The body is shorter than Content-Length says.
    Truncated,
    BadContentLength,
    Missing(HeaderName),
    /// More than one of a header that may stand only once.
    Repeated(HeaderName),
    BadCSeq,
    /// The method of CSeq is not the request's.
    CSeqMismatch,
    BadMaxForwards,
    BadCallId,
    BadVia,
    BadAddress,
    BadParameter,
    UnbalancedQuote,
    BadUri,
    BadExpires,
    BadQ,
    /// An address-of-record that is longer than a key may be.
    KeyTooLong,
}

impl ParseError {
    pub fn text(self) -> &'static str {
        match self {
            ParseError::KeepAlive => "Keep-Alive",
            ParseError::BadStartLine => "Bad Start Line",
            ParseError::BadVersion => "Version Not Supported",
            ParseError::TooLarge => "Message Too Large",
            ParseError::TooManyHeaders => "Too Many Headers",
            ParseError::NoEndOfHeaders => "Incomplete Header Section",
            ParseError::BadHeaderLine => "Bad Header Line",
            ParseError::BareCr => "CR Without LF",
            ParseError::Truncated => "Body Shorter Than Content-Length",
            ParseError::BadContentLength => "Bad Content-Length",
            ParseError::Missing(HeaderName::Via) => "Missing Via",
            ParseError::Missing(HeaderName::From) => "Missing From",
            ParseError::Missing(HeaderName::To) => "Missing To",
            ParseError::Missing(HeaderName::CallId) => "Missing Call-ID",
            ParseError::Missing(HeaderName::CSeq) => "Missing CSeq",
            ParseError::Missing(_) => "Missing Header",
            ParseError::Repeated(_) => "Header Repeated",
            ParseError::BadCSeq => "Bad CSeq",
            ParseError::CSeqMismatch => "CSeq Method Mismatch",
            ParseError::BadMaxForwards => "Bad Max-Forwards",
            ParseError::BadCallId => "Bad Call-ID",
            ParseError::BadVia => "Bad Via",
            ParseError::BadAddress => "Bad Address",
            ParseError::BadParameter => "Bad Parameter",
            ParseError::UnbalancedQuote => "Unbalanced Quote",
            ParseError::BadUri => "Bad URI",
            ParseError::BadExpires => "Bad Expires",
            ParseError::BadQ => "Bad q Value",
            ParseError::KeyTooLong => "Address Too Long",
        }
    }

    /// The status of the answer, if the request can be answered at all: see [`super::Message::salvage`]. 0 for what gets
    /// no answer.
    pub fn status(self) -> u16 {
        match self {
            ParseError::KeepAlive => 0,
            ParseError::BadVersion => 505,
            ParseError::TooLarge => 513,
            _ => 400,
        }
    }
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for ParseError {}
