//! Found misuse: one report on stderr, then the end of the program. A corrupted heap is not worked on.

use super::os::Line;
use super::range::{first_part, offset_of, span_at};
use super::span::kind;
use super::{marks, watch};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misuse {
    DoubleFree,
    Interior,
    NotABlock,
    WriteAfterFree,
    Overflow,
}

/// Reports and ends the program. Does not allocate and does not unwind.
#[cold]
pub fn report(misuse: Misuse, address: usize, verb: &str) -> ! {
    let mut line = Line::<512>::new();
    let what = match misuse {
        Misuse::DoubleFree => "double free",
        Misuse::Interior => "pointer into the middle of a block",
        Misuse::NotABlock => "pointer that is no block of the pool",
        Misuse::WriteAfterFree => "write after free",
        Misuse::Overflow => "write past the end",
    };
    line.put(format_args!("partyline: {what}: {address:#x} in {verb}"));
    if let Some(offset) = offset_of(address) {
        // SAFETY: every slice has a descriptor.
        let span = unsafe { &*first_part(span_at(offset)) };
        let (base, size) = (span.fixed.base.get(), span.fixed.size.get() as usize);
        match span.kind() {
            kind::BLOCKS => {
                let start = base + address.wrapping_sub(base) / size * size;
                line.put(format_args!(", size class {size}"));
                if start != address {
                    line.put(format_args!(", block {start:#x}"));
                }
                // SAFETY: the block lies in a span of blocks of this size.
                unsafe { put_site(&mut line, start, size) };
            }
            kind::REGION => {
                // SAFETY: the address lies in the region, so the run does.
                unsafe {
                    let (start, length, used) = marks::run_at(span, address);
                    if used {
                        line.put(format_args!(", block {start:#x} of {length} bytes"));
                        put_site(&mut line, start, length);
                    } else {
                        line.put(format_args!(", in {length} free bytes"));
                    }
                }
            }
            kind::LARGE => {
                line.put(format_args!(", block {base:#x} of {} bytes", span.fixed.bytes.get()));
            }
            _ => {
                line.put(format_args!(", nothing is allocated there"));
            }
        }
    }
    line.put(format_args!("\n")).say();
    // SAFETY: no precondition.
    unsafe { libc::abort() }
}

/// # Safety
/// `start` is the beginning of a block of `room` bytes.
unsafe fn put_site(line: &mut Line<512>, start: usize, room: usize) {
    // SAFETY: as for this function.
    if let Some((file, number)) = unsafe { watch::site(start, room) } {
        line.put(format_args!(", allocated at "));
        for &byte in file {
            line.put(format_args!("{}", if byte.is_ascii_graphic() { byte as char } else { '?' }));
        }
        line.put(format_args!(":{number}"));
    }
}

/// The link in a free block leads nowhere.
#[cold]
#[inline(never)]
pub extern "C" fn corrupted_block(block: usize) -> ! {
    report(Misuse::WriteAfterFree, block, "malloc")
}
