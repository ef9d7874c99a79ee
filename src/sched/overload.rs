//! Overload: two watermarks with hysteresis, and who is let in above the high one.
//!
//! A server that takes in more than it can answer answers nobody in time. Above the high watermark new work is refused
//! (503 with Retry-After is the caller's to send) until the level has come down to the low one; work that ends something
//! already begun (responses, ACK, in-dialog requests) is let in up to the limit, for refusing it only makes the others
//! send again (RFC 6357 section 5.2, RFC 3261 section 21.5.4).

use std::sync::atomic::{AtomicBool, Ordering};

use super::crew::Lane;
use crate::observe::{Counter, Text};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Begins something: a request outside a dialog.
    New,
    /// Ends or goes on with something: a response, an ACK, a request within a dialog.
    Urgent,
}

/// Levels are in units of the caller's choice: queued jobs, usually.
#[derive(Debug, Clone, Copy)]
pub struct Watermarks {
    pub low: usize,
    pub high: usize,
    /// Nothing is let in from here on.
    pub limit: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Let in, in this lane: under overload the urgent goes before the rest.
    Admit(Lane),
    Refuse,
}

pub struct Overload {
    marks: Watermarks,
    over: AtomicBool,
    times: Counter,
    refused: [Counter; 2],
}

impl Overload {
    /// `None` unless `low <= high <= limit`.
    pub fn new(marks: Watermarks) -> Option<Self> {
        let ordered = marks.low <= marks.high && marks.high <= marks.limit;
        let refused = [Counter::new(), Counter::new()];
        ordered.then(|| Overload { marks, over: AtomicBool::new(false), times: Counter::new(), refused })
    }

    /// Judges one piece of work at the present level. Any thread; lock-free.
    pub fn admit(&self, level: usize, class: Class) -> Verdict {
        let over = self.observe(level);
        let refuse = match class {
            Class::New => over || level >= self.marks.limit,
            Class::Urgent => level >= self.marks.limit,
        };
        if refuse {
            self.refused[class as usize].inc();
            return Verdict::Refuse;
        }
        Verdict::Admit(if over && class == Class::Urgent { Lane::High } else { Lane::Normal })
    }

    /// Takes note of the level; true while overloaded.
    pub fn observe(&self, level: usize) -> bool {
        // Read first: in the common case nothing is written, and the line stays shared between the processors.
        let over = self.over.load(Ordering::Relaxed);
        if !over && level >= self.marks.high && !self.over.swap(true, Ordering::Relaxed) {
            self.times.inc();
            tracing::warn!(level, high = self.marks.high, "overload: new requests are refused");
        } else if over && level <= self.marks.low && self.over.swap(false, Ordering::Relaxed) {
            tracing::warn!(level, low = self.marks.low, "overload is over");
        }
        self.over.load(Ordering::Relaxed)
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub fn refused(&self, class: Class) -> u64 {
        self.refused[class as usize].get()
    }

    pub fn metrics(&self, out: &mut Text) {
        out.gauge("partyline_overload", "1 while overloaded.", &[], f64::from(u8::from(self.is_over())));
        out.counter("partyline_overloads_total", "Times the high watermark was passed.", &[], self.times.get());
        for (class, name) in [(Class::New, "new"), (Class::Urgent, "urgent")] {
            let help = "Messages refused because of overload.";
            out.counter("partyline_overload_refused_total", help, &[("class", name)], self.refused(class));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn new_work_is_refused_between_the_high_mark_and_the_low_and_urgent_goes_first() {
        let overload = Overload::new(Watermarks { low: 10, high: 20, limit: 30 }).unwrap();
        let admit = |level, class| overload.admit(level, class);
        let (normal, high) = (Verdict::Admit(Lane::Normal), Verdict::Admit(Lane::High));
        assert_eq!([admit(0, Class::New), admit(19, Class::New), admit(19, Class::Urgent)], [normal; 3]);
        assert_eq!([admit(20, Class::New), admit(20, Class::Urgent)], [Verdict::Refuse, high]);
        // Not over yet: between the marks it stays what it was.
        assert_eq!([admit(11, Class::New), admit(11, Class::Urgent)], [Verdict::Refuse, high]);
        assert_eq!([admit(30, Class::New), admit(30, Class::Urgent)], [Verdict::Refuse; 2]);
        assert_eq!([admit(10, Class::New), admit(19, Class::New), admit(19, Class::Urgent)], [normal; 3]);
        assert_eq!((overload.refused(Class::New), overload.refused(Class::Urgent)), (3, 1));
        assert_eq!(overload.times.get(), 1);
        assert!(Overload::new(Watermarks { low: 3, high: 2, limit: 9 }).is_none());
        assert!(Overload::new(Watermarks { low: 1, high: 3, limit: 2 }).is_none());
    }
}
