//! Makes a prebuilt libduckdb found at run time.
//!
//! `libduckdb-sys` tells the linker where the library is, but not the loader; and the prebuilt one needs a stub library
//! beside it (`scripts/prebuilt-duckdb.sh` says why). With the feature `bundled` there is nothing to do.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-env-changed=DUCKDB_LIB_DIR");
    println!("cargo:rerun-if-changed=build.rs");
    let Ok(dir) = std::env::var("DUCKDB_LIB_DIR") else { return };
    println!("cargo:rustc-link-search=native={dir}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{dir}");
    if Path::new(&dir).join("libduckpystub.so").exists() {
        println!("cargo:rustc-link-arg=-Wl,--push-state,--no-as-needed,-lduckpystub,--pop-state");
    }
}
