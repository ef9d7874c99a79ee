//! The log: a bounded ring, written out by a thread of its own.
