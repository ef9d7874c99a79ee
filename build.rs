//! Compiles the C glue (against the osip2 headers that the user has) and gives the shared library its SONAME.
//!
//! osip2 is found through pkg-config, or through `OSIP_CFLAGS` and `OSIP_LIBS`. Where there is none the crate builds
//! without the transaction engine and says so; `cfg(osip2)` tells the sources.

use std::path::{Path, PathBuf};
use std::process::Stdio;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os != "windows") {
        // Never unloaded: threads of ours, and pointers that osip2 holds, may outlive a dlclose.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libpartyline.so.0,-z,nodelete");
    }
    // Sanitizer runs have to instrument the glue as well.
    println!("cargo:rerun-if-env-changed=PARTYLINE_SANITIZE");
    println!("cargo:rerun-if-env-changed=OSIP_CFLAGS");
    println!("cargo:rerun-if-env-changed=OSIP_LIBS");
    // The memory glue needs no header of osip2's and is always there.
    compile("partyline_glue_memory", &["src/osip/glue_memory.c"], &[]);
    match osip2() {
        Some(flags) => {
            println!("cargo:rustc-cfg=osip2");
            compile(
                "partyline_glue_osip",
                &[
                    "src/osip/glue_engine.c",
                    "src/osip/glue_fields.c",
                    "src/osip/glue_fifo.c",
                    "src/osip/glue_list.c",
                    "src/osip/glue_resend.c",
                    "src/osip/glue_stack.c",
                ],
                &flags,
            );
            println!("cargo:rerun-if-changed=include/partyline/partysip.h");
            compile("partyline_glue_uinfo", &["src/partysip/glue_uinfo.c"], &flags);
        }
        None if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "windows") => {
            println!("cargo:warning=left out on Windows are the osip2 transaction engine and the osip2 fifo")
        }
        None => println!(
            "cargo:warning=no headers of osip2 3.0 or later (pkg-config libosip2, or OSIP_CFLAGS and OSIP_LIBS): left out \
             are the osip2 transaction engine and the osip2 fifo"
        ),
    }
}

/// The compiler flags of the osip2 that is there, and what its version lacks.
fn osip2() -> Option<Vec<String>> {
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "windows") {
        // A dll has no 'next' definition to call (docs/windows.md).
        return None;
    }
    let words = |name| std::env::var(name).ok().map(|v| v.split_whitespace().map(String::from).collect::<Vec<_>>());
    let (mut flags, libraries) = match words("OSIP_CFLAGS") {
        Some(flags) => {
            let dirs = words("OSIP_LIBS").unwrap_or_default();
            (flags, dirs.iter().filter_map(|word| word.strip_prefix("-L").map(PathBuf::from)).collect())
        }
        None => {
            let found = pkg_config::Config::new().cargo_metadata(false).env_metadata(true).probe("libosip2").ok()?;
            let mut dirs = found.link_paths;
            if let Ok(dir) = pkg_config::get_variable("libosip2", "libdir") {
                dirs.push(PathBuf::from(dir));
            }
            (found.include_paths.iter().map(|dir| format!("-I{}", dir.display())).collect(), dirs)
        }
    };
    // A warning about a header of osip2's is nobody's business here.
    for flag in &mut flags {
        if let Some(dir) = flag.strip_prefix("-I") {
            *flag = format!("-isystem{dir}");
        }
    }
    // Lists by value: since 3.0.0.
    if !accepts(&flags, "osip_t o; int main(void) { return o.osip_ict_transactions.nb_elt; }") {
        return None;
    }
    // Up to 3.x a program says with OSIP_MT that the library has threads; the library always has.
    const THREADS: &str = "osip_fifo_t f; int main(void) { return f.qislocked != 0; }";
    if !accepts(&flags, THREADS) {
        flags.push("-DOSIP_MT".to_string());
        if !accepts(&flags, THREADS) {
            return None;
        }
    }
    for (feature, source) in [
        ("PARTYLINE_CREATED_TIME", "osip_transaction_t t; int main(void) { t.created_time.tv_sec = 0; return 0; }"),
        ("PARTYLINE_SRV_RECORD", "osip_transaction_t t; int main(void) { return (int)sizeof t.record; }"),
        ("PARTYLINE_OSIP_MUTEXES", "osip_t o; int main(void) { return o.ict_fastmutex != 0 && o.id_mutex != 0; }"),
        ("PARTYLINE_OSIP_ID", "osip_t o; int main(void) { return o.transactionid; }"),
        ("PARTYLINE_FIFO_LIMIT", "osip_fifo_t f; int main(void) { return f.state == osip_full && MAX_LEN > 1; }"),
    ] {
        if accepts(&flags, source) {
            flags.push(format!("-D{feature}"));
        }
    }
    if let Some(soname) = libraries.iter().find_map(|dir: &PathBuf| soname(dir)) {
        println!("cargo:rustc-env=PARTYLINE_OSIP_SONAME={soname}");
    }
    Some(flags)
}

/// `libosip2.so.N`, from what the development link points at.
fn soname(dir: &Path) -> Option<String> {
    let file = dir.join("libosip2.so").canonicalize().ok()?;
    let name = file.file_name()?.to_str()?;
    let version = name.strip_prefix("libosip2.so.")?;
    Some(format!("libosip2.so.{}", version.split('.').next()?))
}

fn accepts(flags: &[String], source: &str) -> bool {
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let file = Path::new(&out).join("probe.c");
    let text = format!("#include <sys/time.h>\n#include <osip2/osip.h>\n{source}\n");
    if std::fs::write(&file, text).is_err() {
        return false;
    }
    let mut command = cc::Build::new().get_compiler().to_command();
    command.args(flags).arg("-fsyntax-only").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn compile(name: &str, files: &[&str], flags: &[String]) {
    let mut build = cc::Build::new();
    build.warnings(true).extra_warnings(true).warnings_into_errors(true).pic(true);
    // A callback may leave by pthread_exit or be cancelled: the cleanup handlers in the glue then run as it unwinds.
    build.flag("-fexceptions");
    for flag in flags {
        build.flag(flag);
    }
    for file in files {
        println!("cargo:rerun-if-changed={file}");
        build.file(file);
    }
    println!("cargo:rerun-if-changed=src/osip/glue_osip.h");
    if let Ok(sanitizer) = std::env::var("PARTYLINE_SANITIZE") {
        build.flag(format!("-fsanitize={sanitizer}"));
    }
    build.compile(name);
}
