//! Compiles the C glue (against the osip2 headers that the user has) and gives the shared library its SONAME.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Never unloaded: threads of ours, and pointers that osip2 holds, may outlive a dlclose.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libpartyline.so.0,-z,nodelete");
    glue();
}

/// C that stands between osip2 and this crate. The memory glue needs no header of osip2's and is always there.
fn glue() {
    compile("partyline_glue_memory", &["src/osip/glue_memory.c"]);
}

fn compile(name: &str, files: &[&str]) {
    let mut build = cc::Build::new();
    build.warnings(true).extra_warnings(true).warnings_into_errors(true).pic(true);
    for file in files {
        println!("cargo:rerun-if-changed={file}");
        build.file(file);
    }
    // Sanitizer runs have to instrument the glue as well.
    println!("cargo:rerun-if-env-changed=PARTYLINE_SANITIZE");
    if let Ok(sanitizer) = std::env::var("PARTYLINE_SANITIZE") {
        build.flag(format!("-fsanitize={sanitizer}"));
    }
    build.compile(name);
}
