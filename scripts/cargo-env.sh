#!/usr/bin/env bash
# Prints the exports with which `cargo` builds this crate: eval "$(scripts/cargo-env.sh)".
set -euo pipefail

cd "$(dirname "$0")/.."
if ! command -v cargo > /dev/null; then
  echo "cargo-env: cargo is not on PATH; install Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or newer, for example with rustup" >&2
  exit 1
fi
scripts/system-packages.sh >&2
duckdb=$(scripts/prebuilt-duckdb.sh)
printf 'export DUCKDB_LIB_DIR=%q\n' "$duckdb"
printf 'export DUCKDB_INCLUDE_DIR=%q\n' "$duckdb"
# Never fetch libduckdb from DuckDB's own host, whichever features are on.
echo 'export DUCKDB_DOWNLOAD_LIB=0'
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/vinculo/target}
printf 'export CARGO_TARGET_DIR=%q\n' "$CARGO_TARGET_DIR"

# Clones share that folder, and cargo goes by the age of files: what another clone built after a file here was last changed
# would pass for built from here.
builder=$CARGO_TARGET_DIR/last-clone
mkdir -p "$CARGO_TARGET_DIR"
if [[ $(cat "$builder" 2> /dev/null) != "$PWD" ]]; then
  cargo clean --quiet --release --locked -p vinculo >&2
  echo "$PWD" > "$builder"
fi
