//! One program, built once against stock libosip2 and run twice, alone and with libpartyline.so preloaded: it has to
//! print the same. The second run's own counts must not be 0, or nothing was compared.

#[path = "common/osip.rs"]
mod osip;

use osip::{Run, build, compare};

#[test]
fn scripted_flows() {
    let Some(program) = build("c-harness/parity/flows.c", &[]) else { return };
    let counts = compare(&program, &[]);
    for kind in ["ict", "ist", "nict", "nist"] {
        assert!(counts.of(kind, "executed") > 0, "{kind} executed nothing");
        assert!(counts.of(kind, "found") > 0, "{kind} found nothing");
        assert!(counts.of(kind, "timers") > 0, "{kind} had no timers");
        assert_eq!(counts.of(kind, "alive"), 0);
    }
}

#[test]
fn random_events() {
    let Some(program) = build("c-harness/parity/random.c", &[]) else { return };
    for first in ["1", "100001"] {
        let counts = compare(&program, &[first, "1500", "200"]);
        for kind in ["ict", "ist", "nict", "nist"] {
            assert!(counts.of(kind, "executed") > 1000, "{kind} executed nearly nothing");
            assert!(counts.of(kind, "found") > 100, "{kind} found nearly nothing");
            assert!(counts.of(kind, "timers") > 100, "{kind} had nearly no timers");
        }
    }
    // Few and long: lists past the length that is audited whole.
    compare(&program, &["7", "20", "4000"]);
}

#[test]
fn retransmissions_of_200_and_ack() {
    let Some(program) = build("c-harness/parity/resend.c", &[]) else { return };
    let counts = compare(&program, &["1", "600", "200"]);
    for what in ["created", "stopped", "sent"] {
        assert!(counts.of("resends", what) > 1000, "next to nothing was {what}");
    }
}

/// The comparison can fail: a run without the engine has no counts.
#[test]
fn the_engine_can_be_turned_off() {
    let Some(program) = build("c-harness/parity/flows.c", &[]) else { return };
    let stock = Run::new(&program).output();
    let off = Run::new(&program).preload().env("PARTYLINE_ENGINE", "off").output();
    assert_eq!(stock.stdout, off.stdout);
    assert!(!off.stderr.contains("partyline: engine: ist created"), "the engine was in use:\n{}", off.stderr);
}

#[test]
fn fifo() {
    let Some(program) = build("c-harness/parity/fifo.c", &[]) else { return };
    let stock = Run::new(&program).output();
    let ours = Run::new(&program).preload().output();
    assert!(stock.stdout.contains("through threads: 40000 of 40000"));
    assert_eq!(stock.stdout, ours.stdout);
}

/// No comparison: on stock two threads run one transaction at once. The program checks what it sees.
#[test]
fn threads() {
    let Some(program) = build("c-harness/parity/threads.c", &[]) else { return };
    let ours = Run::new(&program).preload().output();
    assert!(ours.stdout.contains("overlaps 0 alive 0"), "{}", ours.stdout);
    // pthread_exit, cancellation and osip_thread_exit, each in a callback.
    assert_eq!(ours.stdout.matches("yes, 1 waiting").count(), 3, "{}", ours.stdout);
    assert_eq!(ours.stdout.matches("then 0 waiting").count(), 3, "{}", ours.stdout);
    assert!(
        ours.stdout.contains("left from a resend: yes, 1 sent, 2 listed\nthen 2 sent, due at once 1"),
        "{}",
        ours.stdout
    );
    assert!(ours.stdout.contains("wait cancelled: yes, then 5"), "{}", ours.stdout);
}

/// No comparison: stock frees twice or crashes.
#[test]
fn misuse() {
    let Some(program) = build("c-harness/parity/misuse.c", &[]) else { return };
    let ours = Run::new(&program).preload().output();
    let twice = "freed 1, again 0 0, removed 0, event 0, other 1\n";
    assert!(ours.stdout.contains(twice) || ours.stdout.starts_with("small\n"), "{}", ours.stdout);
    assert!(ours.stdout.contains("itself 0, again 0\nlisted 1\n"), "{}", ours.stdout);
}

/// The pool in libc mode, so that memcheck sees each block. Only blocks that nothing points at count as leaks: what the
/// engine keeps for the life of the process is reached by pointers into its middle.
#[test]
fn memcheck() {
    let has = std::process::Command::new("valgrind").arg("--version").output();
    if !has.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: no valgrind");
        return;
    }
    let Some(flows) = build("c-harness/parity/flows.c", &[]) else { return };
    let Some(random) = build("c-harness/parity/random.c", &[]) else { return };
    let Some(resend) = build("c-harness/parity/resend.c", &[]) else { return };
    for (program, arguments) in [(&flows, &[][..]), (&random, &["1", "5", "200"][..]), (&resend, &["1", "5", "200"])] {
        let checked = Run::under(
            &["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite"],
            program,
        );
        let checked = checked.args(arguments).preload().env("PARTYLINE_POOL", "libc").output();
        assert_eq!(Run::new(program).args(arguments).output().stdout, checked.stdout);
    }
}

/// Each allocation of osip2 and of the engine refused in turn. What crashes then has to be a place in libosip2 where
/// stock crashes too; `make fail-alloc` runs all of them.
#[test]
fn every_allocation_may_fail() {
    let Some(program) = build("c-harness/parity/fail_alloc.c", &[]) else { return };
    let places = |text: &str| -> Vec<String> {
        let crashes = text.lines().filter_map(|line| line.strip_prefix("crash in "));
        crashes.map(|line| line.split(':').next().unwrap().to_string()).collect()
    };
    let stock = Run::new(&program).output();
    let every = std::env::var("FAIL_ALLOC_EVERY").unwrap_or_else(|_| "5".into());
    let ours = Run::new(&program).args(&[&every]).preload().output();
    assert!(ours.stdout.contains("fail_alloc: ok"), "{}", ours.stdout);
    let known = places(&stock.stdout);
    let new: Vec<_> = places(&ours.stdout).into_iter().filter(|place| !known.contains(place)).collect();
    assert!(new.is_empty(), "crashes that stock does not have: {new:?}\n{}", ours.stdout);
    println!("stock:\n{}\nours:\n{}", stock.stdout, ours.stdout);
}
