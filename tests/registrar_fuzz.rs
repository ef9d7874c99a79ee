//! The stable fuzz drivers of REGISTER handling and of digest authentication: the corpus as it is, changed and spliced by a
//! generator with a fixed seed. `make fuzz` runs the same code over the same corpus. `PARTYLINE_FUZZ_ROUNDS` multiplies
//! the rounds.

mod auth_exercise;
#[path = "common/corpus.rs"]
mod common;
mod register_exercise;

use std::path::Path;

use common::{Random, corpus, rounds};

fn changed(files: &[Vec<u8>], pieces: &[&[u8]], random: &mut Random) -> Vec<u8> {
    let mut input = files[random.below(files.len())].clone();
    for _ in 0..1 + random.below(4) {
        let at = random.below(input.len());
        match random.below(5) {
            0 if at < input.len() => input[at] = random.next() as u8,
            1 => {
                let end = (at + random.below(30)).min(input.len());
                input.drain(at..end);
            }
            2 => {
                let other = &files[random.below(files.len())];
                let from = random.below(other.len());
                let to = (from + random.below(200)).min(other.len());
                input.splice(at..at, other[from..to].iter().copied());
            }
            _ => {
                let piece = pieces[random.below(pieces.len())];
                input.splice(at..at, piece.iter().copied());
            }
        }
    }
    input
}

const REGISTER_PIECES: &[&[u8]] = &[
    b"\r\nContact: *",
    b"\r\nExpires: 0",
    b"\r\nExpires: 4294967296",
    b"\r\nContact: <sip:a@h>;expires=0",
    b"\r\nm: <sip:b@h;transport=tcp>;q=1",
    b"\r\nPath: <sip:p;lr>",
    b"\r\nSupported: path, outbound, gruu",
    b"\r\nRequire: outbound",
    b";expires=",
    b";q=0.001",
    b";reg-id=1",
    b";+sip.instance=\"<urn:uuid:0>\"",
    b",",
    b"<sip:",
    b"%00",
    b"'; DROP TABLE location; --",
    b"\xff\xfe",
    b"-1",
    b"\n--\n",
];

#[test]
fn registers_changed_and_spliced() {
    let files = corpus("register", 5);
    let alone: usize = files.iter().map(|file| register_exercise::exercise(file)).sum();
    assert!(alone >= files.len() / 2, "{alone} messages of the corpus are accepted");
    let (mut random, mut accepted, count) = (Random(1020), 0, 8_000 * rounds());
    for _ in 0..count {
        accepted += usize::from(register_exercise::exercise(&changed(&files, REGISTER_PIECES, &mut random)) > 0);
    }
    // Both ways were gone: changes that the rules take, and changes that they refuse.
    assert!((count / 10..count * 9 / 10).contains(&accepted), "{accepted} of {count}");
}

const AUTH_PIECES: &[&[u8]] = &[
    b"NONCE",
    b"RIGHT",
    b"\"",
    b"\\\"",
    b",",
    b"=",
    b" ",
    b"\t",
    b"Digest ",
    b"qop=auth-int",
    b"nc=00000002",
    b"nc=ffffffff",
    b"algorithm=MD5",
    b"algorithm=SHA-256",
    b"algorithm=MD5-sess",
    b"userhash=true",
    b"response=\"\"",
    b"username=\"bob\"",
    b"username*=UTF-8''alice",
    b"uri=\"sip:elsewhere\"",
    b"\r\nAuthorization: ",
    b"\0",
    b"\xc3\xa9",
];

#[test]
fn credentials_changed_and_spliced() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let files = corpus("auth", 5);
    let alone = files.iter().filter(|file| auth_exercise::exercise(file, dir)).count();
    assert!(alone >= 2, "{alone} of the corpus are let in");
    let (mut random, mut accepted, count) = (Random(2617), 0, 4_000 * rounds());
    for _ in 0..count {
        accepted += usize::from(auth_exercise::exercise(&changed(&files, AUTH_PIECES, &mut random), dir));
    }
    assert!((1..count / 2).contains(&accepted), "{accepted} of {count}");
}
