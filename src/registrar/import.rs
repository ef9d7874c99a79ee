//! What `partyline-import` does: rows of another system, from a CSV file or a query, into `subscriber` or `location`.
//!
//! Promises: a row is checked before anything of it is written; all rows go in or none, in one transaction, unless rows that
//! cannot be taken are to be left out; values are parameters, names are validated; nothing is ever cut.

mod csv;
mod run;
mod target;

pub use csv::Csv;
pub use run::{Report, run};
pub use target::{Column, LOCATION, SUBSCRIBER, Table};

use std::fmt;

pub use super::store::Schema;

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file with a line of names first, or `-` for the standard input.
    Csv { path: String, separator: u8 },
    /// `mysql://...` or `sqlite:PATH`, and a SELECT whose columns have the names that are wanted.
    Query { url: String, sql: String },
}

/// What to do with a row that stands there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// The import fails.
    #[default]
    Fail,
    /// The row that stands there stays.
    Keep,
    /// The new one takes its place.
    Replace,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub source: Source,
    /// `mysql://...` or `sqlite:PATH`; the tables stand there already, or are made.
    pub target: String,
    /// Whose tables the target has: Kamailio's are used as they stand.
    pub schema: Schema,
    /// The time zone that Kamailio's DATETIME is in.
    pub time_zone: String,
    pub table: Table,
    /// `column=name` in the source, where they differ.
    pub map: Vec<(String, String)>,
    /// The domain of rows that have none.
    pub domain: String,
    /// Makes ha1 and ha1b of `password`, for this realm (empty: the row's domain), and leaves the password out.
    pub hash: Option<String>,
    pub existing: Existing,
    /// Rows that cannot be taken are named and left out; otherwise the first ends the import.
    pub skip_bad: bool,
    /// Everything but the commit.
    pub dry_run: bool,
}

/// One sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(pub String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

fn error(text: impl Into<String>) -> Error {
    Error(text.into())
}
