//! Two servers on one MariaDB: each knows what the other changed, and nobody overwrites or deletes what is newer.

#[allow(dead_code, reason = "other tests use the rest")]
mod common {
    pub mod mariadb;
}
#[path = "registrar_support/kamailio.rs"]
mod kamailio;
mod registrar_support;

use std::time::{Duration, Instant};

use common::mariadb::Mariadb;
use mysql::prelude::Queryable;
use partyline::registrar::store::{Kind, Schema};
use partyline::registrar::{Mode, Options, Outcome, RegisterRequest, Registrar};
use registrar_support::{Answer, Bench, NotingSink, contact, eventually, lasting, now, options, request};

fn shared(mode: Mode, url: &str, schema: Schema, server_id: u32) -> Options {
    let mut options = options(mode, url);
    options.store.shared = true;
    options.store.server_id = server_id;
    options.store.layout.schema = schema;
    options.poll_interval = Duration::from_millis(100);
    options.flush_interval = Duration::from_millis(50);
    options
}

fn open(options: Options) -> Bench {
    let bench = Bench::open(options);
    eventually("preload", || bench.registrar.complete());
    bench
}

/// What a server knows of an address-of-record, without asking the database: Call-ID and CSeq of each binding.
fn known(bench: &Bench, aor: &str) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    bench.registrar.try_lookup(aor.as_bytes(), now(), |b| {
        found.push((String::from_utf8_lossy(b.call_id).into_owned(), b.cseq));
    });
    found.sort();
    found
}

fn binding(call_id: &str, cseq: u32) -> Vec<(String, u32)> {
    vec![(call_id.to_owned(), cseq)]
}

/// Bindings by name, in seconds of the database's table.
fn seconds(schema: Schema, column: &str) -> String {
    if schema == Schema::Own { column.to_owned() } else { format!("UNIX_TIMESTAMP({column})") }
}

fn two_servers(name: &str, schema: Schema, mode: Mode) {
    let server = Mariadb::shared();
    let url = match schema {
        Schema::Own => server.database(name),
        Schema::Kamailio => kamailio::database(server, name),
    };
    let a = open(shared(mode, &url, schema, 1));
    let b = open(shared(mode, &url, schema, 2));
    let mut conn = server.connect(name);
    let uri = [contact("sip:a@h")];
    let mut waiter = 0;
    let mut register = |bench: &Bench, request: &RegisterRequest<'_>| {
        waiter += 1;
        bench.complete(request, now(), waiter).expect("committed").status
    };

    // Known to the other, in both directions.
    let started = Instant::now();
    assert_eq!(register(&a, &request("u@h", "c", 1, &uri)), 200);
    eventually("b knows", || known(&b, "u@h") == binding("c", 1));
    println!("known to the other after {:?}", started.elapsed());
    assert_eq!(register(&b, &request("u@h", "c", 5, &uri)), 200);
    eventually("a knows", || known(&a, "u@h") == binding("c", 5));
    // Same Call-ID: a lower CSeq is refused on either.
    assert_eq!(register(&a, &request("u@h", "c", 4, &uri)), 500);
    // A client that moved: another Call-ID, later. In one second only the database can tell; then both say what it says.
    assert_eq!(register(&a, &request("u@h", "d", 1, &uri)), 200);
    eventually("both agree", || known(&a, "u@h") == binding("d", 1) && known(&b, "u@h") == binding("d", 1));

    // Removed by one, gone for the other; the row stays for those who poll later.
    assert_eq!(register(&b, &request("u@h", "d", 2, &[lasting("sip:a@h", 0)])), 200);
    eventually("a lets go", || known(&a, "u@h").is_empty());
    let row: Option<(u32, i64)> = conn
        .query_first(format!(
            "SELECT cseq, {} - {} FROM location WHERE username = 'u'",
            seconds(schema, "expires"),
            now()
        ))
        .expect("row");
    let (cseq, left) = row.expect("the row stays");
    assert!(cseq == 2 && left < 0, "cseq {cseq}, {left} s left");
    // And comes back, in the same row.
    assert_eq!(register(&a, &request("u@h", "d", 3, &uri)), 200);
    eventually("b knows again", || known(&b, "u@h") == binding("d", 3));
    assert_eq!(conn.query_first::<u32, _>("SELECT COUNT(*) FROM location").expect("count"), Some(1));

    // Expired: gone for both, deleted by nobody before its time.
    assert_eq!(register(&a, &request("brief@h", "c", 1, &[lasting("sip:a@h", 3600)])), 200);
    eventually("b knows the brief one", || known(&b, "brief@h").len() == 1);
    for bench in [&a, &b] {
        assert_eq!(bench.registrar.expire(now() + 3601), 2, "u and brief");
        assert!(known(bench, "brief@h").is_empty());
    }
    assert_eq!(conn.query_first::<u32, _>("SELECT COUNT(*) FROM location").expect("count"), Some(2));

    // A row of a third that is newer is not overwritten, and taken over.
    assert_eq!(register(&a, &request("moved@h", "c", 1, &uri)), 200);
    eventually("written", || {
        conn.query_first::<u32, _>("SELECT COUNT(*) FROM location WHERE username = 'moved'").expect("count") == Some(1)
    });
    let later = now() + 100;
    let (expires, modified) = match schema {
        Schema::Own => ((later + 500).to_string(), later.to_string()),
        Schema::Kamailio => (format!("FROM_UNIXTIME({})", later + 500), format!("FROM_UNIXTIME({later})")),
    };
    conn.query_drop(format!(
        "UPDATE location SET callid = 'theirs', cseq = 9, server_id = 3, expires = {expires}, last_modified = {modified}
         WHERE username = 'moved'"
    ))
    .expect("update");
    // a may have heard of it or not: the row stays either way.
    assert_eq!(register(&a, &request("moved@h", "c", 2, &uri)), 200);
    eventually("taken over", || {
        known(&a, "moved@h") == binding("theirs", 9) && known(&b, "moved@h") == binding("theirs", 9)
    });
    eventually("a has written", || a.registrar.unwritten() == 0);
    let stays: Option<String> = conn.query_first("SELECT callid FROM location WHERE username = 'moved'").expect("row");
    assert_eq!(stays.as_deref(), Some("theirs"));
}

#[test]
fn two_servers_on_our_table() {
    two_servers("own_through", Schema::Own, Mode::WriteThrough);
}

#[test]
fn two_servers_on_our_table_write_back() {
    two_servers("own_back", Schema::Own, Mode::WriteBack);
}

#[test]
fn two_servers_on_kamailios_table() {
    two_servers("kamailio_through", Schema::Kamailio, Mode::WriteThrough);
}

fn gone_with_its_connection(name: &str, schema: Schema, mode: Mode) {
    const SOURCE: &[u8] = b"sip:192.0.2.7:4000;transport=tcp";
    let server = Mariadb::shared();
    let url = match schema {
        Schema::Own => server.database(name),
        Schema::Kamailio => kamailio::database(server, name),
    };
    let [a, b] = [1, 2].map(|id| open(Options { connection_bound: true, ..shared(mode, &url, schema, id) }));
    let uri = [contact("sip:a@h")];
    let over = |aor, cseq| RegisterRequest { received: SOURCE, ..request(aor, "c", cseq, &uri) };
    let count = || {
        let sql = "SELECT COUNT(*), COALESCE(MAX(cseq), 0) FROM location";
        server.connect(name).query_first::<(u32, u32), _>(sql).expect("count").expect("a row")
    };
    for (waiter, aor) in [(1, "u@h"), (2, "moved@h")] {
        a.complete(&over(aor, 1), now(), waiter).expect("committed");
        a.registrar.bind(SOURCE, aor.as_bytes());
        eventually("b knows", || known(&b, aor) == binding("c", 1));
    }
    // One of them is refreshed over the other server just before; a may know of it or not.
    b.complete(&request("moved@h", "c", 2, &uri), now(), 1).expect("committed");
    assert!(a.registrar.unbind(SOURCE) >= 1);
    eventually("b lets go", || known(&b, "u@h").is_empty());
    eventually("a has written", || a.registrar.unwritten() == 0);
    eventually("what moved stays", || {
        known(&a, "moved@h") == binding("c", 2) && known(&b, "moved@h") == binding("c", 2)
    });
    // The row stays for those who poll later, until it is swept.
    assert_eq!(count(), (2, 2));
    // Back on the other server, in the same row.
    b.complete(&request("u@h", "c", 3, &uri), now(), 2).expect("committed");
    eventually("a knows", || known(&a, "u@h") == binding("c", 3));
    assert_eq!(count(), (2, 3));
}

#[test]
fn what_goes_with_its_connection_goes_for_the_other_server() {
    gone_with_its_connection("bound_through", Schema::Own, Mode::WriteThrough);
    gone_with_its_connection("bound_back", Schema::Own, Mode::WriteBack);
    gone_with_its_connection("bound_kamailio", Schema::Kamailio, Mode::WriteThrough);
}

#[test]
fn what_comes_late_is_compared_with_what_stands_there() {
    let server = Mariadb::shared();
    for schema in [Schema::Own, Schema::Kamailio] {
        let name = if schema == Schema::Own { "late_own" } else { "late_kamailio" };
        let url = if schema == Schema::Own { server.database(name) } else { kamailio::database(server, name) };
        let a = open(shared(Mode::WriteThrough, &url, schema, 1));
        let mut conn = server.connect(name);
        let start = now();
        let time =
            |second: u32| if schema == Schema::Own { second.to_string() } else { format!("FROM_UNIXTIME({second})") };
        for (user, modified) in [("older", start - 200), ("newer", start - 50)] {
            conn.query_drop(format!(
                "INSERT INTO location (ruid, username, domain, contact, callid, cseq, expires, server_id, last_modified)
                 VALUES ('r{user}', '{user}', 'h', 'sip:a@h', 'stored', 1, {}, 3, {})",
                time(start + 1000),
                time(modified)
            ))
            .expect("insert");
        }
        // Read from the table first, so that each is known by the name that it has there.
        drop(a);
        let a = open(shared(Mode::WriteThrough, &url, schema, 1));
        let uri = [contact("sip:a@h")];
        for (waiter, user) in ["older", "newer"].into_iter().enumerate() {
            // As it is when a spool is replayed: decided then, written now.
            a.complete(&request(&format!("{user}@h"), "late", 1, &uri), start - 100, waiter as u64).expect("committed");
        }
        let mut stored = |user: &str| -> (String, u32) {
            let sql =
                format!("SELECT callid, {} FROM location WHERE username = '{user}'", seconds(schema, "last_modified"));
            conn.query_first(sql).expect("row").expect("a row")
        };
        assert_eq!(stored("newer"), ("stored".to_owned(), start - 50), "what is older lost");
        // What won stands there with a time at which others look.
        let (call_id, modified) = stored("older");
        assert!(call_id == "late" && modified >= start, "{call_id} {modified}");
    }
}

#[test]
fn both_write_the_same_rows_and_agree_in_the_end() {
    let server = Mariadb::shared();
    let url = server.database("agree");
    let benches = [1, 2].map(|id| open(shared(Mode::WriteThrough, &url, Schema::Own, id)));
    const AORS: u64 = 30;
    std::thread::scope(|scope| {
        for (which, bench) in benches.iter().enumerate() {
            scope.spawn(move || {
                let uri = [contact("sip:a@h"), contact("sip:b@h")];
                let call_id = format!("client {which}");
                for round in 0..40u64 {
                    for n in 0..AORS {
                        let remove = [lasting("sip:b@h", 0)];
                        let contacts = if (round + n) % 3 == 0 { &remove[..] } else { &uri[..] };
                        let aor = format!("u{n}@h");
                        let request = request(&aor, &call_id, round as u32 + 1, contacts);
                        if let Outcome::Durable(ticket) =
                            bench.registrar.register(&request, now(), &mut Answer::default())
                        {
                            let waiter = round * AORS + n;
                            if bench.registrar.submit(ticket, waiter).is_some() {
                                bench.notes.committed.lock().insert(waiter, Ok(()));
                            }
                        }
                    }
                    bench.registrar.kick();
                }
            });
        }
    });
    for bench in &benches {
        eventually("all committed", || bench.registrar.unwritten() == 0);
        assert!(bench.notes.committed.lock().values().all(|result| result.is_ok()));
    }
    let mut conn = server.connect("agree");
    for n in 0..AORS {
        eventually("the caches and the table say the same", || {
            let mut stored: Vec<(String, u32)> = conn
                .query(format!(
                    "SELECT CAST(callid AS CHAR), cseq FROM location WHERE username = 'u{n}' AND expires > {}",
                    now()
                ))
                .expect("rows");
            stored.sort();
            let aor = format!("u{n}@h");
            known(&benches[0], &aor) == stored && known(&benches[1], &aor) == stored
        });
    }
}

#[test]
fn a_poll_costs_what_the_others_changed() {
    let server = Mariadb::shared();
    let url = server.database("cost");
    let a = open(shared(Mode::WriteThrough, &url, Schema::Own, 1));
    let b = open(shared(Mode::WriteThrough, &url, Schema::Own, 2));
    let mut conn = server.connect("cost");
    // A table that is large beside what changes.
    conn.query_drop(format!(
        "INSERT INTO location (username, domain, contact, expires, server_id, last_modified)
         SELECT CONCAT('bulk', seq), 'h', 'sip:a@h', {0} + 3600, 1 + seq % 2, {0} - 1000 FROM seq_1_to_20000",
        now()
    ))
    .expect("rows");
    conn.query_drop("ANALYZE TABLE location").expect("analyze");
    let uri = [contact("sip:a@h")];
    for n in 0..50 {
        a.complete(&request(&format!("u{n}@h"), "c", 1, &uri), now(), n).expect("committed");
    }
    eventually("b has them", || known(&b, "u49@h").len() == 1);
    // a is told nothing of its own rows, and nobody of the bulk, which is older than any poll.
    assert_eq!(a.registrar.counters().polled.get(), 0);
    // What was seen is not looked at for ever: ten seconds later a poll brings nothing.
    let quiet = || {
        let before = b.registrar.counters().polled.get();
        let until = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        b.registrar.counters().polled.get() == before
    };
    eventually("quiet", quiet);
    let rows = b.registrar.counters().polled.get();
    assert!(rows < 50 * 200, "{rows} rows were read for 50 changes");
    for (sql, extra, key) in [
        ("EXPLAIN SELECT DISTINCT server_id FROM location", Some("Using index for group-by"), "partyline_changed_idx"),
        (
            &*format!("EXPLAIN SELECT * FROM location WHERE last_modified >= {} AND server_id IN (1)", now() - 10),
            None,
            "partyline_changed_idx",
        ),
        (&*format!("EXPLAIN SELECT * FROM location WHERE expires < {} LIMIT 1000", now() - 60), None, "expires_idx"),
    ] {
        let plan: mysql::Row = conn.query_first(sql).expect("explain").expect("plan");
        let (used, said, rows): (Option<String>, Option<String>, u64) =
            (plan.get("key").expect("key"), plan.get("Extra").expect("extra"), plan.get("rows").expect("rows"));
        assert_eq!(used.as_deref(), Some(key), "{sql}: {plan:?}");
        assert!(extra.is_none_or(|extra| said.unwrap_or_default().contains(extra)), "{sql}: {plan:?}");
        assert!(rows < 1000, "{sql}: {plan:?}");
    }
}

#[test]
fn what_is_over_is_swept_after_a_minute() {
    let server = Mariadb::shared();
    for schema in [Schema::Own, Schema::Kamailio] {
        let name = if schema == Schema::Own { "sweep_own" } else { "sweep_kamailio" };
        let url = if schema == Schema::Own { server.database(name) } else { kamailio::database(server, name) };
        // The table is there after this.
        drop(open(shared(Mode::WriteThrough, &url, schema, 1)));
        let mut conn = server.connect(name);
        for (user, ago) in [("over", 70i64), ("just", 30), ("alive", -1000)] {
            let when = i64::from(now()) - ago;
            let when = if schema == Schema::Own { when.to_string() } else { format!("FROM_UNIXTIME({when})") };
            conn.query_drop(format!(
                "INSERT INTO location (ruid, username, domain, contact, expires, server_id) VALUES ('r{user}', '{user}', 'h', 'sip:a@h', {when}, 9)"
            ))
            .expect("insert");
        }
        if schema == Schema::Kamailio {
            // One without an end.
            conn.query_drop("INSERT INTO location (ruid, username, domain, contact, expires) VALUES ('s', 'static', 'h', 'sip:a@h', FROM_UNIXTIME(0))").expect("insert");
        }
        let a = open(shared(Mode::WriteThrough, &url, schema, 1));
        eventually("swept", || {
            conn.query_first::<u32, _>("SELECT COUNT(*) FROM location WHERE username = 'over'").expect("count")
                == Some(0)
        });
        let expected = if schema == Schema::Own { 2 } else { 3 };
        assert_eq!(conn.query_first::<u32, _>("SELECT COUNT(*) FROM location").expect("count"), Some(expected));
        assert_eq!((known(&a, "just@h").len(), known(&a, "alive@h").len()), (0, 1));
    }
}

#[test]
fn two_servers_need_two_numbers() {
    let options = shared(Mode::WriteBack, "mysql://root@127.0.0.1:1/x", Schema::Own, 0);
    let error = Registrar::open(options, NotingSink::default()).err().expect("refused");
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.to_string().contains("server_id"), "{error}");
}
