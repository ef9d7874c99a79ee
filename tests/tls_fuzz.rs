//! The stable fuzz driver of TLS: the corpus as it is, changed and spliced by a generator with a fixed seed. `make fuzz` runs
//! the same code over the same corpus. `PARTYLINE_FUZZ_ROUNDS` multiplies the rounds.

#[path = "common/corpus.rs"]
mod common;
mod tls_exercise;

use common::{Random, corpus, rounds};
use tls_exercise::exercise;

#[test]
fn hellos_and_sessions_cut_and_changed() {
    let files = corpus("tls", 5);
    let sound = files.iter().filter(|file| exercise(file)).count();
    assert!(sound >= 2, "{sound} sessions of the corpus are sound");
    let mut random = Random(5246);
    let mut sound = 0;
    let count = 600 * rounds();
    for _ in 0..count {
        let mut input = files[random.below(files.len())].clone();
        for _ in 0..1 + random.below(4) {
            let at = random.below(input.len());
            match random.below(4) {
                0 => input[at] = random.next() as u8,
                1 => input.truncate(at.max(1)),
                2 => {
                    let other = &files[random.below(files.len())];
                    let from = random.below(other.len());
                    input.splice(at..at, other[from..].iter().take(100).copied());
                }
                _ => input.insert(at, random.next() as u8),
            }
        }
        sound += usize::from(exercise(&input));
    }
    // Both ways were gone.
    assert!((count / 50..count * 3 / 4).contains(&sound), "{sound} of {count}");
}
