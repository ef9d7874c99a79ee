use super::*;
use crate::registrar::store::{Key, NO_METHODS, NO_Q};

fn row<'a>(aor: &'a [u8], contact: &'a [u8], expires: u32) -> Row<'a> {
    Row {
        key: Key { aor: Aor::split(aor), contact, instance: b"", reg_id: 0 },
        expires,
        cseq: 1,
        q: NO_Q,
        methods: NO_METHODS,
        call_id: b"c",
        user_agent: b"agent",
        ..Row::default()
    }
}

fn settle_complete(shard: &mut Shard, slot: u32) {
    shard.settle(slot, 0, &|_| true);
}

fn changes(shard: &mut Shard) -> Vec<String> {
    let mut out = Vec::new();
    while shard
        .hand_over(
            &mut |change| {
                out.push(match change {
                    Change::Upsert(r) => format!("+{}@{}", String::from_utf8_lossy(r.key.contact), r.expires),
                    Change::Delete(k) => format!("-{}", String::from_utf8_lossy(k.contact)),
                    Change::Barrier => "|".into(),
                })
            },
            &mut || 0,
        )
        .is_some()
    {}
    out
}

#[test]
fn ten_thousand_records_are_found_and_expire_in_order_and_leave_nothing() {
    let mut shard = Shard::default();
    for i in 0..10_000u32 {
        let aor = format!("u{i}@d");
        let slot = shard.create(i.wrapping_mul(2_654_435_761), aor.as_bytes(), 0);
        shard.put(slot, &row(aor.as_bytes(), b"sip:c", 100 + i % 50), Policy::Never, &mut |_| ());
    }
    for i in 0..10_000u32 {
        assert!(shard.find(i.wrapping_mul(2_654_435_761), format!("u{i}@d").as_bytes()).is_some());
        assert!(shard.find(i.wrapping_mul(2_654_435_761), format!("v{i}@d").as_bytes()).is_none());
    }
    assert_eq!(shard.expire(99, usize::MAX, Policy::Never, &mut settle_complete), (0, false));
    for second in 100..150 {
        assert_eq!(shard.expire(second, usize::MAX, Policy::Never, &mut settle_complete), (200, false));
    }
    assert_eq!(shard.levels(), Levels::default());
    assert_eq!(shard.free.len(), shard.chunks.len() * CHUNK);
}

#[test]
fn a_refresh_moves_the_alarm_without_an_entry_and_a_shorter_one_is_kept() {
    let mut shard = Shard::default();
    let slot = shard.create(1, b"u@d", 0);
    for expires in [100, 200, 300] {
        shard.put(slot, &row(b"u@d", b"sip:c", expires), Policy::Never, &mut |_| ());
    }
    assert_eq!(shard.alarms.len(), 1);
    assert_eq!(shard.expire(299, 100, Policy::Never, &mut settle_complete), (0, false));
    shard.put(slot, &row(b"u@d", b"sip:c", 250), Policy::Never, &mut |_| ());
    assert_eq!(shard.expire(250, 100, Policy::Never, &mut settle_complete), (1, false));
    assert_eq!(shard.expire(1000, 100, Policy::Never, &mut settle_complete), (0, false));
    assert!(shard.alarms.is_empty());
}

#[test]
fn only_the_last_state_is_handed_over() {
    let mut shard = Shard::default();
    let slot = shard.create(1, b"u@d", 0);
    let no = &mut |_: &Change<'_>| ();
    shard.put(slot, &row(b"u@d", b"a", 10), Policy::Later, no);
    shard.put(slot, &row(b"u@d", b"a", 20), Policy::Later, no);
    shard.put(slot, &row(b"u@d", b"b", 20), Policy::Later, no);
    shard.remove(slot, 1, Policy::Later, no);
    assert_eq!(changes(&mut shard), ["+a@20"], "what was never told is not deleted");
    assert_eq!(changes(&mut shard), Vec::<String>::new());
    shard.put(slot, &row(b"u@d", b"a", 30), Policy::Later, no);
    shard.remove(slot, 0, Policy::Later, no);
    assert_eq!(shard.levels().bindings, 0);
    shard.put(slot, &row(b"u@d", b"a", 40), Policy::Later, no);
    assert_eq!(changes(&mut shard), ["+a@40"], "removed and added again: one upsert");
    shard.remove(slot, 0, Policy::Later, no);
    assert_eq!(changes(&mut shard), ["-a"]);
    assert!(shard.bindings(slot).is_empty());
}

#[test]
fn what_is_known_to_be_empty_is_bounded_and_waits_for_its_deletion() {
    let mut shard = Shard::default();
    for i in 0..100u32 {
        let slot = shard.create(i, format!("u{i}@d").as_bytes(), i);
        shard.settle(slot, 10, &|handed| handed != 5);
    }
    assert_eq!(shard.levels().records, 10);
    assert!(shard.find(5, b"u5@d").is_some(), "its deletion is not durable");
    assert!(shard.find(99, b"u99@d").is_some());
    assert!(shard.find(50, b"u50@d").is_none());
}

#[test]
fn a_partial_record_takes_in_what_it_does_not_know() {
    let mut shard = Shard::default();
    let no = &mut |_: &Change<'_>| ();
    let slot = shard.create(1, b"u@d", 0);
    shard.set_partial(slot, true);
    shard.put(slot, &row(b"u@d", b"known", 50), Policy::Later, no);
    shard.merge(slot, &row(b"u@d", b"known", 20), 10);
    shard.merge(slot, &row(b"u@d", b"other", 30), 10);
    let found: Vec<(&[u8], u32)> = shard.bindings(slot).iter().map(|b| (b.contact(), b.expires)).collect();
    assert_eq!(found, [(&b"known"[..], 50), (&b"other"[..], 30)]);
    assert_eq!(shard.levels().bindings, 2);
    // Removed before it was written: the row that stands there has to go.
    shard.remove(slot, 0, Policy::Later, no);
    assert_eq!(changes(&mut shard), ["-known"]);
}

#[test]
fn expired_rows_of_the_database_are_deleted_there() {
    let mut shard = Shard::default();
    let slot = shard.create(1, b"u@d", 0);
    shard.take_in(slot, &row(b"u@d", b"old", 10), 10);
    shard.take_in(slot, &row(b"u@d", b"new", 11), 10);
    assert_eq!(shard.levels().bindings, 1);
    assert_eq!(changes(&mut shard), ["-old"]);
}
