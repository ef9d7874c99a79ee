//! The reactor: wakes, marks and events given back.

mod net_support;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use net_support::reactor;
use partyline::net::{Event, Reactor, Ready, RecvBatch, UdpListener, UdpOptions};

const LIMIT: Duration = Duration::from_secs(20);

fn listener(reactor: &Reactor) -> Arc<UdpListener> {
    let bound = UdpListener::bind("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap().remove(0);
    reactor.add_udp(bound).unwrap()
}

#[test]
fn a_wake_before_the_wait_is_kept_and_several_count_as_one() {
    let reactor = reactor();
    let mut ready = Ready::new();
    for _ in 0..3 {
        reactor.wake();
    }
    reactor.wait(&mut ready, Some(LIMIT)).unwrap();
    assert!(ready.woken());
    reactor.wait(&mut ready, Some(Duration::ZERO)).unwrap();
    assert!(!ready.woken());
    assert!(ready.is_empty());
}

/// Each wake says that a number has been posted; the sleeper never misses the last one.
#[test]
fn no_wake_is_lost_between_a_sleeper_and_its_wakers() {
    const POSTS: usize = 20_000;
    const WAKERS: usize = 2;
    let reactor = reactor();
    let posted = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WAKERS {
            scope.spawn(|| {
                for i in 0..POSTS {
                    posted.fetch_add(1, Ordering::SeqCst);
                    reactor.wake();
                    if i % 7 == 0 {
                        std::thread::yield_now();
                    }
                }
            });
        }
        let mut ready = Ready::new();
        while posted.load(Ordering::SeqCst) < POSTS * WAKERS {
            let before = Instant::now();
            reactor.wait(&mut ready, Some(LIMIT)).unwrap();
            assert!(before.elapsed() < LIMIT, "slept through a wake");
        }
    });
}

#[test]
fn a_mark_is_handed_out_once_and_again_when_set_again() {
    let reactor = reactor();
    let listener = listener(&reactor);
    let mut ready = Ready::new();
    for _ in 0..3 {
        listener.mark_readable();
        listener.mark_readable();
        reactor.wait(&mut ready, Some(LIMIT)).unwrap();
        assert!(matches!(ready.pop(), Some(Event::Udp(found)) if Arc::ptr_eq(&found, &listener)));
        assert!(ready.pop().is_none());
        reactor.wait(&mut ready, Some(Duration::ZERO)).unwrap();
        assert!(ready.is_empty());
    }
}

/// The other thread marks when the sleeper is about to wait, so some marks come before its look at the queue, some
/// between the look and the sleep, and some end the sleep.
#[test]
fn a_mark_ends_a_sleep() {
    const ROUNDS: usize = 2000;
    let reactor = reactor();
    let listener = listener(&reactor);
    let turn = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                while turn.load(Ordering::SeqCst) < round {
                    std::thread::yield_now();
                }
                for _ in 0..round % 50 {
                    std::thread::yield_now();
                }
                listener.mark_readable();
            }
        });
        let mut ready = Ready::new();
        for round in 1..=ROUNDS {
            turn.store(round, Ordering::SeqCst);
            let start = Instant::now();
            while ready.pop().is_none() {
                reactor.wait(&mut ready, Some(LIMIT)).unwrap();
            }
            assert!(start.elapsed() < LIMIT, "a mark did not end the sleep of round {round}");
        }
    });
}

/// A leader that handles one event per turn and drops its Ready serves all sockets in turn.
#[test]
fn events_given_back_go_round() {
    let reactor = reactor();
    let listeners: Vec<_> = (0..5).map(|_| listener(&reactor)).collect();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for listener in &listeners {
        for _ in 0..20 {
            client.send_to(b"x", listener.local_addr()).unwrap();
        }
    }
    let mut batch = RecvBatch::<partyline::net::Native>::with_slots(1, 16);
    let mut turns = vec![0; listeners.len()];
    // Each read takes one of 20 datagrams, so all sockets stay readable during these turns.
    for turn in 1..=listeners.len() * 15 {
        let mut ready = Ready::new();
        reactor.wait(&mut ready, Some(LIMIT)).unwrap();
        let Some(Event::Udp(found)) = ready.pop() else { panic!("nothing ready on turn {turn}") };
        assert_eq!(batch.recv(&found).unwrap(), 1);
        turns[listeners.iter().position(|known| Arc::ptr_eq(known, &found)).unwrap()] += 1;
    }
    assert_eq!(turns, vec![15; listeners.len()]);
}

#[test]
fn a_removed_listener_is_not_reported() {
    let reactor = reactor();
    let (gone, kept) = (listener(&reactor), listener(&reactor));
    reactor.remove_udp(&gone);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"x", gone.local_addr()).unwrap();
    gone.mark_readable();
    client.send_to(b"x", kept.local_addr()).unwrap();
    let mut ready = Ready::new();
    let start = Instant::now();
    while ready.is_empty() {
        assert!(start.elapsed() < LIMIT, "the other listener was not reported");
        reactor.wait(&mut ready, Some(LIMIT)).unwrap();
    }
    while let Some(Event::Udp(found)) = ready.pop() {
        assert!(Arc::ptr_eq(&found, &kept));
    }
}
