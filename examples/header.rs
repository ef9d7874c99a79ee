//! Writes include/partyline.h from the sources: `make header`. `tests/header.rs` fails when the file is stale.

fn main() {
    let root = env!("CARGO_MANIFEST_DIR");
    let config = cbindgen::Config::from_file(format!("{root}/cbindgen.toml")).expect("cbindgen.toml can be read");
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(format!("{root}/src/capi/mod.rs"))
        .generate()
        .expect("the sources can be parsed");
    bindings.write_to_file(format!("{root}/include/partyline.h"));
}
