//! What the pool asks of the operating system. Nothing here allocates, panics or calls back into the pool.
//!
//! The contract is what `unix` and `windows` both define: [`Lock`], address space ([`reserve`], [`commit`], [`purge`],
//! ...), a clock, a seed, the environment, and notice of thread exit and fork.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use core::fmt::Write as _;

#[cfg(unix)]
pub use unix::*;
#[cfg(windows)]
pub use windows::*;

impl Lock {
    pub fn with<R>(&self, body: impl FnOnce() -> R) -> R {
        self.lock();
        let result = body();
        self.unlock();
        result
    }
}

/// Text in a buffer on the stack, for messages where nothing may be allocated. What does not fit is cut off.
pub struct Line<const N: usize> {
    text: [u8; N],
    len: usize,
}

#[allow(clippy::new_without_default, reason = "there is no default length")]
impl<const N: usize> Line<N> {
    pub const fn new() -> Self {
        Line { text: [0; N], len: 0 }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.text[..self.len]
    }

    pub fn put(&mut self, args: core::fmt::Arguments<'_>) -> &mut Self {
        // Never fails: write_str below cuts.
        let _ = self.write_fmt(args);
        self
    }

    /// To stderr, in one write.
    pub fn say(&self) {
        say(self.bytes());
    }
}

impl<const N: usize> core::fmt::Write for Line<N> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = N - self.len;
        let take = text.len().min(room);
        self.text[self.len..self.len + take].copy_from_slice(&text.as_bytes()[..take]);
        self.len += take;
        Ok(())
    }
}

/// One line to stderr.
macro_rules! pool_say {
    ($($arg:tt)*) => {
        $crate::pool::os::Line::<512>::new().put(format_args!($($arg)*)).put(format_args!("\n")).say()
    };
}
