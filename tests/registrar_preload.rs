//! The start with a full table: it is streamed in while requests are answered. 50,000 rows; PARTYLINE_PRELOAD_ROWS=1000000
//! for the figure.

#[allow(dead_code, reason = "other tests use the rest")]
mod common {
    pub mod mariadb;
}
#[path = "registrar_support/kamailio.rs"]
mod kamailio;
mod registrar_support;

use std::time::Instant;

use common::mariadb::Mariadb;
use mysql::prelude::Queryable;
use partyline::registrar::Mode;
use partyline::registrar::store::Schema;
use registrar_support::{Bench, contact, eventually, now, options, request};

#[test]
fn a_full_table_is_read_while_requests_are_answered() {
    let rows: usize = std::env::var("PARTYLINE_PRELOAD_ROWS").map_or(50_000, |text| text.parse().expect("a number"));
    let server = Mariadb::start("preload");
    for schema in [Schema::Own, Schema::Kamailio] {
        let name = if schema == Schema::Own { "full_own" } else { "full_kamailio" };
        let url = if schema == Schema::Own { server.database(name) } else { kamailio::database(&server, name) };
        let mut options = options(Mode::WriteThrough, &url);
        options.store.layout.schema = schema;
        // The table is there after this.
        drop(Bench::open(options.clone()));
        let mut conn = server.connect(name);
        let time =
            |second: u32| if schema == Schema::Own { second.to_string() } else { format!("FROM_UNIXTIME({second})") };
        conn.query_drop(format!(
            "INSERT INTO location (ruid, username, domain, contact, callid, cseq, user_agent, expires, last_modified)
             SELECT CONCAT('r', seq), CONCAT('user', LPAD(seq, 8, '0')), 'example.org',
                    CONCAT('sip:user', LPAD(seq, 8, '0'), '@192.0.2.1:5060;transport=udp;ob;x=1234'),
                    CONCAT('0123456789abcdef01234567', LPAD(seq, 8, '0')), 1, 'Some Telephone 1.2.3 abc', {}, {}
             FROM seq_1_to_{rows}",
            time(now() + 3600),
            time(now() - 100)
        ))
        .expect("rows");
        let started = Instant::now();
        let bench = Bench::open(options);
        // Somebody from the end of the table, who cannot have been read yet, and somebody new; the order of the two facts
        // is looked at, not the clock.
        let aor = format!("user{rows:08}@example.org");
        let before = bench.complete(&request(&aor, "q", 1, &[]), now(), 1).expect("an answer");
        assert_eq!((before.status, before.contacts.len()), (200, 1));
        let uri = [contact("sip:new@h")];
        bench.complete(&request("new@example.org", "c", 1, &uri), now(), 2).expect("an answer");
        let answered_while_loading = !bench.registrar.complete();
        eventually("preload", || bench.registrar.complete());
        let seconds = started.elapsed().as_secs_f64();
        assert_eq!(bench.registrar.bindings(), rows + 1);
        assert!(answered_while_loading || rows < 50_000, "the table was in before two requests were answered");
        println!("figure reg_preload_{name}_{rows} {seconds:.2} s");
    }
}
