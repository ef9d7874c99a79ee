//! The registrar against a naive model: a list that is searched from end to end.

mod registrar_support;

use partyline::registrar::{Contact, Mode, Options, RegisterRequest};
use proptest::prelude::*;
use registrar_support::{Bench, SqliteFile, contact, eventually, now, options, request};

/// URIs, and which of them are equal by RFC 3261 section 19.1.4.
const URIS: [(&str, u8); 6] = [
    ("sip:a@h1", 1),
    ("sip:a@H1", 1),
    ("sip:a@h1;transport=tcp", 2),
    ("sip:a@h1;Transport=TCP", 2),
    ("sip:b@h1", 3),
    ("sip:a@h2", 4),
];
const AORS: [&str; 2] = ["alice@example.org", "bob@example.org"];
const CALLS: [&str; 2] = ["call-1", "call-2"];
const MAX: usize = 3;

#[derive(Debug, Clone)]
enum Op {
    Register { aor: usize, call: usize, cseq: u32, contacts: Vec<(usize, Option<u32>, u32)>, header: Option<u32> },
    Clear { aor: usize, call: usize, cseq: u32 },
    Pass(u32),
}

fn op() -> impl Strategy<Value = Op> {
    let expires = || prop_oneof![Just(None), Just(Some(0)), Just(Some(30)), (60u32..300).prop_map(Some)];
    let contact = (0..URIS.len(), expires(), 0u32..3);
    prop_oneof![
        6 => (0..2usize, 0..2usize, 1u32..12, prop::collection::vec(contact, 0..4), expires())
            .prop_map(|(aor, call, cseq, contacts, header)| Op::Register { aor, call, cseq, contacts, header }),
        1 => (0..2usize, 0..2usize, 1u32..12).prop_map(|(aor, call, cseq)| Op::Clear { aor, call, cseq }),
        2 => (1u32..120).prop_map(Op::Pass),
    ]
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Bound {
    aor: usize,
    uri: usize,
    /// 0: known by its URI.
    flow: u32,
    call: usize,
    cseq: u32,
    expires: u32,
}

fn same(a: (usize, u32), b: (usize, u32)) -> bool {
    if a.1 != 0 || b.1 != 0 { a.1 == b.1 } else { URIS[a.0].1 == URIS[b.0].1 }
}

/// The rules once more, as simply as they can be said: one contact after the other on a copy, which is thrown away when
/// one fails.
fn model(list: &[Bound], op: &Op, now: u32) -> Result<Vec<Bound>, u16> {
    let mut new: Vec<Bound> = list.iter().filter(|b| b.expires > now).cloned().collect();
    match op {
        Op::Pass(_) => {}
        Op::Clear { aor, call, cseq } => {
            if new.iter().any(|b| b.aor == *aor && b.call == *call && b.cseq >= *cseq) {
                return Err(500);
            }
            new.retain(|b| b.aor != *aor);
        }
        Op::Register { aor, call, cseq, contacts, header } => {
            let mut grew = false;
            for (i, (uri, expires, flow)) in contacts.iter().enumerate() {
                let seconds = expires.or(*header).unwrap_or(3600);
                if seconds > 0 && seconds < 60 {
                    return Err(423);
                }
                let old = list
                    .iter()
                    .filter(|b| b.expires > now)
                    .find(|b| b.aor == *aor && same((b.uri, b.flow), (*uri, *flow)));
                if old.is_some_and(|b| b.call == *call && b.cseq > *cseq) {
                    return Err(500);
                }
                // Only the last of several contacts that mean one binding counts.
                if contacts[i + 1..].iter().any(|later| same((later.0, later.2), (*uri, *flow))) {
                    continue;
                }
                if old.is_some_and(|b| b.call == *call && b.cseq == *cseq) {
                    continue;
                }
                new.retain(|b| !(b.aor == *aor && same((b.uri, b.flow), (*uri, *flow))));
                if seconds > 0 {
                    grew |= old.is_none();
                    new.push(Bound {
                        aor: *aor,
                        uri: *uri,
                        flow: *flow,
                        call: *call,
                        cseq: *cseq,
                        expires: now + seconds,
                    });
                }
            }
            if grew && new.iter().filter(|b| b.aor == *aor).count() > MAX {
                return Err(503);
            }
        }
    }
    Ok(new)
}

const FLOWS: [&[u8]; 3] = [b"", b"<urn:uuid:1>", b"<urn:uuid:2>"];

fn run(bench: &Bench, ops: &[Op], start: u32) -> Vec<Bound> {
    let mut list: Vec<Bound> = Vec::new();
    let mut now = start;
    for (step, op) in ops.iter().enumerate() {
        if let Op::Pass(seconds) = op {
            now += seconds;
            bench.registrar.expire(now);
            list.retain(|b| b.expires > now);
            assert_eq!(bench.registrar.bindings(), list.len(), "after {step}");
            continue;
        }
        let expected = model(&list, op, now);
        let contacts: Vec<Contact<'_>>;
        let request = match op {
            Op::Register { aor, call, cseq, contacts: asked, header } => {
                contacts = asked
                    .iter()
                    .map(|(uri, expires, flow)| Contact {
                        expires: *expires,
                        instance: FLOWS[*flow as usize],
                        reg_id: *flow,
                        ..contact(URIS[*uri].0)
                    })
                    .collect();
                RegisterRequest { expires: *header, ..request(AORS[*aor], CALLS[*call], *cseq, &contacts) }
            }
            Op::Clear { aor, call, cseq } => {
                RegisterRequest { star: true, expires: Some(0), ..request(AORS[*aor], CALLS[*call], *cseq, &[]) }
            }
            Op::Pass(_) => unreachable!(),
        };
        let answer = bench.complete(&request, now, step as u64).expect("an answer");
        match expected {
            Err(status) => assert_eq!(answer.status, status, "{step}: {op:?} on {list:?}"),
            Ok(new) => {
                assert_eq!(answer.status, 200, "{step}: {op:?} on {list:?}");
                list = new;
                let mut told = answer.contacts.clone();
                told.sort();
                let aor = AORS.iter().position(|a| a.as_bytes() == request.aor).expect("aor");
                let mut known: Vec<(String, u32)> =
                    list.iter().filter(|b| b.aor == aor).map(|b| (URIS[b.uri].0.to_owned(), b.expires - now)).collect();
                known.sort();
                assert_eq!(told, known, "{step}: {op:?}");
            }
        }
    }
    list.retain(|b| b.expires > now);
    list
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_memory(ops in prop::collection::vec(op(), 1..60)) {
        let bench = Bench::open(Options { max_contacts: MAX, shards: 2, ..Options::default() });
        run(&bench, &ops, registrar_support::NOW);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// What the cache says in the end is what the table says, and what a new registrar reads.
    #[test]
    fn on_sqlite(ops in prop::collection::vec(op(), 1..40), through in any::<bool>(), preload in any::<bool>()) {
        let file = SqliteFile::new("model");
        let mode = if through { Mode::WriteThrough } else { Mode::WriteBack };
        // Far from the registrar's own clock, which must not interfere: time here only passes when the test says so.
        let start = now() + 100_000;
        let options = Options { max_contacts: MAX, shards: 2, known_empty: 0, preload, ..options(mode, &file.url()) };
        let bench = Bench::open(options.clone());
        let list = run(&bench, &ops, start);
        let passed: u32 = ops.iter().map(|op| if let Op::Pass(n) = op { *n } else { 0 }).sum();
        bench.registrar.expire(start + passed);
        bench.registrar.close();
        let mut known: Vec<(String, String, i64, i64)> = list
            .iter()
            .map(|b| (AORS[b.aor].to_owned(), URIS[b.uri].0.to_owned(), i64::from(b.flow), i64::from(b.expires)))
            .collect();
        known.sort();
        let db = file.connect();
        let mut select = db
            .prepare("SELECT username || '@' || domain, contact, reg_id, expires FROM location ORDER BY 1, 2, 3")
            .expect("select");
        let stored: Vec<(String, String, i64, i64)> = select
            .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))
            .expect("rows")
            .map(|row| row.expect("row"))
            .collect();
        prop_assert_eq!(&stored, &known);
        let again = Bench::open(options);
        if preload {
            eventually("preload", || again.registrar.complete());
        }
        for (n, aor) in AORS.iter().enumerate() {
            let count = again.registrar.lookup(aor.as_bytes(), start + passed, |_| ());
            prop_assert_eq!(count, Ok(list.iter().filter(|b| b.aor == n).count()));
        }
    }
}
