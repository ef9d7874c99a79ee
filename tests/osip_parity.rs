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
        let counts = compare(&program, &[first, "1000", "200"]);
        for kind in ["ict", "ist", "nict", "nist"] {
            assert!(counts.of(kind, "executed") > 1000, "{kind} executed nearly nothing");
            assert!(counts.of(kind, "found") > 100, "{kind} found nearly nothing");
            assert!(counts.of(kind, "timers") > 100, "{kind} had nearly no timers");
        }
    }
    // Few and long: lists past the length that is audited whole.
    compare(&program, &["7", "20", "4000"]);
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
