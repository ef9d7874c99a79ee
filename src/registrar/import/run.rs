//! The import itself.

use std::fs::File;
use std::io::{BufRead, BufReader, stdin};

use mysql::prelude::Queryable;

use super::{Csv, Error, Existing, Options, Schema, Source, Table, error};
use crate::registrar::store::{self, Aor, Key, StoreOptions, kamailio_ruid};
use crate::sip::digest::{Algorithm, Hash};

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub read: u64,
    pub written: u64,
    /// Stood there already.
    pub kept: u64,
    /// Rows that were left out, and why: the first thousand.
    pub bad: Vec<String>,
    pub bad_count: u64,
}

/// Rows on their way: the source's names, then one row after the other.
trait Rows {
    fn names(&self) -> &[String];
    /// The next row, and what to call it in a message.
    fn next_row(&mut self) -> Result<Option<(String, Vec<String>)>, Error>;
}

struct CsvRows<R> {
    csv: Csv<R>,
    names: Vec<String>,
}

impl<R: BufRead> CsvRows<R> {
    fn new(input: R, separator: u8) -> Result<Self, Error> {
        let mut csv = Csv::new(input, separator);
        let names = csv.next_record()?.ok_or_else(|| error("the file is empty: a line of names is expected first"))?;
        Ok(CsvRows { csv, names: names.into_iter().map(|name| name.trim().to_owned()).collect() })
    }
}

impl<R: BufRead> Rows for CsvRows<R> {
    fn names(&self) -> &[String] {
        &self.names
    }
    fn next_row(&mut self) -> Result<Option<(String, Vec<String>)>, Error> {
        let Some(row) = self.csv.next_record()? else { return Ok(None) };
        let place = format!("line {}", self.csv.line());
        if row.len() != self.names.len() {
            return Err(error(format!("{place}: {} fields where there are {} names", row.len(), self.names.len())));
        }
        Ok(Some((place, row)))
    }
}

/// A query's rows, all of them: sources are the size of a user database.
struct Selected {
    names: Vec<String>,
    rows: std::vec::IntoIter<Vec<String>>,
    count: u64,
}

impl Rows for Selected {
    fn names(&self) -> &[String] {
        &self.names
    }
    fn next_row(&mut self) -> Result<Option<(String, Vec<String>)>, Error> {
        self.count += 1;
        Ok(self.rows.next().map(|row| (format!("row {}", self.count), row)))
    }
}

fn connect(url: &str) -> Result<mysql::Conn, Error> {
    let opts = store::mysql_options(url).map_err(|e| error(e.to_string()))?;
    let mut conn = mysql::Conn::new(opts).map_err(|e| error(format!("cannot connect: {e}")))?;
    conn.query_drop("SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'").map_err(sql_error)?;
    Ok(conn)
}

fn sql_error(e: mysql::Error) -> Error {
    error(format!("the database says: {e}"))
}

fn lite_error(e: rusqlite::Error) -> Error {
    error(format!("SQLite says: {e}"))
}

fn select(url: &str, sql: &str) -> Result<Selected, Error> {
    let text = |bytes: &[u8]| {
        String::from_utf8(bytes.to_vec()).map_err(|_| error("a value of the query is not UTF-8: CONVERT it there"))
    };
    let mut all = Vec::new();
    let names: Vec<String>;
    if let Some(path) = url.strip_prefix("sqlite:") {
        let db = rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(lite_error)?;
        let mut statement = db.prepare(sql).map_err(lite_error)?;
        names = statement.column_names().into_iter().map(String::from).collect();
        let mut rows = statement.query([]).map_err(lite_error)?;
        while let Some(row) = rows.next().map_err(lite_error)? {
            let mut values = Vec::with_capacity(names.len());
            for i in 0..names.len() {
                use rusqlite::types::ValueRef;
                values.push(match row.get_ref(i).map_err(lite_error)? {
                    ValueRef::Null => String::new(),
                    ValueRef::Integer(n) => n.to_string(),
                    ValueRef::Real(n) => n.to_string(),
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => text(bytes)?,
                });
            }
            all.push(values);
        }
    } else {
        let mut conn = connect(url)?;
        // As text: every value is what the server prints.
        let result = conn.query_iter(sql).map_err(sql_error)?;
        names = result.columns().as_ref().iter().map(|column| column.name_str().into_owned()).collect();
        for row in result {
            let values = row.map_err(sql_error)?.unwrap().into_iter().map(|value| match value {
                mysql::Value::NULL => Ok(String::new()),
                mysql::Value::Bytes(bytes) => text(&bytes),
                other => Ok(other.as_sql(true).trim_matches('\'').to_owned()),
            });
            all.push(values.collect::<Result<_, _>>()?);
        }
    }
    Ok(Selected { names, rows: all.into_iter(), count: 0 })
}

/// The database that is written.
enum Target {
    Mysql(Box<mysql::Conn>),
    Sqlite(rusqlite::Connection),
}

impl Target {
    fn open(options: &Options) -> Result<Target, Error> {
        // Makes the tables where they are missing, refuses what is not theirs.
        let url = &options.target[..];
        let mut how = StoreOptions::default();
        (how.layout.schema, how.layout.time_zone) = (options.schema, options.time_zone.clone());
        store::open(url, &how).and_then(|store| store.prepare()).map_err(|e| error(e.to_string()))?;
        match url.strip_prefix("sqlite:") {
            Some(path) => {
                let db = rusqlite::Connection::open(path).map_err(lite_error)?;
                db.busy_timeout(std::time::Duration::from_secs(10)).map_err(lite_error)?;
                Ok(Target::Sqlite(db))
            }
            None => {
                let mut conn = connect(url)?;
                // The store has looked at the name.
                conn.query_drop(format!("SET SESSION time_zone = '{}'", options.time_zone)).map_err(sql_error)?;
                Ok(Target::Mysql(Box::new(conn)))
            }
        }
    }

    /// The name of a binding in Kamailio's table: that of the row that stands there, or the one that the registrar makes.
    fn ruid(&mut self, key: &Key<'_>) -> Result<String, Error> {
        let Target::Mysql(conn) = self else { return Ok(kamailio_ruid(key)) };
        let domain = Some(key.aor.domain).filter(|domain| !domain.is_empty());
        let found: Option<String> = conn
            .exec_first(
                "SELECT ruid FROM location WHERE username = ? AND domain <=> ? AND contact = ? AND BINARY contact = ? \
                 AND COALESCE(instance, '') = ? AND reg_id = ?",
                (key.aor.user, domain, key.contact, key.contact, key.instance, key.reg_id),
            )
            .map_err(sql_error)?;
        Ok(found.unwrap_or_else(|| kamailio_ruid(key)))
    }

    fn run(&mut self, sql: &str) -> Result<(), Error> {
        match self {
            Target::Mysql(conn) => conn.query_drop(sql).map_err(sql_error),
            Target::Sqlite(db) => db.execute_batch(sql).map_err(lite_error),
        }
    }

    /// Rows that it changed.
    fn insert(&mut self, sql: &str, values: &[Option<String>]) -> Result<u64, Error> {
        match self {
            Target::Mysql(conn) => {
                let values =
                    values.iter().map(|v| v.as_deref().map_or(mysql::Value::NULL, mysql::Value::from)).collect();
                conn.exec_drop(sql, mysql::Params::Positional(values)).map_err(sql_error)?;
                Ok(conn.affected_rows())
            }
            Target::Sqlite(db) => {
                let mut statement = db.prepare_cached(sql).map_err(lite_error)?;
                statement.execute(rusqlite::params_from_iter(values)).map(|n| n as u64).map_err(lite_error)
            }
        }
    }

    fn statement(&self, table: Table, schema: Schema, columns: &[&str], existing: Existing) -> String {
        let value = |column: &&str| match *column {
            // The last second that FROM_UNIXTIME knows everywhere.
            "expires" | "last_modified" if schema == Schema::Kamailio => {
                "FROM_UNIXTIME(LEAST(CAST(? AS UNSIGNED), 2147483647))"
            }
            _ => "?",
        };
        let (mysql, key): (bool, &[&str]) = match (self, table) {
            (Target::Mysql(_), _) => (true, &[]),
            (Target::Sqlite(_), Table::Subscriber) => (false, &["username", "domain"]),
            (Target::Sqlite(_), Table::Location) => (false, &["username", "domain", "contact", "instance", "reg_id"]),
        };
        let insert = format!(
            "INSERT INTO {} ({}) VALUES ({})",
            table.name(),
            columns.join(", "),
            columns.iter().map(value).collect::<Vec<_>>().join(", ")
        );
        let updates = |form: &dyn Fn(&str) -> String| columns.iter().map(|c| form(c)).collect::<Vec<_>>().join(", ");
        match existing {
            Existing::Fail => insert,
            // A row that stays is said to be unchanged.
            Existing::Keep if mysql => format!("{insert} ON DUPLICATE KEY UPDATE username = {}.username", table.name()),
            Existing::Replace if mysql => {
                format!("{insert} ON DUPLICATE KEY UPDATE {}", updates(&|c| format!("{c} = VALUES({c})")))
            }
            Existing::Keep => format!("{insert} ON CONFLICT ({}) DO NOTHING", key.join(", ")),
            Existing::Replace => {
                format!(
                    "{insert} ON CONFLICT ({}) DO UPDATE SET {}",
                    key.join(", "),
                    updates(&|c| format!("{c} = excluded.{c}"))
                )
            }
        }
    }
}

/// Reads, checks and writes.
pub fn run(options: &Options) -> Result<Report, Error> {
    let mut rows: Box<dyn Rows> = match &options.source {
        Source::Csv { path, separator } if path == "-" => Box::new(CsvRows::new(stdin().lock(), *separator)?),
        Source::Csv { path, separator } => {
            let file = File::open(path).map_err(|e| error(format!("{path} cannot be opened: {e}")))?;
            Box::new(CsvRows::new(BufReader::new(file), *separator)?)
        }
        Source::Query { url, sql } => Box::new(select(url, sql)?),
    };
    let columns = options.table.columns();
    // Where each column of the table stands in the source.
    let mut places = Vec::new();
    for (column, _) in &options.map {
        if !columns.iter().any(|known| known.name == column) {
            return Err(error(format!("table {} has no column {column:?} to be imported", options.table.name())));
        }
    }
    for column in columns {
        let mapped = options.map.iter().find(|(name, _)| name == column.name).map(|(_, source)| &source[..]);
        let wanted = mapped.unwrap_or(column.name);
        let place = rows.names().iter().position(|name| name.eq_ignore_ascii_case(wanted));
        if place.is_none() && (mapped.is_some() || column.required) {
            return Err(error(format!("the source has no column {wanted:?}, only {}", rows.names().join(", "))));
        }
        places.push(place);
    }
    let mut written: Vec<&str> = Vec::new();
    for (column, place) in columns.iter().zip(&places) {
        let made = options.hash.is_some() && ["ha1", "ha1b"].contains(&column.name);
        let dropped = options.hash.is_some() && column.name == "password";
        if (place.is_some() || made || column.name == "domain") && !dropped {
            written.push(column.name);
        }
    }
    let kamailio = options.schema == Schema::Kamailio && options.table == Table::Location;
    // What Kamailio's table would fill in otherwise than the registrar does.
    for column in ["ruid", "q"] {
        if kamailio && !written.contains(&column) {
            written.push(column);
        }
    }
    let mut target = Target::open(options)?;
    let sql = target.statement(options.table, options.schema, &written, options.existing);
    target.run(if matches!(target, Target::Mysql(_)) { "START TRANSACTION" } else { "BEGIN IMMEDIATE" })?;
    let mut report = Report::default();
    loop {
        let (place, row) = match rows.next_row() {
            Ok(Some(row)) => row,
            Ok(None) => break,
            Err(e) if options.skip_bad => {
                note(&mut report, e.0);
                continue;
            }
            Err(e) => return Err(e),
        };
        report.read += 1;
        let outcome = prepare(options, &places, &written, &row).and_then(|mut values| {
            if kamailio {
                name_binding(&mut target, &written, &mut values)?;
            }
            target.insert(&sql, &values)
        });
        match outcome {
            Ok(0) => report.kept += 1,
            Ok(_) => report.written += 1,
            Err(e) if options.skip_bad => note(&mut report, format!("{place}: {e}")),
            Err(e) => return Err(error(format!("{place}: {e}; nothing was imported"))),
        }
    }
    target.run(if options.dry_run { "ROLLBACK" } else { "COMMIT" })?;
    Ok(report)
}

/// Gives a row of Kamailio's table what is NULL or has another form there, and its `ruid`.
fn name_binding(target: &mut Target, written: &[&str], values: &mut [Option<String>]) -> Result<(), Error> {
    let at = |name: &str| written.iter().position(|column| *column == name);
    let text = |name: &str| at(name).and_then(|at| values[at].as_deref()).unwrap_or_default();
    let key = Key {
        aor: Aor { user: text("username").as_bytes(), domain: text("domain").as_bytes() },
        contact: text("contact").as_bytes(),
        instance: text("instance").as_bytes(),
        reg_id: text("reg_id").parse().unwrap_or(0),
    };
    let ruid = if text("ruid").is_empty() { target.ruid(&key)? } else { text("ruid").to_owned() };
    for (column, value) in written.iter().zip(values) {
        match *column {
            "ruid" => *value = Some(ruid.clone()),
            "domain" | "instance" => *value = value.take().filter(|text| !text.is_empty()),
            // No q.
            "q" if value.as_deref() == Some("-1") => *value = Some("-0.01".into()),
            _ => {}
        }
    }
    Ok(())
}

fn note(report: &mut Report, text: String) {
    report.bad_count += 1;
    if report.bad.len() < 1000 {
        report.bad.push(text);
    }
}

/// The values of one row, in the order of `written`.
fn prepare(
    options: &Options,
    places: &[Option<usize>],
    written: &[&str],
    row: &[String],
) -> Result<Vec<Option<String>>, Error> {
    let columns = options.table.columns();
    let value = |name: &str| -> &str {
        let at = columns.iter().position(|column| column.name == name).and_then(|at| places[at]);
        let text = at.map_or("", |at| &row[at][..]);
        if text.is_empty() && name == "domain" { &options.domain } else { text }
    };
    for column in columns {
        column.check(value(column.name)).map_err(|e| error(e.0))?;
    }
    let secret = |name: &str| {
        let (user, domain, password) = (value("username"), value("domain"), value("password"));
        let realm = options.hash.as_deref().filter(|realm| !realm.is_empty()).unwrap_or(domain);
        let user = if name == "ha1b" { format!("{user}@{domain}") } else { user.to_owned() };
        let hash = Hash::ha1(Algorithm::Md5, user.as_bytes(), realm.as_bytes(), password.as_bytes());
        String::from_utf8_lossy(hash.as_bytes()).into_owned()
    };
    if options.table == Table::Subscriber && ["password", "ha1"].iter().all(|name| value(name).is_empty()) {
        return Err(error("neither password nor ha1: nobody could prove to be this user"));
    }
    let mut out = Vec::with_capacity(written.len());
    for name in written {
        let text = value(name);
        out.push(if options.hash.is_some() && ["ha1", "ha1b"].contains(name) && !value("password").is_empty() {
            Some(secret(name))
        } else if !text.is_empty() {
            Some(text.to_owned())
        } else {
            // NULL where the table has it, else what stands for nothing.
            match *name {
                "received" | "path" | "socket" | "methods" => None,
                "q" => Some("-1".into()),
                "reg_id" | "cseq" | "last_modified" => Some("0".into()),
                _ => Some(String::new()),
            }
        });
    }
    Ok(out)
}
