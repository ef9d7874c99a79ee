//! The framer beside a plain reading of the same rules over the whole buffer: what the fuzz drivers of the framer run.

use partyline::net::{FrameError, FramerLimits, SipFramer, Step};

const LIMITS: FramerLimits = FramerLimits { head: 400, message: 600 };

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Message(Vec<u8>),
    Broken(FrameError, Vec<u8>),
}

/// The rules read plainly: the whole stream at once, lines unfolded, no state.
fn plainly(mut stream: &[u8]) -> (Vec<Seen>, usize) {
    let (mut seen, mut pings) = (Vec::new(), 0);
    loop {
        let blank = stream.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        let mut blanks = &stream[..blank];
        while let Some(at) = blanks.windows(4).position(|w| w == b"\r\n\r\n") {
            pings += 1;
            blanks = &blanks[at + 4..];
        }
        stream = &stream[blank..];
        let Some(first) = stream.first() else { return (seen, pings) };
        if !first.is_ascii_alphanumeric() && !b"-.!%*_+`'~".contains(first) {
            seen.push(Seen::Broken(FrameError::Garbage, Vec::new()));
            return (seen, pings);
        }
        // Lines up to the blank one.
        let mut lines: Vec<&[u8]> = Vec::new();
        let mut head = None;
        let mut at = 0;
        while let Some(end) = stream[at..].iter().position(|b| *b == b'\n') {
            let line = &stream[at..at + end];
            at += end + 1;
            if !lines.is_empty() && (line.is_empty() || line == b"\r") {
                head = Some(at);
                break;
            }
            lines.push(line);
        }
        let head = match head {
            Some(head) if head <= LIMITS.head => head,
            _ if stream.len() > LIMITS.head => {
                seen.push(Seen::Broken(FrameError::HeadTooLong, Vec::new()));
                return (seen, pings);
            }
            Some(_) => unreachable!("a head longer than the stream"),
            None => return (seen, pings),
        };
        let mut headers: Vec<Vec<u8>> = Vec::new();
        for line in &lines[1..] {
            if matches!(line.first(), Some(b' ' | b'\t')) {
                if let Some(last) = headers.last_mut() {
                    last.push(b' ');
                    last.extend_from_slice(line);
                }
            } else {
                headers.push(line.to_vec());
            }
        }
        let (mut length, mut bad) = (None, false);
        for header in &headers {
            let text: String = header.iter().map(|b| *b as char).collect();
            let Some((name, value)) = text.split_once(':') else { continue };
            let name = name.trim_end_matches([' ', '\t', '\r']).to_ascii_lowercase();
            if name != "l" && name != "content-length" {
                continue;
            }
            let value = value.trim_matches([' ', '\t', '\r']);
            if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
                bad = true;
                continue;
            }
            let value = value.parse::<u64>().unwrap_or(u64::MAX).min(u64::from(u32::MAX));
            if length.is_some_and(|earlier| earlier != value) {
                bad = true;
            }
            length = Some(length.unwrap_or(value));
        }
        let error = match length {
            _ if bad => Some(FrameError::BadLength),
            None => Some(FrameError::NoLength),
            Some(length) if length > (LIMITS.message - head) as u64 => Some(FrameError::MessageTooLong),
            Some(_) => None,
        };
        if let Some(error) = error {
            seen.push(Seen::Broken(error, stream[..head].to_vec()));
            return (seen, pings);
        }
        let total = head + length.unwrap_or(0) as usize;
        if stream.len() < total {
            return (seen, pings);
        }
        seen.push(Seen::Message(stream[..total].to_vec()));
        stream = &stream[total..];
    }
}

fn framed(stream: &[u8], mut cut: impl FnMut(usize) -> usize) -> (Vec<Seen>, usize) {
    let mut framer = SipFramer::new(LIMITS);
    let (mut seen, mut pings, mut kept) = (Vec::new(), 0, Vec::new());
    let mut rest = stream;
    while !rest.is_empty() {
        let piece = &rest[..cut(rest.len()).clamp(1, rest.len())];
        let (used, step) = framer.step(piece);
        assert!(used <= piece.len());
        kept.extend_from_slice(&rest[..used]);
        assert!(kept.len() <= LIMITS.message + 1, "kept {}", kept.len());
        rest = &rest[used..];
        match step {
            Step::More => assert_eq!(used, piece.len()),
            Step::Blank { len, pings: n } => {
                assert_eq!(len, kept.len());
                kept.clear();
                pings += n;
            }
            Step::Message { len } => {
                assert_eq!(len, kept.len());
                seen.push(Seen::Message(std::mem::take(&mut kept)));
            }
            Step::Broken { error, head } => {
                seen.push(Seen::Broken(error, kept[..head].to_vec()));
                return (seen, pings);
            }
        }
    }
    (seen, pings)
}

/// `cuts` says where the stream is cut in the third run: its bytes in turn, plus one.
pub fn exercise(stream: &[u8], cuts: &[u8]) {
    let want = plainly(stream);
    assert_eq!(framed(stream, |n| n), want, "at once: {:?}", String::from_utf8_lossy(stream));
    assert_eq!(framed(stream, |_| 1), want, "byte by byte: {:?}", String::from_utf8_lossy(stream));
    if !cuts.is_empty() {
        let mut turn = cuts.iter().cycle();
        let cut = |n: usize| turn.next().map_or(1, |cut| usize::from(*cut) % n + 1);
        assert_eq!(framed(stream, cut), want, "cut: {:?}", String::from_utf8_lossy(stream));
    }
}
