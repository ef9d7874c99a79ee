//! What the house tells about itself: counters, histograms, Prometheus text, and the log.
//!
//! Nothing here blocks the caller: counters are relaxed atomics, the log is a bounded ring that a thread of its own
//! writes out, and what does not fit into the ring is dropped and counted.

pub mod env;
mod histogram;
pub mod log;
mod metrics;

pub use histogram::{Histogram, Quantiles};
pub use metrics::{Counter, Gauge, Text};
