//! Reading and answering UDP in steady state allocates nothing. A program of its own: it counts every allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use partyline::net::{Event, Native, Os, Portable, Reactor, Ready, RecvBatch, SendBatch, UdpListener, UdpOptions};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: hands everything on to the system's allocator and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are System's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are System's.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn rounds<O: Os>(answers: usize) -> u64 {
    let reactor = Reactor::new().unwrap();
    let bound = UdpListener::bind("0.0.0.0:0".parse().unwrap(), &UdpOptions::default()).unwrap().remove(0);
    let listener = reactor.add_udp(bound).unwrap();
    let to = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().port()));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut ready, mut batch, mut out) = (Ready::new(), RecvBatch::<O>::on(), SendBatch::<O>::on());
    let mut buffer = [0; 2000];
    let mut round = || {
        // More than one batch, so that marks are part of it.
        for _ in 0..80 {
            client.send_to(&[b'x'; 465], to).unwrap();
        }
        let mut answered = 0;
        while answered < 80 {
            reactor.wait(&mut ready, Some(Duration::from_secs(20))).unwrap();
            while let Some(Event::Udp(found)) = ready.pop() {
                batch.recv(&found).unwrap();
                for datagram in batch.datagrams() {
                    out.push_udp(&found, &datagram.route(), |b| b.extend_from_slice(&datagram.data[..346]));
                }
                answered += out.flush().sent;
            }
        }
        for _ in 0..80 {
            assert_eq!(client.recv(&mut buffer).unwrap(), 346);
        }
    };
    for _ in 0..3 {
        round();
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..answers {
        round();
    }
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

#[test]
fn steady_state_allocates_nothing() {
    // The counter counts at all: an allocation on purpose.
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    drop(std::hint::black_box(Box::new(1u64)));
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > before);
    assert_eq!(rounds::<Native>(20), 0);
    assert_eq!(rounds::<Portable>(20), 0);
}
