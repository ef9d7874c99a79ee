//! Names that the library knows: request methods and header names, with the compact forms of the IANA registry.
//!
//! Recognising a name costs one switch on its length and one or two word comparisons; nothing is hashed or copied.

/// A request method (case-sensitive, RFC 3261 section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method<'a> {
    Invite,
    Ack,
    Bye,
    Cancel,
    Register,
    Options,
    Subscribe,
    Notify,
    Publish,
    Message,
    Info,
    Prack,
    Update,
    Refer,
    Other(&'a [u8]),
}

impl<'a> Method<'a> {
    pub fn from_bytes(name: &'a [u8]) -> Self {
        match name {
            b"REGISTER" => Method::Register,
            b"INVITE" => Method::Invite,
            b"ACK" => Method::Ack,
            b"BYE" => Method::Bye,
            b"CANCEL" => Method::Cancel,
            b"OPTIONS" => Method::Options,
            b"SUBSCRIBE" => Method::Subscribe,
            b"NOTIFY" => Method::Notify,
            b"PUBLISH" => Method::Publish,
            b"MESSAGE" => Method::Message,
            b"INFO" => Method::Info,
            b"PRACK" => Method::Prack,
            b"UPDATE" => Method::Update,
            b"REFER" => Method::Refer,
            _ => Method::Other(name),
        }
    }

    pub fn as_bytes(&self) -> &'a [u8] {
        match self {
            Method::Invite => b"INVITE",
            Method::Ack => b"ACK",
            Method::Bye => b"BYE",
            Method::Cancel => b"CANCEL",
            Method::Register => b"REGISTER",
            Method::Options => b"OPTIONS",
            Method::Subscribe => b"SUBSCRIBE",
            Method::Notify => b"NOTIFY",
            Method::Publish => b"PUBLISH",
            Method::Message => b"MESSAGE",
            Method::Info => b"INFO",
            Method::Prack => b"PRACK",
            Method::Update => b"UPDATE",
            Method::Refer => b"REFER",
            Method::Other(name) => name,
        }
    }
}

/// Two words that tell a name from any other of its length, letters folded to lower case: the ends, overlapping in the
/// middle. Names of more than 16 bytes need their middle compared as well. Setting bit 5 folds letters and leaves `-`
/// alone; the control characters that it maps onto other bytes never come here, for a name is checked to be a token.
const fn fold(name: &[u8]) -> (u64, u64) {
    const FOLD: u64 = 0x2020_2020_2020_2020;
    let len = name.len();
    if len >= 8 {
        if let (Some(first), Some(last)) = (name.first_chunk::<8>(), name.last_chunk::<8>()) {
            return (u64::from_le_bytes(*first) | FOLD, u64::from_le_bytes(*last) | FOLD);
        }
    }
    if let (Some(first), Some(last)) = (name.first_chunk::<4>(), name.last_chunk::<4>()) {
        return (u32::from_le_bytes(*first) as u64 | FOLD, u32::from_le_bytes(*last) as u64 | FOLD);
    }
    if let (Some(first), Some(last)) = (name.first_chunk::<2>(), name.last_chunk::<2>()) {
        return (u16::from_le_bytes(*first) as u64 | FOLD, u16::from_le_bytes(*last) as u64 | FOLD);
    }
    (len as u64, 0)
}

macro_rules! names {
    ($($variant:ident $text:literal $($compact:literal)?,)*) => {
        /// A header name. `Other` is one that the library has no use for; its text is in the message.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum HeaderName { $($variant,)* Other }

        impl HeaderName {
            /// How many names there are, `Other` included: the size of a table indexed by `name as usize`.
            pub const COUNT: usize = HeaderName::Other as usize + 1;
            pub const ALL: [HeaderName; HeaderName::COUNT] = [$(HeaderName::$variant,)* HeaderName::Other];

            /// The long form as written in answers; empty for `Other`.
            pub const fn as_bytes(self) -> &'static [u8] {
                match self { $(HeaderName::$variant => $text.as_bytes(),)* HeaderName::Other => b"" }
            }

            /// The one-letter form of the IANA registry, if it has one.
            pub const fn compact(self) -> Option<u8> {
                match self { $($(HeaderName::$variant => Some($compact),)?)* _ => None }
            }
        }

        const FOLDED: [(u64, u64); HeaderName::COUNT] = [$(fold($text.as_bytes()),)* (0, 0)];

        const COMPACT: [HeaderName; 256] = {
            let mut table = [HeaderName::Other; 256];
            $($(
                table[$compact as usize] = HeaderName::$variant;
                table[($compact as u8).to_ascii_uppercase() as usize] = HeaderName::$variant;
            )?)*
            table
        };
    };
}

names! {
    Via "Via" b'v',
    From "From" b'f',
    To "To" b't',
    CallId "Call-ID" b'i',
    CSeq "CSeq",
    Contact "Contact" b'm',
    Expires "Expires",
    MinExpires "Min-Expires",
    MaxForwards "Max-Forwards",
    ContentLength "Content-Length" b'l',
    ContentType "Content-Type" b'c',
    ContentEncoding "Content-Encoding" b'e',
    Route "Route",
    RecordRoute "Record-Route",
    Path "Path",
    ServiceRoute "Service-Route",
    Supported "Supported" b'k',
    Require "Require",
    ProxyRequire "Proxy-Require",
    Unsupported "Unsupported",
    Authorization "Authorization",
    ProxyAuthorization "Proxy-Authorization",
    WwwAuthenticate "WWW-Authenticate",
    ProxyAuthenticate "Proxy-Authenticate",
    AuthenticationInfo "Authentication-Info",
    UserAgent "User-Agent",
    Server "Server",
    Allow "Allow",
    AllowEvents "Allow-Events" b'u',
    Accept "Accept",
    Event "Event" b'o',
    Date "Date",
    Timestamp "Timestamp",
    RetryAfter "Retry-After",
    Warning "Warning",
    Subject "Subject" b's',
    ReferTo "Refer-To" b'r',
    ReferredBy "Referred-By" b'b',
    AcceptContact "Accept-Contact" b'a',
    RejectContact "Reject-Contact" b'j',
    RequestDisposition "Request-Disposition" b'd',
    SessionExpires "Session-Expires" b'x',
    MinSe "Min-SE",
    SubscriptionState "Subscription-State",
    SipEtag "SIP-ETag",
    SipIfMatch "SIP-If-Match",
    FlowTimer "Flow-Timer",
    Identity "Identity" b'y',
    IdentityInfo "Identity-Info" b'n',
}

impl HeaderName {
    /// The header that `name` (a token, long or compact, any case) stands for.
    #[inline]
    pub fn recognise(name: &[u8]) -> HeaderName {
        use HeaderName::*;
        let first = match name.first() {
            Some(&first) => first | 0x20,
            None => return Other,
        };
        let guess = match (name.len(), first) {
            (1, _) => return name.first().map_or(Other, |&byte| COMPACT[byte as usize]),
            (2, b't') => To,
            (3, b'v') => Via,
            (4, b'f') => From,
            (4, b'c') => CSeq,
            (4, b'p') => Path,
            (4, b'd') => Date,
            (5, b'r') => Route,
            (5, b'a') => Allow,
            (5, b'e') => Event,
            (6, b'a') => Accept,
            (6, b's') => Server,
            (6, b'm') => MinSe,
            (7, b'c') => match name.get(1).map(|second| second | 0x20) {
                Some(b'a') => CallId,
                _ => Contact,
            },
            (7, b'e') => Expires,
            (7, b'r') => Require,
            (7, b's') => Subject,
            (7, b'w') => Warning,
            (8, b'r') => ReferTo,
            (8, b's') => SipEtag,
            (8, b'i') => Identity,
            (9, b's') => Supported,
            (9, b't') => Timestamp,
            (10, b'u') => UserAgent,
            (10, b'f') => FlowTimer,
            (11, b'm') => MinExpires,
            (11, b'u') => Unsupported,
            (11, b'r') => match name.get(2).map(|third| third | 0x20) {
                Some(b't') => RetryAfter,
                _ => ReferredBy,
            },
            (12, b'm') => MaxForwards,
            (12, b'c') => ContentType,
            (12, b'r') => RecordRoute,
            (12, b'a') => AllowEvents,
            (12, b's') => SipIfMatch,
            (13, b'a') => Authorization,
            (13, b'p') => ProxyRequire,
            (13, b's') => ServiceRoute,
            (13, b'i') => IdentityInfo,
            (14, b'c') => ContentLength,
            (14, b'a') => AcceptContact,
            (14, b'r') => RejectContact,
            (15, b's') => SessionExpires,
            (16, b'c') => ContentEncoding,
            (16, b'w') => WwwAuthenticate,
            (18, b'p') => ProxyAuthenticate,
            (18, b's') => SubscriptionState,
            (19, b'p') => ProxyAuthorization,
            (19, b'a') => AuthenticationInfo,
            (19, b'r') => RequestDisposition,
            _ => return Other,
        };
        let known = FOLDED[guess as usize];
        if fold(name) != known || (name.len() > 16 && !name.eq_ignore_ascii_case(guess.as_bytes())) {
            return Other;
        }
        guess
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_recognised_in_any_case_and_nothing_near_it() {
        for name in HeaderName::ALL {
            if name == HeaderName::Other {
                continue;
            }
            let text = name.as_bytes();
            assert_eq!(HeaderName::recognise(text), name);
            assert_eq!(HeaderName::recognise(&text.to_ascii_lowercase()), name);
            assert_eq!(HeaderName::recognise(&text.to_ascii_uppercase()), name);
            for at in 0..text.len() {
                let mut near = text.to_vec();
                near[at] = if near[at].eq_ignore_ascii_case(&b'q') { b'~' } else { b'q' };
                assert_eq!(HeaderName::recognise(&near), HeaderName::Other, "{}", String::from_utf8_lossy(&near));
            }
            if let Some(letter) = name.compact() {
                assert_eq!(HeaderName::recognise(&[letter]), name);
                assert_eq!(HeaderName::recognise(&[letter.to_ascii_uppercase()]), name);
            }
        }
    }

    #[test]
    fn compact_forms_are_those_of_the_registry() {
        let letters: Vec<u8> = (b'a'..=b'z').filter(|&c| HeaderName::recognise(&[c]) != HeaderName::Other).collect();
        assert_eq!(letters, b"abcdefijklmnorstuvxy");
        assert_eq!(HeaderName::recognise(b"g"), HeaderName::Other);
        assert_eq!(HeaderName::recognise(b""), HeaderName::Other);
    }

    #[test]
    fn methods_are_case_sensitive() {
        assert_eq!(Method::from_bytes(b"REGISTER"), Method::Register);
        assert_eq!(Method::from_bytes(b"register"), Method::Other(b"register"));
        for name in [&b"INVITE"[..], b"ACK", b"BYE", b"CANCEL", b"OPTIONS", b"SUBSCRIBE", b"NOTIFY", b"PUBLISH"] {
            assert!(!matches!(Method::from_bytes(name), Method::Other(_)));
            assert_eq!(Method::from_bytes(name).as_bytes(), name);
        }
    }
}
