//! The engine's own figures; the rooms above count theirs.

use crate::observe::{Counter, Gauge, Text};

/// Why a datagram was dropped without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// Line ends or zero bytes: a keep-alive (RFC 5626 section 3.5.1).
    KeepAlive,
    /// Longer than `max_message`.
    TooLong,
    /// Not SIP, or without what an answer would need.
    Unanswerable,
    /// A response that nobody here waits for, and that no plugin took.
    Response,
    /// An ACK that no plugin took: it is never answered.
    Ack,
    /// An ACK or a response for which a bound left no room.
    Overload,
    /// More from one source than `rate.source` allows.
    RateOfSource,
    /// More from all together than `rate.all` allows.
    RateOfAll,
}

impl Dropped {
    const ALL: [(Dropped, &str); 8] = [
        (Dropped::KeepAlive, "keepalive"),
        (Dropped::TooLong, "too_long"),
        (Dropped::Unanswerable, "unanswerable"),
        (Dropped::Response, "response"),
        (Dropped::Ack, "ack"),
        (Dropped::Overload, "overload"),
        (Dropped::RateOfSource, "rate_of_source"),
        (Dropped::RateOfAll, "rate_of_all"),
    ];
}

#[derive(Default)]
pub struct Count {
    /// Requests with a final answer.
    pub answered: Counter,
    /// Requests answered because they could not be understood.
    pub malformed: Counter,
    /// Requests refused because a bound was reached.
    pub overload: Counter,
    /// Messages that plugins hold.
    pub deferred: Gauge,
    /// Messages and answers that wait for the database.
    pub waiting: Gauge,
    /// Messages that wait for a thread.
    pub queued: Gauge,
    dropped: [Counter; Dropped::ALL.len()],
}

impl Count {
    pub fn drop(&self, why: Dropped) {
        self.dropped[why as usize].inc();
    }

    pub fn dropped(&self) -> u64 {
        self.dropped.iter().map(Counter::get).sum()
    }

    pub fn metrics(&self, out: &mut Text) {
        out.counter("partyline_answered_total", "Requests with a final answer.", &[], self.answered.get());
        out.counter("partyline_malformed_total", "Requests that could not be understood.", &[], self.malformed.get());
        out.counter("partyline_overload_total", "Requests refused at a bound.", &[], self.overload.get());
        out.gauge("partyline_deferred", "Messages that plugins hold.", &[], self.deferred.get() as f64);
        let queued = self.queued.get() as f64;
        out.gauge("partyline_queued", "Messages that wait for a thread.", &[], queued);
        let waiting = self.waiting.get() as f64;
        out.gauge("partyline_waiting", "Messages and answers that wait for the database.", &[], waiting);
        for (why, reason) in Dropped::ALL {
            let n = self.dropped[why as usize].get();
            out.counter("partyline_dropped_total", "Messages dropped unanswered.", &[("reason", reason)], n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_place() {
        for (i, (why, _)) in Dropped::ALL.iter().enumerate() {
            assert_eq!(*why as usize, i);
        }
    }
}
