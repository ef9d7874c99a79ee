//! `make install` as a C program that knows nothing of this source tree meets it: the files, and partyline.pc and
//! partyline-static.pc as all that it is told. Needs target/lib (`make lib`), osip2's headers and pkg-config.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
    assert!(output.status.success(), "{command:?} ended with {}:\n{}", output.status, text(&output));
    text(&output)
}

/// Installed once for all tests here; the folder is emptied first, so that nothing of an earlier run is found in it.
fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prefix");
        let _ = std::fs::remove_dir_all(&prefix);
        let library = root().join("target/lib/libpartyline.so.0");
        assert!(library.exists(), "{} is missing: run `make lib` first", library.display());
        // What is in target/lib is installed, not built anew: cargo, which runs this test, would wait for itself.
        succeed(
            make()
                .arg("install-files")
                .arg(format!("PREFIX={}", prefix.display()))
                .env_remove("DESTDIR")
                .current_dir(root()),
        );
        prefix
    })
}

fn make() -> Command {
    let mut make = Command::new("make");
    // A make above this one would have this one take part in its jobs.
    make.env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("MAKELEVEL");
    make
}

/// What pkg-config says, one word each.
fn pkg_config(prefix: &Path, arguments: &[&str]) -> Vec<String> {
    let said = succeed(Command::new("pkg-config").args(arguments).env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")));
    said.split_whitespace().map(str::to_owned).collect()
}

/// Parses, copies and writes messages with osip2; of ours it has the header only.
const PROGRAM: &str = r#"
#include <partyline.h>

#include <osipparser2/osip_parser.h>

#include <stdio.h>
#include <string.h>

static const char text[] = "OPTIONS sip:bob@example.test SIP/2.0\r\n"
                           "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1\r\n"
                           "From: <sip:alice@example.test>;tag=1\r\nTo: <sip:bob@example.test>\r\n"
                           "Call-ID: 1@example.test\r\nCSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n";

int main(void) {
  if (parser_init() != 0) return 2;
  for (int i = 0; i < 100; i++) {
    osip_message_t *message = NULL, *copy = NULL;
    char *out = NULL;
    size_t length = 0;
    if (osip_message_init(&message) != 0 || osip_message_parse(message, text, strlen(text)) != 0) return 3;
    if (osip_message_clone(message, &copy) != 0 || osip_message_to_str(copy, &out, &length) != 0) return 4;
    if (length == 0 || strncmp(out, "OPTIONS sip:bob@example.test SIP/2.0", 36) != 0) return 5;
    osip_free(out);
    osip_message_free(copy);
    osip_message_free(message);
  }
  puts("parsed");
  return 0;
}
"#;

/// Compiles PROGRAM with these words after it, in this order.
fn compile(name: &str, words: &[String]) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (dir.join(format!("{name}.c")), dir.join(name));
    std::fs::write(&source, PROGRAM).unwrap();
    succeed(Command::new("cc").args(["-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(&source).args(words));
    program
}

/// Runs it as its user would, with the report on; how many calls of osip2's the pool served.
fn osip_malloc_calls(program: &Path) -> u64 {
    let said = succeed(Command::new(program).env("PARTYLINE_REPORT", "1").env_remove("LD_PRELOAD"));
    assert!(said.contains("parsed\n"), "{said}");
    assert!(said.contains("given to osip2"), "the pool was not given to osip2: {said}");
    let count = said.split("osip_malloc ").nth(1).and_then(|rest| rest.split_whitespace().next());
    count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count of osip_malloc in: {said}"))
}

/// 100 messages, each parsed, copied and written: far more blocks than messages.
const AT_LEAST: u64 = 1000;

#[test]
fn it_installs_libraries_header_and_pc_files() {
    let prefix = prefix();
    for file in [
        "lib/libpartyline.so.0",
        "lib/libpartyline.so",
        "lib/libpartyline.a",
        "lib/pkgconfig/partyline.pc",
        "lib/pkgconfig/partyline-static.pc",
        "include/partyline.h",
    ] {
        assert!(prefix.join(file).exists(), "{file} was not installed");
    }
    assert_eq!(std::fs::read_link(prefix.join("lib/libpartyline.so")).unwrap(), Path::new("libpartyline.so.0"));
    assert_eq!(pkg_config(prefix, &["--modversion", "partyline"]), [env!("CARGO_PKG_VERSION")]);
    assert_eq!(pkg_config(prefix, &["--modversion", "partyline-static"]), [env!("CARGO_PKG_VERSION")]);
}

/// A package is put together below DESTDIR, but what its files say holds where they end up.
#[test]
fn destdir_is_not_in_the_pc_files() {
    prefix();
    let stage = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stage");
    let _ = std::fs::remove_dir_all(&stage);
    succeed(
        make()
            .args(["install-files", "PREFIX=/opt/partyline"])
            .arg(format!("DESTDIR={}", stage.display()))
            .current_dir(root()),
    );
    for name in ["partyline", "partyline-static"] {
        let said = std::fs::read_to_string(stage.join(format!("opt/partyline/lib/pkgconfig/{name}.pc"))).unwrap();
        assert!(
            said.contains("libdir=/opt/partyline/lib\n") && said.contains("includedir=/opt/partyline/include\n"),
            "{said}"
        );
        assert!(!said.contains("stage"), "{said}");
    }
}

#[test]
fn a_program_takes_the_shared_library_by_pkg_config() {
    let prefix = prefix();
    let mut words = pkg_config(prefix, &["--cflags", "--libs", "partyline", "libosip2"]);
    let libdir = pkg_config(prefix, &["--variable=libdir", "partyline"]).remove(0);
    words.push(format!("-Wl,-rpath,{libdir}"));
    let program = compile("install_shared", &words);
    let needed = succeed(Command::new("readelf").arg("-d").arg(&program));
    assert!(needed.contains("[libpartyline.so.0]"), "{needed}");
    let calls = osip_malloc_calls(&program);
    assert!(calls >= AT_LEAST, "{calls} calls of osip_malloc");
}

#[test]
fn a_program_takes_the_archive_before_static_osip2() {
    let prefix = prefix();
    let osip = pkg_config(prefix, &["--variable=libdir", "libosip2"]).remove(0);
    for (name, static_too) in [("install_static", None), ("install_static_said", Some("--static"))] {
        let arguments: Vec<&str> = ["--cflags", "--libs", "partyline-static"].into_iter().chain(static_too).collect();
        let mut words = pkg_config(prefix, &arguments);
        words.extend(["libosip2.a", "libosipparser2.a"].map(|archive| format!("{osip}/{archive}")));
        let program = compile(name, &words);
        let needed = succeed(Command::new("readelf").arg("-d").arg(&program));
        assert!(!needed.contains("osip") && !needed.contains("partyline"), "not static: {needed}");
        let calls = osip_malloc_calls(&program);
        assert!(calls >= AT_LEAST, "{calls} calls of osip_malloc");
    }
}
