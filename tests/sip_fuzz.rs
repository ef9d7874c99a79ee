//! The stable fuzz driver: the corpus as it is, cut at every byte, changed byte by byte, and spliced, by a generator with
//! a fixed seed; and arbitrary bytes from proptest. `PARTYLINE_FUZZ_ROUNDS` multiplies the rounds.

mod sip_exercise;

use proptest::prelude::*;
use sip_exercise::exercise;

fn corpus() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/sip");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    // The order of a directory is not the same everywhere, and the seed has to lead to the same inputs.
    paths.sort();
    let files: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(files.len() >= 50, "the corpus is there");
    files
}

fn rounds() -> u32 {
    std::env::var("PARTYLINE_FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

#[test]
fn cut_at_every_byte() {
    for file in corpus() {
        let head = file.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        for len in 0..=file.len() {
            let sound = exercise(&file[..len]);
            assert!(!sound || len >= head, "a header section without an end");
        }
    }
}

/// Bytes that mean something to a parser of SIP, so that a change is seldom lost on it.
const TELLING: &[u8] = b"\r\n\t \"<>;,:@=?&%\\/[]()*+-.0919azAZ\0\x7f\x80\xff";
const PIECES: &[&[u8]] = &[
    b"\r\n ",
    b"\r\n\r\n",
    b"\n\n",
    b"\"",
    b"\\\"",
    b"<sip:",
    b">;",
    b";;",
    b",,",
    b"%00",
    b"%4",
    b"[::1]",
    b"*",
    b"\r\nm: *",
    b";expires=",
    b";q=",
    b";rport",
    b";received=",
    b";branch=",
    b";tag=",
    b"4294967296",
    b"18446744073709551616",
    b"-1",
    b"\r\nVia: ",
    b"\r\nl: 0",
    b"SIP/2.0",
    b"sips:",
    b"tel:",
    b"Digest ",
    b"qop=auth",
    b"nc=0000000f",
];

#[test]
fn changed_and_spliced() {
    let files = corpus();
    let mut random = Random(4475);
    let mut sound = 0;
    for _ in 0..30_000 * rounds() {
        let mut input = files[random.below(files.len())].clone();
        for _ in 0..1 + random.below(6) {
            let at = random.below(input.len());
            match random.below(6) {
                0 if at < input.len() => input[at] = TELLING[random.below(TELLING.len())],
                1 if at < input.len() => input[at] = random.next() as u8,
                2 => {
                    let piece = PIECES[random.below(PIECES.len())];
                    input.splice(at..at, piece.iter().copied());
                }
                3 => {
                    let end = (at + random.below(40)).min(input.len());
                    input.drain(at..end);
                }
                4 => {
                    let other = &files[random.below(files.len())];
                    let from = random.below(other.len());
                    let to = (from + random.below(200)).min(other.len());
                    input.splice(at..at, other[from..to].iter().copied());
                }
                _ => {
                    let end = (at + random.below(100)).min(input.len());
                    let twice = input[at..end].to_vec();
                    input.splice(at..at, twice);
                }
            }
        }
        sound += u32::from(exercise(&input));
    }
    // Both ways were gone: changes that the parser takes, and changes that it refuses.
    assert!((3_000..27_000).contains(&(sound / rounds())), "{sound}");
}

#[test]
fn sixty_kilobytes_of_one_thing() {
    let head = "REGISTER sip:h SIP/2.0\r\nv: SIP/2.0/UDP h;branch=z9hG4bK1\r\nf: <sip:a@h>;tag=1\r\nt: <sip:a@h>\r\ni: 1\r\nCSeq: 1 REGISTER\r\n";
    for piece in PIECES.iter().copied().chain(TELLING.chunks(1)).chain([&b"m: <sip:a@h>\r\n"[..], b"a", b"\xc3\xa9"]) {
        let body = piece.repeat(60_000 / piece.len());
        for name in ["m: ", "m: <sip:a@h;", "m: \"", "Via: ", "Path: ", "Authorization: Digest ", "X: ", ""] {
            let mut input = head.as_bytes().to_vec();
            input.extend_from_slice(name.as_bytes());
            input.extend_from_slice(&body);
            input.extend_from_slice(b"\r\n\r\n");
            exercise(&input);
        }
        exercise(&body);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000 * rounds(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes(input in proptest::collection::vec(any::<u8>(), 0..600)) {
        exercise(&input);
    }

    #[test]
    fn arbitrary_telling_bytes(picks in proptest::collection::vec(any::<proptest::sample::Index>(), 0..300)) {
        let input: Vec<u8> = picks.iter().map(|pick| TELLING[pick.index(TELLING.len())]).collect();
        exercise(&input);
    }

    #[test]
    fn arbitrary_lines(picks in proptest::collection::vec(any::<proptest::sample::Index>(), 0..60)) {
        let input: Vec<u8> = picks.iter().flat_map(|pick| PIECES[pick.index(PIECES.len())]).copied().collect();
        exercise(&input);
    }
}
