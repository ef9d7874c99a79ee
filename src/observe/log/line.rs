//! One line of the log: a fixed piece of memory that an event is formatted into, control characters escaped.

use std::fmt::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level};

/// Bytes of a line, its newline included.
pub const LINE: usize = 1000;

pub struct Line {
    len: usize,
    pub level: Level,
    text: [u8; LINE],
}

impl Line {
    pub fn new() -> Self {
        Line { len: 0, level: Level::ERROR, text: [0; LINE] }
    }

    pub fn format(&mut self, level: Level, target: &str, event: &Event<'_>) {
        self.head(level, target);
        // The message goes first, wherever its field stands.
        event.record(&mut Fields { line: self, message: true });
        event.record(&mut Fields { line: self, message: false });
        self.end();
    }

    pub fn head(&mut self, level: Level, target: &str) {
        self.len = 0;
        self.level = level;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (year, month, day) = civil(now.as_secs() / 86_400);
        let second = now.as_secs() % 86_400;
        let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
        let milli = now.subsec_millis();
        // Writing into a line does not fail, it cuts.
        let _ =
            write!(Escaped(self), "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{milli:03}Z {level:5} {target}:");
        self.put(b" ");
    }

    pub fn end(&mut self) {
        while self.len > 0 && self.text[self.len - 1] == b' ' {
            self.len -= 1;
        }
        // `put` leaves this place.
        self.text[self.len] = b'\n';
        self.len += 1;
    }

    /// Whole or not at all, so that no character is cut.
    fn put(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        if end < LINE {
            self.text[self.len..end].copy_from_slice(bytes);
            self.len = end;
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.text[..self.len]
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.text[..self.len.saturating_sub(1)]).unwrap_or("(not a text)")
    }
}

/// Writes into a line, control characters escaped, and marks where it was cut.
pub struct Escaped<'l>(pub &'l mut Line);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            // The end of the line stays free for the mark of a cut.
            if self.0.len + 12 >= LINE {
                if self.0.text[self.0.len - 1] != b'~' {
                    self.0.put(b" ~");
                }
                return Ok(());
            }
            if c.is_control() || c == '\u{2028}' || c == '\u{2029}' {
                for escaped in c.escape_default() {
                    self.0.put(&[escaped as u8]);
                }
            } else {
                self.0.put(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        Ok(())
    }
}

struct Fields<'l> {
    line: &'l mut Line,
    message: bool,
}

impl Fields<'_> {
    fn field(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let message = field.name() == "message";
        if message != self.message {
            return;
        }
        let mut out = Escaped(self.line);
        let _ = if message { write!(out, "{value} ") } else { write!(out, "{}={value} ", field.name()) };
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let plain = field.name() == "message" || !value.is_empty() && !value.contains([' ', '"', '=']);
        if plain {
            self.field(field, format_args!("{value}"));
        } else {
            self.field(field, format_args!("{value:?}"));
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.field(field, format_args!("{value}"));
    }
}

/// Year, month and day of a number of days since 1970-01-01 (Howard Hinnant, chrono-compatible date algorithms).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}
