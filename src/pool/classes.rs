//! Size classes. 8, then every 16 bytes up to 256, then eight per doubling up to 8 KiB: above 128 bytes a class is at
//! most 12.5 % larger than the one below it. Every class but the first is a multiple of 16, so with spans that begin on
//! a slice boundary each block has malloc's alignment. A span is one slice, and holds at least eight blocks.
//!
//! Blocks above that up to 256 KiB are runs of 1 KiB grains (see `runs.rs`), so they are at most 12.5 % too long as well;
//! for them the classes up to 256 KiB only sort the statistics.

/// log2 of a slice, the unit in which the page heap hands out address space.
pub const SLICE_SHIFT: usize = 16;
pub const SLICE: usize = 1 << SLICE_SHIFT;
/// Sizes up to here are found by one table look-up.
pub const SMALL_MAX: usize = 1024;
pub const DIRECT: usize = SMALL_MAX / 8 + 1;
/// Largest size that is served from a span of its class.
pub const CLASS_MAX: usize = 8 << 10;
pub const CLASSES: usize = 17 + 5 * 8;
/// Largest size that is served from a region of runs; larger blocks are slices of their own.
pub const RUN_MAX: usize = 256 << 10;
/// Classes in the statistics: those of spans, then those of runs.
pub const COUNTED: usize = CLASSES + 5 * 8;

/// The class of a size of at most [`RUN_MAX`] bytes.
pub const fn class_of(size: usize) -> usize {
    if size <= 8 {
        0
    } else if size <= 256 {
        size.div_ceil(16)
    } else {
        let below = size - 1;
        let exponent = (usize::BITS - 1 - below.leading_zeros()) as usize;
        17 + (exponent - 8) * 8 + ((below >> (exponent - 3)) & 7)
    }
}

pub const fn size_of(class: usize) -> usize {
    if class == 0 {
        8
    } else if class <= 16 {
        class * 16
    } else {
        let step = class - 17;
        (9 + step % 8) << (step / 8 + 5)
    }
}

/// Exact test for multiples with one multiplication (Lemire, Kaser, Kurz: "Faster remainder by direct computation",
/// 2019): for 16-bit `n`, `size` divides `n` iff the low 32 bits of `n * magic` are below `magic`.
pub const fn magic_of(size: usize) -> u32 {
    (u32::MAX / size as u32).wrapping_add(1)
}

#[derive(Clone, Copy)]
pub struct Class {
    pub size: u32,
    pub magic: u32,
}

pub static TABLE: [Class; CLASSES] = {
    let mut table = [Class { size: 0, magic: 0 }; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        table[class] = Class { size: size_of(class) as u32, magic: magic_of(size_of(class)) };
        class += 1;
    }
    table
};

/// The smallest class whose blocks hold `size` bytes at multiples of `align` (a power of two), if there is one.
pub fn aligned_class(size: usize, align: usize) -> Option<usize> {
    if size > CLASS_MAX || align > CLASS_MAX {
        return None;
    }
    let rounded = size.max(1).checked_next_multiple_of(align)?;
    if rounded > CLASS_MAX {
        return None;
    }
    (class_of(rounded)..CLASSES).find(|&class| size_of(class) % align == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_fits_its_class_and_not_the_one_below() {
        for size in 0..=RUN_MAX {
            let class = class_of(size);
            assert!(class < COUNTED && size_of(class) >= size, "{size}");
            assert!(class == 0 || size_of(class - 1) < size, "{size}");
        }
        assert_eq!(size_of(CLASSES - 1), CLASS_MAX);
        assert_eq!(size_of(COUNTED - 1), RUN_MAX);
    }

    #[test]
    fn classes_are_close_and_aligned() {
        for class in 1..CLASSES {
            let (below, size) = (size_of(class - 1), size_of(class));
            assert_eq!(size % 16, 0);
            assert!(size - below <= (below / 8).max(16), "{below} {size}");
            assert!(SLICE / size >= 8, "{size}");
        }
    }

    #[test]
    fn magic_tells_multiples_exactly() {
        for class in TABLE.iter() {
            for offset in 0..SLICE as u32 {
                let multiple = offset.wrapping_mul(class.magic) < class.magic;
                assert_eq!(multiple, offset % class.size == 0, "{offset} {}", class.size);
            }
        }
    }

    #[test]
    fn aligned_classes() {
        for align in [1usize, 8, 16, 32, 64, 256, 4096, 8192] {
            for size in [0usize, 1, 8, 24, 100, 1000, 5000, 8000] {
                let class = aligned_class(size, align).unwrap();
                assert!(size_of(class) >= size && size_of(class) % align == 0);
            }
        }
        assert_eq!(aligned_class(CLASS_MAX + 1, 8), None);
    }
}
