//! What a binding costs, and that a refresh allocates nothing. This binary counts its allocations.

mod registrar_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use partyline::registrar::store::StoreError;
use partyline::registrar::{BindingView, Mode, Options, Outcome, RegisterRequest, Registrar, ReplyWriter, Sink};
use partyline::sip::HeaderName;
use registrar_support::{SqliteFile, contact, eventually, now, options, request};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// What glibc takes for a block: 8 bytes of its own, rounded up to 16, at least 32.
fn taken(size: usize) -> usize {
    (size + 8).next_multiple_of(16).max(32)
}

// SAFETY: every call is passed on to the system's allocator as it came; counting touches an atomic and a thread-local cell
// without a destructor, neither of which allocates.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(taken(layout.size()), Ordering::Relaxed);
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(taken(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A writer that keeps nothing.
#[derive(Default)]
struct Count(u64);

impl ReplyWriter for Count {
    fn start(&mut self, status: u16, _: &str) {
        assert_eq!(status, 200);
    }
    fn contact(&mut self, binding: &BindingView<'_>, remaining: u32) {
        self.0 += binding.contact.len() as u64 + u64::from(remaining);
    }
    fn number(&mut self, _: HeaderName, _: u32) {}
    fn header(&mut self, _: HeaderName, _: &[u8]) {}
}

/// Forgets who comes back.
struct Forgetful;

impl Sink<u64> for Forgetful {
    fn committed(&self, waiters: &mut Vec<u64>, result: Result<(), &StoreError>) {
        assert_eq!(result, Ok(()));
        waiters.clear();
    }
    fn loaded(&self, _: &mut Vec<u64>, _: Result<(), &StoreError>) {}
}

/// AOR 24 bytes, contact 60, Call-ID 32, agent 24.
struct Texts {
    aor: String,
    contact: String,
    call_id: String,
}

impl Texts {
    fn new(i: usize) -> Texts {
        Texts {
            aor: format!("user{i:08}@example.org"),
            contact: format!(
                "sip:user{i:08}@192.0.2.{:03}:{:05};transport=udp;ob;x=yyyyyy",
                i % 256,
                1024 + i % 60_000
            ),
            call_id: format!("{:032x}", i as u128 * 0x9e37_79b9_7f4a_7c15_f39c_c060),
        }
    }
}

fn register(registrar: &Registrar<u64>, texts: &Texts, cseq: u32, now: u32) {
    let contacts = [contact(&texts.contact)];
    let request = RegisterRequest {
        user_agent: b"Phone 12 3456/v7.8.9-abc",
        ..request(&texts.aor, &texts.call_id, cseq, &contacts)
    };
    match registrar.register(&request, now, &mut Count::default()) {
        Outcome::Answered(200) => {}
        Outcome::Durable(ticket) => _ = registrar.submit(ticket, u64::from(cseq) << 32),
        other => panic!("{other:?}"),
    }
}

#[test]
fn at_most_300_bytes_per_binding_and_no_allocation_per_refresh() {
    let sample = Texts::new(7);
    assert_eq!((sample.aor.len(), sample.contact.len(), sample.call_id.len()), (24, 60, 32));

    let before = LIVE.load(Ordering::Relaxed);
    let registrar = Registrar::<u64>::open_at(Options::default(), Forgetful, || 0).expect("open");
    const BINDINGS: usize = 250_000;
    for i in 0..BINDINGS {
        register(&registrar, &Texts::new(i), 1, 1000);
    }
    assert_eq!(registrar.bindings(), BINDINGS);
    let each = (LIVE.load(Ordering::Relaxed) - before) / BINDINGS;
    eprintln!("figure reg_bytes_per_binding {each} B");
    assert!(each <= 300, "{each} bytes per binding");

    // Refreshes, in any order and with a later end each: not one allocation on this thread.
    let some: Vec<Texts> = (0..1000).map(|i| Texts::new(i * 241)).collect();
    for (cseq, texts) in (2..).zip(&some) {
        register(&registrar, texts, cseq, 1001);
    }
    let counted = ALLOCATIONS.get();
    for (cseq, texts) in (2000..).zip(&some) {
        register(&registrar, texts, cseq, 1002);
    }
    assert_eq!(ALLOCATIONS.get() - counted, 0, "allocations in 1000 refreshes");

    // Everything goes with the last binding but the tables themselves.
    assert_eq!(registrar.expire(1_000_000), BINDINGS);
    let left = LIVE.load(Ordering::Relaxed) - before;
    assert!(left / BINDINGS < 150, "{left} bytes left");
}

#[test]
fn no_allocation_per_refresh_in_write_through_either() {
    let file = SqliteFile::new("allocations");
    let registrar = Registrar::open(options(Mode::WriteThrough, &file.url()), Forgetful).expect("open");
    eventually("preload", || registrar.complete());
    let some: Vec<Texts> = (0..200).map(Texts::new).collect();
    let start = now();
    // The queue's buffers grow to what one round needs, then stay.
    let mut counted = 0;
    for round in 1..=20u32 {
        counted = ALLOCATIONS.get();
        for texts in &some {
            register(&registrar, texts, round, start);
        }
        counted = ALLOCATIONS.get() - counted;
        registrar.kick();
        eventually("committed", || registrar.counters().upserts.get() >= u64::from(round) * 200);
    }
    assert!(counted <= 2, "{counted} allocations in the last round of 200 refreshes");
}
