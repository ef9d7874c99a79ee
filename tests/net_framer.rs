//! The framer against streams whose messages are known, cut anywhere.

use partyline::net::{FrameError, FramerLimits, SipFramer, Step};
use proptest::prelude::*;

/// Messages, pings, and how the stream broke.
type Frames = (Vec<Vec<u8>>, usize, Option<(FrameError, Vec<u8>)>);

/// Feeds a stream in pieces.
fn frames(limits: FramerLimits, pieces: &[&[u8]]) -> Frames {
    let mut framer = SipFramer::new(limits);
    let (mut messages, mut pings) = (Vec::new(), 0);
    let mut kept: Vec<u8> = Vec::new();
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() {
            let (used, step) = framer.step(rest);
            kept.extend_from_slice(&rest[..used]);
            rest = &rest[used..];
            match step {
                Step::More => assert!(rest.is_empty()),
                Step::Blank { len, pings: n } => {
                    assert_eq!(len, kept.len());
                    kept.clear();
                    pings += n;
                }
                Step::Message { len } => {
                    assert_eq!(len, kept.len());
                    messages.push(std::mem::take(&mut kept));
                }
                Step::Broken { error, head } => return (messages, pings, Some((error, kept[..head].to_vec()))),
            }
        }
    }
    (messages, pings, None)
}

fn whole(stream: &[u8]) -> Frames {
    frames(FramerLimits::default(), &[stream])
}

fn length_line() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "Content-Length: {}\r\n",
        "content-length:{}\r\n",
        "CONTENT-LENGTH \t: \t{} \t\r\n",
        "l: {}\r\n",
        "L:{}\r\n",
        "l :\r\n {}\r\n",
        "l\r\n : {}\r\n",
        "Content-Length:\r\n\t \r\n {}\r\n",
        "Content-Length: {}\r\n \r\n",
        "Content-Length: 00{}\r\n",
        "Content-Length: {}\nX: y\n",
        "l: {}\r\nContent-Length: {}\r\n",
    ])
}

fn other_line() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "Via: SIP/2.0/TCP 127.0.0.1;branch=z9hG4bK1\r\n",
        "Content-Type: text/plain\r\n",
        "Content-Lengthy: 77\r\n",
        "Content-Len: 78\r\n",
        "lx: 79\r\n",
        "X-Content-Length: 80\r\n",
        "Subject: folded\r\n Content-Length: 81\r\n",
        "c: text/plain\r\n",
        "Call-ID: l: 82\r\n",
        "X: \rl: 83\r\n",
        "Contact: <sip:a@b>\n",
        "C\r\n",
        "\rl: 84\r\n",
    ])
}

prop_compose! {
    fn message()(
        start in prop::sample::select(vec!["REGISTER sip:example.com SIP/2.0\r\n", "SIP/2.0 200 OK\r\n", "x y\n"]),
        before in prop::collection::vec(other_line(), 0..4),
        length in length_line(),
        after in prop::collection::vec(other_line(), 0..4),
        end in prop::sample::select(vec!["\r\n", "\n"]),
        body in prop_oneof![Just(Vec::new()), prop::collection::vec(any::<u8>(), 1..300)],
    ) -> Vec<u8> {
        let mut all = String::from(start);
        all.extend(before);
        all += &length.replace("{}", &body.len().to_string());
        all.extend(after);
        all += end;
        let mut all = all.into_bytes();
        all.extend(body);
        all
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_gives_the_messages_that_were_put_in(
        // Each message with the pings before it, and perhaps a single CRLF as well.
        parts in prop::collection::vec((message(), 0usize..3, any::<bool>()), 1..5),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let (mut stream, mut want_pings) = (Vec::new(), 0);
        for (message, pings, single) in &parts {
            for _ in 0..*pings {
                stream.extend_from_slice(b"\r\n\r\n");
            }
            if *single {
                stream.extend_from_slice(b"\r\n");
            }
            want_pings += pings;
            stream.extend_from_slice(message);
        }
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        at.extend([0, stream.len()]);
        at.sort_unstable();
        let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
        let (messages, pings, end) = frames(FramerLimits::default(), &pieces);
        prop_assert_eq!(end, None);
        prop_assert_eq!(messages, parts.into_iter().map(|(message, _, _)| message).collect::<Vec<_>>());
        prop_assert_eq!(pings, want_pings);
    }

    #[test]
    fn byte_by_byte_is_the_same_as_at_once_for_anything(stream in prop::collection::vec(
        prop_oneof![any::<u8>(), prop::sample::select(b"\r\n\r\nlL: 0123cC".to_vec())], 0..200)
    ) {
        let limits = FramerLimits { head: 100, message: 120 };
        let single: Vec<&[u8]> = stream.chunks(1).collect();
        prop_assert_eq!(frames(limits, &single), frames(limits, &[&stream]));
    }
}

fn broken(stream: &str) -> (FrameError, String) {
    let (_, _, end) = whole(stream.as_bytes());
    let (error, head) = end.unwrap_or_else(|| panic!("{stream:?} is not broken"));
    (error, String::from_utf8(head).unwrap())
}

#[test]
fn a_broken_length_leaves_a_head_that_can_be_answered() {
    for (line, error) in [
        ("", FrameError::NoLength),
        ("l: -1\r\n", FrameError::BadLength),
        ("l: 5 5\r\n", FrameError::BadLength),
        ("l: 5\r\n 5\r\n", FrameError::BadLength),
        ("l:\r\n", FrameError::BadLength),
        ("l: 5, 5\r\n", FrameError::BadLength),
        ("l: 5\r\nContent-Length: 6\r\n", FrameError::BadLength),
        ("l: +5\r\n", FrameError::BadLength),
        ("l: 0x5\r\n", FrameError::BadLength),
        ("l: 70000\r\n", FrameError::MessageTooLong),
        ("l: 4294967296\r\n", FrameError::MessageTooLong),
        ("l: 99999999999999999999999999\r\n", FrameError::MessageTooLong),
    ] {
        let head = format!("REGISTER sip:a SIP/2.0\r\n{line}X: y\r\n\r\n");
        assert_eq!(broken(&format!("{head}body")), (error, head), "{line:?}");
    }
}

#[test]
fn garbage_is_known_by_its_first_byte() {
    for stream in ["\x16\x03\x01", "\0", " REGISTER", "\r\n\r\n{", "<xml>"] {
        assert_eq!(broken(stream), (FrameError::Garbage, String::new()), "{stream:?}");
    }
    // After a message as well.
    assert_eq!(broken("OPTIONS a SIP/2.0\r\nl: 0\r\n\r\n\u{1}").0, FrameError::Garbage);
}

#[test]
fn limits_hold_to_the_byte() {
    let limits = FramerLimits { head: 30, message: 40 };
    let message = |head: usize, body: usize| {
        let mut all = format!("M x\r\nl: {body}\r\n");
        while all.len() < head - 2 {
            all.push('X');
        }
        // The last header line has to end as well.
        all.replace_range(all.len() - 2.., "\r\n");
        all + "\r\n" + &"b".repeat(body)
    };
    assert_eq!(frames(limits, &[message(30, 10).as_bytes()]).0.len(), 1);
    assert_eq!(frames(limits, &[message(31, 0).as_bytes()]).2, Some((FrameError::HeadTooLong, Vec::new())));
    assert_eq!(frames(limits, &[message(30, 11).as_bytes()]).2.unwrap().0, FrameError::MessageTooLong);
    // A head without end is refused at the limit, not kept.
    let endless = [b'M'; 1000];
    let mut framer = SipFramer::new(limits);
    let (used, step) = (0..).map(|i| framer.step(&endless[i..])).find(|(_, s)| *s != Step::More).unwrap();
    assert!(used <= 31);
    assert_eq!(step, Step::Broken { error: FrameError::HeadTooLong, head: 0 });
}

#[test]
fn pings_are_counted_once() {
    for (stream, pings) in [
        ("\r\n", 0),
        ("\r\n\r\n", 1),
        ("\r\n\r\n\r\n", 1),
        ("\r\n\r\n\r\n\r\n", 2),
        ("\n\n\n\n", 0),
        ("\r\r\n\r\n", 1),
        ("\r\n\rX", 0),
    ] {
        assert_eq!(whole(stream.as_bytes()).1, pings, "{stream:?}");
    }
}
