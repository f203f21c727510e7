#!/usr/bin/env bash
# Prints the python that runs `tests/readers/check.py`: pyarrow, polars, pandas, and three versions of DuckDB side by side.
set -euo pipefail

cd "$(dirname "$0")/.."
mapfile -t versions < <(grep -v '^#' tests/readers/duckdb-versions.txt)
scripts/python-venv.sh readers tests/readers/requirements.txt "${versions[@]}"
