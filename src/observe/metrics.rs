//! Counters and gauges, and the writer of the Prometheus text format (version 0.0.4).

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// A count that only rises. Padded to its own cache line, so that two hot counters never share one.
#[repr(align(64))]
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub const fn new() -> Self {
        Counter(AtomicU64::new(0))
    }
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    pub fn inc(&self) {
        self.add(1);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A level that rises and falls.
#[repr(align(64))]
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    pub const fn new() -> Self {
        Gauge(AtomicI64::new(0))
    }
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    pub fn set(&self, n: i64) {
        self.0.store(n, Ordering::Relaxed);
    }
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Collects metrics as Prometheus text. A family's head (`# HELP`, `# TYPE`) is written once, by its first sample, so
/// samples of one family have to follow each other.
#[derive(Default)]
pub struct Text {
    out: String,
    family: String,
}

impl Text {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn counter(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: u64) {
        self.sample(name, help, "counter", labels, value as f64);
    }

    pub fn gauge(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: f64) {
        self.sample(name, help, "gauge", labels, value);
    }

    /// A summary in seconds from a histogram of nanoseconds: quantiles 0.5, 0.9, 0.99, 0.999, `_sum` and `_count`.
    pub fn summary(&mut self, name: &str, help: &str, labels: &[(&str, &str)], histogram: &super::Histogram) {
        self.head(name, help, "summary");
        let quantiles = histogram.quantiles();
        for (label, nanos) in
            [("0.5", quantiles.p50), ("0.9", quantiles.p90), ("0.99", quantiles.p99), ("0.999", quantiles.p999)]
        {
            let mut all = labels.to_vec();
            all.push(("quantile", label));
            self.line(name, "", &all, nanos as f64 / 1e9);
        }
        self.line(name, "_sum", labels, quantiles.sum as f64 / 1e9);
        self.line(name, "_count", labels, quantiles.count as f64);
    }

    pub fn finish(self) -> String {
        self.out
    }

    fn sample(&mut self, name: &str, help: &str, kind: &str, labels: &[(&str, &str)], value: f64) {
        self.head(name, help, kind);
        self.line(name, "", labels, value);
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        if self.family != name {
            name.clone_into(&mut self.family);
            // Writing into a String cannot fail.
            let _ = write!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        }
    }

    fn line(&mut self, name: &str, suffix: &str, labels: &[(&str, &str)], value: f64) {
        self.out.push_str(name);
        self.out.push_str(suffix);
        for (i, (key, text)) in labels.iter().enumerate() {
            self.out.push(if i == 0 { '{' } else { ',' });
            self.out.push_str(key);
            self.out.push_str("=\"");
            for c in text.chars() {
                match c {
                    '\\' => self.out.push_str("\\\\"),
                    '"' => self.out.push_str("\\\""),
                    '\n' => self.out.push_str("\\n"),
                    c => self.out.push(c),
                }
            }
            self.out.push('"');
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_one_head_per_family_and_escapes_labels() {
        let mut text = Text::new();
        text.counter("a_total", "A.", &[("k", "x\"\\\n")], 1);
        text.counter("a_total", "A.", &[("k", "y")], 2);
        text.gauge("b", "B.", &[], 1.5);
        assert_eq!(
            text.finish(),
            "# HELP a_total A.\n# TYPE a_total counter\na_total{k=\"x\\\"\\\\\\n\"} 1\na_total{k=\"y\"} 2\n\
             # HELP b B.\n# TYPE b gauge\nb 1.5\n"
        );
    }
}
