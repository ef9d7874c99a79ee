//! How the tables look: ours, or Kamailio's as they stand; what their columns are called; how they hold time.
//!
//! Promise: a name from a configuration is letters, digits and underscores before it is written into a statement.

use super::{Kind, StoreError};

/// Whose `location` it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Schema {
    /// Ours (`mysql.sql`, `sqlite.sql`): its primary key is what identifies a binding. Created when missing.
    #[default]
    Own,
    /// Kamailio's of 5.6 to 5.8 (version 9), or a table with such columns under other names. Never created, never altered.
    Kamailio,
}

/// How `expires` and `last_modified` are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeForm {
    /// Seconds since 1970-01-01 00:00 UTC.
    Epoch,
    /// DATETIME in the session's time zone.
    DateTime,
}

/// The columns of `location` that are used, by their names in Kamailio's table and ours.
pub(super) const LOCATION: [&str; 17] = [
    "username",
    "domain",
    "contact",
    "instance",
    "reg_id",
    "ruid",
    "received",
    "path",
    "callid",
    "user_agent",
    "socket",
    "expires",
    "last_modified",
    "cseq",
    "q",
    "methods",
    "server_id",
];

const SUBSCRIBER: [&str; 5] = ["username", "domain", "password", "ha1", "ha1b"];

/// What the tables look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub schema: Schema,
    /// `None`: as the schema has it (Kamailio's DATETIME, ours epoch).
    pub time: Option<TimeForm>,
    /// The time zone that DATETIME is in, as the database names it: `SYSTEM`, `+00:00`, `Europe/Berlin`.
    pub time_zone: String,
    location: [String; LOCATION.len()],
    subscriber: [String; SUBSCRIBER.len()],
}

impl Default for Layout {
    fn default() -> Self {
        Layout {
            schema: Schema::default(),
            time: None,
            time_zone: "SYSTEM".into(),
            location: LOCATION.map(String::from),
            subscriber: SUBSCRIBER.map(String::from),
        }
    }
}

impl Layout {
    /// Renames columns: `location.contact=uri,subscriber.ha1=secret`; without a table `location` is meant. Columns that are
    /// not named keep their names.
    pub fn set_columns(&mut self, text: &str) -> Result<(), StoreError> {
        let bad = |text: String| StoreError::new(Kind::Config, text);
        let mut fresh = Layout::default();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let Some((column, name)) = pair.split_once('=') else {
                return Err(bad(format!("{pair:?} does not rename a column: COLUMN=NAME is expected")));
            };
            let (column, name) = (column.trim(), name.trim());
            let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !plain || name.is_empty() || name.len() > 64 {
                return Err(bad(format!(
                    "{name:?} cannot name a column: letters, digits and underscores only, at most 64"
                )));
            }
            let (table, column) = column.split_once('.').unwrap_or(("location", column));
            let slot = match table {
                "location" => LOCATION.iter().position(|known| *known == column).map(|at| &mut fresh.location[at]),
                "subscriber" => {
                    SUBSCRIBER.iter().position(|known| *known == column).map(|at| &mut fresh.subscriber[at])
                }
                _ => None,
            };
            let Some(slot) = slot else {
                return Err(bad(format!("there is no column {column:?} in table {table:?} to be renamed")));
            };
            name.clone_into(slot);
        }
        (self.location, self.subscriber) = (fresh.location, fresh.subscriber);
        Ok(())
    }

    /// What [`Layout::set_columns`] would take to make it so.
    pub fn columns(&self) -> String {
        let mut out = Vec::new();
        for (table, known, names) in
            [("location", &LOCATION[..], &self.location[..]), ("subscriber", &SUBSCRIBER[..], &self.subscriber[..])]
        {
            for (column, name) in known.iter().zip(names).filter(|(column, name)| column != name) {
                out.push(format!("{table}.{column}={name}"));
            }
        }
        out.join(",")
    }

    /// Whether a column has another name than Kamailio gives it.
    pub fn is_renamed(&self) -> bool {
        !self.columns().is_empty()
    }

    /// The name of a column of `location`, by its name in [`LOCATION`].
    pub(super) fn location<'a>(&'a self, column: &'a str) -> &'a str {
        LOCATION.iter().position(|known| *known == column).map_or(column, |at| &self.location[at])
    }

    pub(super) fn subscriber<'a>(&'a self, column: &'a str) -> &'a str {
        SUBSCRIBER.iter().position(|known| *known == column).map_or(column, |at| &self.subscriber[at])
    }

    pub(super) fn date_time(&self) -> bool {
        match self.time {
            Some(form) => form == TimeForm::DateTime,
            None => self.schema == Schema::Kamailio,
        }
    }

    /// One sentence about what cannot be.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let zone = self.time_zone.as_bytes();
        let plain = zone.iter().all(|b| b.is_ascii_alphanumeric() || b"+-:/_".contains(b));
        let text = if !plain || zone.is_empty() || zone.len() > 64 {
            "the time zone is SYSTEM, an offset as +01:00, or a name as Europe/Berlin"
        } else if self.schema == Schema::Own && (self.is_renamed() || self.date_time()) {
            "columns with other names, or DATETIME, need schema kamailio: our own table is as it is"
        } else {
            return Ok(());
        };
        Err(StoreError::new(Kind::Config, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_renamed_and_sql_in_a_name_is_refused() {
        let mut layout = Layout { schema: Schema::Kamailio, ..Layout::default() };
        assert_eq!((layout.columns(), layout.is_renamed()), (String::new(), false));
        layout.set_columns("contact=uri, subscriber.ha1=secret").expect("good");
        assert_eq!((layout.location("contact"), layout.location("path")), ("uri", "path"));
        assert_eq!((layout.subscriber("ha1"), layout.subscriber("username")), ("secret", "username"));
        assert_eq!(layout.columns(), "location.contact=uri,subscriber.ha1=secret");
        for bad in [
            "contact",
            "contact=",
            "contact=a`b",
            "contact=a b",
            "contact=a;b",
            "nonsense=a",
            "other.contact=a",
            "contact=é",
        ] {
            assert_eq!(layout.set_columns(bad).map_err(|e| e.kind()), Err(Kind::Config), "{bad}");
        }
        layout.set_columns("").expect("back to the defaults");
        assert!(!layout.is_renamed() && layout.check().is_ok() && layout.date_time());
        layout.time_zone = "x'; DROP TABLE".into();
        assert!(layout.check().is_err());
        let own = Layout { time: Some(TimeForm::DateTime), ..Layout::default() };
        assert!(own.check().is_err());
    }
}
