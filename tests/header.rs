//! include/partyline.h is what the sources say, and compiles as C and as C++.
#![cfg(not(windows))] // cbindgen is not built there

use std::path::Path;
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_header_is_not_stale() {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let mut fresh = Vec::new();
    cbindgen::Builder::new()
        .with_config(config)
        .with_src(root().join("src/capi/mod.rs"))
        .generate()
        .unwrap()
        .write(&mut fresh);
    let checked_in = std::fs::read(root().join("include/partyline.h")).unwrap();
    assert!(fresh == checked_in, "include/partyline.h is stale: run `make header`");
}

/// osip2's own header makes osip_malloc a macro; the two have to get along in either order.
#[test]
fn the_header_compiles_in_c_and_cpp_and_beside_osip2() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let ours = "#include <partyline.h>\n";
    // osip2's headers want <sys/time.h> before them.
    let osip = "#include <sys/time.h>\n#include <osip2/osip.h>\n";
    let body = "int main(void) { partyline_engine *e = 0; (void)e; return PARTYLINE_OK; }\n";
    for (name, text) in [
        ("alone.c", format!("{ours}{body}")),
        ("before.c", format!("{ours}{osip}{body}")),
        ("after.c", format!("{osip}{ours}{body}")),
        ("alone.cc", format!("{ours}{body}")),
    ] {
        let file = dir.join(name);
        std::fs::write(&file, text).unwrap();
        let compiler = if name.ends_with(".cc") { "c++" } else { "cc" };
        if Command::new(compiler).arg("--version").output().is_err() {
            eprintln!("SKIPPED {name}: no {compiler}");
            continue;
        }
        let output = Command::new(compiler)
            .args(["-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I"])
            .arg(root().join("include"))
            .arg(&file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
