//! The framer under random and mutated streams. The corpus is `tests/corpus/framer/`, which `make fuzz` uses as well;
//! `PARTYLINE_FUZZ_CASES` sets how many mutations of it are tried (default 20,000), `PARTYLINE_FUZZ_SEED` where they start.

mod framer_exercise;

use framer_exercise::exercise;

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
    let cuts: Vec<u8> = (0..40).map(|_| random.next() as u8).collect();
    exercise(stream, &cuts);
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
