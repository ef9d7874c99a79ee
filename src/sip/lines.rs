//! The lines of a header section: where they end, folding, and what stands before the colon.
//!
//! This is the loop that every byte received goes through, so it is written for instruction counts: `message` parses a
//! REGISTER of 463 bytes and 12 headers, its Via, From and To included, in about 6,300.

use super::lex::{self, class};
use super::{HeaderName, ParseError};

/// The length of the line at the start of `rest`, looked for from `from` on, and that of its end.
#[inline(always)]
pub(super) fn line_len(rest: &[u8], from: usize) -> Result<(usize, usize), ParseError> {
    let mut tail = rest.get(from..).unwrap_or(&[]);
    loop {
        tail = low_byte(tail);
        match tail {
            [b'\r', b'\n', ..] => return Ok((rest.len() - tail.len(), 2)),
            [b'\n', ..] => return Ok((rest.len() - tail.len(), 1)),
            [] | [b'\r'] => return Err(ParseError::NoEndOfHeaders),
            [b'\r', ..] => return Err(ParseError::BareCr),
            [_, after @ ..] => tail = after,
        }
    }
}

/// `bytes` from the first byte on that is CR or less; nothing when there is none. Lines are 20 to 60 bytes: words in
/// place cost less than the set-up of a vector search.
#[inline(always)]
fn low_byte(mut bytes: &[u8]) -> &[u8] {
    while let Some((word, tail)) = bytes.split_first_chunk::<8>() {
        let word = u64::from_le_bytes(*word);
        // The high bit of every byte below 14, exact up to the first such byte.
        let low = word.wrapping_sub(ONES * 14) & !word & (ONES << 7);
        if low != 0 {
            return bytes.get(low.trailing_zeros() as usize / 8..).unwrap_or(&[]);
        }
        bytes = tail;
    }
    while let [first, tail @ ..] = bytes {
        if *first < 14 {
            break;
        }
        bytes = tail;
    }
    bytes
}

/// Turns the line ends of folded lines into spaces (RFC 3261 section 7.3.1); `end` is where the body begins.
#[cold]
pub(super) fn unfold(buf: &mut [u8], end: usize) {
    let head = buf.get_mut(..end).unwrap_or_default();
    for at in 1..head.len() {
        if matches!(head[at], b' ' | b'\t') && head[at - 1] == b'\n' {
            head[at - 1] = b' ';
            if at > 1 && head[at - 2] == b'\r' {
                head[at - 2] = b' ';
            }
        }
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;

/// The length of the name, what follows the colon, and the header that the name stands for.
#[inline]
pub(super) fn split_line(line: &[u8]) -> Result<(usize, &[u8], HeaderName), ParseError> {
    if let Some(colon) = first_colon(line) {
        let (name, tail) = line.split_at(colon);
        let known = HeaderName::recognise(name);
        // What is recognised is a token; anything else is looked at byte by byte.
        if known != HeaderName::Other {
            return Ok((colon, tail.get(1..).unwrap_or(&[]), known));
        }
    }
    let name_len = lex::span(line, class::TOKEN);
    let (name, tail) = line.split_at(name_len);
    match lex::trim_start(tail) {
        [b':', tail @ ..] if name_len > 0 => Ok((name_len, tail, HeaderName::recognise(name))),
        _ => Err(ParseError::BadHeaderLine),
    }
}

/// Where the first colon stands, looked for in whole words in the first 24 bytes: no known name is longer.
#[inline(always)]
fn first_colon(line: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(part) = line.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        // A byte of `diff` is zero where the colon is; the lowest bit set below marks the first zero byte exactly.
        let diff = u64::from_le_bytes(*part) ^ (ONES * b':' as u64);
        let zero = diff.wrapping_sub(ONES) & !diff & (ONES << 7);
        if zero != 0 {
            return Some(at + zero.trailing_zeros() as usize / 8);
        }
        at += 8;
        if at == 24 {
            return None;
        }
    }
    line.get(at..)?.iter().position(|&byte| byte == b':').map(|tail| at + tail)
}

/// `number LWS method` (RFC 3261 section 20.16: the number is below 2^31).
pub(super) fn cseq(value: &[u8]) -> Result<(u32, &[u8]), ParseError> {
    let digits = value.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(value.len());
    let (number, rest) = value.split_at(digits);
    let number = lex::number32(number).filter(|&number| number < 1 << 31).ok_or(ParseError::BadCSeq)?;
    let method = lex::trim_start(rest);
    if method.len() == rest.len() || !lex::is_token(method) {
        return Err(ParseError::BadCSeq);
    }
    Ok((number, method))
}
