//! The `vinculo` program; everything is in the library.

fn main() {}
