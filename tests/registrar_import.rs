//! `partyline-import`, as a user runs it: CSV and queries into both tables, on SQLite and MariaDB.

#[allow(dead_code, reason = "other tests use the rest")]
mod common {
    pub mod mariadb;
}
#[path = "registrar_support/kamailio.rs"]
mod kamailio;
mod registrar_support;

use std::path::PathBuf;
use std::process::{Command, Output};

use common::mariadb::Mariadb;
use mysql::prelude::Queryable;
use partyline::registrar::Mode;
use registrar_support::{Bench, SqliteFile, eventually, now, options, sqlite_path};

fn import(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_partyline-import")).args(arguments).output().expect("partyline-import")
}

fn good(arguments: &[&str]) -> String {
    let output = import(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

struct Csv(PathBuf);

impl Csv {
    fn new(text: &str) -> Csv {
        let path = sqlite_path("import").with_extension("csv");
        std::fs::write(&path, text).expect("csv");
        Csv(path)
    }
    fn path(&self) -> &str {
        self.0.to_str().expect("a path")
    }
}

impl Drop for Csv {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn users_of_a_csv_file() {
    let file = SqliteFile::new("import-users");
    let url = file.url();
    let csv = Csv::new("login,pw,extra\nalice,secret,1\n\"o'brien\",\"a,b\"\"c\",2\n");
    let arguments = [
        "--to",
        &url,
        "--csv",
        csv.path(),
        "--map",
        "username=login",
        "--map",
        "password=pw",
        "--domain",
        "example.org",
    ];
    let dry = [&arguments[..], &["--dry-run"]].concat();
    assert_eq!(good(&dry), "2 rows read, 2 would be written, 0 stood there already, 0 left out");
    assert_eq!(file.count("SELECT count(*) FROM subscriber"), 0);
    assert_eq!(good(&arguments), "2 rows read, 2 written, 0 stood there already, 0 left out");
    let password: String = file
        .connect()
        .query_row("SELECT password FROM subscriber WHERE username = 'o''brien' AND domain = 'example.org'", [], |r| {
            r.get(0)
        })
        .expect("row");
    assert_eq!(password, "a,b\"c");
    // Again: refused, kept, replaced.
    let again = import(&arguments);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("line 2:"), "{}", String::from_utf8_lossy(&again.stderr));
    let keep = [&arguments[..], &["--existing", "keep"]].concat();
    assert_eq!(good(&keep), "2 rows read, 0 written, 2 stood there already, 0 left out");
    // Hashed: MD5 of alice:example.org:secret, and no password.
    let hash = [&arguments[..], &["--existing", "replace", "--hash"]].concat();
    good(&hash);
    let row: (String, String) = file
        .connect()
        .query_row("SELECT ha1, ha1b FROM subscriber WHERE username = 'alice'", [], |r| Ok((r.get(0)?, r.get(1)?)))
        .expect("row");
    let md5 = |text: &str| {
        use md5::{Digest, Md5};
        Md5::digest(text).iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    assert_eq!(row, (md5("alice:example.org:secret"), md5("alice@example.org:example.org:secret")));
}

#[test]
fn a_row_that_cannot_be_taken_ends_it_or_is_left_out() {
    let file = SqliteFile::new("import-bad");
    let url = file.url();
    let long = "x".repeat(65);
    let csv = Csv::new(&format!("username,password\ngood,1\n{long},2\nnobody,\n,3\nalso,4\nshort\nlast,5\n"));
    let arguments = ["--to", &url, "--csv", csv.path(), "--domain", "h"];
    let stopped = import(&arguments);
    let said = String::from_utf8_lossy(&stopped.stderr).into_owned();
    assert_eq!(stopped.status.code(), Some(1));
    assert!(said.contains("line 3: username has 65 bytes, more than 64; nothing was imported"), "{said}");
    assert_eq!(file.count("SELECT count(*) FROM subscriber"), 0);
    let some = import(&[&arguments[..], &["--skip-bad"]].concat());
    let said = String::from_utf8_lossy(&some.stderr).into_owned();
    assert_eq!(some.status.code(), Some(3), "{said}");
    for line in
        ["line 3: username has 65", "line 4: neither password nor ha1", "line 5: username is empty", "line 7: 1 fields"]
    {
        assert!(said.contains(line), "{said}");
    }
    assert_eq!(file.count("SELECT count(*) FROM subscriber"), 3);
    for bad in [&["--to", &url[..]][..], &["--to", &url, "--csv", "/nowhere", "--query", "x"], &["--nonsense"]] {
        assert_eq!(import(bad).status.code(), Some(2), "{bad:?}");
    }
    let missing = import(&["--to", &url, "--csv", csv.path(), "--map", "ha1=hash"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("the source has no column \"hash\""));
}

#[test]
fn users_and_bindings_of_a_legacy_database() {
    let server = Mariadb::shared();
    let old = server.database("legacy");
    let new = server.database("fresh");
    let mut conn = server.connect("legacy");
    conn.query_drop("CREATE TABLE accounts (name VARCHAR(64), realm VARCHAR(64), hash CHAR(32), active INT)")
        .expect("table");
    conn.query_drop("INSERT INTO accounts SELECT CONCAT('u', seq), 'example.org', MD5(seq), seq % 2 FROM seq_1_to_100")
        .expect("rows");
    let sql = "SELECT name AS username, realm AS domain, hash AS ha1 FROM accounts WHERE active = 1";
    assert_eq!(
        good(&["--to", &new, "--from", &old, "--query", sql]),
        "50 rows read, 50 written, 0 stood there already, 0 left out"
    );
    conn.query_drop("CREATE TABLE contacts (who VARCHAR(64), uri VARCHAR(255), until DATETIME)").expect("table");
    conn.query_drop("INSERT INTO contacts SELECT CONCAT('u', seq), CONCAT('sip:u', seq, '@192.0.2.1'), NOW() + INTERVAL 1 HOUR FROM seq_1_to_20").expect("rows");
    let sql = "SELECT who AS username, uri AS contact, UNIX_TIMESTAMP(until) AS expires FROM contacts";
    let arguments = ["--to", &new, "--table", "location", "--from", &old, "--query", sql, "--domain", "example.org"];
    assert_eq!(good(&arguments), "20 rows read, 20 written, 0 stood there already, 0 left out");
    let keep = [&arguments[..], &["--existing", "keep"]].concat();
    assert_eq!(good(&keep), "20 rows read, 0 written, 20 stood there already, 0 left out");
    // The registrar takes them as its own.
    let bench = Bench::open(options(Mode::WriteThrough, &new));
    eventually("preload", || bench.registrar.complete());
    let mut found = Vec::new();
    let looked = bench.registrar.lookup(b"u7@example.org", now(), |b| found.push((b.contact.to_vec(), b.q, b.cseq)));
    assert_eq!((looked, found), (Ok(1), vec![(b"sip:u7@192.0.2.1".to_vec(), partyline::registrar::store::NO_Q, 0)]));
    let ha1: Option<String> =
        server.connect("fresh").query_first("SELECT ha1 FROM subscriber WHERE username = 'u7'").expect("row");
    assert_eq!(ha1.map(|h| h.len()), Some(32));
}

#[test]
fn kamailios_tables_as_the_target() {
    let server = Mariadb::shared();
    let url = kamailio::database(server, "into_kamailio");
    let mut conn = server.connect("into_kamailio");
    conn.query_drop(
        "INSERT INTO location (ruid, username, domain, contact, callid, cseq, expires, last_modified)
         VALUES ('uloc-5f-1', 'u1', 'example.org', 'sip:u1@192.0.2.1', 'c', 3, NOW() + INTERVAL 1 HOUR, NOW())",
    )
    .expect("a row of Kamailio's");
    let until = now() + 3600;
    let csv = Csv::new(&format!(
        "username,contact,expires,instance\nu1,sip:u1@192.0.2.1,{until},\nu2,sip:u2@192.0.2.1,{until},<urn:uuid:1>\n\
         u3,sip:u3@192.0.2.1,4294967295,\n"
    ));
    let schema = ["--schema", "kamailio"];
    let arguments = ["--to", &url, "--csv", csv.path(), "--table", "location", "--domain", "example.org"];
    // Into our own table it is not.
    assert_eq!(import(&arguments).status.code(), Some(1));
    let arguments = [&arguments[..], &schema].concat();
    let refused = import(&arguments);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("line 2:"), "the row that stands there has its name");
    let keep = [&arguments[..], &["--existing", "keep"]].concat();
    assert_eq!(good(&keep), "3 rows read, 2 written, 1 stood there already, 0 left out");
    let replace = [&arguments[..], &["--existing", "replace"]].concat();
    good(&replace);
    let rows: Vec<(String, u32, Option<String>, i64)> = conn
        .query("SELECT ruid, id, instance, CAST(UNIX_TIMESTAMP(expires) AS SIGNED) FROM location ORDER BY username")
        .expect("rows");
    assert_eq!((rows.len(), &rows[0].0[..], rows[0].3), (3, "uloc-5f-1", i64::from(until)));
    assert_eq!((rows[1].2.as_deref(), rows[1].3), (Some("<urn:uuid:1>"), i64::from(until)));
    assert_eq!((rows[2].2.as_deref(), rows[2].3), (None, i64::from(i32::MAX)));
    // A registrar takes them as its own: a refresh is the same row.
    let mut options = options(Mode::WriteThrough, &url);
    options.store.layout.schema = partyline::registrar::store::Schema::Kamailio;
    let bench = Bench::open(options);
    eventually("preload", || bench.registrar.complete());
    let contacts = [registrar_support::contact("sip:u3@192.0.2.1")];
    bench.complete(&registrar_support::request("u3@example.org", "c", 1, &contacts), now(), 1).expect("committed");
    let after: Vec<(String, u32)> = conn.query("SELECT ruid, id FROM location ORDER BY username").expect("rows");
    assert_eq!(after, rows.iter().map(|(ruid, id, ..)| (ruid.clone(), *id)).collect::<Vec<_>>());
    let users = Csv::new("username,password\nalice,secret\n");
    good(&[&["--to", &url[..], "--csv", users.path(), "--domain", "example.org", "--hash"][..], &schema].concat());
    let ha1: Option<String> = conn.query_first("SELECT ha1 FROM subscriber WHERE username = 'alice'").expect("row");
    assert_eq!(ha1.map(|text| text.len()), Some(32));
}
