//! Compiles the C glue (against the osip2 headers that the user has) and gives the shared library its SONAME.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Never unloaded: threads of ours, and pointers that osip2 holds, may outlive a dlclose.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libpartyline.so.0,-z,nodelete");
}
