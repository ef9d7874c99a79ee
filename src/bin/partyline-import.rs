//! Brings the users or bindings of another system into Partyline's tables. docs/storage.md, "Import".

use std::process::ExitCode;

use partyline::registrar::import::{Existing, Options, Schema, Source, Table, run};

const USAGE: &str = "\
usage: partyline-import --to URL (--csv FILE | --from URL --query SQL) [OPTIONS]
  --to URL            sqlite:PATH or mysql://user:password@host:port/database
  --csv FILE          a line of names first; - is the standard input
  --separator C       of the CSV, default a comma; tab is said as 'tab'
  --from URL --query SQL   rows of a SELECT
  --table NAME        subscriber (default) or location
  --schema NAME       own (default) or kamailio: the target's tables are Kamailio's (5.6 to 5.8), as they stand
  --time-zone ZONE    of DATETIME in Kamailio's table, default SYSTEM
  --map COLUMN=NAME   the source's name of a column, again for each that differs
  --domain NAME       the domain of rows that have none
  --hash [REALM]      stores ha1 and ha1b made of password, not the password; realm: REALM= or the row's domain
  --existing WHAT     rows that stand there already: fail (default), keep, replace
  --skip-bad          rows that cannot be taken are named and left out
  --dry-run           everything but the commit
Columns: subscriber  username domain password ha1 ha1b
         location    username domain contact instance reg_id ruid received path callid user_agent socket expires
                     last_modified cseq q methods     (times in seconds since 1970)
Stops at the first row that cannot be taken, and nothing is imported then.
";

fn options() -> Result<Options, String> {
    let mut arguments = std::env::args().skip(1).peekable();
    let (mut target, mut csv, mut from, mut query) = (None, None, None, None);
    let mut separator = b',';
    let mut options = Options {
        source: Source::Csv { path: String::new(), separator },
        target: String::new(),
        schema: Schema::Own,
        time_zone: "SYSTEM".into(),
        table: Table::Subscriber,
        map: Vec::new(),
        domain: String::new(),
        hash: None,
        existing: Existing::default(),
        skip_bad: false,
        dry_run: false,
    };
    while let Some(name) = arguments.next() {
        match &name[..] {
            "--help" | "-h" => {
                print!("{USAGE}");
                std::process::exit(0);
            }
            "--skip-bad" => options.skip_bad = true,
            "--dry-run" => options.dry_run = true,
            "--hash" => {
                let realm = arguments.next_if(|next| !next.starts_with("--")).unwrap_or_default();
                options.hash = Some(realm);
            }
            _ => {
                let value = arguments.next().ok_or(format!("{name} needs a value"))?;
                match &name[..] {
                    "--to" => target = Some(value),
                    "--csv" => csv = Some(value),
                    "--from" => from = Some(value),
                    "--query" => query = Some(value),
                    "--domain" => options.domain = value,
                    "--separator" if value == "tab" => separator = b'\t',
                    "--separator" if value.len() == 1 && value != "\"" => separator = value.as_bytes()[0],
                    "--table" if value == "subscriber" => options.table = Table::Subscriber,
                    "--table" if value == "location" => options.table = Table::Location,
                    "--schema" if value == "own" => options.schema = Schema::Own,
                    "--schema" if value == "kamailio" => options.schema = Schema::Kamailio,
                    "--time-zone" => options.time_zone = value,
                    "--existing" if value == "fail" => options.existing = Existing::Fail,
                    "--existing" if value == "keep" => options.existing = Existing::Keep,
                    "--existing" if value == "replace" => options.existing = Existing::Replace,
                    "--map" => {
                        let (column, source) = value.split_once('=').ok_or("--map takes COLUMN=NAME")?;
                        options.map.push((column.to_owned(), source.to_owned()));
                    }
                    _ => return Err(format!("{name} {value} is not understood")),
                }
            }
        }
    }
    options.target = target.ok_or("--to is missing")?;
    options.source = match (csv, from, query) {
        (Some(path), None, None) => Source::Csv { path, separator },
        (None, Some(url), Some(sql)) => Source::Query { url, sql },
        _ => return Err("give either --csv, or --from and --query".into()),
    };
    if options.hash.is_some() && options.table == Table::Location {
        return Err("--hash is for the table subscriber".into());
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(text) => {
            eprint!("partyline-import: {text}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(report) => {
            for line in &report.bad {
                eprintln!("partyline-import: left out: {line}");
            }
            let what = if options.dry_run { "would be written" } else { "written" };
            println!(
                "{} rows read, {} {what}, {} stood there already, {} left out",
                report.read, report.written, report.kept, report.bad_count
            );
            if report.bad_count > 0 { ExitCode::from(3) } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("partyline-import: {error}");
            ExitCode::FAILURE
        }
    }
}
