//! The stable fuzz driver: the corpus as it is, cut at every byte, changed byte by byte, and spliced, by a generator with
//! a fixed seed; and arbitrary bytes from proptest. `PARTYLINE_FUZZ_ROUNDS` multiplies the rounds.

#[path = "common/corpus.rs"]
mod common;
mod sip_exercise;

use common::{Random, corpus, rounds};
use proptest::prelude::*;
use sip_exercise::exercise;

#[test]
fn cut_at_every_byte() {
    for file in corpus("sip", 50) {
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
    let files = corpus("sip", 50);
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
    assert!((3_000..27_000).contains(&(sound / rounds() as u32)), "{sound}");
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
    #![proptest_config(ProptestConfig { cases: 2_000 * rounds() as u32, failure_persistence: None, ..ProptestConfig::default() })]

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
