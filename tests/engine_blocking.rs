//! A plugin that blocks, and what came in the same batch: others are answered meanwhile, and the figures say why.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use partyline::engine::{Engine, Exchange, Handler, Methods, Phase, Plugin, Policy, Verdict};

const LIMIT: Duration = Duration::from_secs(20);

/// Blocks on the calls of those numbers until it is opened; answers all.
struct Gate {
    blocking: &'static [usize],
    calls: AtomicUsize,
    inside: AtomicUsize,
    open: Mutex<bool>,
    opened: Condvar,
}

struct Through(Arc<Gate>);

impl Handler for Through {
    fn call(&self, exchange: &mut Exchange<'_>) -> Verdict {
        let gate = &self.0;
        if gate.blocking.contains(&gate.calls.fetch_add(1, Ordering::SeqCst)) {
            gate.inside.fetch_add(1, Ordering::SeqCst);
            let mut open = gate.open.lock();
            while !*open {
                assert!(!gate.opened.wait_for(&mut open, LIMIT).timed_out(), "nobody opened the gate");
            }
        }
        exchange.reply(200, None, b"", b"").unwrap();
        Verdict::Done
    }
}

fn engine(policy: Policy, options: &[(&str, &str)], blocking: &'static [usize]) -> (Arc<Engine>, UdpSocket, Arc<Gate>) {
    let gate = Arc::new(Gate {
        blocking,
        calls: AtomicUsize::new(0),
        inside: AtomicUsize::new(0),
        open: Mutex::new(false),
        opened: Condvar::new(),
    });
    let engine = Engine::new();
    for (name, value) in options.iter().chain(&[("log", "error")]) {
        engine.set(name, value).unwrap();
    }
    let address = engine.listen("udp:127.0.0.1:0").unwrap();
    let handler = Box::new(Through(Arc::clone(&gate)));
    let (phase, methods, name) = (Phase::Normal, Methods::all(), "gate".to_owned());
    engine.plug(Plugin { name, policy, phase, methods, deadline_ms: 0, concurrency: 0, handler }).unwrap();
    engine.start().unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(address).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    (engine, client, gate)
}

fn ask(client: &UdpSocket, numbers: std::ops::Range<usize>) {
    for n in numbers {
        let message = format!(
            "OPTIONS sip:example.test SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:9;branch=z9hG4bK{n};rport\r\n\
             From: <sip:a@example.test>;tag=1\r\nTo: <sip:b@example.test>\r\nCall-ID: c{n}\r\nCSeq: {n} OPTIONS\r\n\
             Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
        );
        client.send(message.as_bytes()).unwrap();
    }
}

/// The numbers of the next answers.
fn answers(client: &UdpSocket, count: usize) -> BTreeSet<usize> {
    let mut buffer = [0; 2048];
    (0..count)
        .map(|have| {
            let length = client.recv(&mut buffer).unwrap_or_else(|e| panic!("{have} of {count}: {e}"));
            let text = std::str::from_utf8(&buffer[..length]).unwrap();
            assert!(text.starts_with("SIP/2.0 200 "), "{text}");
            text.split("CSeq: ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
        })
        .collect()
}

#[test]
fn a_burst_is_answered_while_some_of_it_block() {
    // Two of the first, so that one is found to block among those that were freed from behind the other.
    let (engine, client, gate) = engine(Policy::Parallel, &[], &[3, 9, 40]);
    ask(&client, 0..60);
    let others = answers(&client, 57);
    assert_eq!(others.len(), 57);
    assert_eq!(gate.inside.load(Ordering::SeqCst), 3);
    let figures = engine.plugin_figures("gate").unwrap();
    assert_eq!((figures.calls, figures.running), (60, 3));
    assert!(figures.promotions >= 1, "somebody else leads now");
    *gate.open.lock() = true;
    gate.opened.notify_all();
    let late = answers(&client, 3);
    assert!(late.is_disjoint(&others) && late.len() == 3, "{late:?}");
    let text = engine.metrics();
    assert!(text.contains("partyline_plugin_promotions_total{plugin=\"gate\"} "), "{text}");
    assert_eq!(engine.stop(LIMIT).unwrap(), 0);
}

#[test]
fn at_the_maximum_of_threads_what_comes_waits_in_bounds() {
    let options = [("threads.min", "1"), ("threads.max", "2"), ("queue_limit", "1000")];
    let (engine, client, gate) = engine(Policy::Parallel, &options, &[0, 1]);
    ask(&client, 0..1);
    let end = Instant::now() + LIMIT;
    let until = |inside: usize| {
        while gate.inside.load(Ordering::SeqCst) < inside {
            assert!(Instant::now() < end, "a thread for the next call");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    until(1);
    ask(&client, 1..2);
    until(2);
    // Nobody is left to read; the system's buffer holds what comes.
    ask(&client, 2..20);
    *gate.open.lock() = true;
    gate.opened.notify_all();
    assert_eq!(answers(&client, 20), (0..20).collect());
    assert_eq!(engine.stop(LIMIT).unwrap(), 0);
}

#[test]
fn of_a_keyed_plugin_other_calls_go_on() {
    let (engine, client, gate) = engine(Policy::KeyedByCallId, &[], &[0]);
    ask(&client, 0..30);
    // Each has a call of its own, so only the first waits.
    assert_eq!(answers(&client, 29).len(), 29);
    *gate.open.lock() = true;
    gate.opened.notify_all();
    answers(&client, 1);
    assert_eq!(engine.stop(LIMIT).unwrap(), 0);
}
