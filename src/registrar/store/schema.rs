//! The tables: their definition (`mysql.sql`, `sqlite.sql`, which C programs can use as well), the names they may have,
//! and the rule by which an existing table is taken or refused.
//!
//! Promise: a table that is somebody else's, or of a version that this code does not know, is refused with one sentence
//! that names it; it is never written to.

use super::{Kind, StoreError};

/// What `version.table_version` must say for `location`. Kamailio's own tables say 9 and differ (see `mysql.sql`).
pub const LOCATION_VERSION: u32 = 1;
/// `subscriber` is Kamailio's table as it stands.
pub const SUBSCRIBER_VERSION: u32 = 7;

/// A name of a table that may be written into a statement as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identifier(String);

impl Identifier {
    /// Letters, digits and underscores, at most 32 (the width of `version.table_name`), not starting with a digit.
    pub fn new(name: &str) -> Result<Identifier, StoreError> {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !plain || name.is_empty() || name.len() > 32 || name.as_bytes()[0].is_ascii_digit() {
            return Err(StoreError::new(
                Kind::Config,
                format!(
                    "{name:?} cannot name a table: letters, digits and underscores only, at most 32, no digit first"
                ),
            ));
        }
        Ok(Identifier(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The names of the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    pub location: Identifier,
    pub subscriber: Identifier,
}

impl Default for Tables {
    fn default() -> Self {
        Tables { location: Identifier("location".into()), subscriber: Identifier("subscriber".into()) }
    }
}

impl Tables {
    /// Each table with the version that it must have.
    pub(super) fn versions(&self) -> [(&Identifier, u32); 2] {
        [(&self.location, LOCATION_VERSION), (&self.subscriber, SUBSCRIBER_VERSION)]
    }

    /// The statements of one of the SQL files, with these tables' names.
    pub(super) fn statements(&self, file: &str) -> Vec<String> {
        let code: String =
            file.lines().filter(|line| !line.trim_start().starts_with("--")).collect::<Vec<_>>().join("\n");
        code.split(";\n")
            .map(|statement| statement.trim().trim_end_matches(';'))
            .filter(|statement| !statement.is_empty())
            .map(|statement| self.rename(statement))
            .collect()
    }

    fn rename(&self, statement: &str) -> String {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut out = String::with_capacity(statement.len());
        let mut rest = statement;
        while let Some(start) = rest.find(word) {
            out.push_str(&rest[..start]);
            rest = &rest[start..];
            let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
            out.push_str(match &rest[..end] {
                "location" => self.location.as_str(),
                "subscriber" => self.subscriber.as_str(),
                other => other,
            });
            rest = &rest[end..];
        }
        out.push_str(rest);
        out
    }
}

/// Decides about one table: `exists` says whether it is there, `version` what its row in `version` says. Ok means that the
/// statements of the SQL file may run.
pub(super) fn admit(table: &str, wanted: u32, exists: bool, version: Option<i64>) -> Result<(), StoreError> {
    let text = match (exists, version) {
        (_, Some(found)) if found == i64::from(wanted) => return Ok(()),
        (false, None) => return Ok(()),
        (_, Some(found)) => {
            let hint = if found == 9 && wanted == LOCATION_VERSION { ", a table of Kamailio's" } else { "" };
            format!("table {table} has version {found}{hint}; this program knows version {wanted}")
        }
        (true, None) => {
            format!("table {table} exists but has no row in table version; this program knows version {wanted}")
        }
    };
    Err(StoreError::new(Kind::Schema, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_that_could_carry_sql_are_refused() {
        for bad in ["", "1a", "a b", "a;b", "a`", "a\"", "a-b", "lo\0", "é", &"x".repeat(33)] {
            assert_eq!(Identifier::new(bad).map_err(|e| e.kind()), Err(Kind::Config), "{bad:?}");
        }
        assert!(Identifier::new("location_2").is_ok());
    }

    #[test]
    fn renaming_touches_whole_words_only() {
        let tables = Tables { location: Identifier("bindings".into()), ..Tables::default() };
        assert_eq!(
            tables.rename("UPDATE location SET location_x = 'location'"),
            "UPDATE bindings SET location_x = 'bindings'"
        );
    }

    #[test]
    fn both_files_split_into_the_same_statements() {
        let tables = Tables::default();
        for file in [include_str!("mysql.sql"), include_str!("sqlite.sql")] {
            let statements = tables.statements(file);
            assert_eq!(statements.len(), 5, "{statements:?}");
            assert!(statements[0].starts_with("CREATE TABLE IF NOT EXISTS version"));
            assert!(statements[1].contains(&format!("('location', {LOCATION_VERSION})")), "{}", statements[1]);
            assert!(statements[2].contains(&format!("('subscriber', {SUBSCRIBER_VERSION})")));
        }
    }

    #[test]
    fn a_foreign_table_is_refused() {
        assert!(admit("location", 1, false, None).is_ok());
        assert!(admit("location", 1, true, Some(1)).is_ok());
        assert!(admit("location", 1, false, Some(1)).is_ok());
        for (exists, version) in [(true, None), (true, Some(9)), (false, Some(2)), (true, Some(-1))] {
            assert_eq!(admit("location", 1, exists, version).map_err(|e| e.kind()), Err(Kind::Schema));
        }
    }
}
