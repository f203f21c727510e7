//! `make bench`: every figure is a ratio of two things measured in the same run, on the same machine, from the same
//! input.
//!
//! `cargo bench --bench ratios -- flatten` runs one part; without a name all of them run. What is measured against is
//! in `bench/`, and `bench/README.md` says how to read the figures.

use std::process::ExitCode;

mod acks;
mod children;
mod features;
mod flatten;
mod links;
mod measure;
mod memory;
mod publish;
mod sync;

/// Measures, prints, and says whether every aim was reached.
type Part = fn() -> anyhow::Result<bool>;

fn main() -> ExitCode {
    let parts: [(&str, Part); 7] = [
        ("flatten", flatten::run),
        ("acks", acks::run),
        ("sync", sync::run),
        ("publish", publish::run),
        ("memory", memory::run),
        ("links", links::run),
        ("features", features::run),
    ];
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let mut all_reached = true;
    for (name, run) in parts {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        println!("\n{name}");
        match run() {
            Ok(reached) => all_reached &= reached,
            Err(error) => {
                println!("  failed: {error:#}");
                all_reached = false;
            }
        }
    }
    if all_reached { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
