//! The statements, for each look of the tables.
//!
//! Promise: every name in them was validated (`Layout`, `Identifier`); every value is a parameter.

use crate::registrar::store::layout::{LOCATION, Layout, Schema};
use crate::registrar::store::{StoreOptions, Tables};

/// What identifies a binding.
pub(super) const KEY: [&str; 5] = ["username", "domain", "contact", "instance", "reg_id"];

pub(super) struct Sql {
    tables: Tables,
    layout: Layout,
    /// Several servers write: the newer state of a binding stays.
    shared: bool,
}

impl Sql {
    pub fn new(options: &StoreOptions) -> Sql {
        Sql { tables: options.tables.clone(), layout: options.layout.clone(), shared: options.shared }
    }

    pub fn kamailio(&self) -> bool {
        self.layout.schema == Schema::Kamailio
    }

    pub fn date_time(&self) -> bool {
        self.layout.date_time()
    }

    pub fn location(&self) -> &str {
        self.tables.location.as_str()
    }

    fn name(&self, column: &str) -> String {
        format!("`{}`", self.layout.location(column))
    }

    fn is_time(column: &str) -> bool {
        column == "expires" || column == "last_modified"
    }

    /// A parameter as a value of the column.
    fn value(&self, column: &str) -> &'static str {
        if Self::is_time(column) && self.date_time() { "FROM_UNIXTIME(?)" } else { "?" }
    }

    /// Parameters per row: [`LOCATION`], after `id` where that is known.
    pub fn upsert(&self, rows: usize, with_id: bool) -> String {
        let id = if with_id { "`id`, " } else { "" };
        let columns: Vec<String> = LOCATION.iter().map(|column| self.name(column)).collect();
        let values: Vec<&str> = LOCATION.iter().map(|column| self.value(column)).collect();
        let one = format!("({}{})", if with_id { "?," } else { "" }, values.join(","));
        format!(
            "INSERT INTO {} ({id}{}) VALUES {} ON DUPLICATE KEY UPDATE {}",
            self.location(),
            columns.join(", "),
            vec![one.as_str(); rows].join(","),
            self.updates(with_id)
        )
    }

    fn updates(&self, with_id: bool) -> String {
        // In Kamailio's table ruid is what the duplicate is found by.
        let changes = |column: &&&str| !(KEY.contains(*column) || self.kamailio() && **column == "ruid");
        let columns = LOCATION.iter().filter(changes).map(|column| self.name(column));
        let Some(wins) = self.wins(with_id) else {
            return columns.map(|c| format!("{c}=VALUES({c})")).collect::<Vec<_>>().join(",");
        };
        // Decided once per row, before anything that decides it is assigned: assignments go from left to right.
        let mut out = Vec::new();
        for column in columns {
            let condition =
                if out.is_empty() { format!("(@partyline_wins:={wins})") } else { "@partyline_wins".into() };
            out.push(format!("{column}=IF({condition},VALUES({column}),{column})"));
        }
        out.join(",")
    }

    /// The condition on which a row that exists is replaced, if there is one.
    fn wins(&self, with_id: bool) -> Option<String> {
        let [ruid, callid, cseq, modified, server] =
            ["ruid", "callid", "cseq", "last_modified", "server_id"].map(|c| self.name(c));
        // A row that has this id by now and is another binding's (the table was emptied and filled anew) is not touched.
        let same = format!("{ruid}=VALUES({ruid})");
        // What this server has written it may write over: it does so in order. Against others: one client counts its CSeq;
        // between two, time decides.
        let newer = format!(
            "({server}=VALUES({server}) OR IF({callid}=VALUES({callid}) AND {cseq}<>VALUES({cseq}),VALUES({cseq})>{cseq},VALUES({modified})>={modified}))"
        );
        match (with_id, self.shared) {
            (false, false) => None,
            (true, false) => Some(same),
            (false, true) => Some(newer),
            (true, true) => Some(format!("{same} AND {newer}")),
        }
    }

    /// All columns of [`LOCATION`] in order, then `id` in Kamailio's table.
    pub fn select(&self) -> String {
        let mut columns: Vec<String> = Vec::new();
        for column in LOCATION {
            let name = self.name(column);
            columns.push(if Self::is_time(column) && self.date_time() {
                format!("CAST(UNIX_TIMESTAMP({name}) AS SIGNED)")
            } else {
                name
            });
        }
        if self.kamailio() {
            columns.push("`id`".into());
        }
        format!("SELECT {} FROM {}", columns.join(", "), self.location())
    }

    /// In the order of the primary key, so that nothing is sorted: in our table the rows of one address-of-record follow each
    /// other then.
    pub fn all(&self) -> String {
        if self.kamailio() {
            return self.select();
        }
        format!("{} ORDER BY {}, {}", self.select(), self.name("username"), self.name("domain"))
    }

    /// Parameters: username, domain.
    pub fn of_aors(&self, count: usize) -> String {
        let equal = if self.kamailio() { "<=>" } else { "=" };
        let one = format!("({}=? AND {}{equal}?)", self.name("username"), self.name("domain"));
        format!("{} WHERE {}", self.select(), vec![one.as_str(); count].join(" OR "))
    }

    /// Parameters: those of [`Sql::key_parameters`]. A chain of ORs is read as ranges of the index by MySQL and MariaDB
    /// alike; row values with IN are not.
    fn by_keys(&self, count: usize) -> String {
        let [user, domain, contact, instance, reg_id] = KEY.map(|column| self.name(column));
        // Kamailio's text compares without case; its index finds the candidates, the bytes decide.
        let one = if self.kamailio() {
            format!(
                "({user}=? AND {domain}<=>? AND {contact}=? AND BINARY {contact}=? AND COALESCE({instance},'')=? AND {reg_id}=?)"
            )
        } else {
            format!("({user}=? AND {domain}=? AND {contact}=? AND {instance}=? AND {reg_id}=?)")
        };
        vec![one.as_str(); count].join(" OR ")
    }

    pub fn delete(&self, keys: usize) -> String {
        format!("DELETE FROM {} WHERE {}", self.location(), self.by_keys(keys))
    }

    pub fn lock(&self, keys: usize) -> String {
        format!("{} WHERE {} FOR UPDATE", self.select(), self.by_keys(keys))
    }

    pub fn ids(&self, count: usize) -> String {
        let ruid = self.name("ruid");
        format!("SELECT `id`, {ruid} FROM {} WHERE {ruid} IN ({})", self.location(), vec!["?"; count].join(","))
    }

    /// Who has rows: found by skipping through the index, not by reading it.
    pub fn servers(&self) -> String {
        let server_id = self.name("server_id");
        format!("SELECT DISTINCT {server_id} FROM {}", self.location())
    }

    /// Parameters: the time, then the servers.
    pub fn changed(&self, servers: usize) -> String {
        format!(
            "{} WHERE {} >= {} AND {} IN ({})",
            self.select(),
            self.name("last_modified"),
            self.value("last_modified"),
            self.name("server_id"),
            vec!["?"; servers].join(",")
        )
    }

    /// Kamailio's rows with expires 0 never end.
    pub fn sweep(&self) -> String {
        let (expires, value) = (self.name("expires"), self.value("expires"));
        let mortal = match (self.kamailio(), self.date_time()) {
            (false, _) => String::new(),
            (true, false) => format!("{expires} > 0 AND "),
            (true, true) => format!("{expires} > FROM_UNIXTIME(0) AND "),
        };
        format!("DELETE FROM {} WHERE {mortal}{expires} < {value} LIMIT {SWEEP}", self.location())
    }
}

/// Rows per statement of the sweeper.
pub(super) const SWEEP: u64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(schema: Schema, shared: bool) -> Sql {
        let mut layout = Layout::default();
        layout.schema = schema;
        Sql::new(&StoreOptions { layout, shared, ..StoreOptions::default() })
    }

    #[test]
    fn statements_take_what_they_are_given() {
        for shared in [false, true] {
            let own = sql(Schema::Own, shared);
            assert_eq!(own.upsert(3, false).matches('?').count(), 3 * LOCATION.len());
            assert_eq!(own.delete(2).matches('?').count(), 10);
            assert_eq!(own.upsert(1, false).contains("@partyline_wins"), shared);
            let theirs = sql(Schema::Kamailio, shared);
            assert_eq!(theirs.upsert(3, true).matches('?').count(), 3 * (LOCATION.len() + 1));
            assert_eq!(theirs.delete(2).matches('?').count(), 12);
            assert!(theirs.upsert(1, true).contains("`ruid`=VALUES(`ruid`)"));
            assert_eq!(theirs.upsert(1, false).matches("FROM_UNIXTIME(?)").count(), 2);
        }
    }
}
