//! The other ways in than preloading: linked before libosip2, and linked statically with libosip2.a. And what both rest
//! on: that no function of libosip2 which stays calls one that is replaced past the dynamic or static linker.

#[path = "common/osip.rs"]
mod osip;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use osip::{Counts, Run, archive, build, library};

fn same_as_stock(program: &std::path::Path, stock: &std::path::Path) {
    let expected = Run::new(stock).output();
    let ours = Run::new(program).env("PARTYLINE_REPORT", "1").output();
    assert_eq!(expected.stdout, ours.stdout);
    assert!(Counts::read(&ours.stderr).of("nist", "executed") > 0, "the engine was not in use:\n{}", ours.stderr);
}

#[test]
fn linked_before_osip() {
    let Some(stock) = build("c-harness/parity/flows.c", &[]) else { return };
    // The library has a soname that only `make lib` makes a file for.
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("link-first");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(library(), dir.join("libpartyline.so.0")).unwrap();
    let file = dir.join("libpartyline.so.0").display().to_string();
    let path = format!("-Wl,-rpath,{}", dir.display());
    let libs = osip::libs();
    let mut link = vec!["-Wl,--no-as-needed", file.as_str(), path.as_str(), "-Wl,--as-needed"];
    link.extend(libs.iter().map(String::as_str));
    same_as_stock(&build("c-harness/parity/flows.c", &link).unwrap(), &stock);
}

/// Where libosip2.a lies, if it is installed.
fn static_osip() -> Option<(String, String)> {
    let find = |name: &str| {
        let dirs = osip::libs().into_iter().filter(|word| word.starts_with("-L"));
        let output = Command::new("cc")
            .args(dirs.map(|word| word.replacen("-L", "-B", 1)))
            .arg(format!("-print-file-name={name}"))
            .output()
            .unwrap();
        let path = String::from_utf8_lossy(&output.stdout).trim().to_string();
        path.contains('/').then_some(path)
    };
    Some((find("libosip2.a")?, find("libosipparser2.a")?))
}

#[test]
fn linked_statically() {
    let Some((osip2, parser)) = static_osip() else {
        eprintln!("SKIPPED: no libosip2.a");
        return;
    };
    let Some(stock) = build("c-harness/parity/flows.c", &[]) else { return };
    let ours = archive().display().to_string();
    // The first definition wins; the engine's weak references pull nothing from an archive, so the state machine is
    // asked for by name.
    let link = [
        "-Wl,--allow-multiple-definition",
        "-Wl,-u,partyline_constructor",
        "-Wl,-u,osip_transaction_execute,-u,osip_gettimeofday,-u,osip_sem_trywait,-u,osip_fifo_init",
        &ours,
        &osip2,
        &parser,
        "-ldl",
        "-lm",
    ];
    let program = build("c-harness/parity/flows.c", &link).unwrap();
    same_as_stock(&program, &stock);
}

/// Names of ours that libosip2 has as well.
fn replaced() -> BTreeSet<String> {
    let output = Command::new("nm").arg("-D").arg("--defined-only").arg(library()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().filter_map(|line| line.split_whitespace().last());
    names.filter(|name| name.trim_start_matches('_').starts_with("osip_")).map(String::from).collect()
}

/// In libosip2.a, a call or jump inside one object file without a relocation goes past us.
#[test]
fn nothing_that_stays_calls_past_us() {
    let Some((osip2, _)) = static_osip() else {
        eprintln!("SKIPPED: no libosip2.a");
        return;
    };
    let replaced = replaced();
    assert!(replaced.contains("osip_nist_execute") && replaced.contains("osip_fifo_add"));
    let output = Command::new("objdump").args(["-d", "--no-show-raw-insn", &osip2]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut function = String::new();
    let (mut seen, mut direct) = (0, Vec::new());
    for line in text.lines() {
        if let Some(name) = line.strip_suffix(">:").and_then(|line| line.split('<').nth(1)) {
            function = name.to_string();
            seen += 1;
        } else if let Some(target) = line.strip_suffix('>').and_then(|line| line.split('<').nth(1)) {
            // "name" alone is a resolved call; "name+0x10" is a jump inside the function or an unresolved one.
            if target != function && replaced.contains(target) && !replaced.contains(&function) {
                direct.push(format!("{function} -> {target}"));
            }
        }
    }
    assert!(seen > 100, "objdump showed {seen} functions");
    assert!(direct.is_empty(), "{direct:?}");
}

/// A libosip2 of another soname than the one built against: only the pool is in use, and that is said once.
#[test]
fn another_osip_at_load() {
    let Some(stock) = build("c-harness/parity/flows.c", &[]) else { return };
    let needed = Command::new("ldd").arg(&stock).output().unwrap();
    let needed = String::from_utf8_lossy(&needed.stdout).into_owned();
    let line = needed.lines().find(|line| line.contains("libosip2.so.")).expect("the program needs libosip2");
    let mut words = line.split_whitespace();
    let (soname, path) = (words.next().unwrap(), words.nth(1).unwrap());
    let major = soname.strip_prefix("libosip2.so.").unwrap();
    let other = format!("libosip2.so.{}", "9".repeat(major.len()));
    // The library itself under another name: as long, so it is written in place.
    let mut bytes = std::fs::read(path).unwrap();
    let from = format!("{soname}\0");
    let at: Vec<_> = (0..bytes.len() - from.len()).filter(|at| bytes[*at..].starts_with(from.as_bytes())).collect();
    assert!(!at.is_empty());
    for at in at {
        bytes[at..at + other.len()].copy_from_slice(other.as_bytes());
    }
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("other-osip");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(&other), bytes).unwrap();
    let file = dir.join(&other).display().to_string();
    let path = format!("-Wl,-rpath,{}", dir.display());
    let libs = osip::libs();
    let mut link = vec![file.as_str(), path.as_str()];
    link.extend(libs.iter().map(String::as_str).filter(|word| *word != "-losip2"));
    let program = build("c-harness/parity/flows.c", &link).unwrap();
    let expected = Run::new(&stock).output();
    let ours = Run::new(&program).preload().output();
    assert_eq!(expected.stdout, ours.stdout);
    let said: Vec<_> = ours.stderr.lines().filter(|line| line.contains("only the memory pool is in use")).collect();
    assert_eq!(said, [format!("partyline: built against {soname}, found {other}: only the memory pool is in use")]);
    assert!(ours.stderr.contains("given to osip2"), "the pool is not in use:\n{}", ours.stderr);
    assert!(!ours.stderr.contains("engine: nist"), "the engine was in use:\n{}", ours.stderr);
}

/// Where there are no headers the build says what is left out, and the sources are told.
#[test]
fn no_headers() {
    // The build script as cargo has built it for this test.
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("debug/build");
    let newest = std::fs::read_dir(&dir)
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.path().join("build-script-build")))
        .filter(|path| path.parent().unwrap().file_name().unwrap().to_str().unwrap().starts_with("partyline-"))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .expect("cargo has built the build script")
        .1;
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-headers");
    std::fs::create_dir_all(&out).unwrap();
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let run = |flags: &str| {
        let mut script = Command::new(&newest);
        script.current_dir(osip::root()).env("OUT_DIR", &out).env("TARGET", &target).env("HOST", &target);
        script.env("OPT_LEVEL", "0").env("OSIP_CFLAGS", flags).env_remove("OSIP_LIBS");
        let output = script.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // The guard of osip2's header: the file is found, and has nothing in it.
    let without = run("-D_OSIP_H_");
    assert!(without.contains("cargo:warning=no headers of osip2"), "{without}");
    assert!(without.contains("left out are the osip2 transaction engine and the osip2 fifo"), "{without}");
    assert!(!without.contains("cfg=osip2"), "{without}");
    if osip::has_osip() {
        let with = run(&osip::cflags().join(" "));
        assert!(with.contains("cfg=osip2") && !with.contains("left out"), "{with}");
    }
}

#[test]
fn harmless_without_osip() {
    let output = Command::new("/bin/true").env("LD_PRELOAD", library()).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Libraries that were built for one osip2 are not taken for those of another: `make` looks at times, and here at names.
#[test]
fn another_osip_is_another_build() {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("make-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("src")).unwrap();
    std::fs::copy(osip::root().join("Makefile"), dir.join("Makefile")).unwrap();
    for name in ["Cargo.toml", "Cargo.lock", "build.rs", "src/lib.rs"] {
        std::fs::write(dir.join(name), "").unwrap();
    }
    // In place of cargo: says that it was called, and leaves what the recipe copies.
    let cargo = dir.join("cargo");
    let files = "mkdir -p target/release; touch target/release/libpartyline.so target/release/libpartyline.a";
    std::fs::write(&cargo, format!("#!/bin/sh\necho built >>calls\n{files}\n")).unwrap();
    std::fs::set_permissions(&cargo, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let builds = |flags: &str| {
        let _ = std::fs::remove_file(dir.join("calls"));
        let mut make = Command::new("make");
        make.current_dir(&dir).args(["-s", "target/lib/.built"]).arg(format!("CARGO={}", cargo.display()));
        let done = make.env("OSIP_CFLAGS", flags).env("OSIP_LIBS", "").output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        dir.join("calls").exists()
    };
    assert!(builds(""));
    assert!(!builds(""));
    // Times of files are compared, and some systems count them in jiffies.
    let built = dir.join("target/lib/.built");
    let age = |path: &Path| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(5)).unwrap();
    };
    for name in ["Makefile", "Cargo.toml", "Cargo.lock", "build.rs", "src/lib.rs", "target/lib/.osip"] {
        age(&dir.join(name));
    }
    age(&built);
    assert!(!builds(""));
    assert!(builds("-I/opt/other/include"));
    assert!(!builds("-I/opt/other/include"));
    std::fs::remove_dir_all(&dir).unwrap();
}
