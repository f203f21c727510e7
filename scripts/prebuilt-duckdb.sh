#!/usr/bin/env bash
# Fetches libduckdb for development, tests and the demo, and prints the folder it is in.
#
# The Python wheel of DuckDB carries the official build with the whole C API exported. It also refers to symbols of the
# Python interpreter, which the C API never calls: a generated stub library satisfies them. Compiling DuckDB instead
# costs over an hour of CPU (`make dist` does it). The stub must never be shipped.
set -euo pipefail

version=2.0.0
scripts=$(cd "$(dirname "$0")" && pwd)
case "$(uname -m)" in
  x86_64)  platform=manylinux_2_28_x86_64
           sha256=5a3601121c7cc50d0b70412995634682fafcb58a0156d5d663dfd0b3bbe30a33 ;;
  aarch64) platform=manylinux_2_28_aarch64
           sha256=bcdf10dfbc2c1a6bdc5b2a94bba5b15481e552c5745c2af1994617b0eb6bc750 ;;
  *) echo "prebuilt-duckdb: no prebuilt library for $(uname -m); build with 'make dist'" >&2; exit 1 ;;
esac

dir="${XDG_CACHE_HOME:-$HOME/.cache}/vinculo/duckdb-$version-$(uname -m)"
if [ ! -e "$dir/complete" ]; then
  # Debian's python3 has no pip: the one of a bare environment is used everywhere.
  python=$("$scripts/python-venv.sh" pip)
  mkdir -p "$dir"
  exec 9>"$dir/lock" && flock 9
fi
if [ ! -e "$dir/complete" ]; then
  rm -f "$dir"/duckdb-*.whl
  "$python" -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: --python-version 3.11 \
    --implementation cp --platform "$platform" --dest "$dir" "duckdb==$version" < /dev/null >&2
  wheel=$(echo "$dir"/duckdb-*.whl)
  echo "$sha256  $wheel" | sha256sum --check --quiet >&2
  "$python" - "$wheel" "$dir/libduckdb.so" <<'PY'
import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
[name] = [n for n in wheel.namelist() if n.startswith("_duckdb.") and n.endswith(".so")]
open(sys.argv[2], "wb").write(wheel.read(name))
PY
  # Each undefined Python symbol becomes a block of zeroes under its own name.
  nm -D --undefined-only "$dir/libduckdb.so" | awk '{ print $2 }' | sed 's/@.*//' | grep -E '^_?Py' | sort -u \
    | sed 's/.*/char &[512];/' > "$dir/stub.c"
  cc -shared -fPIC -Wl,-soname,libduckpystub.so -o "$dir/libduckpystub.so" "$dir/stub.c"
  rm -f "$wheel"
  touch "$dir/complete"
fi
echo "$dir"
