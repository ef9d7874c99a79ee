//! The room's promise that nothing allocates per message: a REGISTER is read, keyed, authenticated and answered with a
//! counting allocator underneath.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use partyline::sip::digest::{Algorithm, Credentials, Hash, put_challenge};
use partyline::sip::nonce::{NonceCounter, NonceKey, NonceState};
use partyline::sip::{AorKey, Contact, HeaderName, KeyHasher, Message, Response, Tags};

struct Counting;

thread_local! {
    // Per thread, for the test harness allocates on its own. Const-initialised: reading it allocates nothing.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is System's; the count beside it is a thread's own cell.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's layout, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    COUNT.with(Cell::get)
}

#[test]
fn a_register_is_handled_without_allocation() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/sip");
    let messages: Vec<Vec<u8>> = ["outbound-register", "sipp-register", "wsinv", "scalar02", "clerr"]
        .iter()
        .map(|name| std::fs::read(format!("{folder}/{name}.dat")).unwrap())
        .collect();
    let (tags, hasher, nonces, counter) = (Tags::new(), KeyHasher::new(), NonceKey::random(), NonceCounter::new(64));
    let ha1 = Hash::ha1(Algorithm::Md5, b"bob", b"example.com", b"secret");
    let source = Some("192.0.2.1:5070".parse().unwrap());
    let mut room = vec![0; 8192];
    let mut answered = 0;

    let before = allocations();
    for mut buf in messages {
        let nonce = nonces.issue(1000, b"example.com");
        match nonces.check(nonce.as_bytes(), 1000, 60, b"example.com") {
            NonceState::Fresh(id) => assert!(counter.take(id, 1)),
            state => panic!("{state:?}"),
        }
        let status = Message::parse(&mut buf).err().map_or(200, |error| error.status());
        let message = match status {
            200 => Message::parse(&mut buf).ok(),
            _ => Message::salvage(&mut buf),
        };
        let message = message.unwrap();
        if status == 200 {
            message.check().unwrap();
            let key = AorKey::new(&message.to().unwrap().parsed_uri().unwrap()).unwrap();
            hasher.hash(key.as_bytes());
        }
        let mut response = Response::new(&mut room, &message, status, source, &tags);
        for contact in message.contacts().flatten() {
            if let Contact::Address(contact) = contact {
                assert!(contact.uri.matches(&contact.uri));
                response.line(HeaderName::Contact, |out| _ = out.put(b"<").put(contact.uri.raw).put(b">"));
            }
        }
        if let Some(value) = message.value(HeaderName::Authorization) {
            assert!(!Credentials::parse(value).unwrap().verify(&ha1, b"REGISTER"));
        }
        let challenge = |out: &mut _| put_challenge(out, b"example.com", nonce.as_bytes(), Algorithm::Sha256, false);
        response.line(HeaderName::WwwAuthenticate, challenge);
        response.line(HeaderName::Date, |out| _ = out.put_date(1_700_000_000));
        answered += u32::from(response.finish().is_some());
    }
    assert_eq!(allocations() - before, 0);
    assert_eq!(answered, 5);
    // The count counts.
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(allocations() - before, 1);
}
