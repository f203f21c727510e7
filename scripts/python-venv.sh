#!/usr/bin/env bash
# Makes a Python environment with the pinned packages of a requirements file, and prints its python.
#
#   scripts/python-venv.sh NAME [REQUIREMENTS [DUCKDB_VERSION…]]
#
# It is kept outside the clone under a key of everything that went into it, so that it is made once for all clones. DuckDB
# versions go side by side into `duckdb/<version>` inside it: a program puts the one it wants on its path. The user's own
# pip settings (mirror, certificates, proxy) apply.
set -euo pipefail

name=$1
requirements=${2:-}
shift; [ $# -eq 0 ] || shift
"$(dirname "$0")/system-packages.sh" >&2

key=$({ python3 --version; python3 -c 'import sys; print(sys.prefix)'; uname -m; cat "${requirements:-/dev/null}"; echo "$*"; } | sha256sum | cut -c1-16)
dir="${XDG_CACHE_HOME:-$HOME/.cache}/vinculo/python-$name-$key"
# Wheels only: compiling one of these packages takes longer than the whole build, and needs more than is here.
pip=("$dir/bin/python" -m pip --disable-pip-version-check install --quiet --only-binary=:all:)

if [ ! -e "$dir/complete" ]; then
  mkdir -p "$dir"
  exec 9> "$dir.lock" && flock 9
fi
if [ ! -e "$dir/complete" ]; then
  echo "python-venv: preparing $name (once)" >&2
  python3 -m venv --clear "$dir" >&2
  # `--clear` empties the folder, so the lock file is kept beside it.
  if [ -n "$requirements" ]; then
    "${pip[@]}" --requirement "$requirements" < /dev/null >&2
  fi
  for version in "$@"; do
    "${pip[@]}" --no-deps --target "$dir/duckdb/$version" "duckdb==$version" < /dev/null >&2
  done
  touch "$dir/complete"
fi
echo "$dir/bin/python"
