//! The registrar on a real MariaDB, also while it is killed.

#[allow(dead_code, reason = "other tests use the rest")]
mod common {
    pub mod mariadb;
}
mod registrar_support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::mariadb::Mariadb;
use mysql::prelude::Queryable;
use partyline::registrar::store::Kind;
use partyline::registrar::{Contact, Mode, Options, Outcome, RegisterRequest};
use registrar_support::{Answer, Bench, NotingSink, contact, eventually, lasting, now, options, request};

fn count(server: &Mariadb, database: &str, sql: &str) -> i64 {
    server.connect(database).query_first(sql).expect(sql).expect("a row")
}

#[test]
fn rows_come_back_as_they_were_written() {
    let server = Mariadb::shared();
    let url = server.database("roundtrip");
    let start = now();
    let uris: Vec<String> = (0..9).map(|i| format!("sip:a@h{i};x=%00")).collect();
    let contacts: Vec<Contact<'_>> = uris
        .iter()
        .enumerate()
        .map(|(i, uri)| Contact { q: 111 * i as u16, instance: b"<urn:uuid:\xc3\xa4>", ..lasting(uri, 100 + i as u32) })
        .collect();
    let full = RegisterRequest {
        user_agent: b"\xc3\xbf\xc3\xbe raw ' \" \\ ",
        received: b"sip:192.0.2.1:5060",
        path: b"<sip:p;lr>",
        socket: b"udp:192.0.2.9:5060",
        ..request("a'b\"c\\@example.org", "call\\'", 0x7fff_ffff, &contacts)
    };
    let bench = Bench::open(options(Mode::WriteThrough, &url));
    assert_eq!(bench.complete(&full, start, 1).expect("committed").contacts.len(), 9);
    drop(bench);
    for preload in [true, false] {
        let bench = Bench::open(Options { preload, ..options(Mode::WriteThrough, &url) });
        if preload {
            eventually("preload", || bench.registrar.complete());
        }
        let mut found = Vec::new();
        let looked = bench.registrar.lookup(full.aor, start, |b| {
            assert_eq!((b.user_agent, b.received, b.path), (full.user_agent, full.received, full.path));
            assert_eq!((b.socket, b.call_id, b.cseq), (full.socket, full.call_id, full.cseq));
            assert_eq!((b.instance, b.reg_id), (&b"<urn:uuid:\xc3\xa4>"[..], 0));
            found.push((b.contact.to_vec(), b.q, b.expires - start));
        });
        assert_eq!(looked, Ok(9));
        for (i, uri) in uris.iter().enumerate() {
            assert_eq!(found[8 - i], (uri.clone().into_bytes(), 111 * i as u16, 100 + i as u32));
        }
    }
    // A C program finds it by the columns' names.
    let sql = "SELECT COUNT(*) FROM location WHERE username='a\\'b\"c\\\\' AND domain='example.org' AND contact='sip:a@h3;x=%00'";
    assert_eq!(count(server, "roundtrip", sql), 1);
}

#[test]
fn a_legacy_program_can_use_the_table() {
    let server = Mariadb::shared();
    let url = server.database("legacy");
    drop(Bench::open(options(Mode::WriteThrough, &url)));
    let mut legacy = server.connect("legacy");
    let insert = "INSERT INTO location (username, domain, contact, callid, cseq, expires, user_agent, q) VALUES (?,?,?,?,?,?,?,?)";
    for contact in ["sip:l@h1", "sip:l@h2"] {
        let row = ("legacy", "example.org", contact, "call", 3, now() + 300, "old phone", 0.5);
        legacy.exec_drop(insert, row).expect("insert");
    }
    let update = "UPDATE location SET cseq=?, expires=? WHERE username=? AND domain=? AND contact=?";
    legacy.exec_drop(update, (4, now() + 500, "legacy", "example.org", "sip:l@h2")).expect("update");
    assert_eq!(legacy.affected_rows(), 1);
    let bench = Bench::open(options(Mode::WriteThrough, &url));
    let mut cseqs = Vec::new();
    assert_eq!(bench.registrar.lookup(b"legacy@example.org", now(), |b| cseqs.push((b.cseq, b.q))), Ok(2));
    cseqs.sort_unstable();
    assert_eq!(cseqs, [(3, 500), (4, 500)]);
}

#[test]
fn every_size_of_batch_and_deletes_between() {
    let server = Mariadb::shared();
    let url = server.database("sizes");
    let bench = Bench::open(options(Mode::WriteThrough, &url));
    eventually("preload", || bench.registrar.complete());
    let start = now();
    let waiter = AtomicU64::new(0);
    let submit = |request: &RegisterRequest<'_>| {
        let Outcome::Durable(ticket) = bench.registrar.register(request, start, &mut Answer::default()) else {
            panic!("not durable")
        };
        let n = waiter.fetch_add(1, Ordering::Relaxed);
        if bench.registrar.submit(ticket, n).is_some() {
            bench.notes.committed.lock().insert(n, Ok(()));
        }
    };
    let mut cseq = 0;
    for size in [1, 2, 9, 37, 99, 100, 101, 250] {
        cseq += 1;
        let add = [contact("sip:a@h"), contact("sip:b@h")];
        let remove = [lasting("sip:a@h", 0)];
        for i in 0..size {
            submit(&request(&format!("s{size}u{i}@h"), "c", cseq, &add));
        }
        bench.registrar.kick();
        let sent = waiter.load(Ordering::Relaxed) as usize;
        bench.notes.wait("added", |committed| committed.len() == sent);
        for i in 0..size {
            submit(&request(&format!("s{size}u{i}@h"), "c", cseq + 1, &remove));
        }
        bench.registrar.kick();
        let sent = waiter.load(Ordering::Relaxed) as usize;
        bench.notes.wait("removed", |committed| committed.len() == sent);
        let sql = format!("SELECT COUNT(*) FROM location WHERE username LIKE 's{size}u%'");
        assert_eq!(count(server, "sizes", &sql), size);
        assert_eq!(count(server, "sizes", &format!("{sql} AND contact = 'sip:b@h'")), size);
    }
    assert!(bench.notes.committed.lock().values().all(|result| result.is_ok()));
}

#[test]
fn two_writers_and_four_threads_on_the_same_rows() {
    let server = Mariadb::shared();
    let bench =
        Bench::open(Options { writers: 4, shards: 16, ..options(Mode::WriteThrough, &server.database("threads")) });
    eventually("preload", || bench.registrar.complete());
    let start = now();
    const AORS: u32 = 40;
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let bench = &bench;
            scope.spawn(move || {
                for round in 1..=60 {
                    for n in 0..AORS {
                        let aor = format!("u{n}@h");
                        let cseq = round * 4 + thread;
                        // Now and then all goes and comes back.
                        let uri = [lasting("sip:a@h", if cseq % 7 == 0 { 0 } else { 500 })];
                        let request = request(&aor, "c", cseq, &uri);
                        if let Outcome::Durable(ticket) =
                            bench.registrar.register(&request, start, &mut Answer::default())
                        {
                            let waiter = u64::from(n) << 32 | u64::from(cseq);
                            if bench.registrar.submit(ticket, waiter).is_some() {
                                bench.notes.committed.lock().insert(waiter, Ok(()));
                            }
                        }
                        bench.registrar.kick();
                    }
                }
            });
        }
    });
    bench.registrar.close();
    assert!(bench.notes.committed.lock().values().all(|result| result.is_ok()));
    // The database says what the cache says, for each of them.
    let mut rows = 0;
    for n in 0..AORS {
        let aor = format!("u{n}@h");
        let mut cached = None;
        bench.registrar.try_lookup(aor.as_bytes(), start, |b| cached = Some(i64::from(b.cseq)));
        let sql = format!("SELECT cseq FROM location WHERE username = 'u{n}'");
        let stored: Option<i64> = server.connect("threads").query_first(sql).expect("row");
        assert_eq!(stored, cached, "{aor}");
        rows += i64::from(cached.is_some());
    }
    assert_eq!(count(server, "threads", "SELECT COUNT(*) FROM location"), rows);
}

#[test]
fn write_through_loses_nothing_when_the_database_is_killed() {
    let server = Mariadb::start("killed");
    let bench = Bench::open(Options {
        commit_timeout: Duration::from_secs(30),
        ..options(Mode::WriteThrough, &server.url("partyline"))
    });
    eventually("preload", || bench.registrar.complete());
    let start = now();

    // Many requests share one transaction: so the server itself says, which nobody else uses.
    let inserts = || -> u64 {
        let row: Option<(String, u64)> =
            server.connect("partyline").query_first("SHOW GLOBAL STATUS LIKE 'Com_insert'").expect("status");
        row.expect("a row").1
    };
    let (before, uri) = (inserts(), [contact("sip:a@h")]);
    for i in 0..2000u64 {
        let aor = format!("g{i}@h");
        let Outcome::Durable(ticket) =
            bench.registrar.register(&request(&aor, "c", 1, &uri), start, &mut Answer::default())
        else {
            panic!("not durable")
        };
        if bench.registrar.submit(ticket, i).is_some() {
            bench.notes.committed.lock().insert(i, Ok(()));
        }
    }
    bench.registrar.kick();
    bench.notes.wait("all", |committed| committed.len() == 2000);
    let (transactions, commits) = (inserts() - before, bench.registrar.counters().commits.get());
    assert!((20..=40).contains(&transactions), "{transactions} transactions for 2000 requests");
    assert_eq!(transactions, commits);
    bench.notes.committed.lock().clear();

    let sent = AtomicU64::new(0);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let acknowledged_at_kill = std::thread::scope(|scope| {
        scope.spawn(|| {
            let uri = [contact("sip:a@h")];
            while !stop.load(Ordering::Acquire) {
                // Bounded, as an engine's clients are.
                while sent.load(Ordering::Acquire) >= bench.notes.committed.lock().len() as u64 + 500 {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    std::thread::yield_now();
                }
                let n = sent.load(Ordering::Acquire);
                let aor = format!("u{n}@h");
                match bench.registrar.register(&request(&aor, "c", 1, &uri), start, &mut Answer::default()) {
                    Outcome::Durable(ticket) => {
                        if bench.registrar.submit(ticket, n).is_some() {
                            bench.notes.committed.lock().insert(n, Ok(()));
                        }
                    }
                    other => panic!("{other:?}"),
                }
                bench.registrar.kick();
                sent.store(n + 1, Ordering::Release);
            }
        });
        bench.notes.wait("some load", |committed| committed.len() > 2000);
        server.kill();
        let acknowledged: Vec<u64> =
            bench.notes.committed.lock().iter().filter(|(_, r)| r.is_ok()).map(|(n, _)| *n).collect();
        // Nobody is blocked meanwhile: the cache answers what it knows to be committed.
        let old = format!("u{}@h", acknowledged[0]);
        assert_eq!(bench.complete(&request(&old, "query", 1, &[]), start, u64::MAX).map(|a| a.status), Ok(200));
        server.restart();
        let enough = acknowledged.len() + 2000;
        bench.notes.wait("it goes on", |committed| committed.len() > enough);
        stop.store(true, Ordering::Release);
        acknowledged
    });
    let sent = sent.load(Ordering::Acquire);
    bench.notes.wait("the rest", |committed| committed.len() as u64 == sent);
    assert!(bench.registrar.counters().outages.get() >= 1, "the kill was not noticed");
    let mut conn = server.connect("partyline");
    let rows: Vec<String> =
        conn.query("SELECT CAST(username AS CHAR) FROM location WHERE username LIKE 'u%'").expect("rows");
    let rows: std::collections::HashSet<String> = rows.into_iter().collect();
    let committed = bench.notes.committed.lock();
    let lost = committed.iter().filter(|(n, r)| r.is_ok() && !rows.contains(&format!("u{n}"))).count();
    assert_eq!((lost, acknowledged_at_kill.len() > 2000), (0, true));
    // What waited during the outage was written when it was over.
    assert_eq!(rows.len() as u64, sent);
}

#[test]
fn without_its_database_the_registrar_goes_on_and_catches_up() {
    let server = Mariadb::start("away");
    let url = server.url("partyline");
    let back = Bench::open(Options { flush_interval: Duration::from_millis(50), ..options(Mode::WriteBack, &url) });
    let through = Bench::open(Options {
        commit_timeout: Duration::from_millis(400),
        preload: false,
        ..options(Mode::WriteThrough, &url)
    });
    eventually("preload", || back.registrar.complete());
    let start = now();
    let uri = [contact("sip:a@h")];
    through.complete(&request("known@h", "c", 1, &uri), start, 1).expect("committed");
    server.kill();
    // write_back answers as before.
    for i in 0..500 {
        let answer = back.complete(&request(&format!("b{i}@h"), "c", 1, &uri), start, 0).expect("at once");
        assert_eq!(answer.status, 200);
    }
    // write_through says 503 in time, for what must be written and for what must be read.
    assert_eq!(through.complete(&request("known@h", "c", 2, &uri), start, 2), Err(Kind::Timeout));
    assert_eq!(through.complete(&request("unknown@h", "c", 1, &uri), start, 3), Err(Kind::Timeout));
    assert_eq!(through.registrar.lookup(b"unknown@h", start, |_| ()).map_err(|e| e.kind()), Err(Kind::Timeout));
    assert_eq!(through.registrar.lookup(b"known@h", start, |_| ()), Ok(1));
    server.restart();
    eventually("everything is written", || {
        count(&server, "partyline", "SELECT COUNT(*) FROM location WHERE username LIKE 'b%'") == 500
    });
    eventually("the change that timed out too", || {
        count(&server, "partyline", "SELECT cseq FROM location WHERE username = 'known'") == 2
    });
    let again = through.complete(&request("unknown@h", "c", 1, &uri), start, 4);
    assert_eq!(again.map(|answer| answer.status), Ok(200));
}

#[test]
fn a_row_that_may_not_stand_in_an_answer_is_left_out() {
    let server = Mariadb::shared();
    let url = server.database("hostile_rows");
    drop(Bench::open(options(Mode::WriteThrough, &url)));
    let mut conn = server.connect("hostile_rows");
    // Latin-1, a line's end in the contact and in Path; then one that only its program's name is of Latin-1.
    for (n, (contact, path, agent)) in [
        ("CONCAT('sip:', X'E9', '@h')", "NULL", "'x'"),
        ("CONCAT('sip:a@h>', X'0D0A', 'Evil: 1')", "NULL", "'x'"),
        ("'sip:a@h'", "CONCAT('<sip:p', X'0D0A', '>')", "'x'"),
        ("'sip:a@h'", "NULL", "CONCAT('T', X'E9', 'l')"),
    ]
    .into_iter()
    .enumerate()
    {
        for user in ["both", &format!("one{n}")] {
            conn.query_drop(format!(
                "INSERT INTO location (username, domain, contact, instance, path, user_agent, callid, cseq, expires, last_modified)
                 VALUES ('{user}', 'h', {contact}, 'i{n}', {path}, {agent}, 'c', 1, {}, 0)",
                now() + 1000
            ))
            .expect("insert");
        }
    }
    for preload in [true, false] {
        let bench = Bench::open(Options { preload, ..options(Mode::WriteThrough, &url) });
        if preload {
            eventually("preload", || bench.registrar.complete());
        }
        for (user, bindings) in [("one0", 0), ("one1", 0), ("one2", 0), ("one3", 1), ("both", 1)] {
            let answer = bench.complete(&request(&format!("{user}@h"), "q", 1, &[]), now(), bindings);
            assert_eq!(answer.map(|a| (a.status, a.contacts.len())), Ok((200, bindings as usize)), "{user}");
            bench.notes.loaded.lock().clear();
        }
        assert_eq!(bench.registrar.counters().bad_rows.get(), 6);
    }
}

#[test]
fn an_unknown_version_or_database_is_said_in_one_sentence() {
    let server = Mariadb::shared();
    let url = server.database("versions");
    drop(Bench::open(options(Mode::WriteBack, &url)));
    let say = |url: &str| {
        let error = partyline::registrar::Registrar::open(options(Mode::WriteBack, url), NotingSink::default());
        let error = error.err().expect("an error");
        (error.kind(), error.to_string())
    };
    let mut conn = server.connect("versions");
    conn.query_drop("UPDATE version SET table_version = 8 WHERE table_name = 'subscriber'").expect("update");
    let sentence = "table subscriber has version 8; this program knows version 7";
    assert_eq!(say(&url), (Kind::Schema, sentence.to_owned()));
    let (kind, text) = say(&server.url("no_such_database"));
    assert_eq!(kind, Kind::Denied);
    assert!(text.ends_with("Unknown database 'no_such_database' (error 1049)"), "{text}");
    let (kind, text) = say(&server.url("versions").replace("root@", "nobody:secret@"));
    assert_eq!(kind, Kind::Denied);
    assert!(text.contains("Access denied") && !text.contains("secret"), "{text}");
}

#[test]
fn the_statements_use_the_primary_key() {
    let server = Mariadb::shared();
    let url = server.database("plans");
    drop(Bench::open(options(Mode::WriteBack, &url)));
    let mut conn = server.connect("plans");
    conn.query_drop(
        "INSERT INTO location (username, domain, contact) SELECT CONCAT('u', seq), 'h', 'sip:a@h' FROM seq_1_to_5000",
    )
    .expect("rows");
    conn.query_drop("ANALYZE TABLE location").expect("analyze");
    let key = "username=? AND domain=? AND contact=? AND instance=? AND reg_id=?";
    let keys: Vec<mysql::Value> =
        (0..4).flat_map(|i| [format!("u{i}").into(), "h".into(), "sip:a@h".into(), "".into(), 0.into()]).collect();
    let aors: Vec<mysql::Value> = (0..4).flat_map(|i| [format!("u{i}").into(), "h".into()]).collect();
    for (sql, params) in [
        (format!("EXPLAIN DELETE FROM location WHERE {}", vec![format!("({key})"); 4].join(" OR ")), keys),
        (format!("EXPLAIN SELECT * FROM location WHERE {}", ["(username=? AND domain=?)"; 4].join(" OR ")), aors),
    ] {
        let plan: mysql::Row =
            conn.exec_first(&sql, mysql::Params::Positional(params)).expect("explain").expect("plan");
        let key: Option<String> = plan.get("key").expect("column");
        let rows: u64 = plan.get("rows").expect("column");
        assert_eq!((key.as_deref(), rows <= 8), (Some("PRIMARY"), true), "{plan:?}");
    }
}
