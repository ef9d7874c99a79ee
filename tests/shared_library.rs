//! libpartyline.so as a program meets it: what it exports, what it needs, and that preloading it changes nothing for
//! programs that have no osip2. Needs target/lib: `make lib` (as `make test` does).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn library() -> PathBuf {
    let path = root().join("target/lib/libpartyline.so.0");
    assert!(path.exists(), "{} is missing: run `make lib` first", path.display());
    path
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program} cannot be run: {e}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn it_exports_what_the_list_says_and_nothing_else() {
    let listed: BTreeSet<String> = std::fs::read_to_string(root().join("include/partyline.symbols"))
        .unwrap()
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    let output = run("nm", &["-D", "--defined-only", library().to_str().unwrap()]);
    let exported: BTreeSet<String> =
        text(&output.stdout).lines().filter_map(|line| line.split_whitespace().nth(2)).map(str::to_owned).collect();
    let extra: Vec<_> = exported.difference(&listed).collect();
    let missing: Vec<_> = listed.difference(&exported).collect();
    assert!(
        extra.is_empty() && missing.is_empty(),
        "not on the list: {extra:?}; on the list but not there: {missing:?}"
    );
}

#[test]
fn it_needs_no_osip2_and_has_its_soname() {
    let dynamic = text(&run("readelf", &["-d", library().to_str().unwrap()]).stdout);
    assert!(dynamic.contains("SONAME") && dynamic.contains("[libpartyline.so.0]"), "{dynamic}");
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
    for line in dynamic.lines().filter(|line| line.contains("NEEDED")) {
        assert!(!line.contains("osip"), "{line}");
    }
    let undefined = text(&run("nm", &["-D", "--undefined-only", library().to_str().unwrap()]).stdout);
    for line in undefined.lines().filter(|line| line.contains("osip")) {
        assert!(line.trim_start().starts_with('w'), "a strong reference to osip2: {line}");
    }
}

#[test]
fn preloaded_it_changes_nothing_for_programs_without_osip2() {
    let library = library();
    for (program, arguments, status) in [
        ("/bin/true", &[][..], 0),
        ("/bin/sh", &["-c", "x=$(echo hello | tr a-z A-Z); test \"$x\" = HELLO"][..], 0),
        ("/bin/ls", &["/"][..], 0),
        // sipp's exit code for -v is 99 with and without the library.
        ("sipp", &["-v"][..], 99),
    ] {
        let plain = run(program, arguments);
        let preloaded = Command::new(program).args(arguments).env("LD_PRELOAD", &library).output().unwrap();
        assert_eq!(preloaded.status.code(), Some(status), "{program}: {}", text(&preloaded.stderr));
        assert_eq!(text(&preloaded.stdout), text(&plain.stdout), "{program}");
        assert_eq!(text(&preloaded.stderr), text(&plain.stderr), "{program}");
    }
}
