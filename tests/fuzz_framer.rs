//! The framer under random and mutated streams, compared with a plain reading of the same rules over the whole buffer.
//! The corpus is `tests/corpus/framer/`; `PARTYLINE_FUZZ_CASES` sets how many mutations of it are tried (default
//! 20,000), `PARTYLINE_FUZZ_SEED` where they start.

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

/// xorshift64*: the same cases on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound.max(1)
    }
}

fn check(stream: &[u8], random: &mut Random) {
    let want = plainly(stream);
    assert_eq!(framed(stream, |n| n), want, "at once: {:?}", String::from_utf8_lossy(stream));
    assert_eq!(framed(stream, |_| 1), want, "byte by byte: {:?}", String::from_utf8_lossy(stream));
    assert_eq!(framed(stream, |n| random.below(n) + 1), want, "cut: {:?}", String::from_utf8_lossy(stream));
}

fn corpus() -> Vec<Vec<u8>> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/framer");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let all: Vec<_> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(!all.is_empty());
    all
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn the_corpus_and_mutations_of_it_read_plainly() {
    const SPICE: [&[u8]; 12] = [
        b"\r\n",
        b"\n",
        b"\r\n\r\n",
        b"l: 3\r\n",
        b"Content-Length: 12\r\n",
        b" ",
        b"\t",
        b":",
        b"\r",
        b"0",
        b"9999999999",
        b"\0",
    ];
    let corpus = corpus();
    let mut random = Random(setting("PARTYLINE_FUZZ_SEED", 0x5eed) | 1);
    for stream in &corpus {
        check(stream, &mut random);
    }
    for _ in 0..setting("PARTYLINE_FUZZ_CASES", 20_000) {
        let mut stream = corpus[random.below(corpus.len())].clone();
        if random.below(3) == 0 {
            let other = &corpus[random.below(corpus.len())];
            let at = random.below(stream.len() + 1);
            stream.splice(at..at, other[random.below(other.len() + 1)..].iter().copied());
        }
        for _ in 0..random.below(6) {
            let at = random.below(stream.len() + 1);
            match random.below(4) {
                0 => {
                    let spice = SPICE[random.below(SPICE.len())];
                    stream.splice(at..at, spice.iter().copied());
                }
                1 => stream.truncate(at),
                2 if at < stream.len() => stream[at] = random.next() as u8,
                _ => {
                    let end = (at + random.below(8)).min(stream.len());
                    stream.drain(at..end);
                }
            }
        }
        check(&stream, &mut random);
    }
}
