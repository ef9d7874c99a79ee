//! Asks the processor to read memory that is needed soon.

/// Has the cache lines of `bytes` read, at most four, without waiting for them. A hint: nothing depends on it.
#[inline(always)]
pub fn fetch<T>(items: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let start = items.as_ptr().cast::<i8>();
        let mut line = 0;
        while line < std::mem::size_of_val(items).min(256) {
            // SAFETY: a prefetch reads nothing that the program sees and faults on no address; `line` lies within `items`.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.add(line)) };
            line += 64;
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = items;
}
