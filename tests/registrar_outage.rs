//! write_through while its MariaDB is stopped, killed, slow, read-only, locked or cutting connections: what clients see, and
//! that the database has everything in the end.

#[allow(dead_code, reason = "other tests use the rest")]
mod common {
    pub mod mariadb;
}
mod registrar_support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::mariadb::Mariadb;
use mysql::prelude::Queryable;
use parking_lot::Mutex;
use partyline::registrar::store::Kind;
use partyline::registrar::{Mode, Options, Outcome, RegisterRequest};
use registrar_support::{Answer, Bench, contact, eventually, lasting, now, options, request, sqlite_path};

struct SpoolFile(PathBuf);

impl SpoolFile {
    fn new(name: &str) -> SpoolFile {
        SpoolFile(sqlite_path(name))
    }
    /// Changes in it. The registrar that has it open must be closed.
    fn held(&self) -> i64 {
        let db = rusqlite::Connection::open(&self.0).expect("spool");
        db.query_row("SELECT coalesce(sum(changes), 0) FROM spool", [], |row| row.get(0)).expect("sum")
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", self.0.display()));
        }
    }
}

fn spooling(url: &str, spool: &SpoolFile) -> Options {
    Options {
        spool: spool.0.display().to_string(),
        spool_after: Duration::from_millis(100),
        commit_timeout: Duration::from_secs(30),
        ..options(Mode::WriteThrough, url)
    }
}

fn open(options: Options) -> Bench {
    let bench = Bench::open(options);
    eventually("preload", || bench.registrar.complete());
    bench
}

/// Hands a request in without waiting for its commit.
fn submit(bench: &Bench, request: &RegisterRequest<'_>, waiter: u64) {
    let Outcome::Durable(ticket) = bench.registrar.register(request, now(), &mut Answer::default()) else {
        panic!("not durable")
    };
    if bench.registrar.submit(ticket, waiter).is_some() {
        bench.notes.committed.lock().insert(waiter, Ok(()));
    }
    bench.registrar.kick();
}

fn count(server: &Mariadb, database: &str, sql: &str) -> i64 {
    server.connect(database).query_first(sql).expect(sql).expect("a row")
}

fn spooled(bench: &Bench) -> u64 {
    bench.registrar.counters().spooled.get()
}

#[test]
fn while_the_database_is_dead_the_spool_answers_and_is_replayed_in_order() {
    let server = Mariadb::start("spool");
    let file = SpoolFile::new("spool-dead");
    let bench = open(spooling(&server.url("partyline"), &file));
    let start = now();
    let uri = [contact("sip:a@h")];
    for n in 0..200 {
        submit(&bench, &request(&format!("u{n}@h"), "c", 1, &uri), n);
    }
    bench.notes.wait("before", |committed| committed.len() == 200);
    assert_eq!(spooled(&bench), 0);
    server.kill();
    // Every address-of-record changes several times; some go, some go and come back.
    for round in 2..6u32 {
        for n in 0..200u64 {
            let expires = if (n + u64::from(round)) % 5 == 0 { 0 } else { 600 };
            let uri = [lasting("sip:a@h", expires)];
            submit(&bench, &request(&format!("u{n}@h"), "c", round, &uri), u64::from(round) * 1000 + n);
        }
    }
    bench.notes.wait("acknowledged while it is dead", |committed| committed.len() == 1000);
    assert!(bench.notes.committed.lock().values().all(|result| result.is_ok()));
    assert!(spooled(&bench) > 0);
    // Questions are answered at once, also about what only the spool has.
    assert_eq!(bench.complete(&request("u1@h", "q", 1, &[]), start, 1 << 40).map(|a| a.contacts.len()), Ok(1));
    server.restart();
    eventually("replayed", || bench.registrar.unwritten() == 0);
    // Directly again.
    let before = spooled(&bench);
    submit(&bench, &request("after@h", "c", 1, &uri), 1 << 41);
    assert_eq!(bench.notes.outcome(1 << 41), Ok(()));
    assert_eq!(spooled(&bench), before);
    let mut conn = server.connect("partyline");
    let rows: Vec<(String, u32)> = conn
        .query("SELECT CAST(username AS CHAR), cseq FROM location WHERE username LIKE 'u%' ORDER BY username")
        .expect("rows");
    let mut expected: Vec<(String, u32)> =
        (0..200u32).filter(|n| (n + 5) % 5 != 0).map(|n| (format!("u{n}"), 5)).collect();
    expected.sort();
    assert_eq!(rows, expected);
    drop(bench);
    assert_eq!(file.held(), 0);
}

#[test]
fn what_a_run_leaves_in_the_spool_is_replayed_before_the_next_answers() {
    let server = Mariadb::start("leftover");
    let file = SpoolFile::new("spool-left");
    let url = server.url("partyline");
    let bench = open(spooling(&url, &file));
    let uri = [contact("sip:a@h")];
    for (waiter, aor) in [(0, "old@h"), (1000, "two@h")] {
        submit(&bench, &request(aor, "c", 1, &uri), waiter);
        assert_eq!(bench.notes.outcome(waiter), Ok(()));
    }
    server.kill();
    for n in 1..=150 {
        submit(&bench, &request(&format!("u{n}@h"), "c", 1, &uri), n);
    }
    submit(&bench, &request("old@h", "c", 2, &[lasting("sip:a@h", 0)]), 151);
    bench.notes.wait("acknowledged", |committed| committed.len() == 153);
    // What is durable needs no waiting for the database at the end.
    let closing = Instant::now();
    drop(bench);
    assert!(closing.elapsed() < Duration::from_secs(9), "closed only after close_timeout");
    assert_eq!(file.held(), 151);
    // Without the database it starts: what only adds a binding is spooled and answered, what needs to know the others waits.
    let brief = || Options { commit_timeout: Duration::from_secs(2), ..spooling(&url, &file) };
    let bench = Bench::open(brief());
    for (waiter, aor) in [(1, "fresh@h"), (2, "u1@h")] {
        assert_eq!(bench.complete(&request(aor, "c", 2, &uri), now(), waiter).map(|a| a.status), Ok(200), "{aor}");
    }
    let other = [contact("sip:b@h")];
    let answer = bench.complete(&request("two@h", "d", 1, &other), now(), 3).expect("spooled");
    assert_eq!(answer.uris(), ["sip:b@h"]);
    let remove = [lasting("sip:a@h", 0)];
    let waiting = [request("u2@h", "c", 2, &remove), request("u1@h", "c", 3, &remove), request("u3@h", "q", 1, &[])];
    for (waiter, request) in waiting.iter().enumerate() {
        let Outcome::Miss(ticket) = bench.registrar.register(request, now(), &mut Answer::default()) else {
            panic!("answered without knowing")
        };
        bench.registrar.load(ticket, waiter as u64).expect("room");
    }
    for waiter in 0..waiting.len() as u64 {
        assert_eq!(bench.notes.wait_loaded(waiter), Err(Kind::Timeout));
    }
    assert_eq!(spooled(&bench), 3);
    drop(bench);
    assert_eq!(file.held(), 154);
    // Once more, and this time the database comes back while it runs: what the first run left goes in before what the second
    // did, and no row is read before.
    let bench = Bench::open(brief());
    submit(&bench, &request("u1@h", "c", 4, &uri), 1);
    assert_eq!(bench.notes.outcome(1), Ok(()));
    server.restart();
    eventually("preload", || bench.registrar.complete());
    eventually("replayed", || bench.registrar.unwritten() == 0);
    assert_eq!(count(&server, "partyline", "SELECT COUNT(*) FROM location"), 153);
    assert_eq!(count(&server, "partyline", "SELECT cseq FROM location WHERE username = 'u1'"), 4);
    let known = |aor: &str| {
        let mut found = Vec::new();
        let looked = bench.registrar.lookup(aor.as_bytes(), now(), |b| {
            found.push((String::from_utf8_lossy(b.contact).into_owned(), b.cseq));
        });
        assert_eq!(looked, Ok(found.len()));
        found.sort();
        found
    };
    let one = |uri: &str, cseq| (uri.to_owned(), cseq);
    assert_eq!(
        (known("old@h"), known("u150@h"), known("u1@h")),
        (vec![], vec![one("sip:a@h", 1)], vec![one("sip:a@h", 4)])
    );
    assert_eq!(known("two@h"), [one("sip:a@h", 1), one("sip:b@h", 1)], "what stood there, and what was added unseen");
    assert_eq!(bench.complete(&request("u1@h", "c", 5, &remove), now(), 2).map(|a| a.contacts.len()), Ok(0));
    drop(bench);
    assert_eq!(count(&server, "partyline", "SELECT COUNT(*) FROM location"), 152);
    assert_eq!(file.held(), 0);
    // The file belongs to this database.
    {
        let db = rusqlite::Connection::open(&file.0).expect("spool");
        db.execute("INSERT INTO spool VALUES (0, 1, 1, x'03')", []).expect("insert");
    }
    let other = spooling(&server.database("other"), &file);
    let refused = partyline::registrar::Registrar::open(other, registrar_support::NotingSink::default());
    let error = refused.err().expect("the spool of another database");
    assert!(error.kind() == Kind::Config && error.to_string().contains("holds 1 changes for mysql://"), "{error}");
}

#[test]
fn a_server_starts_while_its_database_is_away() {
    let server = Mariadb::start("late");
    let url = server.url("partyline");
    // It has no tables yet either.
    server.kill();
    let brief = |mode| Options { commit_timeout: Duration::from_secs(1), ..options(mode, &url) };
    let back = Bench::open(Options { preload: false, ..brief(Mode::WriteBack) });
    let through = Bench::open(brief(Mode::WriteThrough));
    let uri = [contact("sip:a@h")];
    let gone = [lasting("sip:a@h", 0)];
    for n in 0..300 {
        let answer = back.complete(&request(&format!("b{n}@h"), "c", 1, &uri), now(), n).expect("at once");
        assert_eq!((answer.status, answer.contacts.len()), (200, 1));
    }
    assert_eq!(back.complete(&request("b7@h", "c", 2, &gone), now(), 1000), Err(Kind::Timeout));
    assert_eq!(through.complete(&request("t@h", "c", 1, &uri), now(), 1), Err(Kind::Timeout));
    // Rows that a program writes before this server looks.
    server.restart();
    eventually("written", || {
        let sql = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = 'partyline'";
        count(&server, "partyline", sql) == 3
            && count(&server, "partyline", "SELECT COUNT(*) FROM location WHERE username LIKE 'b%'") == 300
    });
    let mut waiter = 1;
    eventually("goes on", || {
        waiter += 1;
        through.complete(&request("t@h", "c", 1, &uri), now(), waiter).is_ok()
    });
    assert_eq!(count(&server, "partyline", "SELECT COUNT(*) FROM location WHERE username = 't'"), 1);
    eventually("the loader is back too", || {
        waiter += 1;
        back.complete(&request("b7@h", "c", 3, &gone), now(), 1000 + waiter).is_ok()
    });
    eventually("deleted", || count(&server, "partyline", "SELECT COUNT(*) FROM location WHERE username = 'b7'") == 0);
    // What was added unseen is known in full now: a look-up costs no second question.
    let mut found = 0;
    assert_eq!(back.registrar.lookup(b"b8@h", now(), |_| found += 1), Ok(1));
    assert_eq!(found, 1);
}

#[test]
fn a_server_that_hangs_or_takes_five_seconds_per_statement_is_not_waited_for() {
    let server = Mariadb::start("slow");
    let file = SpoolFile::new("spool-slow");
    let bench = open(spooling(&server.url("partyline"), &file));
    let mut conn = server.connect("partyline");
    conn.query_drop(
        "CREATE TRIGGER slow BEFORE INSERT ON location FOR EACH ROW DO SLEEP(IF(NEW.contact LIKE '%slow%', 5, 0))",
    )
    .expect("trigger");
    let start = now();
    let uri = [contact("sip:slow@h")];
    for cseq in 1..=20u64 {
        submit(&bench, &request("u@h", "c", cseq as u32, &uri), cseq);
        assert_eq!(bench.notes.outcome(cseq), Ok(()));
    }
    // Twenty requests one after the other would have taken 100 s; none waited for a statement.
    assert!(spooled(&bench) >= 20);
    assert_eq!(bench.complete(&request("u@h", "q", 1, &[]), start, 0).map(|a| a.contacts.len()), Ok(1));
    eventually("the last state", || count(&server, "partyline", "SELECT coalesce(max(cseq), 0) FROM location") == 20);
    eventually("replayed", || bench.registrar.unwritten() == 0);
    // It stops altogether, with the connections open.
    server.signal(libc::SIGSTOP);
    let uri = [contact("sip:quick@h")];
    for n in 100..150u64 {
        submit(&bench, &request(&format!("s{n}@h"), "c", 1, &uri), n);
    }
    bench.notes.wait("acknowledged", |committed| committed.len() == 70);
    server.signal(libc::SIGCONT);
    eventually("replayed", || bench.registrar.unwritten() == 0);
    assert_eq!(count(&server, "partyline", "SELECT COUNT(*) FROM location WHERE username LIKE 's%'"), 50);
    assert!(bench.notes.committed.lock().values().all(|result| result.is_ok()));
}

#[test]
fn without_a_spool_an_outage_is_503_and_a_long_one_changes_nothing() {
    let server = Mariadb::start("refuse");
    let bench = open(Options {
        commit_timeout: Duration::from_secs(2),
        ..options(Mode::WriteThrough, &server.url("partyline"))
    });
    let uri = [contact("sip:a@h")];
    submit(&bench, &request("u@h", "c", 1, &uri), 1);
    assert_eq!(bench.notes.outcome(1), Ok(()));
    server.kill();
    submit(&bench, &request("u@h", "c", 2, &uri), 2);
    assert_eq!(bench.notes.outcome(2), Err(Kind::Timeout));
    // From then on at once, with Retry-After, and the cache stays as it is.
    let mut cseq = 2;
    eventually("refused at once", || {
        cseq += 1;
        let mut answer = Answer::default();
        match bench.registrar.register(&request("u@h", "c", cseq, &uri), now(), &mut answer) {
            Outcome::Durable(ticket) => {
                let waiter = u64::from(cseq) + 1000;
                bench.registrar.submit(ticket, waiter);
                bench.registrar.kick();
                assert_eq!(bench.notes.outcome(waiter), Err(Kind::Timeout));
                false
            }
            Outcome::Rejected(rejection) => {
                assert_eq!((rejection.answer().0, answer.status), (503, 503));
                assert_eq!(answer.headers, [("Retry-After".to_owned(), 10)]);
                true
            }
            other => panic!("{other:?}"),
        }
    });
    let mut known = 0;
    assert_eq!(bench.registrar.lookup(b"u@h", now(), |b| known = b.cseq), Ok(1));
    assert_eq!(known, cseq - 1);
    server.restart();
    eventually("goes on", || {
        cseq += 1;
        let mut answer = Answer::default();
        let outcome = bench.registrar.register(&request("u@h", "c", cseq, &uri), now(), &mut answer);
        let Outcome::Durable(ticket) = outcome else { return false };
        let waiter = u64::from(cseq) + 2000;
        let at_once = bench.registrar.submit(ticket, waiter).is_some();
        bench.registrar.kick();
        at_once || bench.notes.outcome(waiter).is_ok()
    });
    eventually("written", || count(&server, "partyline", "SELECT cseq FROM location") == i64::from(cseq));
}

#[test]
fn a_primary_that_became_read_only_is_waited_for() {
    let server = Mariadb::start("readonly");
    let mut root = server.connect("partyline");
    root.query_drop("CREATE USER app@'127.0.0.1'").expect("user");
    root.query_drop("GRANT ALL ON partyline.* TO app@'127.0.0.1'").expect("grant");
    let url = server.url("partyline").replace("root@", "app@");
    let file = SpoolFile::new("spool-readonly");
    let with = open(spooling(&url, &file));
    let without = open(Options { commit_timeout: Duration::from_secs(30), ..options(Mode::WriteThrough, &url) });
    // Error 1290, as a primary gives it that a failover has made a replica.
    root.query_drop("SET GLOBAL read_only = 1").expect("read only");
    let uri = [contact("sip:a@h")];
    submit(&without, &request("w@h", "c", 1, &uri), 1);
    submit(&with, &request("s@h", "c", 1, &uri), 1);
    assert_eq!(with.notes.outcome(1), Ok(()));
    assert!(spooled(&with) > 0);
    eventually("noticed", || without.registrar.counters().outages.get() == 1);
    assert!(without.notes.committed.lock().is_empty());
    root.query_drop("SET GLOBAL read_only = 0").expect("writable");
    assert_eq!(without.notes.outcome(1), Ok(()));
    eventually("replayed", || with.registrar.unwritten() == 0);
    assert_eq!(count(&server, "partyline", "SELECT COUNT(*) FROM location"), 2);
}

#[test]
fn connections_cut_in_mid_transaction_deadlocks_and_lock_waits_lose_nothing() {
    let server = Mariadb::shared();
    let url = server.database("locks");
    let bench = open(Options { commit_timeout: Duration::from_secs(60), ..options(Mode::WriteThrough, &url) });
    let uri = [contact("sip:a@h")];
    for (n, user) in ["a", "b"].into_iter().enumerate() {
        submit(&bench, &request(&format!("{user}@h"), "c", 1, &uri), n as u64);
        assert_eq!(bench.notes.outcome(n as u64), Ok(()));
    }
    let waiting = |conn: &mut mysql::Conn| -> Option<u64> {
        conn.query_first(
            "SELECT id FROM information_schema.processlist WHERE db = 'locks' AND info LIKE 'INSERT INTO location%'",
        )
        .expect("processes")
    };
    let (mut holder, mut eye) = (server.connect("locks"), server.connect("locks"));
    // The writer's connection is killed while its statement waits for a row.
    holder.query_drop("START TRANSACTION").expect("begin");
    holder.query_drop("UPDATE location SET user_agent = 'x' WHERE username = 'a'").expect("lock");
    submit(&bench, &request("a@h", "c", 2, &uri), 10);
    eventually("it waits", || waiting(&mut eye).is_some());
    let id = waiting(&mut eye).expect("a thread");
    eye.query_drop(format!("KILL CONNECTION {id}")).expect("kill");
    eventually("another connection waits", || waiting(&mut eye).is_some_and(|other| other != id));
    assert!(!bench.notes.committed.lock().contains_key(&10));
    // Error 1205: the row stays locked for longer than innodb_lock_wait_timeout.
    let retries = bench.registrar.counters().retries.get();
    eventually("lock waits are over", || bench.registrar.counters().retries.get() > retries);
    holder.query_drop("COMMIT").expect("commit");
    assert_eq!(bench.notes.outcome(10), Ok(()));
    assert_eq!(count(server, "locks", "SELECT cseq FROM location WHERE username = 'a'"), 2);
    // Error 1213: the writer has one row and wants the other, the holder the other way round; the holder has changed more,
    // so the writer is the victim. Both rows belong to one address-of-record, so that they stand in one batch.
    let both = [contact("sip:1@h"), contact("sip:2@h")];
    submit(&bench, &request("z@h", "c", 1, &both), 20);
    assert_eq!(bench.notes.outcome(20), Ok(()));
    eye.query_drop("CREATE TABLE weight (n INT) ENGINE=InnoDB").expect("table");
    holder.query_drop("START TRANSACTION").expect("begin");
    holder.query_drop("INSERT INTO weight SELECT seq FROM seq_1_to_1000").expect("weight");
    holder
        .query_drop(
            "UPDATE location SET user_agent = 'x' WHERE contact = 'sip:2@h' AND username = 'z' AND domain = 'h'",
        )
        .expect("lock");
    submit(&bench, &request("z@h", "c", 2, &both), 21);
    eventually("it waits for the row", || {
        let row: Option<(String, u64)> =
            eye.query_first("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'").expect("status");
        row.is_some_and(|(_, waits)| waits > 0)
    });
    let deadlocks = |conn: &mut mysql::Conn| -> u64 {
        let row: Option<(String, u64)> =
            conn.query_first("SHOW GLOBAL STATUS LIKE 'Innodb_deadlocks'").expect("status");
        row.map_or(0, |(_, n)| n)
    };
    let before = deadlocks(&mut eye);
    holder
        .query_drop(
            "UPDATE location SET user_agent = 'y' WHERE contact = 'sip:1@h' AND username = 'z' AND domain = 'h'",
        )
        .expect("the holder survives");
    assert_eq!(deadlocks(&mut eye), before + 1);
    holder.query_drop("COMMIT").expect("commit");
    assert_eq!(bench.notes.outcome(21), Ok(()));
    assert_eq!(count(server, "locks", "SELECT COUNT(*) FROM location WHERE username = 'z' AND cseq = 2"), 2);
    assert!(bench.notes.committed.lock().values().all(|result| result.is_ok()));
}

/// What was logged at the level warn on this thread.
struct Warnings(Arc<Mutex<Vec<String>>>);

struct Text<'a>(&'a mut String);

impl tracing::field::Visit for Text<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write;
        let _ = write!(self.0, "{}={value:?} ", field.name());
    }
}

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = String::new();
        event.record(&mut Text(&mut text));
        self.0.lock().push(text);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_server_that_does_not_flush_its_log_is_warned_of() {
    let server = Mariadb::start("flushlog");
    let url = server.url("partyline");
    let warnings = |mode| {
        let said = Arc::new(Mutex::new(Vec::new()));
        tracing::subscriber::with_default(Warnings(said.clone()), || drop(Bench::open(options(mode, &url))));
        let said = std::mem::take(&mut *said.lock());
        said.iter().filter(|text| text.contains("innodb_flush_log_at_trx_commit is not 1")).count()
    };
    assert_eq!(warnings(Mode::WriteThrough), 0);
    server.connect("partyline").query_drop("SET GLOBAL innodb_flush_log_at_trx_commit = 2").expect("set");
    assert_eq!((warnings(Mode::WriteThrough), warnings(Mode::WriteBack)), (1, 0));
}

#[test]
fn tls_is_asked_for_by_the_url() {
    let dir = sqlite_path("tls").with_extension("pem.d");
    std::fs::create_dir_all(&dir).expect("folder");
    let at = |name: &str| dir.join(name).display().to_string();
    let openssl = |arguments: &[&str]| {
        let output = std::process::Command::new("openssl").args(arguments).output().expect("openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    for (ca, serial) in [("ca", "1"), ("other", "2")] {
        let (key, pem) = (at(&format!("{ca}.key")), at(&format!("{ca}.pem")));
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test ca",
            "-set_serial",
            serial,
            "-keyout",
            &key,
            "-out",
            &pem,
        ]);
    }
    openssl(&[
        "req",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-keyout",
        &at("server.key"),
        "-out",
        &at("server.csr"),
    ]);
    std::fs::write(dir.join("ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").expect("extensions");
    openssl(&[
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        &at("server.csr"),
        "-CA",
        &at("ca.pem"),
        "-CAkey",
        &at("ca.key"),
        "-set_serial",
        "3",
        "-extfile",
        &at("ext"),
        "-out",
        &at("server.pem"),
    ]);
    let extra = format!("--ssl-cert={} --ssl-key={} --ssl-ca={}", at("server.pem"), at("server.key"), at("ca.pem"));
    let server = Mariadb::start_with("tls", &extra);
    server.connect("partyline").query_drop("CREATE USER safe@'127.0.0.1' REQUIRE SSL").expect("user");
    server.connect("partyline").query_drop("GRANT ALL ON partyline.* TO safe@'127.0.0.1'").expect("grant");
    let url = server.url("partyline").replace("root@", "safe@");
    let outcome = |parameters: &str| {
        partyline::registrar::Registrar::open(
            options(Mode::WriteThrough, &format!("{url}{parameters}")),
            registrar_support::NotingSink::default(),
        )
        .map(|_| ())
        .map_err(|e| e.kind())
    };
    assert_eq!(outcome(""), Err(Kind::Denied), "the server wants TLS of this user");
    assert_eq!(outcome("?tls=required"), Ok(()));
    assert_eq!(outcome(&format!("?tls=verify&tls_ca={}", at("ca.pem"))), Ok(()));
    assert_eq!(outcome(&format!("?tls=verify&tls_ca={}", at("other.pem"))), Err(Kind::Denied));
    for bad in ["?tls=maybe", "?tls_ca=/x", "?tls=verify&tls_ca=", "?nonsense=1"] {
        assert_eq!(outcome(bad), Err(Kind::Config), "{bad}");
    }
    let _ = std::fs::remove_dir_all(&dir);
}
