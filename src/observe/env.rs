//! Environment variables of ours. A program that runs with more rights than who started it (setuid, file capabilities)
//! must not be steered through them, so there they count as unset.

/// The variable's value, unless the program runs with raised rights. The allocator has its own way
/// (`secure_getenv`, without allocation); both go by the same answer of the kernel's.
pub fn var(name: &str) -> Option<String> {
    if raised_rights() { None } else { std::env::var(name).ok() }
}

/// `AT_SECURE` of the auxiliary vector. Where it cannot be read rights are taken as raised: the files of a setuid
/// process are not its own.
#[cfg(target_os = "linux")]
fn raised_rights() -> bool {
    const AT_SECURE: usize = 23;
    const WORD: usize = size_of::<usize>();
    let Ok(vector) = std::fs::read("/proc/self/auxv") else { return true };
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, usize::from_ne_bytes);
    vector
        .chunks_exact(2 * WORD)
        .find(|pair| word(&pair[..WORD]) == AT_SECURE)
        .is_none_or(|pair| word(&pair[WORD..]) != 0)
}

#[cfg(not(target_os = "linux"))]
fn raised_rights() -> bool {
    false
}
