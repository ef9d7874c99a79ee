//! The tables that are written, and what their columns take.

use super::{Error, error};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    Subscriber,
    Location,
}

/// A column that can be imported.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub name: &'static str,
    /// Bytes; 0: a number.
    pub width: usize,
    pub required: bool,
}

const fn text(name: &'static str, width: usize, required: bool) -> Column {
    Column { name, width, required }
}

const fn number(name: &'static str, required: bool) -> Column {
    Column { name, width: 0, required }
}

pub const SUBSCRIBER: [Column; 5] = [
    text("username", 64, true),
    text("domain", 64, false),
    text("password", 64, false),
    text("ha1", 128, false),
    text("ha1b", 128, false),
];

pub const LOCATION: [Column; 16] = [
    text("username", 64, true),
    text("domain", 64, false),
    text("contact", 512, true),
    text("instance", 255, false),
    number("reg_id", false),
    text("ruid", 64, false),
    text("received", 128, false),
    text("path", 512, false),
    text("callid", 255, false),
    text("user_agent", 255, false),
    text("socket", 64, false),
    number("expires", true),
    number("last_modified", false),
    number("cseq", false),
    number("q", false),
    number("methods", false),
];

impl Table {
    pub fn name(self) -> &'static str {
        match self {
            Table::Subscriber => "subscriber",
            Table::Location => "location",
        }
    }

    pub fn columns(self) -> &'static [Column] {
        match self {
            Table::Subscriber => &SUBSCRIBER,
            Table::Location => &LOCATION,
        }
    }
}

impl Column {
    /// A value for this column, or why it cannot be one. An empty text of a column that need not be there is left to the
    /// table's default.
    pub fn check(&self, value: &str) -> Result<(), Error> {
        if value.is_empty() {
            return if self.required { Err(error(format!("{} is empty", self.name))) } else { Ok(()) };
        }
        if value.bytes().any(|b| b == 0) {
            return Err(error(format!("{} holds a NUL", self.name)));
        }
        if self.width > 0 && value.len() > self.width {
            return Err(error(format!("{} has {} bytes, more than {}", self.name, value.len(), self.width)));
        }
        if self.width == 0 {
            let good = match self.name {
                "q" => value.parse::<f64>().is_ok_and(|q| (0.0..=1.0).contains(&q) || q < 0.0),
                _ => value.parse::<u32>().is_ok(),
            };
            if !good {
                return Err(error(format!("{} is {value:?}, which is no number that it can hold", self.name)));
            }
        }
        Ok(())
    }
}
