//! The rules of REGISTER, each test named after the section that it comes from. Mode memory: what is tested is the rule.

mod registrar_support;

use partyline::registrar::{Contact, MAX_REQUEST_CONTACTS, Options, RegisterRequest, WhenBrief, WhenFull};
use registrar_support::{Answer, Bench, contact, lasting, request};

const AOR: &str = "alice@example.org";

fn star<'a>(call_id: &'a str, cseq: u32) -> RegisterRequest<'a> {
    RegisterRequest { star: true, expires: Some(0), ..request(AOR, call_id, cseq, &[]) }
}

fn contacts(answer: &Answer) -> Vec<(&str, u32)> {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.contacts.iter().map(|(uri, seconds)| (uri.as_str(), *seconds)).collect()
}

/// Without the order, which among equals is free.
fn sorted(answer: &Answer) -> Vec<&str> {
    let mut uris = answer.uris();
    uris.sort_unstable();
    uris
}

#[test]
fn rfc3261_10_2_1_add_and_10_3_8_list_all_current_bindings() {
    let bench = Bench::memory();
    let answer = bench.register(&request(AOR, "c", 1, &[lasting("sip:a@h1", 100)]));
    assert_eq!(contacts(&answer), [("sip:a@h1", 100)]);
    let answer = bench.at(30, &request(AOR, "c", 2, &[lasting("sip:a@h2", 60)]));
    assert_eq!(contacts(&answer), [("sip:a@h2", 60), ("sip:a@h1", 70)]);
    // Another address-of-record knows nothing of it.
    assert_eq!(contacts(&bench.register(&request("bob@example.org", "c", 1, &[]))), []);
}

#[test]
fn rfc3261_10_2_3_a_query_changes_nothing() {
    let bench = Bench::memory();
    assert_eq!(contacts(&bench.register(&request(AOR, "c", 1, &[]))), []);
    bench.register(&request(AOR, "c", 2, &[lasting("sip:a@h1", 100)]));
    assert_eq!(contacts(&bench.at(60, &request(AOR, "q", 1, &[]))), [("sip:a@h1", 40)]);
    assert_eq!(contacts(&bench.at(99, &request(AOR, "q", 1, &[]))), [("sip:a@h1", 1)]);
    assert_eq!(contacts(&bench.at(100, &request(AOR, "q", 1, &[]))), []);
}

#[test]
fn rfc3261_10_2_4_refresh_by_an_equal_uri() {
    let bench = Bench::memory();
    bench.register(&request(AOR, "c", 1, &[lasting("sip:a@Host.example:5060;transport=UDP;x=1", 100)]));
    // 19.1.4: host and parameters without case, parameters in any order.
    let answer = bench.at(10, &request(AOR, "c", 2, &[lasting("sip:a@host.example:5060;x=1;transport=udp", 100)]));
    assert_eq!(contacts(&answer), [("sip:a@host.example:5060;x=1;transport=udp", 100)]);
    // The user part has case, and a port that is written is not one that is left out.
    let answer = bench.at(10, &request(AOR, "c", 3, &[lasting("sip:A@host.example:5060;x=1;transport=udp", 100)]));
    assert_eq!(answer.contacts.len(), 2);
    let answer = bench.at(10, &request(AOR, "c", 4, &[lasting("sip:a@host.example;x=1;transport=udp", 100)]));
    assert_eq!(answer.contacts.len(), 3);
    assert_eq!(bench.registrar.bindings(), 3);
}

#[test]
fn rfc3261_10_2_2_remove_one_by_expires_0() {
    let bench = Bench::memory();
    bench.register(&request(AOR, "c", 1, &[contact("sip:a@h1"), contact("sip:a@h2")]));
    let answer = bench.register(&request(AOR, "c", 2, &[lasting("sip:a@h1", 0)]));
    assert_eq!(answer.uris(), ["sip:a@h2"]);
    // The header does it as well, and what is not there is removed without complaint.
    let two = [contact("sip:a@h2"), contact("sip:no@h")];
    let zero = RegisterRequest { expires: Some(0), ..request(AOR, "c", 3, &two) };
    assert_eq!(contacts(&bench.register(&zero)), []);
    assert_eq!(bench.registrar.bindings(), 0);
}

#[test]
fn rfc3261_10_2_2_and_10_3_6_star() {
    let bench = Bench::memory();
    bench.register(&request(AOR, "c", 1, &[contact("sip:a@h1"), contact("sip:a@h2")]));
    let both = [contact("sip:a@h3")];
    for bad in [
        RegisterRequest { contacts: &both, ..star("c", 2) },
        RegisterRequest { expires: None, ..star("c", 2) },
        RegisterRequest { expires: Some(1), ..star("c", 2) },
    ] {
        assert_eq!(bench.register(&bad).status, 400);
        assert_eq!(bench.bindings(AOR, 0).len(), 2, "nothing has changed");
    }
    assert_eq!(contacts(&bench.register(&star("c", 2))), []);
    // A retransmission finds nothing left, which is what it asked for.
    assert_eq!(contacts(&bench.register(&star("c", 2))), []);
}

#[test]
fn rfc3261_10_3_6_star_out_of_order_changes_nothing() {
    let bench = Bench::memory();
    bench.register(&request(AOR, "other", 90, &[contact("sip:a@h1")]));
    bench.register(&request(AOR, "c", 5, &[contact("sip:a@h2")]));
    for cseq in [4, 5] {
        assert_eq!(bench.register(&star("c", cseq)).status, 500);
        assert_eq!(bench.bindings(AOR, 0).len(), 2);
    }
    assert_eq!(contacts(&bench.register(&star("c", 6))), []);
}

#[test]
fn rfc3261_10_3_7_expires_parameter_then_header_then_default() {
    let bench = Bench::open(Options { default_expires: 1000, max_expires: 5000, ..Options::default() });
    let both = [lasting("sip:a@h1", 200), contact("sip:a@h2")];
    let answer = bench.register(&RegisterRequest { expires: Some(300), ..request(AOR, "c", 1, &both) });
    assert_eq!(contacts(&answer), [("sip:a@h1", 200), ("sip:a@h2", 300)]);
    let answer = bench.register(&request(AOR, "c", 2, &[contact("sip:a@h1"), lasting("sip:a@h2", u32::MAX)]));
    assert_eq!(contacts(&answer), [("sip:a@h1", 1000), ("sip:a@h2", 5000)], "default, and the maximum");
}

#[test]
fn rfc3261_10_3_7_interval_too_brief() {
    let bench = Bench::open(Options { min_expires: 120, ..Options::default() });
    let answer = bench.register(&request(AOR, "c", 1, &[contact("sip:a@h1"), lasting("sip:a@h2", 119)]));
    assert_eq!((answer.status, answer.reason.as_str()), (423, "Interval Too Brief"));
    assert_eq!(answer.headers, [("Min-Expires".to_owned(), 120)]);
    assert_eq!(bench.registrar.bindings(), 0, "all or nothing");
    assert_eq!(contacts(&bench.register(&request(AOR, "c", 1, &[lasting("sip:a@h2", 120)]))), [("sip:a@h2", 120)]);

    let bench = Bench::open(Options { min_expires: 120, when_brief: WhenBrief::Raise, ..Options::default() });
    assert_eq!(contacts(&bench.register(&request(AOR, "c", 1, &[lasting("sip:a@h1", 1)]))), [("sip:a@h1", 120)]);

    // An hour is never too brief.
    let bench = Bench::open(Options { min_expires: 7200, ..Options::default() });
    assert_eq!(bench.register(&request(AOR, "c", 1, &[lasting("sip:a@h1", 3599)])).status, 423);
    assert_eq!(contacts(&bench.register(&request(AOR, "c", 1, &[lasting("sip:a@h1", 3600)]))), [("sip:a@h1", 3600)]);
}

#[test]
fn rfc3261_10_3_7_cseq_order_within_a_call_id() {
    let bench = Bench::memory();
    bench.register(&request(AOR, "c", 5, &[lasting("sip:a@h1", 100)]));
    let older = [lasting("sip:a@h2", 100), lasting("sip:a@h1", 200)];
    let answer = bench.register(&request(AOR, "c", 4, &older));
    assert_eq!((answer.status, answer.contacts.len()), (500, 0));
    assert_eq!(bench.bindings(AOR, 0), ["sip:a@h1"], "all or nothing");
    // Another Call-ID (the client started anew) may count from anywhere.
    assert_eq!(contacts(&bench.register(&request(AOR, "d", 1, &[lasting("sip:a@h1", 300)]))), [("sip:a@h1", 300)]);
    // The old one has no say about that binding any more, its numbers belong to another counter.
    assert_eq!(contacts(&bench.register(&request(AOR, "c", 4, &[lasting("sip:a@h1", 400)]))), [("sip:a@h1", 400)]);
}

#[test]
fn rfc3261_10_3_7_an_equal_cseq_is_a_retransmission() {
    let bench = Bench::memory();
    let first = [lasting("sip:a@h1", 100)];
    bench.register(&request(AOR, "c", 5, &first));
    let answer = bench.at(40, &request(AOR, "c", 5, &first));
    assert_eq!(contacts(&answer), [("sip:a@h1", 60)], "the current state, not a refresh");
    let answer = bench.at(40, &request(AOR, "c", 5, &[lasting("sip:a@h1", 0)]));
    assert_eq!(contacts(&answer), [("sip:a@h1", 60)]);
}

#[test]
fn rfc3261_10_3_a_binding_that_expired_does_not_count() {
    let bench = Bench::memory();
    bench.register(&request(AOR, "c", 50, &[lasting("sip:a@h1", 100)]));
    assert_eq!(contacts(&bench.at(100, &request(AOR, "c", 1, &[lasting("sip:a@h1", 70)]))), [("sip:a@h1", 70)]);
    assert_eq!(bench.registrar.expire(registrar_support::NOW + 169), 0);
    assert_eq!(bench.registrar.expire(registrar_support::NOW + 170), 1);
    assert_eq!(bench.registrar.bindings(), 0);
}

#[test]
fn rfc3261_20_10_contacts_by_q_then_latest_first() {
    let bench = Bench::memory();
    let with_q = |uri, q| Contact { q, ..contact(uri) };
    bench.at(0, &request(AOR, "c", 1, &[with_q("sip:a@h1", 100), with_q("sip:a@h2", 900), with_q("sip:a@h3", 0)]));
    bench.at(1, &request(AOR, "c", 2, &[contact("sip:a@h4")]));
    bench.at(2, &request(AOR, "c", 3, &[with_q("sip:a@h5", 900)]));
    let answer = bench.at(3, &request(AOR, "c", 4, &[]));
    assert_eq!(answer.uris(), ["sip:a@h4", "sip:a@h5", "sip:a@h2", "sip:a@h1", "sip:a@h3"]);
}

#[test]
fn rfc3261_10_3_7_one_contact_named_twice_counts_once() {
    let bench = Bench::memory();
    let answer = bench.register(&request(AOR, "c", 1, &[lasting("sip:a@h", 100), lasting("sip:a@H", 200)]));
    assert_eq!(contacts(&answer), [("sip:a@H", 200)]);
    let answer = bench.register(&request(AOR, "c", 2, &[lasting("sip:a@h", 0), lasting("sip:a@h", 300)]));
    assert_eq!(contacts(&answer), [("sip:a@h", 300)]);
    let answer = bench.register(&request(AOR, "c", 3, &[lasting("sip:a@h", 300), lasting("sip:a@h", 0)]));
    assert_eq!(contacts(&answer), []);
}

#[test]
fn rfc5626_6_a_flow_is_known_by_instance_and_reg_id() {
    let bench = Bench::memory();
    let flow = |uri, reg_id| Contact { instance: b"<urn:uuid:1>", reg_id, ..lasting(uri, 100) };
    bench.register(&request(AOR, "c", 1, &[flow("sip:a@h1", 1), flow("sip:a@h2", 2)]));
    // The device moved: the flow stays one binding, with its new contact.
    let answer = bench.at(10, &request(AOR, "c", 2, &[flow("sip:a@h9", 1)]));
    assert_eq!(contacts(&answer), [("sip:a@h9", 100), ("sip:a@h2", 90)]);
    // Order counts for flows too.
    assert_eq!(bench.register(&request(AOR, "c", 1, &[flow("sip:a@h7", 1)])).status, 500);
    // Two devices behind two routers may have one contact.
    let other = Contact { instance: b"<urn:uuid:2>", reg_id: 1, ..lasting("sip:a@h9", 100) };
    assert_eq!(bench.at(20, &request(AOR, "d", 1, &[other])).contacts.len(), 3);
    // Without reg-id the URI decides, among those that have none.
    assert_eq!(bench.at(20, &request(AOR, "e", 1, &[lasting("sip:a@h9", 100)])).contacts.len(), 4);
    assert_eq!(bench.at(20, &request(AOR, "e", 2, &[lasting("sip:a@h9", 0)])).contacts.len(), 3);
}

#[test]
fn limit_of_contacts_refuses_with_retry_after() {
    let bench = Bench::open(Options { max_contacts: 2, retry_after: 7, ..Options::default() });
    bench.register(&request(AOR, "c", 1, &[lasting("sip:a@h1", 100), lasting("sip:a@h2", 200)]));
    let answer = bench.register(&request(AOR, "c", 2, &[lasting("sip:a@h1", 300), contact("sip:a@h3")]));
    assert_eq!((answer.status, answer.headers), (503, vec![("Retry-After".to_owned(), 7)]));
    assert_eq!(contacts(&bench.register(&request(AOR, "c", 3, &[]))), [("sip:a@h1", 100), ("sip:a@h2", 200)]);
    // One goes, one comes: that is room enough. So is a binding that has expired.
    let swap = [lasting("sip:a@h1", 0), lasting("sip:a@h3", 100)];
    assert_eq!(sorted(&bench.register(&request(AOR, "c", 4, &swap))), ["sip:a@h2", "sip:a@h3"]);
    assert_eq!(bench.at(100, &request(AOR, "c", 5, &[contact("sip:a@h4")])).contacts.len(), 2);
    // A flow that moves needs no room.
    let bench = Bench::open(Options { max_contacts: 1, ..Options::default() });
    let flow = |uri| Contact { instance: b"<urn:uuid:1>", reg_id: 1, ..contact(uri) };
    assert_eq!(bench.register(&request(AOR, "c", 1, &[flow("sip:a@h1")])).status, 200);
    assert_eq!(bench.register(&request(AOR, "c", 2, &[flow("sip:a@h2")])).uris(), ["sip:a@h2"]);
}

#[test]
fn limit_of_contacts_replaces_what_ends_soonest() {
    let bench = Bench::open(Options { max_contacts: 3, when_full: WhenFull::ReplaceSoonest, ..Options::default() });
    let three = [lasting("sip:a@h1", 300), lasting("sip:a@h2", 100), lasting("sip:a@h3", 200)];
    bench.register(&request(AOR, "c", 1, &three));
    let answer = bench.at(1, &request(AOR, "c", 2, &[lasting("sip:a@h4", 60)]));
    assert_eq!(answer.uris(), ["sip:a@h4", "sip:a@h1", "sip:a@h3"]);
    // What the request itself refreshes does not make room.
    let two = [lasting("sip:a@h4", 60), lasting("sip:a@h5", 60), lasting("sip:a@h6", 60)];
    assert_eq!(sorted(&bench.at(2, &request(AOR, "c", 3, &two))), ["sip:a@h4", "sip:a@h5", "sip:a@h6"]);
    let four = ["sip:a@n1", "sip:a@n2", "sip:a@n3", "sip:a@n4"].map(contact);
    assert_eq!(bench.at(3, &request(AOR, "c", 4, &four)).status, 503);
    assert_eq!(bench.registrar.bindings(), 3);
}

#[test]
fn too_long_for_a_column_is_refused_and_nothing_changes() {
    let bench = Bench::memory();
    let long = "x".repeat(600);
    let uri = format!("sip:{long}@h");
    let two = [contact("sip:a@h"), contact(&uri)];
    let plain = [contact("sip:a@h")];
    let aor = format!("{}@example.org", &long[..65]);
    let instance = [Contact { instance: &long.as_bytes()[..256], reg_id: 1, ..contact("sip:a@h") }];
    for bad in [
        request(AOR, "c", 1, &two),
        request(AOR, &long[..256], 1, &plain),
        request(&aor, "c", 1, &plain),
        request(AOR, "c", 1, &instance),
        RegisterRequest { user_agent: &long.as_bytes()[..256], ..request(AOR, "c", 1, &plain) },
        RegisterRequest { path: &long.as_bytes()[..513], ..request(AOR, "c", 1, &plain) },
        RegisterRequest { received: &long.as_bytes()[..129], ..request(AOR, "c", 1, &plain) },
        RegisterRequest { socket: &long.as_bytes()[..65], ..request(AOR, "c", 1, &plain) },
    ] {
        assert_eq!(bench.register(&bad).status, 400);
        assert_eq!(bench.registrar.bindings(), 0);
    }
    let fits = RegisterRequest {
        user_agent: &long.as_bytes()[..255],
        path: &long.as_bytes()[..512],
        ..request(AOR, &long[..255], 1, &plain)
    };
    assert_eq!(bench.register(&fits).status, 200);
}

#[test]
fn as_many_contacts_as_a_request_may_have_and_one_more() {
    let uris: Vec<String> = (0..=MAX_REQUEST_CONTACTS).map(|i| format!("sip:a@h{i}")).collect();
    let all: Vec<Contact<'_>> = uris.iter().map(|uri| contact(uri)).collect();
    let bench = Bench::open(Options { max_contacts: 1000, ..Options::default() });
    assert_eq!(bench.register(&request(AOR, "c", 1, &all)).status, 400);
    assert_eq!(bench.registrar.bindings(), 0);
    assert_eq!(bench.register(&request(AOR, "c", 2, &all[1..])).contacts.len(), MAX_REQUEST_CONTACTS);
    // More than are sorted without an allocation.
    for block in 1..4 {
        let uris: Vec<String> = (0..MAX_REQUEST_CONTACTS).map(|i| format!("sip:a@b{block}-{i}")).collect();
        let more: Vec<Contact<'_>> = uris.iter().map(|uri| contact(uri)).collect();
        bench.at(block, &request(AOR, "c", 2 + block, &more));
    }
    assert_eq!(bench.register(&request(AOR, "c", 9, &[])).contacts.len(), 4 * MAX_REQUEST_CONTACTS);
    let zero: Vec<Contact<'_>> = uris[1..].iter().map(|uri| lasting(uri, 0)).collect();
    assert_eq!(bench.at(5, &request(AOR, "c", 10, &zero)).contacts.len(), 3 * MAX_REQUEST_CONTACTS);
}

#[test]
fn metrics_name_what_happened() {
    let bench = Bench::memory();
    bench.register(&request(AOR, "c", 1, &[contact("sip:a@h")]));
    bench.register(&request(AOR, "c", 0, &[contact("sip:a@h")]));
    let mut text = partyline::observe::Text::new();
    bench.registrar.metrics(&mut text);
    let text = text.finish();
    for line in [
        "partyline_registrar_answered_total 1\n",
        "partyline_registrar_rejected_total 1\n",
        "partyline_registrar_bindings 1\n",
        "partyline_registrar_store_selects_total 0\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
}
