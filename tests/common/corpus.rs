//! What the stable fuzz drivers share: the corpus, how much is tried, and a generator that gives the same everywhere.

use std::path::Path;

/// The files of `tests/corpus/NAME`, at least so many.
pub fn corpus(name: &str, least: usize) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    // The order of a directory is not the same everywhere, and the seed has to lead to the same inputs.
    paths.sort();
    assert!(paths.len() >= least, "the corpus is there");
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// `PARTYLINE_FUZZ_ROUNDS`: so many times the usual.
pub fn rounds() -> usize {
    std::env::var("PARTYLINE_FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}
