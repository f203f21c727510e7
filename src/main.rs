//! The `vinculo` program; everything is in the library.

fn main() -> std::process::ExitCode {
    vinculo::cli::main()
}
