//! Kamailio's tables as they stand, and tables with other names and narrower columns.

#[allow(dead_code, reason = "other tests use the rest")]
mod common {
    pub mod mariadb;
}
#[path = "registrar_support/kamailio.rs"]
mod kamailio;
mod registrar_support;

use common::mariadb::Mariadb;
use mysql::prelude::Queryable;
use partyline::registrar::store::{Kind, NO_Q, Schema, TimeForm};
use partyline::registrar::{Contact, Mode, Options, RegisterRequest, Registrar};
use registrar_support::{Bench, NotingSink, contact, eventually, lasting, now, options, request};

fn theirs(mode: Mode, url: &str) -> Options {
    let mut options = options(mode, url);
    options.store.layout.schema = Schema::Kamailio;
    options
}

fn one<T: mysql::prelude::FromValue>(server: &Mariadb, database: &str, sql: &str) -> T {
    server.connect(database).query_first(sql).expect(sql).expect("a row")
}

#[test]
fn rows_come_back_as_they_were_written() {
    let server = Mariadb::shared();
    let url = kamailio::database(server, "k_roundtrip");
    let start = now();
    let uris: Vec<String> = (0..9).map(|i| format!("sip:a@h{i};x=%00")).collect();
    let contacts: Vec<Contact<'_>> = uris
        .iter()
        .enumerate()
        .map(|(i, uri)| Contact {
            q: if i == 0 { NO_Q } else { 100 * i as u16 },
            instance: b"<urn:uuid:1>",
            ..lasting(uri, 100 + i as u32)
        })
        .collect();
    let full = RegisterRequest {
        received: b"sip:192.0.2.1:5060",
        path: b"<sip:p;lr>",
        socket: b"udp:192.0.2.9:5060",
        ..request("a'b\"c\\@example.org", "call\\'", 0x7fff_ffff, &contacts)
    };
    let bench = Bench::open(theirs(Mode::WriteThrough, &url));
    assert_eq!(bench.complete(&full, start, 1).expect("committed").contacts.len(), 9);
    drop(bench);
    for preload in [true, false] {
        let bench = Bench::open(Options { preload, ..theirs(Mode::WriteThrough, &url) });
        if preload {
            eventually("preload", || bench.registrar.complete());
        }
        let mut found = Vec::new();
        let looked = bench.registrar.lookup(full.aor, start, |b| {
            assert_eq!((b.user_agent, b.received, b.path), (full.user_agent, full.received, full.path));
            assert_eq!((b.socket, b.call_id, b.cseq), (full.socket, full.call_id, full.cseq));
            assert_eq!((b.instance, b.reg_id, b.modified), (&b"<urn:uuid:1>"[..], 0, start));
            found.push((b.contact.to_vec(), b.q, b.expires - start));
        });
        assert_eq!(looked, Ok(9));
        found.sort();
        for (i, uri) in uris.iter().enumerate() {
            let q = if i == 0 { NO_Q } else { 100 * i as u16 };
            assert_eq!(found[i], (uri.clone().into_bytes(), q, 100 + i as u32));
        }
    }
    let expires: u32 =
        one(server, "k_roundtrip", "SELECT UNIX_TIMESTAMP(expires) FROM location ORDER BY expires LIMIT 1");
    assert_eq!(expires, start + 100);
    // As Kamailio has it: no instance is NULL, a missing q is -0.01.
    let q: f64 = one(server, "k_roundtrip", "SELECT CAST(MIN(q) AS DOUBLE) FROM location");
    assert!((q + 0.01).abs() < 1e-6, "{q}");
}

#[test]
fn a_refresh_takes_no_new_id_and_keeps_the_name_that_kamailio_gave() {
    let server = Mariadb::shared();
    let url = kamailio::database(server, "k_ids");
    let mut conn = server.connect("k_ids");
    // One that Kamailio wrote, and one without an end.
    for (ruid, user, expires) in
        [("uloc-5f-1", "old", "NOW() + INTERVAL 1 HOUR"), ("uloc-5f-2", "static", "FROM_UNIXTIME(0)")]
    {
        conn.query_drop(format!(
            "INSERT INTO location (ruid, username, domain, contact, callid, cseq, expires, last_modified, user_agent)
             VALUES ('{ruid}', '{user}', 'h', 'sip:a@h', 'c', 3, {expires}, NOW(), 'Kamailio saw it')"
        ))
        .expect("insert");
    }
    let bench = Bench::open(theirs(Mode::WriteThrough, &url));
    eventually("preload", || bench.registrar.complete());
    let start = now();
    assert_eq!(bench.registrar.lookup(b"static@h", start, |_| ()), Ok(1));
    let uri = [contact("sip:a@h")];
    for cseq in 4..24u32 {
        for user in ["old", "new1", "new2"] {
            let waiter = u64::from(cseq) * 10 + user.len() as u64 + u64::from(user.ends_with('2'));
            bench.complete(&request(&format!("{user}@h"), "c", cseq, &uri), start, waiter).expect("committed");
        }
    }
    let rows: Vec<(String, String, u32, u32)> =
        conn.query("SELECT ruid, username, cseq, id FROM location ORDER BY id").expect("rows");
    let names: Vec<(&str, u32)> = rows.iter().map(|(_, user, cseq, _)| (&user[..], *cseq)).collect();
    assert_eq!(names, [("old", 23), ("static", 3), ("new1", 23), ("new2", 23)]);
    assert_eq!((&rows[0].0[..], rows[2].0.len()), ("uloc-5f-1", 35));
    let next: u64 = one(
        server,
        "k_ids",
        "SELECT auto_increment FROM information_schema.tables WHERE table_schema = 'k_ids' AND table_name = 'location'",
    );
    assert!(next <= 8, "sixty refreshes have used up {next} ids");
    // The bytes decide what is deleted, not the collation.
    conn.query_drop(
        "INSERT INTO location (ruid, username, domain, contact, expires) VALUES ('x', 'new1', 'h', 'sip:A@h', NOW() + INTERVAL 1 HOUR)",
    )
    .expect("insert");
    for user in ["new1", "old"] {
        let remove = [lasting("sip:a@h", 0)];
        bench.complete(&request(&format!("{user}@h"), "c", 24, &remove), start, 1000 + user.len() as u64).expect("ok");
    }
    let left: Vec<(String, String)> = conn.query("SELECT username, contact FROM location ORDER BY id").expect("rows");
    let left: Vec<(&str, &str)> = left.iter().map(|(user, contact)| (&user[..], &contact[..])).collect();
    assert_eq!(left, [("static", "sip:a@h"), ("new2", "sip:a@h"), ("new1", "sip:A@h")]);
}

#[test]
fn other_names_epoch_and_narrow_columns() {
    let server = Mariadb::shared();
    let url = kamailio::database(server, "k_other");
    let mut conn = server.connect("k_other");
    for sql in [
        "RENAME TABLE location TO bindings, subscriber TO people",
        "ALTER TABLE bindings CHANGE contact uri VARCHAR(512) NOT NULL, CHANGE user_agent agent VARCHAR(20) NOT NULL DEFAULT '',
           DROP COLUMN expires, ADD COLUMN until BIGINT NOT NULL DEFAULT 0, MODIFY last_modified BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE people CHANGE ha1 secret VARCHAR(64)",
        "DROP TABLE version",
        "INSERT INTO people (username, domain, secret) VALUES ('u', 'h', 'x')",
    ] {
        conn.query_drop(sql).expect(sql);
    }
    let mut options = theirs(Mode::WriteThrough, &url);
    let name = |text| partyline::registrar::store::Identifier::new(text).expect("a name");
    options.store.tables.location = name("bindings");
    options.store.tables.subscriber = name("people");
    options.store.layout.time = Some(TimeForm::Epoch);
    options
        .store
        .layout
        .set_columns("contact=uri,user_agent=agent,expires=until,subscriber.ha1=secret")
        .expect("names");
    let bench = Bench::open(Options { auth: partyline::registrar::AuthMode::UserExists, ..options.clone() });
    let start = now();
    let uri = [lasting("sip:a@h", 300)];
    bench.complete(&request("u@h", "c", 1, &uri), start, 1).expect("committed");
    let long = RegisterRequest { user_agent: b"a name of 21 letters!", ..request("u@h", "c", 2, &uri) };
    let answer = bench.complete(&long, start, 2).expect("an answer");
    assert_eq!((answer.status, &answer.reason[..]), (400, "User-Agent Too Long"));
    assert_eq!(
        one::<u32>(server, "k_other", "SELECT until FROM bindings WHERE uri = 'sip:a@h' AND cseq = 1"),
        start + 300
    );
    drop(bench);
    options.store.layout.set_columns("contact=uri,user_agent=agent,expires=ends").expect("names");
    let error = Registrar::open(options, NotingSink::default()).err().expect("a column is missing");
    assert_eq!((error.kind(), &error.to_string()[..]), (Kind::Schema, "table bindings has no column ends"));
}

#[test]
fn text_that_the_table_cannot_hold_stands_in_nobodys_way() {
    let server = Mariadb::shared();
    for (name, charset, too_much) in [("k_latin1", "latin1", "\u{65e5}"), ("k_utf8", "utf8mb3", "\u{1f600}")] {
        let url = kamailio::database(server, name);
        for table in ["location", "subscriber"] {
            let sql = format!("ALTER TABLE {table} CONVERT TO CHARACTER SET {charset}");
            server.connect(name).query_drop(sql).expect("alter");
        }
        let bench = Bench::open(Options { preload: false, ..theirs(Mode::WriteThrough, &url) });
        // Many are asked for in one SELECT, one of whom cannot be in the table.
        let aors: Vec<String> =
            (0..40).map(|n| if n == 7 { format!("{too_much}@h") } else { format!("caf\u{e9}{n}@h") }).collect();
        for (n, aor) in aors.iter().enumerate() {
            bench.registrar.load(bench.registrar.miss(aor.as_bytes()), n as u64).expect("room");
        }
        for n in 0..aors.len() as u64 {
            assert_eq!(bench.notes.wait_loaded(n), Ok(()), "{n}");
        }
        let uri = [contact("sip:a@h")];
        for (n, aor) in aors.iter().enumerate() {
            assert_eq!(bench.registrar.lookup(aor.as_bytes(), now(), |_| ()), Ok(0));
            let request =
                RegisterRequest { user_agent: "T\u{e9}l\u{e9}phone".as_bytes(), ..request(aor, "c", 1, &uri) };
            let answer = bench.complete(&request, now(), 1000 + n as u64).expect("an answer");
            let expected = if n == 7 { (400, "Text Cannot Be Stored") } else { (200, "OK") };
            assert_eq!((answer.status, &answer.reason[..]), expected, "{aor}");
        }
        let agent = format!("phone {too_much}");
        let refused = RegisterRequest { user_agent: agent.as_bytes(), ..request(&aors[0], "c", 2, &uri) };
        assert_eq!(bench.complete(&refused, now(), 2000).map(|a| a.status), Ok(400));
        drop(bench);
        // It comes back as it was.
        let bench = Bench::open(theirs(Mode::WriteThrough, &url));
        eventually("preload", || bench.registrar.complete());
        let agents = |aor: &str| {
            let mut agents = Vec::new();
            bench.registrar.lookup(aor.as_bytes(), now(), |b| agents.push(b.user_agent.to_vec())).expect("known");
            agents
        };
        assert_eq!(agents(&aors[39]), ["T\u{e9}l\u{e9}phone".as_bytes()]);
        assert_eq!(one::<u32>(server, name, "SELECT COUNT(*) FROM location"), 39);
    }
}

#[test]
fn whose_table_it_is_must_be_said_rightly() {
    let server = Mariadb::shared();
    let url = kamailio::database(server, "k_whose");
    let say = |options: Options| {
        let error = Registrar::open(options, NotingSink::default()).err().expect("refused");
        (error.kind(), error.to_string())
    };
    let (kind, text) = say(options(Mode::WriteBack, &url));
    assert_eq!(kind, Kind::Schema);
    assert!(text.contains("has version 9, a table of Kamailio's"), "{text}");
    let own = server.database("k_own");
    drop(Bench::open(options(Mode::WriteBack, &own)));
    assert_eq!(say(theirs(Mode::WriteBack, &own)).1, "table location has version 1; this program knows version 9");
    assert_eq!(say(theirs(Mode::WriteBack, &server.database("k_empty"))).1, "there is no table location");
    assert_eq!(say(theirs(Mode::WriteBack, "sqlite:/tmp/none.db")).0, Kind::Config);
}
