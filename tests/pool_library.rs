//! The pool in a C program on stock osip2, in each way it gets there: preloaded, linked before osip2, and out of the
//! archive beside static osip2. Needs target/lib (`make lib`) and osip2's headers; PARTYLINE_LIB_DIR names another place.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn libraries() -> PathBuf {
    let dir = std::env::var_os("PARTYLINE_LIB_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/lib"), PathBuf::from);
    assert!(dir.join("libpartyline.so.0").exists(), "{} has no libpartyline.so.0: run `make lib` first", dir.display());
    dir
}

/// Compiles c-harness/tests/pool_preload.c; None where there are no osip2 headers to do it with.
fn program(name: &str, options: &[&str]) -> Option<PathBuf> {
    if !Path::new("/usr/include/osip2/osip.h").exists() {
        eprintln!("SKIPPED: no osip2 headers");
        return None;
    }
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let output = Command::new("cc")
        .args(["-O1", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&out)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("c-harness/tests/pool_preload.c"))
        .args(options)
        .arg("-lpthread")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(out)
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

const STOCK: [&str; 2] = ["-losip2", "-losipparser2"];

#[test]
fn preloaded_it_serves_osip2_and_what_the_program_frees_with_libc() {
    let library = libraries().join("libpartyline.so.0");
    let Some(program) = program("pool_stock", &STOCK) else { return };
    let plain = Command::new(&program).arg("mixed").output().unwrap();
    assert_eq!(said(&plain), "libc\n");
    let preloaded = Command::new(&program).arg("mixed").env("LD_PRELOAD", &library).output().unwrap();
    assert_eq!(said(&preloaded), "ours\n");
    for mode in ["checked", "leaks"] {
        let output =
            Command::new(&program).arg("mixed").envs([("PARTYLINE_POOL", mode)]).env("LD_PRELOAD", &library).output();
        assert!(said(&output.unwrap()).starts_with("ours\n"));
    }
    let off = Command::new(&program).arg("mixed").env("PARTYLINE_POOL", "libc").env("LD_PRELOAD", &library).output();
    assert_eq!(said(&off.unwrap()), "libc\n");
}

#[test]
fn the_report_counts_osip2s_calls() {
    let library = libraries().join("libpartyline.so.0");
    let Some(program) = program("pool_report", &STOCK) else { return };
    let output = Command::new(&program).env("PARTYLINE_REPORT", "1").env("LD_PRELOAD", &library).output().unwrap();
    let said = said(&output);
    assert!(said.contains("given to osip2 (osip_set_allocators)"), "{said}");
    let calls: u64 = said.split("osip_malloc ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(calls > 10_000, "{said}");
}

/// Turned off, `free` of a block of ours ends in libc, which refuses it: proof that the two comparisons do the work.
#[test]
fn partyline_free_off_leaves_free_to_libc() {
    let library = libraries().join("libpartyline.so.0");
    let Some(program) = program("pool_free_off", &STOCK) else { return };
    let tame = Command::new(&program).env("PARTYLINE_FREE", "off").env("LD_PRELOAD", &library).output().unwrap();
    assert_eq!(said(&tame), "ours\n");
    let mixed =
        Command::new(&program).arg("mixed").env("PARTYLINE_FREE", "off").env("LD_PRELOAD", &library).output().unwrap();
    assert!(!mixed.status.success());
}

#[test]
fn other_allocators_may_be_preloaded_behind_it() {
    let library = libraries().join("libpartyline.so.0");
    let Some(program) = program("pool_behind", &STOCK) else { return };
    for other in ["libjemalloc.so.2", "libmimalloc.so.2", "libtcmalloc_minimal.so.4"] {
        if !Path::new("/usr/lib/x86_64-linux-gnu").join(other).exists() {
            eprintln!("SKIPPED {other}: not installed");
            continue;
        }
        let behind = format!("{} {other}", library.display());
        let output = Command::new(&program).arg("mixed").env("LD_PRELOAD", &behind).output().unwrap();
        assert_eq!(said(&output), "ours\n", "{behind}");
        // In front of ours its `free` is the program's: what osip2 allocated must then be freed by osip2's own.
        let before = format!("{other} {}", library.display());
        let output = Command::new(&program).env("LD_PRELOAD", &before).output().unwrap();
        assert_eq!(said(&output), "ours\n", "{before}");
    }
}

#[test]
fn linked_before_osip2_it_needs_no_call() {
    let dir = libraries();
    let path = format!("-L{}", dir.display());
    let rpath = format!("-Wl,-rpath,{}", dir.display());
    let options = [
        path.as_str(),
        &rpath,
        "-Wl,--push-state,--no-as-needed",
        "-lpartyline",
        "-Wl,--pop-state",
        STOCK[0],
        STOCK[1],
    ];
    let Some(program) = program("pool_linked", &options) else { return };
    assert_eq!(said(&Command::new(&program).arg("mixed").output().unwrap()), "ours\n");
}

/// The archive exports no `free`, so the program keeps the two apart.
#[test]
fn the_archive_serves_static_osip2() {
    let dir = libraries();
    let archive = dir.join("libpartyline.a");
    assert!(archive.exists(), "{} is missing: run `make lib` first", archive.display());
    let options = [
        "-Wl,--allow-multiple-definition",
        "-Wl,-u,partyline_constructor",
        "-Wl,-u,osip_transaction_execute,-u,osip_gettimeofday,-u,osip_sem_trywait,-u,osip_fifo_init",
        archive.to_str().unwrap(),
        "-Wl,-Bstatic",
        STOCK[0],
        STOCK[1],
        "-Wl,-Bdynamic",
        "-ldl",
        "-lm",
        "-lgcc_s",
    ];
    let Some(program) = program("pool_static", &options) else { return };
    let needed = Command::new("readelf").arg("-d").arg(&program).output().unwrap();
    assert!(!String::from_utf8_lossy(&needed.stdout).contains("osip"), "osip2 was not linked statically");
    assert_eq!(said(&Command::new(&program).output().unwrap()), "ours\n");
}
