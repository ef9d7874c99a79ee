//! The C tests of c-harness/tests, built as a user builds them and run here. Needs target/harness: `make harness`.

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "common/mariadb.rs"]
mod mariadb;

use std::path::Path;
use std::process::Command;

fn run(name: &str, arguments: &[&str]) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/harness/tests").join(name);
    assert!(program.exists(), "{} is missing: run `make harness` first", program.display());
    let output = Command::new(&program).args(arguments).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} {arguments:?} ended with {}:\n{said}", output.status);
    assert!(said.contains(": ok"), "{name} did not say ok:\n{said}");
}

#[test]
fn misuse_gives_codes() {
    run("api_misuse", &[]);
}

#[test]
fn memory_by_its_exported_names() {
    run("pool_api", &[]);
}

#[test]
fn memory_for_a_library_by_three_pointers() {
    run("allocators", &[]);
}

/// The short form of `make soak-pool`, which says what it does.
#[test]
fn pool_under_everything_at_once() {
    run("soak_pool", &["3", "4", "7"]);
}

#[test]
fn a_server_goes_on_past_the_pools_limit() {
    run("limit_flow", &[]);
}

#[test]
fn plugins() {
    run("plugins", &[]);
}

#[test]
fn plugins_from_files_and_their_exchange_under_load() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/harness/tests/modules");
    run("reload", &[folder.to_str().unwrap()]);
}

#[test]
fn a_plugin_that_blocks_and_who_is_refused() {
    run("overload", &[]);
}

#[test]
fn events() {
    run("events", &[]);
}

#[test]
fn registrar_in_memory() {
    run("registrar_flow", &["memory:", "memory"]);
    run("registrar_flow", &["memory:", "memory", "tcp"]);
}

#[test]
fn connections() {
    run("stream_flow", &[]);
}

#[test]
fn six_callbacks() {
    run("watch", &[]);
}

#[test]
fn a_register_costs_no_malloc() {
    run("no_malloc", &["memory:", "memory"]);
    run("no_malloc", &["memory:", "memory", "tcp"]);
}

#[test]
fn registrar_on_sqlite() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for mode in ["write_through", "write_back"] {
        let file = dir.join(format!("flow-{mode}.db"));
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
        }
        run("registrar_flow", &[&format!("sqlite:{}", file.display()), mode]);
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
        }
        run("registrar_flow", &[&format!("sqlite:{}", file.display()), mode, "tcp"]);
    }
}

#[test]
fn registrar_on_mariadb() {
    let server = mariadb::Mariadb::start("flow");
    for mode in ["write_through", "write_back"] {
        run("registrar_flow", &[&server.database(&format!("flow_{mode}")), mode]);
    }
}
